//! Padding: the values of voxels beyond a volume's faces.
//!
//! A patch that extends beyond the volume is computed from the part of the volume that it needs, its *source*. Only
//! patches are padded, never volumes.

use std::fmt;
use std::str::FromStr;

use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::words::Word;

/// The values of voxels beyond the faces of a volume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Padding {
    /// One value, in the units of the patch's voxels: real values after slope and intercept, or normalized values after
    /// a normalization. It must exist in the voxels' type.
    Constant(f64),
    /// The nearest voxel.
    Edge,
    /// The volume mirrored at its outermost voxels, which are not repeated (numpy's `reflect`).
    Reflect,
    /// The volume repeated periodically.
    Wrap,
}

/// Returns `true` if voxels of a type can have a value; floats may round it.
pub(crate) fn has_value(dtype: DType, value: f64) -> bool {
    dtype.holds_value(value)
}

impl fmt::Display for Padding {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "constant:{value}"),
            Self::Edge => f.pad("edge"),
            Self::Reflect => f.pad("reflect"),
            Self::Wrap => f.pad("wrap"),
        }
    }
}

impl FromStr for Padding {
    type Err = Error;

    /// Parses `edge`, `reflect`, `wrap`, `constant` (0) or `constant:VALUE`.
    fn from_str(text: &str) -> Result<Self> {
        let word = Word::new("padding", text, "edge, reflect, wrap and constant[:VALUE]");
        Ok(match word.split() {
            ("edge", None) => Self::Edge,
            ("reflect", None) => Self::Reflect,
            ("wrap", None) => Self::Wrap,
            ("constant", None) => Self::Constant(0.0),
            ("constant", Some(value)) => {
                let [value] = word.numbers(value)?;
                Self::Constant(value)
            }
            _ => return Err(word.unknown()),
        })
    }
}

