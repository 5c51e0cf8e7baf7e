//! DICOM series: a folder of slices, a `DICOMDIR`, or a file with one or more frames.
//!
//! Files are recognized by content. Only headers are read on opening, up to the pixel data, and nothing about the
//! patient: neither messages nor outputs can contain it. A series becomes a volume only if its slices are a box: at even
//! distances on a line, with the same size and orientation.

mod elements;
mod frames;
mod geometry;
mod header;
mod jpegls;
mod series;
mod syntax;
#[cfg(test)]
mod tests;

use std::fs::Metadata;
use std::path::Path;
#[cfg(feature = "tiff")]
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use self::frames::{FrameCode, FrameDecoder};
use self::geometry::{Allowed, Placed, Refusal};
use self::header::{Found, FrameFacts, PixelForm, Problem};
use self::series::{AllSeries, Series};
use super::blocks::{Block, BlockSource, BlockVolume};
use super::files::read_headers;
use super::format::excerpt;
use super::options::{OpenOptions, Tilt, Values};
use super::{Axes, AxisKind, Format, Hash, Layout, LeadingAxis, Rescale, Volume};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::open_regular;
#[cfg(feature = "tiff")]
use crate::files::read_up_to;

const NAME: &str = "DICOM";

/// Maximum number of files of a folder.
const MOST_FILES: usize = 2_000_000;

/// Returns `true` if the first bytes of a file are those of a DICOM file.
pub(super) fn recognize(head: &[u8]) -> bool {
    head.get(128..132) == Some(b"DICM")
}

/// Opens the series in a folder. Returns `None` if no file in it is DICOM.
pub(super) fn open_folder(path: &Path, options: &OpenOptions) -> Result<Option<Arc<dyn Volume>>> {
    let mut found = Vec::new();
    super::walk(path, |name, metadata| {
        let is_chunk = name
            .ancestors()
            .any(|part| part.extension().is_some_and(|end| end == "zarr"));
        if metadata.is_file() && !is_chunk && found.len() < MOST_FILES {
            found.push(path.join(name));
        }
    })?;
    found.sort();
    #[cfg(feature = "tiff")]
    leave_out_tiff(&mut found)?;
    let mut images = AllSeries::default();
    let mut is_dicom = false;
    let read = |file: &Path| {
        check_link(path, file, options)?;
        read_header(file)
    };
    read_headers(path, &found, read, |file, header| {
        match header {
            (Found::Image(header), metadata) => images.add((file, &metadata), *header)?,
            (Found::Foreign, _) => {}
            (Found::Catalog(_) | Found::NoImage, _) => is_dicom = true,
        }
        Ok(())
    })?;
    drop(found);
    if images.is_empty() {
        if is_dicom {
            return Err(Error::unsupported(path, "its DICOM files have no voxels"));
        }
        return Ok(None);
    }
    open_images(path, images, options).map(Some)
}

/// Leaves out the files with the extension of TIFF if the first of them is one: a folder of slices may have a hundred
/// thousand.
#[cfg(feature = "tiff")]
fn leave_out_tiff(files: &mut Vec<PathBuf>) -> Result<()> {
    let is_named = |file: &PathBuf| {
        let end = file.extension().and_then(|end| end.to_str());
        end.is_some_and(|end| ["tif", "tiff"].contains(&end.to_lowercase().as_str()))
    };
    let Some(first) = files.iter().find(|file| is_named(file)) else {
        return Ok(());
    };
    let is_plain = first.symlink_metadata().is_ok_and(|found| found.is_file());
    if is_plain && super::tiff::recognize(&read_up_to(first, 4)?) {
        files.retain(|file| !is_named(file));
    }
    Ok(())
}

/// Opens a DICOM file: a single image, or the catalog of a file set.
pub(super) fn open_file(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
    match read_header(path)? {
        (Found::Image(header), metadata) => {
            let mut images = AllSeries::default();
            images.add((path, &metadata), *header)?;
            open_images(path, images, options)
        }
        (Found::Catalog(files), _) => open_catalog(path, &files, options),
        (Found::NoImage, _) => Err(Error::unsupported(path, "the DICOM file has no voxels")),
        (Found::Foreign, _) => Err(super::format::unknown(path, "it is not a DICOM file")),
    }
}

