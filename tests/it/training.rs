//! Training from volumes far larger than memory, within a measured budget.
//!
//! Memory is measured per process, so each test runs in a separate process. `VOXPATCH_PATCHES` sets the number of
//! patches; 10000 is the long form.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use voxpatch::sampler::{Label, LabelIndex, LabelWeights, SamplerOptions};
use voxpatch::training::{Dataset, Image, LoaderOptions, Subject, UniformPatches};
use voxpatch::volume::{CreateOptions, RawSpec, create, open};
use voxpatch::{DType, Layout, OpenOptions, Region, Shape};

const CHILD: &str = "VOXPATCH_TEST_CHILD";
/// 2^39 voxels: 1 TiB of u16.
const SHAPE: Shape = [8192; 3];
const SHARD: Shape = [128; 3];
const PATCH: Shape = [96; 3];
const BUDGET: u64 = 512 << 20;

/// Runs `work` in a separate process, which only runs the test of this name.
pub(crate) fn alone(test: &str, work: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return work();
    }
    let this = std::env::current_exe().expect("the test's own path");
    let output = Command::new(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("the test starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    print!("{text}");
}

/// Returns a line of `/proc/self/status` in bytes.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a number of kB")
        << 10
}

fn patches() -> u64 {
    let wanted = std::env::var("VOXPATCH_PATCHES");
    wanted.map_or(500, |n| n.parse().expect("a number of patches"))
}

/// Returns the stored shards: the first, the last, and some in between.
fn stored() -> impl Iterator<Item = Region> {
    [
        [0, 0, 0],
        [63, 63, 63],
        [17, 40, 5],
        [17, 40, 6],
        [50, 3, 33],
    ]
    .into_iter()
    .map(|at: [i64; 3]| Region::new(at.map(|n| n * 128), SHARD))
}

/// Returns `true` if a voxel is labeled: a ball in each stored shard.
fn is_labelled(z: u64, y: u64, x: u64) -> bool {
    let square = |n: u64| n.abs_diff(64).pow(2);
    square(z % 128) + square(y % 128) + square(x % 128) < 40 * 40
}

fn store(path: &Path, dtype: DType) {
    let options = CreateOptions::default()
        .with_chunk([64; 3])
        .with_shard(Some(SHARD));
    let output = create(path, &Layout::new(SHAPE, 1, dtype), &options).expect("it is created");
    for (value, region) in (1..).zip(stored()) {
        let mut bytes = Vec::new();
        for z in 0..128 {
            for y in 0..128 {
                for x in 0..128 {
                    let label = if is_labelled(z, y, x) { value } else { 0_u16 };
                    bytes.extend_from_slice(&label.to_ne_bytes()[..dtype.size()]);
                }
            }
        }
        output.write(region, &bytes).expect("it is written");
    }
    output.finish().expect("it is finished");
}

#[test]
fn a_tebibyte_with_its_labels_is_sampled_within_half_a_gibibyte() {
    alone(
        "training::a_tebibyte_with_its_labels_is_sampled_within_half_a_gibibyte",
        a_tebibyte,
    );
}

