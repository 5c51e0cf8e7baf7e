//! Patches: the voxels of a region, in owned memory.
//!
//! Voxels are typed, aligned and in row-major order c, z, y, x, so that array libraries accept them without a copy. A
//! patch does not refer to the volume that it was read from.

use half::f16;
use ndarray::{Array4, ArrayView4, ArrayViewMut4};

use crate::dtype::{DType, Element, convert};
use crate::error::{Error, Result};
use crate::region::{Region, Shape};

/// The voxels (c, z, y, x) of a region, in owned memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    region: Region,
    channels: u64,
    voxels: Voxels,
}

/// A vector of voxels of one of the voxel types.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Voxels {
    Bool(Vec<u8>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F16(Vec<f16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Evaluates the same expression for every kind of vector.
macro_rules! each {
    ($voxels:expr, $vec:ident => $body:expr) => {
        match $voxels {
            Voxels::Bool($vec) => $body,
            Voxels::U8($vec) => $body,
            Voxels::I8($vec) => $body,
            Voxels::U16($vec) => $body,
            Voxels::I16($vec) => $body,
            Voxels::U32($vec) => $body,
            Voxels::I32($vec) => $body,
            Voxels::U64($vec) => $body,
            Voxels::I64($vec) => $body,
            Voxels::F16($vec) => $body,
            Voxels::F32($vec) => $body,
            Voxels::F64($vec) => $body,
        }
    };
}

impl Voxels {
    /// Creates `length` zeros.
    #[must_use]
    pub fn zeros(dtype: DType, length: usize) -> Self {
        match dtype {
            DType::Bool => Self::Bool(vec![0; length]),
            DType::U8 => Self::U8(vec![0; length]),
            DType::I8 => Self::I8(vec![0; length]),
            DType::U16 => Self::U16(vec![0; length]),
            DType::I16 => Self::I16(vec![0; length]),
            DType::U32 => Self::U32(vec![0; length]),
            DType::I32 => Self::I32(vec![0; length]),
            DType::U64 => Self::U64(vec![0; length]),
            DType::I64 => Self::I64(vec![0; length]),
            DType::F16 => Self::F16(vec![f16::ZERO; length]),
            DType::F32 => Self::F32(vec![0.0; length]),
            DType::F64 => Self::F64(vec![0.0; length]),
        }
    }

    /// Returns the voxels' type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        match self {
            Self::Bool(_) => DType::Bool,
            Self::U8(_) => DType::U8,
            Self::I8(_) => DType::I8,
            Self::U16(_) => DType::U16,
            Self::I16(_) => DType::I16,
            Self::U32(_) => DType::U32,
            Self::I32(_) => DType::I32,
            Self::U64(_) => DType::U64,
            Self::I64(_) => DType::I64,
            Self::F16(_) => DType::F16,
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    /// Returns the number of voxels.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(self, voxels => voxels.len())
    }

    /// Returns `true` if there are no voxels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of the voxels, in native order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        each!(self, voxels => bytemuck::cast_slice(voxels))
    }

    /// Returns the bytes of the voxels, mutable.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, voxels => bytemuck::cast_slice_mut(voxels))
    }
}

macro_rules! from_vec {
    ($($ty:ty => $variant:ident),*) => {
        $(impl From<Vec<$ty>> for Voxels {
            fn from(voxels: Vec<$ty>) -> Self { Self::$variant(voxels) }
        })*
    };
}
from_vec!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
          f16 => F16, f32 => F32, f64 => F64);

impl Patch {
    /// Creates a patch of zeros.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the patch is larger than memory can address.
    pub fn zeros(region: Region, channels: u64, dtype: DType) -> Result<Self> {
        let length = length(region.shape, channels, dtype)?;
        // Allocating a vector of zeros aborts the process if memory is too short. Large ones are therefore tried first.
        if length * dtype.size() >= LARGE
            && Vec::<u8>::new()
                .try_reserve_exact(length * dtype.size())
                .is_err()
        {
            return Err(too_large(region.shape, channels, dtype));
        }
        Ok(Self {
            region,
            channels,
            voxels: Voxels::zeros(dtype, length),
        })
    }

