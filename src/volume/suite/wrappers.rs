//! Checks of volumes that wrap others: calls to a wrapper must reach the volume that it wraps.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value as Json, json};

use super::super::chunk::{clipped, intersecting};
use super::super::{
    Chunk, ChunkShape, ChunkVoxels, Layout, MemoryVolume, ReadStats, Volume, VolumeExt,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::patch::Patch;
use crate::region::Region;

/// A small volume that records the calls to it, for wrapping; see [`check_wrapper`].
#[derive(Debug)]
pub struct CallRecorder {
    voxels: MemoryVolume,
    name: String,
    /// `true` if the probe refuses to identify itself.
    nameless: bool,
    changed: AtomicBool,
    bytes: AtomicU64,
    prefetched: Mutex<BTreeSet<ChunkShape>>,
    read: Mutex<BTreeSet<ChunkShape>>,
}

impl CallRecorder {
    /// Creates four channels of 9 x 10 x 11 voxels of 2 mm, with zeros from plane 5 on. The name is the identity.
    ///
    /// # Panics
    ///
    /// Panics if the few voxels do not fit into memory.
    #[must_use]
    pub fn new(name: &str, chunk: Option<ChunkShape>) -> Self {
        let shape = [9, 10, 11];
        let geometry = Geometry::from_parts([2.0; 3], [0.5; 3]);
        let layout = Layout::new(shape, 4, DType::U16).with_geometry(geometry);
        let voxel = |n: u16| if n / 110 % 9 < 5 { n + 1 } else { 0 };
        let voxels: Vec<u16> = (0..4 * 9 * 110).map(voxel).collect();
        let patch = Patch::new(Region::whole(shape), 4, voxels).expect("as many voxels");
        let voxels = MemoryVolume::from_patch(layout, patch).expect("as many voxels");
        Self {
            voxels: match chunk {
                Some(chunk) => voxels.with_chunks(chunk),
                None => voxels,
            },
            name: name.to_owned(),
            nameless: false,
            changed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            prefetched: Mutex::default(),
            read: Mutex::default(),
        }
    }

    /// Simulates a change of the probe's files from now on.
    pub fn change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    fn take(of: &Mutex<BTreeSet<ChunkShape>>) -> BTreeSet<ChunkShape> {
        std::mem::take(&mut of.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Volume for CallRecorder {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.voxels)
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        if let Some(chunk) = Volume::layout(&self.voxels).read_chunk {
            let all = intersecting(chunk, &channels, region);
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.extend(all);
        }
        self.voxels.read_channels(channels, region, out)
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let chunk = self.voxels.read_chunk(index)?;
        self.bytes
            .fetch_add(chunk.bytes() as u64, Ordering::Relaxed);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(index);
        Ok(chunk)
    }

    fn prefetch(&self, index: ChunkShape) {
        let mut all = self
            .prefetched
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.insert(index);
    }

    fn time_points(&self) -> Option<u64> {
        Some(2)
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        Some([0, 1, 2, 3])
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        Some([1, 2, 10, 11])
    }

    fn reads_parts(&self) -> bool {
        false
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let empty = match self.voxels.read_chunk(index)?.voxels {
            ChunkVoxels::Stored(voxels) => voxels.iter().all(|&byte| byte == 0),
            ChunkVoxels::Fill(_) => true,
        };
        Ok(empty.then(|| vec![0; 2]))
    }

    fn read_stats(&self) -> ReadStats {
        ReadStats {
            bytes: self.bytes.load(Ordering::Relaxed),
            ..ReadStats::default()
        }
    }

    fn source_files(&self) -> Vec<PathBuf> {
        vec![PathBuf::from("/probe"), PathBuf::from(&self.name)]
    }

    fn check_unchanged(&self) -> Result<()> {
        if !self.changed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::InputModified {
            path: PathBuf::from(&self.name),
            what: "it was written to".to_owned(),
        })
    }

    fn identity(&self) -> Result<Json> {
        if self.nameless {
            let path = PathBuf::from(&self.name);
            return Err(Error::NoIdentity { path });
        }
        Ok(json!({ "probe": self.name }))
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(4242)
    }
}

/// Checks that the wrapper that `wrap` creates forwards or adapts everything: identity, change detection, prefetching,
/// counters, source files, fill values, order and time points.
///
/// # Panics
///
/// Panics if it does not.
pub fn check_wrapper(wrap: impl Fn(Arc<dyn Volume>) -> Arc<dyn Volume>) {
    check_forwarding(&wrap);
    let wrapper = wrap(Arc::new(CallRecorder::new("a", None)));
    let inner = wrapper.inner().expect("a wrapper names its inner volume");
    assert_eq!(inner.stored_bytes().expect("known"), 4242, "inner");
}

/// Performs the checks of [`check_wrapper`] except the one of `inner`, for a pointer that represents its volume.
///
/// # Panics
///
/// Panics if something is not forwarded.
pub fn check_forwarding(wrap: &impl Fn(Arc<dyn Volume>) -> Arc<dyn Volume>) {
    for chunk in [None, Some([1, 4, 3, 5]), Some([2, 8, 8, 8])] {
        let probe = Arc::new(CallRecorder::new("a", chunk));
        let wrapper = wrap(Arc::clone(&probe) as _);
        assert_eq!(wrapper.source_files(), probe.source_files(), "source files");
        assert_eq!(wrapper.stored_bytes().expect("known"), 4242);
        check_facts(&*wrapper);
        check_prefetch(&probe, &*wrapper);

        let layout = wrapper.layout();
        wrapper.read(Region::whole(layout.shape)).expect("it reads");
        let (own, inner) = (wrapper.read_stats(), probe.read_stats());
        assert!(inner.bytes > 0, "it reads what it wraps");
        assert_eq!(own.bytes, inner.bytes, "bytes that were read");

        wrapper.check_unchanged().expect("nothing changed");
        probe.change();
        let changed = wrapper.check_unchanged();
        assert!(
            matches!(changed, Err(Error::InputModified { .. })),
            "{changed:?}"
        );

        let identity = |name| wrap(Arc::new(CallRecorder::new(name, chunk))).identity();
        let [one, same, other] = ["a", "a", "b"].map(|name| identity(name).expect("it has one"));
        assert_eq!(one, same, "two wrappers of one volume");
        assert_ne!(one, other, "wrappers of two volumes");
        let nameless = CallRecorder {
            nameless: true,
            ..CallRecorder::new("a", chunk)
        };
        let refused = wrap(Arc::new(nameless)).identity();
        assert!(
            matches!(refused, Err(Error::NoIdentity { .. })),
            "it identifies what it wraps, which has no identity: {refused:?}"
        );
    }
}

/// Checks that time points, order and preferred reads fit the wrapper's layout, and that fill values are right.
fn check_facts(wrapper: &dyn Volume) {
    let layout = wrapper.layout();
    if let Some(points) = wrapper.time_points() {
        assert_eq!(layout.channels % points, 0, "{points} time points");
    }
    let order = wrapper.sequential_order();
    assert!(order.is_none_or(|order| order == [0, 1, 2, 3]), "{order:?}");
    let together = wrapper.read_granularity().expect("planes");
    assert!(together.iter().all(|&n| n > 0) && together[0] <= layout.channels);
    let Some(chunk) = layout.read_chunk else {
        return;
    };
    let mut empty = 0;
    let whole = Region::whole(layout.shape);
    for index in intersecting(chunk, &(0..layout.channels), whole) {
        let Some(voxel) = wrapper.fill_chunk(index).expect("it can be asked") else {
            continue;
        };
        empty += 1;
        let (channels, region) = clipped(layout, index).expect("a chunk");
        let count = region.voxels() * (channels.end - channels.start);
        let mut out = vec![0xaa; usize::try_from(count).expect("small") * voxel.len()];
        let read = wrapper.read_channels(channels, region, &mut out);
        read.expect("it reads");
        assert!(
            out.chunks(voxel.len()).all(|found| found == voxel),
            "{index:?}"
        );
    }
    assert!(empty > 0, "chunks that are not stored are known");
}

/// Checks that prefetching a chunk prefetches exactly what reading it reads.
fn check_prefetch(probe: &CallRecorder, wrapper: &dyn Volume) {
    let layout = wrapper.layout();
    let Some(chunk) = layout.read_chunk else {
        return;
    };
    let whole = Region::whole(layout.shape);
    let all: Vec<_> = intersecting(chunk, &(0..layout.channels), whole).collect();
    for index in all {
        CallRecorder::take(&probe.prefetched);
        wrapper.prefetch(index);
        let prefetched = CallRecorder::take(&probe.prefetched);
        CallRecorder::take(&probe.read);
        wrapper.read_chunk(index).expect("a chunk");
        let read = CallRecorder::take(&probe.read);
        // Cached chunks are neither fetched nor read.
        assert_eq!(prefetched, read, "chunk {index:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::geometry::SignedAxes;
    use crate::volume::suite::{Fault, Faulty};
    use crate::volume::{
        Cached, ChannelRange, Cropped, Interpolation, Reoriented, Resample, Resampled, VoxelGrid,
    };

    #[test]
    fn every_wrapper_forwards_to_its_volume() {
        for budget in [0, 1 << 20] {
            check_wrapper(|inner| Arc::new(Cached::new(inner, budget)));
        }
        for channels in [0..4, 0..2, 2..4, 1..3, 3..4] {
            let chosen = |inner| ChannelRange::new(inner, channels.clone()).unwrap();
            check_wrapper(|inner| Arc::new(chosen(inner)));
        }
        for interpolation in [
            Interpolation::Nearest,
            Interpolation::Linear,
            Interpolation::Cubic,
            Interpolation::LabelLinear,
        ] {
            for (shape, spacing) in [([40, 20, 22], 1.0), ([61, 19, 21], 0.7), ([23, 5, 6], 3.1)] {
                let grid = VoxelGrid::new(shape, Geometry::from_parts([spacing; 3], [0.2; 3]));
                let options = Resample::default().with_interpolation(interpolation);
                check_wrapper(|inner| Arc::new(Resampled::new(inner, grid, &options).unwrap()));
            }
        }
        // A reorientation that keeps planes in their order, and one whose flips cut chunks in two.
        for flipped in [[false; 3], [false, true, false], [false, true, true]] {
            let axes = SignedAxes::new([0, 1, 2], flipped).unwrap();
            check_wrapper(|inner| Arc::new(Reoriented::new(inner, axes)));
        }
        check_wrapper(|inner| {
            let whole = Region::whole(inner.layout().shape);
            Arc::new(Cropped::new(inner, whole).unwrap())
        });
        check_wrapper(|inner| Arc::new(Faulty::new(inner, Fault::Fail, 0..0)));
        check_forwarding(&|inner: Arc<dyn Volume>| Arc::new(inner) as Arc<dyn Volume>);
        // One wrapper around another.
        let both = |inner| ChannelRange::new(Arc::new(Cached::new(inner, 999)), 1..4).unwrap();
        check_wrapper(|inner| Arc::new(Cached::new(Arc::new(both(inner)), 999)));
    }

    /// A wrapper that implements only the required methods, and one that omits `inner`.
    #[derive(Debug)]
    struct Thin(Arc<dyn Volume>, bool);

    impl Volume for Thin {
        fn layout(&self) -> &Layout {
            self.0.layout()
        }
        fn read_channels(&self, c: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
            self.0.read_channels(c, region, out)
        }
        fn inner(&self) -> Option<&dyn Volume> {
            self.1.then_some(&*self.0)
        }
    }

    #[test]
    fn default_methods_forward_except_those_that_depend_on_voxels() {
        let probe = Arc::new(CallRecorder::new("a", Some([1, 4, 3, 5])));
        let thin = Thin(Arc::clone(&probe) as _, true);
        check_prefetch(&probe, &thin);
        assert_eq!(thin.source_files(), probe.source_files());
        assert_eq!(thin.time_points(), Some(2));
        assert_eq!(thin.sequential_order(), probe.sequential_order());
        assert_eq!(thin.read_granularity(), probe.read_granularity());
        assert_eq!(thin.stored_bytes().unwrap(), 4242);
        assert_eq!(thin.read_stats(), probe.read_stats());
        assert_eq!(thin.fill_chunk([0, 2, 0, 0]).unwrap(), None);
        assert!(matches!(thin.identity(), Err(Error::NoIdentity { .. })));
        thin.check_unchanged().unwrap();
        probe.change();
        assert!(matches!(
            thin.check_unchanged(),
            Err(Error::InputModified { .. })
        ));
    }

    #[test]
    fn a_wrapper_that_forgets_something_is_noticed() {
        for knows_inner in [false, true] {
            let wrap = move |inner| Arc::new(Thin(inner, knows_inner)) as Arc<dyn Volume>;
            let caught = catch_unwind(AssertUnwindSafe(|| check_wrapper(wrap)));
            assert!(caught.is_err());
        }
    }
}
