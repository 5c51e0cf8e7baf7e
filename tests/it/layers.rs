//! The layers of `src/`: each uses only those below it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the bottom to the top. Only modules of the lowest layer may use each other.
const LAYERS: [&[&str]; 5] = [
    &[
        "error", "files", "region", "dtype", "geometry", "meter", "queue", "progress", "store",
        "threads", "words",
    ],
    &["patch", "pad", "grid"],
    &["volume"],
    &["sampler", "aggregator", "normalize"],
    &["training", "inference", "convert"],
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                let own = path
                    .strip_prefix(&root)
                    .expect("it lies in src")
                    .to_path_buf();
                found.push((own, text));
            }
        }
    }
    assert!(found.len() > 30, "src has more files than that");
    found
}

/// Returns the lines of code outside of tests, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let before_tests = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    before_tests
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn room(path: &Path) -> String {
    let first = path
        .iter()
        .next()
        .expect("a file has a name")
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&room))
}

/// Returns the modules that a line names after `crate::`.
fn used(line: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    line.match_indices("crate::")
        .flat_map(|(at, found)| {
            let rest = &line[at + found.len()..];
            match rest.strip_prefix('{') {
                Some(list) => list.split(',').map(word).collect(),
                None => vec![word(rest)],
            }
        })
        .collect()
}

/// Returns the modules that the names at the top of the library come from.
fn homes() -> HashMap<String, String> {
    let lib = include_str!("../../src/lib.rs").replace(",\n", ",");
    let mut homes = HashMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("pub use ")) {
        // Whole crates, such as `ndarray`, are not modules.
        let Some((room, names)) = line.split_once("::") else {
            continue;
        };
        for name in names.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            homes.insert(name.to_owned(), room.to_owned());
        }
    }
    assert_eq!(homes["Region"], "region");
    homes
}

#[test]
fn every_room_uses_only_rooms_below() {
    let homes = homes();
    for (path, text) in sources() {
        let own = room(&path);
        if own == "lib" || own == "bin" {
            continue;
        }
        let height = layer(&own).unwrap_or_else(|| panic!("{own} has no layer: add it to LAYERS"));
        for line in code(&text) {
            for other in used(line) {
                let other = homes.get(&other).unwrap_or(&other);
                let below = layer(other).unwrap_or_else(|| {
                    panic!("{}: `{}` names no room", path.display(), line.trim())
                });
                assert!(
                    *other == own || below < height || (below == 0 && height == 0),
                    "{}: {own} may not use {other}: {}",
                    path.display(),
                    line.trim()
                );
            }
        }
    }
}

#[test]
fn training_and_prediction_normalize_by_one_implementation() {
    let users: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| code(text).any(|line| line.contains("crate::normalize::")))
        .map(|(path, _)| room(path))
        .collect();
    assert!(users.iter().any(|room| room == "training"), "{users:?}");
    assert!(users.iter().any(|room| room == "inference"), "{users:?}");
    // Nobody else computes the mean and the deviation of a volume.
    for (path, text) in sources() {
        let own = room(&path);
        let computes = code(&text).any(|line| line.contains("fn deviation"));
        assert!(!computes || own == "normalize", "{}", path.display());
    }
}

#[test]
fn the_command_uses_the_public_library_and_its_own_files() {
    let own: Vec<String> = sources()
        .iter()
        .filter_map(|(path, _)| path.strip_prefix("bin/voxpatch").ok().map(room))
        .collect();
    for (path, text) in sources() {
        if !path.starts_with("bin") {
            continue;
        }
        for line in code(&text) {
            for used in used(line) {
                assert!(own.contains(&used), "{}: {}", path.display(), line.trim());
            }
        }
    }
}

