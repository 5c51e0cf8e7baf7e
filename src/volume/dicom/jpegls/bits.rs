//! The bits of a scan.

use crate::error::Cause;

/// The bits of a scan. A byte behind one of 255 has 7.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// Bits that were read, the next one first.
    held: u64,
    count: u32,
    is_behind_255: bool,
}

impl<'a> Bits<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            held: 0,
            count: 0,
            is_behind_255: false,
        }
    }

    /// Reads bytes until 56 bits are there, or the scan ends.
    fn fill(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.bytes.get(self.at) else {
                return;
            };
            let bits = if self.is_behind_255 { 7 } else { 8 };
            if self.is_behind_255 && byte >= 0x80 {
                // A marker.
                return;
            }
            self.held |= u64::from(byte) << (64 - bits) >> self.count;
            self.count += bits;
            self.is_behind_255 = byte == 0xff;
            self.at += 1;
        }
    }

    /// Returns the bytes that were read, without the first of a marker.
    pub(super) fn used(&self) -> usize {
        self.at - usize::from(self.is_behind_255)
    }

    pub(super) fn take(&mut self, bits: u32) -> Result<u32, Cause> {
        if bits == 0 {
            return Ok(0);
        }
        if self.count < bits {
            self.fill();
        }
        if self.count < bits {
            return Err("it ends inside its samples".into());
        }
        let value = self.held >> (64 - bits);
        self.held <<= bits;
        self.count -= bits;
        Ok(u32::try_from(value)?)
    }

    /// Decodes a number of a Golomb code of order `k`, whose length is limited.
    pub(super) fn golomb(&mut self, k: u32, limit: u32, qbpp: u32) -> Result<i32, Cause> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros >= limit {
                return Err("a number is too long".into());
            }
        }
        let value = if zeros + qbpp + 1 < limit {
            zeros << k | self.take(k)?
        } else {
            self.take(qbpp)? + 1
        };
        if value > 1 << 20 {
            return Err("an error of a sample is too large".into());
        }
        Ok(i32::try_from(value)?)
    }
}
