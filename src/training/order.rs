//! Orders: permutations of `0..n` that are a function of a key, evaluated one place at a time.
//!
//! Short ones are shuffled in a table (R. Durstenfeld, "Algorithm 235: Random permutation",
//! 1964), which makes each of the n! orders equally likely. Long ones are never stored: a balanced
//! Feistel network permutes the numbers below a power of four, and numbers outside `0..n`
//! are sent through it again until they are inside (J. Black and P. Rogaway, "Ciphers with
//! arbitrary finite domains", 2002).

use crate::sampler::CounterRng;

/// The maximum length of an order that is stored as a table.
const MAX_TABLE: u64 = 1 << 12;

/// Rounds of the network.
const ROUNDS: usize = 8;

/// A permutation of `0..n`.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// The identity.
    Identity,
    Table(Vec<u64>),
    Network {
        length: u64,
        half_bits: u32,
        keys: [u64; ROUNDS],
    },
}

impl Order {
    /// Creates a random order of `0..length`.
    pub(super) fn new(length: u64, mut random: CounterRng) -> Self {
        if length <= MAX_TABLE {
            let mut table: Vec<u64> = (0..length).collect();
            for n in (1..length).rev() {
                let other = random.below(n + 1);
                let at = |n: u64| usize::try_from(n).expect("a table is short");
                table.swap(at(n), at(other));
            }
            return Self::Table(table);
        }
        let bits = u64::BITS - (length - 1).leading_zeros();
        Self::Network {
            length,
            half_bits: bits.div_ceil(2),
            keys: std::array::from_fn(|_| random.number()),
        }
    }

    /// Returns the number at place `n`.
    pub(super) fn at(&self, n: u64) -> u64 {
        match self {
            Self::Identity => n,
            Self::Table(table) => table[usize::try_from(n).expect("a table is short")],
            Self::Network {
                length,
                half_bits,
                keys,
            } => {
                let mut number = n;
                loop {
                    number = network(number, *half_bits, keys);
                    if number < *length {
                        return number;
                    }
                }
            }
        }
    }
}

/// Evaluates the network once: a permutation of the numbers of `2 * half_bits` bits.
fn network(number: u64, half_bits: u32, keys: &[u64; ROUNDS]) -> u64 {
    let mask = u64::MAX >> (u64::BITS - half_bits);
    let (mut left, mut right) = (number >> half_bits, number & mask);
    for key in keys {
        (left, right) = (right, left ^ (mixed(right ^ key) & mask));
    }
    (left << half_bits) | right
}

/// The finalizer of `SplitMix64` (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom
/// number generators", 2014).
fn mixed(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_contain_every_number_once() {
        for length in [0, 1, 2, 3, 5, 100, 4096, 4097, 5000, 65_537, 100_000] {
            let order = Order::new(length, CounterRng::new(3, 1, length));
            let mut seen: Vec<u64> = (0..length).map(|n| order.at(n)).collect();
            assert!(length < 50 || seen.iter().enumerate().any(|(n, &m)| n as u64 != m));
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..length));
        }
    }

    #[test]
    fn short_orders_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for n in 0..24_000 {
            let order = Order::new(4, CounterRng::new(8, 0, n));
            *counts
                .entry([0, 1, 2, 3].map(|n| order.at(n)))
                .or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1000 each, standard deviation 31: 4.9 of them are a p of 1e-6.
        assert!(
            counts.values().all(|count| (848..1152).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn long_orders_place_numbers_uniformly() {
        // Of 40 000 draws of where the first number goes, a tenth falls into each tenth.
        let mut tenths = [0_u32; 10];
        for n in 0..40_000 {
            let at = Order::new(1 << 40, CounterRng::new(8, 0, n)).at(0);
            tenths[usize::try_from((at * 10) >> 40).unwrap()] += 1;
        }
        assert!(
            tenths.iter().all(|count| (3_706..4_294).contains(count)),
            "{tenths:?}"
        );
    }

    #[test]
    fn orders_are_the_same_in_every_release() {
        let short = Order::new(10, CounterRng::new(1, 2, 3));
        assert_eq!((0..10).map(|n| short.at(n)).collect::<Vec<_>>(), SHORT);
        let long = Order::new(1_000_000, CounterRng::new(1, 2, 3));
        assert_eq!([0, 1, 999_999].map(|n| long.at(n)), LONG);
    }
    const SHORT: [u64; 10] = [0, 4, 3, 5, 2, 7, 6, 8, 9, 1];
    const LONG: [u64; 3] = [804_813, 113_204, 793_330];
}
