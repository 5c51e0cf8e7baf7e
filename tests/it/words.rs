//! Whose words messages speak: the command's its flags, Python's its arguments, the library's neither.

use std::fs;
use std::path::{Path, PathBuf};

/// Files below a folder with an ending, without tests and what `skipped` names.
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

/// Lines of a file's code before its tests, with their numbers.
fn code(path: &Path, comment: &str) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("UTF-8");
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = (1..).zip(before_tests.lines());
    let lines = lines.filter(|(_, line)| !line.trim_start().starts_with(comment));
    lines.map(|(n, line)| (n, line.to_owned())).collect()
}

/// Whether a line has a flag of a command, such as `--force`.
fn names_a_flag(line: &str) -> bool {
    line.match_indices("--").any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + 2..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && after.is_some_and(|c| c.is_ascii_lowercase())
    })
}

/// Whether a line has an argument as Python writes it, such as `overwrite=True`.
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
        names_a_flag("replaced (--force)") && !names_a_flag("a -- b") && !names_a_flag("// -----x")
    );
    assert!(names_an_argument("\"use overwrite=True\"") && !names_an_argument("let x = 1"));
}
