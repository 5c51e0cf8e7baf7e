//! `voxpatch convert`: a volume into another format, voxel type or chunking.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use voxpatch::meter::Meter;
use voxpatch::volume::{
    CreateOptions, DiskSpace, Format, RealValues, Rescale, Values, check_output, create,
    disk_space, output_layout,
};
use voxpatch::{ConvertOptions, ConvertPlan, DType, Layout, OpenOptions, Volume};

use crate::common::{Common, Memory};
use crate::input::{OnGrid, Opening, Part, ValuesName};
use crate::progress::Unit;
use crate::report::{self, Printing, Report, known_bytes};
use crate::stop;
use crate::storage::{OutputType, Storage};

const EXAMPLES: &str = "\
Examples:
  voxpatch convert scan.nii.gz scan.zarr --pyramid mean
  voxpatch convert scan.zarr crop.nii.gz --box 100:200,:,: --dtype int16 --clip
  voxpatch convert scan.nii.gz scan.zarr --spacing 1.5 --orientation RAS
  voxpatch convert scan.nii.gz scan.zarr --dry-run";

/// Copy a volume into another format, voxel type or chunking.
///
/// The name of the output decides its format: .npy, .nii, .nii.gz, .nrrd, .mha, .mhd or .tif is such a file, .zarr
/// an OME-Zarr folder, or many objects below an address in an object store.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Convert {
    /// The volume.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The output.
    #[arg(value_name = "DST")]
    target: PathBuf,
    #[command(flatten)]
    on_grid: OnGrid,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    kind: OutputType,
    #[command(flatten)]
    storage: Storage,
    /// Report the memory of the whole process and the disk space that the conversion takes, and write nothing.
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    common: Common,
}

/// Copies the source into a new output.
pub(crate) fn run(settings: &Convert) -> anyhow::Result<()> {
    let began = Instant::now();
    check_output(&settings.target, &[&settings.source])?;
    let store = settings.opening.storage_options();
    let storage = settings
        .storage
        .options()
        .with_storage_options(store.clone());
    let (source, kept) = source(settings, &storage)?;
    let from = source.layout();
    let layout = Layout {
        dtype: settings.kind.dtype.unwrap_or(from.dtype),
        rescale: kept,
        ..from.clone()
    };
    let decoded = from.decoded_bytes()?;

    stop::stop_gracefully();
    let options = ConvertOptions {
        threads: settings.common.threads(),
        memory: settings.memory.memory,
        clip: settings.kind.clip,
    };
    let choices = settings.storage.choices(&store);
    let storage = options.choose(&*source, &settings.target, &layout, &choices)?;
    let layout = output_layout(&settings.target, &layout, storage)?;
    let space = disk_space(&[(&layout, storage)], false)?;
    report::warn_of_space(&space);
    if settings.dry_run {
        let plan = options.plan(&*source, &layout, storage);
        return dry_run(&plan, &*source, &layout, &space, settings.common.printing);
    }
    let target = create(&settings.target, &layout, storage)?;
    let meter = Meter::start();
    let done = settings
        .common
        .task("converting", Unit::Voxels(layout.dtype.size()))
        .run(|progress| voxpatch::convert(&source, target, &options, progress))?;

    let seconds = began.elapsed().as_secs_f64();
    let peak = meter.stop().anonymous;
    let written = OpenOptions::default().with_storage_options(store);
    let stored = written.open(&settings.target)?.stored_bytes()?;
    let rate = report::float(decoded) / 1e6 / seconds.max(1e-9);
    let mut report = Report::default();
    report.plain("out", settings.target.display().to_string());
    report.layout(&layout);
    let values = match (settings.opening.values, kept) {
        (ValuesName::Stored, _) => "stored",
        (ValuesName::Real, Some(_)) => "stored, with slope and intercept",
        (ValuesName::Real, None) => "real",
    };
    report.plain("values", values);
    report.plain("clipped_values", done.clipped);
    report.plain("rounded_values", done.rounded);
    report.bytes("decoded_bytes", decoded);
    report.bytes("stored_bytes", stored);
    report.seconds("seconds", seconds, 2);
    report.details(|report| {
        let text = format!("{rate:.1}");
        report.add("megabytes_per_second", report::rounded(rate, 1), text);
        report.plain("chunks_read", done.reads.chunks);
        report.plain("chunks_written", done.chunks_written);
        report.add("peak_anonymous_bytes", peak, known_bytes(peak));
    });
    report.print(settings.common.printing)
}

/// Reports what the conversion takes.
fn dry_run(
    plan: &ConvertPlan,
    source: &dyn Volume,
    target: &Layout,
    space: &[DiskSpace],
    printing: Printing,
) -> anyhow::Result<()> {
    let mut report = Report::default();
    report.plain("threads", plan.threads as u64);
    report.plain("reads_once", plan.reads_once());
    let bytes = |report: &mut Report, key: &str, value: u64| {
        report.add(key, value, report::bytes(value));
    };
    bytes(&mut report, "stored_input_bytes", source.stored_bytes()?);
    bytes(&mut report, "cache_bytes", plan.cache_bytes);
    bytes(&mut report, "peak_bytes", plan.peak_bytes);
    report::add_disk(&mut report, &[target.decoded_bytes()?], space);
    report::add_process(&mut report, plan.peak_bytes);
    report.print(printing)
}

/// Opens the source, and returns the slope and intercept that the output keeps beside stored values.
///
/// Only NIfTI has both for every reader. Other outputs get real values: of MetaImage and Zarr, others would
/// read the stored ones.
fn source(
    settings: &Convert,
    storage: &CreateOptions,
) -> anyhow::Result<(Arc<dyn Volume>, Option<Rescale>)> {
    let opening = &settings.opening;
    let values = match opening.values {
        ValuesName::Stored => Values::Stored,
        ValuesName::Real => Values::Unconverted,
    };
    let options = opening.options(settings.part.level).with_values(values);
    let stored = options.open(&settings.source)?;
    if !settings.on_grid.is_none() {
        let volume = settings
            .on_grid
            .bring(opening, stored, settings.kind.dtype)?;
        return Ok((settings.part.of(&volume)?, None));
    }
    let stored = settings.part.of(&stored)?;
    if opening.values == ValuesName::Stored {
        return Ok((stored, None));
    }
    let Some(dtype) = settings.kind.dtype else {
        let kept = kept(&settings.target, stored.layout(), storage)?;
        let source = match kept {
            Some(_) => stored,
            None => RealValues::of(stored),
        };
        return Ok((source, kept));
    };
    Ok((RealValues::with_dtype(stored, dtype), None))
}

/// The slope and intercept of stored voxels, if the target is a NIfTI file that has both exactly.
fn kept(
    target: &Path,
    stored: &Layout,
    storage: &CreateOptions,
) -> anyhow::Result<Option<Rescale>> {
    let plain = Layout {
        rescale: None,
        ..stored.clone()
    };
    let format = output_layout(target, &plain, storage)?.format;
    #[expect(clippy::cast_possible_truncation, reason = "that is what is asked")]
    let is_f32 = |value: f64| f64::from(value as f32).to_bits() == value.to_bits();
    let exact = |rescale: &Rescale| match format {
        Format::Nifti1 => is_f32(rescale.slope) && is_f32(rescale.intercept),
        format => format == Format::Nifti2,
    };
    let has_type = stored.dtype != DType::F16;
    Ok(stored.rescale.filter(|rescale| has_type && exact(rescale)))
}
