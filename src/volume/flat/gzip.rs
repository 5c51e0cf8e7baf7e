//! Compressing a flat file as a whole, on all threads: independent gzip members, one after the
//! other, which every reader of gzip takes for one stream.

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

/// Bytes of each member before it is compressed.
pub(super) const MEMBER: u64 = 1 << 20;

/// The usual effort.
pub(super) const LEVEL: u8 = 5;

/// Compresses the first `length` bytes of a file into another, which is empty, for an output at
/// `path`. What was compressed is given back to the disk where the file system can do that.
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
        // It only saves space: some file systems cannot.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(from, hole, at * MEMBER, (stop - at) * MEMBER);
        at = stop;
    }
    Ok(())
}

/// Member `n` of a file.
fn member(from: &File, n: u64, length: u64, level: u8) -> io::Result<Vec<u8>> {
    let start = n * MEMBER;
    let bytes = usize::try_from(MEMBER.min(length - start)).map_err(io::Error::other)?;
    let mut plain = vec![0; bytes];
    from.read_exact_at(&mut plain, start)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level.into()));
    encoder.write_all(&plain)?;
    encoder.finish()
}
