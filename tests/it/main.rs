//! One binary for all integration tests.

mod axes;
mod cli;
mod dependencies;
mod hostile;
mod infer;
mod layers;
#[cfg(feature = "onnx")]
mod onnx;
mod opening;
mod outputs;
mod packed;
mod process;
mod real;
mod rigs;
mod sample;
mod together;
mod tool;
mod training;
mod words;