fn a_tebibyte() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [ct, label] = ["ct.zarr", "label.zarr"].map(|name| folder.path().join(name));
    store(&ct, DType::U16);
    store(&label, DType::U8);
    let image = |name: &str, path: &Path| Image::new(name, open(path).expect("it opens"));
    let images = vec![image("ct", &ct), image("label", &label)];
    assert_eq!(
        images[0]
            .volume
            .layout()
            .decoded_bytes()
            .expect("the test's own volumes are sound"),
        1 << 40
    );
    let subject = Subject::builder("huge")
        .with_images(images)
        .build()
        .expect("the test's own volumes are sound");
    // Labels are those of the stored shards, in thirds with all of the background.
    let samplers = |subject: &Subject, seed| {
        let map = Arc::clone(&subject.images()[1].volume);
        let index = LabelIndex::build(&*map, 0, 2, &voxpatch::progress::silent)?;
        let shares = LabelWeights::new([(0.into(), 1.0), (1.into(), 1.0), (5.into(), 1.0)])?;
        let options = SamplerOptions::new(PATCH, seed);
        let sampler = Label::new(map, &index, &shares, &options)?;
        Ok(sampler)
    };
    let dataset = Dataset::new(vec![subject], samplers)
        .samples_per_subject(patches())
        .seed(11);
    let builder = dataset.epoch(0).threads(2).memory(128 << 20);
    let (mut at, mut total) = ([0_u64; 3], 0);
    for sample in builder.samples().expect("the test's own volumes are sound") {
        let sample = sample.expect("the test's own volumes are sound");
        assert!(sample.region.is_inside(SHAPE));
        let labels = sample.patches()[1]
            .view::<u8>()
            .expect("the test's own volumes are sound");
        let values = sample.patches()[0]
            .view::<u16>()
            .expect("the test's own volumes are sound");
        let center = labels[[0, 48, 48, 48]];
        at[match center {
            0 => 0,
            1 => 1,
            other => {
                assert_eq!(other, 5, "no other label has a shard");
                2
            }
        }] += 1;
        assert!(
            values
                .iter()
                .zip(&labels)
                .all(|(&value, &label)| value == u16::from(label)),
            "both images are cut at one place"
        );
        total += 1;
    }
    assert_eq!(total, patches());
    // Five standard deviations of a third.
    for n in at {
        assert!(
            n.abs_diff(total / 3).pow(2) < 25 * total * 2 / 9 + 1,
            "{at:?}"
        );
    }
    let peak = memory("VmHWM");
    println!("{total} patches, at most {} MiB", peak >> 20);
    assert!(peak < BUDGET, "{} MiB", peak >> 20);
}

/// The same in a control group, in which the kernel kills a process that needs more, including the page cache.
#[test]
fn a_tebibyte_is_sampled_where_half_a_gibibyte_is_all_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let this = std::env::current_exe().expect("the test's own path");
    let test = "training::a_tebibyte_with_its_labels_is_sampled_within_half_a_gibibyte";
    let count = std::env::var("VOXPATCH_PATCHES").unwrap_or_else(|_| "100".to_owned());
    let output = Command::new(root.join("scripts/capped"))
        .arg((BUDGET >> 20).to_string())
        .arg(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("VOXPATCH_PATCHES", count)
        .output()
        .expect("the script starts");
    let [text, said] = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s));
    if output.status.code() == Some(77) {
        println!("SKIPPED, the memory limit was not tested: {said}");
        return;
    }
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{said}"
    );
    print!("{said}");
}

#[test]
fn a_mapped_file_of_200_gb_takes_no_more_memory_the_more_is_drawn() {
    alone(
        "training::a_mapped_file_of_200_gb_takes_no_more_memory_the_more_is_drawn",
        a_mapped_file,
    );
}

fn a_mapped_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("scan.raw");
    let shape = [6000, 6000, 5600];
    let file = File::create(&path).expect("it is created");
    if let Err(error) = file.set_len(6000 * 6000 * 5600) {
        println!("skipped: no sparse file of 200 GB here: {error}");
        return;
    }
    let options = OpenOptions::default().with_raw(Some(RawSpec::new(shape, DType::U8)));
    let images = vec![Image::new(
        "ct",
        options
            .open(&path)
            .expect("the test's own volumes are sound"),
    )];
    let subject = Subject::builder("raw")
        .with_images(images)
        .build()
        .expect("the test's own volumes are sound");
    let dataset = Dataset::new(vec![subject], UniformPatches::new([64; 3]))
        .samples_per_subject(patches().div_ceil(8))
        .seed(3);
    let options = LoaderOptions::default().with_threads(2).with_max_length(20);
    // One row per page: each patch costs four thousand page faults.
    let (mut early, mut mapped) = (0, 0);
    let builder = dataset.epoch(0).with_options(options);
    let loader = builder.samples().expect("the test's own volumes are sound");
    for (n, sample) in loader.enumerate() {
        let sample = sample.expect("the test's own volumes are sound");
        assert!(sample.patches()[0].bytes().iter().all(|&voxel| voxel == 0));
        mapped = memory("RssFile").max(mapped);
        if n == 20 {
            early = memory("RssAnon");
        }
    }
    let late = memory("RssAnon");
    println!(
        "{} KiB, then {} KiB, at most {} MiB mapped",
        early >> 10,
        late >> 10,
        mapped >> 20
    );
    assert!(mapped < 512 << 20, "pages are let go of: {mapped}");
    assert!(early > 0 && late < early + (16 << 20), "{early} {late}");
}
