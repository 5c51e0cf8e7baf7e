//! Decoding of frames to voxels.

use super::super::blocks::BlockDecoder;
use super::super::blocks::codecs::{self, Picture, mismatch, separate};
use super::super::decoders::caught;
use super::elements::joined;
use super::header::PixelForm;
use super::jpegls;
use super::syntax::Syntax;
use crate::dtype::DType;
use crate::error::Cause;

/// Decodes the frames of a series.
#[derive(Debug)]
pub(super) struct FrameDecoder {
    /// The different forms of frames.
    pub(super) forms: Vec<PixelForm>,
    pub(super) frames: Vec<FrameCode>,
    /// Slope and intercept of each frame, to apply where they differ: the voxels are then f32.
    pub(super) rescales: Option<Vec<[f64; 2]>>,
}

/// What the decoder needs to know about a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameCode {
    /// The number of its form.
    pub(super) form: u16,
    /// For a deflated data set, the first byte of the frame in it.
    pub(super) inflated: u64,
}

impl PixelForm {
    fn picture(&self) -> Picture {
        Picture {
            rows: usize::from(self.rows),
            columns: usize::from(self.columns),
            samples: usize::from(self.samples),
            bytes: usize::from(self.bits_allocated / 8),
        }
    }

    /// Returns the type of the voxels.
    pub(super) fn dtype(&self) -> DType {
        match (self.bits_allocated, self.signed, self.float) {
            (64, ..) => DType::F64,
            (_, _, true) => DType::F32,
            (8, false, _) => DType::U8,
            (8, true, _) => DType::I8,
            (16, false, _) => DType::U16,
            (16, true, _) => DType::I16,
            (_, false, _) => DType::U32,
            (_, true, _) => DType::I32,
        }
    }

    /// Decodes a frame to samples in native byte order, the samples of each pixel together unless `planar`.
    fn samples(&self, encoded: &[u8], inflated: u64) -> Result<(Vec<u8>, bool), Cause> {
        let picture = self.picture();
        let promised = picture.length().ok_or("it is larger than memory")?;
        let size = picture.bytes;
        let exact = |mut bytes: Vec<u8>| {
            if bytes.len() < promised {
                return Err(format!(
                    "it has {} bytes, {promised} are needed",
                    bytes.len()
                ));
            }
            bytes.truncate(promised);
            Ok(bytes)
        };
        Ok(match self.syntax {
            Syntax::Native { big_endian } => {
                let mut bytes = exact(encoded.to_vec())?;
                to_native(&mut bytes, size, big_endian);
                (bytes, self.planar)
            }
            Syntax::Encapsulated => {
                let mut bytes = exact(joined(encoded)?)?;
                to_native(&mut bytes, size, false);
                (bytes, self.planar)
            }
            Syntax::Deflated => {
                let mut bytes = codecs::deflate_part(encoded, inflated, promised)?;
                to_native(&mut bytes, size, false);
                (bytes, self.planar)
            }
            Syntax::Rle => (rle(&joined(encoded)?, picture)?, true),
            Syntax::Jpeg => {
                let converts = self.photometric != "RGB";
                (codecs::jpeg(&joined(encoded)?, picture, converts)?, false)
            }
            Syntax::JpegLs => (jpegls::decode(&joined(encoded)?, picture)?, true),
            Syntax::Jpeg2000 => (jpeg2000(&joined(encoded)?, picture)?, true),
        })
    }

    /// Keeps the stored bits of each sample, and extends the sign of signed ones.
    fn clean(&self, samples: &mut [u8]) {
        let (bits, low) = (self.bits_stored, self.high_bit + 1 - self.bits_stored);
        let is_whole = bits == self.bits_allocated;
        // Compressed samples have no unused bits below.
        let low = if self.syntax.is_encapsulated()
            && self.syntax != Syntax::Rle
            && self.syntax != Syntax::Encapsulated
        {
            0
        } else {
            low
        };
        if self.float || (is_whole && low == 0) {
            return;
        }
        let value = |raw: u32| {
            let raw = raw >> low;
            let unused = 32 - u32::from(bits);
            if self.signed {
                (((raw << unused).cast_signed()) >> unused).cast_unsigned()
            } else {
                (raw << unused) >> unused
            }
        };
        match self.bits_allocated {
            8 => {
                for sample in samples {
                    *sample = value(u32::from(*sample)).to_le_bytes()[0];
                }
            }
            16 => {
                for sample in samples.as_chunks_mut::<2>().0 {
                    let [a, b, ..] = value(u32::from(u16::from_ne_bytes(*sample))).to_le_bytes();
                    *sample = u16::from_le_bytes([a, b]).to_ne_bytes();
                }
            }
            _ => {
                for sample in samples.as_chunks_mut::<4>().0 {
                    *sample = value(u32::from_ne_bytes(*sample)).to_ne_bytes();
                }
            }
        }
    }
}

