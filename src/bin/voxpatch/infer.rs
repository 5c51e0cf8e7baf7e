//! `voxpatch infer`: a model over every patch of a volume, blended into a new one.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use voxpatch::inference::{Ensemble, Flips, Inference, Model, Plan, builtin};
use voxpatch::volume::{CreateOptions, OpenOptions, check_output};
use voxpatch::{Error, Layout};

use crate::args::TtaName;
use crate::memory::{Meter, text};
use crate::report::{self, Report};
use crate::sample::{patch_bytes, tell_rates};
use crate::{args, stop};

/// Predicts the volume.
pub(crate) fn run(settings: &args::Infer) -> anyhow::Result<()> {
    check_output(&settings.target, &[&settings.source])?;
    let model = model(settings)?;
    let options = OpenOptions {
        level: settings.common.level,
        ..OpenOptions::default()
    };
    let volume = options.open(&settings.source)?;
    let inference = Inference {
        blend: settings.blend.into(),
        reduce: settings.reduce.into(),
        dtype: settings.dtype,
        memory: settings.memory.memory,
        threads: settings.common.threads(),
        ..Inference::new(settings.patch, settings.overlap)
    };
    let fewest = if settings.common.threads_given() {
        inference.threads
    } else {
        1
    };
    let stores = settings.storage.choices(settings.common.force);
    let (layout, target) = (volume.layout(), &settings.target);
    let plan = plan_within(inference, fewest, layout, &*model, target, &stores)?;
    let patch_bytes = {
        let layout = volume.layout();
        patch_bytes(layout.channels, settings.patch, layout.dtype)?
    };

    stop::heed();
    let meter = Meter::start();
    let threads = settings.common.threads();
    let model = report::with_progress("measuring", |progress| {
        settings.normalize.wrap(model, &volume, threads, progress)
    })?;
    let began = Instant::now();
    let done = report::with_progress("predicting", |progress| plan.run(volume, model, progress))?;
    let seconds = began.elapsed().as_secs_f64();
    let peak = meter.stop();

    let mut told = Report::default();
    told.plain("out", settings.target.display().to_string());
    told.plain("patches", done.patches);
    tell_rates(&mut told, done.patches, patch_bytes, seconds);
    told.plain("chunks_read", done.reads.chunks);
    told.plain("chunks_written", done.chunks_written);
    told.add(
        "peak_live_bytes",
        done.peak_live_bytes,
        report::bytes(done.peak_live_bytes),
    );
    told.add("peak_resident_bytes", peak.resident, text(peak.resident));
    told.add("peak_anonymous_bytes", peak.anonymous, text(peak.anonymous));
    told.print(settings.common.json)
}

/// What the command line says is to become of each patch, but for normalising it.
fn model(settings: &args::Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let named = settings.model.iter().map(|name| {
        let model = opened(name, settings)?;
        Ok((name.clone(), model))
    });
    let mut models: Vec<_> = named.collect::<voxpatch::Result<_>>()?;
    let model = match models.len() {
        1 => models.remove(0).1,
        _ => Arc::new(Ensemble::new(models)?),
    };
    match settings.tta {
        Some(TtaName::Flips) => Ok(Arc::new(Flips::new(model)?)),
        None => Ok(model),
    }
}

/// One model: a file by its extension, else a built-in one.
fn opened(name: &str, settings: &args::Infer) -> voxpatch::Result<Arc<dyn Model>> {
    let extension = Path::new(name).extension();
    if !extension.is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) {
        return builtin(name);
    }
    #[cfg(feature = "ort")]
    if matches!(settings.runtime, args::RuntimeName::Ort) {
        let network = voxpatch::inference::OnnxRuntime::open(name, settings.patch)?;
        return Ok(Arc::new(network));
    }
    #[cfg(feature = "onnx")]
    return Ok(Arc::new(voxpatch::inference::Onnx::open(
        name,
        settings.patch,
    )?));
    #[cfg(not(feature = "onnx"))]
    Err(Error::Setting {
        name: "the model",
        value: name.to_owned(),
        problem: format!(
            "this command was built without the feature `onnx`, so there is nothing that runs it on \
             patches of {:?}",
            settings.patch
        ),
    })
}

/// The first plan that the memory is enough for: with as many threads as may be, down to
/// `fewest`, and for each number the stores in the order given.
pub(crate) fn plan_within(
    mut inference: Inference,
    fewest: usize,
    input: &Layout,
    model: &dyn Model,
    output: &Path,
    stores: &[CreateOptions],
) -> voxpatch::Result<Plan> {
    loop {
        let mut first_error = None;
        for store in stores {
            match inference.plan(input, model, output, store.clone()) {
                Err(error @ Error::Setting { .. }) => {
                    first_error.get_or_insert(error);
                }
                plan => return plan,
            }
        }
        match first_error {
            Some(error) if inference.threads <= fewest => return Err(error),
            _ => inference.threads -= 1,
        }
    }
}
