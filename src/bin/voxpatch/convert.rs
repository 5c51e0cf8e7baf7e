//! `voxpatch convert`: a volume into another format, voxel type or chunking.

use std::time::Instant;

use voxpatch::volume::{check_output, create, open, planned, space};
use voxpatch::{ConvertOptions, Layout};

use crate::report::{self, Report};
use crate::{args, stop};

/// Copies the source into a new output.
pub(crate) fn run(settings: &args::Convert) -> anyhow::Result<()> {
    let began = Instant::now();
    check_output(&settings.target, &[&settings.source])?;
    let options = settings.common.opening.options(settings.common.level);
    let source = settings.chosen.of(&options.open(&settings.source)?)?;
    let from = source.layout();
    let layout = Layout {
        dtype: settings.dtype.unwrap_or(from.dtype),
        ..from.clone()
    };
    let decoded = from.decoded_bytes()?;

    stop::heed();
    let options = ConvertOptions {
        threads: settings.common.threads(),
        memory: settings.memory.memory,
    };
    let choices = settings.storage.choices(settings.common.force);
    let storage = options.choose(&*source, &settings.target, &layout, &choices)?;
    let layout = planned(&settings.target, &layout, storage)?;
    report::warn_of_space(&space(&[(&layout, storage)], false)?);
    let target = create(&settings.target, &layout, storage)?;
    let done = report::with_progress("converting", |progress| {
        voxpatch::convert(&source, target, &options, progress)
    })?;

    let seconds = began.elapsed().as_secs_f64();
    let stored = open(&settings.target)?.stored_bytes()?;
    let rate = report::float(decoded) / 1e6 / seconds.max(1e-9);
    let mut told = Report::default();
    told.plain("out", settings.target.display().to_string());
    told.add(
        "seconds",
        report::rounded(seconds, 3),
        format!("{seconds:.2}"),
    );
    told.add(
        "megabytes_per_second",
        report::rounded(rate, 1),
        format!("{rate:.1}"),
    );
    told.plain("chunks_read", done.reads.chunks);
    told.plain("chunks_written", done.chunks_written);
    told.add("decoded_bytes", decoded, report::bytes(decoded));
    told.add("stored_bytes", stored, report::bytes(stored));
    told.print(settings.common.json)
}
