//! The time and memory of sampling by the label map of a chest CT of 1069 x 512 x 512 voxels.
//!
//! `cargo bench --bench labels` writes a map of four labels in chunks of 64^3 into a temporary folder and prints the
//! time from opening it to the first patch, the rate of draws, and the growth of anonymous memory since the program
//! started. It fails if memory grows by more than 64 MiB.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use voxpatch::progress::silent;
use voxpatch::sampler::{Label, LabelIndex, LabelWeights, Sampler, SamplerOptions};
use voxpatch::volume::{Codec, CreateOptions, create};
use voxpatch::{DType, Layout, Region, Result, Shape, VolumeExt, open};

const SHAPE: Shape = [1069, 512, 512];
const PATCH: Shape = [96; 3];
const ROUNDS: usize = 3;
const MOST_BYTES: u64 = 64 << 20;
/// The number of draws at a time: that of a small loader buffer, and that of an epoch's plan.
const WINDOWS: [u64; 2] = [300, 3000];
const DRAWS: u64 = 30_000;

struct Figures {
    first_patch: f64,
    rate: f64,
    megabytes: f64,
}

fn main() -> Result<()> {
    // Measured first, because memory that the allocator retains from earlier rounds would hide growth.
    let before = anonymous();
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let path = folder.path().join("labels.zarr");
    write(&path)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "| threads | places at once | seconds from open to first patch | places/s | MiB of anonymous memory |"
    );
    println!("|---|---|---|---|---|");
    // The first round only warms the page cache.
    measure(&path, threads, WINDOWS[0], before)?;
    for window in WINDOWS {
        let rounds = (0..ROUNDS).map(|_| measure(&path, threads, window, before));
        report(threads, window, &rounds.collect::<Result<Vec<_>>>()?);
    }
    Ok(())
}

/// Prints a line of medians.
fn report(threads: usize, window: u64, all: &[Figures]) {
    let median = |of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "| {threads} | {window} | {:.2} | {:.0} | {:.1} |",
        median(|f| f.first_patch),
        median(|f| f.rate),
        median(|f| f.megabytes)
    );
}

fn measure(path: &Path, threads: usize, at_once: u64, before: u64) -> Result<Figures> {
    let began = Instant::now();
    let map = open(path)?;
    let index = LabelIndex::build(&*map, 0, threads, &silent)?;
    let shares = LabelWeights::new([0, 1, 2, 3].map(|label| (label.into(), 1.0)))?;
    let options = SamplerOptions::new(PATCH, 7).with_memory(32 << 20);
    let sampler = Label::new(Arc::clone(&map), &index, &shares, &options)?;
    let first = map.read(sampler.draw(0, 0)?)?;
    let first_patch = began.elapsed().as_secs_f64();
    drop(first);
    let mut most = anonymous();
    let began = Instant::now();
    let mut inside = true;
    for window in 0..DRAWS / at_once {
        let ns: Vec<u64> = (window * at_once..(window + 1) * at_once).collect();
        let regions = sampler.draw_many(1, &ns)?;
        inside &= regions.iter().all(|region| region.is_inside(SHAPE));
        most = most.max(anonymous());
    }
    let seconds = began.elapsed().as_secs_f64();
    assert!(inside, "every patch lies in the volume");
    let grown = most.saturating_sub(before);
    assert!(grown < MOST_BYTES, "memory grew by {grown} bytes");
    Ok(Figures {
        first_patch,
        rate: float(DRAWS) / seconds,
        megabytes: float(grown >> 10) / 1024.0,
    })
}

/// Returns a body of label 1 with organs of labels 2 and 3.
fn write(path: &Path) -> Result<()> {
    let options = CreateOptions::default()
        .with_chunk([64; 3])
        .with_shard(None)
        .with_codec(Codec::Zstd);
    let target = create(path, &Layout::new(SHAPE, 1, DType::U8), &options)?;
    let [depth, height, width] = SHAPE;
    for z0 in (0..depth).step_by(64) {
        let planes = (depth - z0).min(64);
        let mut voxels = Vec::new();
        for z in z0..z0 + planes {
            for y in 0..height {
                voxels.extend((0..width).map(|x| label(z, y, x)));
            }
        }
        let start = [i64::try_from(z0).unwrap_or(0), 0, 0];
        target.write(Region::new(start, [planes, height, width]), &voxels)?;
    }
    target.finish()
}

fn label(z: u64, y: u64, x: u64) -> u8 {
    let square = |n: u64, center: u64| n.abs_diff(center).pow(2);
    let round = square(y, 256) + square(x, 256);
    if square(y % 128, 64) + square(x % 128, 64) + square(z % 128, 64) < 400 {
        return 3;
    }
    match round {
        0..10_000 => 2,
        10_000..48_000 => 1,
        _ => 0,
    }
}

/// Returns the anonymous memory of this process in bytes; 0 where the system does not report it.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

fn float(n: u64) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}
