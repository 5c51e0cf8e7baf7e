//! The byte positions of a box's voxels in a flat file, and copying the voxels into rows.

use std::ops::Range;

use serde_json::{Value as Json, json};

use super::super::Layout;
use super::super::files::identity;
use super::super::format::FlatHeader;
use super::super::mmap::{FAULT, Lost, Map};
use super::super::slabs::Slabs;
use crate::dtype::{DType, swap_bytes};
use crate::region::{Region, indices};

/// Voxels at regular distances in a file, in any axis order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strided {
    /// The byte position of the first voxel.
    pub(super) start: u64,
    /// Distances between neighbors along c, z, y, x, in bytes.
    strides: [u64; 4],
    /// Bytes per voxel.
    size: u64,
}

/// Edge of a tile in voxels, for transposed copies: 64 rows of 8-byte voxels fit in the cache.
const TILE: usize = 64;

impl Strided {
    /// Creates the description of a checked header's voxels, with the first at byte `start`.
    pub(super) fn new(header: &FlatHeader, start: u64) -> Self {
        Self {
            start,
            strides: header.strides(),
            size: header.dtype.size() as u64,
        }
    }

    /// Returns a value that identifies the voxels in their file.
    pub(super) fn identity(&self, layout: &Layout, big_endian: bool) -> Json {
        let kind = json!({
            "first byte": self.start,
            "strides": self.strides,
            "big endian": big_endian,
            "codecs": layout.codecs,
        });
        identity(layout, &kind)
    }

    /// Returns `true` if rows along x are contiguous.
    const fn has_rows(&self) -> bool {
        self.strides[3] == self.size
    }

    /// Returns `true` if reading a box row by row only moves forward through the file.
    pub(super) fn is_planar(&self) -> bool {
        self.has_rows() && self.strides.is_sorted_by(|a, b| a >= b)
    }

