//! The command under test, and volumes for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value as Json;
use voxpatch::volume::{CreateOptions, create};
use voxpatch::{
    ConvertOptions, Element, Geometry, Layout, MemoryVolume, Region, Shape, Volume, VolumeExt,
    Voxels,
};

/// Returns the command with these arguments and empty standard input.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxpatch"));
    command.args(args).stdin(Stdio::null());
    // On a slow machine, a command of a test may be long enough for lines of progress.
    command.env("VOXPATCH_PROGRESS_INTERVAL", "0");
    ends_with_its_test(&mut command);
    command
}

/// Makes the system kill the command when the thread that starts it ends: one that would write for hours must not outlive
/// a test that fails or is killed.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "between fork and exec, few functions may be called"
)]
pub(crate) fn ends_with_its_test(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let signal = || {
        // SAFETY: a system call that changes nothing in memory; it may be made after a fork.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call, and allocates nothing where it succeeds.
    unsafe { command.pre_exec(signal) };
}

/// Other systems have no such signal.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ends_with_its_test(_: &mut Command) {}

fn run(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the command speaks UTF-8")
}

/// Returns the standard output of a run that must succeed without output on standard error.
pub(crate) fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{args:?}: {:?} {err}",
        output.status
    );
    assert_eq!(err, "", "{args:?} said something on standard error");
    out
}

/// Returns the object that a run with `--json` must print.
pub(crate) fn json(args: &[&str]) -> Json {
    let mut args = args.to_vec();
    args.push("--json");
    let out = succeeds(&args);
    let value: Json = serde_json::from_str(&out).expect("one JSON object");
    assert!(value.is_object(), "{out}");
    value
}

/// Returns the error line of a run that must fail with status 1 without output on standard output.
pub(crate) fn fails(args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{args:?}: {out} {err}");
    assert_eq!(out, "", "{args:?}");
    let line = err.strip_suffix('\n').expect("a whole line").to_owned();
    assert!(!line.contains('\n'), "more than one line: {err}");
    let message = line.strip_prefix("voxpatch: ").expect("it says who speaks");
    let causes: Vec<&str> = message.split(": ").collect();
    for (n, cause) in causes.iter().enumerate() {
        assert!(!causes[..n].contains(cause), "said twice: {line}");
    }
    line
}

/// Runs a command that clap must refuse.
pub(crate) fn is_refused(args: &[&str]) {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

/// Returns the names in a folder, sorted, including hidden ones.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder can be listed")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// A folder for one test, with helpers for its files.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of a name, as an argument.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Stores voxels under a name, in chunks of 8 and shards of 16 if it is a Zarr.
    pub(crate) fn store<T: Element>(
        &self,
        name: &str,
        shape: Shape,
        channels: u64,
        voxels: Vec<T>,
    ) -> String
    where
        Vec<T>: Into<Voxels>,
    {
        let geometry = Geometry::from_parts([2.0, 1.0, 0.5], [30.0, 20.0, 10.0]);
        self.store_at(name, shape, channels, voxels, geometry)
    }

    /// Stores the same with a different position in the world.
    pub(crate) fn store_at<T: Element>(
        &self,
        name: &str,
        shape: Shape,
        channels: u64,
        voxels: Vec<T>,
        geometry: Geometry,
    ) -> String
    where
        Vec<T>: Into<Voxels>,
    {
        let memory =
            MemoryVolume::from_vec(shape, channels, voxels).expect("the voxels fit the shape");
        let layout = Layout::new(shape, channels, T::DTYPE).with_geometry(geometry);
        let options = CreateOptions::default()
            .with_chunk([8; 3])
            .with_shard(Some([16; 3]));
        let path = self.at(name);
        let target = create(Path::new(&path), &layout, &options).expect("the folder is ours");
        let source: Arc<dyn Volume> = Arc::new(memory);
        voxpatch::convert(
            &source,
            target,
            &ConvertOptions::default(),
            &voxpatch::progress::silent,
        )
        .expect("memory can be copied");
        path
    }

    /// Stores a small volume of i16, 20 x 24 x 28, with distinct voxels.
    pub(crate) fn small(&self, name: &str) -> String {
        self.store(name, [20, 24, 28], 1, ramp(20 * 24 * 28))
    }
}

/// -2000, -1999, ...
pub(crate) fn ramp(count: i16) -> Vec<i16> {
    (0..count).map(|n| n - 2000).collect()
}

/// Returns all voxels of a volume (c, z, y, x).
pub(crate) fn voxels(path: &str) -> voxpatch::Patch {
    let volume = voxpatch::open(path).expect("the volume opens");
    let whole = Region::whole(volume.layout().shape);
    volume.read(whole).expect("the volume reads")
}

/// Returns the folder of real scans that `VOXPATCH_TEST_DATA` names. Tests that need it are ignored by default, so that
/// they are counted where it is absent.
pub(crate) fn scans() -> PathBuf {
    let folder = std::env::var_os("VOXPATCH_TEST_DATA")
        .expect("VOXPATCH_TEST_DATA names the folder of real scans");
    let folder = PathBuf::from(folder);
    assert!(
        folder.is_dir(),
        "VOXPATCH_TEST_DATA names {}, which is not a folder",
        folder.display()
    );
    folder
}
