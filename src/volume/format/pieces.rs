//! The names of several files that hold the voxels in sequence: a list with one name per line, or a printf pattern with
//! first, last and step numbers.

use super::{excerpt, line};

/// Maximum number of files that a header may name.
const MOST: u64 = 65_536;

/// Maximum width of the number in a pattern, in digits.
const WIDEST: usize = 20;

/// Returns `true` if a file name in a header means several files.
pub(super) fn is_several(name: &str) -> bool {
    name.split_whitespace().next() == Some("LIST") || name.contains('%')
}

/// Returns the names of the files that `name` means. The names of a list are in `lines`, one per line. `slices` is the
/// length of the slowest axis; a pattern without numbers counts from 1 to it.
pub(super) fn names(name: &str, lines: &[u8], slices: u64) -> Result<Vec<String>, String> {
    if name.contains('%') {
        return pattern(name, slices);
    }
    let mut names = Vec::new();
    let mut at = 0;
    while let Some((text, next)) = line(lines, at) {
        at = next;
        let text = String::from_utf8_lossy(text.trim_ascii()).into_owned();
        if text.is_empty() {
            continue;
        }
        if names.len() as u64 == MOST {
            return Err(too_many());
        }
        names.push(text);
    }
    if names.is_empty() {
        return Err("the list of files is empty".to_owned());
    }
    Ok(names)
}

fn too_many() -> String {
    format!("more than {MOST} files hold the voxels")
}

fn pattern(text: &str, slices: u64) -> Result<Vec<String>, String> {
    let bad = |problem: &str| format!("the pattern {:?} {problem}", excerpt(text));
    // The numbers are the words at the end; a name may have spaces.
    let words: Vec<&str> = text.split_whitespace().collect();
    let format_ends = words.iter().rposition(|word| word.contains('%'));
    let format_ends = format_ends.ok_or_else(|| bad("has no %d"))?;
    let format = words[..=format_ends].join(" ");
    let numbers: Option<Vec<i64>> = words[format_ends + 1..]
        .iter()
        .map(|word| word.parse().ok())
        .collect();
    let last = i64::try_from(slices).unwrap_or(i64::MAX);
    // A fourth number is the dimension of each file, which is not needed.
    let (from, to, by) = match numbers.as_deref() {
        Some([]) => (1, last, 1),
        Some(&[from, to]) => (from, to, 1),
        Some(&[from, to, by] | &[from, to, by, _]) => (from, to, by),
        _ => return Err(bad("needs whole numbers after it: first, last and step")),
    };
    let span = to.checked_sub(from).and_then(|span| span.checked_div(by));
    let Some(steps) = span.and_then(|steps| u64::try_from(steps).ok()) else {
        return Err(bad(
            "has first, last and step numbers that never reach the end",
        ));
    };
    if steps >= MOST {
        return Err(too_many());
    }
    let (before, zeros, width, after) =
        conversion(&format).ok_or_else(|| bad("has no %d, or more than one"))?;
    let mut names = Vec::new();
    let mut n = from;
    for _ in 0..=steps {
        let number = if zeros {
            format!("{n:0width$}")
        } else {
            format!("{n:width$}")
        };
        names.push(format!("{before}{number}{after}"));
        n = n.saturating_add(by);
    }
    Ok(names)
}

/// Splits a format at its only conversion. Returns the text before it, whether it is padded with zeros, its width, and
/// the text after it.
fn conversion(format: &str) -> Option<(String, bool, usize, String)> {
    let (before, rest) = format.split_once('%')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let (digits, rest) = rest.split_at(digits);
    let after = rest.strip_prefix(['d', 'i', 'u'])?;
    if after.contains('%') {
        return None;
    }
    let width = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    (width <= WIDEST).then(|| {
        (
            before.to_owned(),
            digits.starts_with('0'),
            width,
            after.to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_count_like_printf() {
        let of = |text: &str| names(text, b"", 3).unwrap();
        assert_eq!(of("s%03d.raw 8 10 1"), ["s008.raw", "s009.raw", "s010.raw"]);
        assert_eq!(of("s%d.raw 2 7 2"), ["s2.raw", "s4.raw", "s6.raw"]);
        assert_eq!(of("a b/%2i 9 10 1 2"), ["a b/ 9", "a b/10"]);
        assert_eq!(of("%u.raw 3 1 -1"), ["3.raw", "2.raw", "1.raw"]);
        assert_eq!(of("s%d.raw"), ["s1.raw", "s2.raw", "s3.raw"]);
        for (bad, hint) in [
            ("s%d.raw 1 9 0", "never reach the end"),
            ("s%d.raw 9 1 1", "never reach the end"),
            ("s%d.raw 0 9223372036854775807 1", "more than"),
            (
                "s%d.raw -9223372036854775808 9223372036854775807 1",
                "never reach the end",
            ),
            ("s%s.raw 1 2 1", "no %d"),
            ("s%d%d.raw 1 2 1", "more than one"),
            ("s%999999999999d.raw 1 2 1", "no %d"),
            ("s%99d.raw 1 2 1", "no %d"),
            ("s%d.raw 1 x", "whole numbers"),
            ("s%", "no %d"),
        ] {
            let error = names(bad, b"", 3).unwrap_err();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }

    #[test]
    fn a_list_has_a_file_a_line() {
        assert_eq!(
            names("LIST 2", b"a.raw\r\n\n b c.raw \nd", 3).unwrap(),
            ["a.raw", "b c.raw", "d"]
        );
        assert!(names("LIST", b"\n\n", 3).is_err());
        assert!(
            names("LIST", &b"a\n".repeat(70_000), 3)
                .unwrap_err()
                .contains("more than")
        );
        assert!(is_several("LIST") && is_several("LIST 3") && is_several("a%d"));
        assert!(!is_several("LISTENING.raw"));
    }
}
