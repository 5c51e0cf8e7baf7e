//! Existing files and folders under an output's name, for every command, with and without `--overwrite`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::tool::{Place, command, names};

/// The existing file or folder under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Had {
    Nothing,
    EmptyFile,
    OtherFile,
    Npy,
    Nifti,
    Picture,
    List,
    Statistics,
    Index,
    Zarr,
    ForeignZarr,
    ZarrWithNote,
    ZarrWithNoteBelow,
    Partial,
    Patches,
    Documents,
    EmptyFolder,
    LinkToFile,
    LinkToZarr,
    LinkToDocuments,
    LinkToNothing,
    Fifo,
    Socket,
    Device,
    MountPoint,
    ProtectedFile,
    ProtectedZarr,
}

use Had::{
    Device, Documents, EmptyFile, EmptyFolder, Fifo, ForeignZarr, Index, LinkToDocuments,
    LinkToFile, LinkToNothing, LinkToZarr, List, MountPoint, Nifti, Nothing, Npy, OtherFile,
    Partial, Patches, Picture, ProtectedFile, ProtectedZarr, Socket, Statistics, Zarr,
    ZarrWithNote, ZarrWithNoteBelow,
};

const ALL: [Had; 27] = [
    Nothing,
    EmptyFile,
    OtherFile,
    Npy,
    Nifti,
    Picture,
    List,
    Statistics,
    Index,
    Zarr,
    ForeignZarr,
    ZarrWithNote,
    ZarrWithNoteBelow,
    Partial,
    Patches,
    Documents,
    EmptyFolder,
    LinkToFile,
    LinkToZarr,
    LinkToDocuments,
    LinkToNothing,
    Fifo,
    Socket,
    Device,
    MountPoint,
    ProtectedFile,
    ProtectedZarr,
];

/// A way to write an output: its name, the words before it, and the kinds that `--overwrite` lets it replace.
struct Way {
    what: &'static str,
    name: &'static str,
    words: Vec<String>,
    replaces: &'static [Had],
    /// Without `--overwrite`, too.
    always: bool,
}

const FOLDERS: &[Had] = &[Zarr, ForeignZarr, Partial, EmptyFolder];

fn ways(place: &Place) -> Vec<Way> {
    let scan = place.at("scan.npy");
    let labels = place.at("labels.npy");
    let way = |what, name, words: &[&str], replaces| Way {
        what,
        name,
        words: words.iter().map(|&word| word.to_owned()).collect(),
        replaces,
        always: false,
    };
    let convert = ["convert", &scan, "OUT"];
    let infer = ["infer", &scan, "OUT", "--patch-size", "4", "--overlap", "2"];
    let sample = [
        "sample",
        &scan,
        "--patch-size",
        "2",
        "--samples-per-subject",
        "3",
    ];
    let with = |words: &[&'static str], more: &str| {
        let mut all: Vec<&str> = sample.to_vec();
        all.extend(words);
        all.push(more);
        all.iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<String>>()
    };
    let drawn = |words: &[&'static str]| with(words, "OUT");
    let side = |what, name, flag: &'static str, replaces| Way {
        what,
        name,
        words: drawn(&[flag]),
        replaces,
        always: false,
    };
    let mut index = side("--index", "out.index", "--index", &[EmptyFile, Index]);
    index.words.extend(["--labels".to_owned(), labels]);
    index.always = true;
    let resumed = [&infer[..], &["--resume"]].concat();
    let parts = [&infer[..], &["--part", "0/1"]].concat();
    let packed = [&infer[..], &["--codec", "zlib"]].concat();
    let tiles = [
        way("convert to tif", "out.tif", &convert, &[EmptyFile]),
        way("infer to tif", "out.ome.tif", &packed, &[EmptyFile]),
    ];
    let ways = vec![
        way("convert to Zarr", "out.zarr", &convert, FOLDERS),
        way("convert to npy", "out.npy", &convert, &[EmptyFile, Npy]),
        way("convert to nii", "out.nii", &convert, &[EmptyFile, Nifti]),
        way(
            "convert to nii.gz",
            "out.nii.gz",
            &convert,
            &[EmptyFile, Nifti],
        ),
        way("convert to nrrd", "out.nrrd", &convert, &[EmptyFile]),
        way("convert to mha", "out.mha", &convert, &[EmptyFile]),
        way("convert to mhd", "out.mhd", &convert, &[EmptyFile]),
        way("infer to Zarr", "out.zarr", &infer, FOLDERS),
        way("infer to npy", "out.npy", &infer, &[EmptyFile, Npy]),
        way("infer --resume", "out.zarr", &resumed, FOLDERS),
        way("infer --part", "out.zarr", &parts, FOLDERS),
        side("sample to Zarr", "out.zarr", "--out", FOLDERS),
        side("sample to npy", "out.npy", "--out", &[EmptyFile, Npy]),
        side(
            "sample to a folder",
            "out",
            "--out",
            &[Patches, EmptyFolder],
        ),
        side("--locations", "out.csv", "--locations", &[EmptyFile, List]),
        side("--stats", "out.json", "--stats", &[EmptyFile, Statistics]),
        side("--plot", "out.png", "--plot", &[EmptyFile, Picture]),
        index,
        way(
            "preview",
            "out.png",
            &["preview", &scan, "OUT"],
            &[EmptyFile, Picture],
        ),
    ];
    let tiles = tiles.into_iter().filter(|_| cfg!(feature = "tiff"));
    ways.into_iter().chain(tiles).collect()
}

