//! Parsers of arguments: sizes, ranges, bytes, voxel types.

use std::time::Duration;

use voxpatch::volume::{IndexRange, OutputPart};
use voxpatch::{DType, Shape};

/// Parses `64` or `64,128,128`.
pub(crate) fn size(text: &str) -> Result<Shape, String> {
    let numbers: Result<Vec<u64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[n]) => Ok([n; 3]),
        Ok(&[z, y, x]) => Ok([z, y, x]),
        _ => Err("give one number, or three as z,y,x".to_owned()),
    }
}

/// Parses `1.5` or `3,0.75,0.75`, in mm.
pub(crate) fn spacing(text: &str) -> Result<[f64; 3], String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    let three = match numbers.as_deref() {
        Ok(&[n]) => [n; 3],
        Ok(&[z, y, x]) => [z, y, x],
        _ => return Err("give one number of mm, or three as z,y,x".to_owned()),
    };
    let is_length = |mm: &f64| mm.is_finite() && *mm > 0.0;
    if three.iter().all(is_length) {
        Ok(three)
    } else {
        Err("give mm above 0".to_owned())
    }
}

/// The size of a shard, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shard {
    None,
    Size(Shape),
}

/// Parses a size or `none`.
pub(crate) fn shard(text: &str) -> Result<Shard, String> {
    if text == "none" {
        return Ok(Shard::None);
    }
    size(text)
        .map(Shard::Size)
        .map_err(|problem| format!("{problem}, or `none`"))
}

/// Parses two numbers, the lower first.
pub(crate) fn window(text: &str) -> Result<(f64, f64), String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[low, high]) if low.is_finite() && high.is_finite() && low < high => Ok((low, high)),
        _ => Err("give two numbers, the lower first, as -1000,400".to_owned()),
    }
}

/// Parses `256MiB`, `1GiB`, `300MB`, or plain bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let factor = match unit.as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => 0,
    };
    let number = digits.trim().parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|_| factor > 0)
        .ok_or_else(|| "give bytes, as 256MiB, 1GiB, 300MB or 1000000".to_owned())
}

/// Parses seconds, such as `30` or `0.5`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.trim().parse().ok();
    let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "give seconds, as 30 or 0.5".to_owned())
}

/// Parses `float32` or `f32`, as numpy or Rust spells it.
pub(crate) fn dtype(text: &str) -> Result<DType, String> {
    DType::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = DType::ALL.into_iter().map(DType::name).collect();
        format!("known are {}", names.join(", "))
    })
}

/// Parses `0/4`.
pub(crate) fn part(word: &str) -> Result<OutputPart, String> {
    let (index, count) = word.split_once('/').ok_or("a part is I/N, as in 0/4")?;
    let number = |word: &str| {
        word.parse::<u32>()
            .map_err(|_| format!("{word:?} is not a number"))
    };
    OutputPart::new(number(index)?, number(count)?).map_err(|error| error.to_string())
}

/// Parses `3` or `2:5`, of which either end may be left out.
pub(crate) fn range(text: &str) -> Result<IndexRange, String> {
    let number = |text: &str| -> Result<u64, String> {
        let wrong = |_| format!("{text:?}: give a number from 0 on, or FIRST:END, as 2 or 2:5");
        text.trim().parse().map_err(wrong)
    };
    let Some((start, end)) = text.split_once(':') else {
        return Ok(IndexRange::one(number(text)?));
    };
    let end = match end.trim() {
        "" => None,
        end => Some(number(end)?),
    };
    let start = match start.trim() {
        "" => 0,
        start => number(start)?,
    };
    if end.is_some_and(|end| end <= start) {
        return Err(format!(
            "{text:?} ends before it begins: the end is exclusive"
        ));
    }
    Ok(IndexRange { start, end })
}

/// Parses `0:10,5:20,:`.
pub(crate) fn ranges(text: &str) -> Result<[IndexRange; 3], String> {
    let ranges: Vec<IndexRange> = text.split(',').map(range).collect::<Result<_, _>>()?;
    ranges
        .try_into()
        .map_err(|_| "give a range for each of z,y,x, as 0:10,5:20,:".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_number_or_three() {
        assert_eq!(size("64"), Ok([64; 3]));
        assert_eq!(size("1, 2,3"), Ok([1, 2, 3]));
        for wrong in ["", "1,2", "1,2,3,4", "-1", "a", "1.5", "1,,2"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_have_binary_and_decimal_units() {
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(bytes("300MB"), Ok(300_000_000));
        assert_eq!(bytes("1000000"), Ok(1_000_000));
        for wrong in ["", "MiB", "1XB", "-1", "99999999999GiB", "1.5GiB", "1M5"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seconds_are_a_number_that_is_not_negative() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "nan", "inf", "1e30", "5 s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_are_a_number_or_two_of_which_either_may_be_left_out() {
        let of = |start, end| Ok(IndexRange { start, end });
        assert_eq!(range("3"), of(3, Some(4)));
        assert_eq!(range("2:5"), of(2, Some(5)));
        assert_eq!(range(" 2 : "), of(2, None));
        assert_eq!(range(":5"), of(0, Some(5)));
        assert_eq!(range(":"), of(0, None));
        for wrong in ["", "a", "-1", "1.5", "5:2", "3:3", "1:2:3", "1:b"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ranges("1:2,:,3:").map(|found| found[2]), of(3, None));
        for wrong in ["1:2", "1:2,3:4", "1:2,3:4,5:6,7:8", "1:2,,3:4"] {
            assert!(ranges(wrong).is_err(), "{wrong}");
        }
    }
}
