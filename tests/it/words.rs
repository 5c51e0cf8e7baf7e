//! The words in messages: the command names its flags, Python its arguments, and the library neither.

use std::fs;
use std::path::{Path, PathBuf};

use voxpatch::training::LoaderOptions;
use voxpatch::volume::ResumeOptions;
use voxpatch::{AggregatorOptions, ConvertOptions, InferenceOptions, OutputTarget};

use crate::tool::{Place, json, succeeds, voxels};

/// Returns the files below a folder with an extension, without tests and those in `skipped`.
fn sources(folder: &Path, ending: &str, skipped: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the crate's own folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("tests") || name == skipped || name == "__pycache__" {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path, ending, skipped));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// Returns the lines of a file's code before its tests, with their numbers.
fn code(path: &Path, comment: &str) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("UTF-8");
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = (1..).zip(before_tests.lines());
    let lines = lines.filter(|(_, line)| !line.trim_start().starts_with(comment));
    lines.map(|(n, line)| (n, line.to_owned())).collect()
}

/// Returns `true` if a line has a flag of the command, such as `--overwrite`.
fn names_a_flag(line: &str) -> bool {
    line.match_indices("--").any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + 2..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && after.is_some_and(|c| c.is_ascii_lowercase())
    })
}

/// Returns `true` if a line has an argument in Python's form, such as `overwrite=True`.
fn names_an_argument(line: &str) -> bool {
    let arguments = [
        "overwrite=",
        "trusted=",
        "allow_mixed=",
        "dtype=",
        "memory=",
        "tolerance=",
        "same_grid=",
    ];
    line.contains('"') && arguments.iter().any(|name| line.contains(name))
}

#[test]
fn messages_of_the_library_name_neither_flags_nor_arguments_and_those_of_python_no_flags() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let library = sources(&root.join("src"), ".rs", "bin");
    assert!(library.len() > 80, "{}", library.len());
    for path in library {
        for (n, line) in code(&path, "//") {
            if names_a_flag(&line) || names_an_argument(&line) {
                wrong.push(format!("{}:{n}: {line}", path.display()));
            }
        }
    }
    let bindings = sources(&root.join("python/src"), ".rs", "")
        .into_iter()
        .map(|path| (path, "//"));
    let package = sources(&root.join("python/voxpatch"), ".py", "")
        .into_iter()
        .map(|path| (path, "#"));
    for (path, comment) in bindings.chain(package) {
        for (n, line) in code(&path, comment) {
            if names_a_flag(&line) {
                wrong.push(format!("{}:{n}: {line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        names_a_flag("replaced (--overwrite)")
            && !names_a_flag("a -- b")
            && !names_a_flag("// -----x")
    );
    assert!(names_an_argument("\"use overwrite=True\"") && !names_an_argument("let x = 1"));
}

/// Returns the rows of the guide's table of options: name, default and Rust types.
fn options() -> Vec<(String, String, Vec<String>)> {
    let guide = include_str!("../../docs/guide/command-line.md");
    let (_, rest) = guide.split_once("| option |").expect("the table");
    let rows = rest
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells = |row: &str| -> Vec<String> {
        let cells = row.trim_matches('|').split('|');
        cells
            .map(|cell| cell.replace('`', "").trim().to_owned())
            .collect()
    };
    let rows = rows.map(|row| {
        let row = cells(row);
        let types = row[2].split(", ").map(str::to_owned).collect();
        (row[0].clone(), row[1].clone(), types)
    });
    rows.collect()
}

/// Returns the text of all sources of the library.
fn library() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let texts = sources(&root, ".rs", "bin").into_iter();
    texts
        .map(|path| fs::read_to_string(path).expect("UTF-8"))
        .collect()
}

/// Returns the text of all modules of the Python package.
fn python() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/voxpatch");
    let texts = sources(&root, ".py", "compat").into_iter();
    texts
        .map(|path| fs::read_to_string(path).expect("UTF-8"))
        .collect()
}

#[test]
fn an_option_has_the_same_name_in_the_library_and_in_the_command() {
    let options = options();
    assert!(options.len() > 25, "{}", options.len());
    let help: String = ["info", "convert", "sample", "infer", "stats"]
        .map(|command| succeeds(&[command, "--help"]))
        .concat();
    let library = library();
    let python = python();
    for (name, _, types) in options {
        assert!(help.contains(&format!("--{name}")), "--{name}");
        let word = name.replace('-', "_");
        let argument = [
            format!("{word}: "),
            format!("{word}="),
            format!("\"{word}\""),
        ];
        assert!(argument.iter().any(|text| python.contains(text)), "{word}=");
        for owner in types {
            let of = format!("pub struct {owner}");
            let (_, rest) = library.split_once(&of).unwrap_or_else(|| panic!("{owner}"));
            let end = rest.find("\n}").expect("a struct ends");
            let field = rest[..end].contains(&format!(" {word}: "));
            let method = library.contains(&format!("pub fn {word}(self"));
            assert!(
                field || method || owner == "LabelWeights",
                "{owner}::{word}"
            );
        }
    }
}

#[test]
fn defaults_are_the_same_in_the_library_and_in_the_command() {
    let patch = [10, 20, 31];
    let inference = InferenceOptions::new(patch);
    assert_eq!(inference.overlap, [5, 10, 15]);
    assert_eq!(inference.batch_size, 1);
    assert_eq!(inference.placement.to_string(), "edge");
    let memory = [
        inference.memory,
        LoaderOptions::default().memory,
        ConvertOptions::default().memory,
        ResumeOptions::default().memory,
    ];
    assert_eq!(memory, [256 << 20; 4]);
    let python = python();
    assert_eq!(python.matches("memory: int = 256 << 20").count(), 2);
    let blending = AggregatorOptions::default();
    assert_eq!(
        (blending.blend.to_string(), blending.fill),
        ("hann".to_owned(), 0.0)
    );
    let target = OutputTarget::new("a.zarr").blending;
    assert_eq!(
        (target.blend, target.reduce),
        (blending.blend, blending.reduce)
    );

    let place = Place::new();
    let source = place.small("in.zarr");
    let words = ["--patch-size", "10,12,9", "--chunk", "8"];
    let said = [
        "--overlap",
        "5,6,4",
        "--blend",
        "hann",
        "--memory",
        "256MiB",
        "--batch-size",
        "1",
    ];
    let run = |name: &str, more: &[&str]| {
        let target = place.at(name);
        let report = json(&[&["infer", &source, &target][..], &words, more].concat());
        (report["patches"].clone(), voxels(&target))
    };
    assert_eq!(run("a.zarr", &[]), run("b.zarr", &said));
    let help = succeeds(&["infer", "--help"]) + &succeeds(&["sample", "--help"]);
    assert_eq!(help.matches("[default: 256MiB]").count(), 2);
}
