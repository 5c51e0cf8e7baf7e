//! Unpacking a gzip or zlib stream, forward only and little further than was promised.
//!
//! The members of a gzip file follow each other; what follows the last that is no gzip is
//! ignored. The checksum behind the last voxel is checked when that voxel is reached, and a
//! stream that ends early or is damaged is an error that names its file.

use std::fs::File;
use std::io::{self, BufRead, Read};

use flate2::bufread::{GzDecoder, ZlibDecoder};

use super::super::format::GZIP;

/// Unpacked bytes behind the last voxel that are gone through to reach the checksum. Damage can
/// make a stream a little longer than it was; one much longer was made so, and is not followed.
const MOST_BEHIND: usize = 16 << 20;

/// Packed bytes, buffered; it can look ahead by two.
#[derive(Debug)]
pub(super) struct Packed {
    file: File,
    buffer: Box<[u8]>,
    /// What of the buffer is filled and not consumed.
    from: usize,
    to: usize,
    /// Bytes read from the file.
    fetched: u64,
}

impl Packed {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            buffer: vec![0; 256 << 10].into(),
            from: 0,
            to: 0,
            fetched: 0,
        }
    }

    /// Returns `true` if a gzip member begins here.
    fn is_gzip(&mut self) -> io::Result<bool> {
        while self.to - self.from < 2 {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            if self.fetch()? == 0 {
                return Ok(false);
            }
        }
        Ok(self.buffer[self.from..].starts_with(&GZIP))
    }

    fn fetch(&mut self) -> io::Result<usize> {
        loop {
            match self.file.read(&mut self.buffer[self.to..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.to += count;
                    self.fetched += count as u64;
                    return Ok(count);
                }
            }
        }
    }
}

impl BufRead for Packed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
            self.fetch()?;
        }
        Ok(&self.buffer[self.from..self.to])
    }

    fn consume(&mut self, count: usize) {
        self.from = (self.from + count).min(self.to);
    }
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// What unpacks.
#[derive(Debug)]
enum Decoder {
    Gzip(GzDecoder<Packed>),
    Zlib(ZlibDecoder<Packed>),
    /// The stream ended, or failed, after so many bytes of its file.
    Ended(u64),
}

/// A stream being unpacked.
#[derive(Debug)]
pub(super) struct Unpacker {
    decoder: Decoder,
    /// Bytes unpacked so far.
    position: u64,
    /// Bytes that are wanted of it.
    promised: u64,
}

/// Why a stream could not be unpacked.
#[derive(Debug)]
pub(super) enum Failure {
    /// It ended after so many unpacked bytes.
    Short(u64),
    /// It is damaged, or the file could not be read.
    Io(io::Error),
}

impl Unpacker {
    /// Unpacks up to `promised` bytes of a stream; which kind it is, its first bytes say.
    pub(super) fn new(mut packed: Packed, promised: u64) -> io::Result<Self> {
        let decoder = if packed.is_gzip()? {
            Decoder::Gzip(GzDecoder::new(packed))
        } else {
            Decoder::Zlib(ZlibDecoder::new(packed))
        };
        Ok(Self {
            decoder,
            position: 0,
            promised,
        })
    }

    /// Bytes unpacked so far.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Bytes read from the file so far.
    pub(super) fn fetched(&self) -> u64 {
        match &self.decoder {
            Decoder::Gzip(decoder) => decoder.get_ref().fetched,
            Decoder::Zlib(decoder) => decoder.get_ref().fetched,
            Decoder::Ended(fetched) => *fetched,
        }
    }

    /// Fills `out` with the next bytes.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < out.len() {
            let count = match self.some(&mut out[filled..]) {
                Ok(0) => return Err(Failure::Short(self.position)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Failure::Short(self.position));
                }
                Err(error) => return Err(Failure::Io(error)),
            };
            filled += count;
            self.position += count as u64;
        }
        if self.position == self.promised && !out.is_empty() {
            self.check_end().map_err(Failure::Io)?;
        }
        Ok(())
    }

    /// Goes on to the checksum of all that was unpacked, unless it is far away.
    fn check_end(&mut self) -> io::Result<()> {
        let mut dropped = [0; 4096];
        let mut left = MOST_BEHIND;
        while left > 0 {
            let count = self.some(&mut dropped)?;
            if count == 0 {
                break;
            }
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    /// Goes on to byte `position`, which is not behind.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<(), Failure> {
        let mut dropped = [0; 8 << 10];
        while self.position < position {
            let left = usize::try_from(position - self.position).unwrap_or(usize::MAX);
            let count = left.min(dropped.len());
            self.read(&mut dropped[..count])?;
        }
        Ok(())
    }

    /// Some of the next bytes, none at the end.
    fn some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.decoder {
                Decoder::Gzip(decoder) => decoder.read(out)?,
                Decoder::Zlib(decoder) => return decoder.read(out),
                Decoder::Ended(_) => return Ok(0),
            };
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            let ended = Decoder::Ended(self.fetched());
            if let Decoder::Gzip(decoder) = std::mem::replace(&mut self.decoder, ended) {
                let mut packed = decoder.into_inner();
                if packed.is_gzip()? {
                    self.decoder = Decoder::Gzip(GzDecoder::new(packed));
                }
            }
        }
    }
}
