//! Counter-based random numbers: a fixed function of (seed, epoch, n).
//!
//! The stream is `ChaCha8` (D. J. Bernstein): the key is seed and epoch, little-endian, followed by 16 bytes of domain;
//! the nonce is n; the block counter starts at 0. Numbers below a bound are computed by multiplication with rejection
//! (D. Lemire, "Fast random integer generation in an interval", 2019), which has no bias. Golden values in the tests
//! pin both.

use std::convert::Infallible;

use rand::{Rng, SeedableRng, TryRng};
use rand_chacha::ChaCha8Rng;

/// The random number stream of one draw: a generator that implements `rand`'s [`Rng`](rand::Rng).
///
/// ```
/// use rand::RngExt;
/// use voxpatch::sampler::CounterRng;
///
/// let (seed, epoch, draw) = (7, 0, 41);
/// let angle = CounterRng::new(seed, epoch, draw).random_range(-10.0..10.0);
/// assert_eq!(angle, CounterRng::new(seed, epoch, draw).random_range(-10.0..10.0));
/// ```
#[derive(Clone, Debug)]
pub struct CounterRng(ChaCha8Rng);

impl CounterRng {
    /// Returns the stream of draw `n` of an epoch.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, n: u64) -> Self {
        Self::of_domain(*b"voxpatch draw v1", seed, epoch, n)
    }

    /// Returns the stream of a separate purpose, independent of all others with the same seed.
    pub(crate) fn of_domain(domain: [u8; 16], seed: u64, epoch: u64, n: u64) -> Self {
        let mut key = [0; 32];
        key[16..].copy_from_slice(&domain);
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        let mut numbers = ChaCha8Rng::from_seed(key);
        numbers.set_stream(n);
        Self(numbers)
    }

    /// Returns a uniform 64-bit number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a uniform number in [0, 1), a multiple of 2^-53.
    pub fn fraction(&mut self) -> f64 {
        fraction(self.number())
    }

    /// Returns a uniform number below `bound`.
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        below(&mut self.0, bound)
    }
}

impl TryRng for CounterRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(bytes)
    }
}

/// Returns a uniform number below `bound` from any generator.
///
/// # Panics
///
/// If `bound` is 0.
pub(super) fn below<R: Rng + ?Sized>(numbers: &mut R, bound: u64) -> u64 {
    assert!(bound > 0, "there is no number below 0");
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let wide = u128::from(numbers.next_u64()) * u128::from(bound);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the two halves of the product"
        )]
        let (high, low) = ((wide >> 64) as u64, wide as u64);
        if low >= threshold {
            return high;
        }
    }
}

/// Converts the upper 53 bits of a number to a fraction in [0, 1).
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
pub(super) fn fraction(number: u64) -> f64 {
    (number >> 11) as f64 * 2.0_f64.powi(-53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_one_of_every_release() {
        let mut random = CounterRng::new(7, 3, 11);
        assert_eq!([random.number(), random.number()], GOLDEN);
        assert_eq!(
            [0, 1, 2, 3].map(|n| CounterRng::new(7, 3, n).below(1000)),
            GOLDEN_BELOW
        );
    }
    const GOLDEN: [u64; 2] = [5_173_665_884_552_619_840, 5_711_049_514_045_589_094];
    const GOLDEN_BELOW: [u64; 4] = [68, 689, 534, 664];

    #[test]
    fn seed_epoch_and_number_all_matter() {
        let first = |seed, epoch, n| CounterRng::new(seed, epoch, n).number();
        let all = [
            first(0, 0, 0),
            first(1, 0, 0),
            first(0, 1, 0),
            first(0, 0, 1),
            first(1, 1, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn a_fraction_has_53_bits_and_never_reaches_one() {
        assert_eq!(
            fraction(u64::MAX).to_bits(),
            (1.0 - f64::EPSILON / 2.0).to_bits()
        );
        assert_eq!(fraction(1 << 11).to_bits(), 2.0_f64.powi(-53).to_bits());
        assert_eq!(fraction(0).to_bits(), 0);
    }

    #[test]
    fn a_separate_purpose_has_different_numbers() {
        let mut other = CounterRng::of_domain(*b"voxpatch mix  v1", 7, 3, 11);
        assert_ne!(other.number(), GOLDEN[0]);
    }

    #[test]
    fn a_large_bound_has_no_bias() {
        // With a plain remainder, numbers below 2^62 would be too frequent by half.
        let bound = 3_u64 << 62;
        let low = (0..30_000)
            .filter(|&n| CounterRng::new(5, 0, n).below(bound) < 1 << 62)
            .count();
        assert!(
            (9_600..10_400).contains(&low),
            "{low} of 30000 in the lowest third"
        );
    }
}
