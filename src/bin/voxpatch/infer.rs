//! `voxpatch infer`: a model over every patch of a volume, blended into a new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use voxpatch::inference::{
    Ensemble, FlipTta, InferencePlan, InferenceStats, Model, OutputPlace, PatchMask, SelectOutput,
};
use voxpatch::meter::{Meter, Peak};
use voxpatch::normalize::NormalizeSetting;
use voxpatch::volume::{DiskSpace, Durability, OutputPart, check_output};
use voxpatch::{Error, Layout, OutputTarget, Predictor, Reduce, Shape, Volume, builtin_model};

use crate::blending::Blending;
use crate::common::{Common, Memory};
use crate::input::{OnGrid, Opening, Part, Together};
use crate::parse::{part, size};
use crate::progress::Unit;
use crate::report::{self, Report, add_rates, known_bytes, patch_bytes};
use crate::stop;
use crate::storage::{OutputType, Storage};

const EXAMPLES: &str = "\
Examples:
  voxpatch infer scan.zarr tissue.zarr --patch-size 128 --model threshold:-500,200 --reduce argmax
  voxpatch infer scan.zarr organs.zarr --patch-size 128 --overlap 64 --model unet.onnx --resume
  voxpatch infer scan.nii.gz organs.nii.gz --patch-size 128 --spacing 1.5 --orientation RAS --model unet.onnx --reduce argmax
  voxpatch infer scan.zarr out.zarr --patch-size 96 --mask body.nii.gz --fill -1024 --dry-run";

/// Run a model over overlapping patches and blend its predictions into a new volume.
///
/// With --spacing, --orientation or --like, the model gets the resampled volume. What is blended is resampled to the grid
/// of SRC before it is reduced, unless --output-grid is model.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Infer {
    /// The volume.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The output.
    #[arg(value_name = "DST")]
    target: PathBuf,
    #[command(flatten)]
    network: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    blending: Blending,
    #[command(flatten)]
    on_grid: OnGrid,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    together: Together,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    kind: OutputType,
    #[command(flatten)]
    grid: GridArgs,
    #[command(flatten)]
    storage: Storage,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    common: Common,
}

/// The model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// The model: a file NAME.onnx, identity, gaussian:SIGMA, or threshold:VALUE[,VALUE...]. If given several times, the
    /// mean of all predictions is used.
    #[arg(long, default_value = "identity", value_name = "MODEL")]
    model: Vec<String>,
    /// Output of the model to use [default: the first].
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Voxels that the output of a NAME.onnx lacks at each face of a patch, as after unpadded convolutions; needed if
    /// its size could also mean larger voxels.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    halo: Option<Shape>,
    /// Input voxels per output voxel of a NAME.onnx along each axis (2: half the size); needed if its size could also
    /// mean a halo.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    scale: Option<u64>,
    /// Program that runs a NAME.onnx.
    #[arg(long, value_enum, default_value_t = RuntimeName::Tract)]
    runtime: RuntimeName,
    /// Normalization of real values before the model.
    ///
    /// - `none`
    /// - `zscore`: mean 0 and deviation 1 over each channel of the whole volume
    /// - `zscore:nonzero`: the same over the voxels that are not 0; the others stay 0
    /// - `window:LOW,HIGH`: clipped to this range and scaled to 0..1
    /// - `percentile:LOW,HIGH`: the same with percentiles of each channel, such as 0.5,99.5
    /// - `mean-std:MEAN,STD`: with a mean and a deviation that are given
    /// - `nnunet-ct:LOW,HIGH,MEAN,STD`: clipped, and then the same
    ///
    /// With semicolons in between, each channel has its own, as `mean-std:101,77;12,5`. After an `@`, the path of a mask:
    /// only its voxels that are not 0 are measured, as `zscore@brain.nii.gz`.
    #[arg(long, default_value_t = NormalizeSetting::default(), value_name = "HOW")]
    normalize: NormalizeSetting,
    /// Also predict mirror images of each patch, and use the mean.
    #[arg(long, value_enum, value_name = "HOW")]
    tta: Option<TtaName>,
    /// Patches that the model gets at once.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096), default_value_t = 1, value_name = "N")]
    batch_size: u16,
}

