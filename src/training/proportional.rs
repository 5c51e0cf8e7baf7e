//! Patch counts in proportion to weights.

use crate::error::{Error, Result};

/// Splits `total` in proportion to `weights`, by largest remainder.
pub(super) fn proportional_counts(weights: &[f64], total: u64) -> Result<Vec<u64>> {
    let bad = |value: String, problem: &str| {
        Err(Error::InvalidArgument {
            argument: "weight",
            value,
            problem: problem.to_owned(),
        })
    };
    for (subject, weight) in weights.iter().enumerate() {
        if !(weight.is_finite() && *weight >= 0.0) {
            let value = format!("of subject {subject}: {weight}");
            return bad(value, "weights must be finite and not negative");
        }
    }
    let largest = weights.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        let value = format!("for each of {} subjects", weights.len());
        return bad(value, "at least one must be above 0");
    }
    if i64::try_from(total).is_err() {
        return Err(too_many());
    }
    // Integers up to 2^62: no rounding from here on.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 2^62"
    )]
    let parts: Vec<u128> = weights
        .iter()
        .map(|weight| (weight / largest * 2.0_f64.powi(62)).round() as u128)
        .collect();
    let sum: u128 = parts.iter().sum();
    let mut counts = Vec::with_capacity(parts.len());
    let mut remainders = Vec::new();
    let mut left = total;
    for (subject, part) in parts.into_iter().enumerate() {
        let share = part * u128::from(total);
        let count = u64::try_from(share / sum).expect("no more than all");
        left -= count;
        counts.push(count);
        remainders.push((share % sum, subject));
    }
    remainders.sort_by_key(|&(remainder, _)| std::cmp::Reverse(remainder));
    // Fewer patches are left than there are remainders above 0.
    for (_, subject) in remainders {
        if left == 0 {
            break;
        }
        counts[subject] += 1;
        left -= 1;
    }
    Ok(counts)
}

/// Returns the error of an epoch of too many patches.
pub(super) fn too_many() -> Error {
    Error::InvalidArgument {
        argument: "epoch of",
        value: "more than 2^63 patches".to_owned(),
        problem: "take fewer of each subject".to_owned(),
    }
}
