//! Shards: the patches of an epoch that a rank or a worker gets.

use std::ops::Range;

use crate::error::{Error, Result};

/// The patches of an epoch that one rank gets, batch by batch.
///
/// At each step all ranks together take `world_size` consecutive batches, so one volume feeds all
/// ranks. The last steps split the rest evenly: every rank gets the same number of batches.
/// [`Uneven`] decides what happens if that is impossible: with batches of one patch, if the number of
/// patches is not a multiple of the number of ranks; with larger batches, if there are fewer patches
/// than ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShard {
    /// The rank, from 0.
    pub rank: u64,
    /// The number of ranks.
    pub world_size: u64,
    /// The patches in a batch of one rank.
    pub batch_size: u64,
    /// The policy for patches that cannot be split evenly.
    pub uneven: Uneven,
}

/// The policy for the last patches of an epoch if some ranks would get one batch more than others.
///
/// Ranks that wait for each other after every batch, as torch's `DistributedDataParallel` does,
/// hang with [`Exact`](Self::Exact).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uneven {
    /// Repeat the first patches of the epoch at its end, fewer than there are ranks, as torch's
    /// `DistributedSampler` does.
    #[default]
    Repeat,
    /// Leave out the last patches, fewer than there are ranks, as with `drop_last=True`.
    Drop,
    /// Deliver every patch once. Some ranks get one batch more than others, or an empty batch.
    Exact,
}

impl RankShard {
    /// All patches, `batch_size` at a time.
    #[must_use]
    pub const fn whole(batch_size: u64) -> Self {
        Self {
            rank: 0,
            world_size: 1,
            batch_size,
            uneven: Uneven::Repeat,
        }
    }

    /// The patches of one of `world_size` ranks, `batch_size` at a time.
    #[must_use]
    pub const fn of(rank: u64, world_size: u64, batch_size: u64) -> Self {
        Self {
            rank,
            world_size,
            batch_size,
            uneven: Uneven::Repeat,
        }
    }

    /// Sets the policy for patches that cannot be split evenly.
    #[must_use]
    pub const fn with_uneven(self, uneven: Uneven) -> Self {
        Self { uneven, ..self }
    }

    /// Returns the end of the places, from `from` on, that all ranks deliver together in an epoch of
    /// `patches`. Places beyond the epoch wrap around to its start.
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

    /// Returns the numbers of patches and batches that a worker delivers from place `from` to the end
    /// of an epoch of `patches`.
    #[must_use]
    pub fn remaining(&self, worker: WorkerShard, from: u64, patches: u64) -> (u64, u64) {
        let end = self.end(from, patches);
        let (mut from, mut others) = (from, worker.index);
        // All steps except the last three have the same size: whole rounds are counted at once.
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

    /// Checks the values against each other and against an epoch of `patches`.
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
            let problem =
                format!("an epoch of {patches} patches leaves some ranks without a patch");
            return bad("world size", self.world_size, problem);
        }
        Ok(())
    }

    /// Returns the places of all ranks' next batches from `from` on, if the epoch ends at `end`.
    pub(super) fn step(&self, from: u64, end: u64) -> Range<u64> {
        let left = end - from;
        let full = self.world_size.saturating_mul(self.batch_size);
        let after = left.saturating_sub(full);
        let take = match left {
            _ if left <= full => left,
            // A rest with too few patches for all ranks is balanced with the step before it.
            _ if after < self.world_size && left >= 2 * self.world_size => left.div_ceil(2),
            _ if after < self.world_size => left,
            _ => full,
        };
        from..from + take
    }

    /// Returns this rank's part of a step.
    pub(super) fn part(&self, step: &Range<u64>) -> Range<u64> {
        let take = step.end - step.start;
        let cut = |rank: u64| {
            let wide = u128::from(take) * u128::from(rank) / u128::from(self.world_size);
            step.start + u64::try_from(wide).expect("no more than a step")
        };
        cut(self.rank)..cut(self.rank + 1)
    }
}

/// Splits the batches of a rank among several worker processes, round-robin.
///
/// The loader of worker `index` of `count` delivers the rank's batches `index`, `index + count` and so
/// on. Taken from one worker after the other, they are the batches of a single loader, in order.
///
/// The state of such a loader ([`Loader::state`](super::Loader::state)) is the start of its next
/// batch. Resume it with an index of 0 and the same `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerShard {
    /// The number of batches before the first one delivered.
    pub index: u64,
    /// The number of workers.
    pub count: u64,
}

impl Default for WorkerShard {
    /// All batches.
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
            problem: format!("there are {} workers, counted from 0", self.count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_every_patch_in_the_same_number_of_batches() {
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
                    assert_remaining(shard(world_size - 1), total);
                }
            }
        }
    }

    /// Compares with counting step by step.
    fn assert_remaining(shard: RankShard, total: u64) {
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
                shard.remaining(worker, 0, total),
                (patches, batches),
                "{shard:?} {worker:?} {total}"
            );
        }
    }
}
