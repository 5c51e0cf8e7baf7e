//! The arguments of `voxpatch infer` for placing, blending and reducing patches.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use voxpatch::aggregator::{Accumulator, NonFinite, Skipped, Window};
use voxpatch::{AggregatorOptions, Blend, GridPlacement, InferenceOptions, Padding, Reduce, Shape};

use crate::parse::size;

/// Placement, blending and reduction.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Patches and blending")]
pub(crate) struct Blending {
    /// Use another tool's patch placement and weights; explicit flags override it.
    #[arg(long, value_enum, value_name = "TOOL")]
    pub(crate) preset: Option<Preset>,
    /// Weights of overlapping patches: average, hann, gaussian[:SIGMA] (a fraction of the patch), linear, nnunet,
    /// or crop [default: hann].
    #[arg(long, value_name = "WINDOW")]
    blend: Option<Blend>,
    /// Where patches start: edge (the last is moved to the edge), even, or padded (the last hangs over)
    /// [default: edge].
    #[arg(long, value_name = "HOW")]
    placement: Option<GridPlacement>,
    /// Pad the volume by half the overlap at each face, and crop the output by as much: edge, reflect, wrap, or
    /// constant[:VALUE].
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    padding: Option<Padding>,
    /// Voxels to pad at each face, instead of half the overlap.
    #[arg(long, value_parser = size, value_name = "SIZE", requires = "padding")]
    margin: Option<Shape>,
    /// Reduction of the blended channels: mean, softmax, sigmoid, argmax, threshold:VALUE, or quantize:LOW,HIGH.
    #[arg(
        long,
        default_value = "mean",
        value_name = "HOW",
        allow_hyphen_values = true
    )]
    reduce: Reduce,
    /// Labels of the channels of --reduce argmax [default: 0,1,...].
    #[arg(long, value_delimiter = ',', value_name = "L,L...")]
    labels: Vec<u32>,
    /// Type of the weighted sums: float32, or float16 or bfloat16 for half the memory.
    #[arg(long, default_value_t = Accumulator::F32, value_name = "T")]
    accumulator: Accumulator,
    /// Predict only patches that contain foreground (not 0) of this volume. It covers the same space, with voxels of
    /// any size and axes in any order and direction.
    #[arg(long, value_name = "FILE")]
    pub(crate) mask: Option<PathBuf>,
    /// Values to blend for patches outside --mask, one per channel [default: leave these patches out].
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "V,V...",
        requires = "mask",
        allow_hyphen_values = true
    )]
    vote: Vec<f32>,
    /// Value of voxels that no patch covers.
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "V",
        allow_hyphen_values = true
    )]
    fill: f64,
    /// How to treat a prediction with NaN or infinity: refuse (an error), leave-out (the patch does not vote), or
    /// keep (in the voxels that the patch covers).
    #[arg(long, default_value_t = NonFinite::Refuse, value_name = "HOW")]
    non_finite: NonFinite,
}

/// A tool whose placement and weights are used.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Preset {
    /// `GridSampler` and `GridAggregator` with hann.
    Torchio,
    /// `sliding_window_inference` with mode gaussian.
    Monai,
    /// `nnUNetPredictor` with Gaussian weights; --overlap is the patch minus its step.
    Nnunet,
}

impl Blending {
    /// Returns the options for a volume of a shape.
    pub(crate) fn inference(
        &self,
        volume: Shape,
        patch: Shape,
        overlap: Option<Shape>,
    ) -> voxpatch::Result<InferenceOptions> {
        let overlap = overlap.unwrap_or(InferenceOptions::new(patch).overlap);
        let mut options = match self.preset {
            Some(Preset::Monai) => {
                let overlap =
                    std::array::from_fn(|a| if patch[a] == volume[a] { 0 } else { overlap[a] });
                let (options, _) = InferenceOptions::monai(volume, patch, 0.0)?;
                options.with_overlap(overlap)
            }
            Some(Preset::Nnunet) => {
                let (options, _) = InferenceOptions::nnunet(volume, patch, 1.0)?;
                options
                    .with_overlap(overlap)
                    .with_placement(GridPlacement::Even)
            }
            Some(Preset::Torchio) | None => InferenceOptions::new(patch).with_overlap(overlap),
        };
        if let Some(placement) = self.placement {
            options = options.with_placement(placement);
        }
        if let Some(padding) = self.padding {
            let margin = self.margin.unwrap_or(overlap.map(|overlap| overlap / 2));
            options = options.with_padding(padding).with_margin(margin);
        }
        Ok(options)
    }

    /// Returns how the output is reduced.
    pub(crate) fn reduction(&self) -> Reduce {
        match &self.reduce {
            Reduce::Argmax if !self.labels.is_empty() => Reduce::Labels(self.labels.clone().into()),
            reduce => reduce.clone(),
        }
    }

    /// Returns the aggregator's options, for predictions of patches of a size.
    pub(crate) fn options(&self, patch: Shape) -> voxpatch::Result<AggregatorOptions> {
        let blend = match (&self.blend, self.preset) {
            (Some(blend), _) => blend.clone(),
            (None, Some(Preset::Monai)) => Blend::Custom(Window::monai(patch, 0.125)?),
            (None, Some(Preset::Nnunet)) => Blend::NnUnet,
            (None, _) => Blend::Hann,
        };
        let skipped = match &self.vote[..] {
            [] => Skipped::Renormalize,
            values => Skipped::Vote(values.to_vec()),
        };
        Ok(AggregatorOptions::new(blend, self.reduction())
            .with_accumulator(self.accumulator)
            .with_skipped(skipped)
            .with_non_finite(self.non_finite)
            .with_fill(self.fill))
    }
}
