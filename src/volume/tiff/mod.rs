//! TIFF and BigTIFF: stacks of pages, OME-TIFF, ImageJ hyperstacks, and folders with a page in each file.
//!
//! Pages that are uncompressed and follow each other in the file are a flat file behind a header, and are mapped. All
//! others are blocks: strips or tiles. Outputs are OME-BigTIFF of tiles, or of a
//! strip for each page.

mod axes;
mod description;
mod directories;
mod ifd;
mod places;
mod strips;
#[cfg(test)]
mod tests;
mod tiles;
mod write;

use std::cmp::Ordering;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use self::axes::{OmeImage, PageAxes};
use self::ifd::{Directories, Page, PageForm, Problem};
use self::places::{PageTables, Pieces};
use self::strips::{Compression, StripDecoder};
use super::blocks::{Block, BlockSource, BlockVolume, Blocks, Files};
use super::files::read_headers;
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

/// Maximum number of blocks whose places are in memory.
const MOST_LISTED: u64 = 1 << 20;

/// A file with its pages.
#[derive(Debug)]
struct PagedFile {
    metadata: Metadata,
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
    let (pages, levels) = pages;
    if level >= levels {
        return Err(Error::InvalidArgument {
            argument: "level",
            value: level.to_string(),
            problem: format!("{} has {levels} levels, counted from 0", path.display()),
        });
    }
    Ok((PagedFile { metadata, pages }, levels))
}

fn pages_of(file: &File, length: u64, level: usize) -> Result<(Vec<Page>, usize), Problem> {
    let (directories, first) = Directories::open(file, length)?;
    let mut pages = directories.pages(first)?;
    let full = Arc::clone(&pages[0].form);
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
    Ok((pages, levels))
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
    let mut files = FileWatch::default();
    files.add(path, &file.metadata);
    let pages = file.pages.into_iter().map(|page| (0, page)).collect();
    let image = Image::new(path, Files::open(files)?, pages, (axes, full))?;
    image.open(options)
}

/// Opens the slices in a folder, in natural order of their names. Returns `None` if it has no TIFF file.
pub(super) fn open_folder(path: &Path, options: &OpenOptions) -> Result<Option<Arc<dyn Volume>>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let file = entry.path();
        let end = file
            .extension()
            .map(|end| end.to_string_lossy().to_lowercase());
        let is_hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let is_tiff = end.is_some_and(|end| EXTENSIONS.contains(&end.as_str()));
        if is_tiff && !is_hidden && (is_file || file.is_file()) {
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
    names.sort_by(|a, b| {
        let [a, b] = [a, b].map(|path| path.file_name().unwrap_or_default().to_string_lossy());
        natural(&a, &b)
    });
    let mut files = FileWatch::default();
    let mut pages: Vec<(u32, Page)> = Vec::with_capacity(names.len());
    let read = |name: &Path| {
        let found = name.symlink_metadata();
        if !options.trusted && found.map_err(Error::io("look at", name))?.is_symlink() {
            let path = name.to_path_buf();
            return Err(Error::UntrustedLink { path });
        }
        Ok(read_pages(name, 0)?.0)
    };
    read_headers(path, &names, read, |name, mut file| {
        if file.pages.len() > 1 {
            let what = format!(
                "the folder has several TIFF files, and {} has {} pages: open one of the files",
                name.display(),
                file.pages.len()
            );
            return Err(Error::unsupported(path, what));
        }
        files.add(name, &file.metadata);
        let mut page = file.pages.swap_remove(0);
        page.description = String::new();
        if let Some((_, before)) = pages.last() {
            page.share_form(before);
        }
        let number = u32::try_from(pages.len())
            .map_err(|_| Error::unsupported(path, "it has too many files"))?;
        pages.push((number, page));
        Ok(())
    })?;
    drop(names);
    let axes = PageAxes::plain(pages.len() as u64);
    let image = Image::new(path, Files::open(files)?, pages, (axes, None))?;
    image.open(options).map(Some)
}

