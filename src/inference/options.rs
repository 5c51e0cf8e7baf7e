//! The options of a prediction and of its outputs.

use std::path::PathBuf;

use crate::aggregator::{AggregatorOptions, Blend, Reduce, Window};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::GridPlacement;
use crate::pad::Padding;
use crate::region::Shape;
use crate::threads::{DEFAULT_MEMORY, threads};
use crate::volume::{CreateOptions, VoxelGrid};

/// The options of a sliding-window prediction: the patches, and the memory and threads of the run.
///
/// ```
/// use voxpatch::InferenceOptions;
///
/// let options = InferenceOptions::new([128; 3]).with_overlap([64; 3]).with_memory(1 << 30);
/// assert_eq!(options.overlap, [64; 3]);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct InferenceOptions {
    /// Voxels of a patch along z, y, x.
    pub patch_size: Shape,
    /// Voxels that neighboring patches share along z, y, x.
    pub overlap: Shape,
    /// Where patches start.
    pub placement: GridPlacement,
    /// The values beyond the volume's faces, for patches that extend beyond them. `None`: patches larger than the
    /// volume are refused, and [`GridPlacement::Padded`] repeats the outermost voxels.
    pub padding: Option<Padding>,
    /// Voxels (z, y, x) beyond each face that patches also cover.
    pub margin: Shape,
    /// Bytes that the whole run may hold.
    pub memory: u64,
    /// Threads that read, predict and blend.
    pub threads: usize,
    /// The fewest threads to plan with. If memory is too short for `threads`, fewer are used, down to this number.
    pub min_threads: usize,
    /// Patches that the model gets at once.
    pub batch_size: usize,
    /// Whether [a mask](super::InferencePlan::with_patch_mask) will select the patches that are predicted. Patches that
    /// do not vote take memory; an announced mask lets the plan count it when it chooses threads and passes.
    pub masked: bool,
    /// The grid on which outputs are written, such as that of a scan before it was resampled for the model. `None`: the
    /// grid of the predicted volume.
    ///
    /// Blended predictions are resampled to the grid linearly as they become final, and are reduced there: labels are not
    /// resampled. Voxels with centers more than a voxel of the predictions beyond them get the fill value.
    pub output_grid: Option<VoxelGrid>,
}

impl InferenceOptions {
    /// Creates options with patches that overlap by half and are placed as in `TorchIO`, 256 MiB of memory, batches of
    /// one patch, and all cores.
    #[must_use]
    pub fn new(patch_size: Shape) -> Self {
        Self {
            patch_size,
            overlap: patch_size.map(|length| length / 2),
            placement: GridPlacement::Edge,
            padding: None,
            margin: [0; 3],
            memory: DEFAULT_MEMORY,
            threads: threads(),
            min_threads: 1,
            batch_size: 1,
            masked: false,
            output_grid: None,
        }
    }

    /// Sets the voxels that neighboring patches share.
    #[must_use]
    pub const fn with_overlap(self, overlap: Shape) -> Self {
        Self { overlap, ..self }
    }

    /// Sets where patches start.
    #[must_use]
    pub const fn with_placement(self, placement: GridPlacement) -> Self {
        Self { placement, ..self }
    }

    /// Sets the values beyond the volume's faces.
    #[must_use]
    pub const fn with_padding(self, padding: Padding) -> Self {
        Self {
            padding: Some(padding),
            ..self
        }
    }

    /// Sets the voxels beyond each face that patches also cover.
    #[must_use]
    pub const fn with_margin(self, margin: Shape) -> Self {
        Self { margin, ..self }
    }

