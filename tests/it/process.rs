//! Processes: forked children, remaining threads, and limits of open files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use voxpatch::inference::{PatchMask, builtin_model};
use voxpatch::sampler::{Label, LabelIndex, LabelValue, LabelWeights, Sampler, SamplerOptions};
use voxpatch::training::{Dataset, LoaderOptions, Subject, UniformPatches};
use voxpatch::volume::{Codec, CreateOptions, create};
use voxpatch::{
    ConvertOptions, Error, InferenceOptions, Layout, MemoryVolume, OutputTarget, Predictor, Region,
    Volume, VolumeExt, open, progress,
};

use crate::training::alone;

const SHAPE: [u64; 3] = [24, 28, 20];

/// The time after which a waiting process counts as hung.
const PATIENCE: Duration = Duration::from_secs(100);

/// Creates a volume in every output format, and one that is compressed as a whole.
fn volumes(folder: &Path) -> Vec<PathBuf> {
    let voxels: Vec<u8> = (0..24 * 28 * 20_u32)
        .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 30).expect("two bits"))
        .collect();
    let memory = MemoryVolume::from_vec(SHAPE, 1, voxels).expect("they fit");
    let source: Arc<dyn Volume> = Arc::new(memory);
    let sharded = CreateOptions::default()
        .with_chunk([8; 3])
        .with_shard(Some([16; 3]));
    let blosc = CreateOptions::zarr2().with_codec(Codec::BloscLz4);
    let kinds = [
        ("a.zarr", sharded.clone()),
        ("blosc.zarr", blosc),
        ("a.npy", sharded.clone()),
        ("a.nii", sharded.clone()),
        ("a.nrrd", sharded.clone()),
        ("a.mhd", sharded),
    ];
    let mut paths = Vec::new();
    for (name, options) in kinds {
        let path = folder.join(name);
        let target = create(&path, source.layout(), &options).expect("it is begun");
        voxpatch::convert(
            &source,
            target,
            &ConvertOptions::default(),
            &progress::silent,
        )
        .expect("it is written");
        paths.push(path);
    }
    let packed = folder.join("b.nii.gz");
    let file = fs::File::create(&packed).expect("it can be made");
    let mut packer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    let bytes = fs::read(folder.join("a.nii")).expect("it is there");
    packer.write_all(&bytes).expect("it is packed");
    packer.finish().expect("it is packed");
    paths.push(packed);
    paths
}

/// Reads, draws by a label map, loads, selects by a mask, predicts and writes. Returns all resulting bytes.
fn everything(path: &Path, out: &Path) -> voxpatch::Result<Vec<u8>> {
    let volume = open(path)?;
    let mut bytes = volume.read(Region::whole(SHAPE))?.bytes().to_vec();

    let index = LabelIndex::build(&*volume, 0, 2, &progress::silent)?;
    let options = SamplerOptions::new([8; 3], 5);
    let shares = LabelWeights::new([(LabelValue::from(2_u8), 1.0)])?;
    let sampler = Label::new(Arc::clone(&volume), &index, &shares, &options)?;
    for region in sampler.draw_many(0, &[0, 1, 2, 3])? {
        bytes.extend(volume.read(region)?.bytes());
    }

    let subject = Subject::builder("a")
        .with_image("ct", Arc::clone(&volume))
        .build()?;
    let dataset = Dataset::new(vec![subject], UniformPatches::new([8; 3]))
        .samples_per_subject(20)
        .seed(3);
    for sample in dataset.epoch(0).threads(2).samples()? {
        bytes.extend(sample?.patches()[0].bytes());
    }

    let model = builtin_model("identity")?;
    let mut target = OutputTarget::new(out);
    target.store.overwrite = true;
    target.store.chunk = [8; 3];
    target.store.shard = Some([16; 3]);
    let options = InferenceOptions::new([12; 3])
        .with_overlap([4; 3])
        .with_threads(2);
    let plan = Predictor::new(Arc::clone(&volume), model, options).plan(&[target])?;
    let mask = PatchMask::from_volume(plan.grid(), &*volume)?;
    plan.with_patch_mask(mask)?.run(&progress::silent)?;
    bytes.extend(open(out)?.read(Region::whole(SHAPE))?.bytes());
    Ok(bytes)
}

/// Returns the number of threads of this process.
fn tasks() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn a_forked_child_does_all_that_its_parent_did_and_no_thread_is_left_in_either() {
    alone(
        "process::a_forked_child_does_all_that_its_parent_did_and_no_thread_is_left_in_either",
        || {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let before = tasks();
            let paths = volumes(folder.path());
            let all = |out: &str| -> Vec<Vec<u8>> {
                let one = |path: &PathBuf| everything(path, &folder.path().join(out));
                paths
                    .iter()
                    .map(one)
                    .map(|all| all.expect("all of it"))
                    .collect()
            };
            let expected = all("parent.zarr");
            let voxels = 24 * 28 * 20;
            assert!(
                expected
                    .iter()
                    .all(|bytes| bytes[..voxels] == expected[0][..voxels]),
                "one format differs"
            );
            wait_for_threads(before);
            for _ in 0..2 {
                let status = in_a_child(|| {
                    let same = all("child.zarr") == expected;
                    wait_for_threads(1);
                    same
                });
                assert_eq!(status, Some(0), "None: it took longer than {PATIENCE:?}");
            }
        },
    );
}

