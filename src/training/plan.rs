//! Epoch plans: the patches of an epoch and their order.
//!
//! The sequence is a function of (seed, epoch, place). Subjects come in order or shuffled, each with
//! its number of draws, and then the patches of each *window* of the sequence are shuffled. Every
//! epoch yields exactly the planned patches, even if the last one was not read to its end. The order
//! in a long window is computed one place at a time, so a window may be as long as the epoch.

use std::sync::Arc;

use super::fingerprint::Fingerprint;
use super::order::Order;
use super::proportional::{proportional_counts, too_many};
use crate::error::{Error, Result};
use crate::sampler::CounterRng;

/// By default, the patches of about this many subjects are shuffled together,
pub(super) const MIXED_SUBJECTS: usize = 16;

/// and at least this many patches.
const MIN_WINDOW: u64 = 300;

/// The patches of every epoch and their order.
#[derive(Clone, Debug)]
pub struct EpochPlan {
    subjects: u64,
    counts: Counts,
    seed: u64,
    /// `None` for the default.
    window: Option<u64>,
    /// The number of consecutive draws that stay together.
    batch: u64,
    shuffle_subjects: bool,
    shuffle_patches: bool,
}

/// The number of patches of each subject in an epoch.
#[derive(Clone, Debug)]
enum Counts {
    /// The same number for all.
    Each(u64),
    /// The number of patches before each subject, and the total at the end.
    Before(Arc<[u64]>),
}

/// One patch of an epoch: a subject and the number of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlannedPatch {
    /// The index of the subject.
    pub subject: u64,
    /// The number of the draw from the subject in this epoch.
    pub draw: u64,
}

impl EpochPlan {
    /// Plans `samples_per_subject` patches of each of `subjects` subjects. Subjects are shuffled, and
    /// patches are shuffled within windows (see [`window`](Self::window)).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if an epoch has more than 2^63 patches.
    pub fn new(subjects: u64, samples_per_subject: u64, seed: u64) -> Result<Self> {
        if subjects
            .checked_mul(samples_per_subject)
            .is_none_or(|all| i64::try_from(all).is_err())
        {
            return Err(too_many());
        }
        Ok(Self {
            subjects,
            counts: Counts::Each(samples_per_subject),
            seed,
            window: None,
            batch: 1,
            shuffle_subjects: true,
            shuffle_patches: true,
        })
    }

