//! Volumes that misbehave, for the tests of this package; not in what is shipped.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use voxpatch::volume::{ChunkShape, Layout};
use voxpatch::{DType, Region, Result, Shape};

use crate::loader::EpochLoader;
use crate::volume::{Place, Source, Volume};

/// A volume of zeros that sleeps, or panics, whenever it is read.
#[derive(Debug)]
struct Faulty {
    layout: Layout,
    sleep: Duration,
    panics: bool,
}

impl voxpatch::Volume for Faulty {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        thread::sleep(self.sleep);
        assert!(!self.panics, "this volume panics at [{region}]");
        out.fill(0);
        Ok(())
    }
}

/// A volume of float32 zeros that sleeps for some milliseconds, or panics, whenever it is read.
#[pyfunction]
#[pyo3(name = "_faulty", signature = (shape, *, milliseconds = 0, panics = false, chunk = None))]
pub(crate) fn faulty(
    shape: Shape,
    milliseconds: u64,
    panics: bool,
    chunk: Option<ChunkShape>,
) -> PyResult<Volume> {
    let mut layout = Layout::new(shape, 1, DType::F32);
    layout.read_chunk = chunk;
    Volume::of(Source {
        place: Place::Memory(Arc::new(Faulty {
            layout,
            sleep: Duration::from_millis(milliseconds),
            panics,
        })),
        resample: voxpatch::volume::Resample::default(),
        region: None,
        channels: None,
        values: crate::arguments::Values::Real,
        onto: None,
        normalized: None,
    })
}

/// Takes all that a loader has left without Python in between: what Python costs is measured against it.
#[pyfunction]
#[pyo3(name = "_drained")]
pub(crate) fn drained(py: Python<'_>, loader: &EpochLoader) -> PyResult<usize> {
    loader.drain(py)
}
