//! Coarser levels of an output, made while its finest one arrives.
//!
//! Each level has half the voxels of the one before along every axis that has more than one,
//! rounded up: a cell at the far edge is made of the voxels that exist, and an axis of one voxel
//! stays as it is. A chunk of level k is downsampled as soon as it is whole; the result waits for
//! its chunk of level k + 1, and so on. No level is ever read back for that, and how many bytes
//! wait follows from the order in which chunks come: [`pyramid_buffer_bytes`].

mod halve;
mod ladder;
mod rebuild;
mod step;
mod waiting;

pub(super) use ladder::Ladder;
pub(super) use rebuild::{inputs, rebuilt};

use super::{CreateOptions, Layout, zarr};
use crate::error::{Error, Result};
use crate::region::{Region, Shape};

/// The coarser levels that a Zarr output gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pyramid {
    /// Levels in all, the finest included; `None` for as many as it takes until every axis fits
    /// into one chunk.
    pub levels: Option<usize>,
    /// The downsampling method.
    pub method: Downsample,
}

/// A method that combines up to eight voxels into one of the next level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Downsample {
    /// Their mean, for images: integers are summed exactly and a half goes to the even number,
    /// floats are summed as f64. NaN is left out, unless there is nothing else. A `bool` is true if
    /// more than half are.
    Mean,
    /// The value that is there most often, for labels; the smallest of those that are. NaN counts
    /// as one value, larger than all others.
    Mode,
}

impl Downsample {
    /// The name that metadata have for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Mode => "mode",
        }
    }
}

/// The size of a level, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Voxels along z, y, x.
    pub(super) shape: Shape,
    /// Voxels of a write chunk along z, y, x.
    pub(super) chunk: Shape,
}

/// The voxels of one channel of a box; `None` if all are 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// What the voxels cover, which may be more than what is taken of them.
    pub(super) held: Region,
    /// Row-major z, y, x.
    pub(super) voxels: Option<&'a [u8]>,
}

/// How many voxels of a level become one of the next, along z, y, x.
pub(super) fn factors(shape: Shape) -> Shape {
    shape.map(|length| length.min(2))
}

/// Voxels of the level after one of `shape`.
pub(super) fn next_shape(shape: Shape) -> Shape {
    let factors = factors(shape);
    std::array::from_fn(|a| shape[a].div_ceil(factors[a]))
}

/// Voxels of every level, the finest first.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if there cannot be so many.
pub(super) fn shapes(shape: Shape, chunk: Shape, pyramid: Option<Pyramid>) -> Result<Vec<Shape>> {
    let mut shapes = vec![shape];
    let Some(Pyramid { levels, .. }) = pyramid else {
        return Ok(shapes);
    };
    let wanted = |shapes: &[Shape]| match levels {
        Some(levels) => shapes.len() < levels,
        None => (0..3).any(|a| shapes[shapes.len() - 1][a] > chunk[a].max(1)),
    };
    while wanted(&shapes) {
        let last = shapes[shapes.len() - 1];
        let next = next_shape(last);
        if next == last {
            break;
        }
        shapes.push(next);
    }
    match levels {
        Some(levels) if levels != shapes.len() => Err(Error::InvalidArgument {
            argument: "pyramid",
            value: format!("of {levels} levels"),
            problem: format!(
                "a volume of {shape:?} has 1 to {}",
                shapes.len().max(full(shape))
            ),
        }),
        _ => Ok(shapes),
    }
}

/// How many levels there are until one has a single voxel.
fn full(shape: Shape) -> usize {
    let longest = shape.into_iter().max().unwrap_or(1).max(1);
    usize::try_from(longest.next_power_of_two().trailing_zeros()).unwrap_or(0) + 1
}

/// Bytes of unfinished level chunks that wait at most while the write chunks of an output come
/// one after another, all channels of each together, the axes in `order` (0 to 2 for z, y, x, the
/// slowest first). Each thread may add one chunk that is under way.
///
/// # Errors
///
/// As [`output_layout`](super::output_layout).
///
/// # Panics
///
/// If `order` does not name each of the three axes.
pub fn pyramid_buffer_bytes(
    layout: &Layout,
    options: &CreateOptions,
    order: [usize; 3],
) -> Result<u64> {
    let levels = zarr::levels(layout, options)?;
    Ok(waiting::most_waiting(
        &levels,
        layout.channels,
        layout.dtype,
        order,
    ))
}

/// Bytes that a thread takes while it makes a chunk of a coarser level of what is read back, at most.
pub(crate) fn rebuilding_bytes(layout: &Layout) -> u64 {
    let (Some([_, chunk @ ..]), Some([_, inner @ ..])) = (layout.write_chunk, layout.read_chunk)
    else {
        return 0;
    };
    let [z, y, x] = chunk;
    let size = layout.dtype.size() as u64;
    let whole = Region::whole(chunk).voxels();
    // A slab of the finer level, what is made of it, and a chunk that is decoded for it.
    let slab = Region::whole([z.min(rebuild::PLANES), y, x]).voxels();
    let reading = slab
        .saturating_mul(9)
        .saturating_add(Region::whole(inner).voxels().saturating_mul(2));
    let voxels = whole.saturating_add(reading.max(whole.saturating_mul(2)));
    voxels.saturating_mul(size)
}

#[cfg(test)]
mod tests;
