//! Tests of existing names, and of the outputs that may replace them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;
use crate::dtype::DType;
use crate::volume::{
    CreateOptions, Durability, Layout, OutputPart, ResumeOptions, create, resumable,
};

/// Returns the rule of each format, by extension.
fn outputs() -> [(&'static str, Overwrite); 6] {
    let flat = |format| {
        let layout = Layout {
            format,
            ..Layout::new([1; 3], 1, DType::U8)
        };
        Overwrite::by(&layout, true).unwrap()
    };
    [
        ("zarr", flat(Format::Zarr3)),
        ("npy", flat(Format::Npy)),
        ("nii", flat(Format::Nifti1)),
        ("nrrd", flat(Format::Nrrd)),
        ("mha", flat(Format::MetaImage)),
        ("nothing", Overwrite::Nothing),
    ]
}

/// Returns the outputs that may take the name.
fn takers(path: &Path) -> Vec<&'static str> {
    let takes = |(name, rule): (&'static str, Overwrite)| match rule.check(path) {
        Ok(()) => Some(name),
        Err(Error::NotOverwritable { .. } | Error::Exists { .. } | Error::Locked { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    outputs().into_iter().filter_map(takes).collect()
}

/// Writes a volume in the format of the name.
fn stored(path: &Path, options: &CreateOptions) {
    let layout = Layout::new([5, 6, 7], 2, DType::I16);
    create(path, &layout, options).unwrap().finish().unwrap();
}

fn small() -> CreateOptions {
    CreateOptions {
        chunk: [4; 3],
        shard: None,
        ..CreateOptions::default()
    }
}

fn names(outputs: &[&'static str]) -> Vec<&'static str> {
    outputs.to_vec()
}

#[test]
fn a_file_is_replaced_by_one_of_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let all = ["zarr", "npy", "nii", "nrrd", "mha", "nothing"];
    assert_eq!(takers(&at("free")), all);
    for name in ["a.npy", "a.nii", "a.nrrd", "a.mha"] {
        stored(&at(name), &small());
        assert_eq!(takers(&at(name)), [&name[2..]]);
    }
    stored(&at("a.nii.gz"), &small());
    assert_eq!(takers(&at("a.nii.gz")), ["nii"]);
    fs::write(at("empty"), b"").unwrap();
    assert_eq!(takers(&at("empty")), ["npy", "nii", "nrrd", "mha"]);
    for (name, text) in [("a.txt", "notes"), ("b.npy", "notes"), ("c.json", "{}")] {
        fs::write(at(name), text).unwrap();
        assert_eq!(takers(&at(name)), names(&[]), "{name}");
    }
    let protected = fs::Permissions::from_mode(0o444);
    fs::set_permissions(at("a.npy"), protected).unwrap();
    assert_eq!(takers(&at("a.npy")), names(&[]));
}

#[test]
fn a_folder_is_replaced_by_zarr_if_all_in_it_is_zarr() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    stored(&at("3.zarr"), &small());
    stored(&at("2.zarr"), &CreateOptions::zarr2());
    fs::create_dir(at("empty")).unwrap();
    for name in ["3.zarr", "2.zarr", "3.zarr/", "empty", "3.zarr/0"] {
        assert_eq!(takers(&at(name)), ["zarr"], "{name}");
    }
    // As other programs store it: labels below the image, keys with dots, consolidated metadata.
    let other = at("other.zarr");
    fs::create_dir_all(other.join("labels/cells/0/c/0/1")).unwrap();
    fs::create_dir_all(other.join("1")).unwrap();
    let group = r#"{"zarr_format": 3, "node_type": "group"}"#;
    let array = r#"{"zarr_format": 3, "node_type": "array"}"#;
    for (name, text) in [
        ("zarr.json", group),
        ("labels/zarr.json", group),
        ("labels/cells/zarr.json", group),
        ("labels/cells/0/zarr.json", array),
        ("labels/cells/0/c/0/1/2", "chunk"),
        ("1/.zarray", r#"{"zarr_format": 2}"#),
        ("1/.zattrs", "{}"),
        ("1/0.1.2", "chunk"),
        (".zmetadata", "{}"),
    ] {
        fs::write(other.join(name), text).unwrap();
    }
    assert_eq!(takers(&other), ["zarr"]);
    for (name, link) in [
        ("notes.txt", false),
        ("labels/notes.txt", false),
        ("labels/cells/0/notes.txt", false),
        ("labels/cells/0/c/0/1/notes.txt", false),
        ("labels/cells/0/c/0/1/3", true),
        (".DS_Store", false),
        ("1/1.1.x", false),
        ("zarr.json.bak", false),
    ] {
        let foreign = other.join(name);
        if link {
            symlink("2", &foreign).unwrap();
        } else {
            fs::write(&foreign, "mine").unwrap();
        }
        let error = Overwrite::Folder(FolderKind::ZARR)
            .check(&other)
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("holds {name}, which does not belong")),
            "{text}"
        );
        fs::remove_file(foreign).unwrap();
    }
    for folder in ["documents", "1/documents", "labels/cells/0/c/documents"] {
        fs::create_dir(other.join(folder)).unwrap();
        assert_eq!(takers(&other), names(&[]), "{folder}");
        fs::remove_dir(other.join(folder)).unwrap();
    }
    assert_eq!(takers(&other), ["zarr"]);
    // Names of chunks alone do not make an array.
    for document in ["notes", "{}", r#"{"zarr_format": 3, "node_type": "x"}"#] {
        fs::write(other.join("zarr.json"), document).unwrap();
        assert_eq!(takers(&other), names(&[]), "{document}");
    }
    fs::remove_file(other.join("zarr.json")).unwrap();
    assert_eq!(takers(&other), names(&[]));
}

#[test]
fn special_and_protected_entries_are_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    stored(&at("a.zarr"), &small());
    stored(&at("a.npy"), &small());
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/notes.txt"), "mine").unwrap();
    for name in ["a.zarr", "a.npy", "folder", "nowhere"] {
        let link = at(&format!("link to {name}"));
        symlink(at(name), &link).unwrap();
        assert_eq!(takers(&link), names(&[]), "{name}");
        for (_, rule) in outputs() {
            let text = rule.check(&link).unwrap_err().to_string();
            assert!(text.contains("is a symbolic link"), "{text}");
        }
    }
    assert_eq!(takers(&at("folder")), names(&[]));
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(at("fifo"))
        .status();
    assert!(fifo.unwrap().success());
    for (name, what) in [("socket", "a socket"), ("fifo", "a FIFO")] {
        assert_eq!(takers(&at(name)), names(&[]), "{name}");
        let text = Overwrite::File(FileKind::NPY).check(&at(name)).unwrap_err();
        assert!(text.to_string().contains(what), "{text}");
    }
    for folder in ["a.zarr/0", "a.zarr"] {
        fs::set_permissions(at(folder), fs::Permissions::from_mode(0o555)).unwrap();
        let error = Overwrite::Folder(FolderKind::ZARR).check(&at("a.zarr"));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("write-protected"), "{text}");
    }
    for folder in ["a.zarr", "a.zarr/0"] {
        fs::set_permissions(at(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(takers(&at("a.zarr")), ["zarr"]);
    if Path::new("/proc").is_dir() {
        for (_, rule) in outputs() {
            assert!(rule.check(Path::new("/proc")).is_err());
        }
        let text = Overwrite::Folder(FolderKind::ZARR).check(Path::new("/proc"));
        assert!(text.unwrap_err().to_string().contains("a mount point"));
    }
}

#[test]
fn an_output_that_is_not_complete_is_replaced_unless_a_process_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".out.zarr.partial");
    let layout = Layout::new([5, 6, 7], 2, DType::I16);
    let resume = ResumeOptions {
        part: OutputPart::new(1, 3).unwrap(),
        durability: Durability::None,
        ..ResumeOptions::default()
    };
    let output = resumable(dir.path().join("out.zarr"), &layout, &small(), &resume).unwrap();
    assert_eq!(takers(&partial), names(&[]));
    drop(output);
    assert_eq!(takers(&partial), ["zarr"]);
    for (name, foreign) in [
        ("notes.txt", true),
        ("data/notes.txt", true),
        ("lock.0-of-3", false),
    ] {
        fs::write(partial.join(name), "").unwrap();
        assert_eq!(takers(&partial).is_empty(), foreign, "{name}");
        fs::remove_file(partial.join(name)).unwrap();
    }
    assert_eq!(takers(&partial), ["zarr"]);
}
