//! The command's output about itself and its work: completions, man pages, summaries, progress.

use std::fs;

use serde_json::json;

use crate::tool::{Place, command, fails, is_refused, json, names, succeeds};

const COMMANDS: [&str; 13] = [
    "info",
    "convert",
    "sample",
    "infer",
    "plan",
    "run-task",
    "status",
    "commit",
    "preview",
    "stats",
    "verify",
    "demo",
    "completions",
];

#[test]
fn help_is_short_or_long_and_names_the_sections_in_their_order() {
    for name in COMMANDS {
        let short = succeeds(&[name, "-h"]);
        let long = succeeds(&[name, "--help"]);
        assert!(long.lines().count() >= short.lines().count(), "{name}");
        assert_eq!(long, succeeds(&["help", name]), "{name}");
        let lines: Vec<&str> = short.lines().collect();
        let common = lines.iter().position(|line| *line == "Common options:");
        let examples = lines.iter().position(|line| *line == "Examples:");
        assert!(common > Some(0) && examples > common, "{name}: {short}");
        assert!(!lines.contains(&"Options:"), "{name}: {short}");
        let widest = short.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{name}: {widest:?}");
    }
    let infer = succeeds(&["infer", "-h"]);
    let sections = [
        "Model",
        "Patches and blending",
        "Input",
        "Output",
        "Long runs",
        "Common options",
    ];
    let places: Vec<_> = sections
        .iter()
        .map(|name| infer.find(&format!("\n{name}:\n")).expect("a section"))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn completions_know_every_command_and_its_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeds(&["completions", shell]);
        for name in COMMANDS {
            assert!(script.contains(name), "{shell}: {name}");
        }
        for option in ["patch-size", "label-weights", "missing-chunks", "overwrite"] {
            assert!(script.contains(option), "{shell}: {option}");
        }
    }
    is_refused(&["completions", "tcsh"]);
}

