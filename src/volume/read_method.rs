//! The methods for reading uncompressed files: memory map or system calls.

use std::fs::File;
use std::io;

use super::available::available_bytes;
use super::mmap::Map;

/// The method for reading uncompressed files: flat ones, and those of Zarr arrays whose chunks have no codec. These arrays
/// are mapped by `Auto` and `MmapResident` only, and are otherwise read chunk by chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMethod {
    /// `MmapResident` for files that fit into the available memory, next to the files that are mapped so
    /// already, and `Mmap` for larger ones. `Pread` for files on network or user-space file systems (NFS, SMB,
    /// FUSE, Lustre, Ceph, 9p and similar), where page faults are slow and files change without notice.
    ///
    /// A file fits if all such files together take at most half of the available memory, which is what the
    /// system reports (`MemAvailable`) within the limits of this process's control groups. At most 16 384 files stay
    /// mapped.
    #[default]
    Auto,
    /// A memory map, the fastest method on local disks. Touched pages are unmapped again, so that little of a file is
    /// resident.
    Mmap,
    /// A memory map whose touched pages stay mapped: faster from the second access on, for files that fit into memory.
    /// The whole file may count as resident; the system can reclaim its pages.
    MmapResident,
    /// System calls that read up to 4 MiB each.
    Pread,
}

impl ReadMethod {
    /// Maps a file, unless it should be read by system calls.
    pub(super) fn map(self, file: &File) -> io::Result<Option<Map>> {
        let mapped = match self {
            Self::Mmap | Self::MmapResident => true,
            Self::Pread => false,
            Self::Auto => !is_remote(file),
        };
        let map = mapped.then(|| Map::new(file)).transpose()?;
        Ok(match self {
            Self::MmapResident => map.map(Map::keeping),
            Self::Auto => map.map(|map| map.keeping_if_it_fits(room_for_maps())),
            Self::Mmap | Self::Pread => map,
        })
    }
}

/// Returns the most bytes of files that stay mapped by default: half of the available memory.
pub(super) fn room_for_maps() -> u64 {
    available_bytes().unwrap_or(0) / 2
}

/// The `statfs` numbers of file systems whose files other machines can change, and whose clock is not this machine's:
/// AFS, `BeeGFS`, Ceph, SMB (three numbers), FUSE, GPFS, Lustre, NFS, `VirtualBox`, 9p.
const REMOTE: [u32; 12] = [
    0x5346_414f,
    0x1983_0326,
    0x00c3_6400,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x4750_4653,
    0x0bd0_0bd0,
    0x6969,
    0x786f_4256,
    0x0102_1997,
];

/// Returns `true` if a file is, or may be, on another machine.
pub(super) fn is_remote(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| {
        let kind = u32::try_from(found.f_type);
        kind.is_ok_and(|kind| REMOTE.contains(&kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_file_is_mapped_unless_system_calls_are_requested() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1, 2, 3]).unwrap();
        let mapped = |io: ReadMethod| io.map(file.as_file()).unwrap().is_some();
        assert!(
            mapped(ReadMethod::Mmap)
                && mapped(ReadMethod::MmapResident)
                && !mapped(ReadMethod::Pread)
        );
        assert_eq!(mapped(ReadMethod::Auto), !is_remote(file.as_file()));
        // procfs is neither remote nor listed.
        assert!(!is_remote(&File::open("/proc/self/status").unwrap()));
    }
}
