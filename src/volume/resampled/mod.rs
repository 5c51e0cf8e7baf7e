//! A volume on a different grid: other spacing, orientation, position or extent.
//!
//! Nothing is copied in advance: a read computes the box of the volume that it needs, reads it once and interpolates.
//! Large regions are read in blocks, so that memory is bounded. If the grid's axes are parallel to the volume's, each
//! axis has a table of weights, which is applied to whole rows; otherwise each voxel gathers its neighbors.

mod grid;
mod kernel;
mod map;
mod options;
#[cfg(test)]
mod tests;
mod warp;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value as Json, json};

use self::kernel::{Field, Filter, Positions, Real, Table, by_tables, filtered, is_coarser};
use self::map::{Map, ROUNDING, float, place};
use super::{
    Cached, Chunk, ChunkShape, ChunkVoxels, Layout, ReadMemory, ReadStats, Reoriented,
    SourceChunks, Volume, chunk, index_bytes,
};
use crate::dtype::{self, DType, Element, with_element};
use crate::error::{Error, Result};
use crate::geometry::SignedAxes;
use crate::pad::Padding;
use crate::patch::copy_common;
use crate::region::{Region, Shape};

pub use grid::{Orientation, VoxelGrid};
pub use options::{Interpolation, Resample};
pub use warp::ControlPoints;
pub(crate) use warp::{Reading, Warp};

/// Chunks are halved until they have at most this many voxels, because a whole chunk is computed at once.
const MOST_VOXELS: u64 = 1 << 21;

/// Chunks need not have more voxels than this, although their neighborhoods overlap.
const LEAST_VOXELS: u64 = 1 << 15;

/// Voxels of the volume that are read at once, and of the grid that are computed at once, with all channels; more only if
/// one voxel of the grid needs more.
const BLOCK_VOXELS: u64 = 1 << 20;

/// Bytes of decoded chunks of the volume that are kept for the next read.
const CACHE_BYTES: u64 = 32 << 20;

/// A volume on a different grid.
///
/// The value of a voxel is that of the volume at the voxel's center in the world. Positions are computed in `f64`, and
/// snapped to voxels of the volume within 1e-4 voxels, because headers store affines in `f32`. A voxel's value never
/// depends on the region that is read.
///
/// - A volume extends to the outer faces of its voxels. Within the outermost half voxel, [`Interpolation::Linear`]
///   continues the outermost voxel, and [`Interpolation::Cubic`] mirrors the volume at the center of the outermost voxel,
///   as ITK does.
/// - Beyond the outer faces, [`Padding::Constant`] gives the constant. Any other padding continues the volume, and the
///   continued volume is interpolated.
/// - [`Interpolation::Linear`]: `a + t (b - a)` along z, then y, then x, in `f32` for types that `f32` holds and `f64` for
///   others.
/// - [`Interpolation::Cubic`]: the cubic B-spline through the voxels (Unser, Aldroubi and Eden, 1993). The recursive
///   prefilter is replaced by one of 29 voxels; the result changes by less than 1e-6 of the largest difference between
///   two voxels.
/// - [`Interpolation::LabelLinear`]: the label whose trilinear weights have the largest sum; of equal sums, the smallest
///   label.
/// - [`Resample::antialias`]: along each axis of the volume on which the new voxels are `k > 1` voxels apart, a Gaussian
///   with a variance of `(k^2 - 1) / (8 ln 2)` voxels (Cardoso et al., 2015), cut off after four deviations.
///
/// If all positions are voxels of the volume (integer steps, flips, permutations, shifts by whole voxels), voxels are
/// copied bit for bit, whatever the interpolation and the type. The type stays that of the volume: results are rounded to
/// the nearest value, half to even.
///
/// If the volume has chunks, up to 32 MiB of decoded ones are kept for the next read. Training and prediction know the order
/// of their reads: they hold the chunks of the volume themselves, and compute patches from them.
#[derive(Debug)]
pub struct Resampled {
    /// The volume, with its axes along those of the grid.
    source: Arc<dyn Volume>,
    /// A cache of its chunks, if it has chunks.
    cache: Option<Cached>,
    layout: Layout,
    map: Map,
    interpolation: Interpolation,
    padding: Padding,
    /// Along z, y, x of the volume.
    filters: [Filter; 3],
    /// Whether no filter smooths the volume before it is interpolated.
    is_unfiltered: bool,
    /// Voxels of the volume that are read at once.
    block_voxels: u64,
    boxes: Boxes,
}

/// Buffers for boxes of the volume, which stay for the next reads: fresh memory costs a page fault per page, and buffers of
/// many sizes leave gaps in the heap.
#[derive(Debug, Default)]
struct Boxes(Mutex<Vec<Vec<u8>>>);

