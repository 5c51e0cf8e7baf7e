//! `voxpatch plan`, `run-task`, `status` and `commit`: one prediction as tasks for many machines.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser};
use serde_json::{Value as Json, json};
use voxpatch::inference::PlannedTask;
use voxpatch::volume::OutputPart;

use crate::common::Common;
use crate::infer::{self, Infer};
use crate::progress::Unit;
use crate::report::Report;

const PLAN_EXAMPLES: &str = "\
Examples:
  voxpatch plan job.json --tasks 32 -- scan.zarr organs.zarr --patch-size 128 --model unet.onnx --reduce argmax
  voxpatch plan job.json --tasks 8 -- s3://bucket/scan.zarr s3://bucket/smooth.zarr --patch-size 96 --model gaussian:1 --overwrite";

const RUN_EXAMPLES: &str = "\
Examples:
  voxpatch run-task job.json 0
  voxpatch run-task job.json 3 --threads 4 --json";

const STATUS_EXAMPLES: &str = "\
Examples:
  voxpatch status job.json
  voxpatch status job.json --json";

const COMMIT_EXAMPLES: &str = "\
Examples:
  voxpatch commit job.json";

/// The section of the help for tasks.
const TASKS: &str = "Tasks";

/// Options of object stores that a job file may hold; others may be secrets.
const OPEN_OPTIONS: [&str; 8] = [
    "allow_http",
    "anon",
    "anonymous",
    "endpoint",
    "endpoint_url",
    "account_name",
    "region",
    "region_name",
];

