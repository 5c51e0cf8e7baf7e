//! Subjects: named volumes on one grid, cut at the same places.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::fingerprint::Fingerprint;
use crate::dtype::{DType, convert, loss, text};
use crate::error::{Error, Result};
use crate::pad::Padding;
use crate::patch::Patch;
use crate::region::{Region, Shape};
use crate::sampler::{Border, CenterBox};
use crate::volume::{Matching, Volume};

/// One scan with what belongs to it: a second modality, labels, weights.
#[derive(Clone, Debug)]
pub struct Subject {
    name: String,
    images: Vec<Image>,
}

/// A volume of a subject, and how patches are made of it.
#[derive(Clone, Debug)]
pub struct Image {
    /// What it is called in the subject.
    pub name: String,
    /// Where its voxels are.
    pub volume: Arc<dyn Volume>,
    /// What stands beyond its faces; zeros if nothing else is said.
    pub padding: Padding,
    /// The type that its values are cast to; the volume's own type if `None`. Fractions become the nearest value;
    /// a value beyond the type's range is an error.
    pub cast: Option<DType>,
    /// Which of its channels patches get, and are read.
    pub channels: Range<u64>,
}

impl Image {
    /// An image whose patches have the volume's values, all channels, zeros beyond its faces.
    #[must_use]
    pub fn new(name: impl Into<String>, volume: Arc<dyn Volume>) -> Self {
        Self {
            name: name.into(),
            channels: 0..volume.layout().channels,
            volume,
            padding: Padding::Constant(0.0),
            cast: None,
        }
    }

    /// The same with something else beyond its faces.
    #[must_use]
    pub fn with_padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    /// Returns the image with its values cast to `dtype`.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self {
            cast: Some(dtype),
            ..self
        }
    }

    /// The same with some of the channels only, time points among them: no chunk that holds only
    /// others is read. Checked by [`Subject::new`].
    #[must_use]
    pub fn with_channels(self, channels: Range<u64>) -> Self {
        Self { channels, ..self }
    }

    /// How many of its channels patches get.
    #[must_use]
    pub fn channel_count(&self) -> u64 {
        self.channels.end.saturating_sub(self.channels.start)
    }

    /// The patch at a region, which may hang over the faces: what a loader delivers.
    ///
    /// # Errors
    ///
    /// What [`Volume::read_channels`] gives; [`Error::ValueRange`] if a value does not fit the type that it is
    /// cast to; [`Error::InvalidArgument`] if the patch does not fit into memory.
    pub fn read(&self, region: Region) -> Result<Patch> {
        let layout = self.volume.layout();
        let channels = self.channel_count();
        let source = self.padding.source(region, layout.shape);
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
            let (from, to) = ((patch.bytes(), source), (padded.bytes_mut(), region));
            self.padding
                .fill(from, to, channels, self.dtype(), layout.shape);
            patch = padded;
        }
        Ok(patch)
    }

    /// Casts a patch of the volume's voxels to the type that patches get, into `out`.
    ///
    /// # Errors
    ///
    /// [`Error::ValueRange`] if a value does not fit.
    pub(super) fn cast_into(&self, patch: &Patch, out: &mut [u8]) -> Result<()> {
        let (from, to) = (patch.dtype(), self.dtype());
        convert(from, patch.bytes(), to, out);
        let Some(first) = loss(from, patch.bytes(), to).clipped.first else {
            return Ok(());
        };
        let (channel, voxel) = patch.region().place(first);
        Err(Error::ValueRange {
            path: self.volume.layout().path.clone(),
            channel: self.channels.start + channel,
            voxel: voxel.map(i64::unsigned_abs),
            value: text(from, patch.bytes(), first),
            dtype: to,
            remedy: "cast to a type that holds it, or not at all",
        })
    }

    /// Returns `true` if patches get the volume's voxels without a cast.
    pub(super) fn keeps_type(&self) -> bool {
        self.dtype() == self.volume.layout().dtype
    }

    /// Bytes of some voxels of its patches, all channels, before the cast.
    pub(super) fn read_bytes(&self, voxels: u64) -> u64 {
        let size = self.volume.layout().dtype.size() as u64;
        voxels.saturating_mul(self.channel_count().saturating_mul(size))
    }

    /// The type of its patches' voxels.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.cast.unwrap_or(self.volume.layout().dtype)
    }
}

impl Subject {
    /// A subject of volumes that cover the same, on the grid of the first: see [`Matching::on_grid_of`].
    /// `tolerance` is in voxels ([`TOLERANCE`](crate::volume::TOLERANCE) is usual).
    ///
    /// # Errors
    ///
    /// As [`matched`](Self::matched).
    pub fn new(name: impl Into<String>, images: Vec<Image>, tolerance: f64) -> Result<Self> {
        let matching = Matching {
            tolerance,
            ..Matching::default()
        };
        Self::matched(name, images, &matching)
    }

    /// A subject of volumes that cover the same, on the grid of the first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no image, if two have one name, or if one has not the channels
    /// that are wanted of it or is padded with a value that its type does not have; those of [`Matching::on_grid_of`].
    pub fn matched(
        name: impl Into<String>,
        mut images: Vec<Image>,
        matching: &Matching,
    ) -> Result<Self> {
        let name = name.into();
        let Some(first) = images.first() else {
            return Err(Error::InvalidArgument {
                argument: "subject",
                value: name,
                problem: "it has no image".to_owned(),
            });
        };
        let reference = first.volume.layout().clone();
        for (n, image) in images.iter().enumerate() {
            if images[..n].iter().any(|other| other.name == image.name) {
                return Err(Error::InvalidArgument {
                    argument: "subject",
                    value: name,
                    problem: format!("two of its images are called {}", image.name),
                });
            }
            check_channels(image)?;
            image.padding.check(image.dtype(), &image.name)?;
        }
        for image in &mut images[1..] {
            image.volume = matching.on_grid_of(&reference, Arc::clone(&image.volume))?;
        }
        Ok(Self { name, images })
    }

