//! Random patches per second, for every kind of storage of one scan.
//!
//! `cargo bench --bench patches -- SCAN [FOLDER]` converts SCAN once into FOLDER (by default a temporary folder), and
//! reads random patches of it with a warm page cache. The kinds of storage alternate for several rounds. Prints
//! medians, and counts, which do not vary. `cargo run --release -- demo --keep DIR` makes a scan of the usual size:
//! `DIR/ct.zarr`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use voxpatch::progress::silent;
use voxpatch::training::{Dataset, LoaderOptions, Subject, UniformPatches};
use voxpatch::volume::{Codec, CreateOptions, create};
use voxpatch::{
    ConvertOptions, DType, Layout, Queue, Result, Uniform, Volume, VolumeExt, convert, open,
};

const ROUNDS: usize = 3;

/// A kind of storage of the scan.
struct Way {
    name: &'static str,
    dtype: DType,
    file: &'static str,
    chunk: u64,
    shard: Option<u64>,
    codec: Codec,
}

const fn way(
    name: &'static str,
    file: &'static str,
    dtype: DType,
    chunk: u64,
    shard: Option<u64>,
    codec: Codec,
) -> Way {
    Way {
        name,
        dtype,
        file,
        chunk,
        shard,
        codec,
    }
}

/// Storage for choosing chunks: patches are read one by one, without a cache.
const CHUNKS: [Way; 4] = [
    way(
        "32 in 128",
        "c32s128.zarr",
        DType::F32,
        32,
        Some(128),
        Codec::Zstd,
    ),
    way(
        "64 in 128",
        "c64s128.zarr",
        DType::F32,
        64,
        Some(128),
        Codec::Zstd,
    ),
    way(
        "32 in 256",
        "c32s256.zarr",
        DType::F32,
        32,
        Some(256),
        Codec::Zstd,
    ),
    way(
        "64 in 256",
        "c64s256.zarr",
        DType::F32,
        64,
        Some(256),
        Codec::Zstd,
    ),
];

/// Storage for the loader, the same as for the peers.
const LOADED: [Way; 5] = [
    way(
        "int16, 64, blosc-zstd",
        "i16bz.zarr",
        DType::I16,
        64,
        None,
        Codec::BloscZstd,
    ),
    way(
        "float32, 64, blosc-lz4",
        "f32lz4.zarr",
        DType::F32,
        64,
        None,
        Codec::BloscLz4,
    ),
    way(
        "float32, 64, none",
        "f32raw.zarr",
        DType::F32,
        64,
        None,
        Codec::None,
    ),
    way(
        "int16, 32 in 256, zstd",
        "i16s256.zarr",
        DType::I16,
        32,
        Some(256),
        Codec::Zstd,
    ),
    way("float32, .npy", "f32.npy", DType::F32, 1, None, Codec::None),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let Some(scan) = arguments.next() else {
        eprintln!("usage: cargo bench --bench patches -- SCAN [FOLDER]");
        return Ok(());
    };
    let temporary = tempfile::tempdir().expect("the temporary folder can be written");
    let folder = arguments
        .next()
        .map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let scan = open(&scan)?;
    for way in CHUNKS.iter().chain(&LOADED) {
        store(&scan, way, &folder.join(way.file))?;
    }
    println!(
        "| chunks and shards | patch | patches/s | chunks/patch | KiB read/patch | MiB stored |"
    );
    println!("|---|---|---|---|---|---|");
    let single = |way: &Way, patch: u64| one_by_one(&folder.join(way.file), patch);
    table(&CHUNKS, &[96, 128], single)?;
    println!("\n| stored as | memory | patches/s | chunks/patch | KiB read/patch | MiB stored |");
    println!("|---|---|---|---|---|---|");
    let loaded = |way: &Way, memory: u64| through_the_loader(&folder.join(way.file), memory);
    table(&LOADED, &[128, 256, 512], loaded)
}

