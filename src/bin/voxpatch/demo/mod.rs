//! `voxpatch demo`: a large CT made, sampled, predicted, checked and drawn in little memory.
//!
//! The CT is a formula, so nothing has to be downloaded; every stage is the same code that
//! the other commands run. The identity prediction must give the CT back.

mod anatomy;
mod check;
mod phantom;
mod shape;
mod stage;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use voxpatch::training::{Dataset, Image, LoaderOptions, Subject, UniformPatches};
use voxpatch::volume::{CreateOptions, create, open};
use voxpatch::{
    ConvertOptions, Error, InferenceOptions, OutputTarget, Predictor, Shape, StorageOptions,
    Volume, builtin_model,
};

use self::phantom::Phantom;
use self::stage::{Stage, Work};
use crate::common::{Common, Memory};
use crate::parse::size;
use crate::preview::Scene;
use crate::progress::{Task, Unit, continues};
use crate::report::{self, Report, known_bytes, patch_bytes, print};
use crate::sample::{Budget, MOST_AHEAD, Needs, chunk_bytes};
use crate::stop;
use crate::storage::Storage;

/// Patches of the training epoch, and their voxels.
const DRAWS: u64 = 256;
const DRAWN: Shape = [96; 3];

/// Voxels of a predicted patch; half of them overlap.
const PATCH: Shape = [128; 3];

/// The largest difference between prediction and CT, as a part of the CT's value.
const TOLERANCE: f64 = 1e-6;

/// Progress in voxels of the CT.
const VOXELS: Unit = Unit::Voxels(size_of::<f32>());

/// What may be taken beyond the memory that was given: code, threads, the allocator's slack,
/// and, in all, pages of mapped files.
const BEYOND: (u64, u64) = (44 << 20, 144 << 20);

const EXAMPLES: &str = "\
Examples:
  voxpatch demo
  voxpatch demo --size 192,256,256 --keep demo";

/// Make a large chest CT, sample it and predict it, and show that memory stays small.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// Voxels of the CT.
    #[arg(long, help_heading = "Demo", value_parser = size, default_value = "1069,512,512", value_name = "SIZE")]
    size: Shape,
    /// Folder that keeps the volumes and the picture [default: they are removed at the end].
    #[arg(long, help_heading = "Demo", value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    common: Common,
}

/// Runs all stages in a folder.
pub(crate) fn run(settings: &DemoArgs) -> anyhow::Result<()> {
    stop::stop_gracefully();
    let possible = 1..=1_u64 << 40;
    if let Some(length) = settings.size.iter().find(|&n| !possible.contains(n)) {
        anyhow::bail!(
            "a CT of {length} voxels along an axis is not possible: give 1 to {}",
            possible.end()
        );
    }
    let temporary;
    let folder = if let Some(folder) = &settings.keep {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        folder.as_path()
    } else {
        temporary = tempfile::Builder::new()
            .prefix("voxpatch-demo-")
            .tempdir()
            .context("cannot create a temporary folder")?;
        temporary.path()
    };
    let demo = Demo {
        size: settings.size,
        memory: settings.memory.memory,
        threads: settings.common.threads(),
        folder,
        common: &settings.common,
    };
    demo.run(settings.keep.is_some())
}

struct Demo<'a> {
    size: Shape,
    memory: u64,
    threads: usize,
    folder: &'a Path,
    common: &'a Common,
}

