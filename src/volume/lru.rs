//! A bounded map from keys to loaded values, shared between threads.
//!
//! The values' bytes never exceed the budget once a load has returned, the least recently
//! used goes first, and a key that several threads want at once is loaded by one of them
//! while the others wait for it. A load that fails or panics is not kept, and its error is
//! the loader's alone: those who waited try for themselves, one after the other.

use std::fmt;
use std::hash::Hash;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// Values kept by key within a budget of bytes.
pub(crate) struct Lru<K, V> {
    values: Cache<K, V>,
    budget: u64,
}

/// Bytes that the bookkeeping of one entry takes, about.
const ENTRY: usize = 128;

impl<K, V> Lru<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Keeps values whose `bytes` add up to no more than `budget`.
    pub(crate) fn new(budget: u64, bytes: impl Fn(&V) -> usize + Send + Sync + 'static) -> Self {
        let values = Cache::builder()
            .max_capacity(budget)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(move |_, value: &V| u32::try_from(bytes(value) + ENTRY).unwrap_or(u32::MAX))
            .build();
        Self { values, budget }
    }

    /// Bytes that are kept, with the bookkeeping.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.values.weighted_size()
    }

    /// Returns `true` if the value for `key` is there.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.values.contains_key(key)
    }

    /// The value for `key`, and whether it was there already.
    pub(crate) fn get_or_load<E>(
        &self,
        key: &K,
        load: impl FnOnce() -> Result<V, E>,
    ) -> Result<(V, bool), E> {
        /// Somebody's load failed.
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
                        // Evictions are otherwise left to later calls, and the budget overrun
                        // until then.
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