/// Creates the existing file or folder from those in `stock`; an error if this process may not.
fn make(had: Had, path: &Path, stock: &Path) -> Result<Option<UnixListener>, String> {
    let of = |name: &str| stock.join(name);
    let copied = |name: &str| copy(&of(name), path);
    let theirs = path.parent().expect("a folder").join("theirs");
    match had {
        Nothing | LinkToNothing => {}
        EmptyFile | ProtectedFile => write(path, ""),
        OtherFile => write(path, "a file of somebody's"),
        Npy => copied("a.npy"),
        Nifti => copied("a.nii"),
        Picture => copied("a.png"),
        List => copied("a.csv"),
        Statistics => copied("a.json"),
        Index => copied("a.index"),
        Zarr | ZarrWithNote | ZarrWithNoteBelow | ProtectedZarr => copied("a.zarr"),
        ForeignZarr => copied("foreign.zarr"),
        Partial => copied("partial"),
        Patches => copied("patches"),
        Documents => {
            fs::create_dir(path).expect("it is free");
            write(&path.join("thesis.tex"), "years of work");
        }
        EmptyFolder | MountPoint => fs::create_dir(path).expect("it is free"),
        LinkToFile => write(&theirs, "a file of somebody's"),
        LinkToZarr => copy(&of("a.zarr"), &theirs),
        LinkToDocuments => {
            fs::create_dir(&theirs).expect("it is free");
            write(&theirs.join("thesis.tex"), "years of work");
        }
        Fifo => ran("mkfifo", &[path])?,
        Socket => return Ok(Some(UnixListener::bind(path).expect("a short path"))),
        Device => ran(
            "mknod",
            &[path, Path::new("c"), Path::new("1"), Path::new("3")],
        )?,
    }
    match had {
        ZarrWithNote => write(&path.join("notes.txt"), "mine"),
        ZarrWithNoteBelow => write(&path.join("0/c/0/notes.txt"), "mine"),
        LinkToFile | LinkToZarr | LinkToDocuments | LinkToNothing => {
            symlink(&theirs, path).expect("it is free");
        }
        MountPoint => ran(
            "mount",
            &[
                Path::new("-t"),
                Path::new("tmpfs"),
                Path::new("tmpfs"),
                path,
            ],
        )?,
        ProtectedFile | ProtectedZarr => protect(path, true),
        _ => {}
    }
    Ok(None)
}

fn ran(program: &str, words: &[&Path]) -> Result<(), String> {
    let done = Command::new(program).args(words).output();
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn protect(path: &Path, protected: bool) {
    let mode = match (path.is_dir(), protected) {
        (true, true) => 0o555,
        (true, false) => 0o755,
        (false, true) => 0o444,
        (false, false) => 0o644,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("the folder is ours");
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).expect("it is free");
        for entry in fs::read_dir(from).expect("it can be listed") {
            let entry = entry.expect("an entry");
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).expect("the folder is ours");
    }
}

/// Returns everything below a folder: its kind, and its content or target.
fn census(folder: &Path) -> BTreeMap<PathBuf, (String, Vec<u8>)> {
    census_of(folder, |_| true)
}

/// Returns the same without skipped files: a running command may remove its own files at any moment.
fn census_of(
    folder: &Path,
    is_wanted: impl Fn(&Path) -> bool,
) -> BTreeMap<PathBuf, (String, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("it can be listed") {
            let path = entry.expect("an entry").path();
            if !is_wanted(path.strip_prefix(folder).expect("below")) {
                continue;
            }
            let about = path.symlink_metadata().expect("it is there");
            let kind = about.file_type();
            let (what, bytes) = if kind.is_symlink() {
                let to = fs::read_link(&path).expect("a link");
                ("link", to.to_string_lossy().into_owned().into_bytes())
            } else if kind.is_dir() {
                folders.push(path.clone());
                ("folder", Vec::new())
            } else if kind.is_file() {
                ("file", fs::read(&path).expect("it can be read"))
            } else if kind.is_fifo() {
                ("fifo", Vec::new())
            } else if kind.is_socket() {
                ("socket", Vec::new())
            } else {
                ("device", about.rdev().to_le_bytes().to_vec())
            };
            let what = format!("{what} {:o} {}", about.mode(), about.ino());
            found.insert(
                path.strip_prefix(folder).expect("below").to_path_buf(),
                (what, bytes),
            );
        }
    }
    found
}

