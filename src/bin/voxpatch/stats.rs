//! `voxpatch stats`: statistics of volumes, in one pass over each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use serde_json::Value as Json;
use voxpatch::Volume;
use voxpatch::meter::Meter;
use voxpatch::normalize::{Statistics, StatisticsOptions, Summary};
use voxpatch::volume::check_output;

use crate::common::Common;
use crate::input::Opening;
use crate::progress::Unit;
use crate::report::{self, Report, known_bytes};
use crate::stop;

const EXAMPLES: &str = "\
Examples:
  voxpatch stats scan.zarr
  voxpatch stats scans/*.nii.gz --labels labels/*.nii.gz --json > statistics.json
  voxpatch stats scans/*.nii.gz --results done     # resumes with the files that are not in done/";

/// The section of the help for what is measured.
const MEASURED: &str = "Statistics";

/// Print the range, mean, deviation and percentiles of volumes, of their voxels that are not 0, and of each label.
///
/// Each volume is read once, in pieces. Percentiles are exact for types of 8 and 16 bits; for others their error is at
/// most 1/8192 of their value.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Stats {
    /// The volumes.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Label maps, one per volume, of the same extent.
    #[arg(long, help_heading = MEASURED, num_args = 1.., value_name = "FILE")]
    labels: Vec<PathBuf>,
    /// Label whose voxels do not count.
    #[arg(long, help_heading = MEASURED, value_name = "N", allow_hyphen_values = true)]
    ignore_label: Option<i64>,
    /// Percentiles to print, from 0 to 100.
    #[arg(long, help_heading = MEASURED, value_delimiter = ',', value_parser = percentile, default_value = "0.5,5,25,50,75,95,99.5", value_name = "P,...")]
    percentiles: Vec<f64>,
    /// Folder in which the results of each volume are kept, so that an interrupted run resumes with the next volume.
    #[arg(long, help_heading = MEASURED, value_name = "DIR")]
    results: Option<PathBuf>,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    common: Common,
}

fn percentile(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("a percentile is a number from 0 to 100".to_owned()),
    }
}

/// Measures the volumes and prints what was found.
pub(crate) fn run(settings: &Stats) -> anyhow::Result<()> {
    if !settings.labels.is_empty() && settings.labels.len() != settings.paths.len() {
        bail!(
            "{} label maps for {} volumes: give one for each",
            settings.labels.len(),
            settings.paths.len()
        );
    }
    stop::stop_gracefully();
    if let Some(folder) = &settings.results {
        let inputs: Vec<&Path> = settings.paths.iter().map(AsRef::as_ref).collect();
        check_output(folder, &inputs)?;
    }
    let options = StatisticsOptions::default()
        .with_ignore_label(settings.ignore_label)
        .with_threads(settings.common.threads())
        .with_results(settings.results.clone());
    let open = |n: usize| -> voxpatch::Result<_> {
        let opening = settings.opening.options(0);
        let volume: Arc<dyn Volume> = opening.open(&settings.paths[n])?;
        let labels = settings.labels.get(n).map(|path| opening.open(path));
        Ok((volume, labels.transpose()?))
    };
    let task = settings.common.task("measuring", Unit::Chunks);
    let count = settings.paths.len();
    let meter = Meter::start();
    let found = task.run(|progress| Statistics::of_all(count, &open, &options, progress))?;
    let peak = meter.stop().anonymous;
    if settings.common.printing.json {
        let mut report = Statistics::report(&found, &settings.percentiles);
        report["peak_anonymous_bytes"] = peak.into();
        return report::print(&format!("{report:#}\n"));
    }
    let mut all = Statistics::default();
    for (own, _) in &found {
        all.merge(own);
    }
    let mut report = Report::default();
    report.plain("volumes", all.volumes());
    for (channel, own) in all.channels().iter().enumerate() {
        let name = |part: &str| match all.channels().len() {
            1 => part.to_owned(),
            _ => format!("channel_{channel}_{part}"),
        };
        report.add(&name("all"), Json::Null, line(own.all()));
        report.add(&name("nonzero"), Json::Null, line(own.nonzero()));
        if !own.labels().is_empty() {
            report.add(&name("foreground"), Json::Null, line(&own.foreground()));
        }
        for (label, own) in own.labels() {
            report.add(&name(&format!("label_{label}")), Json::Null, line(own));
        }
    }
    if let Some(first) = all.channels().first() {
        let text = settings.percentiles.iter().map(|&percent| {
            let value = first.all().percentile(percent);
            value.map_or_else(
                || format!("{percent}: none"),
                |value| format!("{percent}: {value}"),
            )
        });
        let text = text.collect::<Vec<_>>().join("  ");
        report.add("percentiles", Json::Null, text);
    }
    report.details(|report| report.add("peak_anonymous_bytes", peak, known_bytes(peak)));
    report.print(settings.common.printing)
}

/// A summary in one line.
fn line(summary: &Summary) -> String {
    let (Some(low), Some(high)) = (summary.minimum(), summary.maximum()) else {
        return "no voxels".to_owned();
    };
    let wild = match summary.not_finite() {
        0 => String::new(),
        count => format!(", {count} not finite"),
    };
    format!(
        "{} voxels, {low} to {high}, mean {:.6}, deviation {:.6}{wild}",
        summary.count(),
        summary.mean().unwrap_or_default(),
        summary.std().unwrap_or_default()
    )
}
