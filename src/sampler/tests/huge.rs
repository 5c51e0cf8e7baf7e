//! Volumes larger than any memory, with equal chunks that are created on request.

use super::*;

/// A volume with one value, of which no chunk is stored.
#[derive(Debug)]
pub(super) struct Constant {
    layout: Layout,
    voxel: Vec<u8>,
}

impl Constant {
    pub(super) fn of<T: Element>(shape: Shape, chunk: Shape, value: T) -> Arc<dyn Volume> {
        let mut layout = Layout::new(shape, 1, T::DTYPE);
        layout.read_chunk = Some([1, chunk[0], chunk[1], chunk[2]]);
        Arc::new(Self {
            layout,
            voxel: bytemuck::bytes_of(&value).to_vec(),
        })
    }
}

impl Volume for Constant {
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn read_channels(&self, _: Range<u64>, _: Region, _: &mut [u8]) -> Result<()> {
        panic!("a volume larger than any memory is only read by chunks")
    }
    fn read_chunk(&self, [c, z, y, x]: [u64; 4]) -> Result<Chunk> {
        let [_, chunk @ ..] = self.layout.read_chunk.unwrap();
        Ok(Chunk {
            channels: c..c + 1,
            region: crate::region::chunk_region([z, y, x], chunk),
            voxels: ChunkVoxels::Fill(self.voxel.clone()),
        })
    }
}

pub(super) fn samplers(
    map: &Arc<dyn Volume>,
    wanted: &LabelWeights,
    options: &SamplerOptions,
) -> [Box<dyn Sampler>; 2] {
    let weights = WeightIndex::build(&**map, 0, 2, &silent).unwrap();
    let labels = LabelIndex::build(&**map, 0, 2, &silent).unwrap();
    [
        Box::new(Weighted::new(Arc::clone(map), &weights, options).unwrap()),
        Box::new(Label::new(Arc::clone(map), &labels, wanted, options).unwrap()),
    ]
}

/// Checks that residues of the flat index and of each coordinate, and the tenths of each axis, are drawn in proportion
/// to their number.
fn check_spread(sampler: &dyn Sampler, shape: Shape, draws: u64) {
    let ns: Vec<u64> = (0..draws).collect();
    check_spread_of(sampler, shape, &ns);
}

fn check_spread_of(sampler: &dyn Sampler, shape: Shape, ns: &[u64]) {
    let regions = sampler.draw_many(0, ns).unwrap();
    let starts = regions
        .iter()
        .map(|region| region.start.map(i64::unsigned_abs));
    let starts: Vec<[u64; 3]> = starts.collect();
    let check_shares = |what: &str, shares: &[f64], bin: &dyn Fn(&[u64; 3]) -> u64| {
        let mut counts = vec![0; shares.len()];
        for start in &starts {
            counts[usize::try_from(bin(start)).unwrap()] += 1;
        }
        let deviate = deviate_from(&counts, shares);
        let bins = shares.len();
        assert!(deviate.abs() < 4.75, "{what} {bins}: {deviate}, {counts:?}");
    };
    let check = |what: &str, bins: u64, bin: &dyn Fn(&[u64; 3]) -> u64| {
        check_shares(what, &vec![1.0; usize::try_from(bins).unwrap()], bin);
    };
    for modulus in [2, 4, 8, 16] {
        check("flat index mod", modulus, &|s| {
            ((s[0] * shape[1] + s[1]) * shape[2] + s[2]) % modulus
        });
    }
    for a in (0..3).filter(|&a| shape[a] > 1000) {
        for modulus in 2..=8 {
            // If the axis is not a multiple of the modulus, the first residues have one more voxel.
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let share = |r| ((shape[a] - 1 - r) / modulus + 1) as f64;
            let shares: Vec<f64> = (0..modulus).map(share).collect();
            check_shares("coordinate mod", &shares, &|s| s[a] % modulus);
        }
        let first_of = |tenth: u64| (tenth * shape[a]).div_ceil(10);
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let share = |tenth| (first_of(tenth + 1) - first_of(tenth)) as f64;
        let shares: Vec<f64> = (0..10).map(share).collect();
        check_shares("tenths", &shares, &|s| s[a] * 10 / shape[a]);
    }
}

#[test]
fn all_of_2_to_26_voxels_are_within_reach() {
    let shape = [64, 1024, 1024];
    let map = Constant::of(shape, [64; 3], 1_u8);
    for sampler in samplers(&map, &LabelWeights::foreground(), &options([1; 3])) {
        check_spread(&*sampler, shape, 60_000);
    }
}

#[test]
fn all_of_2_to_33_voxels_are_within_reach() {
    let shape = [2048, 2048, 2048];
    let map = Constant::of(shape, [64; 3], 1_u8);
    for sampler in samplers(&map, &LabelWeights::foreground(), &options([1; 3])) {
        check_spread(&*sampler, shape, 60_000);
    }
}

/// A volume of stored chunks, all with the same voxels.
#[derive(Debug)]
struct Stored {
    layout: Layout,
    voxels: Vec<u8>,
}