/// Returns the modules of the command that a file uses: `infer`, `sample/draw`.
fn modules_used(path: &Path, text: &str, all: &[String]) -> Vec<String> {
    let own = module(path);
    let parent = if path.ends_with("mod.rs") {
        own.clone()
    } else {
        own.rsplit_once('/')
            .map_or(String::new(), |(parent, _)| parent.to_owned())
    };
    let mut found = Vec::new();
    let code: String = code(text).collect::<Vec<_>>().join(" ");
    for (start, base) in [("crate::", ""), ("super::", &*parent), ("self::", &*own)] {
        for (at, _) in code.match_indices(start) {
            let rest: String = code[at + start.len()..].chars().take(400).collect();
            let list = match rest.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap_or_default().to_owned(),
                None => rest
                    .split([';', '(', ')', ' ', ',', '<', '>', '{'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            };
            for name in list.split(',') {
                // A name belongs to the deepest module of its path.
                let mut place = base.to_owned();
                for part in name.trim().split("::") {
                    let deeper = format!("{place}/{part}").trim_start_matches('/').to_owned();
                    if !all.contains(&deeper) {
                        break;
                    }
                    place = deeper;
                }
                found.push(place);
            }
        }
    }
    found.retain(|name| !name.is_empty() && *name != own);
    found
}

/// Returns `sample/draw` for `bin/voxpatch/sample/draw.rs`, and `sample` for its `mod.rs`.
fn module(path: &Path) -> String {
    let inside = path
        .strip_prefix("bin/voxpatch")
        .unwrap_or(path)
        .with_extension("");
    let inside = inside.to_string_lossy().into_owned();
    inside
        .strip_suffix("/mod")
        .map_or(inside.clone(), str::to_owned)
}

/// Returns a cycle of files that use each other, if there is one.
fn circle(uses: &HashMap<String, Vec<String>>) -> Option<Vec<String>> {
    fn visit(
        name: &str,
        uses: &HashMap<String, Vec<String>>,
        way: &mut Vec<String>,
        done: &mut Vec<String>,
    ) -> Option<Vec<String>> {
        if let Some(at) = way.iter().position(|own| own == name) {
            return Some(way[at..].to_vec());
        }
        if done.iter().any(|own| own == name) {
            return None;
        }
        way.push(name.to_owned());
        for other in uses.get(name).into_iter().flatten() {
            if let Some(found) = visit(other, uses, way, done) {
                return Some(found);
            }
        }
        way.pop();
        done.push(name.to_owned());
        None
    }
    let mut names: Vec<&String> = uses.keys().collect();
    names.sort();
    let mut done = Vec::new();
    names
        .into_iter()
        .find_map(|name| visit(name, uses, &mut Vec::new(), &mut done))
}

#[test]
fn the_files_of_the_command_use_each_other_in_one_direction() {
    let sources: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| path.starts_with("bin"))
        .collect();
    let all: Vec<String> = sources.iter().map(|(path, _)| module(path)).collect();
    let uses: HashMap<String, Vec<String>> = sources
        .iter()
        .map(|(path, text)| (module(path), modules_used(path, text, &all)))
        .collect();
    assert!(uses["infer"].contains(&"parse".to_owned()), "{uses:?}");
    assert!(
        uses["sample"].contains(&"sample/draw".to_owned()),
        "{uses:?}"
    );
    assert!(
        uses["sample/draw"].contains(&"sample/budget".to_owned()),
        "{uses:?}"
    );
    assert!(uses["main"].contains(&"args".to_owned()), "{uses:?}");
    assert_eq!(circle(&uses), None);

    // Options that commands share do not use any command.
    let commands = [
        "info", "convert", "sample", "infer", "preview", "stats", "verify", "demo", "shell",
    ];
    for shared in [
        "parse", "common", "input", "storage", "blending", "report", "progress",
    ] {
        let wrong = uses[shared]
            .iter()
            .find(|name| commands.contains(&&***name));
        assert_eq!(wrong, None, "{shared}");
    }
    let mut circular = uses;
    let parse = circular.get_mut("parse").expect("a file");
    parse.push("infer".to_owned());
    assert!(circle(&circular).is_some());
}

#[test]
fn the_library_never_names_what_only_the_command_needs() {
    for (path, text) in sources() {
        if path.starts_with("bin") {
            continue;
        }
        for line in code(&text) {
            for name in ["clap", "anyhow", "indicatif", "signal_hook", "png"] {
                let named = [format!("{name}::"), format!("use {name}")];
                assert!(
                    !named.iter().any(|named| line.contains(named)),
                    "{}: {}",
                    path.display(),
                    line.trim()
                );
            }
        }
    }
}

#[test]
fn only_the_zarr_room_names_zarrs_and_only_the_map_is_unsafe() {
    for (path, text) in sources() {
        for line in code(&text) {
            assert!(
                !line.contains("zarrs::") || path.starts_with("volume/zarr"),
                "{}: {}",
                path.display(),
                line.trim()
            );
            let is_unsafe = line.contains("unsafe ") || line.contains("unsafe_code");
            assert!(
                !is_unsafe || path.starts_with("volume/mmap"),
                "{}: {}",
                path.display(),
                line.trim()
            );
        }
    }
}

#[test]
fn what_runs_networks_is_named_in_one_room_each() {
    for (name, home) in [
        ("tract_onnx", "inference/onnx"),
        ("use ort::", "inference/ort"),
    ] {
        let names_it = |(_, text): &&(PathBuf, String)| code(text).any(|l| l.contains(name));
        let sources = sources();
        let found: Vec<&Path> = sources.iter().filter(names_it).map(|(p, _)| &**p).collect();
        let inside =
            |path: &&Path| path.with_extension("") == Path::new(home) || path.starts_with(home);
        assert!(
            !found.is_empty() && found.iter().all(inside),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn upward_uses_are_seen_wherever_they_stand() {
    assert_eq!(used("use crate::volume::{Layout, open};"), ["volume"]);
    assert_eq!(used("use crate::{args, stop};"), ["args", "stop"]);
    assert_eq!(
        used("    crate::grid::check(&crate::queue::X)"),
        ["grid", "queue"]
    );
    assert_eq!(used("pub(crate) fn x()"), Vec::<String>::new());
}
