//! Keeping zarrs away from rayon's global pool.
//!
//! zarrs asks that pool how many threads it has, which starts them, and encodes shards on it,
//! whatever concurrency it is told. In a child that is forked later they do not exist, and it would
//! wait for them for ever. So both are done in pools of our own.

use std::io;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;
use zarrs::array::codec::api::CodecOptions;
use zarrs::config::global_config;

use crate::error::Cause;

/// What codecs are told: one thread, and checksums are checked.
pub(super) fn codec_options() -> CodecOptions {
    static OPTIONS: OnceLock<CodecOptions> = OnceLock::new();
    let made = OPTIONS.get_or_init(|| {
        // The first look at the configuration asks for the number of threads, too.
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

/// Runs what would enter the global pool in one that ends with it.
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