/// Opens the files that a `DICOMDIR` names.
fn open_catalog(
    path: &Path,
    files: &[Vec<String>],
    options: &OpenOptions,
) -> Result<Arc<dyn Volume>> {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut images = AllSeries::default();
    for parts in files.iter().take(MOST_FILES) {
        let name = parts.join("/");
        let plain = |part: &String| {
            !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0'])
        };
        if !parts.iter().all(plain) {
            return Err(Error::ExternalFile {
                path: path.to_path_buf(),
                file: excerpt(&name),
                problem: "which may be outside the header's folder".to_owned(),
            });
        }
        // File systems that change the case of names.
        let names = [name.clone(), name.to_lowercase()];
        let file = names
            .iter()
            .map(|name| folder.join(name))
            .find(|file| file.is_file());
        let Some(file) = file else {
            let problem = format!("it names {:?}, which is not there", excerpt(&name));
            return Err(Error::header(path, NAME, problem));
        };
        check_link(folder, &file, options)?;
        if let (Found::Image(header), metadata) = read_header(&file)? {
            images.add((&file, &metadata), *header)?;
        }
    }
    if images.is_empty() {
        return Err(Error::unsupported(
            path,
            "it names no DICOM file with voxels",
        ));
    }
    open_images(path, images, options)
}

/// Checks that a file in an untrusted folder is not reached through a symbolic link.
fn check_link(folder: &Path, file: &Path, options: &OpenOptions) -> Result<()> {
    if options.trusted {
        return Ok(());
    }
    for part in file.ancestors().take_while(|&part| part != folder) {
        let found = part
            .symlink_metadata()
            .map_err(Error::io("look at", part))?;
        if found.is_symlink() {
            return Err(Error::UntrustedLink {
                path: part.to_path_buf(),
            });
        }
    }
    Ok(())
}

fn read_header(path: &Path) -> Result<(Found, Metadata)> {
    let file = open_regular(path)?;
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    let found = header::read(file, metadata.len()).map_err(|problem| match problem {
        Problem::Io(error) => Error::io("read", path)(error),
        Problem::Header(problem) => Error::header(path, NAME, problem),
        Problem::Unsupported(what) => Error::unsupported(path, what),
    })?;
    Ok((found, metadata))
}

/// Opens the chosen series of some images.
fn open_images(path: &Path, images: AllSeries, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
    let series = images.choose(path, options.series.as_deref())?;
    let form = common_form(path, &series)?;
    if let Some(unsafe_form) = series.forms.iter().find(|form| !form.syntax.is_safe())
        && !options.trusted
    {
        return Err(Error::UntrustedCodec {
            path: path.to_path_buf(),
            codec: unsafe_form.syntax.codec().unwrap_or("none").to_owned(),
        });
    }
    if options.values != Values::Stored && series.has_modality_table {
        return Err(Error::unsupported(
            path,
            "a table converts its values to real ones (Modality LUT Sequence), which is not read: open its stored values",
        ));
    }
    let allowed = Allowed {
        uneven: options.allow_uneven,
        shear: options.tilt == Tilt::Shear,
    };
    let placed = geometry::place(&series.frames, series.between_slices, allowed)
        .map_err(|refusal| refused(path, refusal))?;
    let source = source(path, series, (&form, placed), options.values)?;
    Ok(Arc::new(BlockVolume::new(source)?))
}

fn refused(path: &Path, refusal: Refusal) -> Error {
    let path = path.to_path_buf();
    match refusal {
        Refusal::Uneven(problem) => Error::UnevenSlices { path, problem },
        Refusal::Tilted(problem) => Error::TiltedSlices { path, problem },
        Refusal::Other(problem) => Error::unsupported(&path, problem),
    }
}

/// Returns the form of all images, after checking that they have the same.
fn common_form(path: &Path, series: &Series) -> Result<PixelForm> {
    let size = |form: &PixelForm| (form.rows, form.columns, form.samples, form.dtype());
    let first = &series.forms[0];
    let Some(other) = series.forms.iter().find(|form| size(form) != size(first)) else {
        return Ok(first.clone());
    };
    let is_other = |form: u16| size(&series.forms[usize::from(form)]) == size(other);
    let images = &series.images;
    let count = images.iter().filter(|image| is_other(image.form)).count();
    let text = |form: &PixelForm| {
        format!(
            "{} x {} x {} {}",
            form.rows,
            form.columns,
            form.samples,
            form.dtype()
        )
    };
    let problem = format!(
        "its images have different sizes (rows x columns x samples): {} and, {count} of {}, {}",
        text(first),
        images.len(),
        text(other)
    );
    Err(Error::unsupported(path, problem))
}

/// Returns the slope and the intercept of a frame.
fn rescale(facts: &FrameFacts) -> [f64; 2] {
    let slope = facts.slope.filter(|&slope| slope != 0.0).unwrap_or(1.0);
    [slope, facts.intercept.unwrap_or(0.0)]
}

/// Returns the type of stored voxels. Less than 16 bits are the same in both types of 16 bits, and the real values of a
/// CT then are int16.
fn stored_dtype(forms: &[PixelForm], rescale: [f64; 2]) -> DType {
    let fits = forms.iter().all(|form| form.bits_stored < 16);
    let is_shifted = rescale[0].to_bits() == 1.0_f64.to_bits() && rescale[1] != 0.0;
    match forms[0].dtype() {
        DType::U16 if fits && is_shifted => DType::I16,
        dtype => dtype,
    }
}