impl Boxes {
    /// Passes a buffer to `read`. It stays afterwards if it has at most `most` bytes.
    fn with<R>(&self, most: u64, read: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut buffer = self.lock().pop().unwrap_or_default();
        let result = read(&mut buffer);
        if buffer.capacity() as u64 <= most {
            self.lock().push(buffer);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of the volume that a region needs.
struct Needs {
    /// The part of the region that may be inside the volume.
    inside: Region,
    /// The first voxel of the neighborhoods, which may be beyond the volume.
    first: [i64; 3],
    /// For each axis: the voxel of `source` for each voxel of the neighborhoods.
    places: [Vec<usize>; 3],
    /// The box of the volume.
    source: Region,
}

impl Needs {
    fn dims(&self) -> [usize; 3] {
        self.places.each_ref().map(Vec::len)
    }

    /// Sets the voxels along an axis from `first` to `last`, which may be beyond a volume of `length` voxels.
    fn continue_along(
        &mut self,
        a: usize,
        (first, last): (i64, i64),
        padding: Padding,
        length: u64,
    ) {
        let inside = |n| padding.inside(n, length).unwrap_or(0);
        let voxels: Vec<u64> = (first..=last).map(inside).collect();
        let start = voxels.iter().copied().min().unwrap_or(0);
        let end = voxels.iter().copied().max().unwrap_or(0);
        self.first[a] = first;
        self.source.start[a] = start.cast_signed();
        self.source.shape[a] = end - start + 1;
        self.places[a] = voxels.iter().map(|voxel| place(voxel - start)).collect();
    }

    /// Returns `true` if no neighborhood reaches beyond the volume.
    fn is_inside(&self) -> bool {
        (0..3).all(|a| {
            let places = &self.places[a];
            places.len() as u64 == self.source.shape[a]
                && places.iter().enumerate().all(|(n, &at)| n == at)
        })
    }

    /// Returns the voxels of the neighborhoods, without a copy if all are inside the volume.
    fn continued_voxels<'a, T: Element>(&self, voxels: &'a [u8]) -> Cow<'a, [T]> {
        let voxels = bytemuck::try_cast_slice::<u8, T>(voxels).map_or_else(
            |_| Cow::Owned(bytemuck::pod_collect_to_vec(voxels)),
            Cow::Borrowed,
        );
        if self.is_inside() {
            return voxels;
        }
        Cow::Owned(continued(voxels.into_owned(), self))
    }

    /// Writes the values of plane `z` of the neighborhoods. `row` has room for a row of the box of the volume.
    fn load_plane<F: Real>(
        &self,
        (voxels, dtype): (&[u8], DType),
        z: usize,
        row: &mut Vec<F>,
        out: &mut [F],
    ) {
        let [_, height, width] = self.source.shape.map(place);
        let [planes, rows, places] = &self.places;
        let voxels = &voxels[planes[z] * height * width * dtype.size()..];
        let convert = |voxels: &[u8], out: &mut [F]| {
            let voxels = &voxels[..out.len() * dtype.size()];
            dtype::convert(dtype, voxels, F::DTYPE, bytemuck::cast_slice_mut(out));
        };
        if self.is_inside() {
            return convert(voxels, out);
        }
        row.resize(width, F::default());
        for (&y, out) in rows.iter().zip(out.chunks_exact_mut(places.len())) {
            convert(&voxels[y * width * dtype.size()..], row);
            for (out, &x) in out.iter_mut().zip(places) {
                *out = row[x];
            }
        }
    }
}

/// Reads some channels of a box of the volume that is resampled to a buffer, or returns the one voxel of all of it.
type Reader<'a> = dyn Fn(&mut Vec<u8>, &Range<u64>, Region) -> Result<Option<Vec<u8>>> + 'a;

impl Resampled {
    /// Presents `volume` on `grid`. Of `options`, the interpolation, the antialiasing and the padding are used.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the grid has no voxels or no proper axes, if the type does not have the padding's
    /// constant, or if antialiasing is set with an interpolation for labels.
    pub fn new(volume: Arc<dyn Volume>, grid: VoxelGrid, options: &Resample) -> Result<Self> {
        Ok(Self::uncached(volume, grid, options)?.cached())
    }

    /// As [`new`](Self::new), without a cache of decoded chunks.
    fn uncached(volume: Arc<dyn Volume>, grid: VoxelGrid, options: &Resample) -> Result<Self> {
        let own = volume.layout();
        let invalid = |value: String, problem: &str| Error::InvalidArgument {
            argument: "grid",
            value,
            problem: problem.to_owned(),
        };
        if grid.shape.contains(&0) {
            let shape = format!("{:?}", grid.shape);
            return Err(invalid(shape, "each axis needs at least one voxel"));
        }
        let axes = SignedAxes::nearest(&grid.geometry, &own.geometry);
        let geometry = own.geometry.turned(axes, own.shape);
        let map = Map::between(&geometry, &grid.geometry, grid.shape);
        let Some(map) = map.filter(|_| grid.geometry.is_sound()) else {
            let affine = format!("{:?}", &grid.geometry.affine[..3]);
            return Err(invalid(
                affine,
                "the axes of the grid and of the volume must have three different directions",
            ));
        };
        options
            .outside
            .check(own.dtype, &own.path.display().to_string())?;
        if options.antialias
            && matches!(
                options.interpolation,
                Interpolation::Nearest | Interpolation::LabelLinear
            )
        {
            return Err(Error::InvalidArgument {
                argument: "interpolation",
                value: options.interpolation.to_string(),
                problem: "antialiasing is only possible with linear and cubic interpolation"
                    .to_owned(),
            });
        }
        let turned = turned(volume, axes);
        let filters = std::array::from_fn(|a| {
            let exact = map.is_separable && map.is_whole(a);
            let interpolation = if exact {
                Interpolation::Linear
            } else {
                options.interpolation
            };
            Filter::new(interpolation, map.step(a), options.antialias)
        });
        let is_copy = map.is_separable
            && (0..3).all(|a| map.is_whole(a))
            && filters.iter().all(|filter: &Filter| filter.reach() == 0);
        let interpolation = if is_copy {
            Interpolation::Nearest
        } else {
            options.interpolation
        };
        let is_smoothed = options.antialias && (0..3).any(|a| is_coarser(map.step(a)));
        let how = (interpolation, options.outside);
        Ok(Self {
            is_unfiltered: !is_smoothed,
            ..Self::made(turned, grid, map, how, filters)
        })
    }

    /// Presents a volume with the voxels of a grid whose axes are those of the volume, by nearest neighbor: voxel `i` of
    /// the grid is at `(i + 1/2) * scale + shift - 1/2`. Voxels beyond the volume are the nearest ones in it.
    pub(super) fn spread(
        volume: Arc<dyn Volume>,
        grid: VoxelGrid,
        scale: [f64; 3],
        shift: [f64; 3],
    ) -> Self {
        let map = Map::along_axes(scale, shift, grid.shape);
        let filters = std::array::from_fn(|_| Filter::new(Interpolation::Nearest, 1.0, false));
        Self::made(
            volume,
            grid,
            map,
            (Interpolation::Nearest, Padding::Edge),
            filters,
        )
        .cached()
    }

    /// Adds a cache of decoded chunks, if the volume has chunks.
    fn cached(mut self) -> Self {
        if self.layout.read_chunk.is_some() {
            self.cache = Some(Cached::new(Arc::clone(&self.source), CACHE_BYTES));
        }
        self
    }

