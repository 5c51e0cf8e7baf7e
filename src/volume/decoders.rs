//! Decompression of untrusted data to a promised size.
//!
//! Every function here stops at the size that a header promised before a byte was decoded, whatever the compressed data
//! claim about themselves.

use std::cell::RefCell;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use zstd::bulk::Decompressor;

use crate::error::Cause;

/// Runs foreign code on foreign data, and converts a panic of `library` to an error.
pub(super) fn caught<T>(library: &str, work: impl FnOnce() -> T) -> Result<T, Cause> {
    // Anything that a panic leaves incomplete is dropped with the closure, which owns it or only reads it.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned());
        format!("{library} panicked: {}", text.unwrap_or_default()).into()
    })
}

/// Reads a stream to its end, and at most one byte more than `limit`.
pub(super) fn bounded(stream: impl Read, limit: usize) -> Result<Vec<u8>, Cause> {
    let mut decoded = Vec::with_capacity(limit.saturating_add(1));
    stream
        .take((limit as u64).saturating_add(1))
        .read_to_end(&mut decoded)?;
    Ok(decoded)
}

/// Decodes zlib. The `Read` adapter is not used because it accepts a stream without its end, and so without its
/// checksum.
pub(super) fn zlib(encoded: &[u8], limit: usize) -> Result<Vec<u8>, Cause> {
    let mut decoded = Vec::with_capacity(limit.saturating_add(1));
    let mut stream = flate2::Decompress::new(true);
    let status = stream.decompress_vec(encoded, &mut decoded, flate2::FlushDecompress::Finish)?;
    if status == flate2::Status::StreamEnd {
        Ok(decoded)
    } else {
        Err(format!("the zlib stream has no end within {limit} decoded bytes").into())
    }
}

/// Decodes zstd. Each thread keeps its decompressor, since making one takes about as long as decoding a small chunk.
pub(super) fn zstd(encoded: &[u8], limit: usize) -> Result<Vec<u8>, Cause> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let mut decompressor = match kept.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new()?,
        };
        let decoded = decompressor.decompress(encoded, limit)?;
        *kept = Some(decompressor);
        Ok(decoded)
    })
}
