//! Decompression of a gzip, zlib or deflate stream, forward only and limited to little more than the promised length.
//!
//! The members of a gzip file follow each other; anything after the last member that is not gzip is ignored. The
//! checksum after the last voxel is verified when that voxel is reached. A truncated or damaged stream is an error that
//! names its file.

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::CrcReader;
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};

use super::super::format::{Encoding, GZIP};

/// Maximum decompressed bytes after the last voxel that are read to reach the checksum. Damage can make a stream a
/// little longer; a much longer one was made on purpose and is not read further.
const MOST_BEHIND: usize = 16 << 20;

/// Buffered compressed bytes, with a look-ahead of two bytes.
pub(super) struct Packed {
    file: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    /// The range of the buffer that is filled and not yet consumed: its start and its end.
    from: usize,
    to: usize,
    /// Bytes read from the file.
    fetched: u64,
}

impl Packed {
    pub(super) fn new(file: Box<dyn Read + Send>) -> Self {
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

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed")
            .field("fetched", &self.fetched)
            .finish_non_exhaustive()
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

/// The state of the decompression.
#[derive(Debug)]
enum Decoder {
    Gzip(GzDecoder<Packed>),
    Zlib(ZlibDecoder<Packed>),
    /// A stream whose checksum is elsewhere.
    Deflate(CrcReader<DeflateDecoder<Packed>>, u32),
    /// The stream has ended or failed, after this many bytes of its file.
    Ended(u64),
}

/// A stream that is being decompressed.
#[derive(Debug)]
pub(super) struct Unpacker {
    decoder: Decoder,
    /// Bytes decompressed so far.
    position: u64,
    /// Bytes that are needed from the stream.
    promised: u64,
}

/// The reason why a stream could not be decompressed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The stream ended after this many decompressed bytes.
    Short(u64),
    /// The stream is damaged, or the file could not be read.
    Io(io::Error),
}

impl Unpacker {
    /// Creates a decoder for up to `promised` bytes of a stream; the first bytes distinguish gzip and zlib.
    pub(super) fn new(mut packed: Packed, promised: u64, encoding: Encoding) -> io::Result<Self> {
        let decoder = if let Encoding::Deflate { checksum } = encoding {
            Decoder::Deflate(CrcReader::new(DeflateDecoder::new(packed)), checksum)
        } else if packed.is_gzip()? {
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

    /// Returns the bytes decompressed so far.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Returns the bytes read from the file so far.
    pub(super) fn fetched(&self) -> u64 {
        match &self.decoder {
            Decoder::Gzip(decoder) => decoder.get_ref().fetched,
            Decoder::Zlib(decoder) => decoder.get_ref().fetched,
            Decoder::Deflate(decoder, _) => decoder.get_ref().get_ref().fetched,
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

    /// Reads on to the checksum of the stream, unless it is too far away.
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

    /// Skips to byte `position`, which must not be behind the current one.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<(), Failure> {
        let mut dropped = [0; 8 << 10];
        while self.position < position {
            let left = usize::try_from(position - self.position).unwrap_or(usize::MAX);
            let count = left.min(dropped.len());
            self.read(&mut dropped[..count])?;
        }
        Ok(())
    }

    /// Reads some of the next bytes; returns 0 at the end.
    fn some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.decoder {
                Decoder::Gzip(decoder) => decoder.read(out)?,
                Decoder::Zlib(decoder) => return decoder.read(out),
                Decoder::Deflate(decoder, checksum) => {
                    let count = decoder.read(out)?;
                    if count == 0 && !out.is_empty() && decoder.crc().sum() != *checksum {
                        let problem = "the checksum of the entry does not match its bytes";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                    }
                    return Ok(count);
                }
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
