//! Subjects: named images on one grid, from which patches are cut at the same places.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use crate::dtype::{DType, Element, convert, loss, text, with_element};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::normalize::{Normalizer, Scales};
use crate::pad::Padding;
use crate::patch::Patch;
use crate::region::{Region, Shape};
use crate::sampler::{Border, CenterBox};
use crate::threads::{DEFAULT_MEMORY, threads};
use crate::volume::{
    IndexRange, Interpolation, Layout, Matching, ReadMemory, Reading, Subset,
    UNKNOWN_INTERPOLATION, Volume, Warp, chunk_source,
};

/// The number of values that are normalized at a time.
const BLOCK: usize = 4096;

/// A scan with its other images: a second modality, labels, weights.
#[derive(Clone, Debug)]
pub struct Subject {
    name: String,
    images: Vec<Image>,
}

/// An image of a subject: a volume, and how its patches are made.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name of the image in the subject.
    pub name: String,
    /// The volume.
    pub volume: Arc<dyn Volume>,
    /// The values beyond the volume's faces; zeros by default.
    pub padding: Padding,
    /// The type that values are cast to; the volume's own type if `None`. Fractions are rounded to
    /// the nearest value; a value beyond the type's range is an error.
    pub cast: Option<DType>,
    /// Round values to bfloat16: its patches have the type `uint16` and hold the bits. `cast` does not count then.
    pub bfloat16: bool,
    /// The normalization of its values, before a cast: the same as that of a prediction. Patches are float32
    /// unless they are cast. Voxels beyond the volume's faces are added afterwards, in normalized values.
    pub normalize: Normalizer,
    /// The channels of its patches; no other channel is read.
    pub channels: Range<u64>,
    /// How values between its voxels are computed if its patches are read through a [random
    /// map](crate::training::RandomAffine), or if a subject [brings it to the grid](SubjectBuilder::with_grid) of another
    /// image. `None`: linear for floats, and an error for integers, which may be labels. For a random map, an image that is
    /// normalized is not one of labels.
    pub interpolation: Option<Interpolation>,
}

impl Image {
    /// Creates an image with the volume's values, all channels, and zeros beyond its faces.
    #[must_use]
    pub fn new(name: impl Into<String>, volume: Arc<dyn Volume>) -> Self {
        Self {
            name: name.into(),
            channels: 0..volume.layout().channels,
            volume,
            padding: Padding::Constant(0.0),
            cast: None,
            bfloat16: false,
            normalize: Normalizer::default(),
            interpolation: None,
        }
    }

    /// Sets how values between its voxels are computed.
    #[must_use]
    pub fn with_interpolation(self, interpolation: Interpolation) -> Self {
        Self {
            interpolation: Some(interpolation),
            ..self
        }
    }

    /// Returns its values beyond the faces in the units of the volume, for resampling: its padding, or 0 if that is a
    /// number of normalized values.
    fn outside(&self) -> Padding {
        match self.padding {
            Padding::Constant(_) if !self.normalize.is_none() => Padding::Constant(0.0),
            padding => padding,
        }
    }

