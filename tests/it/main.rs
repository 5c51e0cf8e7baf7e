//! One binary for all integration tests.

mod cli;
mod layers;
mod real;
mod tool;
mod training;
