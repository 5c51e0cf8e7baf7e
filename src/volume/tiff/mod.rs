//! TIFF and BigTIFF: stacks of pages, OME-TIFF, ImageJ hyperstacks, and folders with a page in each file.
//!
//! Pages that are uncompressed and follow each other in the file are a flat file behind a header, and are mapped. All
//! others are blocks: strips or tiles. Outputs are OME-BigTIFF of tiles, or of a
//! strip for each page.

mod axes;
mod description;
mod directories;
mod ifd;
mod strips;
#[cfg(test)]
mod tests;
mod tiles;
mod write;

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use self::axes::{OmeImage, PageAxes};
use self::ifd::{Directories, Page, PageForm, Problem};
use self::strips::{Compression, StripDecoder};
use super::blocks::{Block, BlockSource, BlockVolume};
use super::flat;
use super::format::{DataStart, FlatHeader, INTERLEAVED, PLANAR, excerpt};
use super::options::OpenOptions;
use super::watch::FileWatch;
use super::{Axes, AxisKind, Format, Layout, LeadingAxis, Volume};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::open_regular;
use crate::geometry::Geometry;
use crate::store::Place;

pub(super) use self::description::check;
pub(super) use self::ifd::recognize;
pub(super) use self::write::{TileWriter, bounds, describe_output};

const NAME: &str = "TIFF";

/// The extensions of files that a folder of slices is made of.
const EXTENSIONS: [&str; 2] = ["tif", "tiff"];

/// Bytes of uncompressed voxels that are read at a time.
const PIECE: u64 = 1 << 20;

/// A file with its pages.
#[derive(Debug)]
struct PagedFile {
    path: PathBuf,
    metadata: Metadata,
    big_endian: bool,
    pages: Vec<Page>,
}

fn refused(path: &Path, problem: Problem) -> Error {
    match problem {
        Problem::Io(error) => Error::io("read", path)(error),
        Problem::Header(problem) => Error::header(path, NAME, problem),
        Problem::Unsupported(what) => Error::unsupported(path, what),
    }
}

/// Reads the pages of a file; the directories of coarser levels instead of its own if `level` is above 0.
fn read_pages(path: &Path, level: usize) -> Result<(PagedFile, usize)> {
    let file = open_regular(path)?;
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    let pages = pages_of(&file, metadata.len(), level).map_err(|problem| refused(path, problem))?;
    let (big_endian, pages, levels) = pages;
    if level >= levels {
        return Err(Error::InvalidArgument {
            argument: "level",
            value: level.to_string(),
            problem: format!("{} has {levels} levels, counted from 0", path.display()),
        });
    }
    let pages = PagedFile {
        path: path.to_path_buf(),
        metadata,
        big_endian,
        pages,
    };
    Ok((pages, levels))
}

fn pages_of(file: &File, length: u64, level: usize) -> Result<(bool, Vec<Page>, usize), Problem> {
    let (directories, first) = Directories::open(file, length)?;
    let mut pages = directories.pages(first)?;
    let full = pages[0].form.clone();
    // Previews and thumbnails; a page that is none is a level only if the others name it.
    pages.retain(|page| !page.is_reduced || page.form.width == full.width);
    let levels = 1 + pages[0].levels.len();
    if level > 0 && level < levels {
        for page in &mut pages {
            let at = page.levels.get(level - 1).copied();
            let at = at.ok_or_else(|| Problem::Header(format!("a page has no level {level}")))?;
            let (coarse, _) = directories.page(at)?;
            let description = std::mem::take(&mut page.description);
            let (levels, resolution) = (std::mem::take(&mut page.levels), page.resolution);
            *page = Page {
                levels,
                description,
                resolution,
                ..coarse
            };
        }
        let factors = [
            (full.height, pages[0].form.height),
            (full.width, pages[0].form.width),
        ];
        for (whole, part) in factors {
            if part > whole {
                return Err(Problem::Header(format!(
                    "level {level} is larger than level 0"
                )));
            }
        }
        pages[0].levels = vec![full.height, full.width];
    }
    Ok((directories.big_endian, pages, levels))
}

