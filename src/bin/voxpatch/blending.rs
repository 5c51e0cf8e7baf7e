//! Flags of `voxpatch infer` that say where patches lie and how predictions become voxels.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use voxpatch::aggregator::{Accumulator, NonFinite, Skipped};
use voxpatch::{AggregatorOptions, Blend, GridPlacement, Inference, Padding, Reduce, Shape};

use crate::args::size;

/// GridPlacement, blending and reduction.
#[derive(Clone, Debug, Args)]
pub(crate) struct Blending {
    /// Place and weigh patches as a peer does; the flags below go before it.
    #[arg(long, value_enum, value_name = "PEER")]
    pub(crate) preset: Option<Preset>,
    /// How overlapping predictions are weighed: average, hann, gaussian[:SIGMA] (part of the patch),
    /// linear, nnunet, or crop; hann if not given.
    #[arg(long, value_parser = blend, value_name = "WINDOW")]
    blend: Option<Blend>,
    /// Where patches start: edge (the last moved to the edge), even, or padded (the last hangs over);
    /// edge if not given.
    #[arg(long, value_parser = placement, value_name = "HOW")]
    placement: Option<GridPlacement>,
    /// What lies beyond the faces, where patches hang over: edge, reflect, wrap, or constant[:VALUE]. The
    /// volume is padded by half the overlap, and the output cropped by as much.
    #[arg(long, value_parser = padding, value_name = "MODE", allow_hyphen_values = true)]
    padding: Option<Padding>,
    /// Voxels beyond each face that patches cover as well, instead of half the overlap.
    #[arg(long, value_parser = size, value_name = "SIZE", requires = "padding")]
    margin: Option<Shape>,
    /// What becomes of the blended channels: mean, softmax, sigmoid, argmax, threshold:VALUE, or quantize:LOW,HIGH.
    #[arg(long, value_parser = reduce, default_value = "mean", value_name = "HOW", allow_hyphen_values = true)]
    reduce: Reduce,
    /// The labels that the classes of --reduce argmax stand for, one for each channel.
    #[arg(long, value_delimiter = ',', value_name = "L,L...")]
    labels: Vec<u32>,
    /// The type in which predictions are summed up.
    #[arg(long, value_enum, default_value_t = AccumulatorName::F32, value_name = "T")]
    accumulator: AccumulatorName,
    /// Predict only patches that hold foreground (not 0) of this volume, which covers the same space with
    /// voxels of any size, its axes stored in any order and direction.
    #[arg(long, value_name = "FILE")]
    pub(crate) mask: Option<PathBuf>,
    /// What patches without foreground mean: nothing, or a vote for these values, one for each channel.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "V,V...",
        requires = "mask",
        allow_hyphen_values = true
    )]
    vote: Vec<f32>,
    /// The output's value where no patch votes.
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "V",
        allow_hyphen_values = true
    )]
    fill: f64,
    /// What a prediction with NaN or infinity means.
    #[arg(long, value_enum, default_value_t = NonFiniteName::Refuse, value_name = "HOW")]
    non_finite: NonFiniteName,
}