#[test]
fn man_pages_are_written_for_every_command() {
    let place = Place::new();
    succeeds(&["man", &place.at("man")]);
    let pages = names(&place.path().join("man"));
    let expected: Vec<String> = COMMANDS
        .iter()
        .map(|name| format!("voxpatch-{name}.1"))
        .collect();
    for page in expected.iter().chain([&"voxpatch.1".to_owned()]) {
        assert!(pages.contains(page), "{page}: {pages:?}");
    }
    assert_eq!(pages.len(), expected.len() + 1, "{pages:?}");
    let page = fs::read_to_string(place.at("man/voxpatch-infer.1")).expect("it was written");
    for text in [
        ".TH voxpatch-infer 1",
        ".SH MODEL",
        "\\-\\-patch\\-size",
        "voxpatch infer scan.zarr",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let line = fails(&["man", "/proc/man"]);
    assert!(line.contains("/proc/man"), "{line}");
}

/// Returns the keys of a table for people.
fn keys(table: &str) -> Vec<String> {
    let lines = table.lines().filter(|line| !line.starts_with(' '));
    lines
        .filter_map(|line| Some(line.split("  ").next()?.trim().to_owned()))
        .collect()
}

#[test]
fn summaries_have_shape_type_and_labels_and_speeds_only_if_asked_for() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let patches = ["--patch-size", "8", "--threads", "1"];
    let runs = [
        vec!["convert", &source],
        [&["infer", &source][..], &patches].concat(),
        [
            &["sample", &source, "--samples-per-subject", "3"][..],
            &patches,
        ]
        .concat(),
    ];
    for (n, words) in runs.iter().enumerate() {
        let mut outputs = (0..3).map(|m| place.at(&format!("{n}{m}.zarr")));
        let mut run = |more: &[&str]| {
            let output = outputs.next().expect("three runs");
            let out = if words[0] == "sample" {
                vec!["--out", &output]
            } else {
                vec![&*output]
            };
            succeeds(&[&words[..1], &words[1..2], &out[..], &words[2..], more].concat())
        };
        let short = keys(&run(&[]));
        for key in ["out", "shape", "channels", "dtype", "seconds"] {
            assert!(short.contains(&key.to_owned()), "{words:?}: {short:?}");
        }
        let speeds = |keys: &[String]| keys.iter().any(|key| key.contains("per second"));
        assert!(!speeds(&short), "{words:?}: {short:?}");
        let long = keys(&run(&["--verbose"]));
        assert!(
            speeds(&long) && long.len() > short.len(),
            "{words:?}: {long:?}"
        );
        assert!(
            short.iter().all(|key| long.contains(key)),
            "{short:?} {long:?}"
        );
        let object: serde_json::Value = serde_json::from_str(&run(&["--json"])).expect("JSON");
        let object = object.as_object().expect("an object");
        for key in long {
            assert!(
                object.contains_key(&key.replace(' ', "_")),
                "{words:?}: {key}"
            );
        }
    }
    let sampled = json(&[
        "sample",
        &source,
        "--samples-per-subject",
        "2",
        "--patch-size",
        "3,4,5",
    ]);
    assert_eq!(
        (&sampled["shape"], &sampled["dtype"]),
        (&json!([3, 4, 5]), &json!("int16"))
    );

    let labels = |name: &str, more: &[&str]| {
        let out = place.at(name);
        let words = ["infer", &source, &out, "--model", "threshold:0,1000"];
        let report = json(&[&words[..], &patches, more].concat());
        assert_eq!(report["shape"], json!([20, 24, 28]));
        (
            report["labels"].clone(),
            report["dtype"].clone(),
            report["channels"].clone(),
        )
    };
    let argmax = labels("argmax.zarr", &["--reduce", "argmax"]);
    assert_eq!(argmax, (json!([0, 1, 2]), json!("uint8"), json!(1)));
    let named = labels("named.zarr", &["--reduce", "argmax", "--labels", "4,300,4"]);
    assert_eq!(named, (json!([4, 300]), json!("uint16"), json!(1)));
    let mean = labels("mean.zarr", &[]);
    assert_eq!((mean.0, mean.2), (json!(null), json!(3)));
}

#[test]
fn progress_comes_in_lines_where_there_is_no_terminal() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let words = |interval: &str, target: &str| {
        let words = ["infer", &source, target, "--patch-size", "8"];
        let more = ["--threads", "1", "--progress-interval", interval];
        let command = command(&[&words[..], &more].concat()).output();
        let output = command.expect("it starts");
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let lines = words("0.0001", &place.at("a.zarr"));
    assert!(lines.lines().count() >= 2, "{lines}");
    for line in lines.lines() {
        let line = line.strip_prefix("voxpatch: predicting: ");
        let line = line.expect("it says who speaks");
        assert!(
            line.contains(" patches (") && line.contains(" patches/s, "),
            "{line}"
        );
        assert!(line.contains(" elapsed"), "{line}");
    }
    let last = lines.lines().last().expect("a line");
    assert!(
        last.contains("(100 %)") && !last.contains(" left"),
        "{lines}"
    );
    assert_eq!(words("0", &place.at("b.zarr")), "");
    assert_eq!(words("3600", &place.at("c.zarr")), "");
}

#[test]
fn the_demo_proposes_only_options_that_it_has() {
    let place = Place::new();
    fs::write(place.at("ct.zarr"), "somebody's").expect("it is ours");
    let keep = place.at("");
    let help = succeeds(&["demo", "--help"]);
    for words in [
        &["demo", "--size", "16", "--keep", &keep][..],
        &["demo", "--size", "64", "--memory", "1kB"],
    ] {
        let output = command(&[words, &["--json"]].concat())
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).expect("UTF-8");
        let options: Vec<&str> = line
            .split([' ', '(', ')', ','])
            .filter(|word| word.starts_with("--"))
            .map(str::trim)
            .collect();
        assert_eq!(options.len(), 1, "{line}");
        assert!(help.contains(options[0]), "{line}");
    }
}