/// Returns the number of levels of the image in a file.
pub(super) fn level_count(path: &Path) -> Result<usize> {
    Ok(read_pages(path, 0)?.1)
}

/// Opens a TIFF file.
pub(super) fn open_file(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
    let (file, _) = read_pages(path, options.level)?;
    let full = (options.level > 0).then(|| [file.pages[0].levels[0], file.pages[0].levels[1]]);
    let axes = page_axes(path, &file, options)?;
    let image = Image::new(path, vec![file], axes, full)?;
    image.open(options)
}

/// Opens the slices in a folder, in natural order of their names. Returns `None` if it has no TIFF file.
pub(super) fn open_folder(path: &Path, options: &OpenOptions) -> Result<Option<Arc<dyn Volume>>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let file = entry.map_err(Error::io("list", path))?.path();
        let end = file
            .extension()
            .map(|end| end.to_string_lossy().to_lowercase());
        let is_hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if end.is_some_and(|end| EXTENSIONS.contains(&end.as_str())) && !is_hidden && file.is_file()
        {
            names.push(file);
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    if options.level > 0 {
        return Err(Error::InvalidArgument {
            argument: "level",
            value: options.level.to_string(),
            problem: format!(
                "{} is a folder of slices, which has only level 0",
                path.display()
            ),
        });
    }
    names.sort_by_cached_key(|name| {
        natural(&name.file_name().unwrap_or_default().to_string_lossy())
    });
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        if !options.trusted {
            let found = name
                .symlink_metadata()
                .map_err(Error::io("look at", &name))?;
            if found.is_symlink() {
                return Err(Error::UntrustedLink { path: name });
            }
        }
        let (file, _) = read_pages(&name, 0)?;
        if file.pages.len() > 1 {
            let what = format!(
                "the folder has several TIFF files, and {} has {} pages: open one of the files",
                name.display(),
                file.pages.len()
            );
            return Err(Error::unsupported(path, what));
        }
        files.push(file);
    }
    let axes = PageAxes::plain(files.len() as u64);
    Image::new(path, files, axes, None)?.open(options).map(Some)
}

/// Returns a key that sorts names like people: numbers by their value.
fn natural(name: &str) -> Vec<(bool, u128, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, text) = rest.split_at(digits);
        if let Ok(number) = number.parse() {
            key.push((false, number, String::new()));
            rest = text;
            continue;
        }
        let letters = text
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(text.len());
        // A number of more than 38 digits is text.
        let letters = if digits > 0 { 0 } else { letters };
        let (word, after) = rest.split_at(digits + letters);
        key.push((true, 0, word.to_lowercase()));
        rest = after;
    }
    key.push((true, 0, name.to_owned()));
    key
}

/// Returns the meaning of the pages of a file.
fn page_axes(path: &Path, file: &PagedFile, options: &OpenOptions) -> Result<PageAxes> {
    let pages = file.pages.len() as u64;
    let first = &file.pages[0];
    let bad = |problem: String| Error::unsupported(path, problem);
    if let Some(images) = axes::ome(&first.description) {
        let images = images.map_err(bad)?;
        let axes = choose(path, images, options.series.as_deref())?.axes();
        return Ok(axes);
    }
    let known = axes::imagej(first, pages).or_else(|| axes::shaped(first, pages));
    match known {
        Some(axes) => axes.map_err(bad),
        None => Ok(PageAxes::plain(pages)),
    }
}