fn codecs(forms: &[PixelForm]) -> Vec<String> {
    let codecs = forms.iter().filter_map(|form| form.syntax.codec());
    let mut codecs: Vec<String> = codecs.map(str::to_owned).collect();
    codecs.sort();
    codecs.dedup();
    codecs
}

/// Returns the frames of all files, file by file.
fn listed(series: &Series) -> Vec<(Block, FrameCode)> {
    let mut extents = series.extents.iter();
    let mut all = Vec::with_capacity(series.extents.len());
    for (file, image) in (0_u32..).zip(&series.images) {
        let bytes = frame_bytes(&series.forms[usize::from(image.form)]);
        let own = extents.by_ref().take(image.frames);
        for (frame, &(start, end)) in (0_u64..).zip(own) {
            let block = Block {
                file,
                offset: start,
                length: end - start,
            };
            let code = FrameCode {
                form: image.form,
                inflated: image.inflated.saturating_add(frame.saturating_mul(bytes)),
            };
            all.push((block, code));
        }
    }
    all
}

/// Returns the blocks of the frames in the order of the volume.
fn source(
    path: &Path,
    series: Series,
    (form, placed): (&PixelForm, Placed),
    values: Values,
) -> Result<BlockSource> {
    let listed = listed(&series);
    let (blocks, codes): (Vec<Block>, Vec<FrameCode>) =
        placed.order.iter().map(|&frame| listed[frame]).unzip();
    drop(listed);
    let rescales: Vec<[f64; 2]> = placed
        .order
        .iter()
        .map(|&frame| rescale(&series.frames[frame]))
        .collect();
    let bits = |rescale: &[f64; 2]| rescale.map(f64::to_bits);
    let differ = rescales
        .iter()
        .any(|other| bits(other) != bits(&rescales[0]));
    let applies = differ && values != Values::Stored;
    if applies && form.samples > 1 {
        return Err(Error::unsupported(
            path,
            "its color frames have different slopes",
        ));
    }
    let volumes = placed
        .volumes
        .as_ref()
        .map_or(1, |volumes| volumes.count as u64);
    let samples = u64::from(form.samples);
    let (rows, columns) = (u64::from(form.rows), u64::from(form.columns));
    let is_time = placed
        .volumes
        .as_ref()
        .is_some_and(|volumes| volumes.kind() == AxisKind::Time);
    let layout = Layout {
        path: path.to_path_buf(),
        format: Format::Dicom,
        read_chunk: Some([samples, 1, rows, columns]),
        codecs: codecs(&series.forms),
        geometry: placed.geometry,
        rescale: if differ {
            None
        } else {
            Rescale::new(rescales[0][0], rescales[0][1])
        },
        axes: axes(&placed, samples),
        ..Layout::new(
            [placed.slices as u64, rows, columns],
            volumes * samples,
            match (applies, differ) {
                (true, _) => DType::F32,
                (_, true) => form.dtype(),
                _ => stored_dtype(&series.forms, rescales[0]),
            },
        )
    };
    if !layout.geometry.is_sound() {
        return Err(Error::header(path, NAME, "its positions make no affine"));
    }
    let mut order = Hash::default();
    for (&frame, rescale) in placed.order.iter().zip(&rescales) {
        order.add(&(frame as u64).to_le_bytes());
        order.add(&bits(rescale).map(u64::to_le_bytes).concat());
    }
    Ok(BlockSource {
        identity: json!({
            "format": NAME,
            "order": format!("{:032x}", order.0),
            "values": if applies { "real" } else { "stored" },
        }),
        fill: vec![0; layout.dtype.size()],
        layout,
        time_points: is_time.then_some(volumes),
        files: series.files,
        blocks: blocks.into(),
        decoder: Box::new(FrameDecoder {
            forms: series.forms,
            frames: codes,
            rescales: applies.then_some(rescales),
        }),
    })
}

/// Returns the bytes of an uncompressed frame.
fn frame_bytes(form: &PixelForm) -> u64 {
    u64::from(form.rows)
        * u64::from(form.columns)
        * u64::from(form.samples)
        * u64::from(form.bits_allocated / 8)
}

fn axes(placed: &Placed, samples: u64) -> Axes {
    let mut leading = Vec::new();
    let mut channel_names = Vec::new();
    if let Some(volumes) = &placed.volumes {
        leading.push(LeadingAxis::new(volumes.kind(), volumes.count as u64));
        if samples == 1 {
            channel_names = volumes.names();
        }
    }
    if samples > 1 {
        leading.push(LeadingAxis::new(AxisKind::Channel, samples));
        channel_names = ["red", "green", "blue"].map(str::to_owned).to_vec();
    }
    Axes {
        leading,
        channel_names,
        ..Axes::default()
    }
}
