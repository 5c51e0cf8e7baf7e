//! The throughput of the inner parts: `cargo bench --bench parts`.
//!
//! All volumes are in memory or in a temporary folder, so only the parts are measured: copies of boxes from chunks and
//! from mapped files, draws, sums of overlapping patches, reductions. `scripts/bench` measures whole commands.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use voxpatch::progress::silent;
use voxpatch::sampler::{
    Label, LabelIndex, LabelWeights, Sampler, SamplerOptions, WeightIndex, Weighted,
};
use voxpatch::volume::{Cached, CreateOptions, create};
use voxpatch::{
    Aggregator, AggregatorOptions, Blend, DType, Grid, Layout, MemoryVolume, Patch, Reduce, Region,
    Result, Shape, Uniform, Volume, VolumeExt, open,
};

const SHAPE: Shape = [160, 192, 224];
const PATCH: Shape = [96; 3];

/// A volume of synthetic voxels.
fn scan() -> MemoryVolume {
    let [z, y, x] = SHAPE;
    let values: Vec<f32> = (0..z * y * x).map(|i| float(i % 1009)).collect();
    MemoryVolume::from_vec(SHAPE, 1, values).expect("the voxels fill the shape")
}

fn float(n: u64) -> f32 {
    f32::from(u16::try_from(n).unwrap_or(u16::MAX))
}

fn bytes(shape: Shape, size: u64) -> Throughput {
    Throughput::Bytes(shape.iter().product::<u64>() * size)
}

/// Measures copies of boxes from decoded chunks and from a mapped file.
fn boxes(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let path = folder.path().join("scan.npy");
    store(&scan(), &path).expect("there is room for a small volume");
    let mapped = open(&path).expect("it was just written");
    let chunked = scan().with_chunks([1, 64, 64, 64]);
    let cached = Cached::new(Arc::new(chunked), 1 << 30);
    let region = Region::new([31, 40, 77], PATCH);
    let mut patch = Patch::zeros(region, 1, DType::F32).expect("a small patch");
    let mut group = criterion.benchmark_group("a box of 96^3 f32");
    group.throughput(bytes(PATCH, 4));
    let mut measure = |name: &str, volume: &dyn Volume| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| volume.read_into(region, black_box(patch.bytes_mut())));
        });
    };
    measure("out of decoded chunks of 64^3", &cached);
    measure("out of a mapped file", &*mapped);
    group.finish();
}

fn store(volume: &MemoryVolume, path: &Path) -> Result<()> {
    let all = volume.read(Region::whole(SHAPE))?;
    let target = create(path, Volume::layout(volume), &CreateOptions::default())?;
    target.write(all.region(), all.bytes())?;
    target.finish()
}

/// Measures draws of 300 places, the size of a loader's window.
fn draws(criterion: &mut Criterion) {
    let [z, y, x] = SHAPE;
    let labels = |i: u64| u8::from((i / 40).is_multiple_of(3)) + 2 * u8::from(i % 1_000 < 30);
    let labels: Vec<u8> = (0..z * y * x).map(labels).collect();
    let map: Arc<dyn Volume> = Arc::new(
        MemoryVolume::from_vec(SHAPE, 1, labels)
            .expect("the voxels fill the shape")
            .with_chunks([1, 64, 64, 64]),
    );
    let options = SamplerOptions::new(PATCH, 7);
    let uniform = Uniform::new(SHAPE, PATCH, 7).expect("the patch fits");
    let index = LabelIndex::build(&*map, 0, 1, &silent).expect("labels can be counted");
    let shares = LabelWeights::foreground();
    let label = Label::new(Arc::clone(&map), &index, &shares, &options).expect("there are labels");
    let index = WeightIndex::build(&*map, 0, 1, &silent).expect("weights can be added up");
    let weighted = Weighted::new(map, &index, &options).expect("there are weights");
    let samplers: [(&str, &dyn Sampler); 3] = [
        ("uniform", &uniform),
        ("label", &label),
        ("weighted", &weighted),
    ];
    let mut group = criterion.benchmark_group("draws of 300 places, blocks ready");
    group.throughput(Throughput::Elements(300));
    let ns: Vec<u64> = (0..300).collect();
    for (name, sampler) in samplers {
        group.bench_function(name, |bencher| {
            bencher.iter(|| sampler.draw_many(0, black_box(&ns)));
        });
    }
    group.finish();
}

/// Measures sums of overlapping patches and their reductions, written to a file.
fn aggregation(criterion: &mut Criterion) {
    let shape = [96, 96, 96];
    let grid = Grid::new(shape, [48; 3], [24; 3]).expect("the patch fits");
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let mut number = 0;
    let mut group = criterion.benchmark_group("patches of 48^3 that overlap by 24, into .npy");
    group.sample_size(20);
    for (name, blend, reduce, channels) in [
        ("crop, 1 channel", Blend::Crop, Reduce::Mean, 1),
        ("hann, 1 channel", Blend::Hann, Reduce::Mean, 1),
        ("hann, 8 channels to argmax", Blend::Hann, Reduce::Argmax, 8),
        (
            "hann, 8 channels to softmax",
            Blend::Hann,
            Reduce::Softmax,
            8,
        ),
    ] {
        let patches: Vec<Arc<Patch>> = grid
            .iter()
            .map(|region| {
                let values = (0..region.voxels() * channels).map(|i| float(i % 997));
                let patch = Patch::new(region, channels, values.collect::<Vec<f32>>());
                Arc::new(patch.expect("the voxels fill the patch"))
            })
            .collect();
        let options = AggregatorOptions::new(blend, reduce);
        let voxels = grid.len() * 48 * 48 * 48 * channels;
        group.throughput(Throughput::Elements(voxels));
        group.bench_function(name, |bencher| {
            let start = || {
                number += 1;
                let path = folder.path().join(format!("{number}.npy"));
                let channels_out = options.reduce.channels(channels);
                let dtype = options.reduce.dtype(DType::F32, channels);
                let layout = Layout::new(shape, channels_out, dtype);
                let output = create(&path, &layout, &CreateOptions::default());
                let output = output.expect("there is room for a small volume");
                Aggregator::new(grid.clone(), channels, options.clone(), output)
                    .expect("grid and output fit")
            };
            let run = |aggregator: Aggregator| {
                for (index, patch) in (0..).zip(&patches) {
                    aggregator.add(index, Arc::clone(patch))?;
                }
                aggregator.finish()
            };
            bencher.iter_batched(start, run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(parts, boxes, draws, aggregation);
criterion_main!(parts);
