//! Fingerprints: hashes that differ between different contents.

/// The FNV-1a hash (Fowler, Noll, Vo) of the added bytes.
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) const fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    pub(super) fn number(&mut self, n: u64) {
        self.bytes(&n.to_le_bytes());
    }

    pub(super) const fn finish(self) -> u64 {
        self.0
    }
}
