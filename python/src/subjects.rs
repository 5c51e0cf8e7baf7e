//! Lists of subjects, opened when they are needed; those that Python makes are asked for on the
//! consumer's thread, so that no thread of ours ever waits for the interpreter.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;
use voxpatch::normalize::{NormalizeSetting, Normalizer};
use voxpatch::training::{Cohort, Image, Subject, Subjects};
use voxpatch::volume::{Interpolation, Matching};
use voxpatch::{DType, Error, Padding, Result};

use crate::arguments::{self, Values};
use crate::array;
use crate::errors::{invalid, raised};
use crate::volume::{Source, Volume};
use crate::wait::interruptible;

/// Subjects that are kept open for the next epoch.
const KEPT: usize = 64;

/// What a subject is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    name: String,
    images: Vec<Part>,
    matching: Matching,
    /// The image to whose grid the others are resampled.
    grid: Option<String>,
}

#[derive(Clone)]
struct Part {
    name: String,
    source: Source,
    /// The volume, if this process has it open already.
    open: Option<Arc<Image>>,
    padding: Padding,
    /// The type that its values are converted to.
    dtype: Option<Cast>,
    /// Shared by all openings of the image, so that it is measured once.
    normalize: Normalizer,
    /// The name of the image, or the path, of the mask in which it is measured.
    mask: Option<String>,
    interpolation: Option<Interpolation>,
}

/// A type that values are converted to.
#[derive(Clone, Copy)]
enum Cast {
    To(DType),
    /// A type of torch, which numpy does not have.
    BFloat16,
}

impl Cast {
    fn of(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let text: String = given.str()?.extract()?;
        if text == "bfloat16" {
            return Ok(Self::BFloat16);
        }
        Ok(Self::To(array::dtype(given)?))
    }
}

impl Parts {
    fn open(&self) -> Result<Subject> {
        let image = |part: &Part| {
            let image = match &part.open {
                Some(image) => (**image).clone(),
                None => part.source.open()?,
            };
            let image = Image {
                name: part.name.clone(),
                padding: part.padding,
                normalize: part.normalize.clone(),
                interpolation: part.interpolation,
                ..image
            };
            Ok(match part.dtype {
                Some(Cast::To(dtype)) => image.with_dtype(dtype),
                Some(Cast::BFloat16) => image.with_bfloat16(),
                None => image,
            })
        };
        let images: Result<Vec<Image>> = self.images.iter().map(image).collect();
        let subject = Subject::builder(self.name.clone())
            .with_images(images?)
            .with_matching(self.matching);
        match &self.grid {
            Some(grid) => subject.with_grid(grid.clone()).build(),
            None => subject.build(),
        }
    }
}

/// An image's name, its volume or path, its padding, a type or None, which values a path is opened for, its
/// normalization, and its interpolation or None.
type Told<'py> = (
    String,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
    Bound<'py, PyAny>,
    String,
    Option<String>,
);

/// A subject's name, its images, and how they are matched.
type All<'py> = (String, Vec<Told<'py>>, (f64, bool, Option<String>));

