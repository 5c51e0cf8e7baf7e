//! The samples of a scan, and the statistics that their codes follow from.

use super::Scan;
use super::bits::Bits;
use crate::error::Cause;

/// The orders of lengths of runs.
const J: [u32; 32] = [
    0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13,
    14, 15,
];

/// The number of contexts of samples that are not in runs.
const CONTEXTS: usize = 365;

/// Limits of a counter of bias.
const MOST_BIAS: i32 = 127;

/// The statistics of a context.
#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

/// The statistics of the samples that end runs.
#[derive(Clone, Copy)]
struct RunContext {
    a: i32,
    n: i32,
    negative: i32,
}

pub(super) struct Decoder<'a> {
    scan: Scan,
    bits: Bits<'a>,
    contexts: Vec<Context>,
    /// Of runs that end where the sample above is different, and where it is the same.
    runs: [RunContext; 2],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(scan: Scan, encoded: &'a [u8]) -> Self {
        let a = ((scan.range + 32) / 64).max(2);
        Self {
            scan,
            bits: Bits::new(encoded),
            contexts: vec![
                Context {
                    a,
                    b: 0,
                    c: 0,
                    n: 1
                };
                CONTEXTS
            ],
            runs: [RunContext {
                a,
                n: 1,
                negative: 0,
            }; 2],
        }
    }

    /// Returns the bytes that were read.
    pub(super) fn used(&self) -> usize {
        self.bits.used()
    }

    /// Decodes a line of a component.
    pub(super) fn line(
        &mut self,
        line: &mut [i32],
        above: &[i32],
        width: usize,
        run_index: &mut usize,
    ) -> Result<(), Cause> {
        let mut x = 1;
        while x <= width {
            let near = [line[x - 1], above[x], above[x - 1], above[x + 1]];
            let context = self.scan.context(near);
            if context != 0 {
                line[x] = self.sample(context, near)?;
                x += 1;
                continue;
            }
            let count = self.run(width + 1 - x, run_index)?;
            let value = line[x - 1];
            line[x..x + count].fill(value);
            x += count;
            if x <= width {
                let (ra, rb) = (line[x - 1], above[x]);
                line[x] = self.end_of_run(ra, rb, *run_index)?;
                *run_index = run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    /// Decodes a line of pixels whose components are together.
    pub(super) fn line_of_pixels(
        &mut self,
        lines: &mut [Vec<i32>],
        above: &[Vec<i32>],
        width: usize,
        run_index: &mut usize,
    ) -> Result<(), Cause> {
        let mut x = 1;
        let mut contexts = vec![(0, [0; 4]); lines.len()];
        while x <= width {
            for ((context, line), above) in contexts.iter_mut().zip(&*lines).zip(above) {
                let near = [line[x - 1], above[x], above[x - 1], above[x + 1]];
                *context = (self.scan.context(near), near);
            }
            if contexts.iter().any(|(context, _)| *context != 0) {
                for (line, &(context, near)) in lines.iter_mut().zip(&contexts) {
                    line[x] = self.sample(context, near)?;
                }
                x += 1;
                continue;
            }
            let count = self.run(width + 1 - x, run_index)?;
            for line in &mut *lines {
                let value = line[x - 1];
                line[x..x + count].fill(value);
            }
            x += count;
            if x <= width {
                for (line, above) in lines.iter_mut().zip(above) {
                    let (ra, rb) = (line[x - 1], above[x]);
                    let error = self.error_of_run(0, *run_index)?;
                    let sign = if rb < ra { -1 } else { 1 };
                    line[x] = self.scan.reconstructed(rb, sign * error);
                }
                *run_index = run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    /// Decodes a sample that is not in a run.
    fn sample(&mut self, context: i32, [ra, rb, rc, _]: [i32; 4]) -> Result<i32, Cause> {
        let sign = if context < 0 { -1 } else { 1 };
        let Scan {
            near,
            qbpp,
            limit,
            reset,
            maxval,
            ..
        } = self.scan;
        let number = usize::try_from(context.abs())?;
        let own = &mut self.contexts[number];
        let predicted = if rc >= ra.max(rb) {
            ra.min(rb)
        } else if rc <= ra.min(rb) {
            ra.max(rb)
        } else {
            ra + rb - rc
        };
        let predicted = (predicted + sign * own.c).clamp(0, maxval);
        let k = order(own.n, own.a)?;
        let mapped = self.bits.golomb(k, limit, qbpp)?;
        let half = mapped >> 1;
        let error = if near == 0 && k == 0 && 2 * own.b <= -own.n {
            if mapped & 1 == 1 { half } else { -half - 1 }
        } else if mapped & 1 == 0 {
            half
        } else {
            -half - 1
        };
        own.b += error * (2 * near + 1);
        own.a = own.a.saturating_add(error.abs());
        if own.n == reset {
            own.a >>= 1;
            own.b >>= 1;
            own.n >>= 1;
        }
        own.n += 1;
        if own.b <= -own.n {
            own.b = (own.b + own.n).max(1 - own.n);
            own.c = (own.c - 1).max(-MOST_BIAS - 1);
        } else if own.b > 0 {
            own.b = (own.b - own.n).min(0);
            own.c = (own.c + 1).min(MOST_BIAS);
        }
        Ok(self.scan.reconstructed(predicted, sign * error))
    }

    /// Returns the length of a run, at most `most`.
    fn run(&mut self, most: usize, run_index: &mut usize) -> Result<usize, Cause> {
        let mut count = 0;
        while self.bits.take(1)? == 1 {
            let part = 1 << J[*run_index];
            if part <= most - count {
                count += part;
                *run_index = (*run_index + 1).min(J.len() - 1);
            } else {
                count = most;
            }
            if count == most {
                return Ok(most);
            }
        }
        let rest = usize::try_from(self.bits.take(J[*run_index])?)?;
        // The sample that ends the run is in the line, too.
        if rest >= most - count {
            return Err("a run is longer than its line".into());
        }
        Ok(count + rest)
    }

    /// Decodes the sample that ends a run.
    fn end_of_run(&mut self, ra: i32, rb: i32, run_index: usize) -> Result<i32, Cause> {
        let is_same = (ra - rb).abs() <= self.scan.near;
        let error = self.error_of_run(usize::from(is_same), run_index)?;
        let (predicted, sign) = match (is_same, rb < ra) {
            (true, _) => (ra, 1),
            (false, true) => (rb, -1),
            (false, false) => (rb, 1),
        };
        Ok(self.scan.reconstructed(predicted, sign * error))
    }

    /// Decodes the error of the sample that ends a run. `kind` is 1 if the sample above it is that of the run.
    fn error_of_run(&mut self, kind: usize, run_index: usize) -> Result<i32, Cause> {
        let Scan {
            qbpp, limit, reset, ..
        } = self.scan;
        let own = &mut self.runs[kind];
        let kind = i32::try_from(kind)?;
        let k = order(own.n, own.a.saturating_add(kind * (own.n >> 1)))?;
        let mapped = self.bits.golomb(k, limit - J[run_index] - 1, qbpp)?;
        let both = mapped + kind;
        let is_odd = both & 1 == 1;
        let size = (both + 1) >> 1;
        let error = if (k != 0 || 2 * own.negative >= own.n) == is_odd {
            -size
        } else {
            size
        };
        own.negative += i32::from(error < 0);
        own.a = own.a.saturating_add((mapped + 1 - kind) >> 1);
        if own.n == reset {
            own.a >>= 1;
            own.n >>= 1;
            own.negative >>= 1;
        }
        own.n += 1;
        Ok(error)
    }
}

/// Returns the parameter of a Golomb code: the smallest k for which n 2^k is at least a.
fn order(n: i32, a: i32) -> Result<u32, Cause> {
    (0..24)
        .find(|&k| i64::from(n) << k >= i64::from(a))
        .ok_or_else(|| "its errors are too large".into())
}