/// Returns the image of an OME-TIFF file that `wanted` names by its number, counted from 1, or the only one.
fn choose(path: &Path, mut images: Vec<OmeImage>, wanted: Option<&str>) -> Result<OmeImage> {
    let number = wanted.and_then(|wanted| wanted.parse::<usize>().ok()?.checked_sub(1));
    let place = number
        .or((images.len() == 1).then_some(0))
        .filter(|&n| n < images.len());
    if let Some(place) = place {
        return Ok(images.swap_remove(place));
    }
    let line = |(n, image): (usize, &OmeImage)| {
        let [z, y, x] = image.lengths;
        format!("{}: {:?}, {z} x {y} x {x}", n + 1, excerpt(&image.name))
    };
    let lines: Vec<String> = images.iter().take(20).enumerate().map(line).collect();
    Err(Error::SeriesChoice {
        path: path.to_path_buf(),
        problem: format!("it has {} images: choose one by its number", images.len()),
        series: lines.join("; "),
    })
}

/// Pages in the order of a volume.
#[derive(Debug)]
struct Image {
    path: PathBuf,
    files: Vec<PagedFile>,
    axes: PageAxes,
    form: PageForm,
    dtype: DType,
    compression: Compression,
    layout: Layout,
    /// The file and page of each plane, in the order t, c, z.
    planes: Vec<(usize, usize)>,
}

impl Image {
    /// Creates an image. `full` is the height and width of level 0, if this is a coarser one.
    fn new(
        path: &Path,
        files: Vec<PagedFile>,
        axes: PageAxes,
        full: Option<[u64; 2]>,
    ) -> Result<Self> {
        let unsupported = |what: String| Error::unsupported(path, what);
        let pages: Vec<(usize, usize)> = files
            .iter()
            .enumerate()
            .flat_map(|(file, own)| (0..own.pages.len()).map(move |page| (file, page)))
            .collect();
        let planes =
            plane_order(&axes, &pages).map_err(|problem| Error::header(path, NAME, problem))?;
        let (file, page) = planes[0];
        let form = files[file].pages[page].form.clone();
        for &(file, page) in &planes {
            let other = &files[file].pages[page].form;
            if *other != form || files[file].big_endian != files[0].big_endian {
                return Err(unsupported(format!(
                    "its pages are different: {} and {}",
                    describe(&form),
                    describe(other)
                )));
            }
        }
        let dtype = dtype(&form).map_err(unsupported)?;
        let compression = Compression::of(form.compression).map_err(unsupported)?;
        check_form(&form, compression).map_err(unsupported)?;
        let samples = form.samples;
        let channels = axes
            .channels
            .checked_mul(axes.times)
            .and_then(|n| n.checked_mul(samples))
            .ok_or_else(|| unsupported("it has too many channels".to_owned()))?;
        let mut geometry = axes
            .spacing
            .map_or_else(Geometry::default, Geometry::from_spacing);
        if let Some([height, width]) = full {
            geometry =
                geometry.coarsened([1.0, ratio(height, form.height), ratio(width, form.width)]);
        }
        let layout = Layout {
            path: path.to_path_buf(),
            format: Format::Tiff,
            codecs: compression.name().map(str::to_owned).into_iter().collect(),
            geometry,
            axes: volume_axes(&axes, samples),
            ..Layout::new([axes.slices, form.height, form.width], channels, dtype)
        };
        layout.decoded_bytes()?;
        if !layout.geometry.is_sound() {
            return Err(Error::header(path, NAME, "its spacing is not above 0"));
        }
        Ok(Self {
            path: path.to_path_buf(),
            files,
            form,
            dtype,
            compression,
            layout,
            planes,
            axes,
        })
    }

    fn open(self, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
        if let Some(header) = self.flat_header() {
            return flat::open(
                &Place::Local,
                &self.path,
                &self.files[0].path,
                &header,
                options,
            );
        }
        if self.axes.follow {
            let what = "only its first page has a directory, and its pages are not in the order of a volume in memory";
            return Err(Error::unsupported(&self.path, what));
        }
        Ok(Arc::new(BlockVolume::new(self.blocks()?)?))
    }

    /// Returns the bytes of a page.
    fn page_bytes(&self) -> Option<u64> {
        let form = &self.form;
        let voxels = form
            .height
            .checked_mul(form.width)?
            .checked_mul(form.samples)?;
        voxels.checked_mul(self.dtype.size() as u64)
    }

