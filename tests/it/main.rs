//! One binary for all integration tests.

mod axes;
mod cli;
mod dependencies;
mod grids;
mod help;
mod hostile;
mod infer;
mod jobs;
#[cfg(all(target_os = "linux", feature = "dicom", feature = "tiff"))]
mod large;
mod layers;
mod manners;
#[cfg(feature = "cloud")]
mod object_server;
#[cfg(feature = "onnx")]
mod onnx;
mod opening;
mod outputs;
mod packed;
mod process;
mod promises;
mod real_scans;
mod replacing;
mod resampling;
mod rigs;
mod sample;
#[cfg(feature = "dicom")]
mod series;
mod sizes;
mod stats;
#[cfg(feature = "cloud")]
mod stores;
mod together;
mod tool;
mod training;
mod values;
mod words;
