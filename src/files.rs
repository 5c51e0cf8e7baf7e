//! Opening files to read, regular ones only, and writing long and new ones.
//!
//! Opening a pipe waits for a writer, and opening a device may have effects (rewind a tape, start a watchdog). Neither
//! contains a volume, so both are refused before they are opened.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// Opens a regular file for reading. Never waits.
///
/// # Errors
///
/// [`Error::Io`] if it cannot be opened, [`Error::Unsupported`] if it is not a regular file.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let found = path.metadata().map_err(Error::io("open", path))?;
    check_regular(path, &found)?;
    let file = open_at_once(path).map_err(Error::io("open", path))?;
    // The file may have been replaced in between.
    let found = file.metadata().map_err(Error::io("look at", path))?;
    check_regular(path, &found)?;
    Ok(file)
}

/// Reads the first bytes of a regular file, up to `limit`.
///
/// # Errors
///
/// As [`open_regular`].
pub(crate) fn read_up_to(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Extends a checksum (crc32c) by the bytes of a regular file.
///
/// # Errors
///
/// As [`open_regular`].
#[cfg(any(feature = "onnx", feature = "ort"))]
pub(crate) fn checksum(before: u32, path: &Path) -> Result<u32> {
    let mut file = open_regular(path)?;
    let (mut crc, mut buffer) = (before, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(crc),
            count => crc = crc32c::crc32c_append(crc, &buffer[..count]),
        }
    }
}

/// Checks that a path leads to a regular file.
pub(crate) fn check_regular(path: &Path, found: &Metadata) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let kind = kind(found.file_type());
    Err(Error::unsupported(
        path,
        format!("it is {kind}, but only regular files are read"),
    ))
}

/// Opens a file of any type without blocking.
pub(crate) fn open_at_once(path: &Path) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
}

/// The most bytes of one write.
pub(crate) const PIECE: usize = 1 << 20;

/// Writes bytes into a file from the byte `start` on, in pieces of at most 1 MiB.
///
/// For a write of 2 MiB or more, Linux takes its page cache from free blocks of that size. Those are what a virtual machine
/// reports to its host as unused, and each page that it then needs again is a fault in the host: 2.3 MB took 5 ms instead
/// of 0.5.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], mut start: u64) -> io::Result<()> {
    for piece in bytes.chunks(PIECE) {
        file.write_all_at(piece, start)?;
        start += piece.len() as u64;
    }
    Ok(())
}

/// A file that is created with its first bytes, and removed on drop unless it is kept.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    file: Option<File>,
    length: u64,
}

impl NewFile {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            length: 0,
        }
    }

    /// Appends bytes. The first ones create the file, which must not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be created or written.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::create_new(&self.path).map_err(Error::io("write", &self.path))?,
        };
        let file = self.file.insert(file);
        write_all_at(file, bytes, self.length).map_err(Error::io("write", &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file; `None` if it has no bytes, and was not created.
    pub(crate) const fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Returns the length of the file; `None` if it was not created.
    pub(crate) fn length(&self) -> Option<u64> {
        self.file.as_ref().map(|_| self.length)
    }

    /// Keeps the file.
    pub(crate) fn keep(mut self) {
        self.file = None;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        "a folder"
    } else if of.is_fifo() {
        "a pipe"
    } else if of.is_socket() {
        "a socket"
    } else if of.is_block_device() || of.is_char_device() {
        "a device"
    } else {
        "not a file"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn long_bytes_are_written_where_they_belong() {
        let file = tempfile::tempfile().unwrap();
        for (length, start) in [
            (0, 3),
            (7, 0),
            (PIECE, 5),
            (PIECE + 1, 0),
            (3 * PIECE + 17, 9),
        ] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            write_all_at(&file, &bytes, start).unwrap();
            let mut back = vec![0; length];
            file.read_exact_at(&mut back, start).unwrap();
            assert!(back == bytes, "{length} bytes from {start} on");
        }
        assert_eq!(file.metadata().unwrap().len(), (3 * PIECE + 17 + 9) as u64);
    }

    #[test]
    fn a_new_file_stays_only_if_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let empty = NewFile::new(path.clone());
        assert_eq!(empty.length(), None);
        empty.keep();
        assert!(!path.exists());
        let mut dropped = NewFile::new(path.clone());
        dropped.append(b"vox").unwrap();
        assert_eq!(dropped.length(), Some(3));
        drop(dropped);
        assert!(!path.exists());
        let mut kept = NewFile::new(path.clone());
        kept.append(b"vox").unwrap();
        kept.append(b"els").unwrap();
        kept.keep();
        assert_eq!(fs::read(&path).unwrap(), b"voxels");
        let mut second = NewFile::new(path.clone());
        let taken = second.append(b"other").unwrap_err();
        assert!(taken.to_string().contains("new"), "{taken}");
        drop(second);
        assert_eq!(fs::read(&path).unwrap(), b"voxels");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (file, pipe) = (dir.path().join("file"), dir.path().join("pipe"));
        std::fs::write(&file, b"voxels").unwrap();
        assert_eq!(read_up_to(&file, 3).unwrap(), b"vox");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, kind) in [
            (pipe.as_path(), "a pipe"),
            (&socket, "a socket"),
            (dir.path(), "a folder"),
            (Path::new("/dev/null"), "a device"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let refused = open_regular(path).unwrap_err();
            assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
            let text = refused.to_string();
            assert!(
                text.contains(kind) && text.contains(path.to_str().unwrap()),
                "{text}"
            );
        }
        let missing = open_regular(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing:?}");
    }
}