/// Compares names like people: numbers by their value, and before letters, whose case is ignored.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while !left.is_empty() && !right.is_empty() {
        let ((one, after), (other, behind)) = (first_part(left), first_part(right));
        let number = |part: &str| part.parse::<u128>().ok();
        let order = match (number(one), number(other)) {
            (Some(one), Some(other)) => one.cmp(&other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => {
                let [one, other] =
                    [one, other].map(|part| part.chars().flat_map(char::to_lowercase));
                one.cmp(other)
            }
        };
        if order.is_ne() {
            return order;
        }
        (left, right) = (after, behind);
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Splits a name behind its first digits, or behind its first characters that are none.
fn first_part(name: &str) -> (&str, &str) {
    let is_number = name.starts_with(|c: char| c.is_ascii_digit());
    let end = name.find(|c: char| c.is_ascii_digit() != is_number);
    name.split_at(end.unwrap_or(name.len()))
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
    files: Files,
    /// The pages, each with the number of its file.
    pages: Vec<(u32, Page)>,
    axes: PageAxes,
    form: PageForm,
    dtype: DType,
    compression: Compression,
    layout: Layout,
    /// The page of each plane, in the order t, c, z.
    planes: Vec<usize>,
}

impl Image {
    /// Creates an image. `full` is the height and width of level 0, if this is a coarser one.
    fn new(
        path: &Path,
        files: Files,
        pages: Vec<(u32, Page)>,
        (axes, full): (PageAxes, Option<[u64; 2]>),
    ) -> Result<Self> {
        let unsupported = |what: String| Error::unsupported(path, what);
        let planes = plane_order(&axes, pages.len())
            .map_err(|problem| Error::header(path, NAME, problem))?;
        let form = Arc::clone(&pages[planes[0]].1.form);
        for &page in &planes {
            let other = &pages[page].1.form;
            if *other != form {
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
            pages,
            form: (*form).clone(),
            dtype,
            compression,
            layout,
            planes,
            axes,
        })
    }

    fn open(self, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
        if let Some(header) = self.flat_header()? {
            let file = self.files.watch().path(0);
            return flat::open(&Place::Local, &self.path, file, &header, options);
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

    /// Calls `each` with the place and the length of each block of a page, up to the first for which it returns `false`.
    /// Returns `true` if there is none.
    fn all_blocks(&self, page: usize, mut each: impl FnMut(u64, u64) -> bool) -> Result<bool> {
        let (file, page) = &self.pages[page];
        if page.offsets.count == 1 {
            return Ok(each(page.first.0, page.first.1));
        }
        let (watch, number) = (self.files.watch(), *file as usize);
        self.files.with(number, |open| {
            watch.check_file(number, open)?;
            let file = Directories::again(open, watch.length(number), self.form.big_endian);
            let found = file.all_blocks(page, each);
            found.map_err(|problem| refused(watch.path(number), problem))
        })?
    }

    /// Returns the header of a flat file, if the voxels of all pages follow each other uncompressed.
    fn flat_header(&self) -> Result<Option<FlatHeader>> {
        let form = &self.form;
        let is_plain = self.compression == Compression::None
            && self.files.watch().paths().nth(1).is_none()
            && form.predictor == 1
            && form.bits == 8 * self.dtype.size() as u64
            && (!form.is_tiled || form.block == [form.height, form.width]);
        let (Some(page_bytes), Some(order), true) =
            (self.page_bytes(), self.memory_order(), is_plain)
        else {
            return Ok(None);
        };
        let start = self.pages[self.planes[0]].1.first.0;
        if !self.axes.follow && !self.pages_follow(start, page_bytes)? {
            return Ok(None);
        }
        Ok(Some(FlatHeader {
            channels: self.layout.channels,
            time_points: self.time_points(),
            big_endian: form.big_endian,
            order,
            start: DataStart::byte(start),
            geometry: self.layout.geometry,
            axes: self.layout.axes.clone(),
            ..FlatHeader::new(Format::Tiff, self.layout.shape, self.dtype, start)
        }))
    }

    /// Returns `true` if the voxels of all planes follow each other in the order of their pages, from byte `start` on.
    fn pages_follow(&self, start: u64, page_bytes: u64) -> Result<bool> {
        let mut in_page_order = self.planes.clone();
        in_page_order.sort_unstable();
        // Most files that are not flat show it by their first blocks.
        let place = |n: u64| start.checked_add(n.checked_mul(page_bytes)?);
        for (n, &page) in (0_u64..).zip(&in_page_order) {
            if place(n) != Some(self.pages[page].1.first.0) {
                return Ok(false);
            }
        }
        for (n, &page) in (0_u64..).zip(&in_page_order) {
            let (Some(mut at), Some(end)) = (place(n), place(n + 1)) else {
                return Ok(false);
            };
            let is_next = |offset: u64, count: u64| {
                let is_next = offset == at;
                at = offset.saturating_add(count);
                is_next
            };
            let follows = self.all_blocks(page, is_next)?;
            // A count may be rounded up.
            let is_single = self.pages[page]
                .1
                .counts
                .is_some_and(|counts| counts.count == 1);
            if !follows || at < end || (at > end && !is_single) {
                return Ok(false);
            }
        }
        Ok(true)
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
        let (rows, merged) = self.rows_of_block()?;
        let columns = form.block[1];
        let grid = [form.height.div_ceil(rows), form.width.div_ceil(columns)];
        let together = if form.planar { 1 } else { form.samples };
        let separate = form.samples / together;
        let decoder = StripDecoder {
            form: PageForm {
                block: [rows, columns],
                ..form.clone()
            },
            big_endian: form.big_endian,
            rows,
            grid,
            size: self.dtype.size(),
        };
        let too_many = || Error::unsupported(&self.path, "it has too many blocks");
        let per_plane = grid[0].checked_mul(grid[1]).ok_or_else(too_many)?;
        let count = (self.planes.len() as u64)
            .checked_mul(separate)
            .and_then(|n| n.checked_mul(per_plane))
            .ok_or_else(too_many)?;
        if !merged
            && self
                .planes
                .iter()
                .any(|&page| self.pages[page].1.counts.is_none())
        {
            let problem = "a page does not say how long its strips are";
            return Err(Error::header(&self.path, NAME, problem));
        }
        let blocks = if merged {
            Blocks::Stored(Box::new(Pieces::new(&self, rows, self.row_bytes())))
        } else if count > MOST_LISTED {
            let tables = PageTables::new(&self, [separate, per_plane], count);
            Blocks::Stored(Box::new(tables))
        } else {
            Blocks::Listed(self.listed(separate, per_plane)?)
        };
        let first = self.planes[0];
        let file = self.pages[first].0;
        let files = self.files.into_watch();
        let is_single = files.paths().nth(1).is_none();
        self.layout.read_chunk = Some([together, 1, rows, columns]);
        Ok(BlockSource {
            identity: json!({
                "format": NAME,
                "pages": self.planes.len(),
                "first": [file, if is_single { first } else { 0 }],
                "order": self.axes.slowest.iter().collect::<String>(),
                "big_endian": self.form.big_endian,
            }),
            time_points: (self.axes.times > 1).then_some(self.axes.times),
            fill: vec![0; self.dtype.size()],
            layout: self.layout,
            files,
            blocks,
            decoder: Box::new(decoder),
        })
    }

    /// Returns the places of all blocks, which are few.
    fn listed(&self, separate: u64, per_plane: u64) -> Result<Vec<Block>> {
        let mut blocks = Vec::new();
        let slices = usize::try_from(self.axes.slices).unwrap_or(usize::MAX);
        let samples = |channel| (0..separate).map(move |sample| (channel, sample));
        for (channel, sample) in self.planes.chunks(slices).flat_map(samples) {
            let own = sample * per_plane..(sample + 1) * per_plane;
            for &page in channel {
                let file = self.pages[page].0;
                let mut n = 0;
                self.all_blocks(page, |offset, length| {
                    if own.contains(&n) {
                        blocks.push(Block {
                            file,
                            offset,
                            length,
                        });
                    }
                    n += 1;
                    true
                })?;
            }
        }
        Ok(blocks)
    }

    /// Returns the rows of a block. Uncompressed strips that follow each other are cut anew, which is `true`.
    fn rows_of_block(&self) -> Result<(u64, bool)> {
        let form = &self.form;
        let own = form.block[0].min(if form.is_tiled { u64::MAX } else { form.height });
        let is_plain = self.compression == Compression::None
            && !form.is_tiled
            && !form.planar
            && form.bits.is_multiple_of(8);
        if !is_plain {
            return Ok((own, false));
        }
        for &page in &self.planes {
            let own_page = &self.pages[page].1;
            let mut at = own_page.first.0;
            let is_next = |offset: u64, count: u64| {
                let is_next = offset == at && count > 0;
                at = offset.saturating_add(count);
                is_next
            };
            let follows = match own_page.counts {
                None => own_page.offsets.count == 1,
                Some(_) => self.all_blocks(page, is_next)?,
            };
            if !follows {
                return Ok((own, false));
            }
        }
        let row = self.row_bytes().max(1);
        Ok(((PIECE / row).clamp(1, form.height), true))
    }

    fn row_bytes(&self) -> u64 {
        self.form
            .width
            .saturating_mul(self.form.samples)
            .saturating_mul(self.form.bits)
            / 8
    }
}

/// Returns the page of each plane, in the order t, c, z.
fn plane_order(axes: &PageAxes, pages: usize) -> Result<Vec<usize>, String> {
    let count = axes.planes().and_then(|n| usize::try_from(n).ok());
    let count = count.filter(|&n| axes.follow || n <= pages);
    let Some(count) = count else {
        return Err(format!(
            "{} slices, {} channels and {} time points are not in {} pages",
            axes.slices, axes.channels, axes.times, pages
        ));
    };
    if axes.follow {
        return Ok(vec![0]);
    }
    let mut planes = Vec::with_capacity(count);
    for time in 0..axes.times {
        for channel in 0..axes.channels {
            for slice in 0..axes.slices {
                let page = axes.page(time, channel, slice);
                let place =
                    page.and_then(|page| usize::try_from(page).ok().filter(|&page| page < pages));
                planes.push(place.ok_or_else(|| {
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
