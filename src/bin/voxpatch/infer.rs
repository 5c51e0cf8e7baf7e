//! `voxpatch infer`: a model over every patch of a volume, blended into a new one.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use voxpatch::inference::{
    Ensemble, FlipTta, InferencePlan, InferenceStats, Model, OutputPlace, PatchMask, SelectOutput,
};
use voxpatch::meter::{Meter, Peak};
use voxpatch::volume::{DiskSpace, OutputPart, check_output};
use voxpatch::{Error, Layout, OutputTarget, Predictor, Volume, builtin_model};

use crate::args::{RuntimeName, TtaName};
use crate::memory::text;
use crate::report::{self, Report};
use crate::sample::{add_rates, patch_bytes};
use crate::{args, stop};

/// Predicts the volume.
pub(crate) fn run(settings: &args::Infer) -> anyhow::Result<()> {
    let mask = settings.blending.mask.as_deref();
    check_inputs(settings)?;
    let model = model(settings)?;
    let options = settings.common.opening.options(settings.common.level);
    let whole = options.open(&settings.source)?;
    let volume = settings.chosen.of(&whole)?;
    let layout = volume.layout();
    let threads = settings.common.threads();
    let options = settings
        .blending
        .inference(layout.shape, settings.patch_size, settings.overlap)?
        .with_memory(settings.memory.memory)
        .with_threads(threads)
        .with_min_threads(settings.common.min_threads())
        .with_batch_size(settings.batch_size.into())
        .with_masked(mask.is_some());
    let mut target = OutputTarget::new(&settings.target).with_blending(
        settings
            .blending
            .options(settings.patch_size)?
            .with_clip(settings.clip),
    );
    target.dtype = settings.dtype;
    let target = settings.storage.target(target, settings.common.overwrite);
    let mut plan = Predictor::new(Arc::clone(&volume), model, options).plan(&[target])?;
    if let Some(mask) = mask {
        let mask = opened_mask(settings, mask, &whole, layout)?;
        let memory = settings.memory.memory;
        let mask = PatchMask::from_volume_within(plan.grid(), &*mask, threads, memory)?;
        plan = plan.with_patch_mask(mask)?;
    }
    let resumable = settings.resume || settings.part.is_some();
    if resumable {
        let part = settings.part.unwrap_or(OutputPart::WHOLE);
        plan = plan.with_part(part, settings.durability.into())?;
    }
    let space = plan.disk_space()?;
    report::warn_of_space(&space);
    if settings.dry_run {
        return dry_run(&plan, &space, &*volume, settings);
    }
    let patch_bytes = patch_bytes(layout.channels, settings.patch_size, layout.dtype)?;

    plan.check_names()?;
    stop::stop_gracefully();
    let meter = Meter::start();
    let plan = report::with_progress("measuring", |progress| {
        plan.with_normalize(settings.normalize, progress)
    })?;
    let began = Instant::now();
    let done = report::with_progress("predicting", |progress| plan.run(progress));
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
    summary(settings, &done, (seconds, patch_bytes), &meter.stop())
}

/// Prints what was done in this many seconds, with patches of this many bytes.
fn summary(
    settings: &args::Infer,
    done: &InferenceStats,
    (seconds, patch_bytes): (f64, u64),
    peak: &Peak,
) -> anyhow::Result<()> {
    let output = done.outputs.first().copied().unwrap_or_default();
    let mut report = Report::default();
    report.plain("out", settings.target.display().to_string());
    if let Some(part) = settings.part {
        report.plain("part", format!("{}/{}", part.index(), part.count()));
        report.plain("whole", done.whole);
    }
    report.plain("patches", done.patches);
    if settings.blending.mask.is_some() {
        report.plain("patches_skipped", output.skipped);
    }
    add_rates(&mut report, done.patches, patch_bytes, seconds);
    let spent = done.timings;
    for (name, seconds) in [
        ("reading_seconds", spent.reading),
        ("predicting_seconds", spent.predicting),
        ("blending_seconds", spent.blending),
    ] {
        report.add(name, seconds, format!("{seconds:.1} s of all threads"));
    }
    report.plain("chunks_read", done.reads.chunks);
    report.plain("chunks_written", output.chunks_written);
    report.plain("uncovered_voxels", output.uncovered_voxels);
    report.plain("clipped_values", output.clipped_values);
    report.bytes("peak_live_bytes", output.peak_live_bytes);
    report.add("peak_resident_bytes", peak.resident, text(peak.resident));
    report.add("peak_anonymous_bytes", peak.anonymous, text(peak.anonymous));
    report.print(settings.common.json)
}

/// The mask with its axes along the volume's.
fn opened_mask(
    settings: &args::Infer,
    mask: &Path,
    whole: &Arc<dyn Volume>,
    chosen: &Layout,
) -> voxpatch::Result<Arc<dyn Volume>> {
    let mask = settings.common.opening.options(0).open(mask)?;
    let matching = settings.together.matching();
    let bring = |to: &Layout, mask| {
        if to.shape == whole.layout().shape && to.shape != chosen.shape {
            // A box of it is taken, voxel by voxel.
            return matching.on_grid_of(to, mask);
        }
        matching.over_extent_of(to, mask)
    };
    settings.chosen.with(whole.layout(), chosen, &mask, bring)
}

/// Reports what a plan takes. Time and the model's memory are extrapolated from one batch in the middle.
fn dry_run(
    plan: &InferencePlan,
    space: &[DiskSpace],
    volume: &dyn Volume,
    settings: &args::Infer,
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
    let probe = plan.probe(settings.normalize)?;
    report.add("model_bytes", probe.model_bytes, text(probe.model_bytes));
    report.add(
        "process_bytes",
        probe.process_bytes,
        format!("{} in all, at most", text(probe.process_bytes)),
    );
    let seconds = probe.duration.as_secs_f64();
    report.add(
        "estimated_seconds",
        seconds,
        format!("about {seconds:.0} s (extrapolated from one batch)"),
    );
    report.print(settings.common.json)
}

/// Returns the model of the command line, without normalization.
fn model(settings: &args::Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let named = settings.model.iter().map(|name| {
        let model = SelectOutput::new(opened(name, settings)?, settings.output.clone());
        Ok((name.clone(), Arc::new(model) as Arc<dyn Model>))
    });
    let mut models: Vec<_> = named.collect::<voxpatch::Result<_>>()?;
    let model = match models.len() {
        1 => models.remove(0).1,
        _ => Arc::new(Ensemble::new(models)?),
    };
    match settings.tta {
        Some(TtaName::Flips) => Ok(Arc::new(FlipTta::new(model)?)),
        None => Ok(model),
    }
}

/// Checks that the output is not an input: a volume or the file of a model.
fn check_inputs(settings: &args::Infer) -> voxpatch::Result<()> {
    let mask = settings.blending.mask.as_deref();
    let models = settings.model.iter().map(Path::new);
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
fn opened(name: &str, settings: &args::Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let place = OutputPlace {
        halo: settings.halo,
        scale: settings.scale,
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
    let output = settings.output.as_deref();
    match settings.runtime {
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
