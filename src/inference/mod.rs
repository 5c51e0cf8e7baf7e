//! Inference: a grid of patches through a model into blended outputs on disk.
//!
//! [`Inference`] says what is wanted, [`Inference::plan`] what that takes, [`InferencePlan::run`]
//! does it: patches are read, predicted and added on several threads, no further ahead of
//! the slowest than memory allows. The output is the same for any number of threads.

mod begun;
mod builtin;
mod ensemble;
mod fit;
mod mask;
mod model;
mod needs;
#[cfg(any(feature = "onnx", feature = "ort"))]
mod network;
mod normalize;
#[cfg(feature = "onnx")]
mod onnx;
#[cfg(feature = "ort")]
mod ort;
mod passes;
mod place;
mod plan;
mod probe;
mod resume;
mod run;
mod tta;
mod work;

use std::path::PathBuf;

use crate::aggregator::{AggregatorOptions, Blend, Reduce, Window};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::GridPlacement;
use crate::pad::Padding;
use crate::region::Shape;
use crate::threads::threads;
use crate::volume::CreateOptions;

#[cfg(feature = "ort")]
pub use self::ort::OnnxRuntime;
pub use builtin::builtin_model;
pub use ensemble::Ensemble;
pub use mask::PatchMask;
pub use model::{FnModel, InputValues, Model, OutputSpec, SelectOutput};
pub use normalize::{Normalize, measuring_threads};
#[cfg(feature = "onnx")]
pub use onnx::Onnx;
pub use place::OutputPlace;
pub use plan::{InferencePlan, PlannedOutput};
pub use probe::Probe;
pub use run::{InferenceStats, Timings};
pub use tta::FlipTta;

/// What is to be predicted, and with what.
#[derive(Clone, Debug)]
pub struct Inference {
    /// Voxels of a patch along z, y, x.
    pub patch: Shape,
    /// Voxels that neighbouring patches share along z, y, x.
    pub overlap: Shape,
    /// Where patches start.
    pub placement: GridPlacement,
    /// What lies beyond the volume's faces, where patches hang over. `None`: patches larger than the
    /// volume are refused, and under [`GridPlacement::Padded`] the outermost voxels are repeated.
    pub padding: Option<Padding>,
    /// Voxels beyond each face, z, y, x, that patches cover as well.
    pub margin: Shape,
    /// Bytes that the whole run may hold.
    pub memory: u64,
    /// Threads that read, predict and blend.
    pub threads: usize,
    /// Patches that the model gets at once.
    pub batch: usize,
    /// Whether only some patches will be predicted, [by a patch mask](InferencePlan::with_patch_mask): patches that do not vote
    /// take memory, which a plan that knows of them counts when it chooses threads and outputs.
    pub masked: bool,
}

/// Where an output of the model goes, and how.
#[derive(Clone, Debug)]
pub struct OutputTarget {
    /// Its name.
    pub path: PathBuf,
    /// How overlapping predictions become voxels.
    pub blending: AggregatorOptions,
    /// The output's voxel type; the prediction's own, or the smallest that holds what comes out.
    pub dtype: Option<DType>,
    /// How it is stored. Its shards are made to end where patches begin along the axis that is
    /// swept last, so that few wait unfinished.
    pub store: CreateOptions,
    /// What of `store` nobody asked for: a run that continues what another process began (see
    /// [`Inference::plan_begun`]) stores it as that one does.
    pub unasked: Vec<StoreOption>,
}

/// An option of [`CreateOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOption {
    /// [`CreateOptions::format`].
    Format,
    /// [`CreateOptions::chunk`].
    Chunk,
    /// [`CreateOptions::shard`].
    Shard,
    /// [`CreateOptions::codec`].
    Codec,
    /// [`CreateOptions::level`].
    Level,
    /// [`CreateOptions::pyramid`].
    Pyramid,
}

impl StoreOption {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Format,
        Self::Chunk,
        Self::Shard,
        Self::Codec,
        Self::Level,
        Self::Pyramid,
    ];
}

impl OutputTarget {
    /// An output of the usual form.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, blend: Blend, reduce: Reduce) -> Self {
        Self {
            path: path.into(),
            blending: AggregatorOptions::new(blend, reduce),
            dtype: None,
            store: CreateOptions::default(),
            unasked: Vec::new(),
        }
    }
}

impl Inference {
    /// Patches placed as `TorchIO` places them, 256 MiB, one patch at a time on all cores.
    #[must_use]
    pub fn new(patch: Shape, overlap: Shape) -> Self {
        Self {
            patch,
            overlap,
            placement: GridPlacement::Edge,
            padding: None,
            margin: [0; 3],
            memory: 256 << 20,
            threads: threads(),
            batch: 1,
            masked: false,
        }
    }

    /// As [`new`](Self::new) with the volume padded by half the overlap at each face, which the output
    /// is cropped by: `TorchIO`'s `padding_mode`.
    #[must_use]
    pub fn padded(patch: Shape, overlap: Shape, padding: Padding) -> Self {
        Self {
            padding: Some(padding),
            margin: overlap.map(|overlap| overlap / 2),
            ..Self::new(patch, overlap)
        }
    }

    /// Patches placed as MONAI's `sliding_window_inference` places them, and the blend of its mode
    /// `gaussian`; [`Blend::Average`] is that of its `constant`. `overlap` is a part of the patch, 0.25 there.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the overlap is not from 0 up to, not including, 1, or the patch has no voxels.
    pub fn monai(volume: Shape, patch: Shape, overlap: f64) -> Result<(Self, Blend)> {
        let step = |a: usize| {
            if patch[a] == volume[a] {
                return patch[a];
            }
            part(patch[a], 1.0 - overlap).max(1)
        };
        check_part("overlap", overlap, 0.0..1.0)?;
        let inference = Self {
            padding: Some(Padding::Constant(0.0)),
            ..Self::new(
                patch,
                std::array::from_fn(|a| patch[a] - step(a).min(patch[a])),
            )
        };
        Ok((inference, Blend::Custom(Window::monai(patch, 0.125)?)))
    }

    /// Patches of a volume placed and weighed as nnU-Net places and weighs them; `step` is a part of the patch,
    /// 0.5 there, and need not be a whole number of voxels.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the step is not above 0 and up to 1.
    pub fn nnunet(volume: Shape, patch: Shape, step: f64) -> Result<(Self, Blend)> {
        check_part("step", 1.0 - step, 0.0..1.0)?;
        let overlap = patch.map(|length| length - part(length, step).clamp(1, length.max(1)));
        let counts = std::array::from_fn(|a| count(volume[a], patch[a], step));
        let inference = Self {
            placement: GridPlacement::Spread(counts),
            padding: Some(Padding::Constant(0.0)),
            ..Self::new(patch, overlap)
        };
        Ok((inference, Blend::NnUnet))
    }
}

/// How many patches nnU-Net places along an axis.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "as nnU-Net computes it; what is beyond is refused with the grid"
)]
fn count(length: u64, patch: u64, step: f64) -> u64 {
    let room = length.saturating_sub(patch) as f64;
    (room / (patch.max(1) as f64 * step)).ceil() as u64 + 1
}

fn check_part(name: &'static str, value: f64, range: std::ops::Range<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        argument: name,
        value: value.to_string(),
        problem: "it must be a fraction of the patch, from 0 to 1".to_owned(),
    })
}

/// `length * part`, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "patches are far below 2^53 voxels long, and the part is from 0 to 1"
)]
fn part(length: u64, part: f64) -> u64 {
    (length as f64 * part) as u64
}

#[cfg(test)]
mod tests;