impl Demo<'_> {
    fn run(&self, kept: bool) -> anyhow::Result<()> {
        let (input, output, picture) = (
            self.folder.join("ct.zarr"),
            self.folder.join("identity.zarr"),
            self.folder.join("preview.png"),
        );
        let mut report = Report::default();
        let mut stages = Vec::new();
        let size = self.size.map(|n| n.to_string()).join(" x ");
        self.say(&format!(
            "a chest CT of {size} voxels of float32, {} of memory, {} threads\n\n{}",
            report::bytes(self.memory),
            self.threads,
            Stage::head()
        ))?;

        let stage = Stage::run("generate", || self.generate(&input))?;
        let volume = self.done(&mut stages, stage)?;
        let stage = Stage::run("sample", || self.sample(&volume))?;
        self.done(&mut stages, stage)?;
        let stage = Stage::run("predict", || self.predict(&input, &output))?;
        let prediction = self.done(&mut stages, stage)?;
        let stage = Stage::run("check", || {
            let width = self.width(&*prediction)?;
            check::compare(&*volume, &*prediction, width, self.task("checking", VOXELS))
        })?;
        let difference = self.done(&mut stages, stage)?;
        let stage = Stage::run("preview", || preview(&prediction, &picture))?;
        self.done(&mut stages, stage)?;

        let (decoded, stored) = (volume.layout().decoded_bytes()?, volume.stored_bytes()?);
        report.only_json("shape", json!(self.size));
        report.only_json("spacing", json!(volume.layout().geometry.spacing));
        report.only_json("threads", self.threads);
        report.only_json("memory_bytes", self.memory);
        report.only_json("stages", stages.iter().map(Stage::json).collect::<Vec<_>>());
        report.add("decoded_bytes", decoded, report::bytes(decoded));
        report.add("stored_bytes", stored, report::bytes(stored));
        report.add(
            "max_relative_error",
            difference,
            format!(
                "{difference:.1e} between the prediction and the CT (allowed: {TOLERANCE:.0e})"
            ),
        );
        let ceilings = self.ceilings(&stages, &mut report);
        if kept {
            for (key, path) in [
                ("ct", &input),
                ("prediction", &output),
                ("preview", &picture),
            ] {
                report.plain(key, path.display().to_string());
            }
        }
        self.say("\n")?;
        report.print(self.common.printing)?;
        if difference > TOLERANCE {
            anyhow::bail!(
                "the identity prediction differs from the CT by {difference:.1e} of its values, allowed is {TOLERANCE:.0e}"
            );
        }
        ceilings
    }

    fn task(&self, name: &'static str, unit: Unit) -> Task {
        self.common.task(name, unit)
    }

    /// Text for people.
    fn say(&self, text: &str) -> anyhow::Result<()> {
        if self.common.printing.json {
            Ok(())
        } else {
            print(text)
        }
    }

    fn done<T>(&self, stages: &mut Vec<Stage>, (stage, result): (Stage, T)) -> anyhow::Result<T> {
        self.say(&stage.line())?;
        stages.push(stage);
        Ok(result)
    }

    /// How many write chunks may be in memory at once, in at most as many threads.
    fn width(&self, volume: &dyn Volume) -> anyhow::Result<usize> {
        let layout = volume.layout();
        let [_, chunk @ ..] = layout.write_chunk.context("a Zarr array has chunks")?;
        // Decoded and encoded, once for each of two volumes.
        let bytes = 4 * patch_bytes(1, chunk, layout.dtype)?;
        let fit = usize::try_from(self.memory / bytes.max(1)).unwrap_or(usize::MAX);
        Ok(fit.clamp(1, self.threads))
    }

    fn generate(&self, path: &Path) -> anyhow::Result<(Work, Arc<dyn Volume>)> {
        let phantom: Arc<dyn Volume> = Arc::new(Phantom::new(self.size));
        let target = create(path, phantom.layout(), &CreateOptions::default())?;
        let shard = target
            .layout()
            .write_chunk
            .context("a Zarr array has chunks")?;
        let bytes = 4 * patch_bytes(1, [shard[1], shard[2], shard[3]], phantom.layout().dtype)?;
        let fit = usize::try_from(self.memory / bytes.max(1)).unwrap_or(usize::MAX);
        let options = ConvertOptions {
            threads: fit.clamp(1, self.threads),
            memory: self.memory,
            ..ConvertOptions::default()
        };
        self.task("making the CT", VOXELS)
            .run(|progress| voxpatch::convert(&phantom, target, &options, progress))?;
        let work = Work {
            bytes: phantom.layout().decoded_bytes()?,
            ..Work::default()
        };
        Ok((work, open(path)?))
    }

    fn sample(&self, volume: &Arc<dyn Volume>) -> anyhow::Result<(Work, ())> {
        let layout = volume.layout();
        let patch = std::array::from_fn(|a| DRAWN[a].min(self.size[a]));
        let bytes = patch_bytes(layout.channels, patch, layout.dtype)?;
        let needs = Needs {
            patch: bytes,
            held: bytes,
            chunk: chunk_bytes(layout, false),
            ..Needs::default()
        };
        let budget = Budget::new(self.memory, self.threads, 1, &needs)?;
        let image = Image::new("ct", Arc::clone(volume));
        let subject = Subject::builder("ct").with_images([image]).build()?;
        let options = LoaderOptions::default()
            .with_threads(budget.threads)
            .with_max_length(MOST_AHEAD)
            .with_memory(budget.buffer);
        let dataset =
            Dataset::new(vec![subject], UniformPatches::new(patch)).samples_per_subject(DRAWS);
        let mut loader = dataset.epoch(0).with_options(options).samples()?;
        self.task("sampling", Unit::Patches).run(|progress| {
            for (done, sample) in (1..).zip(&mut loader) {
                sample?;
                if !continues(progress(done, DRAWS)) {
                    return Err(Error::Interrupted);
                }
            }
            Ok(())
        })?;
        let work = Work {
            bytes: bytes * DRAWS,
            patches: Some(DRAWS),
            chunks_read: loader.stats().chunks,
        };
        Ok((work, ()))
    }

    fn predict(&self, input: &Path, output: &Path) -> anyhow::Result<(Work, Arc<dyn Volume>)> {
        // Opened anew, so that it counts from 0.
        let volume = open(input)?;
        let patch = std::array::from_fn(|a| PATCH[a].min(self.size[a]));
        let bytes = patch_bytes(1, patch, volume.layout().dtype)?;
        let options = InferenceOptions::new(patch)
            .with_memory(self.memory)
            .with_threads(self.threads);
        let target = Storage::default().target(OutputTarget::new(output), &StorageOptions::new());
        let predictor = Predictor::new(volume, builtin_model("identity")?, options);
        let plan = predictor.plan(&[target])?;
        let done = self
            .task("predicting", Unit::Patches)
            .run(|progress| plan.run(progress))?;
        let work = Work {
            bytes: bytes * done.patches,
            patches: Some(done.patches),
            chunks_read: done.reads.chunks,
        };
        Ok((work, open(output)?))
    }

    /// Tells the peaks, and whether they stayed below what was promised.
    fn ceilings(&self, stages: &[Stage], report: &mut Report) -> anyhow::Result<()> {
        let mut kept = Ok(());
        let peaks = |of: fn(&Stage) -> Option<u64>| stages.iter().filter_map(of).max();
        for (name, key, peak, beyond) in [
            (
                "anonymous memory",
                "peak_anonymous_bytes",
                peaks(|s| s.peak.anonymous),
                BEYOND.0,
            ),
            (
                "resident memory",
                "peak_resident_bytes",
                peaks(|s| s.peak.resident),
                BEYOND.1,
            ),
        ] {
            let ceiling = self.memory.saturating_add(beyond);
            let over = peak.is_some_and(|peak| peak >= ceiling);
            let verdict = if over { "above" } else { "below" };
            let limit = report::bytes(ceiling);
            let text = known_bytes(peak);
            if over && kept.is_ok() {
                kept = Err(anyhow::anyhow!(
                    "{name} peaked at {text}, above the ceiling of {limit}"
                ));
            }
            report.add(
                key,
                peak,
                format!("{text}, {verdict} the ceiling of {limit}"),
            );
        }
        kept
    }
}

fn preview(volume: &Arc<dyn Volume>, path: &Path) -> anyhow::Result<(Work, ())> {
    let before = volume.read_stats().chunks;
    let scene = Scene {
        volume: Arc::clone(volume),
        overlay: None,
        window: None,
        at: None,
    };
    let drawn = scene.draw()?;
    drawn.save(path, false)?;
    let [z, y, x] = volume.layout().shape;
    let work = Work {
        bytes: (z * y + z * x + y * x) * volume.layout().dtype.size() as u64,
        patches: None,
        chunks_read: volume.read_stats().chunks - before,
    };
    Ok((work, ()))
}