/// What a Python subject's `_parts()` gives: its name, (name, volume or path, padding, type, values, normalization,
/// interpolation) of each image, and (`tolerance`, `same_grid`, `grid`).
impl<'py> FromPyObject<'_, 'py> for Parts {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = given.py();
        let (name, images, (tolerance, same_grid, grid)): All<'py> = given.extract()?;
        let part = |(name, volume, padding, dtype, values, normalize, interpolation): Told<'py>| {
            let padding = padding_of(&padding)?;
            let dtype = dtype.as_ref().map(Cast::of).transpose()?;
            let setting: NormalizeSetting = normalize.parse().map_err(|error| raised(&error))?;
            let (normalize, mask) = (setting.normalizer(), setting.mask);
            let interpolation = interpolation.map(|how| how.parse()).transpose();
            let interpolation = interpolation.map_err(|error| raised(&error))?;
            if let Ok(volume) = volume.cast::<Volume>() {
                let volume = volume.get();
                return Ok(Part {
                    name,
                    source: volume.source().clone(),
                    open: Some(volume.image(py)?),
                    padding,
                    dtype,
                    normalize,
                    mask,
                    interpolation,
                });
            }
            Ok(Part {
                name,
                source: Source {
                    values: match (arguments::values(&values)?, dtype) {
                        (Values::Real, Some(Cast::To(dtype))) if normalize.is_none() => {
                            Values::As(dtype)
                        }
                        (values, _) => values,
                    },
                    ..Source::at(volume.extract::<PathBuf>()?)
                },
                open: None,
                padding,
                dtype,
                normalize,
                mask,
                interpolation,
            })
        };
        let mut images: Vec<Part> = images.into_iter().map(part).collect::<PyResult<_>>()?;
        // A mask is another image of the subject if one has that name.
        let named = |part: &Part| {
            let has_name = |other: &&Part| Some(&other.name) == part.mask.as_ref();
            images.iter().find(has_name).cloned()
        };
        let masks: Vec<Option<Part>> = images.iter().map(named).collect();
        for (part, mask) in images.iter_mut().zip(masks) {
            let Some(mask) = mask else { continue };
            let normalize = part.normalize.clone();
            part.normalize = normalize.with_mask_by(mask.name.clone(), move || {
                Ok(match &mask.open {
                    Some(image) => Arc::clone(&image.volume),
                    None => mask.source.open()?.volume,
                })
            });
        }
        Ok(Self {
            name,
            images,
            matching: Matching {
                tolerance,
                same_grid,
            },
            grid,
        })
    }
}

/// What stands beyond the faces: a number, or `"edge"`, `"reflect"` or `"wrap"`.
pub(crate) fn padding_of(given: &Bound<'_, PyAny>) -> PyResult<Padding> {
    if let Ok(value) = given.extract::<f64>() {
        return Ok(Padding::Constant(value));
    }
    match given.extract::<String>().as_deref() {
        Ok("edge") => Ok(Padding::Edge),
        Ok("reflect") => Ok(Padding::Reflect),
        Ok("wrap") => Ok(Padding::Wrap),
        Ok("constant") => Ok(Padding::Constant(0.0)),
        _ => Err(invalid(format!(
            "padding {given}: it is a number, 'edge', 'reflect' or 'wrap'"
        ))),
    }
}

/// A list of subjects, as the loader has it.
pub(crate) struct List {
    length: u64,
    fingerprint: u64,
    kind: Kind,
    kept: Mutex<VecDeque<(u64, Subject)>>,
}

enum Kind {
    /// All are known.
    Known(Vec<Parts>),
    /// Python makes each when it is wanted.
    Asked(Box<Asked>),
}