/// The size of patches.
#[derive(Debug, Args)]
#[command(next_help_heading = "Patches and blending")]
struct PatchArgs {
    /// Voxels of a patch.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    patch_size: Shape,
    /// Voxels that neighboring patches share [default: half the patch].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    overlap: Option<Shape>,
}

/// The grid of the output.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct GridArgs {
    /// Grid of the output, with --spacing, --orientation or --like [default: source, or model with --box].
    #[arg(long, value_enum, value_name = "WHICH")]
    output_grid: Option<OutputGridName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputGridName {
    /// The grid of the resampled volume, which the model gets.
    Model,
    /// The grid of SRC.
    Source,
}

/// Runs that are interrupted or split.
#[derive(Debug, Args)]
#[command(next_help_heading = "Long runs")]
struct RunArgs {
    /// Report the patches, the memory of the whole process and the time that the run takes, and write nothing. One
    /// batch is predicted to measure the model.
    #[arg(long)]
    dry_run: bool,
    /// Resume an interrupted run of the same command, and keep the partial output if this one is interrupted. Only for
    /// Zarr.
    #[arg(long)]
    resume: bool,
    /// Write only part I of N of the output (I from 0), on any machine that sees the same folder or store. The last
    /// part to finish completes the output. Implies --resume.
    #[arg(long, value_parser = part, value_name = "I/N")]
    part: Option<OutputPart>,
    /// What finished chunks survive, with --resume or --part.
    #[arg(long, value_enum, default_value_t = DurabilityName::None, value_name = "WHAT")]
    durability: DurabilityName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DurabilityName {
    /// A killed process.
    None,
    /// A killed process and a power failure.
    Chunk,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::None => Self::None,
            DurabilityName::Chunk => Self::Chunk,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RuntimeName {
    /// The one that is compiled in (feature onnx).
    Tract,
    /// ONNX Runtime; its library is where `ORT_DYLIB_PATH` says.
    #[cfg(feature = "ort")]
    Ort,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TtaName {
    /// All eight combinations of mirroring along z, y and x.
    Flips,
}

impl Infer {
    /// Checks that tasks can have these settings.
    pub(crate) fn check_for_tasks(&self) -> anyhow::Result<()> {
        let RunArgs {
            dry_run,
            resume,
            part,
            durability: _,
        } = &self.run;
        anyhow::ensure!(
            !dry_run && !resume && part.is_none(),
            "a plan has no --dry-run, --resume and --part: its tasks can be resumed anyway"
        );
        Ok(())
    }

    /// Returns the names of the options of object stores.
    pub(crate) fn storage_option_names(&self) -> impl Iterator<Item = &str> {
        self.opening.storage_option_names()
    }

    /// Returns the option that chooses the shards of a planned output, if it is not given.
    pub(crate) fn pinned_shard(&self, output: &Layout) -> Vec<String> {
        if self.storage.has_shard() {
            return Vec::new();
        }
        let [_, shard @ ..] = output.write_chunk.unwrap_or([1; 4]);
        let text = if output.write_chunk == output.read_chunk {
            "none".to_owned()
        } else {
            shard.map(|n| n.to_string()).join(",")
        };
        vec!["--shard".to_owned(), text]
    }

    /// Chooses the part to write.
    pub(crate) const fn set_part(&mut self, part: OutputPart) {
        self.run.part = Some(part);
    }

    /// Replaces the common options by those of another command, which has all of them but the threads.
    pub(crate) fn set_common(&mut self, common: &Common) {
        self.common = common.or_threads_of(&self.common);
    }

    /// Sets the normalization of a plan, and measures it if need be.
    pub(crate) fn normalized(
        &self,
        plan: InferencePlan,
        common: &Common,
    ) -> voxpatch::Result<InferencePlan> {
        let unit = Unit::Voxels(plan.input().dtype.size());
        let task = common.task("measuring", unit);
        let normalizer = self.network.normalize.normalizer();
        task.run(|progress| plan.with_normalize(normalizer, progress))
    }
}

/// A plan of the whole output, and the volume.
pub(crate) struct Prepared {
    pub(crate) plan: InferencePlan,
    volume: Arc<dyn Volume>,
}

/// Plans the prediction.
pub(crate) fn prepared(settings: &Infer) -> anyhow::Result<Prepared> {
    let mask = settings.blending.mask.as_deref();
    check_inputs(settings)?;
    let model = model(settings)?;
    let level = settings.part.level;
    let (whole, own) =
        settings
            .on_grid
            .open_with_own(&settings.opening, &settings.source, level)?;
    let volume = settings.part.of(&whole)?;
    let output_grid = output_grid(settings)?.then_some(own);
    let layout = volume.layout();
    let threads = settings.common.threads();
    let options = settings
        .blending
        .inference(
            layout.shape,
            settings.patches.patch_size,
            settings.patches.overlap,
        )?
        .with_memory(settings.memory.memory)
        .with_threads(threads)
        .with_min_threads(settings.common.min_threads())
        .with_batch_size(settings.network.batch_size.into())
        .with_masked(mask.is_some())
        .with_output_grid(output_grid);
    let mut target = OutputTarget::new(&settings.target).with_blending(
        settings
            .blending
            .options(settings.patches.patch_size)?
            .with_clip(settings.kind.clip),
    );
    target.dtype = settings.kind.dtype;
    let target = settings
        .storage
        .target(target, &settings.opening.storage_options());
    let mut plan = Predictor::new(Arc::clone(&volume), model, options).plan(&[target])?;
    if let Some(mask) = mask {
        let mask = opened_mask(settings, mask, &whole, layout)?;
        let memory = settings.memory.memory;
        let mask = PatchMask::from_volume_within(plan.grid(), &*mask, threads, memory)?;
        plan = plan.with_patch_mask(mask)?;
    }
    Ok(Prepared { plan, volume })
}

/// Predicts the volume.
pub(crate) fn run(settings: &Infer) -> anyhow::Result<()> {
    predict(settings, false, None)
}

/// Runs the part of a task, with the numbers of the normalization that were measured for all.
pub(crate) fn run_task(settings: &Infer, measured: Option<&str>) -> anyhow::Result<()> {
    predict(settings, true, measured)
}

fn predict(settings: &Infer, is_task: bool, measured: Option<&str>) -> anyhow::Result<()> {
    let Prepared { mut plan, volume } = prepared(settings)?;
    let layout = volume.layout();
    let resumable = settings.run.resume || settings.run.part.is_some();
    if resumable {
        let part = settings.run.part.unwrap_or(OutputPart::WHOLE);
        plan = plan.with_part(part, settings.run.durability.into())?;
    }
    if is_task {
        plan = plan.with_repeats();
    }
    let space = plan.disk_space()?;
    report::warn_of_space(&space);
    if settings.run.dry_run {
        return dry_run(&plan, &space, &*volume, settings);
    }
    let patch_bytes = patch_bytes(layout.channels, settings.patches.patch_size, layout.dtype)?;

    let output = &plan.outputs()[0];
    let labels = labels(&settings.blending.reduction(), output.spec.channels);
    let output = output.layout.clone();
    plan.check_names()?;
    stop::stop_gracefully();
    let meter = Meter::start();
    let plan = match measured {
        Some(_) => plan.with_measured(measured)?,
        None => settings.normalized(plan, &settings.common)?,
    };
    let began = Instant::now();
    let done = settings
        .common
        .task("predicting", Unit::Patches)
        .run(|progress| plan.run(progress));
    let done = done.map_err(|error| {
        let stopped = matches!(error, Error::Interrupted);
        let error = anyhow::Error::new(error);
        if stopped && resumable {
            error.context("interrupted: run the same command again to resume")
        } else {
            error
        }
    })?;
    let seconds = began.elapsed().as_secs_f64();
    summary(
        settings,
        (&output, labels),
        &done,
        (seconds, patch_bytes),
        &meter.stop(),
    )
}

/// Returns `true` if the output is written on the grid of the source.
fn output_grid(settings: &Infer) -> anyhow::Result<bool> {
    let is_box = settings.part.is_box();
    match settings.grid.output_grid {
        Some(OutputGridName::Source) => anyhow::ensure!(
            !is_box || settings.on_grid.is_none(),
            "--output-grid source is not possible with --box, which counts voxels of the resampled volume: use --output-grid model"
        ),
        Some(OutputGridName::Model) => return Ok(false),
        None if is_box => return Ok(false),
        None => {}
    }
    Ok(!settings.on_grid.is_none())
}

/// Prints what was done in this many seconds, with patches of this many bytes.
fn summary(
    settings: &Infer,
    (output, labels): (&Layout, Option<Vec<u64>>),
    done: &InferenceStats,
    (seconds, patch_bytes): (f64, u64),
    peak: &Peak,
) -> anyhow::Result<()> {
    let stats = done.outputs.first().copied().unwrap_or_default();
    let mut report = Report::default();
    report.plain("out", settings.target.display().to_string());
    if let Some(part) = settings.run.part {
        report.plain("part", format!("{}/{}", part.index(), part.count()));
        report.plain("whole", done.whole);
    }
    report.layout(output);
    if let Some(labels) = labels {
        let text = labels_text(&labels);
        report.add("labels", labels, text);
    }
    report.plain("patches", done.patches);
    if settings.blending.mask.is_some() {
        report.plain("patches_skipped", stats.skipped);
    }
    report.plain("uncovered_voxels", stats.uncovered_voxels);
    report.plain("clipped_values", stats.clipped_values);
    report.seconds("seconds", seconds, 2);
    report.details(|report| {
        add_rates(report, done.patches, patch_bytes, seconds);
        let spent = done.timings;
        for (name, seconds) in [
            ("reading_seconds", spent.reading),
            ("predicting_seconds", spent.predicting),
            ("blending_seconds", spent.blending),
            ("writing_seconds", spent.writing),
        ] {
            report.add(name, seconds, format!("{seconds:.1} s of all threads"));
        }
        report.plain("chunks_read", done.reads.chunks);
        report.plain("chunks_written", stats.chunks_written);
        report.bytes("peak_live_bytes", stats.peak_live_bytes);
        let (resident, anonymous) = (peak.resident, peak.anonymous);
        report.add("peak_resident_bytes", resident, known_bytes(resident));
        report.add("peak_anonymous_bytes", anonymous, known_bytes(anonymous));
    });
    report.print(settings.common.printing)
}

/// Returns the labels that the output can have, if a reduction gives labels.
fn labels(reduce: &Reduce, channels: u64) -> Option<Vec<u64>> {
    let mut labels: Vec<u64> = match reduce {
        Reduce::Argmax => (0..channels).collect(),
        Reduce::Labels(labels) => labels.iter().copied().map(u64::from).collect(),
        Reduce::Threshold(_) => vec![0, 1],
        _ => return None,
    };
    labels.sort_unstable();
    labels.dedup();
    Some(labels)
}

/// Returns `0, 2, 5`, or `0 to 104 (105 labels)` if there are many.
fn labels_text(labels: &[u64]) -> String {
    match labels {
        [first, .., last] if labels.len() > 12 => {
            format!("{first} to {last} ({} labels)", labels.len())
        }
        labels => {
            let labels: Vec<String> = labels.iter().map(u64::to_string).collect();
            labels.join(", ")
        }
    }
}

/// The mask with its axes along the volume's.
fn opened_mask(
    settings: &Infer,
    mask: &Path,
    whole: &Arc<dyn Volume>,
    chosen: &Layout,
) -> voxpatch::Result<Arc<dyn Volume>> {
    let mask = settings.opening.options(0).open(mask)?;
    let mask = settings.on_grid.second(whole.layout(), mask)?;
    let matching = settings.together.matching();
    let bring = |to: &Layout, mask| {
        if to.shape == whole.layout().shape && to.shape != chosen.shape {
            // A box of it is taken, voxel by voxel.
            return matching.on_grid_of(to, mask);
        }
        matching.over_extent_of(to, mask)
    };
    settings.part.with(whole.layout(), chosen, &mask, bring)
}

/// Reports what a plan takes. Time and the model's memory are extrapolated from one batch in the middle.
fn dry_run(
    plan: &InferencePlan,
    space: &[DiskSpace],
    volume: &dyn Volume,
    settings: &Infer,
) -> anyhow::Result<()> {
    let predicted = plan.predictions();
    let layout = volume.layout();
    let mut report = Report::default();
    report.plain("patches", plan.patches().0);
    report.plain("patches_predicted", predicted);
    report.plain("passes", plan.passes() as u64);
    let bytes = patch_bytes(layout.channels, plan.grid().patch(), layout.dtype)?;
    report.bytes("bytes_of_patches", bytes.saturating_mul(predicted));
    report.bytes("stored_input_bytes", volume.stored_bytes()?);
    report.bytes("live_bytes", plan.live_bytes());
    report.bytes("cache_bytes", plan.cache_bytes());
    report.bytes("reorder_bytes", plan.reorder_bytes());
    report.bytes("peak_bytes", plan.peak_bytes());
    let outputs = plan.outputs().iter();
    let outputs = outputs.map(|output| output.layout.decoded_bytes());
    let outputs: Vec<u64> = outputs.collect::<voxpatch::Result<_>>()?;
    report::add_disk(&mut report, &outputs, space);
    let probe = plan.probe(settings.network.normalize.normalizer())?;
    report.add(
        "model_bytes",
        probe.model_bytes,
        known_bytes(probe.model_bytes),
    );
    report.add(
        "process_bytes",
        probe.process_bytes,
        format!("{} in all, at most", known_bytes(probe.process_bytes)),
    );
    let seconds = probe.duration.as_secs_f64();
    report.add(
        "estimated_seconds",
        seconds,
        format!("about {seconds:.0} s (extrapolated from one batch)"),
    );
    report.print(settings.common.printing)
}

/// Returns the model of the command line, without normalization.
fn model(settings: &Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let named = settings.network.model.iter().map(|name| {
        let model = SelectOutput::new(opened(name, settings)?, settings.network.output.clone());
        Ok((name.clone(), Arc::new(model) as Arc<dyn Model>))
    });
    let mut models: Vec<_> = named.collect::<voxpatch::Result<_>>()?;
    let model = match models.len() {
        1 => models.remove(0).1,
        _ => Arc::new(Ensemble::new(models)?),
    };
    match settings.network.tta {
        Some(TtaName::Flips) => Ok(Arc::new(FlipTta::new(model)?)),
        None => Ok(model),
    }
}

/// Checks that the output is not an input: a volume or the file of a model.
fn check_inputs(settings: &Infer) -> voxpatch::Result<()> {
    let mask = settings.blending.mask.as_deref();
    let models = settings.network.model.iter().map(Path::new);
    let inputs = std::iter::once(&*settings.source).chain(mask);
    let inputs: Vec<_> = inputs.chain(models.filter(|name| is_onnx(name))).collect();
    check_output(&settings.target, &inputs)
}

/// Whether a model of this name is a file.
fn is_onnx(name: &Path) -> bool {
    name.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// One model: a file by its extension, else a built-in one.
fn opened(name: &str, settings: &Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let place = OutputPlace {
        halo: settings.network.halo,
        scale: settings.network.scale,
    };
    if !is_onnx(Path::new(name)) {
        if place != OutputPlace::default() {
            return Err(Error::InvalidArgument {
                argument: "halo or scale of",
                value: name.to_owned(),
                problem: "a built-in model predicts every voxel of a patch; halo and scale are for outputs of a NAME.onnx"
                    .to_owned(),
            });
        }
        return builtin_model(name);
    }
    #[cfg(any(feature = "onnx", feature = "ort"))]
    let output = settings.network.output.as_deref();
    match settings.network.runtime {
        #[cfg(feature = "ort")]
        RuntimeName::Ort => {
            let model = voxpatch::inference::OnnxRuntime::open(name)?;
            Ok(Arc::new(model.only(output)?.with_place(place)))
        }
        #[cfg(feature = "onnx")]
        RuntimeName::Tract => {
            let model = voxpatch::inference::Onnx::open(name)?;
            Ok(Arc::new(model.only(output)?.with_place(place)))
        }
        #[cfg(not(feature = "onnx"))]
        RuntimeName::Tract => Err(Error::InvalidArgument {
            argument: "model",
            value: name.to_owned(),
            problem:
                "this build has no ONNX runtime: install or run it with `cargo ... --features onnx`"
                    .to_owned(),
        }),
    }
}
