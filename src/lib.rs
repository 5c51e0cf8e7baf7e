//! Out-of-core patches for huge 3-D volumes.

#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests know the exact result"))]

pub mod aggregator;
pub mod convert;
pub mod dtype;
pub mod error;
pub mod geometry;
pub mod grid;
pub mod inference;
pub mod pad;
pub mod patch;
pub mod progress;
pub mod queue;
pub mod region;
pub mod sampler;
pub mod training;
pub mod volume;

pub use aggregator::{Aggregated, Aggregator, Blend, Reduce};
pub use convert::{ConvertOptions, Converted, convert};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use geometry::{Affine, Geometry};
pub use grid::Grid;
pub use inference::{Inference, Model, builtin};
pub use pad::Padding;
pub use patch::{Patch, Voxels};
pub use queue::Queue;
pub use region::{Region, Shape};
pub use sampler::Uniform;
pub use volume::{Layout, MemoryVolume, OpenOptions, Volume, VolumeMut, open};