    /// Sets the values beyond the volume's faces.
    #[must_use]
    pub fn with_padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    /// Sets the type that values are cast to.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self {
            cast: Some(dtype),
            ..self
        }
    }

    /// Rounds values to bfloat16: patches have the type `uint16` and hold the bits.
    #[must_use]
    pub fn with_bfloat16(self) -> Self {
        Self {
            bfloat16: true,
            ..self
        }
    }

    /// Sets the normalization of its values. One that [measures](crate::Normalize::measures) reads the volume
    /// once when a loader opens the subject, and then only if no image with a clone of this [`Normalizer`] has.
    #[must_use]
    pub fn with_normalize(self, normalize: impl Into<Normalizer>) -> Self {
        Self {
            normalize: normalize.into(),
            ..self
        }
    }

    /// Sets the channels of its patches, time points included. Chunks with only other channels are not
    /// read. [`SubjectBuilder::build`] checks the range.
    #[must_use]
    pub fn with_channels(self, channels: Range<u64>) -> Self {
        Self { channels, ..self }
    }

    /// Returns the volume that is read for patches: the one that is resampled, if its volume is a resampled one.
    pub(super) fn source(&self) -> &dyn Volume {
        chunk_source(&*self.volume)
    }

    /// Returns the region of the [`source`](Self::source) that the patch at a region, or through a map, needs. The rest is
    /// padding.
    pub(super) fn needed(&self, region: Region, warp: Option<&Warp>) -> Region {
        let shape = self.volume.layout().shape;
        let own = || match warp {
            Some(warp) => warp.source(&self.reading(shape)),
            None => self.inside(region),
        };
        let Some(resampled) = self.volume.as_resampled() else {
            return own();
        };
        if let Some(composed) = warp.and_then(|warp| resampled.composed(warp)) {
            return composed.source(&self.reading(resampled.source().layout().shape));
        }
        let own = own();
        if own.is_empty() {
            return own;
        }
        resampled.source_of(own)
    }

    /// Returns the part of a region that is read of the volume. The rest is padding.
    pub(super) fn inside(&self, region: Region) -> Region {
        self.padding.source(region, self.volume.layout().shape)
    }

    /// Returns how its values are computed where a patch is read through a map from a volume of this shape.
    pub(super) fn reading(&self, shape: Shape) -> Reading {
        Reading {
            shape,
            interpolation: self.interpolation.unwrap_or_default(),
            padding: self.padding,
        }
    }

    /// The number of channels of its patches.
    #[must_use]
    pub fn channel_count(&self) -> u64 {
        self.channels.end.saturating_sub(self.channels.start)
    }

    /// Reads the patch at a region, which may extend beyond the faces, as a loader delivers it.
    ///
    /// # Errors
    ///
    /// Errors of [`Volume::read_channels`]; [`Error::ValueRange`] if a value does not fit the type that
    /// it is cast to; [`Error::InvalidArgument`] if the patch does not fit into memory.
    pub fn read(&self, region: Region) -> Result<Patch> {
        let layout = self.volume.layout();
        let channels = self.channel_count();
        let source = self.inside(region);
        let mut patch = Patch::zeros(source, channels, layout.dtype)?;
        if !source.is_empty() {
            let out = patch.bytes_mut();
            self.volume
                .read_channels(self.channels.clone(), source, out)?;
        }
        if !self.keeps_type() {
            let mut cast = Patch::zeros(source, channels, self.dtype())?;
            self.cast_into(&patch, cast.bytes_mut())?;
            patch = cast;
        }
        if source != region {
            let mut padded = Patch::zeros(region, channels, self.dtype())?;
            self.pad_into(&patch, (padded.bytes_mut(), region));
            patch = padded;
        }
        Ok(patch)
    }

    /// Returns the padding in values of the type of the patches.
    fn patch_padding(&self) -> Padding {
        match self.padding {
            Padding::Constant(value) if self.bfloat16 => {
                Padding::Constant(bf16::from_f64(value).to_bits().into())
            }
            other => other,
        }
    }

    /// Returns the constant of the padding as a voxel of the patches; 0 if there is none.
    pub(super) fn padded_voxel(&self) -> Vec<u8> {
        let value = match self.patch_padding() {
            Padding::Constant(value) => value,
            _ => 0.0,
        };
        with_element!(self.dtype(), T => bytemuck::bytes_of(&T::from_f64(value)).to_vec())
    }

    /// Pads a patch of the type of the patches to a region.
    pub(super) fn pad_into(&self, patch: &Patch, target: (&mut [u8], Region)) {
        let padding = self.patch_padding();
        let (channels, dtype) = (patch.channels(), patch.dtype());
        let shape = self.volume.layout().shape;
        padding.fill(
            (patch.bytes(), patch.region()),
            target,
            channels,
            dtype,
            shape,
        );
    }

    /// Reads the volume, if its normalization needs that and it was not read for it before, with up to the number of
    /// threads, and about the bytes, that `limits` returns.
    pub(super) fn measure(&self, limits: impl FnOnce() -> (usize, u64)) -> Result<Option<&Scales>> {
        if self.normalize.is_none() {
            return Ok(None);
        }
        let volume = || {
            let channels = Subset {
                channels: Some(IndexRange::from(self.channels.clone())),
                ..Subset::default()
            };
            channels.of(Arc::clone(&self.volume))
        };
        self.normalize.scales(volume, limits)
    }

    /// Normalizes a patch of the volume's voxels and casts it to the type of the patches, into `out`.
    ///
    /// # Errors
    ///
    /// [`Error::ValueRange`] if a value does not fit; those of [`measure`](Self::measure).
    pub(super) fn cast_into(&self, patch: &Patch, out: &mut [u8]) -> Result<()> {
        let (from, to) = (patch.dtype(), self.dtype());
        let scales = self.measure(|| (threads(), DEFAULT_MEMORY))?;
        if scales.is_some() || self.bfloat16 {
            return self.cast_singles(patch, scales, out);
        }
        convert(from, patch.bytes(), to, out);
        match loss(from, patch.bytes(), to).clipped.first {
            Some(first) => Err(self.out_of_range(patch, first, text(from, patch.bytes(), first))),
            None => Ok(()),
        }
    }

    /// Does the same by way of f32, the type that is normalized, a block at a time.
    fn cast_singles(&self, patch: &Patch, scales: Option<&Scales>, out: &mut [u8]) -> Result<()> {
        let (from, to) = (patch.dtype(), self.dtype());
        let mut singles = [0.0_f32; BLOCK];
        let each = patch.bytes().len() / usize::try_from(patch.channels().max(1)).unwrap_or(1);
        let voxels = patch.bytes().chunks(each.max(1)).enumerate();
        let blocks = voxels.flat_map(|(channel, voxels)| {
            let blocks = voxels.chunks(BLOCK * from.size());
            blocks.map(move |block| (channel, block))
        });
        let (mut done, mut out) = (0, out);
        for (channel, block) in blocks {
            let singles = &mut singles[..block.len() / from.size()];
            let (own, rest) = out.split_at_mut(singles.len() * to.size());
            out = rest;
            convert(from, block, DType::F32, bytemuck::cast_slice_mut(singles));
            let lost = match scales {
                Some(scales) => {
                    scales.apply_to(channel, singles);
                    None
                }
                // The cast is from the volume's values.
                None => loss(from, block, DType::F32).clipped.first,
            };
            let lost = lost.or_else(|| self.store(singles, own));
            if let Some(first) = lost {
                let value = match scales {
                    Some(_) => format!("{} (normalized)", singles[first]),
                    None => text(from, block, first),
                };
                return Err(self.out_of_range(patch, done + first, value));
            }
            done += singles.len();
        }
        Ok(())
    }

    /// Casts f32 to the type of the patches. Returns the place of the first value that does not fit.
    fn store(&self, singles: &[f32], out: &mut [u8]) -> Option<usize> {
        if self.bfloat16 {
            let out = bytemuck::cast_slice_mut::<u8, u16>(out);
            let mut overflows = false;
            for (out, single) in out.iter_mut().zip(singles) {
                let near = bf16::from_f32(*single);
                overflows |= near.is_infinite() && single.is_finite();
                *out = near.to_bits();
            }
            let overflow =
                |single: &f32| single.is_finite() && bf16::from_f32(*single).is_infinite();
            return overflows
                .then(|| singles.iter().position(overflow))
                .flatten();
        }
        let (dtype, singles) = (self.dtype(), bytemuck::cast_slice(singles));
        convert(DType::F32, singles, dtype, out);
        loss(DType::F32, singles, dtype).clipped.first
    }

    /// Describes value number `at` of a patch, which does not fit the type of the patches.
    fn out_of_range(&self, patch: &Patch, at: usize, value: String) -> Error {
        let (channel, voxel) = patch.region().place(at);
        Error::ValueRange {
            path: self.volume.layout().path.clone(),
            channel: self.channels.start + channel,
            voxel: voxel.map(i64::unsigned_abs),
            value,
            dtype: if self.bfloat16 {
                "bfloat16"
            } else {
                self.dtype().name()
            },
            remedy: "cast to a type that holds it, or do not cast",
        }
    }

    /// Returns `true` if patches have the volume's values and type.
    pub(super) fn keeps_type(&self) -> bool {
        let is_converted = self.bfloat16 || !self.normalize.is_none();
        !is_converted && self.dtype() == self.volume.layout().dtype
    }

    /// Returns the memory that a loader takes for patches of at most this shape, apart from patches, decoded chunks and what
    /// spatial augmentation takes.
    #[must_use]
    pub fn loading_memory(&self, patch: Shape) -> ReadMemory {
        match self.volume.as_resampled() {
            Some(resampled) => resampled.computing_memory(patch),
            None => self.volume.layout().read_memory,
        }
    }

    /// Returns the layout of the volume whose chunks a loader decodes: the one that is resampled, if its volume is a
    /// resampled one.
    #[must_use]
    pub fn source_layout(&self) -> &Layout {
        self.source().layout()
    }

    /// The bytes of `voxels` voxels of all channels, before a cast.
    pub(super) fn read_bytes(&self, voxels: u64) -> u64 {
        let size = self.volume.layout().dtype.size() as u64;
        voxels.saturating_mul(self.channel_count().saturating_mul(size))
    }

    /// The type of the voxels of its patches.
    #[must_use]
    pub fn dtype(&self) -> DType {
        if self.bfloat16 {
            return DType::U16;
        }
        self.cast.unwrap_or(if self.normalize.is_none() {
            self.volume.layout().dtype
        } else {
            DType::F32
        })
    }
}

