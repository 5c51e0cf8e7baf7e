//! Images whose patches are slow, which the statistics name.

use super::super::subject::Subject;
use super::MAX_REASONS;
use crate::region::Shape;
use crate::volume::PatchCost;

/// Only the subjects before this one are looked at, so that a set of them takes 1 MiB at most.
const MOST_SUBJECTS: u64 = 1 << 23;

/// The slow images of the subjects that were delivered. Each subject is looked at once: an epoch has many patches of it, and
/// the consumer waits while it looks.
#[derive(Debug, Default)]
pub(super) struct SlowImages {
    /// A bit for each subject that was looked at.
    looked_at: Vec<u64>,
    /// The number of these subjects.
    looks: u64,
    texts: Vec<String>,
}

impl SlowImages {
    /// Looks at the images of a subject whose patches have this shape (z, y, x), unless it did so before.
    pub(super) fn look(&mut self, index: u64, subject: &Subject, patch: Shape) {
        if self.texts.len() == MAX_REASONS || index >= MOST_SUBJECTS || !self.is_new(index) {
            return;
        }
        self.looks += 1;
        for image in subject.images() {
            let layout = image.volume.layout();
            let Some(cost) = PatchCost::of(layout, patch) else {
                continue;
            };
            let path = layout.path.display();
            let text = format!("{path}: voxels decoded for each voxel of a patch: {cost}");
            if self.texts.len() < MAX_REASONS && !self.texts.contains(&text) {
                self.texts.push(text);
            }
        }
    }

    /// Sets the bit of a subject. Returns `true` if it was not set.
    fn is_new(&mut self, index: u64) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        let word = usize::try_from(word).expect("below 2^23 / 64");
        if self.looked_at.len() <= word {
            self.looked_at.resize(word + 1, 0);
        }
        let is_new = self.looked_at[word] & bit == 0;
        self.looked_at[word] |= bit;
        is_new
    }

    /// Returns what the statistics say of them.
    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dtype::DType;
    use crate::training::{Dataset, Image, UniformPatches};
    use crate::volume::{Layout, MemoryVolume, Volume};

    const PATCH: Shape = [8; 3];

    /// Returns a volume in frames, of which a patch uses 64 of 65 536 voxels, or in small chunks.
    fn volume(name: &str, is_slow: bool) -> Arc<dyn Volume> {
        let (shape, chunk) = if is_slow {
            ([16, 256, 256], [1, 1, 256, 256])
        } else {
            ([16; 3], [1, 8, 8, 8])
        };
        let mut layout = Layout::new(shape, 1, DType::U8);
        layout.read_chunk = Some(chunk);
        layout.path = name.into();
        Arc::new(MemoryVolume::zeros(layout).unwrap())
    }

    fn subject(name: &str, volumes: &[(&str, bool)]) -> Subject {
        let image = |&(name, is_slow): &(&str, bool)| Image::new(name, volume(name, is_slow));
        let images = volumes.iter().map(image);
        Subject::builder(name).with_images(images).build().unwrap()
    }

    #[test]
    fn subjects_are_looked_at_once_and_images_named_once() {
        let (slow, fast) = (subject("a", &[("x", true)]), subject("b", &[("y", false)]));
        let mut all = SlowImages::default();
        for (index, own) in [
            (0, &fast),
            (1, &slow),
            (0, &fast),
            (1, &slow),
            (200, &slow),
            (MOST_SUBJECTS, &slow),
        ] {
            all.look(index, own, PATCH);
        }
        assert_eq!(all.looks, 3, "subjects 0, 1 and 200");
        assert_eq!(all.texts().len(), 1, "{all:?}");
        assert!(
            all.texts()[0].starts_with("x: voxels decoded for each voxel of a patch: "),
            "{all:?}"
        );
        for index in 300..300 + 2 * MAX_REASONS as u64 {
            all.look(index, &subject("c", &[(&index.to_string(), true)]), PATCH);
        }
        assert_eq!(
            (all.texts().len(), all.looks),
            (MAX_REASONS, 3 + 99),
            "no more than are named"
        );
    }

    #[test]
    fn a_loader_looks_at_each_subject_once_in_an_epoch() {
        let subjects = vec![
            subject("a", &[("ct", false)]),
            subject("b", &[("ct b", true)]),
            subject("c", &[("ct c", true)]),
        ];
        let dataset = Dataset::new(subjects, UniformPatches::new(PATCH))
            .samples_per_subject(7)
            .seed(1);
        for epoch in 0..2 {
            let mut loader = dataset.epoch(epoch).samples().unwrap();
            assert!(loader.stats().slow.is_empty());
            for sample in loader.by_ref() {
                sample.unwrap();
            }
            assert_eq!((loader.stats().delivered, loader.slow.looks), (21, 3));
            let mut slow = loader.stats().slow;
            slow.sort();
            assert_eq!(slow.len(), 2, "{slow:?}");
            assert!(
                slow[0].starts_with("ct b: ") && slow[1].starts_with("ct c: "),
                "{slow:?}"
            );
        }
    }
}