/// Plan a prediction as tasks that many machines run, and write the plan to a file.
///
/// The arguments after `--` are those of `voxpatch infer`, with a Zarr output. Every machine must see the same files
/// under the same paths, or the same object store. Nothing is written to the output yet.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = PLAN_EXAMPLES)]
pub(crate) struct Plan {
    /// The file of the plan, which is written.
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// The most tasks: better some more than there are workers. There are fewer if the output has fewer layers of shards.
    #[arg(long, help_heading = TASKS, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    tasks: u32,
    /// Replace an existing file of a plan.
    #[arg(long, help_heading = TASKS)]
    replace: bool,
    /// The arguments of `voxpatch infer`.
    #[arg(last = true, required = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Run a task of a plan: predict its patches and write its shards. The last task also completes the output.
///
/// A task may be run again, or twice at once: the second run waits for the first one, and does what is missing if that
/// was killed. In an object store nothing waits: both write the same bytes.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = RUN_EXAMPLES)]
pub(crate) struct RunTask {
    /// The file of the plan.
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// The number of the task, from 0. A number below --tasks without a task has nothing to do, so that an array of jobs
    /// may have as many.
    #[arg(value_name = "TASK")]
    task: u32,
    #[command(flatten)]
    common: Common,
}

/// Print the progress of a plan's tasks.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = STATUS_EXAMPLES)]
pub(crate) struct Status {
    /// The file of the plan.
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Give a complete output its name, if the last task has not done so.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = COMMIT_EXAMPLES)]
pub(crate) struct Commit {
    /// The file of the plan.
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// A plan, as its file has it.
struct Job {
    infer: Box<Infer>,
    count: u32,
    /// The part of each task, those with most patches first.
    parts: Vec<u32>,
    /// The numbers of the normalization, if there is one.
    measured: Option<String>,
}

/// Plans the tasks.
pub(crate) fn plan(settings: &Plan) -> anyhow::Result<()> {
    let infer = parsed(&settings.arguments);
    infer.check_for_tasks()?;
    for name in infer.storage_option_names() {
        let name = name.to_lowercase();
        ensure!(
            OPEN_OPTIONS.iter().any(|open| name.ends_with(open)),
            "--storage-option {name} may be a secret, which the file of a plan must not hold: set it in the environment of \
             the workers"
        );
    }
    ensure!(
        settings.replace || !settings.job.exists(),
        "{} exists already (--replace)",
        settings.job.display()
    );
    let prepared = infer::prepared(&infer)?;
    let plan = prepared.plan;
    let tasks = plan.tasks(settings.tasks)?;
    plan.check_names()?;
    let plan = infer.normalized(plan, &settings.common)?;
    let folder = std::env::current_dir().context("cannot find the current folder")?;
    let mut arguments = settings.arguments.clone();
    // Machines with less memory must not choose other shards.
    arguments.splice(0..0, infer.pinned_shard(&plan.outputs()[0].layout));
    let document = json!({
        "voxpatch": "plan",
        "version": env!("CARGO_PKG_VERSION"),
        "folder": folder,
        "arguments": arguments,
        "count": settings.tasks,
        "measured": plan.measured(),
        "tasks": tasks.iter().map(described).collect::<Vec<_>>(),
    });
    write(&settings.job, &format!("{document:#}\n"))?;
    let patches: u64 = tasks.iter().map(|task| task.patches).sum();
    let repeated: u64 = tasks.iter().map(|task| task.repeated_patches).sum();
    let mut report = Report::default();
    report.plain("job", settings.job.display().to_string());
    report.plain("tasks", tasks.len());
    report.plain("patches", patches);
    report.plain("repeated_patches", repeated);
    report.plain(
        "largest_task_patches",
        tasks.first().map_or(0, |task| task.patches),
    );
    report.bytes(
        "input_bytes",
        tasks.iter().map(|task| task.input_bytes).sum(),
    );
    report.print(settings.common.printing)
}

/// Runs a task.
pub(crate) fn run_task(settings: &RunTask) -> anyhow::Result<()> {
    let mut job = opened(&settings.job, &settings.common)?;
    let part = match job.parts.get(usize::try_from(settings.task)?) {
        Some(&part) => OutputPart::new(part, job.count)?,
        None if settings.task < job.count => {
            let mut report = Report::default();
            report.plain("task", settings.task);
            report.plain("patches", 0);
            return report.print(settings.common.printing);
        }
        None => bail!(
            "task {}: {} has tasks 0 to {}",
            settings.task,
            settings.job.display(),
            job.count - 1
        ),
    };
    job.infer.set_part(part);
    infer::run_task(&job.infer, job.measured.as_deref())
}

/// Prints the progress of the tasks.
pub(crate) fn status(settings: &Status) -> anyhow::Result<()> {
    let job = opened(&settings.job, &settings.common)?;
    let plan = infer::prepared(&job.infer)?.plan;
    let status = plan.with_measured(job.measured.as_deref())?.status()?;
    let is_done = |part: &u32| {
        let mut begun = status.begun.iter();
        status.published || begun.any(|(n, done, total)| n == part && done == total)
    };
    let done = job.parts.iter().filter(|part| is_done(part)).count();
    let left = (0..).zip(&job.parts).filter(|(_, part)| !is_done(part));
    let left: Vec<u64> = left.map(|(task, _)| task).collect();
    let mut report = Report::default();
    report.plain("published", status.published);
    report.add("tasks_done", done, format!("{done} of {}", job.parts.len()));
    report.add(
        "chunks_done",
        status.chunks_done,
        format!("{} of {}", status.chunks_done, status.chunks),
    );
    report.only_json("tasks", job.parts.len());
    report.only_json("chunks", status.chunks);
    report.only_json("tasks_left", left);
    report.print(settings.common.printing)
}

/// Publishes the output.
pub(crate) fn commit(settings: &Commit) -> anyhow::Result<()> {
    let job = opened(&settings.job, &settings.common)?;
    let plan = infer::prepared(&job.infer)?.plan;
    let plan = plan.with_measured(job.measured.as_deref())?;
    let output = plan.outputs()[0].layout.clone();
    settings
        .common
        .task("publishing", Unit::Chunks)
        .run(|progress| plan.commit(progress))?;
    let mut report = Report::default();
    report.plain("out", output.path.display().to_string());
    report.layout(&output);
    report.print(settings.common.printing)
}

fn described(task: &PlannedTask) -> Json {
    let regions = task.regions.iter();
    let regions: Vec<Json> = regions
        .map(|region| json!([region.start, region.end()]))
        .collect();
    json!({
        "part": task.part.index(),
        "patches": task.patches,
        "repeated_patches": task.repeated_patches,
        "input_bytes": task.input_bytes,
        "regions": regions,
    })
}

/// The arguments after `--`.
#[derive(Debug, Parser)]
#[command(name = "voxpatch infer", disable_help_flag = true)]
struct InferArguments {
    #[command(flatten)]
    infer: Box<Infer>,
}

/// Parses the arguments of `voxpatch infer`; exits with its usage if they are wrong.
fn parsed(arguments: &[String]) -> Box<Infer> {
    let words = std::iter::once("voxpatch infer").chain(arguments.iter().map(String::as_str));
    InferArguments::parse_from(words).infer
}

/// Opens the file of a plan, and changes to its folder. The options of this command apply.
fn opened(path: &Path, common: &Common) -> anyhow::Result<Job> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the plan {}", path.display()))?;
    let found: Option<(Json, Vec<String>, u32, Vec<u32>)> = (|| {
        let found: Json = serde_json::from_str(&text).ok()?;
        if found.get("voxpatch")? != "plan" {
            return None;
        }
        let arguments = serde_json::from_value(found.get("arguments")?.clone()).ok()?;
        let count = u32::try_from(found.get("count")?.as_u64()?).ok()?;
        let part = |task: &Json| u32::try_from(task.get("part")?.as_u64()?).ok();
        let parts = found.get("tasks")?.as_array()?.iter().map(part);
        let parts: Option<Vec<u32>> = parts.collect();
        Some((found, arguments, count, parts?))
    })();
    let Some((found, arguments, count, parts)) = found else {
        bail!(
            "{} is not a plan: write it with voxpatch plan",
            path.display()
        );
    };
    if let Some(folder) = found["folder"].as_str() {
        std::env::set_current_dir(folder).with_context(|| {
            format!(
                "cannot enter {folder}, the folder of the plan {}",
                path.display()
            )
        })?;
    }
    let mut infer = parsed(&arguments);
    infer.set_common(common);
    Ok(Job {
        infer,
        count,
        parts,
        measured: found["measured"].as_str().map(str::to_owned),
    })
}

/// Writes a file whole: under a temporary name first.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