    fn made(
        volume: Arc<dyn Volume>,
        grid: VoxelGrid,
        map: Map,
        (interpolation, padding): (Interpolation, Padding),
        filters: [Filter; 3],
    ) -> Self {
        let own = volume.layout();
        let read_chunk = own.read_chunk.map(|chunk| {
            let fitting = chunk_of(chunk, &map);
            grown(fitting, grid.shape, chunk)
        });
        let layout = Layout {
            shape: grid.shape,
            geometry: grid.geometry,
            read_chunk,
            write_chunk: None,
            read_memory: memory(own, &grid, interpolation),
            ..own.clone()
        };
        let mut resampled = Self {
            source: volume,
            cache: None,
            layout,
            map,
            interpolation,
            padding,
            filters,
            is_unfiltered: true,
            block_voxels: BLOCK_VOXELS,
            boxes: Boxes::default(),
        };
        resampled.layout.read_memory.source = resampled.source_chunks();
        resampled
    }

    fn source_chunks(&self) -> Option<SourceChunks> {
        let own = self.source.layout();
        Some(SourceChunks {
            shape: own.shape,
            chunk: own.read_chunk?,
            step: std::array::from_fn(|a| self.map.step(a)),
            margin: std::array::from_fn(|a| {
                let (before, after) = self.neighbors(a);
                (before + after + 1).unsigned_abs()
            }),
            parallel: self.map.is_separable,
            kept: index_bytes(own),
        })
    }

    /// Returns the volume that is resampled, with its axes along those of the grid.
    pub(crate) const fn source(&self) -> &Arc<dyn Volume> {
        &self.source
    }

    /// Returns the same volume with a cache of its own for `bytes` of decoded chunks of the volume that is resampled.
    pub(crate) fn with_cache(&self, bytes: u64) -> Self {
        let source = Arc::clone(&self.source);
        Self {
            cache: self.cache.as_ref().map(|_| Cached::new(source, bytes)),
            source: Arc::clone(&self.source),
            layout: self.layout.clone(),
            filters: self.filters.clone(),
            boxes: Boxes::default(),
            ..*self
        }
    }

    /// Returns the bytes of decoded chunks that reads keep, at most.
    pub(crate) fn cache_bytes(&self) -> u64 {
        cache_bytes(self.source.layout())
    }

    /// Returns the memory that patches of at most this shape take that are [computed](Self::compute) from voxels in memory.
    pub(crate) fn computing_memory(&self, patch: Shape) -> ReadMemory {
        let own = self.source.layout().read_memory;
        let thread = match self.interpolation {
            Interpolation::Nearest if self.map.is_separable => 0,
            Interpolation::Linear | Interpolation::Cubic if self.map.is_separable => {
                // The planes that one plane of the patch depends on, that plane, and some rows.
                let [(depth, _), (_, height), (_, width)] = std::array::from_fn(|a| {
                    let (before, after) = self.neighbors(a);
                    let taps = (before + after + 1).unsigned_abs();
                    (taps, whole(float(patch[a]) * self.map.step(a)) + taps + 1)
                });
                let values = (depth + 1) * height * width + kernel::rows(width, patch[2]);
                values * value_bytes(self.layout.dtype)
            }
            _ => self.layout.read_memory.thread - own.thread,
        };
        ReadMemory {
            shared: own.shared,
            thread: own.thread.saturating_add(thread),
            answers: own.answers,
            source: None,
        }
    }

    /// Returns the volume that is resampled, read by its cache.
    fn cached_source(&self) -> &dyn Volume {
        match &self.cache {
            Some(cache) => cache,
            None => &*self.source,
        }
    }

    /// Returns `true` if every voxel is the voxel of the volume with the same index.
    #[expect(clippy::float_cmp, reason = "whole numbers are exact in a map")]
    fn is_same(&self) -> bool {
        let same = |a: usize| self.map.rows[a][a] == 1.0 && self.map.rows[a][3] == 0.0;
        self.map.is_separable
            && self.source.layout().shape == self.layout.shape
            && (0..3).all(|a| same(a) && self.filters[a].reach() == 0)
    }

    /// Returns the volume with its axes along those of the grid if that is all that the grid changes.
    fn simplified(self) -> Arc<dyn Volume> {
        if self.is_same() {
            return self.source;
        }
        Arc::new(self.cached())
    }

    /// Returns `true` if the axes of the grid are parallel to those of the volume.
    pub(crate) const fn is_separable(&self) -> bool {
        self.map.is_separable
    }

    /// Returns the voxels along an axis of the volume, turned to the axes of the grid, that voxels of the grid need; of a
    /// grid whose axes are parallel to those of the volume.
    pub(crate) fn needed_along(&self, axis: usize, voxels: Range<u64>) -> Range<u64> {
        let mut region = Region::whole([1; 3]);
        region.start[axis] = voxels.start.cast_signed();
        region.shape[axis] = voxels.end - voxels.start;
        let source = self.needs(region).map(|needs| needs.source);
        source.map_or(0..0, |source| {
            let start = source.start[axis].unsigned_abs();
            start..start + source.shape[axis]
        })
    }

    /// Returns the box of the grid with all voxels whose centers are inside the volume, or at most `beyond` voxels of the
    /// volume beyond its outer faces. It has no other voxels if the axes of the grid are parallel to those of the volume.
    pub(crate) fn reached(&self, beyond: f64) -> [Range<u64>; 3] {
        if self.map.is_separable {
            return std::array::from_fn(|a| self.reached_along(a, beyond));
        }
        self.box_of(std::array::from_fn(|a| self.extent(a, beyond)))
    }

