//! One binary for all integration tests.

mod cli;
mod layers;
#[cfg(feature = "onnx")]
mod onnx;
mod real;
mod sample;
mod tool;
mod training;