    /// Returns the header of a flat file, if the voxels of all pages follow each other uncompressed.
    fn flat_header(&self) -> Option<FlatHeader> {
        let form = &self.form;
        let is_plain = self.compression == Compression::None
            && self.files.len() == 1
            && form.predictor == 1
            && form.bits == 8 * self.dtype.size() as u64
            && (!form.is_tiled || form.block == [form.height, form.width]);
        if !is_plain {
            return None;
        }
        let page_bytes = self.page_bytes()?;
        let file = &self.files[0];
        let start = *file.pages[self.planes[0].1].offsets.first()?;
        let follows = |(n, &(_, page)): (u64, &(usize, usize))| {
            let mut at = start.checked_add(n.checked_mul(page_bytes)?)?;
            let end = at.checked_add(page_bytes)?;
            let page = &file.pages[page];
            for (&offset, &count) in page.offsets.iter().zip(&page.counts) {
                if offset != at {
                    return None;
                }
                at = at.checked_add(count)?;
            }
            // A count may be rounded up.
            (at >= end && (at == end || page.counts.len() == 1)).then_some(())
        };
        // The planes in the order of their pages.
        let by_pages = self.in_page_order();
        if !self.axes.follow && (0_u64..).zip(&by_pages).try_for_each(follows).is_none() {
            return None;
        }
        let channels = self.layout.channels;
        let order = self.memory_order()?;
        Some(FlatHeader {
            channels,
            time_points: self.time_points(),
            big_endian: file.big_endian,
            order,
            start: DataStart::byte(start),
            geometry: self.layout.geometry,
            axes: self.layout.axes.clone(),
            ..FlatHeader::new(Format::Tiff, self.layout.shape, self.dtype, start)
        })
    }

    /// Returns the planes from the first page to the last.
    fn in_page_order(&self) -> Vec<(usize, usize)> {
        let mut planes = self.planes.clone();
        planes.sort_unstable();
        planes
    }

    /// Returns the order of the axes c, z, y, x in the file, the fastest first, if channels are one axis there.
    fn memory_order(&self) -> Option<[usize; 4]> {
        const CHANNELS_IN_SLICES: [usize; 4] = [3, 2, 0, 1];
        let (slices, outer, samples) = (
            self.axes.slices,
            self.axes.channels * self.axes.times,
            self.form.samples,
        );
        if samples > 1 {
            if outer > 1 {
                return None;
            }
            return match (self.form.planar, slices) {
                (false, _) => Some(INTERLEAVED),
                (true, _) => Some(CHANNELS_IN_SLICES),
            };
        }
        let place = |t, c, z| self.axes.page(t, c, z);
        let (channels, times) = (self.axes.channels, self.axes.times);
        // The pages must be in one of two orders, whatever says so.
        let matches = |page: &dyn Fn(u64, u64) -> u64| {
            (0..times).all(|t| {
                (0..channels)
                    .all(|c| (0..slices).all(|z| place(t, c, z) == Some(page(t * channels + c, z))))
            })
        };
        if matches(&|outer, z| outer * slices + z) {
            return Some(PLANAR);
        }
        let all = outer;
        matches(&|outer, z| z * all + outer).then_some(CHANNELS_IN_SLICES)
    }

    fn time_points(&self) -> Option<u64> {
        (self.axes.times > 1).then_some(self.axes.times)
    }

