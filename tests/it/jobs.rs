//! `plan`, `run-task`, `status` and `commit`: one prediction by many processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use crate::tool::{Place, command, fails, json, succeeds, voxels};

/// The arguments of the prediction, with shards of eight voxels.
const WORDS: [&str; 9] = [
    "--patch-size",
    "8",
    "--model",
    "gaussian:1",
    "--normalize",
    "zscore",
    "--chunk",
    "4",
    "--shard=8",
];

fn planned(place: &Place, tasks: &str, more: &[&str]) -> (String, String) {
    let (job, target) = (place.at("job.json"), place.at("out.zarr"));
    let scan = place.small("scan.zarr");
    let mut words = vec![
        "plan", &job, "--tasks", tasks, "--json", "--", &scan, &target,
    ];
    words.extend(WORDS);
    words.extend(more);
    let report: Json = serde_json::from_str(&succeeds(&words)).expect("JSON");
    assert!(report["repeated_patches"].as_u64() < report["patches"].as_u64());
    (job, target)
}

#[test]
fn tasks_of_many_processes_write_what_one_writes() {
    let place = Place::new();
    let (job, target) = planned(&place, "9", &[]);
    let document: Json = serde_json::from_slice(&fs::read(&job).expect("a file")).expect("JSON");
    let tasks = document["tasks"].as_array().expect("a list");
    assert!(tasks.len() > 1 && tasks.len() < 9, "{document}");
    let mut patches = tasks.iter().map(|task| task["patches"].as_u64());
    assert!(patches.by_ref().is_sorted_by(|a, b| a >= b));
    assert!(fails(&["commit", &job]).contains("no part has been started"));
    // Each task twice at once, from another folder; numbers without a task do nothing.
    let tasks = tasks.len();
    let children: Vec<_> = (0..9)
        .chain(0..9)
        .map(|n| {
            let mut child =
                command(&["run-task", &job, &n.to_string(), "--threads", "1", "--json"]);
            child.current_dir("/").stdout(Stdio::piped());
            child.spawn().expect("it starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    let status = json(&["status", &job]);
    assert_eq!(
        (&status["tasks_done"], &status["tasks_left"]),
        (&json!(tasks), &json!([]))
    );
    assert_eq!(json(&["commit", &job])["out"], json!(target));
    assert_eq!(json(&["commit", &job])["shape"], json!([20, 24, 28]));
    assert_eq!(json(&["status", &job])["published"], json!(true));
    let (scan, one) = (place.at("scan.zarr"), place.at("one.zarr"));
    let mut words = vec!["infer", &scan, &one];
    words.extend(WORDS);
    succeeds(&words);
    assert!(voxels(&one).bytes() == voxels(&target).bytes());
    let late = json(&["run-task", &job, "0"]);
    assert_eq!(
        (&late["patches"], &late["whole"]),
        (&json!(0), &json!(true))
    );
}

#[test]
fn what_a_plan_cannot_have_is_refused() {
    let place = Place::new();
    let (job, target) = planned(&place, "2", &[]);
    let scan = place.at("scan.zarr");
    let plan = |more: &[&str]| {
        let mut words = vec![
            "plan",
            &job,
            "--tasks",
            "2",
            "--replace",
            "--",
            &scan,
            &target,
        ];
        words.extend(WORDS);
        words.extend(more);
        fails(&words)
    };
    for more in ["--resume", "--dry-run", "--part=0/2"] {
        assert!(plan(&[more]).contains("can be resumed anyway"), "{more}");
    }
    let secret = plan(&["--storage-option", "secret=hush-hush"]);
    assert!(
        secret.contains("secret") && !secret.contains("hush"),
        "{secret}"
    );
    let flat = place.at("out.npy");
    let again = |words: &[&str]| fails(words);
    assert!(
        again(&[
            "plan",
            &job,
            "--tasks",
            "2",
            "--",
            &scan,
            &target,
            "--patch-size",
            "8"
        ])
        .contains("--replace")
    );
    let words = [
        "plan",
        &job,
        "--tasks",
        "2",
        "--replace",
        "--",
        &scan,
        &flat,
        "--patch-size",
        "8",
    ];
    assert!(again(&words).contains("Zarr"));
    assert!(again(&["run-task", &job, "2"]).contains("tasks 0 to 1"));
    assert!(again(&["status", &scan]).contains("cannot read the plan"));
    fs::write(place.at("other.json"), "{}").expect("it is written");
    assert!(again(&["run-task", &place.at("other.json"), "0"]).contains("not a plan"));
    assert!(!place.path().join("out.zarr").exists());
}

/// Runs a shell with the words of a recipe, in which `voxpatch` is the command of this build.
fn shell(words: &[&str], environment: &[(&str, &str)]) {
    let binary = Path::new(env!("CARGO_BIN_EXE_voxpatch"));
    let folder = binary.parent().expect("a folder").to_str().expect("UTF-8");
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env("PATH", path)
        .envs(environment.iter().copied());
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

#[test]
fn recipes_for_slurm_and_kubernetes_run_all_tasks_of_a_plan() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let script = recipes.join("slurm_array.sh");
    let script = script.to_str().expect("UTF-8");
    let manifest = fs::read_to_string(recipes.join("kubernetes_job.yaml")).expect("a manifest");
    let line = manifest
        .lines()
        .find_map(|line| line.trim().strip_prefix("command: "));
    let words: Vec<String> = serde_json::from_str(line.expect("a command")).expect("a list");
    for slurm in [true, false] {
        let place = Place::new();
        let (job, target) = planned(&place, "4", &[]);
        for n in ["2", "0", "3", "1"] {
            if slurm {
                shell(
                    &["bash", script, &job],
                    &[("SLURM_ARRAY_TASK_ID", n), ("SLURM_CPUS_PER_TASK", "2")],
                );
            } else {
                let words: Vec<String> = words
                    .iter()
                    .map(|word| word.replace("/data/", &place.at("")))
                    .collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                shell(&words, &[("JOB_COMPLETION_INDEX", n)]);
            }
        }
        assert_eq!(
            json(&["status", &job])["published"],
            json!(true),
            "{target}"
        );
    }
    // The number of tasks is the same in the comment and in what follows.
    assert!(manifest.contains("--tasks 32") && manifest.contains("completions: 32"));
    let script = fs::read_to_string(script).expect("a script");
    assert!(script.contains("--tasks 32") && script.contains("--array=0-31"));
}