    /// Plans a number of patches for each subject, which may be 0.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_counts(counts: &[u64], seed: u64) -> Result<Self> {
        let mut before = Vec::with_capacity(counts.len() + 1);
        let mut all = 0_u64;
        before.push(0);
        for &count in counts {
            all = all
                .checked_add(count)
                .filter(|&n| i64::try_from(n).is_ok())
                .ok_or_else(too_many)?;
            before.push(all);
        }
        let plan = Self::new(counts.len() as u64, 0, seed)?;
        Ok(Self {
            counts: Counts::Before(before.into()),
            ..plan
        })
    }

    /// Splits `total` patches between subjects in proportion to `weights`, for example legal places
    /// ([`Subject::places`](super::Subject::places)) or foreground voxels. Only ratios matter.
    ///
    /// A subject gets its share of `total` rounded down. The remaining patches go one by one to the
    /// subjects with the largest remainders, the first of equal ones. The counts add up to `total`,
    /// and each differs from its exact share by less than 1. A subject of weight 0 gets no patch and
    /// is never opened. Weights below 2^-63 of the largest count as 0.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a weight is negative or not finite, if no weight is above 0, or if
    /// `total` exceeds 2^63.
    pub fn proportional(weights: &[f64], total: u64, seed: u64) -> Result<Self> {
        Self::with_counts(&proportional_counts(weights, total)?, seed)
    }

    /// Sets the number of patches (at least 1) that are shuffled together. With the length of the epoch,
    /// all patches are shuffled together; each subject then stays in use for the whole epoch.
    #[must_use]
    pub const fn with_window(mut self, length: u64) -> Self {
        self.window = Some(if length == 0 { 1 } else { length });
        self
    }

    /// Sets whether subjects, and patches within a window, are shuffled.
    #[must_use]
    pub const fn with_shuffle(mut self, subjects: bool, patches: bool) -> Self {
        (self.shuffle_subjects, self.shuffle_patches) = (subjects, patches);
        self
    }

    /// Keeps draws `0..batch`, `batch..2 * batch` and so on of a subject together. Whole batches are
    /// shuffled, so a batch of the loader has the same composition as a batch of draws.
    ///
    /// Without this, patches are shuffled one by one, and a batch of the loader has the proportions of
    /// [`Mixture::exact`](crate::sampler::Mixture::exact) only on average. With it, use one number for
    /// that mixture, this plan and [`RankShard::batch_size`](super::RankShard::batch_size). The price
    /// is that a batch has patches of one subject only. On several ranks the last batches may still be
    /// cut elsewhere, unless the epoch is a multiple of `batch` times the number of ranks. Windows are
    /// rounded up to a multiple of `batch`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `batch` is 0, or if a subject's number of patches is not a multiple of it.
    pub fn with_batches(self, batch: u64) -> Result<Self> {
        let bad = |problem: String| {
            Err(Error::InvalidArgument {
                argument: "batch size",
                value: batch.to_string(),
                problem,
            })
        };
        if batch == 0 {
            return bad("it must have at least one patch".to_owned());
        }
        let whole = |count: &u64| count.is_multiple_of(batch);
        let broken = match &self.counts {
            Counts::Each(count) => (!whole(count)).then_some((0, *count)),
            Counts::Before(before) => (0..)
                .zip(before.windows(2).map(|pair| pair[1] - pair[0]))
                .find(|(_, count)| !whole(count)),
        };
        if let Some((subject, count)) = broken {
            return bad(format!(
                "subject {subject} gives {count} patches, which is not a multiple of it"
            ));
        }
        Ok(Self { batch, ..self })
    }

    /// The number of subjects.
    #[must_use]
    pub const fn subjects(&self) -> u64 {
        self.subjects
    }

    /// The seed.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The number of patches that are shuffled together. By default those of about 16 subjects, which a
    /// loader keeps open anyway, and at least 300. So all patches of up to 16 subjects are shuffled
    /// together. Of subjects that give more than 300 patches each, this mixes 16 at a time.
    #[must_use]
    pub fn window(&self) -> u64 {
        let length = self.window.unwrap_or_else(|| {
            let mixed = self.len().saturating_mul(MIXED_SUBJECTS as u64) / self.subjects.max(1);
            mixed.max(MIN_WINDOW)
        });
        length.div_ceil(self.batch).saturating_mul(self.batch)
    }

    /// The number of patches in an epoch.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.counts {
            Counts::Each(count) => self.subjects * count,
            Counts::Before(before) => before.last().copied().unwrap_or(0),
        }
    }

    /// Returns `true` if an epoch has no patches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sequence of an epoch.
    ///
    /// # Panics
    ///
    /// Never: the list of counts is in memory, so its indices fit.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let subjects = if self.shuffle_subjects {
            Order::new(
                self.subjects,
                CounterRng::of_domain(*b"voxpatch subj v1", self.seed, epoch, 0),
            )
        } else {
            Order::Identity
        };
        let before = match &self.counts {
            Counts::Each(_) => None,
            Counts::Before(counts) => {
                let count = |subject: u64| {
                    let at = usize::try_from(subject).expect("a list in memory");
                    counts[at + 1] - counts[at]
                };
                let mut all = 0;
                let sum = |n: u64| {
                    all += count(subjects.at(n));
                    all
                };
                Some(
                    std::iter::once(0)
                        .chain((0..self.subjects).map(sum))
                        .collect(),
                )
            }
        };
        Epoch {
            plan: self.clone(),
            number: epoch,
            subjects,
            before,
        }
    }

    /// A number that differs between plans with different sequences.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut all = Fingerprint::new();
        all.number(self.subjects);
        all.number(self.seed);
        all.number(self.window());
        all.number(u64::from(self.shuffle_subjects) + 2 * u64::from(self.shuffle_patches));
        match &self.counts {
            Counts::Each(count) => all.number(*count),
            Counts::Before(before) => before.iter().for_each(|&n| all.number(n)),
        }
        if self.batch > 1 {
            all.number(self.batch);
        }
        all.finish()
    }
}

