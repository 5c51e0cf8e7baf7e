//! How long the steps of a run take.

/// Seconds of each step, summed over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Reading and decoding.
    pub reading: f64,
    /// In the model, or waiting for it.
    pub predicting: f64,
    /// Blending and reducing, and assembling write chunks.
    pub blending: f64,
    /// Encoding and writing.
    pub writing: f64,
}
