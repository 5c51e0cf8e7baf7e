//! Decodes per random patch: the loader holds the chunks and pieces that coming patches need.

use super::hard::{of_volumes, uniform_of};
use super::*;
use crate::geometry::Geometry;
use crate::sampler::Border;
use crate::volume::{ChunkVoxels, Interpolation, Resample};

const PATCHES: u64 = 1500;

/// A volume of zeros that counts its decodes.
#[derive(Debug)]
pub(super) struct Counting {
    layout: Layout,
    decodes: AtomicUsize,
}

impl Counting {
    pub(super) fn new(shape: Shape, chunk: u64, dtype: DType) -> Arc<Self> {
        let layout = Layout {
            read_chunk: Some([1, chunk, chunk, chunk]),
            ..Layout::new(shape, 1, dtype)
        }
        .with_geometry(Geometry::from_parts([1.0; 3], [0.0; 3]));
        let decodes = AtomicUsize::new(0);
        Arc::new(Self { layout, decodes })
    }
}

impl Volume for Counting {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, _: Range<u64>, _: Region, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        self.decodes.fetch_add(1, Ordering::Relaxed);
        let [_, z, y, x] = self.layout.read_chunk.unwrap();
        let region = crate::region::chunk_region([index[1], index[2], index[3]], [z, y, x]);
        let bytes = usize::try_from(region.voxels()).unwrap() * self.layout.dtype.size();
        Ok(Chunk {
            channels: 0..1,
            region,
            voxels: ChunkVoxels::Stored(vec![0; bytes]),
        })
    }
}

/// Chunk and patch length, type, and the most decodes per patch at 128, 256 and 512 MiB, of a scan of
/// 1069 x 512 x 512 voxels. A loader that shares chunks among the patches in its buffer only decodes 7.05,
/// 4.76 and 3.02 in the first row, 2.83, 1.88 and 1.29 in the third, and 94.9, 78.8 and 58.9 in the last.
const MOST: [(u64, u64, DType, [f64; 3]); 4] = [
    (64, 96, DType::I16, [3.71, 2.12, 0.77]),
    (64, 96, DType::F32, [5.36, 3.71, 2.12]),
    (64, 64, DType::I16, [1.62, 1.12, 0.73]),
    (32, 128, DType::F32, [67.2, 43.5, 21.7]),
];

/// Runs the cases with all lengths divided by `scale`, and the budgets by its cube.
fn check(scale: u64, subjects: u64, threads: usize) {
    let plan = EpochPlan::new(subjects, PATCHES / subjects, 7).unwrap();
    let plan = plan.with_window(PATCHES);
    for (chunk, patch, dtype, most) in MOST {
        for (mib, most) in [128, 256, 512].into_iter().zip(most) {
            let shape = [1069 / subjects, 512, 512].map(|n| n / scale);
            let volumes: Vec<_> = (0..subjects)
                .map(|_| Counting::new(shape, chunk / scale, dtype))
                .collect();
            let list: Vec<_> = volumes
                .iter()
                .map(|volume| of_volumes("s", vec![("ct", Arc::clone(volume) as _)]))
                .collect();
            let options = LoaderOptions {
                threads,
                max_length: 1000,
                memory: (mib << 20) / scale.pow(3),
                table_bytes: 256 / scale.pow(3),
                ..LoaderOptions::default()
            };
            let make = uniform_of([patch / scale; 3], Border::Drop);
            let loader = Loader::new(Arc::new(list), make, &plan, 0, &options).unwrap();
            let count = loader.map(Result::unwrap).count();
            let decodes = volumes
                .iter()
                .map(|volume| volume.decodes.load(Ordering::Relaxed));
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let each = decodes.sum::<usize>() as f64 / count as f64;
            println!("{subjects} x {chunk} {patch} {dtype} {mib} MiB: {each:.2} of {most}");
            assert!(
                each <= most * 1.05,
                "{chunk} {patch} {dtype} {mib} MiB: {each} {most}"
            );
        }
    }
}

#[test]
fn random_patches_decode_a_third_to_a_half_of_what_sharing_in_a_buffer_would() {
    check(4, 1, 0);
}

#[test]
fn subjects_share_one_budget() {
    check(4, 3, 0);
}

/// Returns the decodes of random patches of a scan, on its own grid or on one whose voxels are `coarser` times as long.
fn decodes_on_a_grid(coarser: Option<f64>, patch: u64, augment: &Augmentation) -> usize {
    let volume = Counting::new([96, 128, 128], 16, DType::I16);
    let mut shown: Arc<dyn Volume> = Arc::clone(&volume) as _;
    if let Some(spacing) = coarser {
        let resample = Resample::default().with_spacing(Some([spacing; 3]));
        shown = shown.resampled(&resample).unwrap();
        assert!(shown.as_resampled().is_some());
    }
    let image = Image::new("ct", shown).with_interpolation(Interpolation::Linear);
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let options = LoaderOptions {
        threads: 0,
        memory: 1 << 20,
        augment: *augment,
        ..LoaderOptions::default()
    };
    let plan = EpochPlan::new(1, 300, 7).unwrap();
    let make = uniform_of([patch; 3], Border::Drop);
    let loader = Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options).unwrap();
    assert_eq!(loader.map(Result::unwrap).count(), 300);
    volume.decodes.load(Ordering::Relaxed)
}

#[test]
fn patches_on_another_grid_decode_the_chunks_of_the_scan_as_seldom_as_patches_of_their_size() {
    let none = Augmentation::default();
    let plain = decodes_on_a_grid(None, 25, &none);
    let coarse = decodes_on_a_grid(Some(1.5), 16, &none);
    let copied = decodes_on_a_grid(Some(2.0), 12, &none);
    println!("plain {plain}, 1.5 mm {coarse}, 2 mm {copied}");
    assert!(plain > 300, "{plain}");
    for decodes in [coarse, copied] {
        assert!(decodes * 10 <= plain * 12, "{decodes} and {plain}");
    }
    let turned = RandomAffine::default().with_degrees([[-5.0, 5.0]; 3]);
    let turned = Augmentation::default().with_affine(turned);
    let (plain, mapped) = (
        decodes_on_a_grid(None, 24, &turned),
        decodes_on_a_grid(Some(1.5), 16, &turned),
    );
    println!("turned: plain {plain}, 1.5 mm {mapped}");
    assert!(mapped * 10 <= plain * 12, "{mapped} and {plain}");
}

/// The full sizes: `cargo test --release --lib full_size -- --ignored --nocapture`.
#[test]
#[ignore = "it copies 60 GB"]
fn full_size_patches_decode_as_much_as_small_ones() {
    check(1, 1, 2);
}