    /// What it is called; for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its images, in the order of each sample's patches.
    #[must_use]
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The image of this name.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.name == name)
    }

    /// Voxels along z, y, x.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.images[0].volume.layout().shape
    }

    /// In how many places a patch can lie, rounded as an f64 is: a weight for
    /// [`EpochPlan::proportional`](super::EpochPlan::proportional).
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if there is none; see [`CenterBox::new`].
    pub fn places(&self, patch: Shape, border: Border) -> Result<f64> {
        Ok(CenterBox::new(self.shape(), patch, border)?.places())
    }

    /// Bytes of the patches that one sample of this patch size has, as they are delivered.
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
            "it has {}, counted from 0; take one at least",
            layout.channels
        ),
    })
}

/// A list of subjects that are opened when they are needed.
pub trait Subjects: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Opens one. Called from several threads at once.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened.
    fn open(&self, index: u64) -> Result<Subject>;

    /// What a subject is called, if that is known without opening it; for messages.
    fn name(&self, _index: u64) -> String {
        String::new()
    }

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that differs between lists that give different patches, for
    /// [`LoaderState`](super::LoaderState): a run is not resumed with other subjects. Nothing is
    /// opened for it; how many there are, where no more is known.
    fn fingerprint(&self) -> u64 {
        self.len()
    }
}

impl Subjects for Vec<Subject> {
    fn len(&self) -> u64 {
        self[..].len() as u64
    }

    fn open(&self, index: u64) -> Result<Subject> {
        let at = usize::try_from(index).expect("an index below the list's length");
        Ok(self[at].clone())
    }

    fn name(&self, index: u64) -> String {
        let at = usize::try_from(index).ok();
        let subject = at.and_then(|at| self.get(at));
        subject.map_or_else(String::new, |subject| subject.name().to_owned())
    }

    /// Of names and shapes, and of each image's name, channels, voxel type, values and padding, in their
    /// order.
    fn fingerprint(&self) -> u64 {
        let mut all = Fingerprint::new();
        let mut text = |text: &str| {
            all.number(text.len() as u64);
            all.bytes(text.as_bytes());
        };
        for subject in self {
            text(&subject.name);
            text(&format!("{:?}", subject.shape()));
            for image in &subject.images {
                let layout = image.volume.layout();
                let values = (layout.dtype, layout.rescale, layout.applied);
                let of_patches = (&image.channels, values, image.cast, image.padding);
                text(&image.name);
                text(&format!("{of_patches:?}"));
            }
        }
        all.finish()
    }
}

/// Subjects that a function opens: a list of a million costs nothing.
pub struct LazySubjects<F> {
    length: u64,
    open: F,
    fingerprint: u64,
}

impl<F: Fn(u64) -> Result<Subject> + Send + Sync> LazySubjects<F> {
    /// `length` subjects, each opened by `open`.
    pub const fn new(length: u64, open: F) -> Self {
        Self {
            length,
            open,
            fingerprint: length,
        }
    }

    /// The same, known by a text of the caller's, say all paths: a run whose subjects were known by
    /// another text is not resumed with these.
    #[must_use]
    pub fn with_key(self, text: &str) -> Self {
        let mut all = Fingerprint::new();
        all.number(self.length);
        all.bytes(text.as_bytes());
        Self {
            fingerprint: all.finish(),
            ..self
        }
    }
}

impl<F> Debug for LazySubjects<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazySubjects")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl<F: Fn(u64) -> Result<Subject> + Send + Sync> Subjects for LazySubjects<F> {
    fn len(&self) -> u64 {
        self.length
    }

    fn open(&self, index: u64) -> Result<Subject> {
        (self.open)(index)
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use crate::volume::{Layout, MemoryVolume, TOLERANCE};

    fn image(name: &str, shape: Shape, geometry: Geometry) -> Image {
        let layout = Layout::new(shape, 1, DType::U8).with_geometry(geometry);
        Image::new(name, Arc::new(MemoryVolume::zeros(layout).unwrap()))
    }

    #[test]
    fn images_of_a_subject_lie_on_one_grid() {
        let spacing = |x| Geometry::from_spacing([3.0, 1.0, x]);
        let with = |other: Image, tolerance| {
            Subject::new(
                "s",
                vec![image("ct", [9, 8, 7], spacing(1.0)), other],
                tolerance,
            )
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
        assert!(Subject::new("s", Vec::new(), TOLERANCE).is_err());
    }

    #[test]
    fn a_subject_counts_the_places_of_a_patch() {
        let geometry = Geometry::from_spacing([1.0; 3]);
        let subject = Subject::new("s", vec![image("ct", [9, 8, 7], geometry)], 0.0).unwrap();
        let places = |patch, border| subject.places(patch, border).unwrap();
        assert!((places([9, 2, 3], Border::Drop) - 35.0).abs() < 0.5);
        assert!((places([10, 2, 3], Border::Pad) - 504.0).abs() < 0.5);
        assert!(subject.places([10, 2, 3], Border::Shift).is_err());
    }
}
