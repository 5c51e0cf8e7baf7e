//! Lists of subjects.

use std::fmt::{self, Debug};

use super::fingerprint::Fingerprint;
use super::subject::Subject;
use crate::error::Result;

/// A list of subjects that are opened when they are needed.
pub trait Subjects: Send + Sync {
    /// The number of subjects.
    fn len(&self) -> u64;

    /// Opens a subject. Several threads may call this at once.
    ///
    /// # Errors
    ///
    /// Any error of opening it.
    fn open(&self, index: u64) -> Result<Subject>;

    /// The name of a subject, for messages; empty if it is not known without opening the subject.
    fn name(&self, _index: u64) -> String {
        String::new()
    }

    /// Returns `true` if there are no subjects.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that differs between lists with different patches. A [`LoaderState`](super::LoaderState)
    /// can only be resumed with the same number. It opens nothing; the default is the number of
    /// subjects.
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

    /// A hash of names, shapes, and each image's name, channels, voxel type, values and padding, in order.
    fn fingerprint(&self) -> u64 {
        let mut all = Fingerprint::new();
        let mut text = |text: &str| {
            all.number(text.len() as u64);
            all.bytes(text.as_bytes());
        };
        for subject in self {
            text(subject.name());
            text(&format!("{:?}", subject.shape()));
            for image in subject.images() {
                let layout = image.volume.layout();
                let values = (layout.dtype, layout.rescale, layout.applied);
                let cast = (image.cast, image.bfloat16, &image.normalize);
                let of_patches = (&image.channels, values, cast, image.padding);
                text(&image.name);
                text(&format!("{of_patches:?}"));
            }
        }
        all.finish()
    }
}

/// Subjects opened on demand by a function. A list of a million costs nothing.
pub struct LazySubjects<F> {
    length: u64,
    open: F,
    fingerprint: u64,
}

impl<F: Fn(u64) -> Result<Subject> + Send + Sync> LazySubjects<F> {
    /// Creates a list of `length` subjects, each opened by `open`.
    pub const fn new(length: u64, open: F) -> Self {
        Self {
            length,
            open,
            fingerprint: length,
        }
    }

    /// Sets a text that identifies the subjects, such as all paths. A run can only be resumed with the
    /// same text.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        let mut all = Fingerprint::new();
        all.number(self.length);
        all.bytes(key.as_bytes());
        Self {
            fingerprint: all.finish(),
            ..self
        }
    }
}

impl<F> Debug for LazySubjects<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

impl<S: Subjects + ?Sized> Subjects for std::sync::Arc<S> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn open(&self, index: u64) -> Result<Subject> {
        (**self).open(index)
    }

    fn name(&self, index: u64) -> String {
        (**self).name(index)
    }

    fn fingerprint(&self) -> u64 {
        (**self).fingerprint()
    }
}
