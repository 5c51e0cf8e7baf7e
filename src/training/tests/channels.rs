//! Some of an image's channels, or its time points.

use std::fs;

use super::hard::uniform_of;
use super::*;
use crate::sampler::Border;
use crate::volume::{OpenOptions, ReadMethod};

const SHAPE: Shape = [9, 8, 10];

/// Five channels; what is read of them is noted.
#[derive(Debug)]
struct Channelled {
    inner: MemoryVolume,
    chunks: Mutex<BTreeSet<u64>>,
    channels: Mutex<BTreeSet<u64>>,
}

impl Volume for Channelled {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.inner)
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.inner)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.channels.lock().unwrap().extend(channels.clone());
        self.inner.read_channels(channels, region, out)
    }
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        self.chunks.lock().unwrap().insert(index[0]);
        self.inner.read_chunk(index)
    }
}

fn memory() -> MemoryVolume {
    let count = u16::try_from(5 * Region::whole(SHAPE).voxels()).unwrap();
    MemoryVolume::from_vec(SHAPE, 5, (0..count).collect::<Vec<u16>>()).unwrap()
}

fn load(image: Image, border: Border) -> Loader {
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let plan = EpochPlan::new(1, 40, 3).unwrap();
    let make = uniform_of([4, 3, 5], border);
    Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(2)).unwrap()
}

/// That patches hold these channels and no others, zeros beyond the faces.
fn check(loader: Loader, channels: Range<u64>) {
    let whole = memory().to_patch();
    let whole = whole.view::<u16>().unwrap();
    for sample in loader {
        let sample = sample.unwrap();
        let patch = &sample.patches()[0];
        assert_eq!(patch.channels(), channels.end - channels.start);
        let first = usize::try_from(channels.start).unwrap();
        let start = sample.region.start;
        for ((c, z, y, x), &voxel) in patch.view::<u16>().unwrap().indexed_iter() {
            let at = [z, y, x];
            let at: [i64; 3] = std::array::from_fn(|a| start[a] + i64::try_from(at[a]).unwrap());
            let inside = at.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            let stored = whole.get([first + c, inside[0], inside[1], inside[2]]);
            assert_eq!(voxel, stored.copied().unwrap_or(0));
        }
    }
}

#[test]
fn only_the_chosen_channels_and_their_chunks_are_read() {
    for border in [Border::Drop, Border::Pad] {
        for (chunk, channels, read) in [
            (Some([1, 4, 4, 4]), 2..4, vec![2, 3]),
            (Some([2, 4, 4, 4]), 3..4, vec![1]),
            (Some([2, 3, 8, 10]), 1..5, vec![0, 1, 2]),
            (None, 1..3, vec![1, 2]),
            (None, 0..5, vec![0, 1, 2, 3, 4]),
        ] {
            let inner = match chunk {
                Some(chunk) => memory().with_chunks(chunk),
                None => memory(),
            };
            let volume = Arc::new(Channelled {
                inner,
                chunks: Mutex::default(),
                channels: Mutex::default(),
            });
            let image = Image::new("mr", Arc::clone(&volume) as Arc<dyn Volume>);
            assert_eq!(image.channels, 0..5);
            let image = image.with_channels(channels.clone());
            check(load(image, border), channels);
            let noted = match chunk {
                Some(_) => volume.chunks.lock().unwrap().clone(),
                None => volume.channels.lock().unwrap().clone(),
            };
            assert!(noted.into_iter().eq(read), "{chunk:?}");
        }
    }
}

#[test]
fn channels_of_mapped_files_can_be_chosen_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mr.raw");
    fs::write(&path, memory().to_patch().bytes()).unwrap();
    let sidecar = r#"{"channels": 5, "shape": [9, 8, 10], "dtype": "uint16"}"#;
    fs::write(folder.path().join("mr.raw.json"), sidecar).unwrap();
    for read_method in [ReadMethod::Mmap, ReadMethod::MmapResident] {
        let options = OpenOptions {
            read_method,
            ..OpenOptions::default()
        };
        let volume = options.open(&path).unwrap();
        let is_staged = read_method == ReadMethod::Mmap;
        assert_eq!(volume.read_granularity().is_some(), is_staged);
        for border in [Border::Drop, Border::Pad] {
            for channels in [0..5, 1..3, 4..5] {
                let image = Image::new("mr", Arc::clone(&volume)).with_channels(channels.clone());
                check(load(image, border), channels);
            }
        }
    }
}

#[test]
fn a_choice_counts_in_bytes_and_must_be_there() {
    let image = |channels| Image::new("mr", Arc::new(memory())).with_channels(channels);
    let subject = |channels| Subject::builder("s").with_images([image(channels)]).build();
    assert_eq!(subject(1..3).unwrap().sample_bytes([4, 3, 5]), 60 * 2 * 2);
    let backwards = Range { start: 3, end: 2 };
    for wrong in [0..6, 5..6, 2..2, backwards] {
        let refused = subject(wrong).unwrap_err().to_string();
        assert!(
            refused.contains("memory") && refused.contains("it has 5"),
            "{refused}"
        );
    }
}
