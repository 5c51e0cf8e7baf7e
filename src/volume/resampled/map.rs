//! The map from voxels of a grid to positions in a volume.

use crate::geometry::{Affine, Geometry};
use crate::region::Shape;

/// Distances, in voxels, that count as none: headers store affines in `f32`.
const SNAP: f64 = 1e-4;

/// The rounding error, in voxels, within which a position counts as one on a face between voxels.
pub(super) const ROUNDING: f64 = 1e-6;

/// The map from voxel indices of the new grid to those of the volume, along z, y, x.
///
/// A position is computed from the index of the voxel alone, always by the same operations, so that it does not depend
/// on the region that is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Map {
    /// For each axis of the volume: the factors of z, y, x of the grid, and the offset.
    pub(super) rows: [[f64; 4]; 3],
    /// `true` if each axis of the volume depends on the same axis of the grid alone.
    pub(super) is_separable: bool,
}

impl Map {
    /// Returns the map from a grid of this shape to the voxels of a volume; `None` if it does not exist.
    pub(super) fn between(own: &Geometry, grid: &Geometry, shape: Shape) -> Option<Self> {
        let indices = own.indices_of(grid)?;
        Some(Self::snapped(rows(&indices), shape))
    }

    /// Returns the map of independent axes: voxel `i` of the grid is at `(i + 1/2) * scale + shift - 1/2`.
    pub(super) fn along_axes(scale: [f64; 3], shift: [f64; 3], shape: Shape) -> Self {
        let mut rows = [[0.0; 4]; 3];
        for (a, row) in rows.iter_mut().enumerate() {
            row[a] = scale[a];
            row[3] = 0.5 * scale[a] + shift[a] - 0.5;
        }
        Self::snapped(rows, shape)
    }

    /// Removes rounding errors: an axis depends on others, or has fractions, only if that moves a voxel of the grid.
    fn snapped(mut rows: [[f64; 4]; 3], shape: Shape) -> Self {
        let far = shape.map(|n| float(n.saturating_sub(1)));
        for (a, row) in rows.iter_mut().enumerate() {
            let skewed: f64 = (0..3)
                .filter(|&b| b != a)
                .map(|b| (row[b] * far[b]).abs())
                .sum();
            if skewed > SNAP {
                continue;
            }
            for (b, factor) in row.iter_mut().enumerate().take(3) {
                if b != a {
                    *factor = 0.0;
                }
            }
            let whole = [row[a].round(), row[3].round()];
            let apart = (row[a] - whole[0]).abs() * far[a];
            if apart + (row[3] - whole[1]).abs() <= SNAP && whole[0] > 0.0 {
                (row[a], row[3]) = (whole[0], whole[1]);
            }
        }
        let is_separable = (0..3).all(|a| (0..3).all(|b| a == b || rows[a][b] == 0.0));
        Self { rows, is_separable }
    }

    /// Returns the position of a voxel along an axis of the volume.
    #[inline]
    pub(super) fn at(&self, axis: usize, [z, y, x]: [f64; 3]) -> f64 {
        let row = &self.rows[axis];
        row[0] * z + row[1] * y + row[2] * x + row[3]
    }

    /// Returns the position of voxel `n` along an axis, if the map is separable.
    #[inline]
    pub(super) fn along(&self, axis: usize, n: u64) -> f64 {
        self.rows[axis][axis] * float(n) + self.rows[axis][3]
    }

    /// Returns `true` if all positions along an axis are voxels of the volume.
    pub(super) fn is_whole(&self, axis: usize) -> bool {
        let row = &self.rows[axis];
        let skewed = (0..3).any(|b| b != axis && row[b] != 0.0);
        !skewed && row[axis].fract() == 0.0 && row[3].fract() == 0.0
    }

    /// Returns the affine map that applies `first`, and then this one.
    pub(super) fn after(&self, first: &[[f64; 4]; 3]) -> [[f64; 4]; 3] {
        self.rows.map(|row| {
            std::array::from_fn(|b| {
                let moved: f64 = (0..3).map(|a| row[a] * first[a][b]).sum();
                if b == 3 { moved + row[3] } else { moved }
            })
        })
    }