    /// Sets the bytes that the whole run may hold.
    #[must_use]
    pub const fn with_memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// Sets the number of threads; at least 1.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self {
            threads: threads.max(1),
            ..self
        }
    }

    /// Sets the fewest threads to plan with.
    #[must_use]
    pub const fn with_min_threads(self, min_threads: usize) -> Self {
        Self {
            min_threads,
            ..self
        }
    }

    /// Sets the patches that the model gets at once; at least 1.
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self {
            batch_size: batch_size.max(1),
            ..self
        }
    }

    /// Sets whether a mask will be set.
    #[must_use]
    pub const fn with_masked(self, masked: bool) -> Self {
        Self { masked, ..self }
    }

    /// Sets the grid on which outputs are written.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use voxpatch::volume::{Resample, VoxelGrid};
    /// use voxpatch::{Geometry, InferenceOptions, Layout, MemoryVolume, OutputTarget, Predictor};
    /// use voxpatch::{VolumeExt, builtin_model, progress};
    ///
    /// # fn main() -> voxpatch::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let layout = Layout::new([20, 60, 60], 1, voxpatch::DType::F32)
    ///     .with_geometry(Geometry::from_spacing([3.0, 0.5, 0.5]));
    /// let scan = Arc::new(MemoryVolume::zeros(layout)?);
    /// let grid = VoxelGrid::of(voxpatch::Volume::layout(&scan));
    /// let resampled = scan.resampled(&Resample::default().with_spacing(Some([1.5; 3])))?;
    /// let options = InferenceOptions::new([16; 3]).with_output_grid(Some(grid));
    /// let predictor = Predictor::new(resampled, builtin_model("threshold:0")?, options);
    /// let plan = predictor.plan(&[OutputTarget::new(folder.path().join("out.zarr"))])?;
    /// assert_eq!(plan.grid().volume(), [40, 20, 20]);
    /// assert_eq!(plan.outputs()[0].layout.shape, [20, 60, 60]);
    /// plan.run(&progress::silent)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub const fn with_output_grid(self, output_grid: Option<VoxelGrid>) -> Self {
        Self {
            output_grid,
            ..self
        }
    }

    /// Pads the volume by half the overlap at each face and crops the output by the same: `TorchIO`'s `padding_mode`.
    #[must_use]
    pub fn padded(patch: Shape, overlap: Shape, padding: Padding) -> Self {
        Self::new(patch)
            .with_overlap(overlap)
            .with_padding(padding)
            .with_margin(overlap.map(|overlap| overlap / 2))
    }

    /// Places patches as MONAI's `sliding_window_inference` does, with the blend of its mode `gaussian`;
    /// [`Blend::Average`] corresponds to its mode `constant`. `overlap` is a fraction of the patch, 0.25 in MONAI.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the overlap is not in `0.0..1.0`, or the patch has no voxels.
    pub fn monai(volume: Shape, patch: Shape, overlap: f64) -> Result<(Self, Blend)> {
        let step = |a: usize| {
            if patch[a] == volume[a] {
                return patch[a];
            }
            part(patch[a], 1.0 - overlap).max(1)
        };
        check_part("overlap", overlap, 0.0..1.0)?;
        let overlap = std::array::from_fn(|a| patch[a] - step(a).min(patch[a]));
        let options = Self::new(patch)
            .with_overlap(overlap)
            .with_padding(Padding::Constant(0.0));
        Ok((options, Blend::Custom(Window::monai(patch, 0.125)?)))
    }

    /// Places and weights patches of a volume as nnU-Net does. `step` is a fraction of the patch, 0.5 in nnU-Net; it
    /// may be a fraction of a voxel.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the step is not greater than 0 and at most 1.
    pub fn nnunet(volume: Shape, patch: Shape, step: f64) -> Result<(Self, Blend)> {
        check_part("step", 1.0 - step, 0.0..1.0)?;
        let overlap = patch.map(|length| length - part(length, step).clamp(1, length.max(1)));
        let counts = std::array::from_fn(|a| count(volume[a], patch[a], step));
        let options = Self::new(patch)
            .with_overlap(overlap)
            .with_placement(GridPlacement::Spread(counts))
            .with_padding(Padding::Constant(0.0));
        Ok((options, Blend::NnUnet))
    }
}

