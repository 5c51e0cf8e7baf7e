//! Keeping zarrs away from rayon's global thread pool.
//!
//! zarrs asks that pool for its number of threads, which starts them, and encodes shards on it, regardless of the
//! concurrency in its options. In a child process that is forked later, those threads do not exist, and zarrs would
//! wait for them forever. Both are therefore done in separate pools.

use std::io;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;
use zarrs::array::codec::api::CodecOptions;
use zarrs::config::global_config;

use crate::error::Cause;

/// Returns the options for codecs: one thread, with checksum validation.
pub(super) fn codec_options() -> CodecOptions {
    static OPTIONS: OnceLock<CodecOptions> = OnceLock::new();
    let made = OPTIONS.get_or_init(|| {
        // The first access to the configuration also asks for the number of threads.
        let look = || {
            drop(global_config());
            CodecOptions::default()
        };
        match ThreadPoolBuilder::new().build() {
            Ok(pool) => pool.install(look),
            Err(_) => look(),
        }
    });
    (*made)
        .with_concurrent_target(1)
        .with_validate_checksums(true)
}

/// Runs work that would use the global pool in a temporary pool instead.
pub(super) fn outside_global_pool<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Cause> {
    if rayon::current_thread_index().is_some() {
        return Ok(work());
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "voxpatch-encode".to_owned())
        .build()
        .map_err(io::Error::other)?;
    Ok(pool.install(work))
}
