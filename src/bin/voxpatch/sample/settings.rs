//! The arguments of `voxpatch sample`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::Shape;
use voxpatch::normalize::NormalizeSetting;
use voxpatch::sampler::{Border, LabelValue, LabelWeights, OnEmpty};
use voxpatch::training::{Augmentation, RandomAffine, RandomElastic, Uneven};

use crate::common::{Common, Memory};
use crate::input::{OnGrid, Opening, Part, Together};
use crate::parse::size;

const EXAMPLES: &str = "\
Examples:
  voxpatch sample scan.zarr --patch-size 96 --samples-per-subject 64 --out patches.npy
  voxpatch sample scan.zarr --patch-size 96 --samples-per-subject 64 --labels tissue.zarr --label-weights 0:1,2:3
  voxpatch sample scan.zarr --at places.csv --out patches/";

const PATCHES: &str = "Patches";
const CHANGES: &str = "Normalization and augmentation";
const MAPS: &str = "Label and weight maps";
const OUTPUT: &str = "Output";

/// Draw training patches, as the loader does, and store them, or only read them.
///
/// The same seed and epoch give the same patches, whatever the threads and the memory. Patches of one input come in
/// the order in which they were drawn; those of several inputs are mixed, as in a training epoch.
#[derive(Debug, ClapArgs)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct SampleArgs {
    /// The volumes.
    #[arg(value_name = "SRC", required = true)]
    pub(super) sources: Vec<PathBuf>,
    /// Voxels of a patch.
    #[arg(long, help_heading = PATCHES, value_parser = size, value_name = "SIZE", required_unless_present = "at")]
    pub(super) patch_size: Option<Shape>,
    /// Patches of each input, of all ranks together [default with --at: all places].
    #[arg(long, help_heading = PATCHES, value_name = "N", required_unless_present = "at")]
    pub(super) samples_per_subject: Option<u64>,
    /// Random seed.
    #[arg(long, help_heading = PATCHES, default_value_t = 0, value_name = "N")]
    pub(super) seed: u64,
    /// Epoch to draw.
    #[arg(long, help_heading = PATCHES, default_value_t = 0, value_name = "N")]
    pub(super) epoch: u64,
    /// Rank whose patches are drawn, counted from 0.
    #[arg(long, help_heading = PATCHES, default_value_t = 0, value_name = "N", requires = "world_size")]
    pub(super) rank: u64,
    /// Number of ranks that share the epoch.
    #[arg(long, help_heading = PATCHES, default_value_t = 1, value_name = "N")]
    pub(super) world_size: u64,
    /// How to share patches that the number of ranks does not divide.
    #[arg(long, help_heading = PATCHES, value_enum, default_value_t = UnevenName::Repeat, value_name = "HOW")]
    pub(super) uneven: UnevenName,
    /// Patches at the border of the volume.
    #[arg(long, help_heading = PATCHES, value_enum, default_value_t = BorderName::Drop, value_name = "HOW")]
    pub(super) border: BorderName,
    /// Value beyond the faces of the volume, a real one such as -1000 HU unless --values is stored.
    #[arg(
        long,
        help_heading = PATCHES,
        default_value_t = 0.0,
        value_name = "V",
        allow_hyphen_values = true
    )]
    pub(super) fill: f64,
    /// Probability of a flip along z, y, x: one for all three, or P,P,P.
    #[arg(long, help_heading = CHANGES, value_parser = probabilities, default_value = "0", value_name = "P")]
    pub(super) flip: Probabilities,
    /// Probability of a random order of the axes.
    #[arg(long, help_heading = CHANGES, value_parser = probability, default_value_t = 0.0, value_name = "P")]
    pub(super) permute: f64,
    /// Probability of a random rotation by multiples of 90 degrees.
    #[arg(long, help_heading = CHANGES, value_parser = probability, default_value_t = 0.0, value_name = "P")]
    pub(super) rotate: f64,
    /// Angles of random rotations about z, y, x in degrees: one for -N to N, a pair A,B, or three pairs for z, y, x.
    /// Patches are read through the map, by --interpolation.
    #[arg(long, help_heading = CHANGES, value_parser = angles, value_name = "N|A,B|...", allow_hyphen_values = true)]
    degrees: Option<Ranges>,
    /// Factors of random scales: one for 1-N to 1+N, a pair A,B, or three pairs for z, y, x; at 2, the content is twice as
    /// large.
    #[arg(long, help_heading = CHANGES, value_parser = factors, value_name = "N|A,B|...", allow_hyphen_values = true)]
    scales: Option<Ranges>,
    /// Random shears: of z by y, of z by x, of y by x.
    #[arg(long, help_heading = CHANGES, value_parser = angles, value_name = "N|A,B|...", allow_hyphen_values = true)]
    shears: Option<Ranges>,
    /// Random moves along z, y, x in mm.
    #[arg(long, help_heading = CHANGES, value_parser = angles, value_name = "N|A,B|...", allow_hyphen_values = true)]
    translation: Option<Ranges>,
    /// Largest displacement of the control points of random deformations, in mm.
    #[arg(long, help_heading = CHANGES, value_name = "MM")]
    max_displacement: Option<f64>,
    /// Control points of deformations: one number for all axes, or Z,Y,X.
    #[arg(long, help_heading = CHANGES, value_parser = size, default_value = "7", value_name = "N|Z,Y,X", requires = "max_displacement")]
    num_control_points: Shape,
    /// Voxels of a random part of each drawn patch, which is stored instead.
    #[arg(long, help_heading = CHANGES, value_parser = size, value_name = "SIZE")]
    pub(super) crop: Option<Shape>,
    /// Normalization of real values. Patches are then float32.
    ///
    /// - `none`
    /// - `zscore`: mean 0 and deviation 1 over each channel of the whole volume
    /// - `zscore:nonzero`: the same over the voxels that are not 0; the others stay 0
    /// - `window:LOW,HIGH`: clipped to this range and scaled to 0..1
    /// - `percentile:LOW,HIGH`: the same with percentiles of each channel, such as 0.5,99.5
    /// - `mean-std:MEAN,STD`: with a mean and a deviation that are given
    /// - `nnunet-ct:LOW,HIGH,MEAN,STD`: clipped, and then the same
    ///
    /// With semicolons in between, each channel has its own, as `mean-std:101,77;12,5`. After an `@`, for a single input, the
    /// path of a mask: only its voxels that are not 0 are measured, as `zscore@brain.nii.gz`.
    #[arg(long, help_heading = CHANGES, default_value_t = NormalizeSetting::default(), value_name = "HOW")]
    pub(super) normalize: NormalizeSetting,
    /// Read patches at the places of this list, as --locations writes it, in its order.
    #[arg(long, help_heading = PATCHES, value_name = "FILE.csv", conflicts_with_all = ["patch_size", "labels", "weights", "mix"])]
    pub(super) at: Option<PathBuf>,
    /// Label maps, one per input, of the same extent; their voxels may be larger, their axes in any order and
    /// direction. Centers are drawn by their first channel.
    #[arg(long, help_heading = MAPS, num_args = 1.., value_name = "FILE")]
    pub(super) labels: Vec<PathBuf>,
    /// Channel of the label maps, counted from 0.
    #[arg(long, help_heading = MAPS, default_value_t = 0, value_name = "N", requires = "labels")]
    pub(super) label_channel: u64,
    /// How often each label is the center of a patch, as 0:1,1:3 [default: every voxel except 0 is equally likely].
    #[arg(
        long,
        help_heading = MAPS,
        value_parser = label_weights,
        value_name = "LABEL:WEIGHT,...",
        requires = "labels",
        allow_hyphen_values = true
    )]
    pub(super) label_weights: Option<LabelWeights>,
    /// Weight maps, one per input, of the same extent: centers are drawn with a probability proportional to their weight.
    #[arg(long, help_heading = MAPS, num_args = 1.., value_name = "FILE")]
    pub(super) weights: Vec<PathBuf>,
    /// Channel of the weight maps, counted from 0.
    #[arg(long, help_heading = MAPS, default_value_t = 0, value_name = "N", requires = "weights")]
    pub(super) weight_channel: u64,
    /// Shares of patches that are drawn uniformly, by labels and by weights, as uniform:1,labels:2.
    #[arg(long, help_heading = MAPS, value_parser = mix, value_name = "SAMPLER:SHARE,...")]
    pub(super) mix: Option<Mix>,
    /// Files that keep what was found in the maps for the next run, one per map, those of the labels first.
    #[arg(long, help_heading = MAPS, num_args = 1.., value_name = "FILE")]
    pub(super) index: Vec<PathBuf>,
    /// What to do with an input whose map has no valid center.
    #[arg(long, help_heading = MAPS, value_enum, default_value_t = EmptyName::Error, value_name = "HOW")]
    pub(super) empty: EmptyName,
    /// Resample the inputs and their maps to the grid of this one of them. Maps are resampled by nearest neighbor, inputs
    /// as --interpolation says. Maps may then cover another extent, and are 0 beyond their faces.
    #[arg(long, help_heading = MAPS, value_enum, value_name = "WHICH", conflicts_with_all = ["spacing", "orientation", "like"])]
    pub(super) grid: Option<GridName>,
    #[command(flatten)]
    pub(super) on_grid: OnGrid,
    #[command(flatten)]
    pub(super) part: Part,
    #[command(flatten)]
    pub(super) together: Together,
    #[command(flatten)]
    pub(super) opening: Opening,
    /// Output of the patches: a .npy (n, c, z, y, x); a .zarr with c channels per patch, one chunk per channel; or a
    /// folder with one .nii per patch, at its place in the scan [default: patches are read and dropped].
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.npy|FILE.zarr|FOLDER/")]
    pub(super) out: Option<PathBuf>,
    /// Compress the patches of a folder: .nii.gz instead of .nii.
    #[arg(long, help_heading = OUTPUT, requires = "out")]
    pub(super) gzip: bool,
    /// CSV file to write, one line per patch: z0,y0,x0,z1,y1,x1, the end exclusive. Only for a single input.
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.csv")]
    pub(super) locations: Option<PathBuf>,
    /// File to write the JSON object of --json to.
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.json")]
    pub(super) stats: Option<PathBuf>,
    /// Picture to write: the largest values along each axis, with a dot at the center of each patch. Only for a single
    /// input.
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.png")]
    pub(super) plot: Option<PathBuf>,
    /// Replace existing outputs, if they are of the same kind.
    #[arg(long, help_heading = OUTPUT)]
    pub(super) overwrite: bool,
    /// Report the threads, the memory of the whole process and the disk space that sampling takes, and write nothing.
    #[arg(long, help_heading = OUTPUT)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) memory: Memory,
    #[command(flatten)]
    pub(super) common: Common,
}