/// Converts the scan unless it is already converted.
fn store(scan: &Arc<dyn Volume>, way: &Way, path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let options = CreateOptions::default()
        .with_chunk([way.chunk; 3])
        .with_shard(way.shard.map(|shard| [shard; 3]))
        .with_codec(way.codec);
    let layout = Layout {
        dtype: way.dtype,
        ..scan.layout().clone()
    };
    let target = create(path, &layout, &options)?;
    convert(scan, target, &ConvertOptions::default(), &silent)?;
    Ok(())
}

/// The result of one run.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    chunks: f64,
    kib: f64,
}

/// Runs all kinds of storage alternately, `ROUNDS` times, and prints a line of medians for each.
fn table(
    ways: &[Way],
    settings: &[u64],
    run: impl Fn(&Way, u64) -> Result<(Figures, f64)>,
) -> Result<()> {
    let mut all: Vec<Vec<(Figures, f64)>> = vec![Vec::new(); ways.len() * settings.len()];
    for round in 0..=ROUNDS {
        let cases = settings
            .iter()
            .flat_map(|&setting| ways.iter().map(move |way| (way, setting)));
        for ((way, setting), figures) in cases.zip(&mut all) {
            let found = run(way, setting)?;
            // The first round only warms the page cache.
            if round > 0 {
                figures.push(found);
            }
        }
    }
    let cases = settings
        .iter()
        .flat_map(|&setting| ways.iter().map(move |way| (way, setting)));
    for ((way, setting), mut figures) in cases.zip(all) {
        figures.sort_by(|a, b| a.0.rate.total_cmp(&b.0.rate));
        let (Figures { rate, chunks, kib }, stored) = figures[figures.len() / 2];
        println!(
            "| {} | {setting} | {rate:.0} | {chunks:.1} | {kib:.0} | {stored:.0} |",
            way.name
        );
    }
    Ok(())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn float(n: u64) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Reads patches in the order of the draws, on all threads, without a cache.
fn one_by_one(path: &Path, patch: u64) -> Result<(Figures, f64)> {
    const COUNT: u64 = 150;
    let volume = open(path)?;
    let draws = Uniform::new(volume.layout().shape, [patch; 3], 1)?;
    let source = Arc::clone(&volume);
    let began = Instant::now();
    let regions = (0..COUNT).map(move |n| draws.region(n));
    for patch in Queue::new(regions, threads(), 2 * threads(), move |region| {
        source.read(region)
    }) {
        patch?;
    }
    figures(
        &*volume,
        COUNT,
        began.elapsed().as_secs_f64(),
        volume.read_stats().chunks,
        volume.read_stats().bytes,
    )
}

/// Reads an epoch through the training loader, within a memory limit in MiB.
fn through_the_loader(path: &Path, memory: u64) -> Result<(Figures, f64)> {
    const COUNT: u64 = 1_500;
    let volume = open(path)?;
    let subject = Subject::builder("scan")
        .with_image("ct", Arc::clone(&volume))
        .build()?;
    let dataset = Dataset::new(vec![subject], UniformPatches::new([96; 3]))
        .samples_per_subject(COUNT)
        .seed(1);
    // Some memory is for chunks in progress and for the consumer's patch.
    let options = LoaderOptions::default()
        .with_max_length(2_000)
        .with_memory((memory - 20) << 20);
    let began = Instant::now();
    let mut loader = dataset.epoch(0).with_options(options).samples()?;
    for sample in &mut loader {
        sample?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let stats = loader.stats();
    figures(&*volume, COUNT, seconds, stats.chunks, stats.bytes)
}

fn figures(
    volume: &dyn Volume,
    count: u64,
    seconds: f64,
    chunks: u64,
    bytes: u64,
) -> Result<(Figures, f64)> {
    let figures = Figures {
        rate: float(count) / seconds,
        chunks: float(chunks) / float(count),
        kib: float(bytes / 1024) / float(count),
    };
    Ok((figures, float(volume.stored_bytes()? >> 20)))
}