    /// Returns the lowest and the highest index along each axis of the grid in a box of positions; `None` if the map cannot
    /// be inverted.
    pub(super) fn back(&self, ends: [(f64, f64); 3]) -> Option<[(f64, f64); 3]> {
        let m = &self.rows;
        let cofactor = |r: usize, c: usize| {
            let ([r1, r2], [c1, c2]) = ([(r + 1) % 3, (r + 2) % 3], [(c + 1) % 3, (c + 2) % 3]);
            m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
        };
        let determinant: f64 = (0..3).map(|c| m[0][c] * cofactor(0, c)).sum();
        if determinant == 0.0 || !determinant.is_finite() {
            return None;
        }
        Some(std::array::from_fn(|b| {
            let (mut low, mut high) = (0.0, 0.0);
            for a in 0..3 {
                let factor = cofactor(a, b) / determinant;
                let [one, other] = [ends[a].0, ends[a].1].map(|end| factor * (end - m[a][3]));
                low += one.min(other);
                high += one.max(other);
            }
            (low, high)
        }))
    }

    /// Returns how many voxels along an axis of the volume neighboring voxels of the grid are apart, at most.
    pub(super) fn step(&self, axis: usize) -> f64 {
        let row = &self.rows[axis];
        row[..3].iter().map(|n| n * n).sum::<f64>().sqrt()
    }

    /// Returns the lowest and the highest position along an axis of the volume of voxels from `first` to `last`.
    pub(super) fn span(&self, axis: usize, first: Shape, last: Shape) -> (f64, f64) {
        let row = &self.rows[axis];
        let (mut low, mut high) = (row[3], row[3]);
        for b in 0..3 {
            let [one, other] = [first[b], last[b]].map(|n| row[b] * float(n));
            low += one.min(other);
            high += one.max(other);
        }
        (low, high)
    }
}

/// Returns the rows for z, y, x of a matrix for x, y, z.
fn rows(indices: &Affine) -> [[f64; 4]; 3] {
    std::array::from_fn(|a| {
        let row = indices[2 - a];
        [row[2], row[1], row[0], row[3]]
    })
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

pub(super) fn place(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a buffer in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_errors_of_headers_are_removed_and_nothing_else() {
        #[expect(clippy::cast_possible_truncation, reason = "as in a header")]
        let stored = |value: f64| f64::from(value as f32);
        let fine = Geometry::from_parts([2.5, 0.7, 0.7], [-300.1, 12.34, -250.7]);
        let turned = |angle: f64| {
            let (sin, cos) = angle.sin_cos();
            let mut geometry = fine;
            for column in 0..3 {
                let [x, y] = [fine.affine[0][column], fine.affine[1][column]];
                geometry.affine[0][column] = stored(cos * x - sin * y);
                geometry.affine[1][column] = stored(sin * x + cos * y);
            }
            Geometry::from_affine(geometry.affine)
        };
        let shape = [100, 512, 512];
        for angle in [0.0, 0.3, 1.0] {
            let exact = turned(angle);
            let map = Map::between(&exact, &exact.moved_to([3.0, -2.0, 40.0]), shape).unwrap();
            assert!(
                map.is_separable && (0..3).all(|a| map.is_whole(a)),
                "{angle} {map:?}"
            );
            assert_eq!(map.rows.map(|row| row[3]), [3.0, -2.0, 40.0]);
            let map = Map::between(&exact, &exact.coarsened([2.0, 1.5, 3.0]), shape).unwrap();
            assert!(map.is_separable && !map.is_whole(0) && !map.is_whole(1) && map.is_whole(2));
            let map = Map::between(&exact, &exact.moved_to([0.0, 0.0, 0.001]), shape).unwrap();
            assert!(map.is_whole(1) && !map.is_whole(2));
            let map = Map::between(&turned(angle), &turned(angle + 1e-4), shape).unwrap();
            assert!(!map.is_separable);
        }
    }
}