/// Whose placement and weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Preset {
    /// `GridSampler` and `GridAggregator` with hann.
    Torchio,
    /// `sliding_window_inference` with mode gaussian.
    Monai,
    /// `nnUNetPredictor` with Gaussian weights; --overlap is the patch less its step.
    Nnunet,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AccumulatorName {
    F32,
    /// Half the memory, 11 bits.
    F16,
    /// Half the memory, 8 bits.
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NonFiniteName {
    /// An error that names patch and voxel.
    Refuse,
    /// The patch does not vote.
    LeaveOut,
    /// It goes into the voxels that the patch covers.
    Keep,
}

impl Blending {
    /// Where patches lie, for a volume of a shape.
    pub(crate) fn inference(
        &self,
        volume: Shape,
        patch: Shape,
        overlap: Shape,
    ) -> voxpatch::Result<Inference> {
        let mut inference = Inference::new(patch, overlap);
        match self.preset {
            Some(Preset::Monai) => {
                inference = Inference {
                    overlap: std::array::from_fn(|a| {
                        if patch[a] == volume[a] { 0 } else { overlap[a] }
                    }),
                    ..Inference::monai(volume, patch, 0.0)?.0
                };
            }
            Some(Preset::Nnunet) => {
                inference = Inference {
                    overlap,
                    placement: GridPlacement::Even,
                    ..Inference::nnunet(volume, patch, 1.0)?.0
                };
            }
            Some(Preset::Torchio) | None => {}
        }
        if let Some(placement) = self.placement {
            inference.placement = placement;
        }
        if let Some(padding) = self.padding {
            inference.padding = Some(padding);
            inference.margin = self.margin.unwrap_or(overlap.map(|overlap| overlap / 2));
        }
        Ok(inference)
    }

    /// What becomes of predictions of patches of a size.
    pub(crate) fn options(&self, patch: Shape) -> voxpatch::Result<AggregatorOptions> {
        let blend = match (&self.blend, self.preset) {
            (Some(blend), _) => blend.clone(),
            (None, Some(Preset::Monai)) => {
                Blend::Custom(voxpatch::aggregator::Window::monai(patch, 0.125)?)
            }
            (None, Some(Preset::Nnunet)) => Blend::NnUnet,
            (None, _) => Blend::Hann,
        };
        let reduce = match &self.reduce {
            Reduce::Argmax if !self.labels.is_empty() => Reduce::Labels(self.labels.clone().into()),
            reduce => reduce.clone(),
        };
        Ok(AggregatorOptions {
            accumulator: match self.accumulator {
                AccumulatorName::F32 => Accumulator::F32,
                AccumulatorName::F16 => Accumulator::F16,
                AccumulatorName::Bf16 => Accumulator::BF16,
            },
            skipped: match &self.vote[..] {
                [] => Skipped::Renormalize,
                values => Skipped::Vote(values.to_vec()),
            },
            non_finite: match self.non_finite {
                NonFiniteName::Refuse => NonFinite::Refuse,
                NonFiniteName::LeaveOut => NonFinite::LeaveOut,
                NonFiniteName::Keep => NonFinite::Keep,
            },
            fill: self.fill,
            ..AggregatorOptions::new(blend, reduce)
        })
    }
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.trim()
        .parse()
        .map_err(|_| format!("{word:?} is no number"))
}

fn blend(word: &str) -> Result<Blend, String> {
    match word.split_once(':') {
        None => match word {
            "average" => Ok(Blend::Average),
            "hann" => Ok(Blend::Hann),
            "gaussian" => Ok(Blend::GAUSSIAN),
            "linear" => Ok(Blend::Linear),
            "nnunet" => Ok(Blend::NnUnet),
            "crop" => Ok(Blend::Crop),
            _ => {
                Err("there are average, hann, gaussian[:SIGMA], linear, nnunet and crop".to_owned())
            }
        },
        Some(("gaussian", sigma)) => Ok(Blend::Gaussian {
            sigma: number(sigma)?,
        }),
        Some(_) => Err("only gaussian takes a number".to_owned()),
    }
}

fn placement(word: &str) -> Result<GridPlacement, String> {
    match word {
        "edge" => Ok(GridPlacement::Edge),
        "even" => Ok(GridPlacement::Even),
        "padded" => Ok(GridPlacement::Padded),
        _ => Err("there are edge, even and padded".to_owned()),
    }
}

fn padding(word: &str) -> Result<Padding, String> {
    match word.split_once(':') {
        None => match word {
            "constant" => Ok(Padding::Constant(0.0)),
            "edge" => Ok(Padding::Edge),
            "reflect" => Ok(Padding::Reflect),
            "wrap" => Ok(Padding::Wrap),
            _ => Err("there are edge, reflect, wrap and constant[:VALUE]".to_owned()),
        },
        Some(("constant", value)) => Ok(Padding::Constant(number(value)?)),
        Some(_) => Err("only constant takes a number".to_owned()),
    }
}

fn reduce(word: &str) -> Result<Reduce, String> {
    match word.split_once(':') {
        None => match word {
            "mean" => Ok(Reduce::Mean),
            "softmax" => Ok(Reduce::Softmax),
            "sigmoid" => Ok(Reduce::Sigmoid),
            "argmax" => Ok(Reduce::Argmax),
            _ => Err(
                "there are mean, softmax, sigmoid, argmax, threshold:VALUE and quantize:LOW,HIGH"
                    .to_owned(),
            ),
        },
        Some(("threshold", value)) => Ok(Reduce::Threshold(number(value)?)),
        Some(("quantize", range)) => {
            let (low, high) = range
                .split_once(',')
                .ok_or("quantize takes two numbers: quantize:LOW,HIGH")?;
            Ok(Reduce::Quantize {
                low: number(low)?,
                high: number(high)?,
            })
        }
        Some(_) => Err("only threshold and quantize take numbers".to_owned()),
    }
}
