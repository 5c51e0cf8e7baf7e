//! Models that blend their predictions themselves.

use std::fmt;
use std::sync::Arc;

use super::pool::PatchPool;
use crate::aggregator::Frontier;
use crate::error::Result;
use crate::normalize::Scale;
use crate::patch::Patch;

/// A model that blends its predictions where they are, such as on a GPU, so that only reduced values of final blocks
/// leave it.
///
/// The run plans, reads and writes. The blender adds predictions as the outputs' [frontiers](Frontier) say, in the order
/// of the turns.
pub trait Blender: fmt::Debug + Send + Sync {
    /// Returns the bytes of the blender's memory that sums may take; `None` for any number. The plan cuts outputs into
    /// passes that fit.
    fn memory(&self) -> Option<u64>;

    /// Returns the number of batches that it may still hold after their turns were answered.
    fn late_batches(&self) -> usize {
        0
    }

    /// Returns `true` if it normalizes patches itself, as [`begin`](Self::begin) says. They come as the model
    /// [takes](super::Model::input) them, also in the volume's own type.
    fn normalizes(&self) -> bool {
        false
    }

    /// Starts a pass, with the unfinished blocks of each output, and the mapping of the values of each channel where it
    /// [normalizes](Self::normalizes); none if the run has no normalization.
    ///
    /// # Errors
    ///
    /// Those of the blender.
    fn begin(&self, outputs: Vec<Arc<Frontier>>, scales: &[Scale]) -> Result<()>;

    /// Predicts patches and adds them to the blocks, or skips them if there is no batch. Returns values of final blocks,
    /// of this turn or an earlier one.
    ///
    /// Calls come from several threads. Turns are numbered from 0 within a pass, and one that comes early waits for those
    /// before it.
    ///
    /// # Errors
    ///
    /// Those of the model.
    fn blend(
        &self,
        turn: u64,
        patches: &[u64],
        batch: Option<Vec<Patch>>,
        pool: &PatchPool,
    ) -> Result<Vec<FinalBlock>>;

    /// Ends the waiting of all calls, and of those to come: a turn failed before the blender got it.
    fn stop(&self);

    /// Ends a pass, and returns the values of all final blocks that were not returned yet.
    ///
    /// # Errors
    ///
    /// Those of the model.
    fn end(&self) -> Result<Vec<FinalBlock>>;
}

/// The reduced values of a final block.
#[derive(Debug)]
pub struct FinalBlock {
    /// The index of its output.
    pub output: usize,
    /// Its number.
    pub block: u64,
    /// Its values; `None` if no patch voted.
    pub values: Option<Patch>,
}