    /// Creates a patch from its voxels (c, z, y, x).
    ///
    /// # Errors
    ///
    /// [`Error::BufferLength`] if their number is not that of `channels` times `region`.
    pub fn new(region: Region, channels: u64, voxels: impl Into<Voxels>) -> Result<Self> {
        let voxels = voxels.into();
        let size = voxels.dtype().size();
        let expected = length(region.shape, channels, voxels.dtype())?;
        if voxels.len() != expected {
            return Err(Error::BufferLength {
                expected: (expected * size) as u64,
                actual: (voxels.len() * size) as u64,
            });
        }
        Ok(Self {
            region,
            channels,
            voxels,
        })
    }

    /// Returns the region of the volume that the patch covers.
    #[must_use]
    pub const fn region(&self) -> Region {
        self.region
    }

    /// Returns the number of voxels along z, y, x.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.region.shape
    }

    /// Returns the number of channels.
    #[must_use]
    pub const fn channels(&self) -> u64 {
        self.channels
    }

    /// Returns the voxels' type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.voxels.dtype()
    }

    /// Returns the voxels (c, z, y, x) as bytes in native order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.voxels.bytes()
    }

    /// Returns the voxels as mutable bytes.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.voxels.bytes_mut()
    }

    /// Returns the voxels as a slice (c, z, y, x).
    ///
    /// # Errors
    ///
    /// [`Error::WrongDType`] if they have a different type; `bool` voxels are `u8`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        check_element::<T>(self.dtype())?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// Returns the voxels as a mutable slice.
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice).
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        check_element::<T>(self.dtype())?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// Returns the voxels as an array with axes c, z, y, x.
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice).
    ///
    /// # Panics
    ///
    /// Never: the number of voxels always matches the shape.
    pub fn view<T: Element>(&self) -> Result<ArrayView4<'_, T>> {
        let voxels = self.as_slice()?;
        Ok(ArrayView4::from_shape(self.array_shape(), voxels)
            .expect("the number of voxels matches the shape"))
    }

    /// Returns the voxels as a mutable array with axes c, z, y, x.
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice).
    ///
    /// # Panics
    ///
    /// Never: the number of voxels always matches the shape.
    pub fn view_mut<T: Element>(&mut self) -> Result<ArrayViewMut4<'_, T>> {
        let shape = self.array_shape();
        let voxels = self.as_mut_slice()?;
        Ok(ArrayViewMut4::from_shape(shape, voxels)
            .expect("the number of voxels matches the shape"))
    }

    /// Converts the patch into an array with axes c, z, y, x, without a copy.
    ///
    /// ```
    /// use voxpatch::{Patch, Region};
    ///
    /// # fn main() -> voxpatch::Result<()> {
    /// let patch = Patch::new(Region::new([8, 0, 0], [2, 3, 4]), 1, vec![5_i16; 24])?;
    /// let array = patch.into_array::<i16>()?;
    /// assert_eq!(array.shape(), [1, 2, 3, 4]);
    /// let patch = Patch::from_array([8, 0, 0], array)?;
    /// assert_eq!(patch.region(), Region::new([8, 0, 0], [2, 3, 4]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice).
    ///
    /// # Panics
    ///
    /// Never: the number of voxels always matches the shape.
    pub fn into_array<T: Element>(self) -> Result<Array4<T>> {
        check_element::<T>(self.dtype())?;
        let shape = self.array_shape();
        let voxels = each!(self.voxels, voxels => cast_vec(voxels));
        Ok(Array4::from_shape_vec(shape, voxels).expect("the number of voxels matches the shape"))
    }

    /// Creates a patch from an array with axes c, z, y, x. The array is copied only if it is not
    /// contiguous in row-major order.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); never for an array that fits into memory.
    pub fn from_array<T: Element>(start: [i64; 3], array: Array4<T>) -> Result<Self>
    where
        Vec<T>: Into<Voxels>,
    {
        let [channels, z, y, x] = array.dim().into();
        let region = Region::new(start, [z as u64, y as u64, x as u64]);
        let voxels = if array.is_standard_layout() {
            let (mut voxels, offset) = array.into_raw_vec_and_offset();
            // A slice of a larger array still has that array's vector.
            voxels.drain(..offset.unwrap_or(0));
            voxels.truncate(channels * z * y * x);
            voxels
        } else {
            array.iter().copied().collect()
        };
        Self::new(region, channels as u64, voxels)
    }

    /// Returns the voxels as an owned array with axes c, z, y, x.
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice).
    pub fn to_array<T: Element>(&self) -> Result<Array4<T>> {
        Ok(self.view()?.to_owned())
    }

    /// Returns the voxels without a copy.
    #[must_use]
    pub fn into_voxels(self) -> Voxels {
        self.voxels
    }

    /// Converts the voxels to another type, by the rules of [`dtype`](crate::dtype).
    #[must_use]
    pub fn converted(self, dtype: DType) -> Self {
        if dtype == self.dtype() {
            return self;
        }
        let mut voxels = Voxels::zeros(dtype, self.voxels.len());
        convert(self.dtype(), self.bytes(), dtype, voxels.bytes_mut());
        Self { voxels, ..self }
    }

    /// Returns the same voxels at a different region.
    #[must_use]
    pub const fn moved_to(mut self, start: [i64; 3]) -> Self {
        self.region.start = start;
        self
    }

    fn array_shape(&self) -> [usize; 4] {
        let [z, y, x] = self.region.shape;
        [self.channels, z, y, x].map(|n| usize::try_from(n).expect("the voxels fit into memory"))
    }
}

