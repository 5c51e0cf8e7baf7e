//! Out-of-core patches for huge 3-D volumes.
//!
//! A volume stays on disk ([`open`], [`volume::create`]). Reading a [`Region`] only reads the chunks that it touches,
//! and returns a [`Patch`] (c, z, y, x) that owns its memory.
//!
//! Training: a [`training::Dataset`] combines subjects with a [`sampler`] and the plan of an epoch. Its loader
//! prefetches patches, and reads each chunk once for all buffered patches that need it.
//!
//! ```
//! use std::sync::Arc;
//! use voxpatch::MemoryVolume;
//! use voxpatch::training::{Dataset, Subject, UniformPatches};
//!
//! # fn main() -> voxpatch::Result<()> {
//! let scan = Arc::new(MemoryVolume::from_vec([40, 30, 20], 1, vec![7_i16; 24_000])?);
//! let subject = Subject::builder("patient 1").with_image("ct", scan).build()?;
//! let dataset = Dataset::new(vec![subject], UniformPatches::new([16; 3])).samples_per_subject(8).seed(42);
//! for batch in dataset.epoch(0).batches(4)? {
//!     assert_eq!(batch?.image("ct").unwrap().shape(), [4, 1, 16, 16, 16]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Inference: a [`Predictor`] covers a volume with patches, a [`Model`] predicts them, and the predictions are blended
//! into an output. Each write chunk is written once.
//!
//! ```
//! use std::sync::Arc;
//! use voxpatch::{InferenceOptions, MemoryVolume, OutputTarget, Predictor, builtin_model, open, progress};
//! use voxpatch::{Region, VolumeExt};
//!
//! # fn main() -> voxpatch::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! let scan = Arc::new(MemoryVolume::from_vec([40, 30, 20], 1, vec![0.5_f32; 24_000])?);
//! let out = folder.path().join("out.zarr");
//! let predictor = Predictor::new(scan, builtin_model("identity")?, InferenceOptions::new([16; 3]));
//! let plan = predictor.plan(&[OutputTarget::new(&out)])?;
//! plan.run(&progress::silent)?;
//! let patch = open(&out)?.read(Region::new([4, 4, 4], [2, 2, 2]))?;
//! assert_eq!(patch.as_slice::<f32>()?, [0.5; 8]);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests know the exact result"))]

pub mod aggregator;
pub mod convert;
pub mod dtype;
pub mod error;
mod files;
pub mod geometry;
pub mod grid;
pub mod inference;
pub mod meter;
pub mod normalize;
pub mod pad;
pub mod patch;
pub mod progress;
pub mod queue;
pub mod region;
pub mod sampler;
pub mod store;
mod threads;
pub mod training;
pub mod volume;
mod words;

pub use aggregator::{AggregationStats, Aggregator, AggregatorOptions, Blend, Reduce};
pub use convert::{ConvertOptions, ConvertPlan, ConvertStats, convert};
pub use dtype::{DType, Element};
pub use error::{Error, ErrorKind, Result};
pub use geometry::{Affine, Geometry, SignedAxes};
pub use grid::{Grid, GridOptions, GridPlacement};
pub use half;
pub use inference::{
    InferenceOptions, InferencePlan, Model, OutputTarget, Predictor, builtin_model,
};
pub use ndarray;
pub use normalize::Normalize;
pub use pad::Padding;
pub use patch::{Patch, Voxels};
pub use queue::Queue;
pub use region::{Region, Shape};
pub use sampler::Uniform;
pub use store::StorageOptions;
pub use threads::{DEFAULT_MEMORY, threads};
pub use volume::{Layout, MemoryVolume, OpenOptions, Volume, VolumeExt, VolumeMut, open};

/// The examples of the README and the guides, compiled as doctests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/guide/training.md")]
    struct Training;
    #[doc = include_str!("../docs/guide/prediction.md")]
    struct Prediction;
    #[doc = include_str!("../docs/guide/resume.md")]
    struct Resume;
}
