//! The versions of the objects that were read last.
//!
//! A version is kept without an allocation of its own. Small allocations that stay, made between the large ones of
//! chunks that do not, would leave the heap with a gap for almost every chunk that was read.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Version;

/// The number of versions in each of the two generations.
const GENERATION: usize = 1 << 15;

/// Bytes of an entity tag that are kept in place. Common ones have 16 to 44.
const SHORT: usize = 46;

/// The versions of objects by name. When there are too many, the half that was used longest ago is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Known>,
    old: HashMap<u64, Known>,
}

/// A version of an object.
#[derive(Clone, Debug)]
struct Known {
    modified: i64,
    size: u64,
    tag: Tag,
}

/// An entity tag.
#[derive(Clone, Debug)]
enum Tag {
    None,
    Short(u8, [u8; SHORT]),
    Long(Box<str>),
}

/// Maximum bytes of all versions, with tables that are half empty.
pub(crate) const VERSION_BYTES: u64 = 4 * (GENERATION * (size_of::<Known>() + 16)) as u64;

/// Returns the bytes that the versions of so many objects take.
pub(crate) fn version_bytes(objects: u64) -> u64 {
    let each = (size_of::<Known>() + 16) as u64;
    objects.saturating_mul(2 * each).min(VERSION_BYTES)
}

impl Versions {
    /// Returns the version of an object, if it is known.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Version>> {
        let name = self.hasher.hash_one(name);
        let mut all = self.lock();
        if let Some(known) = all.young.get(&name) {
            return Some(known.version());
        }
        let known = all.old.remove(&name)?;
        let version = known.version();
        all.insert(name, known);
        Some(version)
    }

    /// Returns `true` if the version of an object is known.
    pub(crate) fn contains(&self, name: &str) -> bool {
        let name = self.hasher.hash_one(name);
        let all = self.lock();
        all.young.contains_key(&name) || all.old.contains_key(&name)
    }

    /// Keeps the version of an object, unless one is known.
    pub(crate) fn insert(&self, name: &str, version: &Version) {
        let name = self.hasher.hash_one(name);
        let mut all = self.lock();
        if !all.young.contains_key(&name) && !all.old.contains_key(&name) {
            all.insert(name, Known::of(version));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, name: u64, known: Known) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, known);
    }
}

impl Known {
    fn of(version: &Version) -> Self {
        let tag = match version.etag.as_deref() {
            None => Tag::None,
            Some(tag) => {
                let mut short = [0; SHORT];
                match (short.get_mut(..tag.len()), u8::try_from(tag.len())) {
                    (Some(place), Ok(length)) => {
                        place.copy_from_slice(tag.as_bytes());
                        Tag::Short(length, short)
                    }
                    _ => Tag::Long(tag.into()),
                }
            }
        };
        Self {
            modified: version.modified,
            size: version.size,
            tag,
        }
    }

    fn version(&self) -> Arc<Version> {
        let etag = match &self.tag {
            Tag::None => None,
            Tag::Short(length, bytes) => {
                let bytes = &bytes[..usize::from(*length)];
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
            Tag::Long(tag) => Some(tag.to_string()),
        };
        Arc::new(Version {
            etag,
            modified: self.modified,
            size: self.size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(n: usize) -> Version {
        // Tags of none, of up to 46 bytes, and of more.
        let tag = |n: usize| format!("\"{}\"", "é".repeat(n % 40));
        Version {
            etag: (!n.is_multiple_of(41)).then(|| tag(n)),
            modified: i64::try_from(n).unwrap() - 5,
            size: n as u64,
        }
    }

    #[test]
    fn the_versions_of_the_objects_that_were_used_last_are_known() {
        let versions = Versions::default();
        let name = |n: usize| format!("c/{n}");
        for n in 0..5 * GENERATION / 2 {
            versions.insert(&name(n), &version(n));
            // It stays as long as it is used.
            assert_eq!(*versions.get("c/0").unwrap(), version(0));
            // What is known is not replaced.
            versions.insert("c/0", &version(1));
        }
        let last = 5 * GENERATION / 2;
        for n in (last - GENERATION..last).rev() {
            assert!(versions.contains(&name(n)));
            assert_eq!(*versions.get(&name(n)).unwrap(), version(n));
        }
        assert!(!versions.contains(&name(1)) && versions.get(&name(1)).is_none());
        let all = versions.lock();
        assert!(all.young.len().max(all.old.len()) <= GENERATION);
        let room = |map: &HashMap<u64, Known>| map.capacity() * size_of::<(u64, Known)>();
        assert!((room(&all.young) + room(&all.old)) as u64 <= VERSION_BYTES);
    }
}