impl SampleArgs {
    /// Checks what the settings ask of each other.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let inputs = self.sources.len();
        for (name, maps) in [("--labels", &self.labels), ("--weights", &self.weights)] {
            anyhow::ensure!(
                maps.is_empty() || maps.len() == inputs,
                "{name} has {} files for {inputs} inputs: give one for each, in their order",
                maps.len()
            );
        }
        let maps = self.labels.len() + self.weights.len();
        anyhow::ensure!(
            self.index.is_empty() || self.index.len() == maps,
            "--index has {} files for {maps} maps: give one for each, those of the labels first",
            self.index.len()
        );
        for (name, given) in [
            ("--locations", self.locations.is_some()),
            ("--plot", self.plot.is_some()),
        ] {
            anyhow::ensure!(
                !given || inputs == 1,
                "{name} is for places of one volume, but there are {inputs} inputs"
            );
        }
        if let (Some(crop), Some(patch)) = (self.crop, self.patch_size) {
            anyhow::ensure!(
                (0..3).all(|a| crop[a] <= patch[a]),
                "--crop {crop:?} is larger than --patch-size {patch:?} (z, y, x)"
            );
        }
        for (name, grid, maps) in [
            ("labels", GridName::Labels, &self.labels),
            ("weights", GridName::Weights, &self.weights),
        ] {
            anyhow::ensure!(
                self.grid != Some(grid) || !maps.is_empty(),
                "--grid {name} needs --{name}"
            );
        }
        let mix = self.ways()?;
        for (way, name, given) in [
            (SamplerKind::Labels, "labels", !self.labels.is_empty()),
            (SamplerKind::Weights, "weights", !self.weights.is_empty()),
        ] {
            let wanted = mix.iter().any(|&(own, _)| own == way);
            anyhow::ensure!(
                wanted == given,
                "--mix and --{name} do not fit: {}",
                if given {
                    format!("the mix does not say how many patches are drawn by {name}")
                } else {
                    format!("the mix wants {name}, but no file of them is given")
                }
            );
        }
        Ok(())
    }

    /// The ways in which patches are drawn, and their shares.
    pub(super) fn ways(&self) -> anyhow::Result<Vec<(SamplerKind, f64)>> {
        if let Some(Mix(ways)) = &self.mix {
            return Ok(ways.clone());
        }
        match (self.labels.is_empty(), self.weights.is_empty()) {
            (true, true) => Ok(vec![(SamplerKind::Uniform, 1.0)]),
            (false, true) => Ok(vec![(SamplerKind::Labels, 1.0)]),
            (true, false) => Ok(vec![(SamplerKind::Weights, 1.0)]),
            (false, false) => anyhow::bail!(
                "there are labels and weights: say how many patches are drawn by each, as --mix labels:1,weights:1"
            ),
        }
    }

    /// The grid that the `n`th input is brought to.
    pub(super) fn on_grid_of(&self, n: usize) -> OnGrid {
        let like = match self.grid {
            Some(GridName::Labels) => self.labels.get(n),
            Some(GridName::Weights) => self.weights.get(n),
            Some(GridName::Source) | None => None,
        };
        like.map_or_else(|| self.on_grid.clone(), |like| self.on_grid.with_like(like))
    }

    /// The random changes of patches.
    pub(super) fn augment(&self) -> Augmentation {
        let augment = Augmentation::default()
            .with_flip(self.flip.0)
            .with_permute(self.permute)
            .with_rotate(self.rotate);
        let augment = match self.crop {
            Some(crop) => augment.with_crop(crop),
            None => augment,
        };
        let all = [self.degrees, self.scales, self.shears, self.translation];
        let still =
            |ranges: Option<Ranges>, value| ranges.map_or([[value; 2]; 3], |Ranges(all)| all);
        let affine = RandomAffine::default()
            .with_degrees(still(self.degrees, 0.0))
            .with_scales(still(self.scales, 1.0))
            .with_shears(still(self.shears, 0.0))
            .with_translation(still(self.translation, 0.0));
        let augment = if all.iter().any(Option::is_some) {
            augment.with_affine(affine)
        } else {
            augment
        };
        match self.max_displacement {
            Some(largest) => augment.with_elastic(
                RandomElastic::default()
                    .with_max_displacement([largest; 3])
                    .with_num_control_points(self.num_control_points),
            ),
            None => augment,
        }
    }

    /// All outputs, with what they are called in messages.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [
            ("patches", &self.out),
            ("locations", &self.locations),
            ("statistics", &self.stats),
            ("the picture", &self.plot),
        ]
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)))
    }
}

