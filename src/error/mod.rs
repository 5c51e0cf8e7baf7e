//! The errors of this crate.
//!
//! A message names the fault and the values that caused it. Its cause is in
//! [`source`](std::error::Error::source), for the caller to print once. [`Error::kind`] groups the
//! variants by what a caller can do about them.

mod kind;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::kind::ErrorKind;

use crate::dtype::DType;
use crate::region::{Region, Shape};

/// The result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a library that is not part of this crate's API.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error, with the values that are needed to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system reported an error.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb: `open`, `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// Neither the content nor the extension belongs to a supported format.
    #[error(
        "cannot read {} as a volume: {problem} (supported: {supported})",
        path.display()
    )]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// Why the format was not recognized.
        problem: String,
        /// The formats that are supported.
        supported: String,
    },

    /// A header or metadata document violates its format.
    #[error("{}: bad {format} header: {problem}", path.display())]
    Header {
        /// The file that holds the header.
        path: PathBuf,
        /// The usual name of the format.
        format: &'static str,
        /// The field, its value, and the values that are allowed.
        problem: String,
    },

    /// The file is valid, but uses a feature that is not supported.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The unsupported feature, and an alternative.
        what: String,
    },

    /// A header names a voxel file that may not be read.
    #[error(
        "{}: the header says that the voxels are in {file:?}, {problem}: only regular files in the header's folder \
         or below are read, unless external files are allowed",
        path.display()
    )]
    ExternalFile {
        /// The header's file.
        path: PathBuf,
        /// The file that it names.
        file: String,
        /// Why that file is not read.
        problem: String,
    },

    /// A format cannot store voxels of this type.
    #[error("{}: {format} cannot store {dtype}: convert to {instead}", path.display())]
    UnsupportedDType {
        /// The output.
        path: PathBuf,
        /// The usual name of the format.
        format: &'static str,
        /// The type.
        dtype: DType,
        /// A type that the format can store.
        instead: DType,
    },

    /// A flat file is shorter than its header says.
    #[error(
        "{} holds {actual} bytes, but {channels} x {shape:?} of {dtype} from byte {offset} needs {expected}: \
         the file is truncated or the header is wrong",
        path.display()
    )]
    FileLength {
        /// The file that holds the voxels.
        path: PathBuf,
        /// Channels in the header.
        channels: u64,
        /// Shape in the header, z, y, x.
        shape: Shape,
        /// Voxel type in the header.
        dtype: DType,
        /// The byte at which the voxels start.
        offset: u64,
        /// Bytes that the file needs.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },

    /// The volume has more bytes than can be addressed.
    #[error("{}: {channels} x {shape:?} voxels of {dtype} are more than 2^63 bytes", path.display())]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// Channels in the header.
        channels: u64,
        /// Shape in the header, z, y, x.
        shape: Shape,
        /// Voxel type.
        dtype: DType,
    },

    /// A path holds several DICOM series, and none or one that is not there was chosen.
    #[error("{}: {problem}: {series}", path.display())]
    SeriesChoice {
        /// The folder or file.
        path: PathBuf,
        /// What must be chosen.
        problem: String,
        /// The series, each with its number, description, modality, size and unique identifier.
        series: String,
    },

    /// The slices of a volume are not at even distances.
    #[error("{}: {problem}: read them as if they were evenly spaced only if that does no harm", path.display())]
    UnevenSlices {
        /// The folder or file.
        path: PathBuf,
        /// The distances.
        problem: String,
    },

    /// The slices of a volume are shifted within their plane.
    #[error("{}: {problem}: read it as a sheared volume, or correct the tilt first", path.display())]
    TiltedSlices {
        /// The folder or file.
        path: PathBuf,
        /// The angle and the shift.
        problem: String,
    },

    /// A chunk could not be decoded.
    #[error("{}: chunk {key} cannot be decoded", path.display())]
    Chunk {
        /// The array.
        path: PathBuf,
        /// The chunk's key in the array, with the inner chunk if it is in a shard.
        key: String,
        /// The codec's error.
        source: Cause,
    },

    /// A chunk has no file, and missing chunks are not read as the fill value.
    #[error("{}: chunk {key} is missing", path.display())]
    MissingChunk {
        /// The array.
        path: PathBuf,
        /// The chunk's key in the array.
        key: String,
    },

    /// A file of an input was modified after the input was opened.
    #[error(
        "{} changed while it was in use: {what}; leave inputs unchanged during a run, and start this one again",
        path.display()
    )]
    InputModified {
        /// The file.
        path: PathBuf,
        /// The change.
        what: String,
    },

    /// A chunk of an output was written twice.
    #[error("{}: chunk {key} was already written; each chunk is written once", path.display())]
    ChunkWritten {
        /// The output.
        path: PathBuf,
        /// The chunk's key in the array.
        key: String,
    },

    /// A codec that is not safe on untrusted data.
    #[error(
        "{}: codec {codec:?} is not safe on untrusted data: open the volume as trusted if you trust its \
         source, or get a copy compressed with zstd or gzip",
        path.display()
    )]
    UntrustedCodec {
        /// The array.
        path: PathBuf,
        /// The codec's name in the metadata.
        codec: String,
    },

    /// A symbolic link in untrusted data, which could point to any file that the process can read.
    #[error(
        "{} is a symbolic link, which is not followed in untrusted data: open the volume as trusted if you trust its \
         source, or copy it with the files that its links point to (cp -rL)",
        path.display()
    )]
    UntrustedLink {
        /// The link.
        path: PathBuf,
    },

    /// A region is not inside its volume.
    #[error("region [{region}] reaches outside the volume of shape {shape:?}")]
    OutOfBounds {
        /// The requested region.
        region: Region,
        /// The volume's shape, z, y, x.
        shape: Shape,
    },

    /// Requested channels do not exist.
    #[error("channels {start}..{end} are out of range: the volume has {channels}")]
    NoSuchChannel {
        /// First requested channel.
        start: u64,
        /// One past the last.
        end: u64,
        /// Channels of the volume.
        channels: u64,
    },

    /// A requested box is not inside the volume.
    #[error(
        "{}: voxels {start}..{end} along {axis} are out of range: there are {length}; give the first and one past \
         the last, counted from 0",
        path.display()
    )]
    NoSuchBox {
        /// The volume.
        path: PathBuf,
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// First requested voxel.
        start: u64,
        /// One past the last.
        end: u64,
        /// Voxels of the volume along the axis.
        length: u64,
    },

    /// Time points were requested of a volume without them.
    #[error(
        "{} has no time axis, or another axis varies more slowly than time: select some of its {channels} channels \
         instead",
        path.display()
    )]
    NoTime {
        /// The volume.
        path: PathBuf,
        /// Channels of the volume.
        channels: u64,
    },

    /// Requested time points do not exist.
    #[error("{}: time points {start}..{end} are out of range: there are {points}", path.display())]
    NoSuchTime {
        /// The volume.
        path: PathBuf,
        /// First requested time point.
        start: u64,
        /// One past the last.
        end: u64,
        /// Time points of the volume.
        points: u64,
    },

    /// A buffer does not have the length of its region.
    #[error("the buffer has {actual} bytes, but {expected} are needed")]
    BufferLength {
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        actual: u64,
    },

    /// Voxels were requested as a different type.
    #[error("the voxels are {actual}, not {expected}")]
    WrongDType {
        /// The requested type.
        expected: DType,
        /// The type of the voxels.
        actual: DType,
    },

    /// A patch has no voxels, or does not fit into its volume.
    #[error("a patch of {patch} voxels along {axis} does not fit into a volume of {volume}")]
    PatchSize {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// Voxels of the patch along it.
        patch: u64,
        /// Voxels of the volume along it.
        volume: u64,
    },

    /// Predictions are not aligned with the voxels of their output.
    #[error(
        "an output of scale 1/{scale} and a halo of {halo} voxels does not fit along {axis}: {problem}"
    )]
    OutputGrid {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// Voxels that the model crops from each face of a patch.
        halo: u64,
        /// Input voxels per output voxel.
        scale: u64,
        /// The mismatch, and a remedy.
        problem: String,
    },

    /// The place of predictions in their patch is unknown or ambiguous.
    #[error("cannot place predictions of {shape:?} voxels in patches of {patch:?}: {problem}")]
    OutputPlace {
        /// Voxels of a patch, z, y, x.
        patch: Shape,
        /// Voxels of its prediction, z, y, x.
        shape: Shape,
        /// Why no place fits, or the places that fit.
        problem: String,
    },

    /// An overlap is as large as the patch or larger.
    #[error("an overlap of {overlap} along {axis} must be smaller than the patch of {patch}")]
    Overlap {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// The overlap, in voxels.
        overlap: u64,
        /// Voxels of the patch along the axis.
        patch: u64,
    },

    /// An output exists already.
    #[error("{} exists already: choose another name, or allow it to be replaced", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },

    /// An output in a store was begun by another run, which has not finished it.
    #[error(
        "{} is an unfinished output that a run began {began}: wait until that run is done or, if it no longer runs, \
         allow the output to be replaced",
        path.display()
    )]
    Unfinished {
        /// The output.
        path: PathBuf,
        /// The time since it was begun, as in `3 minutes ago`.
        began: String,
    },

    /// An output in a store was changed by something else while it was written.
    #[error("{} was changed while it was written, and is not finished: {what}", path.display())]
    OutputModified {
        /// The output.
        path: PathBuf,
        /// What has changed.
        what: &'static str,
    },

    /// The output's name is taken by something that is not an output of this kind.
    #[error("{} is not replaced because it is {what}: move it away, or choose another name", path.display())]
    NotOverwritable {
        /// The output.
        path: PathBuf,
        /// A description of the existing file or folder.
        what: String,
    },

    /// The disk has too little space to start an output.
    #[error(
        "no space for {}: it needs at least {needed} bytes, but only {free} are free: free some space, or write it elsewhere",
        path.display()
    )]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Bytes that it needs at least.
        needed: u64,
        /// Bytes that are free on its disk.
        free: u64,
    },

    /// The output is, contains or is inside an input.
    #[error("cannot write {}: it is, contains or is inside the input {}", output.display(), input.display())]
    OutputIsInput {
        /// The output.
        output: PathBuf,
        /// The input.
        input: PathBuf,
    },

    /// Two outputs of one run are the same, or one is inside the other.
    #[error("cannot write both {} and {}: they are the same, or one is inside the other", other.display(), output.display())]
    SameOutput {
        /// The output.
        output: PathBuf,
        /// The earlier output.
        other: PathBuf,
    },

    /// An argument has an invalid value.
    #[error("invalid {argument} {value}: {problem}")]
    InvalidArgument {
        /// The argument, as in `overlap`.
        argument: &'static str,
        /// Its value.
        value: String,
        /// Why the value is invalid, or which values are allowed.
        problem: String,
    },

    /// An index is too large.
    #[error("{what} {index} is out of range: there are {count}, counted from 0")]
    IndexOutOfRange {
        /// The items that are counted, in the singular: `patch`, `draw`.
        what: &'static str,
        /// The index.
        index: u64,
        /// The number of items.
        count: u64,
    },

    /// A memory limit is too low.
    #[error("a memory limit of {memory} bytes is too low: {problem}")]
    MemoryLimit {
        /// The limit, in bytes.
        memory: u64,
        /// The bytes that are needed, and a remedy.
        problem: String,
    },

    /// The memory where a model blends its predictions, such as that of a GPU, is too small.
    #[error("{memory} bytes are too few for the model to blend its predictions: {problem}")]
    BlenderMemory {
        /// The bytes that are there for it.
        memory: u64,
        /// The bytes that are needed, and a remedy.
        problem: String,
    },

    /// An allocation would be larger than the address space.
    #[error("{what} does not fit into memory")]
    OutOfMemory {
        /// The object to allocate.
        what: String,
    },

    /// A model returned a wrong number of outputs or predictions.
    #[error(
        "the model returned {predictions:?} predictions, one number for each output, but {patches} are needed for \
         each of {outputs} outputs"
    )]
    ModelOutputs {
        /// The patches of the batch.
        patches: u64,
        /// The outputs that the model declares.
        outputs: u64,
        /// The number of predictions of each output that was returned.
        predictions: Vec<usize>,
    },

    /// A written region does not consist of whole write chunks.
    #[error("region [{region}] does not consist of whole write chunks of {chunk:?} of {}", path.display())]
    PartialChunk {
        /// The output.
        path: PathBuf,
        /// The region.
        region: Region,
        /// The write chunk, z, y, x.
        chunk: Shape,
    },

    /// A patch was added twice.
    #[error("patch {index} (at [{region}]) was already added")]
    DuplicatePatch {
        /// The patch's index in the grid.
        index: u64,
        /// The patch's region.
        region: Region,
    },

    /// A prediction does not have the shape that the aggregator expects.
    #[error(
        "the prediction for patch {index} has {channels} channels of shape {shape:?}, \
         but {expected_channels} of {expected_shape:?} are needed"
    )]
    PredictionShape {
        /// The patch's index in the grid.
        index: u64,
        /// Channels of the prediction.
        channels: u64,
        /// Its shape, z, y, x.
        shape: Shape,
        /// Expected channels.
        expected_channels: u64,
        /// The patch's shape.
        expected_shape: Shape,
    },

    /// A prediction has a value that is not finite in the type of the sums or of the output.
    #[error(
        "the prediction for patch {index} at {region} is {value} at channel {}, voxel z {}, y {}, x {} of the \
         patch: {}",
        at[0], at[1], at[2], at[3],
        if value.is_finite() {
            "it is too large for the type of the sums or of the output: choose wider types"
        } else {
            "no value can be blended with it"
        }
    )]
    NotFinite {
        /// The patch's index in the grid.
        index: u64,
        /// The patch's region.
        region: Region,
        /// One such value, the first in order of those that were looked at together.
        value: f64,
        /// Its position in the patch: c, z, y, x.
        at: [u64; 4],
    },

    /// The run ended before all patches were added.
    #[error("{missing} of {total} patches are missing, the first at index {first:?}")]
    MissingPatches {
        /// The number of missing patches.
        missing: u64,
        /// The number of patches of the grid.
        total: u64,
        /// The first few of them.
        first: Vec<u64>,
    },

    /// Two volumes that are used together are not on the same grid.
    #[error(
        "{} and {} are not on the same grid: {what} {one} and {other}; resample one of them to the grid of the other",
        first.display(), second.display()
    )]
    GridMismatch {
        /// The volume whose grid is the reference.
        first: PathBuf,
        /// The volume that differs.
        second: PathBuf,
        /// `shape`, `spacing`, `direction`, `position`, `extent` or `affine`.
        what: &'static str,
        /// Its value in the first volume.
        one: String,
        /// Its value in the second.
        other: String,
    },

    /// Patches of two subjects of a list cannot be in one batch.
    #[error(
        "{} and {} do not fit into one batch: the first gives {one}, the second {other}; \
         give all subjects the same images, channels and types",
        first.display(), second.display()
    )]
    SubjectMismatch {
        /// A file of the first subject.
        first: PathBuf,
        /// A file of the subject that differs.
        second: PathBuf,
        /// The image of the first, its channels and type.
        one: String,
        /// The image of the second, its channels and type.
        other: String,
    },

    /// A volume has no geometry, so it cannot be matched with a volume that has one, or whose shape
    /// differs.
    #[error(
        "{} ({shape:?} voxels) has no geometry, so it cannot be matched with {} ({other_shape:?}): declare that both \
         have the same grid if they do, or give it a spacing and an affine",
        path.display(), other.display()
    )]
    NoGeometry {
        /// The volume without geometry.
        path: PathBuf,
        /// Its voxels along z, y, x.
        shape: Shape,
        /// The other volume.
        other: PathBuf,
        /// Its voxels along z, y, x.
        other_shape: Shape,
    },

    /// A subject could not be opened, drawn from or read.
    #[error("subject {index}{} failed", in_brackets(name))]
    Subject {
        /// Its index in the list of subjects.
        index: u64,
        /// Its name; empty if the name is only known after opening it.
        name: String,
        /// The cause.
        source: Arc<Self>,
    },

    /// A callback, or this crate itself, panicked on a worker thread.
    #[error("a worker panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },

    /// A saved state does not match the current settings.
    #[error(
        "the saved state has {what} {saved}, but here it is {here}: resume with the settings of the run that saved it"
    )]
    StateMismatch {
        /// What differs.
        what: &'static str,
        /// Its value when the state was saved.
        saved: u64,
        /// Its current value.
        here: u64,
    },

    /// A voxel of a sampling map has an invalid value.
    #[error(
        "{}: channel {channel} has the {what} {value} at voxel [{}, {}, {}] (z, y, x), but {allowed}",
        path.display(), voxel[0], voxel[1], voxel[2]
    )]
    InvalidMapValue {
        /// The map.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// The voxel, z, y, x.
        voxel: [u64; 3],
        /// `weight` or `label`.
        what: &'static str,
        /// The value, as text.
        value: String,
        /// The values that are allowed.
        allowed: &'static str,
    },

    /// No voxel of a map can be the center of a patch.
    #[error(
        "{}: no patch can be drawn by channel {channel} because {problem} among the centers [{centers}]; \
         use another border policy, skip such volumes, or draw from them uniformly",
        path.display()
    )]
    NoCenter {
        /// The map.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// The region of possible patch centers.
        centers: Region,
        /// The reason why none of them can be drawn.
        problem: String,
    },

    /// None of the tried patches has enough of the required content.
    #[error(
        "{}: none of {tries} tried patches has a fraction of {fraction} of {content} in channel {channel} (the best \
         has {best}): lower the fraction, or draw by that label",
        path.display()
    )]
    NotEnoughContent {
        /// The map.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// The required content.
        content: String,
        /// The required fraction of a patch.
        fraction: f64,
        /// The largest fraction that was found.
        best: f64,
        /// The number of tried patches.
        tries: u64,
    },

    /// A row of a location list is invalid.
    #[error("{}: line {line}: {problem}", path.display())]
    InvalidLocation {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The fault in the row.
        problem: String,
    },

    /// Another process is writing the same output, or the same part of it.
    #[error(
        "{} is locked by another process that writes this output: wait until it is done, or stop it",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },

    /// An output was started with different settings.
    #[error(
        "{} was started with different settings ({}): use the same settings, or delete it to start over",
        path.display(), listed(differences)
    )]
    RunMismatch {
        /// The unfinished output: its folder, or its address in a store.
        path: PathBuf,
        /// The differences.
        differences: Vec<Difference>,
    },

    /// An index is older than the voxels of its volume.
    #[error("the index of {} was built before its voxels changed: rebuild it", path.display())]
    StaleIndex {
        /// The volume.
        path: PathBuf,
    },

    /// An input cannot be identified, which a resumable run needs.
    #[error(
        "{} cannot be identified, so a run on it cannot be resumed or split into parts: save it to a \
         file and open that, or give it an identity (Volume::identity)", path.display()
    )]
    NoIdentity {
        /// The volume.
        path: PathBuf,
    },

    /// A model has no id, which a resumed run and a run in parts need.
    #[error(
        "{model} has no id, so a run of it cannot be resumed or split into parts: give it one that changes with its \
         weights (Model::id, FnModel::with_id)"
    )]
    NoModelId {
        /// The model.
        model: String,
    },

    /// `finish` was called while chunks were missing.
    #[error("{} lacks {missing}: run the missing parts, then finish it", path.display())]
    MissingChunks {
        /// The folder of the unfinished output.
        path: PathBuf,
        /// The number of missing chunks, and the first of them.
        missing: String,
    },

    /// A region belongs to a different part of the output.
    #[error("{}: region [{region}] does not belong to this part, which has [{owned}]", path.display())]
    NotOwned {
        /// The output.
        path: PathBuf,
        /// The region.
        region: Region,
        /// The region of this part.
        owned: Region,
    },

    /// A file does not contain a model that can predict volumes.
    #[error("cannot use {} as a model: {problem}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// The fault, and the requirement.
        problem: String,
    },

    /// A model uses an operator that is not supported.
    #[error(
        "{}: node {node:?} has the operator {operator}, which is not supported; export the model without it, for \
         example in operator set 18",
        path.display()
    )]
    ModelOperator {
        /// The model's file.
        path: PathBuf,
        /// The node's name, or the name of its first output if it has no name.
        node: String,
        /// The operator, with its domain if that is not the ONNX domain.
        operator: String,
        /// The cause, if the operator is supported and only this use of it is not.
        source: Option<Cause>,
    },

    /// A model needs a different number of channels than the volume has.
    #[error(
        "{} needs volumes of {expected} channels, but {} has {actual}",
        path.display(), volume.display()
    )]
    ModelChannels {
        /// The model's file.
        path: PathBuf,
        /// Channels that the model needs.
        expected: u64,
        /// The volume.
        volume: PathBuf,
        /// Channels that the volume has.
        actual: u64,
    },

    /// The runtime failed to run a model.
    #[error(
        "{} cannot be {action} for {channels} channels of {patch:?} voxels{}",
        path.display(), works_with(*multiple)
    )]
    ModelRun {
        /// The model's file.
        path: PathBuf,
        /// The operation, as a participle: `prepared` or `run`.
        action: &'static str,
        /// Channels of the patch.
        channels: u64,
        /// Voxels of the patch, z, y, x.
        patch: Shape,
        /// A number whose multiples work as patch lengths, if one was found.
        multiple: Option<u64>,
        /// The runtime's error.
        source: Cause,
    },

    /// Models cannot be averaged because their outputs differ.
    #[error("the models {first} and {second} cannot be averaged: {what} {one} and {other}")]
    ModelMismatch {
        /// The first model.
        first: String,
        /// The model that differs.
        second: String,
        /// The properties that differ, in the plural.
        what: &'static str,
        /// Its value in the first model.
        one: String,
        /// Its value in the second.
        other: String,
    },

    /// A voxel's value does not fit the requested type.
    #[error(
        "{}: the value {value} of channel {channel} at voxel [{}, {}, {}] (z, y, x) does not fit {dtype}: {remedy}",
        path.display(), voxel[0], voxel[1], voxel[2]
    )]
    ValueRange {
        /// The volume.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// The voxel, z, y, x.
        voxel: [u64; 3],
        /// The value, as text.
        value: String,
        /// The name of the type.
        dtype: &'static str,
        /// The way to read such values.
        remedy: &'static str,
    },

    /// A conversion would lose values.
    #[error(
        "{}: {clipped} of {total} values do not fit {dtype}, the first of them {value} of channel {channel} at voxel \
         [{}, {}, {}] (z, y, x): choose a type that holds them, or allow clipping to the nearest value",
        path.display(), voxel[0], voxel[1], voxel[2]
    )]
    Lossy {
        /// The volume.
        path: PathBuf,
        /// The type of the output.
        dtype: DType,
        /// The number of values that do not fit.
        clipped: u64,
        /// The number of values.
        total: u64,
        /// The channel of the first, in the order c, z, y, x.
        channel: u64,
        /// Its voxel, z, y, x.
        voxel: [u64; 3],
        /// Its value, as text.
        value: String,
    },

    /// A blended value is beyond the range of the output's type.
    #[error(
        "{}: the value {value} of channel {channel} at voxel [{}, {}, {}] (z, y, x) does not fit {dtype}: choose a type \
         that holds it, or allow values to become the nearest",
        path.display(), voxel[0], voxel[1], voxel[2]
    )]
    OutputRange {
        /// The output.
        path: PathBuf,
        /// The channel of the output.
        channel: u64,
        /// The voxel, z, y, x.
        voxel: [u64; 3],
        /// The value, as text.
        value: String,
        /// The output's type.
        dtype: DType,
    },

    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,

    /// A failure shared by several threads that waited for one result.
    #[error(transparent)]
    Shared(Arc<Self>),
}

