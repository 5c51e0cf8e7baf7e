//! Everything that can go wrong, in one enum.
//!
//! A message names the fault and the values that caused it and stops there: what lay
//! beneath is in [`source`](std::error::Error::source), for the caller to print once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dtype::DType;
use crate::region::{Region, Shape};

/// The result of anything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cause from a library that is not part of this crate's interface.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, with what is needed to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Neither the content nor the extension belongs to a format that is read here.
    #[error(
        "{} is no volume that can be read: {problem}; known are .zarr folders, .npy, .nii, .nii.gz, \
         .mhd, .mha, .nrrd, .nhdr, and .raw with a JSON sidecar",
        path.display()
    )]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// Why it was not recognized.
        problem: String,
    },

    /// A header or metadata document breaks the rules of its format.
    #[error("{}: bad {format} header: {problem}", path.display())]
    Header {
        /// The file that holds the header.
        path: PathBuf,
        /// The format, as users call it.
        format: &'static str,
        /// The field, its value, and what is allowed.
        problem: String,
    },

    /// The file is sound, but asks for something that is not read here.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What is not supported, and what to do instead.
        what: String,
    },

    /// A header says that the voxels are in a file that is not read.
    #[error(
        "{}: the voxels are said to be in {file:?}, {problem}: only a regular file in the header's folder or \
         below is read, unless others are allowed",
        path.display()
    )]
    ExternalFile {
        /// The header's file.
        path: PathBuf,
        /// The file that it names.
        file: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A format has no voxels of this type.
    #[error("{}: {format} has no {dtype}: convert to {instead}", path.display())]
    UnsupportedDType {
        /// The output.
        path: PathBuf,
        /// The format, as users call it.
        format: &'static str,
        /// The type.
        dtype: DType,
        /// A type that it has.
        instead: DType,
    },

    /// A flat file is shorter than its header promises.
    #[error(
        "{} holds {actual} bytes, but {channels} x {shape:?} of {dtype} from byte {offset} needs {expected}: \
         the file was cut short or the header is wrong",
        path.display()
    )]
    FileLength {
        /// The file that holds the voxels.
        path: PathBuf,
        /// Channels that the header promises.
        channels: u64,
        /// Shape that the header promises, z, y, x.
        shape: Shape,
        /// Voxel type that the header promises.
        dtype: DType,
        /// Where the voxels start, in bytes.
        offset: u64,
        /// Bytes that the file would need.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },

    /// The shape multiplies to more bytes than can be addressed.
    #[error("{}: {channels} x {shape:?} voxels of {dtype} are more than 2^63 bytes", path.display())]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// Channels that the header promises.
        channels: u64,
        /// Shape that the header promises, z, y, x.
        shape: Shape,
        /// Voxel type.
        dtype: DType,
    },

    /// A chunk could not be decoded.
    #[error("{}: chunk {key} cannot be decoded", path.display())]
    Chunk {
        /// The array.
        path: PathBuf,
        /// The chunk's key below the array, with the inner chunk if it lies in a shard.
        key: String,
        /// What the codec said.
        source: Cause,
    },

    /// A chunk has no file, and the fill value was not allowed to stand for it.
    #[error("{}: chunk {key} is missing", path.display())]
    MissingChunk {
        /// The array.
        path: PathBuf,
        /// The chunk's key below the array.
        key: String,
    },

    /// A file of an input is not what it was when the input was opened.
    #[error(
        "{} changed while it was in use: {what}; leave inputs alone during a run, and begin this one again",
        path.display()
    )]
    InputModified {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: String,
    },

    /// A chunk of an output was written twice.
    #[error("{}: chunk {key} was written before; each is written once", path.display())]
    ChunkWritten {
        /// The output.
        path: PathBuf,
        /// The chunk's key below the array.
        key: String,
    },

    /// A codec that is not used on data from strangers.
    #[error(
        "{}: codec {codec:?} is not safe on untrusted data: open the volume as trusted if you trust \
         who made it, or ask for a copy with zstd or gzip",
        path.display()
    )]
    UntrustedCodec {
        /// The array.
        path: PathBuf,
        /// The codec, as the metadata call it.
        codec: String,
    },

    /// A symbolic link in data from strangers, which could lead to any file that the reader may read.
    #[error(
        "{} is a symbolic link, and none is followed in untrusted data: open the volume as trusted if you trust \
         who made it, or copy it with what its links lead to (cp -rL)",
        path.display()
    )]
    UntrustedLink {
        /// The link.
        path: PathBuf,
    },

    /// A region that has to lie inside a volume does not.
    #[error("region [{region}] reaches outside the volume of shape {shape:?}")]
    OutOfBounds {
        /// The region asked for.
        region: Region,
        /// The volume's shape, z, y, x.
        shape: Shape,
    },

    /// Channels were asked for that the volume does not have.
    #[error("channels {start}..{end} were asked for, but the volume has {channels}")]
    NoSuchChannel {
        /// First channel asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// Channels of the volume.
        channels: u64,
    },

    /// A box was asked for that the volume does not have.
    #[error(
        "{}: voxels {start}..{end} along {axis} were asked for, but there are {length}: give the first and one past \
         the last, counted from 0",
        path.display()
    )]
    NoSuchBox {
        /// The volume.
        path: PathBuf,
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// First voxel asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// Voxels of the volume along the axis.
        length: u64,
    },

    /// Time points were asked for of a volume that has none.
    #[error(
        "{}: no axis of it is time, or another varies more slowly than time: take some of its {channels} channels",
        path.display()
    )]
    NoTime {
        /// The volume.
        path: PathBuf,
        /// Channels of the volume.
        channels: u64,
    },

    /// Time points were asked for that the volume does not have.
    #[error("{}: time points {start}..{end} were asked for, but there are {points}", path.display())]
    NoSuchTime {
        /// The volume.
        path: PathBuf,
        /// First time point asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// Time points of the volume.
        points: u64,
    },

    /// A buffer has another length than its region needs.
    #[error("a buffer of {actual} bytes was given where {expected} are needed")]
    BufferLength {
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        actual: u64,
    },

    /// Voxels of one type were asked for as another.
    #[error("the voxels are {actual}, not {expected}")]
    WrongDType {
        /// The type asked for.
        expected: DType,
        /// The type there is.
        actual: DType,
    },

    /// A patch with no voxels, or one that does not fit.
    #[error("a patch of {patch} voxels along {axis} does not fit into a volume of {volume}")]
    PatchSize {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// Voxels of the patch along it.
        patch: u64,
        /// Voxels of the volume along it.
        volume: u64,
    },

    /// Predictions that do not lie on the voxels of their output.
    #[error(
        "an output of scale 1/{scale} without {halo} voxels at each face of a patch does not fit along {axis}: {problem}"
    )]
    OutputGrid {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// Voxels that the model leaves out at each face of a patch.
        halo: u64,
        /// How many voxels of the input one of the output is long.
        scale: u64,
        /// What does not fit, and what would.
        problem: String,
    },

    /// Predictions of which it is not known where they lie in their patch.
    #[error("predictions of {shape:?} voxels for patches of {patch:?}: {problem}")]
    OutputPlace {
        /// Voxels of a patch, z, y, x.
        patch: Shape,
        /// Voxels of its prediction, z, y, x.
        shape: Shape,
        /// Why they fit nowhere, or the ways in which they could lie.
        problem: String,
    },

    /// The overlap leaves no step.
    #[error("an overlap of {overlap} along {axis} must be smaller than the patch of {patch}")]
    Overlap {
        /// The axis: `z`, `y` or `x`.
        axis: char,
        /// The overlap asked for, in voxels.
        overlap: u64,
        /// Voxels of the patch along the axis.
        patch: u64,
    },

    /// An output is there already.
    #[error("{} exists already: choose another name, or allow it to be replaced", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },

    /// Something that is not an output of this kind has the output's name, and is kept.
    #[error("{} is not replaced, as it is {what}: move it away, or choose another name", path.display())]
    NotReplaceable {
        /// The output.
        path: PathBuf,
        /// What has its name.
        what: String,
    },

    /// An output cannot even be begun on its disk.
    #[error(
        "no space for {}: it takes at least {needed} bytes, and {free} are free there: make room, or write it elsewhere",
        path.display()
    )]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Bytes that it takes at least.
        needed: u64,
        /// Bytes that are free where it goes.
        free: u64,
    },

    /// The output is, or lies inside, the input.
    #[error("{} cannot be written: it is, holds or lies inside the input {}", output.display(), input.display())]
    OutputIsInput {
        /// The output.
        output: PathBuf,
        /// The input.
        input: PathBuf,
    },

    /// Two outputs of one run are the same, or one lies inside the other.
    #[error("{} and {} cannot both be written: they are one, or one lies inside the other", other.display(), output.display())]
    SameOutput {
        /// The output.
        output: PathBuf,
        /// The one before it.
        other: PathBuf,
    },

    /// A setting has a value that makes no sense.
    #[error("{name} {value} is not possible: {problem}")]
    Setting {
        /// The setting, as the user wrote it.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        problem: String,
    },

    /// A write that is not made of whole write chunks.
    #[error("region [{region}] is not made of whole write chunks of {chunk:?} of {}", path.display())]
    PartialChunk {
        /// The output.
        path: PathBuf,
        /// The region that was to be written.
        region: Region,
        /// The write chunk, z, y, x.
        chunk: Shape,
    },

    /// A patch was handed in twice.
    #[error("patch {index} (at [{region}]) was added before")]
    DuplicatePatch {
        /// The patch's place in the grid's order.
        index: u64,
        /// Where it lies.
        region: Region,
    },

    /// A prediction does not have the shape that the aggregator was made for.
    #[error(
        "the prediction for patch {index} has {channels} channels of shape {shape:?}, \
         but {expected_channels} of {expected_shape:?} are needed"
    )]
    PredictionShape {
        /// The patch's place in the grid's order.
        index: u64,
        /// Channels of the prediction.
        channels: u64,
        /// Its shape, z, y, x.
        shape: Shape,
        /// Channels that were announced.
        expected_channels: u64,
        /// The patch's shape.
        expected_shape: Shape,
    },

    /// A prediction with a value in it that is not finite in the type of the sums or of the output.
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
        /// The patch's place in the grid's order.
        index: u64,
        /// Where the patch lies.
        region: Region,
        /// The first such value.
        value: f64,
        /// Its place in the patch: c, z, y, x.
        at: [u64; 4],
    },

    /// The run ended before every patch was there.
    #[error("{missing} of {total} patches are missing, the first at index {first:?}")]
    MissingPatches {
        /// How many are missing.
        missing: u64,
        /// How many the grid has.
        total: u64,
        /// The first few of them.
        first: Vec<u64>,
    },

    /// Two volumes that belong together do not lie on one grid.
    #[error(
        "{} and {} do not lie on one grid: {what} {one} and {other}; resample one of them to the grid of the other",
        first.display(), second.display()
    )]
    GridMismatch {
        /// The volume whose grid is wanted.
        first: PathBuf,
        /// The one that differs.
        second: PathBuf,
        /// `shape`, `spacing`, `direction`, `position`, `extent` or `affine`.
        what: &'static str,
        /// What it is of the first.
        one: String,
        /// What it is of the second.
        other: String,
    },

    /// Two subjects of a list give patches that do not fit into one batch.
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
        /// That of the second.
        other: String,
    },

    /// A volume does not say where its voxels lie, so that it cannot be matched with another that does,
    /// or that has another shape.
    #[error(
        "{} ({shape:?} voxels) does not say where it lies in the world, so that it cannot be matched with {} \
         ({other_shape:?}): say that both are the same grid if they are, or give it spacing and affine",
        path.display(), other.display()
    )]
    NoGeometry {
        /// The volume that does not say it.
        path: PathBuf,
        /// Its voxels along z, y, x.
        shape: Shape,
        /// The other.
        other: PathBuf,
        /// Its voxels along z, y, x.
        other_shape: Shape,
    },

    /// A subject could not be opened, drawn from or read.
    #[error("subject {index}{} failed", in_brackets(name))]
    Subject {
        /// Its place in the list of subjects.
        index: u64,
        /// Its name; empty if it is not known without opening it.
        name: String,
        /// Why.
        source: Arc<Self>,
    },

    /// Code that was given to this crate, or this crate itself, panicked on a worker's thread.
    #[error("a worker panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },

    /// A saved state belongs to other settings.
    #[error(
        "the saved state has {what} {saved}, but here it is {here}: resume with the settings of the run that saved it"
    )]
    StateMismatch {
        /// What differs.
        what: &'static str,
        /// What it was when the state was saved.
        saved: u64,
        /// What it is now.
        here: u64,
    },

    /// A voxel of a map that patches are drawn by has a value that a map must not have.
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
        /// The value, as a number is printed.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },

    /// No voxel of a map can be the centre of a patch.
    #[error(
        "{}: no patch can be drawn by channel {channel}, since {problem} among the centres [{centres}]; \
         take another border policy, or skip such volumes or draw from them uniformly",
        path.display()
    )]
    NoCentre {
        /// The map.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// Where a patch's centre may lie.
        centres: Region,
        /// What is missing there.
        problem: String,
    },

    /// No patch that was tried holds enough of what it is to hold.
    #[error(
        "{}: of {tries} patches that were tried, none has {fraction} of {content} in channel {channel}, the best \
         {best}: ask for less, or draw by that label",
        path.display()
    )]
    NotEnoughContent {
        /// The map.
        path: PathBuf,
        /// The channel.
        channel: u64,
        /// What was looked for.
        content: String,
        /// The part of a patch that was asked for.
        fraction: f64,
        /// The most that a patch had.
        best: f64,
        /// How many were tried.
        tries: u64,
    },

    /// A list of locations has a row that is none.
    #[error("{}: line {line}: {problem}", path.display())]
    InvalidLocation {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },

    /// Another process writes the same output, or the same part of it.
    #[error(
        "{} is held by another process that writes this output: wait until it is done, or stop it",
        path.display()
    )]
    Locked {
        /// The lock.
        path: PathBuf,
    },

    /// An output was begun by another run.
    #[error(
        "{} was begun by another run ({}): go on with its settings, or remove the folder to begin anew",
        path.display(), listed(differences)
    )]
    RunMismatch {
        /// The folder in which the output grows.
        path: PathBuf,
        /// What differs.
        differences: Vec<Difference>,
    },

    /// An index was built from other voxels than the volume has now.
    #[error("the index of {} was built before its voxels changed: build it anew", path.display())]
    StaleIndex {
        /// The volume.
        path: PathBuf,
    },

    /// A run must recognize its input again, and the input cannot be identified.
    #[error(
        "{} cannot be identified, so a run on it cannot be resumed or split into parts: save it to a \
         file and open that, or give it an identity (Volume::identity)", path.display()
    )]
    NoIdentity {
        /// The volume.
        path: PathBuf,
    },

    /// An output was to be finished before all of its chunks were there.
    #[error("{} lacks {missing}: run what is missing, then finish it", path.display())]
    MissingChunks {
        /// The folder in which the output grows.
        path: PathBuf,
        /// How many chunks, and which.
        missing: String,
    },

    /// A part of an output was to write what belongs to another.
    #[error("{}: region [{region}] does not belong to this part, which has [{owned}]", path.display())]
    NotOwned {
        /// The output.
        path: PathBuf,
        /// The region that was to be written.
        region: Region,
        /// What the part may write.
        owned: Region,
    },

    /// A file holds no model, or one that cannot predict volumes.
    #[error("{} is no model that can be run on volumes: {problem}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong, and what is needed.
        problem: String,
    },

    /// A model needs an operator that is not there.
    #[error(
        "{}: node {node:?} has the operator {operator}, which cannot be run; \
         export the model without it, in operator set 18 or thereabouts",
        path.display()
    )]
    ModelOperator {
        /// The model's file.
        path: PathBuf,
        /// The node's name, or its first output's if it has none.
        node: String,
        /// The operator, behind its domain if that is not ONNX's own.
        operator: String,
        /// Why, if the operator is known and only this use of it is not.
        source: Option<Cause>,
    },

    /// A model takes another number of channels than the volume has.
    #[error(
        "{} takes volumes of {expected} channels, but {} has {actual}",
        path.display(), volume.display()
    )]
    ModelChannels {
        /// The model's file.
        path: PathBuf,
        /// Channels that it takes.
        expected: u64,
        /// The volume.
        volume: PathBuf,
        /// Channels that the volume has.
        actual: u64,
    },

    /// What runs a model could not do so.
    #[error(
        "{} cannot be {action} for {channels} channels of {patch:?} voxels{}",
        path.display(), works_with(*multiple)
    )]
    ModelRun {
        /// The model's file.
        path: PathBuf,
        /// What was tried: `prepared` or `run`.
        action: &'static str,
        /// Channels of the patch.
        channels: u64,
        /// Voxels of the patch, z, y, x.
        patch: Shape,
        /// A number of voxels such that patches of its multiples work, if one was found.
        multiple: Option<u64>,
        /// What it said.
        source: Cause,
    },

    /// Models that are to be averaged predict different things.
    #[error("the models {first} and {second} cannot be averaged: {what} {one} and {other}")]
    ModelMismatch {
        /// The first model.
        first: String,
        /// The one that differs.
        second: String,
        /// What differs, in the plural.
        what: &'static str,
        /// What it is of the first.
        one: String,
        /// What it is of the second.
        other: String,
    },

    /// A voxel's value does not fit the type that was asked for.
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
        /// The value, as a number is printed.
        value: String,
        /// The type.
        dtype: DType,
        /// How to read it.
        remedy: &'static str,
    },

    /// A conversion would lose values.
    #[error(
        "{}: {clipped} of {total} values do not fit {dtype}, the first of them {value} of channel {channel} at voxel \
         [{}, {}, {}] (z, y, x): choose a type that holds them, or allow them to become the nearest value",
        path.display(), voxel[0], voxel[1], voxel[2]
    )]
    Lossy {
        /// The volume.
        path: PathBuf,
        /// The type of the output.
        dtype: DType,
        /// How many values do not fit.
        clipped: u64,
        /// How many values there are.
        total: u64,
        /// The channel of the first, in the order c, z, y, x.
        channel: u64,
        /// Its voxel, z, y, x.
        voxel: [u64; 3],
        /// Its value, as a number is printed.
        value: String,
    },

    /// The caller asked to stop.
    #[error("stopped on request")]
    Interrupted,

    /// The same failure met several threads that waited for one result.
    #[error(transparent)]
    Shared(Arc<Self>),
}

/// A setting in which two runs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, with dots between nested names.
    pub field: String,
    /// Its value when the output was begun, as JSON.
    pub saved: String,
    /// Its value now, as JSON.
    pub here: String,
}

/// Which patches work, as the end of a message.
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
    /// The error that several threads wait for, without a wrapper if there was just one.
    pub(crate) fn shared(error: Arc<Self>) -> Self {
        Arc::try_unwrap(error).unwrap_or_else(Self::Shared)
    }

    /// For `map_err`: an [`Error::Io`] that says what was tried on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// An [`Error::Header`].
    pub(crate) fn header(path: &Path, format: &'static str, problem: impl Into<String>) -> Self {
        Self::Header {
            path: path.to_path_buf(),
            format,
            problem: problem.into(),
        }
    }

    /// An [`Error::UnsupportedDType`] of a format without f16.
    pub(crate) fn no_float16(path: &Path, format: &'static str) -> Self {
        Self::UnsupportedDType {
            path: path.to_path_buf(),
            format,
            dtype: DType::F16,
            instead: DType::F32,
        }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}
