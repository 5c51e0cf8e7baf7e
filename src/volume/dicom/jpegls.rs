//! JPEG-LS (ITU-T T.87), lossless and near-lossless, of one component or of several that are interleaved in any way.
//!
//! Each sample is predicted from its neighbors to the left and above; the error has a Golomb code whose parameter follows
//! from the errors before it in the same context. Even neighborhoods are runs. The names of variables are those of the
//! standard.

mod bits;
mod decoder;

use self::decoder::Decoder;
use super::super::blocks::codecs::{Picture, mismatch};
use crate::error::Cause;

/// Decodes a picture to a plane for each component, in native byte order.
pub(super) fn decode(encoded: &[u8], picture: Picture) -> Result<Vec<u8>, Cause> {
    let promised = picture.length().ok_or("it is larger than memory")?;
    let mut segments = Segments {
        bytes: encoded,
        at: 2,
    };
    if !encoded.starts_with(&[0xff, 0xd8]) {
        return Err("it does not begin like JPEG-LS".into());
    }
    let (mut frame, mut preset) = (None, [0; 5]);
    let mut planes: Vec<Vec<u16>> = Vec::new();
    while planes.len() < picture.samples {
        let (marker, body) = segments.next()?;
        match marker {
            // Start of frame.
            0xf7 => {
                let found = Frame::of(body)?;
                let fits = Picture {
                    bytes: found.picture.bytes.max(picture.bytes),
                    ..found.picture
                };
                if fits != picture {
                    return Err(mismatch(found.picture, picture).into());
                }
                frame = Some(found);
            }
            // Preset parameters.
            0xf8 => preset = parameters(body)?,
            // Start of scan.
            0xda => {
                let frame = frame.as_ref().ok_or("its samples come before its size")?;
                let (scan, components) = Scan::of(frame, preset, body)?;
                if planes.len() + components > picture.samples {
                    return Err("its scans have more components than the picture".into());
                }
                let (decoded, used) = scan.decode(segments.rest(), picture, components)?;
                segments.at += used;
                planes.extend(decoded);
            }
            0xdd if body.iter().any(|&byte| byte != 0) => {
                return Err("restart intervals are not read".into());
            }
            0xe8 if body.starts_with(b"mrfx") && body.get(4) != Some(&0) => {
                return Err("its colors are transformed".into());
            }
            0xd9 => return Err("it has fewer components than the picture".into()),
            _ => {}
        }
    }
    let mut out = Vec::with_capacity(promised);
    for plane in &planes {
        match picture.bytes {
            1 => out.extend(plane.iter().map(|sample| sample.to_le_bytes()[0])),
            2 => out.extend(plane.iter().flat_map(|sample| sample.to_ne_bytes())),
            _ => out.extend(
                plane
                    .iter()
                    .flat_map(|&sample| u32::from(sample).to_ne_bytes()),
            ),
        }
    }
    Ok(out)
}

/// The marker segments of a picture.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Segments<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Returns the next marker and the bytes of its segment.
    fn next(&mut self) -> Result<(u8, &'a [u8]), Cause> {
        let cut_off = "it is cut off";
        let rest = self.rest();
        let start = rest
            .windows(2)
            .position(|pair| pair[0] == 0xff && pair[1] >= 0x80 && pair[1] != 0xff);
        let start = start.ok_or(cut_off)?;
        let marker = rest[start + 1];
        self.at += start + 2;
        if marker == 0xd9 {
            return Ok((marker, &[]));
        }
        let length = self.rest().first_chunk::<2>().ok_or(cut_off)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let body = self.rest().get(2..length).ok_or(cut_off)?;
        self.at += length;
        Ok((marker, body))
    }
}

/// The size of a picture.
struct Frame {
    precision: u32,
    picture: Picture,
}

impl Frame {
    fn of(body: &[u8]) -> Result<Self, Cause> {
        let &[precision, y1, y0, x1, x0, count, ref components @ ..] = body else {
            return Err("its size is cut off".into());
        };
        if !(2..=16).contains(&precision) {
            return Err(format!("samples of {precision} bits are not possible").into());
        }
        let all = components.chunks_exact(3).take(usize::from(count));
        if all.len() != usize::from(count) || all.clone().any(|component| component[1] != 0x11) {
            return Err("its components have fewer samples than pixels".into());
        }
        Ok(Self {
            precision: u32::from(precision),
            picture: Picture {
                rows: usize::from(u16::from_be_bytes([y1, y0])),
                columns: usize::from(u16::from_be_bytes([x1, x0])),
                samples: usize::from(count),
                bytes: usize::from(precision).div_ceil(8),
            },
        })
    }
}

/// Returns MAXVAL, T1, T2, T3 and RESET, 0 for those that have the usual value.
fn parameters(body: &[u8]) -> Result<[i32; 5], Cause> {
    let Some((&1, rest)) = body.split_first() else {
        return Err("tables and large sizes (LSE) are not read".into());
    };
    let words = rest
        .first_chunk::<10>()
        .ok_or("its parameters are cut off")?;
    Ok(std::array::from_fn(|n| {
        i32::from(u16::from_be_bytes([words[2 * n], words[2 * n + 1]]))
    }))
}

/// The parameters of a scan.
#[derive(Clone, Copy)]
struct Scan {
    near: i32,
    maxval: i32,
    range: i32,
    qbpp: u32,
    limit: u32,
    thresholds: [i32; 3],
    reset: i32,
    /// 0 for a component alone, 1 for lines in turn, 2 for samples in turn.
    interleave: u8,
}

