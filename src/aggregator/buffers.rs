//! Buffers that are reused, because fresh memory costs a page fault per page.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

/// A pool of buffers of several lengths.
///
/// The buffers in use and the spare ones together are never longer than those that were once in use at the same time.
/// The pool therefore takes no memory in addition to the peak.
#[derive(Debug)]
pub(super) struct Buffers<T>(Mutex<BuffersState<T>>);

#[derive(Debug)]
struct BuffersState<T> {
    /// Spare buffers, the one that was given back first at the front.
    spare: Vec<Vec<T>>,
    /// Their elements.
    spare_length: usize,
    /// The elements in use.
    used: usize,
    /// The most elements that were in use at once.
    most: usize,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self(Mutex::new(BuffersState {
            spare: Vec::new(),
            spare_length: 0,
            used: 0,
            most: 0,
        }))
    }
}

impl<T: Copy + Default> Buffers<T> {
    /// Returns a buffer with arbitrary contents.
    pub(super) fn take(&self, length: usize) -> Vec<T> {
        self.take_fitting(length, |spare| {
            spare.iter().rposition(|b| b.len() == length)
        })
    }

    /// Returns a buffer of at least this length, with arbitrary contents.
    pub(super) fn take_long(&self, length: usize) -> Vec<T> {
        self.take_fitting(length, |spare| {
            let long = spare.iter().enumerate().filter(|(_, b)| b.len() >= length);
            Some(long.min_by_key(|(_, b)| b.len())?.0)
        })
    }

    fn take_fitting(&self, length: usize, fitting: impl Fn(&[Vec<T>]) -> Option<usize>) -> Vec<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = fitting(&state.spare).map(|at| state.spare.remove(at));
        let length = found.as_ref().map_or(length, Vec::len);
        state.used += length;
        state.most = state.most.max(state.used);
        if let Some(found) = found {
            state.spare_length -= length;
            return found;
        }
        // Buffers of other lengths make room.
        let (mut count, mut left) = (0, state.spare_length);
        while count < state.spare.len() && left + state.used > state.most {
            left -= state.spare[count].len();
            count += 1;
        }
        state.spare_length = left;
        let freed: Vec<Vec<T>> = state.spare.drain(..count).collect();
        drop(state);
        drop(freed);
        vec![T::default(); length]
    }

    /// Gives back a buffer that was taken.
    pub(super) fn give(&self, buffer: Vec<T>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.used -= buffer.len();
        state.spare_length += buffer.len();
        state.spare.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_every_length_are_reused_within_the_peak() {
        let buffers: Buffers<u8> = Buffers::default();
        let held = || {
            let state = buffers.0.lock().unwrap();
            let spare: usize = state.spare.iter().map(Vec::len).sum();
            assert_eq!(spare, state.spare_length);
            state.used + spare
        };
        let (long, short) = (buffers.take(100), buffers.take(10));
        let places = [long.as_ptr(), short.as_ptr()];
        buffers.give(long);
        buffers.give(short);
        for _ in 0..3 {
            let (short, long) = (buffers.take(10), buffers.take(100));
            assert_eq!([long.as_ptr(), short.as_ptr()], places);
            buffers.give(long);
            buffers.give(short);
            assert_eq!(held(), 110);
        }
        // A new length drops what would exceed the peak, and a longer one raises the peak.
        let middle = buffers.take(50);
        assert_eq!(held(), 60);
        buffers.give(middle);
        let longest = buffers.take(111);
        assert_eq!(held(), 111);
        buffers.give(longest);
        assert_eq!(held(), 111);
        let longer = buffers.take_long(20);
        assert_eq!((longer.len(), held()), (111, 111));
        buffers.give(longer);
    }
}
