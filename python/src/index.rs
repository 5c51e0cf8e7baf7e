//! numpy-style indices: which box is read, and what becomes of it.

use std::ops::Range;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyEllipsis, PySlice, PyTuple};
use voxpatch::Region;

use crate::errors::out_of_bounds;

/// A box, and the indices that make the array that was asked for out of it.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) channels: Range<u64>,
    pub(crate) region: Region,
    /// The steps along c, z, y, x; `None` where a single index takes the axis away.
    steps: [Option<isize>; 4],
}

impl Selection {
    /// What an index of a volume of this shape, c, z, y, x, asks for.
    pub(crate) fn new(key: &Bound<'_, PyAny>, shape: [u64; 4]) -> PyResult<Self> {
        let parts: Vec<Bound<'_, PyAny>> = match key.cast::<PyTuple>() {
            Ok(tuple) => tuple.iter().collect(),
            Err(_) => vec![key.clone()],
        };
        let is_ellipsis = |part: &Bound<'_, PyAny>| part.is_instance_of::<PyEllipsis>();
        let ellipses = parts.iter().filter(|part| is_ellipsis(part)).count();
        let given = parts.len() - ellipses;
        if ellipses > 1 || given > 4 {
            return Err(out_of_bounds(format!(
                "{key}: a volume has four axes, c, z, y, x, and an index one '...' at most"
            )));
        }
        let mut along: Vec<(u64, u64, Option<isize>)> = Vec::with_capacity(4);
        for part in &parts {
            if is_ellipsis(part) {
                let until = 4 - (given - along.len());
                while along.len() < until {
                    along.push((0, shape[along.len()], Some(1)));
                }
            } else {
                along.push(axis(part, shape[along.len()], along.len())?);
            }
        }
        while along.len() < 4 {
            along.push((0, shape[along.len()], Some(1)));
        }
        let start = |a: usize| i64::try_from(along[a].0).unwrap_or(i64::MAX);
        Ok(Self {
            channels: along[0].0..along[0].0 + along[0].1,
            region: Region::new(
                [start(1), start(2), start(3)],
                [along[1].1, along[2].1, along[3].1],
            ),
            steps: [along[0].2, along[1].2, along[2].2, along[3].2],
        })
    }

    /// The array that was asked for, out of the box's.
    pub(crate) fn of<'py>(&self, array: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if self.steps == [Some(1); 4] {
            return Ok(array);
        }
        let py = array.py();
        let part = |step: Option<isize>| match step {
            None => Ok(0_u8.into_pyobject(py)?.into_any()),
            Some(step) => py.get_type::<PySlice>().call1((py.None(), py.None(), step)),
        };
        let parts = self.steps.map(part);
        let key = PyTuple::new(py, parts.into_iter().collect::<PyResult<Vec<_>>>()?)?;
        let found = array.get_item(key)?;
        if self.steps.iter().flatten().all(|&step| step == 1) {
            // Axes of length 1 are gone, nothing else: the array is whole as it is.
            return Ok(found);
        }
        found.call_method0("copy")
    }
}

/// First voxel, voxels and step of the box along an axis.
fn axis(part: &Bound<'_, PyAny>, length: u64, axis: usize) -> PyResult<(u64, u64, Option<isize>)> {
    let name = ["c", "z", "y", "x"][axis];
    let signed =
        isize::try_from(length).map_err(|_| out_of_bounds(format!("axis {name} is too long")))?;
    if let Ok(slice) = part.cast::<PySlice>() {
        let found = slice.indices(signed)?;
        let Some(more) = found.slicelength.checked_sub(1) else {
            return Ok((0, 0, Some(1)));
        };
        let last = found.start + found.step * isize::try_from(more).unwrap_or(isize::MAX);
        let (low, high) = (found.start.min(last), found.start.max(last));
        return Ok((
            low.unsigned_abs() as u64,
            (high - low).unsigned_abs() as u64 + 1,
            Some(found.step),
        ));
    }
    let is_bool = part.is_instance_of::<pyo3::types::PyBool>();
    match part.call_method0("__index__") {
        Ok(number) if !is_bool => {
            let inside = |number: isize| {
                let place = if number < 0 { number + signed } else { number };
                (0..signed).contains(&place).then_some(place)
            };
            let place = number.extract().ok().and_then(inside).ok_or_else(|| {
                out_of_bounds(format!(
                    "index {number} is outside axis {name}, which has {length}"
                ))
            })?;
            Ok((place.unsigned_abs() as u64, 1, None))
        }
        _ => Err(PyTypeError::new_err(format!(
            "axis {name} takes a whole number or a slice, not {}: read a box and index the array",
            part.repr()?
        ))),
    }
}
