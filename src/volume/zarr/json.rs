//! JSON as Python writes it. The bare words `NaN`, `Infinity` and `-Infinity`, which JSON does not have, are read as
//! strings, Zarr's notation for these numbers.

use std::borrow::Cow;

use serde_json::Value;

/// The bare words; a word that is a prefix of another comes after it.
const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// Parses a document.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let strict = serde_json::from_slice(bytes);
    match (strict, quoted(bytes)) {
        (Ok(document), _) => Ok(document),
        (Err(_), Cow::Owned(quoted)) => serde_json::from_slice(&quoted),
        (Err(error), Cow::Borrowed(_)) => Err(error),
    }
}

/// Returns the document with the bare words quoted; at most twice as long.
fn quoted(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut made: Option<Vec<u8>> = None;
    let (mut at, mut in_string) = (0, false);
    while at < bytes.len() {
        let byte = bytes[at];
        let word = WORDS
            .iter()
            .find(|word| !in_string && bytes[at..].starts_with(word));
        if let Some(word) = word {
            let out = made.get_or_insert_with(|| bytes[..at].to_vec());
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        // The byte after a backslash is always part of the string.
        let length = if in_string && byte == b'\\' { 2 } else { 1 };
        if byte == b'"' {
            in_string = !in_string;
        }
        let end = (at + length).min(bytes.len());
        if let Some(out) = &mut made {
            out.extend_from_slice(&bytes[at..end]);
        }
        at = end;
    }
    made.map_or(Cow::Borrowed(bytes), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bare_words_become_strings_and_strings_stay() {
        for (text, expected) in [
            (r#"{"a": NaN}"#, json!({"a": "NaN"})),
            (
                r"[NaN, Infinity,-Infinity, -1]",
                json!(["NaN", "Infinity", "-Infinity", -1]),
            ),
            (
                r#"{"NaN": "NaN, \" NaN \\", "b": NaN}"#,
                json!({"NaN": "NaN, \" NaN \\", "b": "NaN"}),
            ),
            (r#"{"fill_value":NaN}"#, json!({"fill_value": "NaN"})),
            ("[\"Infinity\"]", json!(["Infinity"])),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn other_invalid_json_is_refused() {
        for text in [
            "",
            "{",
            "NaNNaN",
            "[NaN",
            "{NaN: 1}x",
            "[nan]",
            "[Inf]",
            "[+Infinity]",
            "[--Infinity]",
            "[1NaN]",
            "\"",
            "\"\\",
            "[NaN \"\\",
            "{'a': NaN}",
            "[NaN,]",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000) + "NaN";
        assert!(parse(deep.as_bytes()).is_err(), "no stack overflows");
    }
}