impl Subject {
    /// Begins a subject, whose first image decides the grid.
    ///
    /// ```
    /// use voxpatch::MemoryVolume;
    /// use voxpatch::training::Subject;
    /// # use std::sync::Arc;
    ///
    /// # fn main() -> voxpatch::Result<()> {
    /// # let scan = Arc::new(MemoryVolume::from_vec([4; 3], 1, vec![7_i16; 64])?);
    /// # let label = Arc::new(MemoryVolume::from_vec([4; 3], 1, vec![1_u8; 64])?);
    /// let subject = Subject::builder("patient 1")
    ///     .with_image("ct", scan)
    ///     .with_image("label", label)
    ///     .build()?;
    /// assert_eq!(subject.shape(), [4; 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(name: impl Into<String>) -> SubjectBuilder {
        SubjectBuilder {
            name: name.into(),
            images: Vec::new(),
            matching: Matching::default(),
            grid: None,
        }
    }

    fn new(builder: SubjectBuilder) -> Result<Self> {
        let SubjectBuilder {
            name,
            mut images,
            matching,
            grid,
        } = builder;
        if images.is_empty() {
            return Err(Error::InvalidArgument {
                argument: "subject",
                value: name,
                problem: "it has no image".to_owned(),
            });
        }
        let decides = match &grid {
            None => 0,
            Some(wanted) => {
                let found = images.iter().position(|image| image.name == *wanted);
                let names = images.iter().map(|image| image.name.as_str());
                found.ok_or_else(|| Error::InvalidArgument {
                    argument: "grid",
                    value: wanted.clone(),
                    problem: format!(
                        "the subject has no such image: it has {}",
                        names.collect::<Vec<_>>().join(", ")
                    ),
                })?
            }
        };
        let reference = images[decides].volume.layout().clone();
        for (n, image) in images.iter().enumerate() {
            if images[..n].iter().any(|other| other.name == image.name) {
                return Err(Error::InvalidArgument {
                    argument: "subject",
                    value: name,
                    problem: format!("two of its images are called {}", image.name),
                });
            }
            check_channels(image)?;
            let padded = if image.bfloat16 {
                DType::F32
            } else {
                image.dtype()
            };
            image.padding.check(padded, &image.name)?;
        }
        for (_, image) in images.iter_mut().enumerate().filter(|&(n, _)| n != decides) {
            let volume = Arc::clone(&image.volume);
            image.volume = if grid.is_some() {
                let outside = image.outside();
                matching.resampled_to(&reference, volume, image.interpolation, outside)?
            } else {
                matching.on_grid_of(&reference, volume)?
            };
        }
        Ok(Self { name, images })
    }

    /// The name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The images, in the order of the patches of a sample.
    #[must_use]
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Returns the image called `name`.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.name == name)
    }

    /// Checks that each image can be interpolated: that of integers, which may be labels, must be set.
    pub(super) fn check_interpolation(&self) -> Result<()> {
        let is_unknown = |image: &&Image| {
            let is_float = image.volume.layout().dtype.is_float();
            image.interpolation.is_none() && !is_float && image.normalize.is_none()
        };
        match self.images.iter().find(is_unknown) {
            Some(image) => Err(Error::InvalidArgument {
                argument: "interpolation",
                value: format!("of {} ({})", image.name, image.volume.layout().dtype),
                problem: UNKNOWN_INTERPOLATION.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The position of the voxels of the first image, whose grid all images have.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.images[0].volume.layout().geometry
    }

    /// Voxels along z, y, x.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.images[0].volume.layout().shape
    }

    /// The number of legal places of a patch, rounded to f64: a weight for
    /// [`EpochPlan::proportional`](super::EpochPlan::proportional).
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if there are none; see [`CenterBox::new`].
    pub fn places(&self, patch: Shape, border: Border) -> Result<f64> {
        Ok(CenterBox::new(self.shape(), patch, border)?.places())
    }

    /// The bytes of one delivered sample with patches of this size.
    #[must_use]
    pub fn sample_bytes(&self, patch: Shape) -> u64 {
        let voxels = crate::region::voxels(patch).unwrap_or(u64::MAX);
        let bytes = |image: &Image| {
            voxels
                .saturating_mul(image.channel_count())
                .saturating_mul(image.dtype().size() as u64)
        };
        self.images.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

/// A subject that is being put together.
#[derive(Clone, Debug)]
#[must_use = "`build` makes the subject"]
pub struct SubjectBuilder {
    name: String,
    images: Vec<Image>,
    matching: Matching,
    /// The image to whose grid the others are resampled.
    grid: Option<String>,
}

impl SubjectBuilder {
    /// Adds an image with default options.
    pub fn with_image(self, name: impl Into<String>, volume: Arc<dyn Volume>) -> Self {
        self.with_images([Image::new(name, volume)])
    }

    /// Adds images.
    pub fn with_images(mut self, images: impl IntoIterator<Item = Image>) -> Self {
        self.images.extend(images);
        self
    }

    /// Sets the tolerance in voxels when the grids of images are compared; the default is
    /// [`TOLERANCE`](crate::volume::TOLERANCE).
    pub fn with_tolerance(mut self, tolerance: f64) -> Self {
        self.matching.tolerance = tolerance;
        self
    }

    /// Sets how images are brought to the grid of the first.
    pub fn with_matching(self, matching: Matching) -> Self {
        Self { matching, ..self }
    }

    /// Resamples the images to the grid of the image called `name`, while they are read: PET to the grid of CT, or
    /// labels of 2 mm to a scan of 0.7 mm. Each has its own [interpolation](Image::with_interpolation), and its padding
    /// beyond its faces. Without this, images must cover the extent of the first.
    pub fn with_grid(mut self, name: impl Into<String>) -> Self {
        self.grid = Some(name.into());
        self
    }

    /// Builds the subject, with all images on the grid of the first, or of the one that decides it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no image, if two images have the same name, if no image is called as the
    /// one that decides the grid, or if an image does not have its channels or is padded with a value that its type
    /// cannot hold; errors of [`Matching::on_grid_of`] or [`Matching::resampled_to`].
    pub fn build(self) -> Result<Subject> {
        Subject::new(self)
    }
}

fn check_channels(image: &Image) -> Result<()> {
    let Range { start, end } = image.channels;
    let layout = image.volume.layout();
    if start < end && end <= layout.channels {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        argument: "channels",
        value: format!("{start}..{end} of {}", layout.path.display()),
        problem: format!(
            "it has {}, counted from 0; choose at least one",
            layout.channels
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Element, with_element};
    use crate::geometry::Geometry;
    use crate::region::indices;
    use crate::volume::{Layout, MemoryVolume, TOLERANCE};

    fn image(name: &str, shape: Shape, geometry: Geometry) -> Image {
        let layout = Layout::new(shape, 1, DType::U8).with_geometry(geometry);
        Image::new(name, Arc::new(MemoryVolume::zeros(layout).unwrap()))
    }

    #[test]
    fn images_of_a_subject_lie_on_one_grid() {
        let spacing = |x| Geometry::from_spacing([3.0, 1.0, x]);
        let with = |other: Image, tolerance| {
            Subject::builder("s")
                .with_images([image("ct", [9, 8, 7], spacing(1.0)), other])
                .with_tolerance(tolerance)
                .build()
        };
        assert!(with(image("label", [9, 8, 7], spacing(1.0)), 0.0).is_ok());
        assert!(with(image("label", [9, 8, 7], spacing(1.0 + 1e-7)), 1e-6).is_ok());
        assert!(with(image("label", [9, 8, 7], spacing(1.0 + 1e-5)), 1e-6).is_err());
        assert!(with(image("label", [9, 8, 7], spacing(1.0 + 1e-5)), TOLERANCE).is_ok());
        let off = with(image("label", [9, 8, 6], spacing(1.0)), TOLERANCE).unwrap_err();
        assert!(
            matches!(off, Error::GridMismatch { what: "extent", .. }),
            "{off}"
        );
        let mut flipped = spacing(1.0);
        flipped.affine[0][0] = -1.0;
        let off = with(image("label", [9, 8, 7], flipped), TOLERANCE).unwrap_err();
        assert!(
            matches!(
                off,
                Error::GridMismatch {
                    what: "position",
                    ..
                }
            ),
            "{off}"
        );
        // What is stored the other way round, and covers the same, is turned; what is coarser is spread.
        flipped.affine[0][3] = 6.0;
        let coarse = spacing(1.0).coarsened([3.0, 2.0, 1.0]);
        for label in [
            image("label", [9, 8, 7], flipped),
            image("label", [3, 4, 7], coarse),
        ] {
            let subject = with(label, TOLERANCE).unwrap();
            let label = subject.image("label").unwrap().volume.layout();
            assert_eq!((label.shape, label.geometry), ([9, 8, 7], spacing(1.0)));
        }
        assert!(
            with(image("ct", [9, 8, 7], spacing(1.0)), TOLERANCE).is_err(),
            "one name twice"
        );
        assert!(Subject::builder("s").build().is_err());
    }

    /// Every voxel of an image on the grid of another one says where it is: values are world coordinates.
    #[test]
    fn images_are_resampled_to_the_grid_of_the_one_that_decides() {
        let ramp = |shape: Shape, geometry: Geometry, dtype: DType| -> Arc<dyn Volume> {
            let at = |voxel: [u64; 3]| {
                let voxel = voxel.map(|n| f64::from(u32::try_from(n).unwrap()));
                let [z, y, x] = geometry.moved_to(voxel).origin();
                100.0 * x + 10.0 * y + z
            };
            let all = indices([0..shape[0], 0..shape[1], 0..shape[2]]).map(at);
            let bytes = with_element!(dtype, T => {
                let all: Vec<T> = all.map(T::from_f64).collect();
                bytemuck::cast_slice(&all).to_vec()
            });
            let layout = Layout::new(shape, 1, dtype).with_geometry(geometry);
            let patch = Patch::zeros(Region::whole(shape), 1, dtype).map(|mut patch| {
                patch.bytes_mut().copy_from_slice(&bytes);
                patch
            });
            Arc::new(MemoryVolume::from_patch(layout, patch.unwrap()).unwrap())
        };
        let ct = ramp(
            [12, 20, 24],
            Geometry::from_parts([1.0, 0.5, 0.5], [-3.0, 2.0, 5.0]),
            DType::I16,
        );
        let pet = Geometry::from_parts([2.0, 2.0, 2.0], [-6.0, -2.0, 1.0]);
        let pet = ramp([12, 12, 12], pet, DType::F32);
        let built = |pet: Image, grid: &str| {
            Subject::builder("s")
                .with_images([pet])
                .with_image("ct", Arc::clone(&ct))
                .with_grid(grid)
                .build()
        };
        let subject = built(Image::new("pet", Arc::clone(&pet)), "ct").unwrap();
        assert_eq!(subject.shape(), [12, 20, 24]);
        let patch = Region::new([2, 3, 4], [5, 6, 7]);
        let read = subject.image("pet").unwrap().read(patch).unwrap();
        let expected = ramp([12, 20, 24], ct.layout().geometry, DType::F32);
        let expected = Image::new("e", expected).read(patch).unwrap();
        let pairs = bytemuck::cast_slice::<u8, f32>(read.bytes())
            .iter()
            .zip(bytemuck::cast_slice::<u8, f32>(expected.bytes()));
        for (found, expected) in pairs {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        // Beyond the faces of the smaller image: its padding.
        let edge = Image::new("pet", Arc::clone(&pet)).with_padding(Padding::Constant(-7.0));
        let grown = ramp(
            [4; 3],
            Geometry::from_parts([1.0; 3], [500.0; 3]),
            DType::F32,
        );
        let far = Subject::builder("s")
            .with_images([edge])
            .with_image("far", grown)
            .with_grid("far")
            .build()
            .unwrap();
        let read = far
            .image("pet")
            .unwrap()
            .read(Region::whole([4; 3]))
            .unwrap();
        assert!(
            bytemuck::cast_slice::<u8, f32>(read.bytes())
                .iter()
                .all(|v| (v + 7.0).abs() < 1e-6)
        );
        // Integers may be labels.
        let refused = built(Image::new("pet", Arc::clone(&pet)), "pet")
            .unwrap_err()
            .to_string();
        assert!(refused.contains("label-linear"), "{refused}");
        let labels = Subject::builder("s")
            .with_image("pet", Arc::clone(&pet))
            .with_images([
                Image::new("ct", Arc::clone(&ct)).with_interpolation(Interpolation::Nearest)
            ])
            .with_grid("pet");
        assert_eq!(labels.build().unwrap().shape(), [12; 3]);
        let unknown = built(Image::new("pet", pet), "mr").unwrap_err().to_string();
        assert!(unknown.contains("pet, ct"), "{unknown}");
    }

    #[test]
    fn a_subject_counts_the_places_of_a_patch() {
        let geometry = Geometry::from_spacing([1.0; 3]);
        let subject = Subject::builder("s")
            .with_images([image("ct", [9, 8, 7], geometry)])
            .with_tolerance(0.0)
            .build()
            .unwrap();
        let places = |patch, border| subject.places(patch, border).unwrap();
        assert!((places([9, 2, 3], Border::Drop) - 35.0).abs() < 0.5);
        assert!((places([10, 2, 3], Border::Pad) - 504.0).abs() < 0.5);
        assert!(subject.places([10, 2, 3], Border::Shift).is_err());
    }
}