impl Volume for Stored {
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn read_channels(&self, _: Range<u64>, _: Region, _: &mut [u8]) -> Result<()> {
        panic!("the volume is only read by chunks")
    }
    fn read_chunk(&self, [c, z, y, x]: [u64; 4]) -> Result<Chunk> {
        Ok(Chunk {
            channels: c..c + 1,
            region: crate::region::chunk_region([z, y, x], [64; 3]),
            voxels: ChunkVoxels::Stored(self.voxels.clone()),
        })
    }
}

#[test]
fn stored_voxels_of_2_to_26_are_within_reach_too() {
    let shape = [64, 1024, 1024];
    let mut layout = Layout::new(shape, 1, DType::U8);
    layout.read_chunk = Some([1, 64, 64, 64]);
    let voxels = vec![1; 64 * 64 * 64];
    let map: Arc<dyn Volume> = Arc::new(Stored { layout, voxels });
    for sampler in samplers(&map, &LabelWeights::foreground(), &options([1; 3])) {
        check_spread(&*sampler, shape, 60_000);
    }
}

#[test]
fn neighborhoods_reach_every_place_equally_well() {
    for shape in [[64, 1024, 1024], [2048, 2048, 2048]] {
        let map = Constant::of(shape, [64; 3], 1_u8);
        let near = Neighborhood::new(8, 1e-3).unwrap();
        let options = options([1; 3]).with_neighborhood(near);
        let uniform = Uniform::with_options(shape, &options).unwrap();
        let by_map = samplers(&map, &LabelWeights::foreground(), &options);
        let all = by_map.iter().map(|sampler| &**sampler);
        // One draw of each group: groups are independent.
        let ns: Vec<u64> = (0..40_000).map(|group| group * 8 + group % 8).collect();
        for sampler in all.chain([&uniform as &dyn Sampler]) {
            check_spread_of(sampler, shape, &ns);
        }
    }
}

#[test]
fn more_than_2_to_50_voxels_are_within_reach() {
    let shape = [1 << 17; 3];
    let map = Constant::of(shape, [1 << 12; 3], 1_u8);
    for sampler in samplers(&map, &LabelWeights::foreground(), &options([1; 3])) {
        check_spread(&*sampler, shape, 40_000);
    }
}

#[test]
fn tiny_weights_of_2_to_40_voxels_add_up_to_one() {
    let shape = [1 << 10, 1 << 15, 1 << 15];
    let map = Constant::of(shape, [256; 3], 2.0_f64.powi(-40));
    let half = LabelValue::real(2.0_f64.powi(-40)).unwrap();
    let wanted = LabelWeights::new([(half, 1.0)]).unwrap();
    for sampler in samplers(&map, &wanted, &options([1; 3])) {
        check_spread(&*sampler, shape, 40_000);
    }
}

#[test]
fn long_axes_are_drawn_from_to_their_far_end() {
    for length in [65_535, 65_536, 65_537, 70_000, (1 << 31) + 1] {
        for a in 0..3 {
            let (mut shape, mut chunk, mut patch) = ([1; 3], [1; 3], [1; 3]);
            (shape[a], chunk[a], patch[a]) = (length, 1 << 16, length - 3);
            let map = Constant::of(shape, chunk, 5_u16);
            for sampler in samplers(&map, &shares([(5, 1.0)]), &options(patch)) {
                let places: BTreeSet<i64> = starts(&*sampler, 200).iter().map(|s| s[a]).collect();
                assert!(places.into_iter().eq(0..4), "{length}");
            }
            let ones = options([1; 3]);
            for sampler in samplers(&map, &shares([(5, 1.0)]), &ones) {
                let starts = starts(&*sampler, 500);
                let last = starts
                    .iter()
                    .map(|start| start[a].unsigned_abs())
                    .max()
                    .unwrap();
                assert!(
                    last < length && last > length / 100 * 97,
                    "{last} of {length}"
                );
            }
        }
    }
}

#[test]
fn a_patch_of_nearly_the_whole_axis_has_two_places_by_map_too() {
    let map = Constant::of([1, 1, 70_001], [1, 1, 1000], 1.0_f32);
    for sampler in samplers(&map, &LabelWeights::foreground(), &options([1, 1, 70_000])) {
        let places: BTreeSet<_> = starts(&*sampler, 60).into_iter().collect();
        assert!(places.into_iter().eq([[0, 0, 0], [0, 0, 1]]));
    }
}

#[test]
fn unstored_background_takes_no_memory_until_it_is_drawn() {
    let map = Constant::of([1 << 12, 1 << 12, 1 << 12], [64; 3], 0_u8);
    let labels = LabelIndex::build(&*map, 0, 2, &silent).unwrap();
    assert!(labels.tally.classes.is_empty());
    assert_eq!(labels.counts(), [(LabelValue::ZERO, 1 << 36)].into());
    let options = options([96; 3]);
    let background = Label::new(Arc::clone(&map), &labels, &shares([(0, 1.0)]), &options);
    let starts = starts(&background.unwrap(), 2000);
    assert!(
        starts
            .iter()
            .all(|start| start.iter().all(|s| (0..=4000).contains(s)))
    );
    assert!(starts.iter().any(|start| start[0] > 3900));
    let nothing = Label::new(map, &labels, &LabelWeights::foreground(), &options);
    assert!(matches!(nothing, Err(Error::NoCenter { .. })));
}