impl List {
    /// The consumer's side of a list that Python makes; `None` for one that is known.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        match &self.kind {
            Kind::Asked(asked) => Some(asked),
            Kind::Known(_) => None,
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(u64, Subject)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Subjects for List {
    fn len(&self) -> u64 {
        self.length
    }

    fn open(&self, index: u64) -> Result<Subject> {
        if let Some((_, subject)) = self.kept().iter().find(|(kept, _)| *kept == index) {
            return Ok(subject.clone());
        }
        let subject = match &self.kind {
            Kind::Known(all) => {
                let at = usize::try_from(index).ok().and_then(|index| all.get(index));
                at.ok_or(Error::Interrupted)?.open()?
            }
            Kind::Asked(asked) => asked.parts(index)?.open()?,
        };
        let mut kept = self.kept();
        kept.push_back((index, subject.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(subject)
    }

    fn name(&self, index: u64) -> String {
        let Kind::Known(all) = &self.kind else {
            return String::new();
        };
        let at = usize::try_from(index).ok();
        let parts = at.and_then(|at| all.get(at));
        parts.map_or_else(String::new, |parts| parts.name.clone())
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Subjects that are opened to see what they are like, and not kept open.
struct Headers(Vec<Parts>);

impl Subjects for Headers {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self, index: u64) -> Result<Subject> {
        let at = usize::try_from(index).ok();
        at.and_then(|at| self.0.get(at))
            .ok_or(Error::Interrupted)?
            .open()
    }
}

/// Return a number that differs between lists of subjects whose images differ in name, shape, channels or
/// type; with `alike`, images that do not fit into one batch are an error. Subjects that cannot be
/// opened are left to the loader.
#[pyfunction]
#[pyo3(name = "_survey")]
pub(crate) fn survey(
    py: Python<'_>,
    parts: Vec<Parts>,
    threads: usize,
    alike: bool,
) -> PyResult<u64> {
    interruptible(py, move |stop| {
        let cohort = Cohort::survey(&Headers(parts), threads, stop)?;
        if alike {
            cohort.check()?;
        }
        Ok(cohort.fingerprint())
    })
}

/// Subjects that a function of Python's makes.
pub(crate) struct Asked {
    make: Py<PyAny>,
    talk: Mutex<Talk>,
    changed: Condvar,
}

struct Talk {
    consumer: ThreadId,
    wanted: Option<u64>,
    answer: Option<Result<Parts>>,
    /// What the function raised last.
    raised: Option<PyErr>,
    closed: bool,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this thread is the consumer's.
    pub(crate) fn begin(&self) {
        let mut talk = self.lock();
        talk.consumer = thread::current().id();
        talk.closed = false;
    }

    /// Nobody answers any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What the function raised, if that has not been told yet.
    pub(crate) fn raised(&self) -> Option<PyErr> {
        self.lock().raised.take()
    }

    /// Makes the subject that a worker waits for, if one does.
    pub(crate) fn answer(&self, py: Python<'_>) {
        let wanted = self.lock().wanted.take();
        if let Some(index) = wanted {
            let made = self.make(py, index);
            self.lock().answer = Some(made);
            self.changed.notify_all();
        }
    }

    fn make(&self, py: Python<'_>, index: u64) -> Result<Parts> {
        let made = self.make.bind(py).call1((index,));
        made.and_then(|made| made.extract::<Parts>())
            .map_err(|error| {
                let text = error.to_string();
                self.lock().raised = Some(error);
                Error::InvalidArgument {
                    argument: "subject",
                    value: index.to_string(),
                    problem: text,
                }
            })
    }

    /// Asks the consumer, or the function itself on the consumer's thread.
    fn parts(&self, index: u64) -> Result<Parts> {
        let mut talk = self.lock();
        if talk.consumer == thread::current().id() {
            drop(talk);
            return Python::attach(|py| self.make(py, index));
        }
        talk.wanted = Some(index);
        loop {
            if talk.closed {
                return Err(Error::Interrupted);
            }
            if let Some(answer) = talk.answer.take() {
                return answer;
            }
            talk = self
                .changed
                .wait(talk)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A list of subjects that loaders share in one process.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct SubjectList {
    pub(crate) list: Arc<List>,
}

#[pymethods]
impl SubjectList {
    /// Make a list of subjects that are all known: their parts, and a text that identifies them.
    #[staticmethod]
    fn known(parts: Vec<Parts>, text: &str) -> Self {
        Self::new(parts.len() as u64, text, Kind::Known(parts))
    }

    /// Make a list of subjects that a function makes: it gets the number of each and returns its parts.
    #[staticmethod]
    fn made(length: u64, make: Py<PyAny>, text: &str) -> Self {
        let asked = Asked {
            make,
            talk: Mutex::new(Talk {
                consumer: thread::current().id(),
                wanted: None,
                answer: None,
                raised: None,
                closed: false,
            }),
            changed: Condvar::new(),
        };
        Self::new(length, text, Kind::Asked(Box::new(asked)))
    }

    /// Open a subject: what is wrong with it is an error now.
    fn check(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        let list = Arc::clone(&self.list);
        if let Some(asked) = list.asked() {
            asked.begin();
        }
        py.detach(|| list.open(index))
            .map(drop)
            .map_err(|error| raised(&error))
    }
}

impl SubjectList {
    fn new(length: u64, text: &str, kind: Kind) -> Self {
        // The fingerprint of a list that is known by this text.
        let known = voxpatch::training::LazySubjects::new(length, |_| Err(Error::Interrupted))
            .with_key(text);
        let list = List {
            length,
            fingerprint: known.fingerprint(),
            kind,
            kept: Mutex::default(),
        };
        Self {
            list: Arc::new(list),
        }
    }
}