/// Brings samples of `size` bytes to native byte order.
fn to_native(bytes: &mut [u8], size: usize, big_endian: bool) {
    if size > 1 && big_endian != cfg!(target_endian = "big") {
        for sample in bytes.chunks_exact_mut(size) {
            sample.reverse();
        }
    }
}

/// Converts planes of full-range YCbCr to RGB, as the standard defines it.
fn to_rgb(planes: &mut [u8]) {
    let plane = planes.len() / 3;
    let (luma, rest) = planes.split_at_mut(plane);
    let (blue, red) = rest.split_at_mut(plane);
    for ((y, cb), cr) in luma.iter_mut().zip(blue).zip(red) {
        let (l, b, r) = (
            f32::from(*y),
            f32::from(*cb) - 128.0,
            f32::from(*cr) - 128.0,
        );
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0 to 255"
        )]
        let byte = |value: f32| value.round().clamp(0.0, 255.0) as u8;
        *y = byte(l + 1.402 * r);
        *cb = byte(l - 0.344_136 * b - 0.714_136 * r);
        *cr = byte(l + 1.772 * b);
    }
}

/// Decodes segments of packed runs, one for each byte of each sample, the most significant first. The result has a plane
/// for each sample.
fn rle(encoded: &[u8], picture: Picture) -> Result<Vec<u8>, Cause> {
    let header = encoded.get(..64).ok_or("its list of segments is cut off")?;
    let word = |n: usize| {
        u32::from_le_bytes([
            header[4 * n],
            header[4 * n + 1],
            header[4 * n + 2],
            header[4 * n + 3],
        ]) as usize
    };
    let segments = picture.samples * picture.bytes;
    if word(0) != segments || segments > 15 {
        return Err(format!("it has {} segments, {segments} are needed", word(0)).into());
    }
    let plane = picture.rows * picture.columns;
    let promised = picture.length().ok_or("it is larger than memory")?;
    let mut out = vec![0; promised];
    for segment in 0..segments {
        let start = word(segment + 1);
        let end = if segment + 1 == segments {
            encoded.len()
        } else {
            word(segment + 2)
        };
        let packed = encoded
            .get(start..end)
            .ok_or("a segment is not inside it")?;
        let bytes = codecs::packbits(packed, plane)?;
        let (sample, byte) = (segment / picture.bytes, segment % picture.bytes);
        let place = if cfg!(target_endian = "big") {
            byte
        } else {
            picture.bytes - 1 - byte
        };
        let samples = out[sample * plane * picture.bytes..].chunks_exact_mut(picture.bytes);
        for (sample, &byte) in samples.zip(&bytes) {
            sample[place] = byte;
        }
    }
    Ok(out)
}

/// Decodes JPEG 2000 to a plane for each component.
fn jpeg2000(encoded: &[u8], picture: Picture) -> Result<Vec<u8>, Cause> {
    check_codestream(encoded, picture)?;
    let image = caught("the JPEG 2000 decoder", || {
        jpeg2k::Image::from_bytes(encoded)
    })??;
    let components = image.components();
    if components.len() != picture.samples {
        return Err(format!(
            "it has {} components, {} are needed",
            components.len(),
            picture.samples
        )
        .into());
    }
    let plane = picture.rows * picture.columns;
    let mut out = Vec::with_capacity(picture.length().unwrap_or(0));
    for component in components {
        if component.data().len() != plane {
            return Err(format!(
                "a component has {} samples, {plane} are needed",
                component.data().len()
            )
            .into());
        }
        for &value in component.data() {
            let bytes = value.to_le_bytes();
            match picture.bytes {
                1 => out.push(bytes[0]),
                2 => out.extend(u16::from_le_bytes([bytes[0], bytes[1]]).to_ne_bytes()),
                _ => out.extend(value.to_ne_bytes()),
            }
        }
    }
    Ok(out)
}