/// The sequence of one epoch.
#[derive(Clone, Debug)]
pub struct Epoch {
    plan: EpochPlan,
    number: u64,
    subjects: Order,
    /// The number of patches before each subject in this epoch's order, if the counts differ.
    before: Option<Vec<u64>>,
}

impl Epoch {
    /// The number of the epoch.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The number of patches.
    #[must_use]
    pub fn patches(&self) -> u64 {
        self.plan.len()
    }

    /// The number of windows; the last may be shorter.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.plan.len().div_ceil(self.plan.window())
    }

    /// Returns the order of a window.
    pub(super) fn window_order(&self, window: u64) -> WindowOrder {
        let length = self.plan.window();
        let first = window.saturating_mul(length);
        let end = first.saturating_add(length).min(self.plan.len());
        let count = end.saturating_sub(first);
        let order = if self.plan.shuffle_patches {
            let random =
                CounterRng::of_domain(*b"voxpatch wind v1", self.plan.seed, self.number, window);
            Order::new(count / self.plan.batch, random)
        } else {
            Order::Identity
        };
        WindowOrder {
            window,
            first,
            count,
            order,
        }
    }

    /// Returns the patch at place `n` of a window.
    pub(super) fn patch(&self, window: &WindowOrder, n: u64) -> PlannedPatch {
        let batch = self.plan.batch;
        self.unshuffled(window.first + window.order.at(n / batch) * batch + n % batch)
    }

    /// Returns the patches of a window in delivery order.
    #[must_use]
    pub fn window(&self, window: u64) -> Vec<PlannedPatch> {
        let order = self.window_order(window);
        (0..order.count).map(|n| self.patch(&order, n)).collect()
    }

    /// Returns the patch at place `n` before shuffling.
    fn unshuffled(&self, n: u64) -> PlannedPatch {
        let (place, draw) = match (&self.before, &self.plan.counts) {
            (Some(before), _) => {
                let place = before.partition_point(|&start| start <= n) - 1;
                (place as u64, n - before[place])
            }
            (None, Counts::Each(count)) => (n / count, n % count),
            (None, Counts::Before(_)) => unreachable!("an epoch of unequal counts has their sums"),
        };
        PlannedPatch {
            subject: self.subjects.at(place),
            draw,
        }
    }
}

/// The order of the patches in one window of an epoch.
#[derive(Clone, Debug)]
pub(super) struct WindowOrder {
    /// The number of the window.
    pub(super) window: u64,
    first: u64,
    count: u64,
    order: Order,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn sequence(plan: &EpochPlan, epoch: u64) -> Vec<PlannedPatch> {
        let epoch = plan.epoch(epoch);
        (0..epoch.windows()).flat_map(|n| epoch.window(n)).collect()
    }

    #[test]
    fn an_epoch_has_exactly_the_planned_counts() {
        for subjects in 1..=5_u64 {
            for window in [1, 2, 5, 6, 20, 25] {
                let counts: Vec<u64> = (0..subjects).map(|n| (n * 5 + 3) % 8).collect();
                let plan = EpochPlan::with_counts(&counts, window)
                    .unwrap()
                    .with_window(window);
                for epoch in 0..2 {
                    let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
                    for planned in sequence(&plan, epoch) {
                        found.entry(planned.subject).or_default().push(planned.draw);
                    }
                    for (subject, &count) in (0..).zip(&counts) {
                        let mut draws = found.remove(&subject).unwrap_or_default();
                        draws.sort_unstable();
                        assert!(draws.into_iter().eq(0..count));
                    }
                }
            }
        }
        assert_eq!(
            sequence(&EpochPlan::new(3, 4, 0).unwrap().with_window(5), 0).len(),
            12
        );
        assert_eq!(
            sequence(&EpochPlan::new(3, 20, 0).unwrap().with_window(6), 0).len(),
            60
        );
        assert!(
            EpochPlan::new(4, 0, 0).unwrap().is_empty()
                && EpochPlan::new(0, 9, 0).unwrap().is_empty()
        );
    }

