//! Inference: prediction of a grid of patches, blended into outputs on disk.
//!
//! A [`Predictor`] ties a volume, a model and [`InferenceOptions`] together. [`Predictor::plan`] works out the grid,
//! the outputs and the memory before any file is touched; [`InferencePlan::run`] reads, predicts and blends the
//! patches on several threads, within the memory. The output is the same for any number of threads.

mod begun;
mod blender;
mod builtin;
mod cache;
mod ensemble;
#[cfg(any(feature = "ort", test))]
mod external;
mod fit;
mod mask;
mod memory;
mod model;
mod needs;
#[cfg(any(feature = "onnx", feature = "ort"))]
mod network;
mod normalize;
#[cfg(feature = "onnx")]
mod onnx;
mod options;
#[cfg(feature = "ort")]
mod ort;
mod passes;
mod place;
mod planned;
mod pool;
mod predictor;
mod probe;
mod resume;
mod run;
mod schedule;
mod tasks;
mod timings;
mod tta;
mod work;

#[cfg(feature = "ort")]
pub use self::ort::OnnxRuntime;
pub use blender::{Blender, FinalBlock};
pub use builtin::builtin_model;
pub use ensemble::Ensemble;
pub use mask::PatchMask;
pub use model::{BatchModel, FnModel, InputValues, Model, OutputSpec, SelectOutput};
#[cfg(feature = "onnx")]
pub use onnx::Onnx;
pub use options::{InferenceOptions, OutputTarget, StoreOption};
pub use place::OutputPlace;
pub use planned::PlannedOutput;
pub use pool::PatchPool;
pub use predictor::{InferencePlan, Predictor};
pub use probe::Probe;
pub use run::InferenceStats;
pub use tasks::{JobStatus, PlannedTask};
pub use timings::Timings;
pub use tta::FlipTta;

#[cfg(test)]
mod tests;