impl Padding {
    /// Checks that voxels of type `dtype` can have the constant; `name` is the name of their volume in messages.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if they cannot.
    pub(crate) fn check(self, dtype: DType, name: &str) -> Result<()> {
        let Self::Constant(value) = self else {
            return Ok(());
        };
        if has_value(dtype, value) {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            argument: "padding",
            value: value.to_string(),
            problem: format!("voxels of {name} are {dtype}, which does not have that value"),
        })
    }

    /// Returns the coordinate in `0..length` whose voxel is used at `at`; `None` if the constant is used.
    pub(crate) fn inside(self, at: i64, length: u64) -> Option<u64> {
        let last = i64::try_from(length).unwrap_or(i64::MAX) - 1;
        if (0..=last).contains(&at) {
            return Some(at.unsigned_abs());
        }
        let found = match self {
            Self::Constant(_) => return None,
            Self::Edge => at.clamp(0, last),
            Self::Reflect if last == 0 => 0,
            Self::Reflect => {
                let there = at.rem_euclid(2 * last);
                there.min(2 * last - there)
            }
            Self::Wrap => at.rem_euclid(last + 1),
        };
        Some(found.unsigned_abs())
    }

    /// Returns the box of a volume of `shape` that a patch at `region` needs; an empty box at the origin if it needs no
    /// voxel.
    #[must_use]
    pub fn source(self, region: Region, shape: Shape) -> Region {
        if region.is_inside(shape) {
            return region;
        }
        let mut source = Region::whole([0; 3]);
        for (a, &length) in shape.iter().enumerate() {
            let along = region.start[a]..region.end()[a];
            let (mut first, mut last) = (u64::MAX, 0);
            for at in along.filter_map(|at| self.inside(at, length)) {
                (first, last) = (first.min(at), last.max(at));
            }
            if first == u64::MAX {
                return Region::whole([0; 3]);
            }
            source.start[a] = i64::try_from(first).unwrap_or(i64::MAX);
            source.shape[a] = last - first + 1;
        }
        source
    }

    /// Fills `out`, the voxels of `region`, from `voxels`, those of its [`source`](Self::source).
    /// Both are row-major with `channels` channels of `dtype`; `shape` is the volume's.
    pub(crate) fn fill(
        self,
        (voxels, source): (&[u8], Region),
        (out, region): (&mut [u8], Region),
        channels: u64,
        dtype: DType,
        shape: Shape,
    ) {
        let value = if let Self::Constant(value) = self {
            value
        } else {
            0.0
        };
        let constant = with_element!(dtype, T => bytemuck::bytes_of(&T::from_f64(value)).to_vec());
        let maps: [Vec<Option<usize>>; 3] = std::array::from_fn(|a| {
            let along = region.start[a]..region.end()[a];
            let place = |at| {
                let inside = i64::try_from(self.inside(at, shape[a])?).ok()?;
                usize::try_from(inside - source.start[a]).ok()
            };
            along.map(place).collect()
        });
        let size = dtype.size();
        let [nz, ny, nx] = source
            .shape
            .map(|n| usize::try_from(n).expect("the source is in memory"));
        let lines = usize::try_from(channels).unwrap_or(0) * maps[0].len() * maps[1].len();
        let mut rows = out
            .chunks_exact_mut((maps[2].len() * size).max(1))
            .take(lines);
        for c in 0..usize::try_from(channels).unwrap_or(0) {
            for z in &maps[0] {
                for y in &maps[1] {
                    let Some(row) = rows.next() else { return };
                    let line = z.zip(*y).map(|(z, y)| ((c * nz + z) * ny + y) * nx);
                    for (out, x) in row.chunks_exact_mut(size).zip(&maps[2]) {
                        let from = line.zip(*x).map(|(line, x)| (line + x) * size);
                        out.copy_from_slice(
                            from.map_or(&constant[..], |at| &voxels[at..at + size]),
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_is_continued_as_numpy_pads() {
        let padded = |padding: Padding| -> Vec<u16> {
            let region = Region::new([0, 0, -5], [1, 1, 13]);
            let source = padding.source(region, [1, 1, 4]);
            let row: Vec<u16> = vec![1, 2, 3, 4];
            let from = usize::try_from(source.start[2]).unwrap();
            let held = &row[from..from + usize::try_from(source.shape[2]).unwrap()];
            let mut out = vec![0_u16; 13];
            let target = (bytemuck::cast_slice_mut(&mut out), region);
            padding.fill(
                (bytemuck::cast_slice(held), source),
                target,
                1,
                DType::U16,
                [1, 1, 4],
            );
            out
        };
        assert_eq!(
            padded(Padding::Edge),
            [1, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 4, 4]
        );
        assert_eq!(
            padded(Padding::Reflect),
            [2, 3, 4, 3, 2, 1, 2, 3, 4, 3, 2, 1, 2]
        );
        assert_eq!(
            padded(Padding::Wrap),
            [4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]
        );
        assert_eq!(
            padded(Padding::Constant(9.0)),
            [9, 9, 9, 9, 9, 1, 2, 3, 4, 9, 9, 9, 9]
        );
        assert_eq!(
            padded(Padding::Constant(-1.0))[0],
            0,
            "a fill saturates as any value does"
        );
    }

    #[test]
    fn a_patch_far_outside_needs_nothing_or_the_nearest() {
        let far = Region::new([50, 0, 0], [2, 2, 2]);
        assert!(Padding::Constant(0.0).source(far, [4; 3]).is_empty());
        assert_eq!(
            Padding::Edge.source(far, [4; 3]),
            Region::new([3, 0, 0], [1, 2, 2])
        );
        assert_eq!(
            Padding::Reflect.source(Region::new([-3, 0, 0], [9, 1, 1]), [1; 3]),
            Region::whole([1; 3])
        );
    }

    proptest! {
        #[test]
        fn every_voxel_is_the_one_that_stands_there(
            start in [-9_i64..9, -9_i64..9, -9_i64..9], length in [1_u64..7, 1_u64..7, 1_u64..7],
            shape in [1_u64..6, 1_u64..6, 1_u64..6], channels in 1_u64..3,
            padding in prop::sample::select(vec![Padding::Constant(7.0), Padding::Edge, Padding::Reflect, Padding::Wrap]),
        ) {
            let count = usize::try_from(shape.iter().product::<u64>() * channels).unwrap();
            let volume: Vec<u16> = (100_u16..).take(count).collect();
            let volume = crate::patch::Patch::new(Region::whole(shape), channels, volume).unwrap();
            let region = Region::new(start, length);
            let source = padding.source(region, shape);
            let mut held = crate::patch::Patch::zeros(source, channels, DType::U16).unwrap();
            crate::patch::copy_common((volume.bytes(), volume.region()), (held.bytes_mut(), source), channels, 2);
            let mut out = crate::patch::Patch::zeros(region, channels, DType::U16).unwrap();
            padding.fill((held.bytes(), source), (out.bytes_mut(), region), channels, DType::U16, shape);
            let (volume, out) = (volume.to_array::<u16>().unwrap(), out.to_array::<u16>().unwrap());
            for ((c, z, y, x), &value) in out.indexed_iter() {
                let at: Option<Vec<usize>> = [z, y, x].iter().enumerate().map(|(a, &n)| {
                    let at = start[a] + i64::try_from(n).unwrap();
                    padding.inside(at, shape[a]).map(|n| usize::try_from(n).unwrap())
                }).collect();
                let expected = at.map_or(7, |at| volume[[c, at[0], at[1], at[2]]]);
                prop_assert_eq!(value, expected);
            }
        }
    }
}