    /// Returns the blocks.
    fn blocks(mut self) -> Result<BlockSource> {
        let form = &self.form;
        let mut files = FileWatch::default();
        for file in &self.files {
            files.add(&file.path, &file.metadata);
        }
        let (rows, merged) = self.rows_of_block();
        let columns = form.block[1];
        let grid = [form.height.div_ceil(rows), form.width.div_ceil(columns)];
        let together = if form.planar { 1 } else { form.samples };
        let per_plane = grid[0] * grid[1];
        let separate = form.samples / together;
        let decoder = StripDecoder {
            form: PageForm {
                block: [rows, columns],
                ..form.clone()
            },
            big_endian: self.files[0].big_endian,
            rows,
            grid,
            size: self.dtype.size(),
        };
        let slices = self.axes.slices;
        let outer = self.axes.channels * self.axes.times;
        let count = outer
            .checked_mul(separate)
            .and_then(|n| n.checked_mul(slices)?.checked_mul(per_plane));
        let count = count.and_then(|n| usize::try_from(n).ok());
        let mut blocks = Vec::new();
        blocks
            .try_reserve_exact(count.unwrap_or(usize::MAX))
            .map_err(|_| Error::unsupported(&self.path, "it has too many blocks"))?;
        for channel in 0..outer {
            for sample in 0..separate {
                for slice in 0..slices {
                    let plane = usize::try_from(channel * slices + slice).unwrap_or(usize::MAX);
                    let (file, page) = self.planes[plane];
                    let page = &self.files[file].pages[page];
                    let file = u32::try_from(file)
                        .map_err(|_| Error::unsupported(&self.path, "it has too many files"))?;
                    for n in 0..per_plane {
                        let block = if merged {
                            self.piece(page, n, rows)
                        } else {
                            let n = usize::try_from(sample * per_plane + n).unwrap_or(usize::MAX);
                            let Some(&length) = page.counts.get(n) else {
                                let problem = "a page does not say how long its strips are";
                                return Err(Error::header(&self.path, NAME, problem));
                            };
                            (page.offsets[n], length)
                        };
                        blocks.push(Block {
                            file,
                            offset: block.0,
                            length: block.1,
                        });
                    }
                }
            }
        }
        self.layout.read_chunk = Some([together, 1, rows, columns]);
        Ok(BlockSource {
            identity: json!({
                "format": NAME,
                "pages": self.planes.len(),
                "first": [self.planes[0].0, self.planes[0].1],
                "order": self.axes.slowest.iter().collect::<String>(),
                "big_endian": self.files[0].big_endian,
            }),
            time_points: self.time_points(),
            fill: vec![0; self.dtype.size()],
            layout: self.layout,
            files,
            blocks,
            decoder: Box::new(decoder),
        })
    }

    /// Returns the rows of a block. Uncompressed strips that follow each other are cut anew, which is `true`.
    fn rows_of_block(&self) -> (u64, bool) {
        let form = &self.form;
        let own = form.block[0].min(if form.is_tiled { u64::MAX } else { form.height });
        let is_plain = self.compression == Compression::None
            && !form.is_tiled
            && !form.planar
            && form.bits.is_multiple_of(8);
        let follows = |page: &Page| {
            if page.counts.is_empty() {
                return page.offsets.len() == 1;
            }
            let mut at = page.offsets[0];
            page.offsets
                .iter()
                .zip(&page.counts)
                .all(|(&offset, &count)| {
                    let is_next = offset == at && count > 0;
                    at = offset.saturating_add(count);
                    is_next
                })
        };
        let all = self
            .planes
            .iter()
            .all(|&(file, page)| follows(&self.files[file].pages[page]));
        if !is_plain || !all {
            return (own, false);
        }
        let row = self.row_bytes().max(1);
        ((PIECE / row).clamp(1, form.height), true)
    }

    fn row_bytes(&self) -> u64 {
        self.form
            .width
            .saturating_mul(self.form.samples)
            .saturating_mul(self.form.bits)
            / 8
    }

    /// Returns the place of rows that were cut anew.
    fn piece(&self, page: &Page, n: u64, rows: u64) -> (u64, u64) {
        let row = self.row_bytes();
        let start = n * rows;
        let count = rows.min(self.form.height - start);
        (
            page.offsets[0].saturating_add(start.saturating_mul(row)),
            count.saturating_mul(row),
        )
    }
}

