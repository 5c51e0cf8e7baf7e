//! An allocator that counts, for the test binaries that declare this module: bytes now, bytes at most, and large buffers.

#![allow(unsafe_code, reason = "an allocator is unsafe by definition")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static LARGE: AtomicU64 = AtomicU64::new(0);

/// Bytes below those of any buffer of voxels in these tests, and above those of tables and lists.
const FEW_VOXELS: usize = 12 << 10;

impl Counting {
    fn count(memory: Layout) {
        LARGE.fetch_add(u64::from(memory.size() >= FEW_VOXELS), Ordering::Relaxed);
        let now = NOW.fetch_add(memory.size() as u64, Ordering::Relaxed) + memory.size() as u64;
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Layout) -> *mut u8 {
        Self::count(memory);
        // SAFETY: the caller's guarantees are those that the system's allocator requires.
        unsafe { System.alloc(memory) }
    }

    // Zeros that are never touched take no memory, so that they are not written here either.
    unsafe fn alloc_zeroed(&self, memory: Layout) -> *mut u8 {
        Self::count(memory);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(memory) }
    }

    unsafe fn dealloc(&self, at: *mut u8, memory: Layout) {
        NOW.fetch_sub(memory.size() as u64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, memory) }
    }
}

/// Returns the bytes that are allocated now.
pub(crate) fn now() -> u64 {
    NOW.load(Ordering::Relaxed)
}

/// Returns the most bytes that were allocated at a time since [`restart`].
pub(crate) fn peak() -> u64 {
    PEAK.load(Ordering::Relaxed)
}

/// Begins to look for the peak anew. Returns the bytes that are allocated now.
pub(crate) fn restart() -> u64 {
    let now = now();
    PEAK.store(now, Ordering::Relaxed);
    now
}

/// Returns the number of allocations of [`FEW_VOXELS`] or more until now.
#[allow(dead_code, reason = "not every binary counts them")]
pub(crate) fn large() -> u64 {
    LARGE.load(Ordering::Relaxed)
}
