//! Mapped files through the loader.

use std::fs;

use super::hard::{of_volumes, uniform_of};
use super::reuse::Counting;
use super::*;
use crate::pad::Padding;
use crate::sampler::Border;
use crate::volume::{OpenOptions, ReadMethod, open};

/// Planes that are read in one piece, that are copied in place, of several channels, cut by the
/// faces, and longer than a system call is worth.
#[test]
fn patches_of_mapped_files_equal_those_of_memory() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (channels, shape, patch)) in [
        (1, [37, 30, 26], [9, 11, 7]),
        (3, [12, 40, 33], [5, 38, 30]),
        (2, [9, 140, 130], [4, 9, 9]),
        (1, [7, 140, 130], [3, 140, 130]),
        (1, [1, 300, 260], [1, 100, 12]),
    ]
    .into_iter()
    .enumerate()
    {
        let count = u32::try_from(Region::whole(shape).voxels() * channels).unwrap();
        let voxels: Vec<u32> = (0..count).map(|n| n.wrapping_mul(2_654_435_761)).collect();
        let path = folder.path().join(format!("{n}.raw"));
        fs::write(&path, bytemuck::cast_slice(&voxels)).unwrap();
        let [z, y, x] = shape;
        let sidecar =
            format!(r#"{{"channels": {channels}, "shape": [{z}, {y}, {x}], "dtype": "uint32"}}"#);
        fs::write(folder.path().join(format!("{n}.raw.json")), sidecar).unwrap();
        let memory = MemoryVolume::from_vec(shape, channels, voxels).unwrap();
        let by = |read_method| {
            let options = OpenOptions {
                read_method,
                ..OpenOptions::default()
            };
            options.open(&path).unwrap()
        };
        let (staged, kept) = (by(ReadMethod::Mmap), by(ReadMethod::Auto));
        assert!(staged.read_granularity().is_some());
        assert!(
            kept.read_granularity().is_none(),
            "a small file stays mapped"
        );
        let volumes: [Arc<dyn Volume>; 3] = [staged, kept, Arc::new(memory)];
        for threads in [0, 1, 4] {
            let [staged, kept, memory] = volumes.clone().map(|volume| {
                let image = Image::new("ct", volume).with_padding(Padding::Reflect);
                let subject = Subject::builder("s").with_images([image]).build().unwrap();
                let plan = EpochPlan::new(1, 60, 3).unwrap();
                let options = LoaderOptions {
                    max_length: 7,
                    ..options(threads)
                };
                let make = uniform_of(patch, Border::Pad);
                Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options).unwrap()
            });
            let mut count = 0;
            for ((staged, kept), memory) in staged.zip(kept).zip(memory) {
                let memory = memory.unwrap();
                assert_eq!(staged.unwrap().patches(), memory.patches());
                assert_eq!(kept.unwrap().patches(), memory.patches());
                count += 1;
            }
            assert_eq!(count, 60);
        }
    }
}

#[test]
fn a_mapped_file_that_is_replaced_stays_what_it_was_but_no_patches_are_drawn_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.raw");
    let sidecar = r#"{"shape": [12, 12, 12], "dtype": "uint8"}"#;
    fs::write(folder.path().join("scan.raw.json"), sidecar).unwrap();
    fs::write(&path, vec![3; 1728]).unwrap();
    let volume = open(&path).unwrap();
    let subject = of_volumes("s", vec![("ct", Arc::clone(&volume))]);
    let other = folder.path().join("other");
    fs::write(&other, [9; 5]).unwrap();
    fs::rename(&other, &path).unwrap();
    let plan = EpochPlan::new(1, 10, 1).unwrap();
    let make = uniform_of([4; 3], Border::Drop);
    let mut loader = Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(1)).unwrap();
    assert_eq!(
        volume.read(Region::whole([12; 3])).unwrap().bytes(),
        [3; 1728]
    );
    let mut failed = 0;
    for sample in &mut loader {
        let error = sample.unwrap_err();
        let (mut told, mut cause) = (String::new(), Some(&error as &dyn std::error::Error));
        while let Some(error) = cause {
            told.push_str(&error.to_string());
            cause = error.source();
        }
        let changed = "scan.raw changed while it was in use: a different file has its name";
        assert!(told.contains(changed), "{told}");
        failed += 1;
    }
    assert_eq!(failed, 10);
    assert!(matches!(open(&path), Err(Error::FileLength { .. })));
}

/// A volume in planes that counts the bytes that were read.
#[derive(Debug)]
struct Planes {
    memory: MemoryVolume,
    read: AtomicUsize,
    /// The first patch, if each read takes a while.
    first: Option<Region>,
    /// The reads for other patches that began before all of the first one was read.
    early: AtomicUsize,
}

impl Planes {
    fn new(first: Option<Region>) -> Arc<Self> {
        let voxels = vec![7_u8; 64 * 100 * 100];
        Arc::new(Self {
            memory: MemoryVolume::from_vec([64, 100, 100], 1, voxels).unwrap(),
            read: AtomicUsize::new(0),
            first,
            early: AtomicUsize::new(0),
        })
    }

    /// Reads 300 patches of 8^3 of a volume, after the same of one that is a single chunk if `chunked` is set.
    fn loader(volume: &Arc<Self>, threads: usize, chunked: bool) -> Loader {
        let mut volumes: Vec<(&str, Arc<dyn Volume>)> = vec![("ct", Arc::clone(volume) as _)];
        if chunked {
            let other = Counting::new(volume.layout().shape, 128, DType::U8);
            volumes.insert(0, ("other", other));
        }
        let subject = of_volumes("s", volumes);
        let plan = EpochPlan::new(1, 300, 1).unwrap();
        let options = LoaderOptions {
            max_length: 300,
            ..options(threads)
        };
        let make = uniform_of([8; 3], Border::Drop);
        Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options).unwrap()
    }
}

impl Volume for Planes {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        if let Some(first) = self.first {
            let is_other = first.intersection(&region) != Some(region);
            if is_other && self.read.load(Ordering::SeqCst) < 8 * 8 * 8 {
                self.early.fetch_add(1, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.memory.read_channels(channels, region, out)?;
        self.read.fetch_add(out.len(), Ordering::SeqCst);
        Ok(())
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        Some([1, 2, 100, 100])
    }
}

#[test]
fn the_first_patch_of_a_flat_file_waits_for_no_other() {
    let volume = Planes::new(None);
    let mut loader = Planes::loader(&volume, 0, false);
    let first = loader.next().unwrap().unwrap();
    assert_eq!(volume.read.load(Ordering::SeqCst), 8 * 8 * 8);
    assert_eq!(loader.flatten().count(), 299);
    assert!(volume.read.load(Ordering::SeqCst) > 299 * 8 * 8 * 8 / 2);

    for (threads, chunked) in [1, 2, 4, 16].map(|n| [(n, false), (n, true)]).concat() {
        let volume = Planes::new(Some(first.patches()[0].region()));
        let loader = Planes::loader(&volume, threads, chunked);
        assert_eq!(loader.flatten().count(), 300);
        let early = volume.early.load(Ordering::SeqCst);
        assert_eq!(early, 0, "{threads} threads, after chunks: {chunked}");
    }
}
