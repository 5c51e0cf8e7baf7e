//! Checks the licenses and sources of all dependencies against `deny.toml`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;

/// Returns the strings of a list of `deny.toml`.
fn list(name: &str) -> BTreeSet<String> {
    let text = include_str!("../../deny.toml");
    let begin = format!("\n{name} = [");
    let (_, rest) = text.split_once(&begin).expect("deny.toml has the list");
    let (inside, _) = rest.split_once(']').expect("the list ends");
    let words = inside.split('"').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

/// Returns `true` if the expression can be satisfied by allowed licenses: `A OR B`, `A AND (B OR C)`, `A/B`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (result, rest) = any_of(&words, allowed);
    assert!(rest.is_empty(), "{expression} is not understood");
    result
}

fn any_of<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut result, mut rest) = all_of(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (other, after) = all_of(more, allowed);
        (result, rest) = (result || other, after);
    }
    (result, rest)
}

fn all_of<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut result, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (other, after) = one(more, allowed);
        (result, rest) = (result && other, after);
    }
    (result, rest)
}

fn one<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    match words {
        ["(", inside @ ..] => {
            let (result, rest) = any_of(inside, allowed);
            (
                result,
                rest.strip_prefix(&[")"]).expect("a bracket is closed"),
            )
        }
        // An exception allows more than the license does.
        [license, "WITH", _, rest @ ..] | [license, rest @ ..] => {
            (allowed.contains(*license), rest)
        }
        [] => panic!("an expression ends too early"),
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["A".to_owned(), "B".to_owned()]);
    for (expression, expected) in [
        ("A", true),
        ("C", false),
        ("C OR A", true),
        ("C/A", true),
        ("A AND C", false),
        ("(A OR C) AND B", true),
        ("(A OR C) AND C", false),
        ("C OR A AND B", true),
        ("A AND C OR C", false),
        ("A WITH some-exception OR C", true),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn dependencies_have_licenses_and_sources_that_are_allowed() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--all-features",
            "--offline",
            "--manifest-path",
        ])
        .arg(manifest)
        .output()
        .expect("cargo starts");
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        println!("SKIPPED: cargo knows not all dependencies here: {error}");
        return;
    }
    let metadata: Json = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let (licenses, registries) = (list("allow"), list("allow-registry"));
    let banned = include_str!("../../deny.toml");
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        let license = package["license"].as_str().unwrap_or_default();
        assert!(!license.is_empty(), "{name} has no license");
        assert!(is_allowed(license, &licenses), "{name} is under {license}");
        // Packages without a source are in this repository.
        if let Some(source) = package["source"].as_str() {
            let registry = source.trim_start_matches("registry+");
            assert!(registries.contains(registry), "{name} comes from {source}");
        }
        assert!(
            !banned.contains(&format!("name = \"{name}\"")),
            "{name} is banned"
        );
    }
    assert!(packages.len() > 100, "only {} packages", packages.len());
}
