//! Coarser levels of an output, produced while the finest level arrives.
//!
//! Each level has half the voxels of the previous one along every axis longer than 1, rounded up. A cell at the far
//! edge is made from the voxels that exist, and an axis of length 1 stays as it is. A chunk of level k is downsampled
//! as soon as it is complete; the result waits for its chunk of level k + 1, and so on. No level is read back for that.
//! The bytes in waiting chunks depend on the order in which chunks arrive: see [`pyramid_buffer_bytes`].

mod halve;
mod ladder;
mod rebuild;
mod step;
mod waiting;

pub(super) use ladder::Ladder;
pub(super) use rebuild::{Finer, inputs, rebuilt, rebuilt_at_once};

use super::{CreateOptions, Layout, zarr};
use crate::error::{Error, Result};
use crate::region::{Region, Shape};

/// The coarser levels of a Zarr output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pyramid {
    /// The number of levels, including the finest; `None` for as many as are needed until every axis fits into one
    /// chunk.
    pub levels: Option<usize>,
    /// The downsampling method.
    pub method: Downsample,
}

/// A method that combines up to eight voxels into one of the next level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Downsample {
    /// The mean, for images. Integers are summed exactly and halves are rounded to even; floats are summed as f64. NaN
    /// is ignored, unless there are no other values. A `bool` is true if more than half of the voxels are.
    Mean,
    /// The most frequent value, for labels; among equally frequent ones, the smallest. NaN counts as one value, larger
    /// than all others.
    Mode,
}

impl Downsample {
    /// Returns the name of the method in metadata.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Mode => "mode",
        }
    }
}

/// The shape and the chunking of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Voxels along z, y, x.
    pub(super) shape: Shape,
    /// Voxels of a write chunk along z, y, x.
    pub(super) chunk: Shape,
}

/// The voxels of one channel of a box; `None` if all are 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelSource<'a> {
    /// The box that the voxels cover, which may be larger than the part that is used.
    pub(super) held: Region,
    /// The voxels, row-major z, y, x.
    pub(super) voxels: Option<&'a [u8]>,
}

/// Returns the number of voxels of a level per voxel of the next, along z, y, x.
pub(super) fn factors(shape: Shape) -> Shape {
    shape.map(|length| length.min(2))
}

/// Returns the shape of the level after one of `shape`.
pub(super) fn next_shape(shape: Shape) -> Shape {
    let factors = factors(shape);
    std::array::from_fn(|a| shape[a].div_ceil(factors[a]))
}

/// Returns the shapes of all levels, finest first.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if the volume cannot have that number of levels.
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

/// Returns the number of levels until one has a single voxel.
fn full(shape: Shape) -> usize {
    let longest = shape.into_iter().max().unwrap_or(1).max(1);
    usize::try_from(longest.next_power_of_two().trailing_zeros()).unwrap_or(0) + 1
}

/// Returns the maximum bytes in unfinished level chunks, if the write chunks of an output arrive one after another, all
/// channels of each together, with the axes in `order` (0 to 2 for z, y, x, slowest first). Each thread may add one
/// chunk in progress.
///
/// # Errors
///
/// As [`output_layout`](super::output_layout).
///
/// # Panics
///
/// Panics if `order` does not contain each of the three axes.
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

/// Returns the maximum bytes in unfinished level chunks if write chunks arrive in any order: those of all coarser levels.
///
/// # Errors
///
/// As [`output_layout`](super::output_layout).
pub(crate) fn pyramid_bytes(layout: &Layout, options: &CreateOptions) -> Result<u64> {
    let levels = zarr::levels(layout, options)?;
    Ok(waiting::all_waiting(&levels, layout.channels, layout.dtype))
}

/// Returns the maximum bytes that a thread needs to rebuild a chunk of a coarser level from data that is read back.
pub(crate) fn rebuilding_bytes(layout: &Layout) -> u64 {
    let (Some([_, chunk @ ..]), Some([_, inner @ ..])) = (layout.write_chunk, layout.read_chunk)
    else {
        return 0;
    };
    let size = layout.dtype.size() as u64;
    let whole = Region::whole(chunk).voxels();
    // A box of the finer level, its downsampled result, and a chunk that is decoded for it.
    let reading = Region::whole(rebuilt_at_once(layout))
        .voxels()
        .saturating_mul(9)
        .saturating_add(Region::whole(inner).voxels().saturating_mul(2));
    let voxels = whole.saturating_add(reading.max(whole.saturating_mul(2)));
    voxels.saturating_mul(size)
}

#[cfg(test)]
mod tests;