    fn reached_along(&self, axis: usize, beyond: f64) -> Range<u64> {
        let length = self.layout.shape[axis];
        let first_where = |is_past: &dyn Fn(f64) -> bool| {
            let (mut low, mut high) = (0, length);
            while low < high {
                let middle = low.midpoint(high);
                if is_past(self.map.along(axis, middle)) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            low
        };
        let (least, most) = self.extent(axis, beyond);
        let start = first_where(&|position| position >= least);
        start..first_where(&|position| position > most).max(start)
    }

    /// Returns the positions of the outer faces of the volume along an axis, `beyond` voxels further out.
    fn extent(&self, axis: usize, beyond: f64) -> (f64, f64) {
        let out = 0.5 + beyond + ROUNDING;
        let last = float(self.source.layout().shape[axis]) - 1.0;
        (-out, last + out)
    }

    /// Returns `false` if all voxels of a region are more than `beyond` voxels of the volume beyond one of its outer faces.
    pub(crate) fn reaches(&self, region: Region, beyond: f64) -> bool {
        let first = region.start.map(i64::unsigned_abs);
        let last = std::array::from_fn(|a| first[a] + region.shape[a].saturating_sub(1));
        (0..3).all(|a| {
            let (least, most) = self.extent(a, beyond);
            let (low, high) = self.map.span(a, first, last);
            high >= least && low <= most
        })
    }

    /// Returns, for each voxel of a region, `true` if it is more than `beyond` voxels of the volume beyond its outer faces.
    pub(crate) fn beyond(&self, region: Region, beyond: f64) -> Vec<bool> {
        let extents: [(f64, f64); 3] = std::array::from_fn(|a| self.extent(a, beyond));
        let mut flags = Vec::with_capacity(place(region.voxels()));
        Positions::new(&self.map, region).each(region, |position| {
            let is_out = |a: usize| position[a] < extents[a].0 || position[a] > extents[a].1;
            flags.push((0..3).any(is_out));
        });
        flags
    }

    /// Returns the box of the grid with all boxes of at most `shape` voxels that [reach](Self::reaches) the volume and whose
    /// [`source_of`](Self::source_of) may overlap a box of the volume.
    pub(crate) fn boxes_near(&self, source: Region, shape: Shape, beyond: f64) -> [Range<u64>; 3] {
        self.box_of(std::array::from_fn(|a| {
            let (low, high) = self.dependents(source, a);
            let (least, most) = self.map.span(a, [0; 3], shape);
            let far = most - least + beyond + 1.0;
            (low - far, high + far)
        }))
    }

    /// Returns the box of the grid with all voxels whose positions are between these ends.
    fn box_of(&self, ends: [(f64, f64); 3]) -> [Range<u64>; 3] {
        let shape = self.layout.shape;
        match self.map.back(ends) {
            Some(span) => std::array::from_fn(|a| {
                let (low, high) = span[a];
                let end = whole(high.ceil() + 1.0).min(shape[a]);
                whole(low.floor()).min(end)..end
            }),
            None => shape.map(|length| 0..length),
        }
    }

    /// Returns the ends of the positions along an axis whose values may depend on a box of the volume.
    fn dependents(&self, source: Region, axis: usize) -> (f64, f64) {
        let (before, after) = self.neighbors(axis);
        let first = float(source.start[axis].unsigned_abs());
        let last = first + float(source.shape[axis]);
        let (before, after) = (before.unsigned_abs() + 1, after.unsigned_abs() + 1);
        (first - float(after), last + float(before))
    }

    /// Returns how voxels are continued that the interpolation of positions inside the volume needs.
    fn continuation(&self) -> Padding {
        match self.padding {
            Padding::Constant(_) if self.filters.iter().any(|filter| filter.reach() > 0) => {
                Padding::Reflect
            }
            Padding::Constant(_) => Padding::Edge,
            padding => padding,
        }
    }

    /// Returns the lowest and the highest position along an axis at which the volume has a value.
    fn ends(&self, axis: usize) -> (f64, f64) {
        let length = float(self.source.layout().shape[axis]);
        match self.padding {
            Padding::Constant(_) => (-0.5 - ROUNDING, length - 0.5 + ROUNDING),
            // Beyond, the continued volume is constant.
            Padding::Edge => {
                let far = float(self.filters[axis].reach() as u64) + 4.0;
                (-far, length + far)
            }
            Padding::Reflect | Padding::Wrap => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// Returns the neighbors before and after the voxel before a position that its value depends on.
    fn neighbors(&self, axis: usize) -> (i64, i64) {
        let reach = i64::try_from(self.filters[axis].reach()).unwrap_or(i64::MAX);
        let (before, after) = match self.interpolation {
            Interpolation::Linear | Interpolation::Cubic
                if self.map.is_separable && self.map.is_whole(axis) =>
            {
                (0, 0)
            }
            Interpolation::Cubic => (1, 2),
            _ => (0, 1),
        };
        (before + reach, after + reach)
    }

    /// Returns the voxel that is nearest to a position between the ends.
    fn nearest(&self, axis: usize, position: f64) -> i64 {
        let (voxel, _) = kernel::split(position + 0.5 + ROUNDING);
        let last = self.source.layout().shape[axis].cast_signed() - 1;
        match self.padding {
            Padding::Constant(_) => voxel.clamp(0, last),
            _ => voxel,
        }
    }

    /// Returns the part of the volume that a region needs; `None` if all of it is the padding's constant.
    fn needs(&self, region: Region) -> Option<Needs> {
        let mut needs = Needs {
            inside: region,
            first: [0; 3],
            places: [const { Vec::new() }; 3],
            source: Region::whole([0; 3]),
        };
        let continuation = self.continuation();
        for a in 0..3 {
            let start = region.start[a].unsigned_abs();
            let all = start..start + region.shape[a];
            let (least, most) = self.ends(a);
            let (low, high) = if self.map.is_separable {
                let mut own = all;
                if matches!(self.padding, Padding::Constant(_)) {
                    let is_in = |n: &u64| (least..=most).contains(&self.map.along(a, *n));
                    let first = own.clone().find(is_in)?;
                    let last = own.rev().find(is_in)?;
                    own = first..last + 1;
                }
                needs.inside.start[a] = own.start.cast_signed();
                needs.inside.shape[a] = own.end - own.start;
                (self.map.along(a, own.start), self.map.along(a, own.end - 1))
            } else {
                let first = region.start.map(i64::unsigned_abs);
                let last = std::array::from_fn(|a| first[a] + region.shape[a] - 1);
                let (low, high) = self.map.span(a, first, last);
                let is_bounded = matches!(self.padding, Padding::Constant(_));
                if is_bounded && (low - ROUNDING > most || high + ROUNDING < least) {
                    return None;
                }
                (low - ROUNDING, high + ROUNDING)
            };
            let ends = [low, high].map(|position| position.clamp(least, most));
            let (first, last) = if self.interpolation == Interpolation::Nearest {
                let [first, last] = ends.map(|position| self.nearest(a, position));
                (first, last)
            } else {
                let [first, last] = ends.map(|position| kernel::split(position).0);
                let (before, after) = self.neighbors(a);
                (first - before, last + after)
            };
            let length = self.source.layout().shape[a];
            needs.continue_along(a, (first, last), continuation, length);
        }
        Some(needs)
    }

    /// Adds the blocks of a region to `blocks`.
    fn blocks(&self, region: Region, channels: u64, blocks: &mut Vec<Region>) {
        let needed = self.source_voxels(region).max(region.voxels());
        let needed = needed.saturating_mul(channels);
        let longest = (0..3).max_by_key(|&a| (region.shape[a], 2 - a));
        let axis = longest.filter(|&a| region.shape[a] > 1);
        let Some(axis) = axis.filter(|_| needed > self.block_voxels) else {
            return blocks.push(region);
        };
        let (mut one, mut other) = (region, region);
        one.shape[axis] = region.shape[axis] / 2;
        other.shape[axis] -= one.shape[axis];
        other.start[axis] = other.start[axis].saturating_add_unsigned(one.shape[axis]);
        self.blocks(one, channels, blocks);
        self.blocks(other, channels, blocks);
    }

    /// Returns the voxels of the volume that a region needs, at most.
    pub(crate) fn source_voxels(&self, region: Region) -> u64 {
        let first = region.start.map(i64::unsigned_abs);
        let last = std::array::from_fn(|a| first[a] + region.shape[a].saturating_sub(1));
        let lengths = (0..3).map(|a| {
            let (least, most) = self.ends(a);
            let (low, high) = self.map.span(a, first, last);
            let (before, after) = self.neighbors(a);
            let between = high.clamp(least, most) - low.clamp(least, most);
            between + float((before + after + 2).unsigned_abs())
        });
        whole(lengths.product())
    }

    /// Reads a box of the volume that is resampled, by its cache.
    fn read_source(
        &self,
        out: &mut Vec<u8>,
        channels: &Range<u64>,
        region: Region,
    ) -> Result<Option<Vec<u8>>> {
        let own = self.source.layout();
        if let Some(cache) = &self.cache {
            return chunk::gather_into(out, own, channels, region, |index| cache.chunk(index));
        }
        if own.read_chunk.is_some() {
            let read = |index| self.source.read_chunk(index);
            return chunk::gather_into(out, own, channels, region, read);
        }
        let voxels = region.voxels() * (channels.end - channels.start);
        chunk::resize(out, place(voxels) * own.dtype.size());
        self.source.read_channels(channels.clone(), region, out)?;
        Ok(None)
    }

    /// Reads a region, with the boxes of the volume that `read` returns.
    pub(crate) fn read_by(
        &self,
        read: &Reader<'_>,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) -> Result<()> {
        self.layout.check_read(channels, region, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let count = channels.end - channels.start;
        for block in self.blocks_of(region, count) {
            let voxel = match self.needs(block) {
                Some(needs) => self.read_block(read, channels, &needs, (out, region), block)?,
                None => Some(self.constant()),
            };
            if let Some(voxel) = voxel {
                chunk::fill(&voxel, block, (out, region), count);
            }
        }
        Ok(())
    }

    /// Reads a block of a region from the box that it needs. Returns a voxel if all of the block has its value, without
    /// writing it.
    fn read_block(
        &self,
        read: &Reader<'_>,
        channels: &Range<u64>,
        needs: &Needs,
        (out, region): (&mut [u8], Region),
        block: Region,
    ) -> Result<Option<Vec<u8>>> {
        let count = place(channels.end - channels.start);
        self.boxes.with(self.box_bytes(), |voxels| {
            if let Some(voxel) = read(voxels, channels, needs.source)? {
                let is_constant = voxel == self.constant();
                if let Some(voxel) = self.unstored(voxel.clone())
                    && (is_constant || self.is_inside(block))
                {
                    return Ok(Some(voxel));
                }
                chunk::resize(voxels, place(needs.source.voxels()) * count * voxel.len());
                chunk::fill_all(&voxel, voxels);
            }
            self.resample(voxels, needs, (out, region), (block, count));
            Ok(None)
        })
    }

    /// Returns the bytes of a box of the volume that is read at once, unless one voxel of the grid needs more.
    const fn box_bytes(&self) -> u64 {
        self.block_voxels * self.layout.dtype.size() as u64
    }

    /// Returns the map from the voxels of a patch to positions in the volume that is resampled, where `warp` maps them to
    /// positions in this one; `None` if a filter comes before the interpolation.
    pub(crate) fn composed(&self, warp: &Warp) -> Option<Warp> {
        self.is_unfiltered.then(|| Warp {
            rows: self.map.after(&warp.rows),
            ..warp.clone()
        })
    }

    /// Computes a region from the voxels of its [`source_of`](Self::source_of).
    pub(crate) fn compute(
        &self,
        (voxels, source): (&[u8], Region),
        (out, region): (&mut [u8], Region),
        channels: u64,
    ) {
        if out.is_empty() {
            return;
        }
        let count = place(channels);
        let resample = |voxels: &[u8], needs: Option<Needs>, out: &mut [u8], block| match needs {
            Some(needs) => self.resample(voxels, &needs, (out, region), (block, count)),
            None => chunk::fill(&self.constant(), block, (out, region), channels),
        };
        let needs = self.needs(region).filter(|needs| needs.source == source);
        if needs.is_some() && self.map.is_separable {
            resample(voxels, needs, out, region);
            return;
        }
        let size = self.layout.dtype.size();
        for block in self.blocks_of(region, channels) {
            let needs = self.needs(block);
            let wanted = needs.as_ref().map_or(source, |needs| needs.source);
            if wanted == source {
                resample(voxels, needs, out, block);
                continue;
            }
            self.boxes.with(self.box_bytes(), |part| {
                chunk::resize(part, place(wanted.voxels() * channels) * size);
                copy_common((voxels, source), (&mut *part, wanted), channels, size);
                resample(part, needs, out, block);
            });
        }
    }

    /// Cuts a region into blocks that need at most [`BLOCK_VOXELS`] voxels of the volume.
    fn blocks_of(&self, region: Region, channels: u64) -> Vec<Region> {
        let mut blocks = Vec::new();
        self.blocks(region, channels, &mut blocks);
        blocks
    }

    /// Returns the box of the volume that a region of the grid needs; an empty box if it needs no voxel.
    pub(crate) fn source_of(&self, region: Region) -> Region {
        let needs = self.needs(region);
        needs.map_or(Region::whole([0; 3]), |needs| needs.source)
    }

    /// Returns the voxels along each axis of the grid whose values may depend on a box of the volume. Beyond the faces of
    /// the volume, others may depend on it, too.
    pub(crate) fn depending_on(&self, source: Region) -> [Range<u64>; 3] {
        self.box_of(std::array::from_fn(|a| self.dependents(source, a)))
    }

    /// Returns the constant of the padding as a voxel; 0 if there is none.
    fn constant(&self) -> Vec<u8> {
        let value = match self.padding {
            Padding::Constant(value) => value,
            _ => 0.0,
        };
        with_element!(self.layout.dtype, T => bytemuck::bytes_of(&T::from_f64(value)).to_vec())
    }

    /// Computes the voxels of a block of a region from those that it needs.
    fn resample(
        &self,
        voxels: &[u8],
        needs: &Needs,
        (out, region): (&mut [u8], Region),
        (block, channels): (Region, usize),
    ) {
        if needs.inside != block {
            chunk::fill(&self.constant(), block, (out, region), channels as u64);
        }
        let (from, to) = (voxels.len() / channels.max(1), out.len() / channels.max(1));
        let pairs = voxels
            .chunks_exact(from.max(1))
            .zip(out.chunks_exact_mut(to.max(1)));
        for (voxels, out) in pairs {
            let to = (out, region);
            match (self.interpolation, self.layout.dtype) {
                (Interpolation::Nearest, dtype) => match dtype.size() {
                    1 => self.copy::<1>(voxels, needs, to, block),
                    2 => self.copy::<2>(voxels, needs, to, block),
                    4 => self.copy::<4>(voxels, needs, to, block),
                    _ => self.copy::<8>(voxels, needs, to, block),
                },
                (Interpolation::LabelLinear, dtype) => {
                    with_element!(dtype, T => self.labels::<T>(voxels, needs, to, block));
                }
                (_, dtype) if value_bytes(dtype) == 8 => {
                    self.weigh::<f64>(voxels, needs, to, block);
                }
                _ => self.weigh::<f32>(voxels, needs, to, block),
            }
        }
    }

    /// Returns `true` if a position has the padding's constant.
    fn is_outside(&self, position: [f64; 3]) -> bool {
        matches!(self.padding, Padding::Constant(_))
            && (0..3).any(|a| {
                let (least, most) = self.ends(a);
                position[a] < least || position[a] > most
            })
    }

    /// Returns the position at which the continued volume has the same value, not far from the volume.
    fn near(&self, position: [f64; 3]) -> [f64; 3] {
        if self.padding != Padding::Edge {
            return position;
        }
        std::array::from_fn(|a| {
            let (least, most) = self.ends(a);
            position[a].clamp(least, most)
        })
    }

    /// Computes the voxels of a block from their positions, and passes each row and the place of its first voxel in a buffer
    /// of `region` to `put`.
    fn by_positions<V>(
        &self,
        (block, region): (Region, Region),
        value: impl Fn([f64; 3]) -> V,
        mut put: impl FnMut(usize, &[V]),
    ) {
        let width = place(block.shape[2]);
        let mut line = Vec::with_capacity(width);
        let mut rows = 0;
        Positions::new(&self.map, block).each(block, |position| {
            line.push(value(position));
            if line.len() == width {
                put(row_of(block, region, rows), &line);
                rows += 1;
                line.clear();
            }
        });
    }

    /// Copies the nearest voxels, which have `N` bytes.
    fn copy<const N: usize>(
        &self,
        voxels: &[u8],
        needs: &Needs,
        (out, region): (&mut [u8], Region),
        block: Region,
    ) {
        let voxels = bytemuck::cast_slice::<u8, [u8; N]>(voxels);
        let out = bytemuck::cast_slice_mut::<u8, [u8; N]>(out);
        let [_, height, width] = needs.source.shape.map(place);
        let at = |axis: usize, position: f64| {
            let (least, most) = self.ends(axis);
            let voxel = self.nearest(axis, position.clamp(least, most));
            needs.places[axis][place_of(voxel - needs.first[axis])]
        };
        if !self.map.is_separable {
            let constant: [u8; N] = bytemuck::pod_read_unaligned(&self.constant());
            let value = |position| {
                if self.is_outside(position) {
                    return constant;
                }
                let [z, y, x]: [usize; 3] = std::array::from_fn(|a| at(a, position[a]));
                voxels[(z * height + y) * width + x]
            };
            return self.by_positions((block, region), value, |to, line| {
                out[to..to + line.len()].copy_from_slice(line);
            });
        }
        let [z, y, x]: [Vec<usize>; 3] = std::array::from_fn(|a| {
            let start = needs.inside.start[a].unsigned_abs();
            let own = start..start + needs.inside.shape[a];
            own.map(|n| at(a, self.map.along(a, n))).collect()
        });
        let rows = y.len();
        let is_run = x.windows(2).all(|pair| pair[1] == pair[0] + 1);
        for (k, &z) in z.iter().enumerate() {
            for (j, &y) in y.iter().enumerate() {
                let row = &voxels[(z * height + y) * width..][..width];
                let to = row_of(needs.inside, region, k * rows + j);
                let out = &mut out[to..to + x.len()];
                if is_run {
                    out.copy_from_slice(&row[x[0]..x[0] + x.len()]);
                } else {
                    for (out, &x) in out.iter_mut().zip(&x) {
                        *out = row[x];
                    }
                }
            }
        }
    }

    /// Computes labels.
    fn labels<T: Element>(
        &self,
        voxels: &[u8],
        needs: &Needs,
        (out, region): (&mut [u8], Region),
        block: Region,
    ) {
        let continued = needs.continued_voxels::<T>(voxels);
        let field = Field {
            voxels: &continued,
            dims: needs.dims(),
            first: needs.first,
        };
        let constant = bytemuck::pod_read_unaligned(&self.constant());
        let value = |position| {
            if self.is_outside(position) {
                return constant;
            }
            field.label(self.near(position))
        };
        let size = size_of::<T>();
        self.by_positions((block, region), value, |to, line: &[T]| {
            out[to * size..][..size_of_val(line)].copy_from_slice(bytemuck::cast_slice(line));
        });
    }

    /// Computes weighted sums.
    fn weigh<F: Real>(
        &self,
        voxels: &[u8],
        needs: &Needs,
        (out, region): (&mut [u8], Region),
        block: Region,
    ) {
        let dtype = self.layout.dtype;
        let size = dtype.size();
        let dims = needs.dims();
        let mut put = |to: usize, line: &[F]| {
            F::store(line, dtype, &mut out[to * size..][..line.len() * size]);
        };
        if self.map.is_separable {
            let tables: [Table<F>; 3] = std::array::from_fn(|a| {
                let start = needs.inside.start[a].unsigned_abs();
                let own = start..start + needs.inside.shape[a];
                let (least, most) = self.ends(a);
                let positions = own.map(|n| self.map.along(a, n).clamp(least, most));
                Table::new(
                    positions,
                    needs.first[a],
                    self.interpolation,
                    &self.filters[a],
                    self.map.is_whole(a),
                )
            });
            let mut row = Vec::new();
            by_tables(
                [dims[1], dims[2]],
                tables.each_ref(),
                |z, plane| needs.load_plane((voxels, dtype), z, &mut row, plane),
                |row, line| put(row_of(needs.inside, region, row), line),
            );
            return;
        }
        let mut values = vec![F::default(); voxels.len() / size];
        dtype::convert(
            dtype,
            voxels,
            F::DTYPE,
            bytemuck::cast_slice_mut(&mut values),
        );
        let (values, dims) = filtered(continued(values, needs), dims, &self.filters);
        let field = Field {
            voxels: &values,
            dims,
            first: std::array::from_fn(|a| {
                needs.first[a].saturating_add_unsigned(self.filters[a].reach() as u64)
            }),
        };
        let constant = match self.padding {
            Padding::Constant(value) => F::from_f64(value),
            _ => F::default(),
        };
        let value = |position| {
            if self.is_outside(position) {
                constant
            } else if self.interpolation == Interpolation::Cubic {
                field.cubic(self.near(position))
            } else {
                field.linear(self.near(position))
            }
        };
        self.by_positions((block, region), value, put);
    }

    /// Returns the voxel of chunks that need only unstored chunks with this voxel; `None` if interpolation may change
    /// it, as rounding errors and values that are not finite do.
    fn unstored(&self, voxel: Vec<u8>) -> Option<Vec<u8>> {
        let dtype = self.layout.dtype;
        let keeps = match self.interpolation {
            Interpolation::Nearest | Interpolation::LabelLinear => true,
            _ if dtype.is_integer() => dtype.size() <= 2 || voxel.iter().all(|&byte| byte == 0),
            _ => voxel.iter().all(|&byte| byte == 0),
        };
        keeps.then_some(voxel)
    }

    /// Returns the channels and the region of a chunk and its needs.
    fn chunk_needs(&self, index: ChunkShape) -> Result<(Range<u64>, Region, Option<Needs>)> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        Ok((channels, region, self.needs(region)))
    }
}

/// Returns the first voxel of row `n` of `inside` in a buffer of `region`.
fn row_of(inside: Region, region: Region, n: usize) -> usize {
    let height = place(inside.shape[1]).max(1);
    let own = inside.relative_to(region.start);
    let [z, y, x] = own.start.map(place_of);
    let [_, rows, width] = region.shape.map(place);
    ((z + n / height) * rows + y + n % height) * width + x
}

/// Returns the voxels of the neighborhoods, of which some are beyond the volume.
fn continued<T: Copy>(voxels: Vec<T>, needs: &Needs) -> Vec<T> {
    if needs.is_inside() {
        return voxels;
    }
    let [_, height, width] = needs.source.shape.map(place);
    let [z, y, x] = &needs.places;
    let mut all = Vec::with_capacity(z.len() * y.len() * x.len());
    for z in z {
        for y in y {
            let row = &voxels[(z * height + y) * width..][..width];
            all.extend(x.iter().map(|&x| row[x]));
        }
    }
    all
}

/// Returns the memory that reads take on a grid.
fn memory(own: &Layout, grid: &VoxelGrid, interpolation: Interpolation) -> ReadMemory {
    let voxels = |shape: Shape| Region::whole(shape).voxels().saturating_mul(own.channels);
    let all = voxels(own.shape).saturating_add(voxels(grid.shape));
    // A block as it is read, on the axes of the grid, continued beyond the faces, and as it is computed.
    let voxel = own.dtype.size() as u64;
    let values = match interpolation {
        Interpolation::Nearest => 0,
        Interpolation::LabelLinear => 2 * voxel,
        _ => 2 * value_bytes(own.dtype),
    };
    let block = all.min(BLOCK_VOXELS).saturating_mul(3 * voxel + values);
    ReadMemory {
        shared: own.read_memory.shared.saturating_add(cache_bytes(own)),
        thread: own.read_memory.thread.saturating_add(block),
        answers: own.read_memory.answers,
        source: None,
    }
}

/// Returns the volume whose chunks are held for reads of a volume: the one that is resampled, if it is a resampled one.
pub(crate) fn chunk_source(volume: &dyn Volume) -> &dyn Volume {
    match volume.as_resampled() {
        Some(resampled) => &*resampled.source,
        None => volume,
    }
}

/// Returns the bytes of decoded chunks of a volume that are kept, at most.
fn cache_bytes(own: &Layout) -> u64 {
    let voxels = Region::whole(own.shape).voxels();
    let bytes = voxels.saturating_mul(own.channels.saturating_mul(own.dtype.size() as u64));
    own.read_chunk.map_or(0, |_| bytes.min(CACHE_BYTES))
}

/// Returns the bytes of a value in computations.
const fn value_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::U32 | DType::I32 | DType::U64 | DType::I64 | DType::F64 => 8,
        _ => 4,
    }
}

/// Returns the volume with its axes flipped and permuted.
fn turned(volume: Arc<dyn Volume>, axes: SignedAxes) -> Arc<dyn Volume> {
    if axes == SignedAxes::SAME {
        return volume;
    }
    Arc::new(Reoriented::new(volume, axes))
}

/// Returns the chunk shape that covers about one chunk of the volume, within the limit of [`MOST_VOXELS`].
fn chunk_of([c, coarse @ ..]: ChunkShape, map: &Map) -> ChunkShape {
    let mut fine: Shape =
        std::array::from_fn(|a| whole(float(coarse[a]) / map.step(a) + 1e-6).max(1));
    while fine.iter().copied().fold(c, u64::saturating_mul) > MOST_VOXELS {
        let Some(a) = (0..3).filter(|&a| fine[a] > 1).max_by_key(|&a| fine[a]) else {
            break;
        };
        fine[a] = fine[a].div_ceil(2);
    }
    let [z, y, x] = fine;
    [c, z, y, x]
}

/// Returns a chunk shape doubled until it has as many voxels as the chunks of the volume, up to [`LEAST_VOXELS`], or
/// covers a grid of this shape.
fn grown([c, mut chunk @ ..]: ChunkShape, shape: Shape, coarse: ChunkShape) -> ChunkShape {
    let own = coarse.into_iter().fold(1, u64::saturating_mul);
    let least = own.min(LEAST_VOXELS);
    while chunk.iter().copied().fold(c, u64::saturating_mul) < least {
        let short = (0..3).filter(|&a| chunk[a] < shape[a]);
        let Some(a) = short.min_by_key(|&a| chunk[a]) else {
            break;
        };
        chunk[a] = chunk[a].saturating_mul(2);
    }
    let [z, y, x] = chunk;
    [c, z, y, x]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast stops at the ends of u64"
)]
const fn whole(n: f64) -> u64 {
    n as u64
}

fn place_of(n: i64) -> usize {
    usize::try_from(n).expect("a place inside a buffer in memory")
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Resampled {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let read = |out: &mut Vec<u8>, channels: &Range<u64>, source| {
            self.read_source(out, channels, source)
        };
        self.read_by(&read, &channels, region, out)
    }

    /// Reads a chunk. If none of the chunks that it needs is stored, and all have the same value, it is a fill chunk.
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region, needs) = self.chunk_needs(index)?;
        let count = channels.end - channels.start;
        let chunk = |voxels| Chunk {
            channels: channels.clone(),
            region,
            voxels,
        };
        let Some(needs) = needs else {
            return Ok(chunk(ChunkVoxels::Fill(self.constant())));
        };
        let size = self.layout.dtype.size();
        let mut out = vec![0; place(region.voxels() * count) * size];
        if self.source_voxels(region).saturating_mul(count) > self.block_voxels {
            self.read_channels(channels.clone(), region, &mut out)?;
            return Ok(chunk(ChunkVoxels::Stored(out)));
        }
        let read = |out: &mut Vec<u8>, channels: &Range<u64>, source| {
            self.read_source(out, channels, source)
        };
        let voxel = self.read_block(&read, &channels, &needs, (&mut out, region), region)?;
        Ok(chunk(
            voxel.map_or(ChunkVoxels::Stored(out), ChunkVoxels::Fill),
        ))
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(self.cached_source())
    }

    fn as_resampled(&self) -> Option<&Resampled> {
        Some(self)
    }

    /// Prefetches the chunks that the chunk needs.
    fn prefetch(&self, index: ChunkShape) {
        let needs = self.chunk_needs(index).ok();
        let Some(((channels, _, Some(needs)), chunk)) = needs.zip(self.source.layout().read_chunk)
        else {
            return;
        };
        for inner in chunk::intersecting(chunk, &channels, needs.source) {
            self.cached_source().prefetch(inner);
        }
    }

    fn time_points(&self) -> Option<u64> {
        self.cached_source().time_points()
    }

    /// Returns `None`: neighboring slabs need the same plane of the volume, so a pass over them goes back in it.
    fn sequential_order(&self) -> Option<[usize; 4]> {
        None
    }

    /// Returns the voxels along each axis of a preferred read of the volume.
    fn read_granularity(&self) -> Option<ChunkShape> {
        let coarse = self.cached_source().read_granularity()?;
        Some(chunk_of(coarse, &self.map))
    }

    fn reads_parts(&self) -> bool {
        false
    }

    /// Returns a fill value if none of the chunks that the chunk needs is stored, and all have the same value. This
    /// volume has no write chunks: the answer is for the chunk itself.
    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let (channels, region, needs) = self.chunk_needs(index)?;
        let Some(needs) = needs else {
            return Ok(Some(self.constant()));
        };
        let found = chunk::fill_of(self.cached_source(), &channels, needs.source)?;
        let found = found.filter(|voxel| *voxel == self.constant() || self.is_inside(region));
        Ok(found.and_then(|voxel| self.unstored(voxel)))
    }

    fn read_stats(&self) -> ReadStats {
        self.cached_source().read_stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.cached_source().source_files()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.cached_source().check_unchanged()
    }

    fn identity(&self) -> Result<Json> {
        Ok(json!({
            "resampled to": self.layout.shape,
            "map": self.map.rows,
            "interpolation": self.interpolation.to_string(),
            "filters": self.filters.each_ref().map(Filter::reach),
            "padding": self.padding.to_string(),
            "of": self.cached_source().identity()?,
        }))
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.cached_source().stored_bytes()
    }
}

impl Resampled {
    /// Returns `true` if no voxel of a region has the padding's constant.
    fn is_inside(&self, region: Region) -> bool {
        if !matches!(self.padding, Padding::Constant(_)) {
            return true;
        }
        let first = region.start.map(i64::unsigned_abs);
        let last = std::array::from_fn(|a| first[a] + region.shape[a].saturating_sub(1));
        (0..3).all(|a| {
            let (least, most) = self.ends(a);
            let (low, high) = self.map.span(a, first, last);
            least <= low && high <= most
        })
    }
}
