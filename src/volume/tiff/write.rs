//! Writing OME-BigTIFF: pages of tiles.
//!
//! Tiles that are not compressed have their final places from the start: voxels are written there in boxes of any shape
//! and in any order, and the space for all of them is reserved. A compressed tile is appended once it is complete, and its
//! place is entered into the directory of its page.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::directories::Directories;
use super::tiles::{Packing, TileGrid, differences};
use crate::error::{Error, Result};
use crate::files::write_all_at;
use crate::patch::copy_common;
use crate::region::{Region, chunk_range, indices};
use crate::volume::chunk::check_whole_chunks;
use crate::volume::overwrite::Overwrite;
use crate::volume::staged::StagedFile;
use crate::volume::{CreateOptions, Layout, VolumeMut, flat};

/// Enters the chunks and codecs of an output into its layout.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if TIFF has no such tiles or no such compression.
pub(in super::super) fn describe_output(
    layout: &mut Layout,
    options: &CreateOptions,
) -> Result<()> {
    let grid = TileGrid::of(layout, options)?;
    let packing = Packing::of(options)?;
    let [stack, rows, columns] = grid.chunk;
    layout.read_chunk = Some([1, 1, rows, columns]);
    layout.write_chunk = (packing != Packing::None).then_some([1, stack, rows, columns]);
    layout.codecs = packing.name().map(str::to_owned).into_iter().collect();
    Ok(())
}

/// Returns the most bytes that an output takes, and those that it needs to begin.
pub(in super::super) fn bounds(layout: &Layout, options: &CreateOptions) -> Result<(u64, u64)> {
    let grid = TileGrid::of(layout, options)?;
    let packing = Packing::of(options)?;
    let start = Directories::new(layout, grid, packing)?.end();
    let tiles = grid.pages.saturating_mul(grid.per_page());
    let tile = grid.tile_bytes();
    if packing == Packing::None {
        let all = start.saturating_add(tiles.saturating_mul(tile));
        return Ok((all, all));
    }
    // Voxels that cannot be compressed are stored with a few bytes more.
    let most = tile + tile / 128 + 64;
    let stack = grid.chunk[0].min(grid.pages);
    Ok((
        start.saturating_add(tiles.saturating_mul(most)),
        start.saturating_add(stack.saturating_mul(tile)),
    ))
}

/// A file of tiles under construction.
#[derive(Debug)]
pub(in super::super) struct TileWriter {
    layout: Layout,
    staged: StagedFile,
    grid: TileGrid,
    packing: Packing,
    directories: Directories,
    /// The place of the next compressed tile.
    next: AtomicU64,
}

impl TileWriter {
    /// Creates the file that `layout` describes.
    pub(in super::super) fn create(layout: Layout, options: &CreateOptions) -> Result<Self> {
        let overwrite = Overwrite::by(&layout, options.overwrite)?;
        let grid = TileGrid::of(&layout, options)?;
        let packing = Packing::of(options)?;
        let directories = Directories::new(&layout, grid, packing)?;
        let staged = StagedFile::new(&layout.path, overwrite)?;
        let (file, start) = (staged.file(), directories.end());
        let length = match packing {
            Packing::None => directories.place(grid.pages, 0),
            _ => start,
        };
        flat::reserve(file, length).map_err(Error::io("reserve space for", &layout.path))?;
        let written = directories.write(file);
        written.map_err(Error::io("write", &layout.path))?;
        Ok(Self {
            layout,
            staged,
            grid,
            packing,
            directories,
            next: AtomicU64::new(start),
        })
    }

    fn file(&self) -> &File {
        self.staged.file()
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = write_all_at(self.file(), bytes, at);
        self.staged.count_written(bytes.len() as u64);
        written.map_err(Error::io("write", &self.layout.path))
    }

    /// Writes the part of a page that is in `plane`, a box at z = 0.
    fn write_plane(&self, page: u64, plane: Region, voxels: &[u8]) -> Result<()> {
        let [_, rows, columns] = self.grid.chunk;
        let mut tile = Vec::new();
        for [_, y, x] in indices(chunk_range(&plane, [1, rows, columns])) {
            let whole = TileGrid::tile(self.grid.chunk, y, x);
            let number = y * self.grid.across[1] + x;
            if self.packing == Packing::None {
                let place = self.directories.place(page, number);
                self.write_part(whole, place, plane, voxels, &mut tile)?;
            } else {
                let bytes = usize::try_from(self.grid.tile_bytes()).expect("a tile has few bytes");
                self.copy(whole, bytes, plane, voxels, &mut tile);
                let place = self.append(&mut tile)?;
                self.enter(page, number, place)?;
            }
        }
        Ok(())
    }