/// Returns the same vector, whose elements were checked to be of type `T`.
fn cast_vec<A: Element, T: Element>(voxels: Vec<A>) -> Vec<T> {
    bytemuck::allocation::cast_vec(voxels)
}

/// Checks that voxels of a type can be viewed as `T`; `bool` voxels are `u8`.
pub(crate) fn check_element<T: Element>(actual: DType) -> Result<()> {
    let stored = if actual == DType::Bool {
        DType::U8
    } else {
        actual
    };
    if stored == T::DTYPE {
        Ok(())
    } else {
        Err(Error::WrongDType {
            expected: T::DTYPE,
            actual,
        })
    }
}

/// The number of bytes from which an allocation is tried before it is made.
const LARGE: usize = 64 << 20;

fn length(shape: Shape, channels: u64, dtype: DType) -> Result<usize> {
    crate::region::voxels(shape)
        .and_then(|n| n.checked_mul(channels))
        .filter(|n| {
            n.checked_mul(dtype.size() as u64)
                .is_some_and(|bytes| isize::try_from(bytes).is_ok())
        })
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| too_large(shape, channels, dtype))
}

fn too_large(shape: Shape, channels: u64, dtype: DType) -> Error {
    Error::OutOfMemory {
        what: format!("a patch of {channels} x {shape:?} voxels of {dtype}"),
    }
}