/// Returns the page of each plane, in the order t, c, z.
fn plane_order(axes: &PageAxes, pages: &[(usize, usize)]) -> Result<Vec<(usize, usize)>, String> {
    let count = axes.planes().and_then(|n| usize::try_from(n).ok());
    let count = count.filter(|&n| axes.follow || n <= pages.len());
    let Some(count) = count else {
        return Err(format!(
            "{} slices, {} channels and {} time points are not in {} pages",
            axes.slices,
            axes.channels,
            axes.times,
            pages.len()
        ));
    };
    if axes.follow {
        return Ok(vec![pages[0]]);
    }
    let mut planes = Vec::with_capacity(count);
    for time in 0..axes.times {
        for channel in 0..axes.channels {
            for slice in 0..axes.slices {
                let page = axes.page(time, channel, slice);
                let place = page.and_then(|page| pages.get(usize::try_from(page).ok()?));
                planes.push(*place.ok_or_else(|| {
                    format!("slice {slice} of channel {channel} at time {time} has no page")
                })?);
            }
        }
    }
    Ok(planes)
}

fn describe(form: &PageForm) -> String {
    format!(
        "{} x {} x {} of {} bits, compression {}, blocks of {} x {}",
        form.height,
        form.width,
        form.samples,
        form.bits,
        form.compression,
        form.block[0],
        form.block[1]
    )
}

fn dtype(form: &PageForm) -> Result<DType, String> {
    Ok(match (form.format, form.bits) {
        (1 | 4, 1..=8) => DType::U8,
        (1 | 4, 9..=16) => DType::U16,
        (1 | 4, 32) => DType::U32,
        (1 | 4, 64) => DType::U64,
        (2, 8) => DType::I8,
        (2, 16) => DType::I16,
        (2, 32) => DType::I32,
        (2, 64) => DType::I64,
        (3, 16) => DType::F16,
        (3, 32) => DType::F32,
        (3, 64) => DType::F64,
        (format, bits) => {
            let name = match format {
                1 | 4 => "unsigned integers",
                2 => "signed integers",
                3 => "floating-point numbers",
                _ => "complex numbers",
            };
            return Err(format!("{name} of {bits} bits are not read"));
        }
    })
}

/// Checks that pages of this form are read.
fn check_form(form: &PageForm, compression: Compression) -> Result<(), String> {
    let whole = form.bits.is_multiple_of(8);
    match form.predictor {
        1 => {}
        2 if whole => {}
        3 if whole && form.format == 3 => {}
        predictor => {
            return Err(format!(
                "predictor {predictor} of samples of {} bits is not read",
                form.bits
            ));
        }
    }
    if compression == Compression::Jpeg && form.bits != 8 {
        return Err(format!("JPEG of {} bits is not read", form.bits));
    }
    if form.photometric == 6 && compression != Compression::Jpeg {
        return Err("uncompressed YCbCr colors are not read: convert them to RGB first".to_owned());
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "lengths of pages are below 2^53"
)]
fn ratio(whole: u64, part: u64) -> f64 {
    // Levels are halved and rounded, so that the exact factor is a whole number.
    let factor = whole as f64 / part as f64;
    let near = factor.round();
    if (whole as f64 / near - part as f64).abs() < 1.0 {
        near
    } else {
        factor
    }
}

/// Returns the axes of the volume.
fn volume_axes(axes: &PageAxes, samples: u64) -> Axes {
    let mut leading = Vec::new();
    if axes.times > 1 {
        leading.push(LeadingAxis {
            step: axes.seconds.unwrap_or(1.0),
            unit: axes.seconds.map(|_| "second".to_owned()),
            ..LeadingAxis::new(AxisKind::Time, axes.times)
        });
    }
    if axes.channels > 1 || samples > 1 {
        leading.push(LeadingAxis::new(
            AxisKind::Channel,
            axes.channels.saturating_mul(samples),
        ));
    }
    Axes {
        leading,
        unit: axes.unit.clone(),
        channel_names: if samples == 1 {
            axes.channel_names.clone()
        } else {
            Vec::new()
        },
        ..Axes::default()
    }
}
