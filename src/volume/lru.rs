//! A bounded map from keys to loaded values, shared between threads.
//!
//! Once a load has returned, the values' bytes do not exceed the budget; the least recently used value is evicted
//! first. If several threads want the same key at once, one loads it while the others wait. A load that fails or panics
//! is not stored. Its error goes only to the thread that loaded; the waiting threads retry, one after the other.

use std::fmt;
use std::hash::Hash;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// A cache of values by key, with a budget in bytes.
pub(crate) struct Lru<K, V> {
    values: Cache<K, V>,
    budget: u64,
}

/// Approximate overhead of one entry, in bytes.
const ENTRY: usize = 128;

impl<K, V> Lru<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates a cache for values whose `bytes` add up to at most `budget`.
    pub(crate) fn new(budget: u64, bytes: impl Fn(&V) -> usize + Send + Sync + 'static) -> Self {
        let values = Cache::builder()
            .max_capacity(budget)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(move |_, value: &V| u32::try_from(bytes(value) + ENTRY).unwrap_or(u32::MAX))
            .build();
        Self { values, budget }
    }

    /// Returns the bytes in the cache, including the overhead.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.values.weighted_size()
    }

    /// Returns `true` if the cache has a value for `key`.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.values.contains_key(key)
    }

    /// Returns the value for `key` if it is in the cache.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.values.get(key)
    }

    /// Returns the value for `key`, and whether it was already in the cache.
    pub(crate) fn get_or_load<E>(
        &self,
        key: &K,
        load: impl FnOnce() -> Result<V, E>,
    ) -> Result<(V, bool), E> {
        /// The load of some thread failed.
        struct Failed;
        let mut load = Some(load);
        loop {
            let mut error = None;
            let value = self.values.try_get_with_by_ref(key, || {
                let load = load.take().expect("a loader loads once");
                load().map_err(|failure| {
                    error = Some(failure);
                    Failed
                })
            });
            match (value, error) {
                (Ok(value), _) => {
                    let loaded = load.is_none();
                    if loaded {
                        // Otherwise evictions wait for later calls, and the budget is exceeded until then.
                        self.values.run_pending_tasks();
                    }
                    return Ok((value, !loaded));
                }
                (Err(_), Some(error)) => return Err(error),
                (Err(_), None) => {}
            }
        }
    }
}

impl<K, V> fmt::Debug for Lru<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lru")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