/// Copies the voxels in the intersection of two buffers.
///
/// Both have `channels` channels of row-major voxels of `size` bytes; `from` and `to` are the boxes of the buffers.
/// Rows are merged into longer runs where both sides allow it.
pub(crate) fn copy_common(
    (source, from): (&[u8], Region),
    (target, to): (&mut [u8], Region),
    channels: u64,
    size: usize,
) {
    let Some(common) = from.intersection(&to) else {
        return;
    };
    let length = |n: u64| usize::try_from(n).expect("a length inside a buffer in memory");
    let shape = common.shape.map(length);
    let (a, b) = (from.shape.map(length), to.shape.map(length));
    let first = |region: &Region| {
        let at = common
            .relative_to(region.start)
            .start
            .map(|n| length(n.unsigned_abs()));
        let n = region.shape.map(length);
        ((at[0] * n[1] + at[1]) * n[2] + at[2]) * size
    };
    let (first_a, first_b) = (first(&from), first(&to));
    // Whole rows on both sides form one run per plane, and whole planes one run of the box.
    let rows = shape[2] == a[2] && shape[2] == b[2];
    let planes = rows && shape[1] == a[1] && shape[1] == b[1];
    let (slices, lines, run) = match (rows, planes) {
        (_, true) => (1, 1, shape[0] * shape[1] * shape[2] * size),
        (true, false) => (shape[0], 1, shape[1] * shape[2] * size),
        (false, _) => (shape[0], shape[1], shape[2] * size),
    };
    for c in 0..length(channels) {
        let (plane_a, plane_b) = (a[1] * a[2] * size, b[1] * b[2] * size);
        let (start_a, start_b) = (first_a + c * a[0] * plane_a, first_b + c * b[0] * plane_b);
        for z in 0..slices {
            for y in 0..lines {
                let at_a = start_a + z * plane_a + y * a[2] * size;
                let at_b = start_b + z * plane_b + y * b[2] * size;
                target[at_b..at_b + run].copy_from_slice(&source[at_a..at_a + run]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_patch_refuses_voxels_of_the_wrong_number_or_type() {
        let region = Region::whole([2, 3, 4]);
        assert!(matches!(
            Patch::new(region, 1, vec![0_u8; 23]),
            Err(Error::BufferLength {
                expected: 24,
                actual: 23
            })
        ));
        let patch = Patch::new(region, 1, vec![0_i16; 24]).unwrap();
        assert!(matches!(
            patch.as_slice::<u16>(),
            Err(Error::WrongDType { .. })
        ));
        assert!(Patch::zeros(Region::whole([1 << 40, 1 << 20, 1 << 10]), 1, DType::U8).is_err());
    }

    #[test]
    fn arrays_and_patches_share_their_memory() {
        let patch = Patch::new(
            Region::new([4, 5, 6], [2, 3, 4]),
            2,
            (0_i16..48).collect::<Vec<_>>(),
        );
        let mut patch = patch.unwrap();
        patch.view_mut::<i16>().unwrap()[[1, 1, 2, 3]] = -1;
        let before = patch.bytes().as_ptr();
        let array = patch.into_array::<i16>().unwrap();
        assert_eq!(array.as_ptr().cast::<u8>(), before);
        assert_eq!(array[[1, 1, 2, 3]], -1);
        assert_eq!(array[[0, 1, 2, 3]], 23);
        let patch = Patch::from_array([4, 5, 6], array.clone()).unwrap();
        assert_eq!(patch.view::<i16>().unwrap(), array.view());

        // Parts of arrays, and arrays in a different memory order, have the same voxels.
        let part = array.clone().slice_move(ndarray::s![1.., 1.., .., 1..3]);
        let patch = Patch::from_array([0; 3], part.clone()).unwrap();
        assert_eq!(patch.region().shape, [1, 3, 2]);
        assert_eq!(patch.view::<i16>().unwrap(), part.view());
        let last = array.clone().slice_move(ndarray::s![1.., .., .., ..]);
        let patch = Patch::from_array([0; 3], last.clone()).unwrap();
        assert_eq!(patch.view::<i16>().unwrap(), last.view());
        let turned = array.reversed_axes();
        let patch = Patch::from_array([0; 3], turned.clone()).unwrap();
        assert_eq!(patch.view::<i16>().unwrap(), turned.view());
        assert!(patch.into_array::<u16>().is_err());
    }

    #[test]
    fn converting_keeps_place_and_shape() {
        let patch = Patch::new(
            Region::new([5, -1, 0], [1, 2, 2]),
            1,
            vec![-1_i16, 0, 300, 7],
        )
        .unwrap();
        let bytes = patch.converted(DType::U8);
        assert_eq!(
            (bytes.region().start, bytes.as_slice::<u8>().unwrap()),
            ([5, -1, 0], &[0, 0, 255, 7][..])
        );
    }

    fn boxes() -> impl Strategy<Value = Region> {
        (
            [-3_i64..5, -3_i64..5, -3_i64..5],
            [1_u64..7, 1_u64..7, 1_u64..7],
        )
            .prop_map(|(at, shape)| Region::new(at, shape))
    }

    proptest! {
        #[test]
        fn copying_what_two_boxes_share_equals_three_loops(from in boxes(), to in boxes(), channels in 1_u64..3) {
            let count = |r: &Region| usize::try_from(r.voxels() * channels).unwrap();
            let source: Vec<u16> = (1..).take(count(&from)).collect();
            let mut target = vec![0_u16; count(&to)];
            copy_common((bytemuck::cast_slice(&source), from), (bytemuck::cast_slice_mut(&mut target), to), channels, 2);
            let at = |r: &Region, c: u64, p: [i64; 3]| {
                let i: [u64; 3] = std::array::from_fn(|a| (p[a] - r.start[a]).unsigned_abs());
                usize::try_from(((c * r.shape[0] + i[0]) * r.shape[1] + i[1]) * r.shape[2] + i[2]).unwrap()
            };
            let mut expected = vec![0_u16; count(&to)];
            for c in 0..channels {
                for z in to.start[0]..to.end()[0] { for y in to.start[1]..to.end()[1] { for x in to.start[2]..to.end()[2] {
                    if from.contains(&Region::new([z, y, x], [1; 3])) {
                        expected[at(&to, c, [z, y, x])] = source[at(&from, c, [z, y, x])];
                    }
                }}}
            }
            prop_assert_eq!(target, expected);
        }
    }
}