/// A way to draw patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SamplerKind {
    Uniform,
    Labels,
    Weights,
}

/// Ways and their shares.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mix(Vec<(SamplerKind, f64)>);

/// One of the volumes of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GridName {
    /// The input itself.
    Source,
    /// Its label map.
    Labels,
    /// Its weight map.
    Weights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BorderName {
    /// Draw only patches that fit around their center.
    Drop,
    /// Draw any center, and move the patch inside.
    Shift,
    /// Draw any center, and fill the patch beyond the edge.
    Pad,
}

impl From<BorderName> for Border {
    fn from(name: BorderName) -> Self {
        match name {
            BorderName::Drop => Self::Drop,
            BorderName::Shift => Self::Shift,
            BorderName::Pad => Self::Pad,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum UnevenName {
    /// Repeat the first patches at the end, so that all ranks draw equally many.
    Repeat,
    /// Leave out the last patches, so that all ranks draw equally many.
    Drop,
    /// Draw each patch once: some ranks draw one more than others.
    Exact,
}

impl From<UnevenName> for Uneven {
    fn from(name: UnevenName) -> Self {
        match name {
            UnevenName::Repeat => Self::Repeat,
            UnevenName::Drop => Self::Drop,
            UnevenName::Exact => Self::Exact,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum EmptyName {
    /// Fail.
    Error,
    /// Leave the input out.
    Skip,
    /// Draw its patches uniformly.
    Uniform,
}

impl From<EmptyName> for OnEmpty {
    fn from(name: EmptyName) -> Self {
        match name {
            EmptyName::Error => Self::Error,
            EmptyName::Skip => Self::Skip,
            EmptyName::Uniform => Self::Uniform,
        }
    }
}

/// Probabilities along z, y, x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Probabilities([f64; 3]);

/// Parses a number from 0 to 1.
fn probability(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok();
    number
        .filter(|number| (0.0..=1.0).contains(number))
        .ok_or_else(|| "give a probability, from 0 to 1".to_owned())
}

/// Parses `0.5` or `0,0.5,0.5`.
fn probabilities(text: &str) -> Result<Probabilities, String> {
    let numbers: Result<Vec<f64>, String> = text.split(',').map(probability).collect();
    match numbers?[..] {
        [one] => Ok(Probabilities([one; 3])),
        [z, y, x] => Ok(Probabilities([z, y, x])),
        _ => Err("give one probability, or three as z,y,x".to_owned()),
    }
}

/// The ranges of random numbers for z, y, x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ranges([[f64; 2]; 3]);

/// Parses `10`, `-10,20` or `-10,20,0,0,0,0`, around `middle`.
fn ranges_around(text: &str, middle: f64) -> Result<Ranges, String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|n| n.trim().parse::<f64>()).collect();
    let all = match numbers.as_deref() {
        Ok(&[one]) => [[middle - one, middle + one]; 3],
        Ok(&[low, high]) => [[low, high]; 3],
        Ok(&[z, dz, y, dy, x, dx]) => [[z, dz], [y, dy], [x, dx]],
        _ => return Err("give one number, a pair, or three pairs for z, y, x".to_owned()),
    };
    let is_range = |[low, high]: &[f64; 2]| low <= high && (high - low).is_finite();
    if all.iter().all(is_range) {
        return Ok(Ranges(all));
    }
    Err("give the lower number of a pair first".to_owned())
}

fn angles(text: &str) -> Result<Ranges, String> {
    ranges_around(text, 0.0)
}

fn factors(text: &str) -> Result<Ranges, String> {
    match ranges_around(text, 1.0)? {
        Ranges(all) if all.iter().all(|[low, _]| *low > 0.0) => Ok(Ranges(all)),
        _ => Err("factors are above 0".to_owned()),
    }
}

/// Parses `0:1,1:3`.
fn label_weights(text: &str) -> Result<LabelWeights, String> {
    let pair = |pair: &str| {
        let (label, weight) = pair.split_once(':')?;
        Some((class(label.trim())?, weight.trim().parse().ok()?))
    };
    let pairs: Option<Vec<(LabelValue, f64)>> = text.split(',').map(pair).collect();
    let pairs = pairs.ok_or("give labels and their weights, as 0:1,1:3")?;
    LabelWeights::new(pairs).map_err(|error| error.to_string())
}

/// Parses the value of a label: a whole number of up to 64 bits, or any other.
fn class(text: &str) -> Option<LabelValue> {
    if let Ok(value) = text.parse::<i64>() {
        return Some(value.into());
    }
    if let Ok(value) = text.parse::<u64>() {
        return Some(value.into());
    }
    LabelValue::real(text.parse().ok()?)
}

/// Parses `uniform:1,labels:2`.
fn mix(text: &str) -> Result<Mix, String> {
    let usage = "give ways and their shares, as uniform:1,labels:2,weights:1";
    let mut ways: Vec<(SamplerKind, f64)> = Vec::new();
    for pair in text.split(',') {
        let (name, share) = pair.split_once(':').ok_or(usage)?;
        let way = match name.trim() {
            "uniform" => SamplerKind::Uniform,
            "labels" => SamplerKind::Labels,
            "weights" => SamplerKind::Weights,
            _ => return Err(usage.to_owned()),
        };
        let share: f64 = share.trim().parse().map_err(|_| usage)?;
        if !share.is_finite() || share <= 0.0 {
            return Err(format!("a share of {share} is not larger than 0"));
        }
        if ways.iter().any(|&(own, _)| own == way) {
            return Err(format!("{} is given twice", name.trim()));
        }
        ways.push((way, share));
    }
    Ok(Mix(ways))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_weights_are_pairs_of_a_label_and_a_number() {
        for right in [
            "0:1,1:3",
            " 1 : 0.5 ",
            "-3:1,18446744073709551615:2",
            "0.5:1",
        ] {
            assert!(label_weights(right).is_ok(), "{right}");
        }
        for wrong in [
            "", "1", "1:", ":1", "1:x", "x:1", "1:-1", "1:nan", "1:0", "1:1,1:2", "nan:1", "1:1,",
        ] {
            assert!(label_weights(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn probabilities_are_one_or_three_from_0_to_1() {
        assert_eq!(probabilities("0.5"), Ok(Probabilities([0.5; 3])));
        assert_eq!(
            probabilities("0, 0.25,1"),
            Ok(Probabilities([0.0, 0.25, 1.0]))
        );
        for wrong in ["", "x", "-0.1", "1.1", "nan", "0,1", "0,0,0,0", "inf"] {
            assert!(probabilities(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mix_names_each_way_once() {
        assert_eq!(
            mix("uniform:1, labels:2.5"),
            Ok(Mix(vec![
                (SamplerKind::Uniform, 1.0),
                (SamplerKind::Labels, 2.5)
            ]))
        );
        for wrong in [
            "",
            "uniform",
            "uniform:0",
            "uniform:-1",
            "uniform:inf",
            "label:1",
            "labels:1,labels:2",
        ] {
            assert!(mix(wrong).is_err(), "{wrong}");
        }
    }
}
