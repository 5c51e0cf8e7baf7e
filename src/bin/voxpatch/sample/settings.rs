//! The arguments of `voxpatch sample`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::Shape;
use voxpatch::sampler::{Border, LabelValue, LabelWeights, OnEmpty};
use voxpatch::training::Uneven;

use crate::args::{Common, Memory, size};
use crate::opening::{Chosen, Together};

/// Draw training patches, as the loader does, and store them, or only read them.
///
/// The same seed and epoch give the same patches, whatever the number of threads and the
/// memory. Patches of one input come in the order in which they were drawn; those of several
/// are mixed with each other, as in a training epoch.
#[derive(Debug, ClapArgs)]
pub(crate) struct SampleArgs {
    /// The volumes.
    #[arg(value_name = "SRC", required = true)]
    pub(super) sources: Vec<PathBuf>,
    /// Voxels of a patch.
    #[arg(long, value_parser = size, value_name = "SIZE", required_unless_present = "at")]
    pub(super) patch_size: Option<Shape>,
    /// Patches of each input, of all ranks together [default with --at: all places].
    #[arg(long, value_name = "N", required_unless_present = "at")]
    pub(super) samples_per_subject: Option<u64>,
    /// Which of all random sequences.
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub(super) seed: u64,
    /// Which epoch of the sequence.
    #[arg(long, default_value_t = 0, value_name = "E")]
    pub(super) epoch: u64,
    /// Draw the part of this rank, counted from 0.
    #[arg(long, default_value_t = 0, value_name = "R", requires = "world_size")]
    pub(super) rank: u64,
    /// How many ranks share the epoch.
    #[arg(long, default_value_t = 1, value_name = "W")]
    pub(super) world_size: u64,
    /// How to share patches that the number of ranks does not divide.
    #[arg(long, value_enum, default_value_t = UnevenName::Repeat)]
    pub(super) uneven: UnevenName,
    /// Label maps, one for each input, on its grid or a coarser one of its extent, their axes stored in any order
    /// and direction: centres are drawn by their first channel.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(super) labels: Vec<PathBuf>,
    /// Draw by this channel of the label maps, counted from 0.
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        requires = "labels",
        hide_default_value = true
    )]
    pub(super) label_channel: u64,
    /// How often each label is the center of a patch, as 0:1,1:3 [default: every voxel except 0 is equally likely].
    #[arg(long, value_parser = label_weights, value_name = "LABEL:WEIGHT,...", requires = "labels", allow_hyphen_values = true)]
    pub(super) label_weights: Option<LabelWeights>,
    /// Weight maps, one for each input, on its grid or a coarser one of its extent: centres are as
    /// likely as their weight.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(super) weights: Vec<PathBuf>,
    /// Draw by this channel of the weight maps, counted from 0.
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        requires = "weights",
        hide_default_value = true
    )]
    pub(super) weight_channel: u64,
    /// How many of all patches are drawn uniformly, by labels and by weights, as uniform:1,labels:2.
    #[arg(long, value_parser = mix, value_name = "SAMPLER:SHARE,...")]
    pub(super) mix: Option<Mix>,
    /// Where what was found in the maps is kept for the next run, one file for each map, those of
    /// the labels first.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(super) index: Vec<PathBuf>,
    /// What becomes of an input whose map leaves no centre to draw.
    #[arg(long, value_enum, default_value_t = EmptyName::Error)]
    pub(super) empty: EmptyName,
    /// What happens at the volume's border.
    #[arg(long, value_enum, default_value_t = BorderName::Drop)]
    pub(super) border: BorderName,
    /// The value beyond the volume's faces, a real one such as -1000 HU unless --values is stored.
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "V",
        allow_hyphen_values = true
    )]
    pub(super) fill: f64,
    /// Patches at the places of this list, as --locations writes it, in its order.
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["patch_size", "labels", "weights", "mix"])]
    pub(super) at: Option<PathBuf>,
    /// Where patches go: a .npy (n, c, z, y, x); a .zarr with c channels for each patch, a chunk
    /// for each channel; or a folder with a .nii for each patch, in its place in the scan.
    /// If not given, they are read and dropped.
    #[arg(long, value_name = "FILE.npy|FILE.zarr|FOLDER/")]
    pub(super) out: Option<PathBuf>,
    /// Compress the patches of a folder: .nii.gz instead of .nii.
    #[arg(long, requires = "out")]
    pub(super) gzip: bool,
    /// A CSV file to write, one line for each patch: z0,y0,x0,z1,y1,x1, the end exclusive; for one
    /// input only.
    #[arg(long, value_name = "FILE.csv")]
    pub(super) locations: Option<PathBuf>,
    /// A file to write what `--json` prints.
    #[arg(long, value_name = "FILE.json")]
    pub(super) stats: Option<PathBuf>,
    /// A picture to write: the largest values along each axis, with a dot at each patch's centre;
    /// for one input only.
    #[arg(long, value_name = "FILE.png")]
    pub(super) plot: Option<PathBuf>,
    /// Report what sampling takes (threads, memory of the whole process, disk space) and write nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) chosen: Chosen,
    #[command(flatten)]
    pub(super) together: Together,
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) memory: Memory,
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
                "{name} tells places of one volume, but there are {inputs} inputs"
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BorderName {
    /// Only patches that fit around their centre.
    Drop,
    /// Any centre; the patch is moved inside.
    Shift,
    /// Any centre; the patch hangs over the edge and is filled up.
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
    /// It is an error.
    Error,
    /// The input is left out.
    Skip,
    /// Its patches are drawn from anywhere.
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

/// `0:1,1:3`.
fn label_weights(text: &str) -> Result<LabelWeights, String> {
    let pair = |pair: &str| {
        let (label, weight) = pair.split_once(':')?;
        Some((class(label.trim())?, weight.trim().parse().ok()?))
    };
    let pairs: Option<Vec<(LabelValue, f64)>> = text.split(',').map(pair).collect();
    let pairs = pairs.ok_or("give labels and their weights, as 0:1,1:3")?;
    LabelWeights::new(pairs).map_err(|error| error.to_string())
}

/// A label's value: a whole number of up to 64 bits, or any other.
fn class(text: &str) -> Option<LabelValue> {
    if let Ok(value) = text.parse::<i64>() {
        return Some(value.into());
    }
    if let Ok(value) = text.parse::<u64>() {
        return Some(value.into());
    }
    LabelValue::real(text.parse().ok()?)
}

/// `uniform:1,labels:2`.
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
