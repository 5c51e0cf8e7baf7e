//! Compression of a whole flat file on all threads, as independent gzip members in sequence. Every gzip reader treats
//! them as one stream.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rustix::fs::{FallocateFlags, fallocate};

use crate::error::{Error, Result};
use crate::threads::{pool, threads};

/// Uncompressed bytes per member.
pub(super) const MEMBER: u64 = 1 << 20;

/// The default compression level.
pub(super) const LEVEL: u8 = 5;

/// Compresses the first `length` bytes of `from` into the empty file `to`, for an output at `path`. Compressed ranges
/// of `from` are released (hole punching) where the file system supports that.
pub(super) fn pack(from: &File, length: u64, to: &File, level: u8, path: &Path) -> Result<()> {
    let pool = pool(threads(), "compress", path)?;
    let together = 2 * pool.current_num_threads() as u64;
    let members = length.div_ceil(MEMBER);
    let failed = |source| Error::io("compress", path)(source);
    let (mut at, mut end) = (0, 0);
    while at < members {
        let stop = members.min(at + together);
        let packed: io::Result<Vec<Vec<u8>>> = pool.install(|| {
            let all = (at..stop).into_par_iter();
            all.map(|n| member(from, n, length, level)).collect()
        });
        for part in packed.map_err(failed)? {
            to.write_all_at(&part, end).map_err(failed)?;
            end += part.len() as u64;
        }
        // This only saves space, and some file systems do not support it.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(from, hole, at * MEMBER, (stop - at) * MEMBER);
        at = stop;
    }
    Ok(())
}

/// Compresses member `n` of a file.
fn member(from: &File, n: u64, length: u64, level: u8) -> io::Result<Vec<u8>> {
    let start = n * MEMBER;
    let bytes = usize::try_from(MEMBER.min(length - start)).map_err(io::Error::other)?;
    let mut plain = vec![0; bytes];
    from.read_exact_at(&mut plain, start)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level.into()));
    encoder.write_all(&plain)?;
    encoder.finish()
}