/// The path, blending and storage options of an output of the model.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct OutputTarget {
    /// The output's path. Its extension determines the format.
    pub path: PathBuf,
    /// The blending of overlapping predictions into voxels.
    pub blending: AggregatorOptions,
    /// The output's voxel type. `None`: the prediction's own, or the smallest that holds the reduced values.
    pub dtype: Option<DType>,
    /// The storage options. Shards are shortened along the slowest axis so that they end where patches begin and few of
    /// them are unfinished at a time; [`PlannedOutput::layout`](super::PlannedOutput::layout) has the result.
    pub store: CreateOptions,
    /// Smaller shards to try, in this order, if memory is too short for those of `store`.
    pub smaller_shards: Vec<Shape>,
    /// The options of `store` that are only defaults. A run that resumes or joins an output takes them from the process
    /// that began it.
    pub defaults: Vec<StoreOption>,
}

impl OutputTarget {
    /// Creates an output blended with a Hann window and stored with default options.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            blending: AggregatorOptions::default(),
            dtype: None,
            store: CreateOptions::default(),
            smaller_shards: Vec::new(),
            defaults: Vec::new(),
        }
    }

    /// Sets the weights of overlapping patches.
    #[must_use]
    pub fn with_blend(mut self, blend: Blend) -> Self {
        self.blending.blend = blend;
        self
    }

    /// Sets the reduction of blended channels.
    #[must_use]
    pub fn with_reduce(mut self, reduce: Reduce) -> Self {
        self.blending.reduce = reduce;
        self
    }

    /// Sets all options of the aggregator.
    #[must_use]
    pub fn with_blending(self, blending: AggregatorOptions) -> Self {
        Self { blending, ..self }
    }

    /// Sets the voxel type.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self {
            dtype: Some(dtype),
            ..self
        }
    }

    /// Sets how the output is stored.
    #[must_use]
    pub fn with_store(self, store: CreateOptions) -> Self {
        Self { store, ..self }
    }

    /// Sets smaller shards to try if memory is short.
    #[must_use]
    pub fn with_smaller_shards(self, smaller_shards: Vec<Shape>) -> Self {
        Self {
            smaller_shards,
            ..self
        }
    }

    /// Sets which options of `store` are only defaults.
    #[must_use]
    pub fn with_defaults(self, defaults: Vec<StoreOption>) -> Self {
        Self { defaults, ..self }
    }

    /// Returns the target with its `n`-th smaller shard, or the last; with its own shard if `n` is 0.
    pub(super) fn with_shard_choice(&self, n: usize) -> Self {
        let smaller = &self.smaller_shards;
        let mut target = self.clone();
        if let Some(&shard) = n
            .checked_sub(1)
            .and_then(|n| smaller.get(n).or(smaller.last()))
        {
            target.store.shard = Some(shard);
        }
        target
    }
}

/// An option of [`CreateOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOption {
    /// [`CreateOptions::zarr`].
    Zarr,
    /// [`CreateOptions::chunk`].
    Chunk,
    /// [`CreateOptions::shard`].
    Shard,
    /// [`CreateOptions::codec`].
    Codec,
    /// [`CreateOptions::clevel`].
    Clevel,
    /// [`CreateOptions::pyramid`].
    Pyramid,
}

impl StoreOption {
    /// All options.
    pub const ALL: [Self; 6] = [
        Self::Zarr,
        Self::Chunk,
        Self::Shard,
        Self::Codec,
        Self::Clevel,
        Self::Pyramid,
    ];
}

/// Returns the number of patches that nnU-Net places along an axis.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "as in nnU-Net; numbers that are too large are refused with the grid"
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

/// Returns `length * part`, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "patches are far below 2^53 voxels long, and the part is from 0 to 1"
)]
fn part(length: u64, part: f64) -> u64 {
    (length as f64 * part) as u64
}