/// Returns the exit status and standard error of a command that must not hang.
fn ended(words: &[&str]) -> (Option<i32>, String) {
    let mut child = command(words)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let deadline = Instant::now() + Duration::from_mins(1);
    while child.try_wait().expect("it is ours").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it is ours");
            panic!("{words:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let done = child.wait_with_output().expect("it has ended");
    (
        done.status.code(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    )
}

/// Creates one of everything that the command writes, and more.
fn stock(place: &Place) -> PathBuf {
    let folder = place.path().join("stock");
    fs::create_dir(&folder).expect("it is free");
    let at = |name: &str| place.at(&format!("stock/{name}"));
    let scan = place.store("scan.npy", [6; 3], 1, (0..216_u8).collect::<Vec<_>>());
    place.store("labels.npy", [6; 3], 1, vec![1_u8; 216]);
    let chunks = ["--chunk", "4", "--shard", "none"];
    for (name, more) in [("a.npy", &[][..]), ("a.nii", &[]), ("a.zarr", &chunks)] {
        let words = ["convert", &scan, &at(name)];
        assert_eq!(ended(&[&words[..], more].concat()).0, Some(0));
    }
    assert_eq!(ended(&["preview", &scan, &at("a.png")]).0, Some(0));
    // An index of a different map: it is replaced, and not used.
    let other = place.store("other.npy", [6; 3], 1, vec![1_u8; 216]);
    let sample = [
        "sample",
        &scan,
        "--patch-size",
        "2",
        "--samples-per-subject",
        "3",
        "--labels",
        &other,
    ];
    let (csv, json, index, out) = (at("a.csv"), at("a.json"), at("a.index"), at("patches/"));
    let files = [
        "--locations",
        &csv,
        "--stats",
        &json,
        "--index",
        &index,
        "--out",
        &out,
    ];
    assert_eq!(ended(&[&sample[..], &files].concat()).0, Some(0));
    // A store of a different program: a group with a volume and its labels.
    let foreign = folder.join("foreign.zarr");
    fs::create_dir_all(foreign.join("labels")).expect("it is free");
    copy(&folder.join("a.zarr/0"), &foreign.join("raw"));
    copy(&folder.join("a.zarr/0"), &foreign.join("labels/cells"));
    for group in ["zarr.json", "labels/zarr.json"] {
        write(
            &foreign.join(group),
            r#"{"zarr_format": 3, "node_type": "group"}"#,
        );
    }
    // Half an output: that of one part of two.
    let half = at("half.zarr");
    let infer = [
        "infer",
        &scan,
        &half,
        "--patch-size",
        "4",
        "--overlap",
        "2",
        "--chunk",
        "2",
    ];
    let part = ["--shard", "none", "--part", "0/2"];
    assert_eq!(ended(&[&infer[..], &part].concat()).0, Some(0));
    fs::rename(folder.join(".half.zarr.partial"), folder.join("partial")).expect("it was begun");
    folder
}

/// The outcome of a command whose output's name was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Written,
    Replaced,
    Exists,
    Refused,
}

/// Runs a command whose output's name is taken, and checks the outcome.
fn judge(way: &Way, had: Had, force: bool, stock: &Path) -> Result<Came, String> {
    let at = Place::new();
    let path = at.path().join(way.name);
    let socket = make(had, &path, stock)?;
    let (before, own) = (census(at.path()), path.to_str().expect("UTF-8"));
    let words = way.words.iter();
    let words = words.map(|word| if word == "OUT" { own } else { word });
    let words: Vec<&str> = words.chain(force.then_some("--overwrite")).collect();
    let (status, said) = ended(&words);
    let after = census(at.path());
    let may = had == Nothing || (force || way.always) && way.replaces.contains(&had);
    let what = format!("{}, {had:?}, force {force}: {status:?} {said}", way.what);
    let exists = said.contains("exists already");
    if may {
        assert_eq!(status, Some(0), "{what}");
        assert_ne!(before, after, "{what}");
        let beside = if way.name == "out.mhd" { 2 } else { 1 };
        let left = names(at.path());
        assert_eq!(left.len(), beside, "{what}: {left:?}");
    } else {
        assert_eq!(status, Some(1), "{what}");
        assert_eq!(said.lines().count(), 1, "{what}");
        let told = exists || said.contains("is not replaced");
        assert!(told && said.contains(way.name), "{what}");
        assert!(before == after, "{what}: {before:?}\n{after:?}");
    }
    drop(socket);
    if had == MountPoint {
        ran("umount", &[&path]).expect("it was mounted");
    }
    if had == ProtectedZarr {
        protect(&path, false);
    }
    Ok(match (may, had) {
        (true, Nothing) => Came::Written,
        (true, _) => Came::Replaced,
        _ if exists => Came::Exists,
        _ => Came::Refused,
    })
}

#[test]
fn nothing_is_replaced_but_outputs_of_the_same_kind() {
    let place = Place::new();
    let stock = stock(&place);
    let (mut skipped, mut counts) = (BTreeMap::new(), [0; 4]);
    for way in ways(&place) {
        let mut table = String::new();
        for had in ALL {
            for force in [false, true] {
                match judge(&way, had, force, &stock) {
                    Ok(came) => {
                        counts[came as usize] += 1;
                        let flag = if force { " --overwrite" } else { "" };
                        let _ = write!(table, " {had:?}{flag}: {came:?};");
                    }
                    Err(why) => drop(skipped.insert(format!("{had:?}"), why)),
                }
            }
        }
        println!("{}:{table}", way.what);
    }
    let [written, replaced, exist, refused] = counts;
    println!(
        "{written} written, {replaced} replaced, {exist} exist, {refused} refused; skipped: {skipped:?}"
    );
    assert!(exist > 300 && refused > 400 && replaced > 20, "{counts:?}");
}

#[test]
fn what_takes_the_name_while_the_output_is_made_is_kept() {
    let place = Place::new();
    let stock = stock(&place);
    let shape = [96, 96, 96];
    let scan = place.store("large.npy", shape, 1, vec![1_u8; 96 * 96 * 96]);
    for (had, force) in [
        (Documents, false),
        (Documents, true),
        (Fifo, true),
        (LinkToDocuments, true),
        (ZarrWithNote, true),
        (OtherFile, true),
    ] {
        for resume in [false, true] {
            let at = Place::new();
            let path = at.at("out.zarr");
            let words = [
                "infer",
                &scan,
                &path,
                "--patch-size",
                "24",
                "--overlap",
                "16",
                "--threads",
                "1",
            ];
            let more = [("--overwrite", force), ("--resume", resume)];
            let more = more
                .iter()
                .filter(|(_, given)| *given)
                .map(|(flag, _)| *flag);
            let words: Vec<&str> = words.into_iter().chain(more).collect();
            let child = command(&words)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the command starts");
            let deadline = Instant::now() + Duration::from_mins(1);
            while names(at.path()).is_empty() {
                assert!(Instant::now() < deadline, "nothing was begun");
                std::thread::sleep(Duration::from_millis(1));
            }
            make(had, Path::new(&path), &stock).expect("it needs no rights");
            let is_visible = |path: &Path| !path.to_string_lossy().starts_with('.');
            let theirs = || census_of(at.path(), is_visible);
            let before = theirs();
            let done = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(1), "{had:?}: {said}");
            assert!(
                said.contains("out.zarr is not replaced") || said.contains("exists already"),
                "{had:?}: {said}"
            );
            assert!(before == theirs(), "{had:?}");
            let hidden = names(at.path())
                .iter()
                .filter(|name| name.starts_with('.'))
                .count();
            // An interruption right after the folder was created came before it had any content.
            let left = names(at.path());
            assert!(hidden <= usize::from(resume), "{had:?}: {left:?}");
        }
    }
}

#[test]
fn a_model_is_an_input() {
    let place = Place::new();
    let scan = place.store("scan.npy", [6; 3], 1, (0..216_u8).collect::<Vec<_>>());
    fs::create_dir(place.path().join("models")).expect("it is free");
    let net = place.at("models/net.onnx");
    write(Path::new(&net), "a network");
    for target in [
        net.clone(),
        place.at("models"),
        place.at("models/../models/net.onnx"),
    ] {
        let words = [
            "infer",
            &scan,
            &target,
            "--patch-size",
            "4",
            "--overlap",
            "2",
            "--model",
            &net,
        ];
        let (status, said) = ended(&[&words[..], &["--overwrite"]].concat());
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("is, contains or is inside the input") && said.contains("net.onnx"),
            "{said}"
        );
    }
    assert_eq!(fs::read(&net).expect("it is there"), b"a network");
}