/// The smallest number of bits that hold `count` values.
fn bits_of(count: i32) -> u32 {
    (count - 1).max(0).checked_ilog2().map_or(0, |log| log + 1)
}

impl Scan {
    /// Returns the parameters and the number of components.
    fn of(frame: &Frame, preset: [i32; 5], body: &[u8]) -> Result<(Self, usize), Cause> {
        let cut_off = "the header of a scan is cut off";
        let (&count, rest) = body.split_first().ok_or(cut_off)?;
        let count = usize::from(count);
        let (components, rest) = rest.split_at_checked(2 * count).ok_or(cut_off)?;
        let &[near, interleave, transform, ..] = rest else {
            return Err(cut_off.into());
        };
        if components
            .chunks_exact(2)
            .any(|component| component[1] != 0)
            || transform != 0
        {
            return Err("tables and point transforms are not read".into());
        }
        if count == 0 || interleave > 2 || (interleave == 0 && count > 1) {
            return Err(
                format!("{count} components of interleave {interleave} are not possible").into(),
            );
        }
        let near = i32::from(near);
        let most = (1 << frame.precision) - 1;
        let [maxval, t1, t2, t3, reset] = preset;
        let maxval = if maxval == 0 { most } else { maxval };
        if maxval > most || near > maxval / 2 || maxval < 1 {
            return Err(
                format!("a maximum of {maxval} and an error of {near} are not possible").into(),
            );
        }
        let usual = usual_thresholds(maxval, near);
        let chosen = |own: i32, usual: i32| if own == 0 { usual } else { own };
        let thresholds = [
            chosen(t1, usual[0]),
            chosen(t2, usual[1]),
            chosen(t3, usual[2]),
        ];
        let ascend =
            near < thresholds[0] && thresholds.is_sorted() && thresholds[2] <= maxval.max(near + 1);
        if !ascend || reset == 1 || reset == 2 {
            return Err(format!("thresholds of {thresholds:?} are not possible").into());
        }
        let range = (maxval + 2 * near) / (2 * near + 1) + 1;
        let bpp = bits_of(maxval + 1).max(2);
        let scan = Self {
            near,
            maxval,
            range,
            qbpp: bits_of(range),
            limit: 2 * (bpp + bpp.max(8)),
            thresholds,
            reset: chosen(reset, 64),
            interleave,
        };
        Ok((scan, count))
    }

    /// Decodes the samples of some components. Returns their planes and the bytes that they took.
    fn decode(
        &self,
        encoded: &[u8],
        picture: Picture,
        components: usize,
    ) -> Result<(Vec<Vec<u16>>, usize), Cause> {
        let mut decoder = Decoder::new(*self, encoded);
        let width = picture.columns;
        let plane = picture.rows * width;
        let mut planes = vec![Vec::with_capacity(plane); components];
        // With a sample in front of each line, and one behind it.
        let mut above = vec![vec![0_i32; width + 2]; components];
        let mut lines = above.clone();
        let mut run_index = vec![0; components];
        for _ in 0..picture.rows {
            for (line, above) in lines.iter_mut().zip(&mut above) {
                above[width + 1] = above[width];
                line[0] = above[1];
            }
            if self.interleave == 2 {
                decoder.line_of_pixels(&mut lines, &above, width, &mut run_index[0])?;
            } else {
                for ((line, above), index) in lines.iter_mut().zip(&above).zip(&mut run_index) {
                    decoder.line(line, above, width, index)?;
                }
            }
            for (plane, line) in planes.iter_mut().zip(&lines) {
                let samples = line[1..=width].iter();
                plane.extend(samples.map(|&sample| u16::try_from(sample).unwrap_or(u16::MAX)));
            }
            std::mem::swap(&mut lines, &mut above);
        }
        Ok((planes, decoder.used()))
    }

    /// Returns the region of a gradient, from -4 to 4.
    fn quantized(&self, gradient: i32) -> i32 {
        let size = gradient.abs();
        let [t1, t2, t3] = self.thresholds;
        let region = if size <= self.near {
            0
        } else {
            1 + i32::from(size >= t1) + i32::from(size >= t2) + i32::from(size >= t3)
        };
        region * gradient.signum()
    }

    /// Returns a context with its sign: 0 for an even neighborhood.
    fn context(&self, [ra, rb, rc, rd]: [i32; 4]) -> i32 {
        let [q1, q2, q3] = [rd - rb, rb - rc, rc - ra].map(|gradient| self.quantized(gradient));
        81 * q1 + 9 * q2 + q3
    }

    /// Returns the sample that has an error in quantized steps.
    fn reconstructed(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let mut sample = predicted + error * step;
        if sample < -self.near {
            sample += self.range * step;
        } else if sample > self.maxval + self.near {
            sample -= self.range * step;
        }
        sample.clamp(0, self.maxval)
    }
}

fn usual_thresholds(maxval: i32, near: i32) -> [i32; 3] {
    let clamped = |value: i32, least: i32| {
        if value > maxval || value < least {
            least
        } else {
            value
        }
    };
    let parts = if maxval >= 128 {
        let factor = (maxval.min(4095) + 128) / 256;
        [
            factor + 2 + 3 * near,
            factor * 4 + 3 + 5 * near,
            factor * 17 + 4 + 7 * near,
        ]
    } else {
        let factor = 256 / (maxval + 1);
        [
            (3 / factor + 3 * near).max(2),
            (7 / factor + 5 * near).max(3),
            (21 / factor + 7 * near).max(4),
        ]
    };
    let t1 = clamped(parts[0], near + 1);
    let t2 = clamped(parts[1], t1);
    [t1, t2, clamped(parts[2], t2)]
}
