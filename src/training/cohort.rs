//! Cohorts: the images of all subjects of a list, compared by their headers.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::fingerprint::Fingerprint;
use super::subject::{Image, Subject};
use super::subjects::Subjects;
use super::sync::guarded;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::region::Shape;

/// The images of a subject, to compare with those of other subjects.
#[derive(Clone, Debug)]
pub(super) struct SubjectSpec(Vec<ImageSpec>);

/// The properties of an image.
#[derive(Clone, Debug)]
struct ImageSpec {
    name: String,
    path: PathBuf,
    shape: Shape,
    channels: Range<u64>,
    /// The type of the volume.
    stored: DType,
    /// The type of the patches.
    dtype: DType,
}

impl ImageSpec {
    fn of(image: &Image) -> Self {
        let layout = image.volume.layout();
        Self {
            name: image.name.clone(),
            path: layout.path.clone(),
            shape: layout.shape,
            channels: image.channels.clone(),
            stored: layout.dtype,
            dtype: image.dtype(),
        }
    }

    fn add_to(&self, all: &mut Fingerprint) {
        all.number(self.name.len() as u64);
        all.bytes(self.name.as_bytes());
        let Range { start, end } = self.channels;
        let numbers = self.shape.into_iter().chain([start, end]);
        numbers.for_each(|n| all.number(n));
        for dtype in [self.stored, self.dtype] {
            all.bytes(dtype.to_string().as_bytes());
            all.bytes(b";");
        }
    }

    fn channel_count(&self) -> u64 {
        self.channels.end.saturating_sub(self.channels.start)
    }

    /// Formats the image for a message.
    fn described(&self) -> String {
        let (count, dtype) = (self.channel_count(), self.dtype);
        let channels = if count == 1 { "channel" } else { "channels" };
        format!("{} with {count} {channels} of {dtype}", self.name)
    }
}

impl SubjectSpec {
    pub(super) fn of(subject: &Subject) -> Self {
        Self(subject.images().iter().map(ImageSpec::of).collect())
    }

    /// Adds names, shapes, channels and types to a fingerprint.
    pub(super) fn add_to(&self, all: &mut Fingerprint) {
        all.number(self.0.len() as u64);
        self.0.iter().for_each(|image| image.add_to(all));
    }

    /// Checks that another subject has the same images, with the same channels and types.
    ///
    /// # Errors
    ///
    /// [`Error::SubjectMismatch`].
    pub(super) fn check(&self, other: &Self) -> Result<()> {
        for image in &self.0 {
            match other.image(&image.name) {
                None => return Err(missing(image, other, false)),
                Some(own) => {
                    let same = (own.channel_count(), own.dtype);
                    if same != (image.channel_count(), image.dtype) {
                        return Err(Error::SubjectMismatch {
                            first: image.path.clone(),
                            second: own.path.clone(),
                            one: image.described(),
                            other: own.described(),
                        });
                    }
                }
            }
        }
        let more = other.0.iter().find(|own| self.image(&own.name).is_none());
        more.map_or(Ok(()), |more| Err(missing(more, self, true)))
    }

    fn image(&self, name: &str) -> Option<&ImageSpec> {
        self.0.iter().find(|image| image.name == name)
    }
}

/// Returns the error for an image that a subject lacks; the first of the two if `is_first`.
fn missing(image: &ImageSpec, lacking: &SubjectSpec, is_first: bool) -> Error {
    let path = lacking.0.first().map(|own| own.path.clone());
    let has = (image.path.clone(), image.described());
    let lacks = (
        path.unwrap_or_default(),
        format!("no image called {}", image.name),
    );
    let ((first, one), (second, other)) = if is_first { (lacks, has) } else { (has, lacks) };
    Error::SubjectMismatch {
        first,
        second,
        one,
        other,
    }
}

/// The images of all subjects of a list, found by opening each subject once.
///
/// Subjects that cannot be opened are left out: a loader reports them when their patches are due.
#[derive(Debug)]
pub struct Cohort(Vec<Option<SubjectSpec>>);

impl Cohort {
    /// Opens all subjects on at most `threads` threads, without reading voxels.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] once `stop` is set.
    pub fn survey(subjects: &dyn Subjects, threads: usize, stop: &AtomicBool) -> Result<Self> {
        let count = usize::try_from(subjects.len()).unwrap_or(usize::MAX);
        let next = AtomicUsize::new(0);
        let found: Vec<OnceLock<SubjectSpec>> = (0..count).map(|_| OnceLock::new()).collect();
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = found.get(n) else { return };
                if let Ok(subject) = guarded(|| subjects.open(n as u64)) {
                    place.get_or_init(|| SubjectSpec::of(&subject));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(count) {
                scope.spawn(work);
            }
            work();
        });
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(Self(found.into_iter().map(OnceLock::into_inner).collect()))
    }

    /// Checks that the patches of all subjects fit into one batch: the same images, each with the same
    /// channels and type.
    ///
    /// # Errors
    ///
    /// [`Error::SubjectMismatch`], which names two files.
    pub fn check(&self) -> Result<()> {
        let mut specs = self.0.iter().flatten();
        let Some(first) = specs.next() else {
            return Ok(());
        };
        specs.try_for_each(|spec| first.check(spec))
    }

    /// A number that differs between lists whose images differ in name, shape, channels or type. The
    /// paths of their files do not matter.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut all = Fingerprint::new();
        for spec in &self.0 {
            match spec {
                Some(spec) => spec.add_to(&mut all),
                None => all.number(u64::MAX),
            }
        }
        all.finish()
    }
}
