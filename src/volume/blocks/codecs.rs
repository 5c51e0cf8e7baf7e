//! Decoders of blocks that several formats share. Each decodes to exactly the promised number of bytes.

use jpeg_decoder::{ColorTransform, PixelFormat};

use super::super::decoders;
use crate::error::Cause;

/// Checks that a decoder delivered what the header promised. A longer result was cut, so its length is not known.
fn exactly(decoded: Vec<u8>, promised: usize) -> Result<Vec<u8>, Cause> {
    match decoded.len() {
        length if length == promised => Ok(decoded),
        length if length < promised => {
            Err(format!("it decodes to {length} bytes, {promised} are needed").into())
        }
        _ => Err(format!("it decodes to more than the {promised} bytes that are needed").into()),
    }
}

/// Decodes zlib.
#[cfg(feature = "tiff")]
pub(in super::super) fn zlib(encoded: &[u8], promised: usize) -> Result<Vec<u8>, Cause> {
    exactly(decoders::zlib(encoded, promised)?, promised)
}

/// Decodes Zstandard.
#[cfg(feature = "tiff")]
pub(in super::super) fn zstd(encoded: &[u8], promised: usize) -> Result<Vec<u8>, Cause> {
    exactly(decoders::zstd(encoded, promised)?, promised)
}

/// Decodes a raw deflate stream, from `skip` decoded bytes on, up to `promised` bytes.
#[cfg(feature = "dicom")]
pub(in super::super) fn deflate_part(
    encoded: &[u8],
    skip: u64,
    promised: usize,
) -> Result<Vec<u8>, Cause> {
    use std::io::Read;
    let mut stream = flate2::bufread::DeflateDecoder::new(encoded);
    std::io::copy(&mut stream.by_ref().take(skip), &mut std::io::sink())?;
    let mut part = decoders::bounded(stream.take(promised as u64), promised)?;
    part.truncate(promised);
    exactly(part, promised)
}

/// Decodes packed runs of bytes: `PackBits` of TIFF, and the segments of DICOM RLE. Bytes after the promised are padding.
pub(in super::super) fn packbits(encoded: &[u8], promised: usize) -> Result<Vec<u8>, Cause> {
    let mut out = Vec::with_capacity(promised);
    let mut rest = encoded;
    while out.len() < promised {
        let Some((&code, after)) = rest.split_first() else {
            break;
        };
        rest = after;
        let room = promised - out.len();
        match code {
            0..=127 => {
                let count = usize::from(code) + 1;
                let (run, after) = rest.split_at(count.min(rest.len()));
                out.extend_from_slice(&run[..run.len().min(room)]);
                rest = after;
            }
            128 => {}
            129.. => {
                let count = 257 - usize::from(code);
                let Some((&byte, after)) = rest.split_first() else {
                    break;
                };
                rest = after;
                out.resize(out.len() + count.min(room), byte);
            }
        }
    }
    exactly(out, promised)
}

/// The size and kind of samples of a picture, as the header around it promises them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Picture {
    /// Rows.
    pub(in super::super) rows: usize,
    /// Columns.
    pub(in super::super) columns: usize,
    /// Samples of each pixel.
    pub(in super::super) samples: usize,
    /// Bytes of a sample in memory.
    pub(in super::super) bytes: usize,
}

impl Picture {
    /// Returns the decoded bytes of the picture.
    pub(in super::super) fn length(&self) -> Option<usize> {
        self.rows
            .checked_mul(self.columns)?
            .checked_mul(self.samples)?
            .checked_mul(self.bytes)
    }
}

/// Decodes JPEG: baseline, progressive or lossless, up to 8 bits, or 16 if lossless. The samples of each pixel are
/// together, in native byte order. `converts` is `true` if three components are YCbCr, to be converted to RGB.
pub(in super::super) fn jpeg(
    encoded: &[u8],
    picture: Picture,
    converts: bool,
) -> Result<Vec<u8>, Cause> {
    let promised = picture.length().ok_or("it is larger than memory")?;
    let mut decoder = jpeg_decoder::Decoder::new(encoded);
    decoder.set_max_decoding_buffer_size(promised);
    if picture.samples == 3 {
        decoder.set_color_transform(if converts {
            ColorTransform::YCbCr
        } else {
            ColorTransform::RGB
        });
    }
    decoder.read_info()?;
    let info = decoder.info().ok_or("it has no frame")?;
    let (samples, bytes) = match info.pixel_format {
        PixelFormat::L8 => (1, 1),
        PixelFormat::L16 => (1, 2),
        PixelFormat::RGB24 => (3, 1),
        PixelFormat::CMYK32 => (4, 1),
    };
    let found = Picture {
        rows: usize::from(info.height),
        columns: usize::from(info.width),
        samples,
        bytes,
    };
    let fits = Picture {
        bytes: found.bytes.max(picture.bytes),
        ..found
    };
    if fits != picture {
        return Err(mismatch(found, picture).into());
    }
    let decoded = decoder.decode()?;
    if found.bytes == picture.bytes {
        return exactly(decoded, promised);
    }
    // Up to 8 bits in samples of 16.
    let wide = decoded
        .iter()
        .flat_map(|&byte| u16::from(byte).to_ne_bytes());
    exactly(wide.collect(), promised)
}

/// Returns the message for a picture that is not what the header around it promises.
pub(in super::super) fn mismatch(found: Picture, promised: Picture) -> String {
    let text = |picture: Picture| {
        format!(
            "{} x {} of {} x {} bits",
            picture.rows,
            picture.columns,
            picture.samples,
            8 * picture.bytes
        )
    };
    format!(
        "the picture is {}, the header says {}",
        text(found),
        text(promised)
    )
}

/// Copies pixels whose samples are together to one plane for each sample. `size` is the bytes of a sample.
pub(in super::super) fn separate(pixels: &[u8], samples: usize, size: usize, out: &mut [u8]) {
    let plane = pixels.len() / samples.max(1);
    for (n, pixel) in pixels.chunks_exact(samples * size).enumerate() {
        for (sample, bytes) in pixel.chunks_exact(size).enumerate() {
            let at = sample * plane + n * size;
            out[at..at + size].copy_from_slice(bytes);
        }
    }
}