    /// Returns the axes (0 to 3 for c, z, y, x) in the order of the file, slowest first.
    pub(super) fn order(&self) -> [usize; 4] {
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&axis| std::cmp::Reverse(self.strides[axis]));
        order
    }

    /// Splits a region with these lengths into boxes in file order, each spanning up to `bytes` of the file.
    pub(super) fn steps(&self, lengths: [u64; 4], bytes: u64) -> Slabs {
        Slabs::spanning(lengths, self.strides, self.order(), bytes)
    }

    /// Returns the byte range from the first to the last voxel of a box, which must not be empty.
    pub(super) fn span(&self, channels: &Range<u64>, region: Region) -> Range<u64> {
        let first = self.first(channels, region);
        let lengths = lengths(channels, region);
        let reach: u64 = (0..4).map(|a| (lengths[a] - 1) * self.strides[a]).sum();
        first..first + reach + self.size
    }

    /// Reports to the map the bytes that a read of a box touches: each plane from its first row to its last, or each
    /// row separately if rows are far apart.
    fn touch(&self, map: &Map, channels: &Range<u64>, region: Region) {
        if region.is_empty() || channels.is_empty() {
            return;
        }
        if !self.has_rows() {
            return map.touch(self.span(channels, region));
        }
        let [c, z, y, x] = lengths(channels, region);
        let first = self.first(channels, region);
        let [stride_c, stride_z, stride_y, _] = self.strides;
        let rows = if stride_y > FAULT { y } else { 1 };
        let length = x * self.size + if rows == 1 { (y - 1) * stride_y } else { 0 };
        for [c, z, y] in indices([0..c, 0..z, 0..rows]) {
            let start = first + c * stride_c + z * stride_z + y * stride_y;
            map.touch(start..start + length);
        }
    }

    /// Returns the first byte of a box inside the volume.
    fn first(&self, channels: &Range<u64>, region: Region) -> u64 {
        let [z, y, x] = region.start.map(i64::unsigned_abs);
        let at = [channels.start, z, y, x];
        self.start + (0..4).map(|a| at[a] * self.strides[a]).sum::<u64>()
    }

    /// Returns the length in bytes of the longest runs that are contiguous both in the file and in a row-major buffer
    /// of the box, and the number of runs along c, z and y.
    ///
    /// The box must be inside the volume, and rows along x must be contiguous.
    fn pieces(&self, channels: &Range<u64>, region: Region) -> (u64, [u64; 3]) {
        let [c, z, y, x] = lengths(channels, region);
        let mut outer = [c, z, y];
        let mut run = x * self.size;
        for (length, stride) in outer.iter_mut().zip(self.strides).rev() {
            if *length != 1 && stride != run {
                break;
            }
            run *= *length;
            *length = 1;
        }
        (run, outer)
    }

    /// Returns the length of those runs in bytes, and the start of each in the file, in the buffer's order.
    pub(super) fn runs(
        &self,
        channels: &Range<u64>,
        region: Region,
    ) -> (u64, impl Iterator<Item = u64> + use<>) {
        let (run, outer) = self.pieces(channels, region);
        let first = self.first(channels, region);
        let [stride_c, stride_z, stride_y, _] = self.strides;
        let starts = indices(outer.map(|length| 0..length))
            .map(move |[c, z, y]| first + c * stride_c + z * stride_z + y * stride_y);
        (run, starts)
    }

    /// Copies a box out of a mapped file and reports the touched bytes to the map.
    pub(super) fn copy_mapped(
        &self,
        map: &Map,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) -> Result<(), Lost> {
        map.read(|bytes| self.copy(bytes, 0, channels, region, out))?;
        self.touch(map, channels, region);
        map.trim();
        Ok(())
    }

    /// Copies a box into `out`, row-major. `source` holds the file's bytes from `base` on, at least those of the box.
    /// The box must be inside the volume and fill `out`.
    pub(super) fn copy(
        &self,
        source: &[u8],
        base: u64,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) {
        if out.is_empty() {
            return;
        }
        if !self.has_rows() {
            return match self.size {
                1 => self.turn::<1>(source, base, channels, region, out),
                2 => self.turn::<2>(source, base, channels, region, out),
                4 => self.turn::<4>(source, base, channels, region, out),
                _ => self.turn::<8>(source, base, channels, region, out),
            };
        }
        let (run, [nc, nz, ny]) = self.pieces(channels, region);
        let (run, rows) = (length(run), length(ny));
        let first = length(self.first(channels, region) - base);
        let strides = self.strides.map(length);
        let mut planes = out.chunks_exact_mut(run * rows);
        for c in 0..length(nc) {
            for (z, plane) in (0..length(nz)).zip(&mut planes) {
                let first = first + c * strides[0] + z * strides[1];
                for (y, target) in plane.chunks_exact_mut(run).enumerate() {
                    let at = first + y * strides[2];
                    target.copy_from_slice(&source[at..at + run]);
                }
            }
        }
    }

    /// As [`copy`](Self::copy), for files whose fastest axis is not x: copies tile by tile over that axis and x.
    fn turn<const N: usize>(
        &self,
        source: &[u8],
        base: u64,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) {
        let lengths = lengths(channels, region).map(length);
        let strides = self.strides.map(length);
        let [_, depth, height, width] = lengths;
        let steps = [depth * height * width * N, height * width * N, width * N, N];
        let fast = (0..3)
            .filter(|&axis| strides[axis] == N)
            .max_by_key(|&axis| lengths[axis])
            .expect("some axis is the fastest");
        // The two axes other than `fast` and x; the slower one in the file is the outer loop.
        let others = [[1, 2], [0, 2], [0, 1]][fast];
        let [outer, inner] = if strides[others[0]] < strides[others[1]] {
            [others[1], others[0]]
        } else {
            others
        };
        let first = length(self.first(channels, region) - base);
        for i in 0..lengths[outer] {
            for j in 0..lengths[inner] {
                let from = first + i * strides[outer] + j * strides[inner];
                let plane = AxisSwap {
                    rows: lengths[fast],
                    columns: width,
                    source_step: strides[3],
                    out_step: steps[fast],
                };
                let to = i * steps[outer] + j * steps[inner];
                plane.turn::<N>(&source[from..], &mut out[to..]);
            }
        }
    }
}

/// A transposition of two axes: the file's fastest axis, and x, the buffer's fastest.
#[derive(Clone, Copy, Debug)]
struct AxisSwap {
    /// Voxels along the file's fastest axis, and along x.
    rows: usize,
    columns: usize,
    /// Bytes between neighbors along x in the file.
    source_step: usize,
    /// Bytes between neighbors along the file's fastest axis in the buffer.
    out_step: usize,
}

impl AxisSwap {
    /// Copies voxels of `N` bytes, tile by tile.
    fn turn<const N: usize>(self, source: &[u8], out: &mut [u8]) {
        for column_0 in (0..self.columns).step_by(TILE) {
            for row_0 in (0..self.rows).step_by(TILE) {
                let count = TILE.min(self.rows - row_0);
                for column in column_0..self.columns.min(column_0 + TILE) {
                    let at = column * self.source_step + row_0 * N;
                    let voxels = source[at..at + count * N].as_chunks::<N>().0;
                    let first = column * N + row_0 * self.out_step;
                    for (row, voxel) in voxels.iter().enumerate() {
                        let at = first + row * self.out_step;
                        out[at..at + N].copy_from_slice(voxel);
                    }
                }
            }
        }
    }
}

/// Converts voxels from the file's byte order to the machine's.
pub(super) fn to_native(dtype: DType, big_endian: bool, voxels: &mut [u8]) {
    if big_endian != cfg!(target_endian = "big") {
        swap_bytes(dtype, voxels);
    }
}

/// Returns the lengths of a box along c, z, y, x.
const fn lengths(channels: &Range<u64>, region: Region) -> [u64; 4] {
    let [z, y, x] = region.shape;
    [channels.end - channels.start, z, y, x]
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a mapped file or a buffer")
}
