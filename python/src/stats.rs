//! Statistics of volumes.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use voxpatch::Result;
use voxpatch::normalize::{Statistics, StatisticsOptions};
use voxpatch::training::Image;

use crate::volume::{Source, Volume};
use crate::wait::interruptible;
use crate::write::chosen;

/// A volume that is open, or the path of one.
#[derive(Clone)]
enum Given {
    Open(Arc<Image>),
    At(Box<Source>),
}

impl Given {
    fn of(py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(volume) = given.cast::<Volume>() {
            return Ok(Self::Open(volume.get().image(py)?));
        }
        Ok(Self::At(Box::new(Source::at(given.extract::<PathBuf>()?))))
    }

    fn open(&self) -> Result<Arc<dyn voxpatch::Volume>> {
        match self {
            Self::Open(image) => Ok(Arc::new(chosen(image)?)),
            Self::At(source) => Ok(Arc::new(chosen(&source.open()?)?)),
        }
    }
}

/// Return the statistics of volumes, with a label map for each if there are some, as JSON: those of all voxels, and of each
/// volume.
#[pyfunction]
#[pyo3(name = "_stats")]
pub(crate) fn stats(
    py: Python<'_>,
    volumes: Vec<Bound<'_, PyAny>>,
    labels: Option<Vec<Bound<'_, PyAny>>>,
    ignore_label: Option<i64>,
    percentiles: Vec<f64>,
    threads: usize,
    results: Option<PathBuf>,
) -> PyResult<String> {
    let all = |given: Vec<Bound<'_, PyAny>>| -> PyResult<Vec<Given>> {
        given.iter().map(|one| Given::of(py, one)).collect()
    };
    let volumes = all(volumes)?;
    let labels = labels.map(all).transpose()?;
    let options = StatisticsOptions::default()
        .with_ignore_label(ignore_label)
        .with_threads(threads)
        .with_results(results);
    interruptible(py, move |stop| {
        let open = |n: usize| {
            let labels = labels.as_ref().map(|labels| labels[n].open());
            Ok((volumes[n].open()?, labels.transpose()?))
        };
        let progress = |_: u64, _: u64| {
            if stop.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let found = Statistics::of_all(volumes.len(), &open, &options, &progress)?;
        Ok(Statistics::report(&found, &percentiles).to_string())
    })
}
