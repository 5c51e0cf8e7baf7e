use super::*;

fn shares(near: Neighborhood, length: u64, draw: u64, numbers: u64) -> Vec<u64> {
    let mut counts = vec![0; usize::try_from(length).unwrap()];
    for epoch in 0..numbers {
        let mut own = CounterRng::new(3, epoch, draw);
        let k = near.below(&mut near.anchor(3, epoch, draw), &mut own, length);
        counts[usize::try_from(k).unwrap()] += 1;
    }
    counts
}

#[test]
fn the_sum_of_an_anchor_and_any_offset_is_exactly_uniform() {
    // All pairs of an anchor and an offset, counted: no statistics.
    for length in 1..=12_u64 {
        for part in 1..=length {
            let mut counts = vec![0_u64; usize::try_from(length).unwrap()];
            for anchor in 0..length {
                for offset in 0..part {
                    let k = turned(anchor, offset, length);
                    assert_eq!(k, (anchor + offset) % length);
                    counts[usize::try_from(k).unwrap()] += 1;
                }
            }
            assert!(counts.iter().all(|&count| count == part));
        }
    }
}

#[test]
fn every_draw_of_a_group_is_uniform_by_itself() {
    let near = Neighborhood::new(4, 0.2).unwrap();
    for draw in 0..4 {
        let counts = shares(near, 10, draw, 20_000);
        let deviate = crate::sampler::tests::deviate(&counts);
        assert!(deviate.abs() < 4.75, "draw {draw}: {counts:?}");
    }
}

#[test]
fn draws_of_a_group_are_within_its_width_and_others_elsewhere() {
    let near = Neighborhood::new(8, 1e-3).unwrap();
    for length in [1_000_000, (1 << 63) + 5, u64::MAX] {
        let draw = |n| {
            let mut own = CounterRng::new(1, 0, n);
            near.below(&mut near.anchor(1, 0, n), &mut own, length)
        };
        let distance = |a: u64, b: u64| a.abs_diff(b).min(length - a.abs_diff(b));
        for n in 0..400 {
            assert!(distance(draw(n), draw(n / 8 * 8)) <= length / 1000 + 1);
        }
        let anchors: Vec<u64> = (0..400).step_by(8).map(draw).collect();
        assert!(anchors.iter().max().unwrap() - anchors.iter().min().unwrap() > length / 2);
    }
    let mut own = CounterRng::new(1, 0, 5);
    let whole = Neighborhood::new(8, 1.0).unwrap();
    assert_eq!(whole.part(u64::MAX), u64::MAX);
    let first = whole.number(&mut whole.anchor(1, 0, 0), &mut own);
    assert!(first.abs_diff(whole.number(&mut whole.anchor(1, 0, 0), &mut own)) > 1 << 50);
    assert_eq!(Neighborhood::new(1, 1e-300).unwrap().part(u64::MAX), 1);
}

#[test]
fn a_box_has_its_part_of_the_voxels_and_no_axis_beyond_the_volume() {
    let near = Neighborhood::new(8, 1e-3).unwrap();
    assert_eq!(near.parts([1000; 3]), [100; 3]);
    assert_eq!(near.parts([1, 1000, 1000]), [1, 32, 31]);
    assert_eq!(near.parts([10, 1_000_000, 4]), [10, 1000, 4]);
    assert_eq!(near.parts([1; 3]), [1; 3]);
    let all = Neighborhood::new(8, 1.0).unwrap();
    assert_eq!(all.parts([7, 9, 8]), [7, 9, 8]);
    assert_eq!(all.parts([1 << 62; 3]), [1 << 62; 3]);
}

#[test]
fn the_curve_is_that_of_interleaved_bits() {
    let places = || (0..512_u64).map(|i| [i / 64, i / 8 % 8, i % 8]);
    let interleaved = |place: [u64; 3]| {
        (0..9).fold(0_u64, |key, bit| {
            key | (place[2 - bit % 3] >> (bit / 3) & 1) << bit_of(bit)
        })
    };
    for a in places() {
        for b in places() {
            assert_eq!(along_the_curve(a, b), interleaved(a).cmp(&interleaved(b)));
        }
    }
}

/// Returns the bit's place: at equal bits of the three axes, x is the highest, then y, then z.
fn bit_of(bit: usize) -> usize {
    bit / 3 * 3 + 2 - bit % 3
}

#[test]
fn an_invalid_neighborhood_is_refused() {
    for (draws, width) in [(0, 0.5), (1, 0.0), (1, -0.1), (1, 1.1), (1, f64::NAN)] {
        assert!(Neighborhood::new(draws, width).is_err(), "{draws} {width}");
    }
}