/// Waits for the threads of a pool, which end soon after it.
fn wait_for_threads(most: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while tasks() > most {
        assert!(
            Instant::now() < deadline,
            "{} threads are left of {most}",
            tasks()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` in a forked child, and returns its exit status: 0 if the result is `true`; `None` if it hung or died.
#[allow(unsafe_code, reason = "a fork without exec is what is tested")]
fn in_a_child(work: impl FnOnce() -> bool) -> Option<i32> {
    // SAFETY: no other thread of this process runs, except the test runner's, which waits. So no lock is held by a
    // thread that the child lacks, and the child leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "it can fork");
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: it ends the process without running any more of its code.
        unsafe { libc::_exit(i32::from(!matches!(done, Ok(true)))) };
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a local variable, and nobody else waits for the child.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended == child {
            return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        }
        if Instant::now() > deadline {
            // SAFETY: it is a child that has not been waited for yet.
            unsafe { libc::kill(child, libc::SIGKILL) };
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs one test of this binary alone, under a limit of the shell.
fn limited(test: &str, limit: &str) -> Option<()> {
    const LIMITED: &str = "VOXPATCH_TEST_LIMITED";
    if std::env::var_os(LIMITED).is_some() {
        return Some(());
    }
    let this = std::env::current_exe().expect("the test's own path");
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
        .arg(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(LIMITED, "1")
        .output()
        .expect("a shell starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{errors}"
    );
    None
}

/// With 1000 volumes and a limit of 64 open files, every volume is either read correctly or an error that names the
/// limit.
#[test]
fn too_many_open_files_are_an_error_and_never_voxels() {
    let name = "process::too_many_open_files_are_an_error_and_never_voxels";
    if limited(name, "-n 64").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |n: usize, kind: &str| folder.path().join(format!("{n}.{kind}"));
    let layout = Layout::new([4, 4, 4], 1, voxpatch::DType::U16);
    let options = CreateOptions::default().with_chunk([4; 3]).with_shard(None);
    let voxels = |n: usize| vec![u16::try_from(n + 1).expect("small"); 64];
    let whole = Region::whole([4; 3]);
    for n in 0..500 {
        for kind in ["zarr", "npy"] {
            let target = create(at(n, kind), &layout, &options).expect("it is begun");
            target
                .write(whole, bytemuck::cast_slice(&voxels(n)))
                .expect("it is written");
            target.finish().expect("it is finished");
        }
    }
    // Zarr arrays do not keep files open; flat files keep one each.
    let (mut open_volumes, mut refused) = (Vec::new(), 0);
    for n in 0..500 {
        for kind in ["zarr", "npy"] {
            let read = open(at(n, kind)).and_then(|volume| {
                let patch = volume.read(whole)?;
                open_volumes.push(volume);
                Ok(patch)
            });
            match read {
                Ok(patch) => assert_eq!(patch.as_slice::<u16>().expect("u16"), voxels(n)),
                Err(Error::Io { source, .. }) => {
                    assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{source}");
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(
        refused > 0 && open_volumes.len() > 20,
        "{refused} {}",
        open_volumes.len()
    );
    drop(open_volumes);
    // If they are opened one after the other, as by a loader, all can be read.
    for n in 0..500 {
        for kind in ["zarr", "npy"] {
            let patch = open(at(n, kind)).and_then(|volume| volume.read(whole));
            assert_eq!(
                patch.expect("all of it").as_slice::<u16>().expect("u16"),
                voxels(n)
            );
        }
    }
    let kept: Vec<_> = (0..500)
        .map(|n| open(at(n, "zarr")).expect("it holds no file"))
        .collect();
    for (n, volume) in kept.iter().enumerate() {
        let patch = volume.read(whole).expect("all of it");
        assert_eq!(patch.as_slice::<u16>().expect("u16"), voxels(n));
    }
}

/// Loaders that are created, read from and dropped at any moment, under a watchdog.
#[test]
fn loaders_dropped_at_any_moment_join_their_threads_at_once() {
    alone(
        "process::loaders_dropped_at_any_moment_join_their_threads_at_once",
        || {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = volumes(folder.path()).remove(0);
            let subject = Subject::builder("a")
                .with_image("ct", open(path).expect("a volume"))
                .build()
                .expect("a subject");
            let dataset = Dataset::new(vec![subject], UniformPatches::new([8; 3]))
                .samples_per_subject(1000)
                .seed(3);
            let before = tasks();
            let mut longest = Duration::ZERO;
            for cycle in 0..1000 {
                let options = LoaderOptions::default()
                    .with_threads(cycle % 9)
                    .with_max_length(1 + cycle % 13);
                let builder = dataset.epoch(0).with_options(options);
                let mut loader = builder.samples().expect("a loader");
                for sample in (&mut loader).take(cycle % 7) {
                    sample.expect("a sample");
                }
                let began = Instant::now();
                drop(loader);
                longest = longest.max(began.elapsed());
                // A joined thread remains in the list for a moment.
                wait_for_threads(before);
            }
            assert!(longest < Duration::from_secs(5), "{longest:?}");
        },
    );
}