    #[test]
    fn patches_are_shared_out_in_proportion_and_none_is_lost() {
        let counts = |weights: &[f64], total| proportional_counts(weights, total).unwrap();
        assert_eq!(counts(&[1.0, 2.0, 1.0], 8), [2, 4, 2]);
        assert_eq!(counts(&[1.0, 1.0, 1.0], 10), [4, 3, 3]);
        assert_eq!(counts(&[0.4, 0.0, 0.6], 3), [1, 0, 2]);
        assert_eq!(
            counts(&[1e12, 1.0], 1_000_000_000_001),
            [1_000_000_000_000, 1]
        );
        assert_eq!(counts(&[1e-12, 1.0, 0.0], 1000), [0, 1000, 0]);
        assert_eq!(counts(&[f64::MAX, f64::MAX, 5e-324], 7), [4, 3, 0]);
        assert_eq!(counts(&[5e-324, 1e-323], 3), [1, 2]);
        let most = (1 << 63) - 1;
        let halves = counts(&[3.0, 3.0], most);
        assert_eq!((halves[0] - halves[1], halves[0] + halves[1]), (1, most));
        assert_eq!(counts(&[2.0, 1.0], 0), [0, 0]);
        let mut random = CounterRng::new(1, 0, 0);
        for total in (0..500).chain([most, most / 3]) {
            let weights: Vec<f64> = (0..=total % 17)
                .map(|_| random.fraction().powi(30))
                .collect();
            let counts = counts(&weights, total);
            assert_eq!(counts.iter().sum::<u64>(), total);
            #[expect(clippy::cast_precision_loss, reason = "compared where it is small")]
            let near = |&count: &u64, weight: f64| {
                let exact = weight / weights.iter().sum::<f64>() * total as f64;
                (count as f64 - exact).abs() < 1.0 + 1e-9
            };
            assert!(total > 500 || counts.iter().zip(&weights).all(|(n, &w)| near(n, w)));
        }
        for (bad, says) in [
            (&[][..], "above 0"),
            (&[0.0, -0.0], "above 0"),
            (&[1.0, -1e-300], "subject 1"),
            (&[f64::NAN, 1.0], "subject 0: NaN"),
            (&[1.0, 2.0, f64::INFINITY], "subject 2: inf"),
        ] {
            let error = EpochPlan::proportional(bad, 9, 0).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }));
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(EpochPlan::proportional(&[1.0], 1 << 63, 0).is_err());
        let plan = EpochPlan::proportional(&[1.0, 0.0, 3.0], 400, 5).unwrap();
        let all = sequence(&plan, 1);
        let of = |subject| all.iter().filter(|p| p.subject == subject).count();
        assert_eq!([of(0), of(1), of(2)], [100, 0, 300]);
    }

    #[test]
    fn patches_are_mixed_within_windows_and_subjects_between_epochs() {
        let plan = EpochPlan::new(40, 3, 7).unwrap().with_window(12);
        let (first, second) = (sequence(&plan, 0), sequence(&plan, 1));
        assert_ne!(first, second);
        assert_eq!(first, sequence(&plan, 0));
        for window in first.chunks(12) {
            let subjects: std::collections::BTreeSet<u64> =
                window.iter().map(|p| p.subject).collect();
            assert_eq!(
                subjects.len(),
                4,
                "a window of 12 holds all draws of 4 subjects"
            );
            assert!(!window.is_sorted());
        }
        let plain = sequence(&plan.with_shuffle(false, false), 3);
        assert!(plain.is_sorted());
    }

    #[test]
    fn by_default_all_patches_of_16_subjects_are_shuffled_together() {
        let window = |subjects, each| EpochPlan::new(subjects, each, 0).unwrap().window();
        assert_eq!([window(1, 9), window(16, 4), window(2000, 8)], [300; 3]);
        assert_eq!([window(4, 256), window(16, 256)], [4096; 2]);
        assert_eq!(window(100, 1000), 16_000);
        let uneven = EpochPlan::with_counts(&[0, 900, 100, 200], 0).unwrap();
        assert_eq!(uneven.window(), 4800);
        assert_eq!(uneven.with_batches(100).unwrap().window(), 4800);
        assert_eq!(EpochPlan::new(0, 5, 0).unwrap().window(), 300);
        // In a batch of 8 of a full shuffle of four subjects, 4 * (1 - 0.75^8) = 3.6 subjects.
        let patches = sequence(&EpochPlan::new(4, 256, 3).unwrap(), 0);
        let different = |batch: &[PlannedPatch]| {
            let subjects: std::collections::BTreeSet<u64> =
                batch.iter().map(|patch| patch.subject).collect();
            subjects.len()
        };
        let all: usize = patches.chunks(8).map(different).sum();
        assert!((3.4..3.8).contains(&(f64::from(u32::try_from(all).unwrap()) / 128.0)));
    }

    #[test]
    fn a_window_of_a_billion_patches_takes_no_memory() {
        let plan = EpochPlan::new(1000, 1_000_000, 1)
            .unwrap()
            .with_window(u64::MAX);
        let epoch = plan.epoch(0);
        let order = epoch.window_order(0);
        let found: std::collections::BTreeSet<PlannedPatch> =
            (0..10_000).map(|n| epoch.patch(&order, n)).collect();
        assert_eq!(found.len(), 10_000);
    }

    #[test]
    fn epochs_and_seeds_are_those_of_every_release() {
        let told = |plan: &EpochPlan| -> Vec<(u64, u64)> {
            let all = sequence(plan, 2).into_iter();
            all.map(|planned| (planned.subject, planned.draw)).collect()
        };
        let plan = EpochPlan::new(4, 3, 7).unwrap().with_window(5);
        let uneven = EpochPlan::with_counts(&[2, 0, 4, 2], 7)
            .unwrap()
            .with_window(8);
        let batches = uneven.clone().with_batches(2).unwrap();
        assert_eq!(
            [&plan, &uneven, &batches].map(told),
            GOLDEN.map(<[_]>::to_vec)
        );
        let seeds = [0, 1, u64::MAX].map(|subject| crate::training::subject_seed(7, subject));
        let fingerprints = [plan.fingerprint(), batches.fingerprint()];
        assert_eq!((seeds, fingerprints), (GOLDEN_SEEDS, GOLDEN_FINGERPRINTS));
    }
    const GOLDEN: [&[(u64, u64)]; 3] = [
        &[
            (1, 0),
            (3, 1),
            (3, 2),
            (3, 0),
            (1, 1),
            (2, 1),
            (2, 0),
            (0, 0),
            (1, 2),
            (2, 2),
            (0, 1),
            (0, 2),
        ],
        &[
            (0, 1),
            (3, 0),
            (2, 0),
            (2, 2),
            (2, 1),
            (2, 3),
            (3, 1),
            (0, 0),
        ],
        &[
            (2, 2),
            (2, 3),
            (2, 0),
            (2, 1),
            (3, 0),
            (3, 1),
            (0, 0),
            (0, 1),
        ],
    ];
    const GOLDEN_SEEDS: [u64; 3] = [
        2_309_672_060_946_437_773,
        10_863_390_570_179_752_977,
        15_349_774_058_969_612_971,
    ];
    const GOLDEN_FINGERPRINTS: [u64; 2] = [15_934_036_146_591_107_779, 7_167_960_683_432_129_121];

    #[test]
    fn a_million_subjects_cost_nothing() {
        let plan = EpochPlan::new(1_000_000, 8, 1).unwrap();
        let window = plan.epoch(5).window(plan.epoch(5).windows() - 1);
        assert_eq!(window.len(), 200);
        assert!(window.iter().all(|p| p.subject < 1_000_000 && p.draw < 8));
        assert!(EpochPlan::new(1 << 40, 1 << 40, 0).is_err());
    }
}
