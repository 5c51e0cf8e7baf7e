//! The position of one loader in an epoch that ranks and workers share.

use crate::training::shard::{RankShard, WorkerShard};

/// The position of one loader in the steps of an epoch.
///
/// At each step, every rank delivers one batch. Of a rank's batches, each of its workers delivers
/// every `count`-th.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepCursor {
    shard: RankShard,
    worker: WorkerShard,
    /// The place at which the last step ends, for all ranks together.
    end: u64,
    /// The place at which the current step begins.
    start: u64,
    /// The patches of this rank's part of the step that were taken.
    taken: u64,
}

impl StepCursor {
    /// Creates a cursor at the worker's first step of the places `start..end`.
    pub(super) fn new(shard: RankShard, worker: WorkerShard, start: u64, end: u64) -> Self {
        let mut cursor = Self {
            shard,
            worker,
            end,
            start,
            taken: 0,
        };
        cursor.skip_steps(worker.index);
        cursor
    }

    /// The place at which the current step begins.
    pub(super) const fn start(&self) -> u64 {
        self.start
    }

    /// The number of patches taken from the current step.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns `true` if no step is left.
    pub(super) const fn is_finished(&self) -> bool {
        self.start >= self.end
    }

    /// Returns the position of a saved state: `taken` patches after the start of step `step`. With
    /// several ranks or workers it is the start of the step. `None` at the end of the epoch.
    pub(super) const fn position(&self, step: u64, taken: u64) -> Option<u64> {
        if step >= self.end {
            return None;
        }
        let is_alone = self.shard.world_size == 1 && self.worker.count == 1;
        Some(if is_alone { step + taken } else { step })
    }

    /// The patches that this loader has not taken yet.
    pub(super) fn remaining(&self) -> u64 {
        let next = WorkerShard {
            index: 0,
            count: self.worker.count,
        };
        self.shard.remaining(next, self.start, self.end).0 - self.taken
    }

    /// Counts one patch as taken.
    pub(super) fn advance(&mut self) {
        self.taken += 1;
        let step = self.shard.step(self.start, self.end);
        let part = self.shard.part(&step);
        if self.taken >= part.end - part.start {
            self.finish_step(step.end);
        }
    }

    /// Continues with the next step if this rank has no patch in the current one, as can happen in
    /// the last step of a resumed epoch.
    pub(super) fn pass_empty_step(&mut self) {
        let step = self.shard.step(self.start, self.end);
        if self.shard.part(&step).is_empty() {
            self.finish_step(step.end);
        }
    }

    /// Continues with this worker's next step; the current one ends at `end`.
    fn finish_step(&mut self, end: u64) {
        (self.start, self.taken) = (end, 0);
        self.skip_steps(self.worker.count - 1);
    }

    fn skip_steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.start = self.shard.step(self.start, self.end).end;
        }
    }
}
