//! Shares: which patches of an epoch a rank gets.

use std::ops::Range;

use crate::error::{Error, Result};

/// Which patches of an epoch a rank gets, batch by batch.
///
/// At each step all ranks together take `world_size` batches that follow each other, so one
/// volume feeds all of them. The last steps share the rest evenly: every rank has the same
/// number of batches. [`Uneven`] decides what happens where that is not possible: with batches
/// of one patch, if the patches cannot be divided by the ranks; with larger ones, if there are
/// fewer patches than ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShard {
    /// This rank, from 0.
    pub rank: u64,
    /// How many ranks there are.
    pub world_size: u64,
    /// Patches of a batch of one rank.
    pub batch_size: u64,
    /// What happens to patches that would give some ranks one batch more than others.
    pub uneven: Uneven,
}

/// What happens to the last patches of an epoch if some ranks would get one batch more than others.
///
/// Ranks that wait for each other after every batch, as torch's `DistributedDataParallel` does,
/// hang with [`Exact`](Self::Exact).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uneven {
    /// The first patches of the epoch are repeated at its end, fewer than there are ranks, as
    /// torch's `DistributedSampler` does it.
    #[default]
    Repeat,
    /// The last patches are left out, fewer than there are ranks, as with `drop_last=True`.
    Drop,
    /// Every patch comes once, and some ranks have one batch more than others, or an empty one.
    Exact,
}

impl RankShard {
    /// Everything, `batch` at a time.
    #[must_use]
    pub const fn whole(batch_size: u64) -> Self {
        Self {
            rank: 0,
            world_size: 1,
            batch_size,
            uneven: Uneven::Repeat,
        }
    }

    /// One of `world_size` ranks, `batch` patches at a time, equally many batches for each.
    #[must_use]
    pub const fn of(rank: u64, world_size: u64, batch_size: u64) -> Self {
        Self {
            rank,
            world_size,
            batch_size,
            uneven: Uneven::Repeat,
        }
    }

    /// The same with another rule for patches that cannot be shared evenly.
    #[must_use]
    pub const fn with_uneven(self, uneven: Uneven) -> Self {
        Self { uneven, ..self }
    }

    /// The places that all ranks deliver together, from `from` on, of an epoch of `patches`: up to
    /// which place. Places from `patches` on are those from the epoch's start again.
    pub(super) fn end(&self, from: u64, patches: u64) -> u64 {
        let left = patches.saturating_sub(from);
        let ranks = self.world_size.max(1);
        let even = match self.batch_size {
            1 => left.is_multiple_of(ranks),
            _ => left == 0 || left >= ranks,
        };
        match self.uneven {
            _ if even => patches,
            Uneven::Exact => patches,
            Uneven::Repeat => from.saturating_add(left.next_multiple_of(ranks)),
            Uneven::Drop => patches - left % ranks,
        }
    }

    /// The patches, and the batches, that the loader whose turn this is delivers of an epoch of
    /// `patches`, from the place `from` on.
    #[must_use]
    pub fn left(&self, worker: WorkerShard, from: u64, patches: u64) -> (u64, u64) {
        let end = self.end(from, patches);
        let (mut from, mut others) = (from, worker.index);
        // All steps but the last three are of one size: whole rounds of turns are counted at once.
        let full = self.world_size.saturating_mul(self.batch_size);
        let rounds = (end.saturating_sub(from) / full).saturating_sub(3) / worker.count;
        from += rounds * worker.count * full;
        let (mut patches, mut batches) = (rounds * self.batch_size, rounds);
        while from < end {
            let step = self.step(from, end);
            if others == 0 {
                let part = self.part(&step);
                patches += part.end - part.start;
                batches += 1;
                others = worker.count;
            }
            others -= 1;
            from = step.end;
        }
        (patches, batches)
    }

