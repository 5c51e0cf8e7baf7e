//! Notes of finished chunks: small objects next to the output.
//!
//! A note is text: a line of JSON with a checksum of the rest, then a line for each chunk with its index (c, z, y, x) and,
//! unless it is all fill value and has no object, the length, checksum and entity tag of its object.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::super::super::{ChunkShape, OutputPart};

/// The folder of all notes, in the output.
const FOLDER: &str = ".voxpatch.tasks";

/// The end of the name of a note of a part that is not finished.
const BEGUN: &str = ".begun";

/// The finished chunks of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// The chunks (c, z, y, x), with their objects; `None` if a chunk is all fill value.
    pub(super) chunks: BTreeMap<ChunkShape, Option<Stored>>,
}

/// An object that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Its length in bytes.
    pub(super) length: u64,
    /// The CRC-32C of its bytes.
    pub(super) crc: u32,
    /// Its entity tag without quotes, if the server has one.
    pub(super) tag: Option<String>,
}

/// Returns the folder of the notes of a run, in the output.
pub(super) fn folder(run: &str) -> String {
    format!("{FOLDER}/{run}")
}

/// Returns the name of a part's note, in the folder of its run.
pub(super) fn name(part: OutputPart, is_complete: bool) -> String {
    let end = if is_complete { "" } else { BEGUN };
    format!("{}-of-{}{end}", part.index(), part.count())
}

/// Returns the part of a note of this name, and whether the part is finished.
pub(super) fn part_of(name: &str) -> Option<(OutputPart, bool)> {
    let stem = name.strip_suffix(BEGUN);
    let (index, count) = stem.unwrap_or(name).split_once("-of-")?;
    let part = OutputPart::new(index.parse().ok()?, count.parse().ok()?).ok()?;
    Some((part, stem.is_none()))
}

/// Returns `true` if an object of an output, of any run, is a note.
pub(in super::super) fn is_note(name: &str) -> bool {
    let below = name.strip_prefix(FOLDER).and_then(|n| n.strip_prefix('/'));
    let Some((run, name)) = below.and_then(|below| below.split_once('/')) else {
        return false;
    };
    run.bytes().all(|byte| byte.is_ascii_hexdigit()) && part_of(name).is_some()
}

impl Note {
    /// Writes the note of a part of a run.
    pub(super) fn text(&self, run: &str, part: OutputPart) -> Vec<u8> {
        let mut lines = String::new();
        for ([c, z, y, x], stored) in &self.chunks {
            let _ = write!(lines, "{c} {z} {y} {x}");
            if let Some(Stored { length, crc, tag }) = stored {
                let plain = |tag: &&String| !tag.is_empty() && !tag.contains(char::is_whitespace);
                let tag = tag.as_ref().filter(plain).map_or("-", String::as_str);
                let _ = write!(lines, " {length} {crc:08x} {tag}");
            }
            lines.push('\n');
        }
        let head = head(run, part, crc32c::crc32c(lines.as_bytes()));
        format!("{head}\n{lines}").into_bytes()
    }

    /// Reads the note of a part of a run; `None` if it is not one, or damaged.
    pub(super) fn parse(bytes: &[u8], run: &str, part: OutputPart) -> Option<Self> {
        let (found, lines) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
        let found: Json = serde_json::from_str(found).ok()?;
        if found != head(run, part, crc32c::crc32c(lines.as_bytes())) {
            return None;
        }
        let mut note = Self::default();
        for line in lines.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let (index, stored) = words.split_at_checked(4)?;
            let mut chunk = [0; 4];
            for (own, word) in chunk.iter_mut().zip(index) {
                *own = word.parse().ok()?;
            }
            let stored = match stored {
                [] => None,
                [length, crc, tag] => Some(Stored {
                    length: length.parse().ok()?,
                    crc: u32::from_str_radix(crc, 16).ok()?,
                    tag: (*tag != "-").then(|| (*tag).to_owned()),
                }),
                _ => return None,
            };
            note.chunks.insert(chunk, stored);
        }
        Some(note)
    }
}

fn head(run: &str, part: OutputPart, crc: u32) -> Json {
    json!({
        "voxpatch": "finished chunks",
        "run": run,
        "part": part.index(),
        "parts": part.count(),
        "crc32c": format!("{crc:08x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_damage_is_noticed() {
        let stored = |length, crc, tag: Option<&str>| {
            Some(Stored {
                length,
                crc,
                tag: tag.map(str::to_owned),
            })
        };
        let note = Note {
            chunks: BTreeMap::from([
                ([0, 1, 2, 3], None),
                ([0, 1, 2, 4], stored(17, 0xfe, Some("0x8D1-2"))),
                ([1, 0, 0, u64::MAX], stored(u64::MAX, u32::MAX, None)),
            ]),
        };
        let part = OutputPart::new(2, 5).unwrap();
        for note in [&note, &Note::default()] {
            let text = note.text("ab12", part);
            assert_eq!(Note::parse(&text, "ab12", part).as_ref(), Some(note));
            assert_eq!(Note::parse(&text, "ab13", part), None);
            let other = OutputPart::new(2, 6).unwrap();
            assert_eq!(Note::parse(&text, "ab12", other), None);
            for n in 0..text.len() {
                let mut damaged = text.clone();
                damaged[n] ^= 1;
                assert_eq!(Note::parse(&damaged, "ab12", part), None, "byte {n}");
                assert_eq!(Note::parse(&text[..n], "ab12", part), None, "{n} bytes");
            }
        }
        // A tag that has no place in a line is left out, and the object is then read to compare it.
        let odd = Note {
            chunks: BTreeMap::from([([0; 4], stored(1, 2, Some("a b")))]),
        };
        let found = Note::parse(&odd.text("a", part), "a", part).unwrap();
        assert_eq!(found.chunks[&[0; 4]], stored(1, 2, None));
    }

    #[test]
    fn names_of_notes_are_distinguished_from_others() {
        let part = OutputPart::new(3, 12).unwrap();
        for is_complete in [true, false] {
            let name = name(part, is_complete);
            assert_eq!(part_of(&name), Some((part, is_complete)));
            assert!(is_note(&format!("{}/{name}", folder("00ff"))));
        }
        for other in [
            ".voxpatch.tasks",
            ".voxpatch.tasks/0-of-1",
            ".voxpatch.tasks/00/1-of-1",
            ".voxpatch.tasks/00/0-of-1.txt",
            ".voxpatch.tasks/thesis/0-of-1",
            ".voxpatch.tasks/00/0-of-1/more",
            "0/.voxpatch.tasks/00/0-of-1",
            "0/c/0",
        ] {
            assert!(!is_note(other), "{other}");
        }
    }
}