/// A setting that differs between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, with dots between nested names.
    pub field: String,
    /// Its value when the output was started, as JSON.
    pub saved: String,
    /// Its current value, as JSON.
    pub here: String,
}

/// Returns the end of a message that says which patch lengths work.
pub(crate) fn works_with(multiple: Option<u64>) -> String {
    multiple.map_or_else(String::new, |n| {
        format!("; it works with patches whose lengths are multiples of {n}")
    })
}

fn in_brackets(name: &str) -> String {
    if name.is_empty() {
        String::new()
    } else {
        format!(" ({name})")
    }
}

fn listed(differences: &[Difference]) -> String {
    let one = |d: &Difference| format!("{}: then {}, now {}", d.field, d.saved, d.here);
    let all: Vec<String> = differences.iter().map(one).collect();
    all.join("; ")
}

impl Error {
    /// Returns the message with those of its causes, as in `cannot read a.zarr: the chunk is damaged`.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Unwraps an error that several threads may share, if this is the only owner.
    pub(crate) fn shared(error: Arc<Self>) -> Self {
        Arc::try_unwrap(error).unwrap_or_else(Self::Shared)
    }

    /// Creates an [`Error::Io`] from an `io::Error`, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Creates an [`Error::Header`].
    pub(crate) fn header(path: &Path, format: &'static str, problem: impl Into<String>) -> Self {
        Self::Header {
            path: path.to_path_buf(),
            format,
            problem: problem.into(),
        }
    }

    /// Creates an [`Error::UnsupportedDType`] for a format without f16.
    pub(crate) fn no_float16(path: &Path, format: &'static str) -> Self {
        Self::UnsupportedDType {
            path: path.to_path_buf(),
            format,
            dtype: DType::F16,
            instead: DType::F32,
        }
    }

    /// Creates an [`Error::Unsupported`].
    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}