    /// Checks the three against each other and an epoch's `patches`.
    pub(super) fn check(&self, patches: u64) -> Result<()> {
        let bad = |name, value: u64, problem: String| {
            Err(Error::InvalidArgument {
                argument: name,
                value: value.to_string(),
                problem,
            })
        };
        if self.world_size == 0 || self.rank >= self.world_size {
            let problem = format!("there are {} ranks, counted from 0", self.world_size);
            return bad("rank", self.rank, problem);
        }
        if self.batch_size == 0 {
            return bad("batch size", 0, "it must be at least 1".to_owned());
        }
        if patches > 0 && patches < self.world_size && self.uneven != Uneven::Repeat {
            let problem = format!("an epoch of {patches} patches leaves some of them with none");
            return bad("a world size of", self.world_size, problem);
        }
        Ok(())
    }

    /// The places of all ranks' next batches from `from` on, when all end at `end`.
    pub(super) fn step(&self, from: u64, end: u64) -> Range<u64> {
        let left = end - from;
        let full = self.world_size.saturating_mul(self.batch_size);
        let after = left.saturating_sub(full);
        let take = match left {
            _ if left <= full => left,
            // A rest with too few patches for all ranks is evened out with the step before it.
            _ if after < self.world_size && left >= 2 * self.world_size => left.div_ceil(2),
            _ if after < self.world_size => left,
            _ => full,
        };
        from..from + take
    }

    /// This rank's part of a step.
    pub(super) fn part(&self, step: &Range<u64>) -> Range<u64> {
        let take = step.end - step.start;
        let cut = |rank: u64| {
            let wide = u128::from(take) * u128::from(rank) / u128::from(self.world_size);
            step.start + u64::try_from(wide).expect("no more than a step")
        };
        cut(self.rank)..cut(self.rank + 1)
    }
}

/// Every how many batches of its rank a loader delivers one: for processes that share a rank.
///
/// Loader `index` of `of` delivers the rank's batches `index`, `index + of` and so on. Taken in turn
/// from one loader after the other, they are the batches of a single loader, in its order.
///
/// The state of such a loader ([`Loader::state`](super::Loader::state)) is where its next batch begins:
/// it is resumed with an index of 0 and the same `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerShard {
    /// Batches before the first that is delivered.
    pub index: u64,
    /// How many loaders there are.
    pub count: u64,
}

impl Default for WorkerShard {
    /// Every batch.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl WorkerShard {
    pub(super) fn check(self) -> Result<()> {
        if self.index < self.count {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            argument: "worker",
            value: self.index.to_string(),
            problem: format!("there are {} loaders, counted from 0", self.count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_every_patch_in_equally_many_batches() {
        for total in 1..60_u64 {
            for world_size in [1, 2, 3, 5, 8] {
                for batch in 1..=5 {
                    let shard =
                        |rank| RankShard::of(rank, world_size, batch).with_uneven(Uneven::Exact);
                    if total < world_size {
                        assert!(shard(0).check(total).is_err());
                        continue;
                    }
                    let mut seen = Vec::new();
                    let mut from = 0;
                    while from < total {
                        let step = shard(0).step(from, total);
                        for rank in 0..world_size {
                            let part = shard(rank).part(&step);
                            assert!(
                                !part.is_empty(),
                                "{total} {world_size} {batch}: rank {rank} has no batch"
                            );
                            assert!(part.end - part.start <= batch + u64::from(batch == 1));
                            seen.extend(part);
                        }
                        from = step.end;
                    }
                    assert!(seen.into_iter().eq(0..total));
                    assert_left(shard(world_size - 1), total);
                }
            }
        }
    }

    /// What is left, as counted step by step.
    fn assert_left(shard: RankShard, total: u64) {
        for worker in
            (1..4).flat_map(|count| (0..count).map(move |index| WorkerShard { index, count }))
        {
            let (mut from, mut n, mut patches, mut batches) = (0, 0, 0, 0);
            while from < total {
                let step = shard.step(from, total);
                if n % worker.count == worker.index {
                    patches += shard.part(&step).count() as u64;
                    batches += 1;
                }
                (from, n) = (step.end, n + 1);
            }
            assert_eq!(
                shard.left(worker, 0, total),
                (patches, batches),
                "{shard:?} {worker:?} {total}"
            );
        }
    }
}
