//! The compiled half of the Python package `voxpatch`: thin classes around the Rust library.
//!
//! One file a subject. Whatever reads, waits or computes does so without the interpreter
//! ([`wait`]), and every error and panic arrives as an exception ([`errors`]).

use pyo3::pymodule;

mod aggregator;
mod arguments;
mod array;
mod blend;
mod errors;
mod frontier;
mod grid;
mod index;
mod loader;
mod model;
mod predict;
mod sampler;
mod stats;
mod subjects;
#[cfg(feature = "testing")]
mod testing;
mod volume;
mod wait;
mod write;

/// The compiled half of the package `voxpatch`.
#[pymodule(gil_used = true)]
mod _voxpatch {
    /// The version of the package, which `Cargo.toml` says.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python uses")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use crate::aggregator::Aggregator;
    #[pymodule_export]
    use crate::frontier::Frontier;
    #[pymodule_export]
    use crate::grid::{Grid, output_place, read_box};
    #[pymodule_export]
    use crate::loader::{EpochLoader, Epochs};
    #[pymodule_export]
    use crate::predict::{Ticket, predict};
    #[pymodule_export]
    use crate::stats::stats;
    #[pymodule_export]
    use crate::subjects::{SubjectList, survey};
    #[cfg(feature = "testing")]
    #[pymodule_export]
    use crate::testing::{drained, faulty};
    #[pymodule_export]
    use crate::volume::{Volume, on_grid, open, reopen};
    #[pymodule_export]
    use crate::write::{convert, write};
}