    /// Copies the part of `plane` that is in `part` to `out`, which gets zeros elsewhere.
    fn copy(&self, part: Region, bytes: usize, plane: Region, voxels: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.resize(bytes, 0);
        copy_common((voxels, plane), (out, part), 1, self.layout.dtype.size());
    }

    /// Writes the voxels of `plane` that are in the tile `whole` to their places. The tile begins at byte `place`.
    fn write_part(
        &self,
        whole: Region,
        place: u64,
        plane: Region,
        voxels: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(part) = whole.intersection(&plane) else {
            return Ok(());
        };
        let size = self.grid.size;
        let at = |region: &Region| {
            let [_, y, x] = region.relative_to(whole.start).start.map(i64::unsigned_abs);
            place + (y * whole.shape[2] + x) * size
        };
        let edge = i64::try_from(self.layout.shape[2]).unwrap_or(i64::MAX);
        let is_wide = part.start[2] == whole.start[2]
            && (part.end()[2] == whole.end()[2] || part.end()[2] == edge);
        // Whole rows of a tile follow each other, with the padding behind the page's edge.
        let box_ = if is_wide {
            Region::new(part.start, [1, part.shape[1], whole.shape[2]])
        } else {
            part
        };
        let bytes = usize::try_from(box_.voxels() * size).expect("a part of a tile");
        self.copy(box_, bytes, plane, voxels, buffer);
        if is_wide {
            return self.write_at(buffer, at(&box_));
        }
        let run = usize::try_from(box_.shape[2] * size).expect("a part of a tile");
        for (row, bytes) in (box_.start[1]..).zip(buffer.chunks_exact(run)) {
            let line = Region::new([0, row, box_.start[2]], [1, 1, box_.shape[2]]);
            self.write_at(bytes, at(&line))?;
        }
        Ok(())
    }

    /// Compresses a tile, which it changes, and appends it to the file. Returns its place.
    fn append(&self, tile: &mut [u8]) -> Result<Range<u64>> {
        if self.directories.has_differences() {
            let columns = usize::try_from(self.grid.chunk[2]).expect("a tile has few bytes");
            differences(tile, columns, self.layout.dtype.size());
        }
        let packed = self.packing.packed(tile);
        let packed = packed.map_err(Error::io("compress", &self.layout.path))?;
        let length = packed.len() as u64;
        // Tiles begin at even places.
        let start = self
            .next
            .fetch_add(length.next_multiple_of(2), Ordering::Relaxed);
        self.write_at(&packed, start)?;
        Ok(start..start + length)
    }

    /// Enters the place of a tile into the directory of its page.
    fn enter(&self, page: u64, tile: u64, place: Range<u64>) -> Result<()> {
        let [offsets, counts] = self.directories.tables_of(page);
        self.write_at(&place.start.to_ne_bytes(), offsets.start + 8 * tile)?;
        let length = place.end - place.start;
        self.write_at(&length.to_ne_bytes(), counts.start + 8 * tile)
    }

    /// Enters one tile of zeros wherever none was written.
    fn fill(&self) -> Result<()> {
        let mut zeros = None;
        let mut lengths = vec![0; usize::try_from(8 * self.grid.per_page()).unwrap_or(usize::MAX)];
        for page in 0..self.grid.pages {
            let [_, counts] = self.directories.tables_of(page);
            let read = self.file().read_exact_at(&mut lengths, counts.start);
            read.map_err(Error::io("read", &self.layout.path))?;
            for (tile, length) in (0..).zip(lengths.chunks_exact(8)) {
                if length != [0; 8] {
                    continue;
                }
                let place = if let Some(place) = &zeros {
                    Range::clone(place)
                } else {
                    let bytes = usize::try_from(self.grid.tile_bytes()).unwrap_or(usize::MAX);
                    zeros.insert(self.append(&mut vec![0; bytes])?).clone()
                };
                self.enter(page, tile, place)?;
            }
        }
        Ok(())
    }
}

impl VolumeMut for TileWriter {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        self.layout.check_read(&channels, region, voxels.len())?;
        check_whole_chunks(&self.layout, &channels, region)?;
        if voxels.is_empty() {
            return Ok(());
        }
        let plane = Region::new(
            [0, region.start[1], region.start[2]],
            [1, region.shape[1], region.shape[2]],
        );
        let bytes = usize::try_from(plane.voxels() * self.grid.size).expect("a part of a buffer");
        let mut planes = voxels.chunks_exact(bytes);
        for channel in channels {
            let first = channel * self.layout.shape[0] + region.start[0].unsigned_abs();
            for (page, plane_voxels) in (first..first + region.shape[0]).zip(&mut planes) {
                self.write_plane(page, plane, plane_voxels)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        if self.packing != Packing::None {
            self.fill()?;
        }
        self.staged.finish()
    }
}
