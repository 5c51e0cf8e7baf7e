//! The mixing figure: how many different subjects a batch has.

/// The number of patches in a row that count as a batch, if batches have one patch.
const ROW: u64 = 8;

/// Counts the different subjects of each batch.
#[derive(Debug)]
pub(super) struct Mixing {
    batch: u64,
    /// The different subjects of the batch so far, and its patches.
    subjects: Vec<u64>,
    patches: u64,
    /// The complete batches, and the sum of their different subjects.
    batches: u64,
    sum: u64,
}

impl Mixing {
    pub(super) const fn new(batch: u64) -> Self {
        Self {
            batch: if batch > 1 { batch } else { ROW },
            subjects: Vec::new(),
            patches: 0,
            batches: 0,
            sum: 0,
        }
    }

    /// Counts a delivered patch of a subject.
    pub(super) fn count(&mut self, subject: u64) {
        if !self.subjects.contains(&subject) {
            self.subjects.push(subject);
        }
        self.patches += 1;
        if self.patches == self.batch {
            self.batches += 1;
            self.sum += self.subjects.len() as u64;
            self.subjects.clear();
            self.patches = 0;
        }
    }

    /// The mean number of different subjects in a complete batch.
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    pub(super) fn mean(&self) -> f64 {
        self.sum as f64 / self.batches.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_batches_count() {
        let mean = |batch, subjects: &[u64]| {
            let mut mixing = Mixing::new(batch);
            for &subject in subjects {
                mixing.count(subject);
            }
            mixing.mean()
        };
        for (batch, subjects, expected) in [
            (4, &[][..], 0.0),
            (4, &[1, 2, 3], 0.0),
            (4, &[5, 5, 5, 5], 1.0),
            (2, &[1, 1, 1, 2, 9], 1.5),
            (1, &[0, 1, 2, 3, 3, 3, 2, 0], 4.0),
        ] {
            assert!((mean(batch, subjects) - expected).abs() < 1e-12);
        }
    }
}