/// Checks that the size in the header of a JPEG 2000 codestream is that of the picture, before anything is allocated.
fn check_codestream(encoded: &[u8], picture: Picture) -> Result<(), Cause> {
    // A codestream may be in a JP2 file.
    let start = encoded
        .windows(4)
        .position(|bytes| bytes == [0xff, 0x4f, 0xff, 0x51])
        .ok_or("it is not a JPEG 2000 codestream")?;
    let size = &encoded[start + 4..];
    let size = size.get(..38).ok_or("its size is cut off")?;
    let word = |at: usize| u32::from_be_bytes([size[at], size[at + 1], size[at + 2], size[at + 3]]);
    let [width, height, left, top, tile_width, tile_height] = [4, 8, 12, 16, 20, 24].map(word);
    let components = usize::from(u16::from_be_bytes([size[36], size[37]]));
    let mut bits = 0;
    for n in 0..components.min(4) {
        let [depth, dx, dy] = *encoded
            .get(start + 42 + 3 * n..)
            .and_then(|rest| rest.first_chunk::<3>())
            .ok_or("its size is cut off")?;
        if (dx, dy) != (1, 1) {
            return Err("its components have fewer samples than pixels".into());
        }
        bits = bits.max(usize::from(depth & 0x7f) + 1);
    }
    let found = Picture {
        rows: height.saturating_sub(top) as usize,
        columns: width.saturating_sub(left) as usize,
        samples: components,
        bytes: bits.div_ceil(8),
    };
    let fits = Picture {
        bytes: found.bytes.max(picture.bytes),
        ..found
    };
    if fits != picture || tile_width == 0 || tile_height == 0 {
        return Err(mismatch(found, picture).into());
    }
    // Small tiles would cost much more memory than the picture.
    let tiles = u64::from(width.div_ceil(tile_width)) * u64::from(height.div_ceil(tile_height));
    if tiles > 1 << 14 {
        return Err(format!("it has {tiles} tiles").into());
    }
    Ok(())
}

impl BlockDecoder for FrameDecoder {
    fn most_encoded(&self, index: usize) -> u64 {
        let form = &self.forms[usize::from(self.frames[index].form)];
        let promised = form.picture().length().unwrap_or(0) as u64;
        match form.syntax {
            Syntax::Native { .. } => promised,
            // All frames of the file are in one stream.
            Syntax::Deflated => u64::MAX,
            // Some writers leave free space behind the last fragment.
            _ => promised.saturating_mul(2).saturating_add(16 << 20),
        }
    }

    fn decode(&self, index: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause> {
        let code = self.frames[index];
        let form = &self.forms[usize::from(code.form)];
        let (mut samples, planar) = form.samples(&encoded, code.inflated)?;
        drop(encoded);
        form.clean(&mut samples);
        let picture = form.picture();
        if picture.samples > 1 && !planar {
            let mut planes = vec![0; samples.len()];
            separate(&samples, picture.samples, picture.bytes, &mut planes);
            samples = planes;
        }
        // Decoders of JPEG and JPEG 2000 convert colors themselves.
        let is_converted = matches!(form.syntax, Syntax::Jpeg | Syntax::Jpeg2000);
        if picture.samples == 3 && form.photometric.starts_with("YBR") && !is_converted {
            to_rgb(&mut samples);
        }
        let Some(rescales) = &self.rescales else {
            if samples.len() != out.len() {
                return Err(format!(
                    "it decodes to {} bytes, {} are needed",
                    samples.len(),
                    out.len()
                )
                .into());
            }
            out.copy_from_slice(&samples);
            return Ok(());
        };
        let [slope, intercept] = rescales[index];
        let stored = form.dtype();
        let values = stored.size();
        for (to, from) in out
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .zip(samples.chunks_exact(values))
        {
            let real = slope * number(stored, from) + intercept;
            #[expect(clippy::cast_possible_truncation, reason = "the nearest f32")]
            let real = real as f32;
            *to = real.to_ne_bytes();
        }
        Ok(())
    }
}

/// Returns a sample of at most 32 bits as a number.
fn number(dtype: DType, bytes: &[u8]) -> f64 {
    let wide = |bytes: &[u8]| bytes.first_chunk::<4>().copied().unwrap_or_default();
    let short = |bytes: &[u8]| bytes.first_chunk::<2>().copied().unwrap_or_default();
    match dtype {
        DType::I8 => f64::from(bytes[0].cast_signed()),
        DType::U16 => f64::from(u16::from_ne_bytes(short(bytes))),
        DType::I16 => f64::from(i16::from_ne_bytes(short(bytes))),
        DType::U32 => f64::from(u32::from_ne_bytes(wide(bytes))),
        DType::I32 => f64::from(i32::from_ne_bytes(wide(bytes))),
        DType::F32 => f64::from(f32::from_ne_bytes(wide(bytes))),
        DType::F64 => f64::from_ne_bytes(bytes.first_chunk::<8>().copied().unwrap_or_default()),
        _ => f64::from(bytes[0]),
    }
}
