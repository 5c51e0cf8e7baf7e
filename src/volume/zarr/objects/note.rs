//! Notes of finished chunks: small objects next to the output.
//!
//! A note is text: a line of JSON with a checksum of the rest, then a line for each chunk with its level, its index (c, z, y,
//! x) and, unless it is all fill value and has no object, the length, checksum and entity tag of its object.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::super::super::{ChunkShape, OutputPart};

/// The folder of all notes, in the output.
const FOLDER: &str = ".voxpatch.tasks";

/// The end of the name of a note of a part that is not finished.
const BEGUN: &str = ".begun";

/// The name of the note of coarser levels.
const COARSER: &str = "coarser";

/// The subject of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoteName {
    /// All chunks of a part.
    Complete(OutputPart),
    /// Chunks of a part that is not finished.
    Begun(OutputPart),
    /// Chunks of coarser levels that no part has made.
    Coarser,
}

/// A chunk: its level and its index (c, z, y, x).
pub(super) type NotedChunk = (usize, ChunkShape);

/// Finished chunks, with their objects; `None` if a chunk is all fill value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) chunks: BTreeMap<NotedChunk, Option<Stored>>,
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

impl NoteName {
    /// Returns the name of the object, in the folder of its run.
    pub(super) fn object(self) -> String {
        let of_part = |part: OutputPart| format!("{}-of-{}", part.index(), part.count());
        match self {
            Self::Complete(part) => of_part(part),
            Self::Begun(part) => of_part(part) + BEGUN,
            Self::Coarser => COARSER.to_owned(),
        }
    }

    /// Returns the subject of a note from the name of its object.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if name == COARSER {
            return Some(Self::Coarser);
        }
        let stem = name.strip_suffix(BEGUN);
        let (index, count) = stem.unwrap_or(name).split_once("-of-")?;
        let part = OutputPart::new(index.parse().ok()?, count.parse().ok()?).ok()?;
        Some(match stem {
            None => Self::Complete(part),
            Some(_) => Self::Begun(part),
        })
    }
}

/// Returns `true` if an object of an output, of any run, is a note.
pub(in super::super) fn is_note(name: &str) -> bool {
    let below = name.strip_prefix(FOLDER).and_then(|n| n.strip_prefix('/'));
    let Some((run, name)) = below.and_then(|below| below.split_once('/')) else {
        return false;
    };
    run.bytes().all(|byte| byte.is_ascii_hexdigit()) && NoteName::parse(name).is_some()
}

impl Note {
    /// Writes the note of a run.
    pub(super) fn text(&self, run: &str, name: NoteName) -> Vec<u8> {
        let mut lines = String::new();
        for ((level, [c, z, y, x]), stored) in &self.chunks {
            let _ = write!(lines, "{level} {c} {z} {y} {x}");
            if let Some(Stored { length, crc, tag }) = stored {
                let plain = |tag: &&String| !tag.is_empty() && !tag.contains(char::is_whitespace);
                let tag = tag.as_ref().filter(plain).map_or("-", String::as_str);
                let _ = write!(lines, " {length} {crc:08x} {tag}");
            }
            lines.push('\n');
        }
        let head = head(run, name, crc32c::crc32c(lines.as_bytes()));
        format!("{head}\n{lines}").into_bytes()
    }

    /// Reads the note of a run; `None` if it is not one, or damaged.
    pub(super) fn parse(bytes: &[u8], run: &str, name: NoteName) -> Option<Self> {
        let (found, lines) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
        let found: Json = serde_json::from_str(found).ok()?;
        if found != head(run, name, crc32c::crc32c(lines.as_bytes())) {
            return None;
        }
        let mut note = Self::default();
        for line in lines.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let (&level, words) = words.split_first()?;
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
            note.chunks.insert((level.parse().ok()?, chunk), stored);
        }
        Some(note)
    }
}

fn head(run: &str, name: NoteName, crc: u32) -> Json {
    json!({
        "voxpatch": "finished chunks",
        "run": run,
        "note": name.object(),
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
                ((0, [0, 1, 2, 3]), None),
                ((0, [0, 1, 2, 4]), stored(17, 0xfe, Some("0x8D1-2"))),
                ((0, [1, 0, 0, u64::MAX]), stored(u64::MAX, u32::MAX, None)),
                ((7, [0, 1, 2, 3]), stored(1, 2, Some("a"))),
            ]),
        };
        let part = |index, count| OutputPart::new(index, count).unwrap();
        let names = [
            NoteName::Complete(part(2, 5)),
            NoteName::Begun(part(2, 5)),
            NoteName::Complete(part(2, 6)),
            NoteName::Coarser,
        ];
        for (note, name) in [&note, &Note::default()].into_iter().zip(names) {
            let text = note.text("ab12", name);
            assert_eq!(Note::parse(&text, "ab12", name).as_ref(), Some(note));
            assert_eq!(Note::parse(&text, "ab13", name), None);
            for other in names.into_iter().filter(|other| *other != name) {
                assert_eq!(Note::parse(&text, "ab12", other), None);
            }
            for n in 0..text.len() {
                let mut damaged = text.clone();
                damaged[n] ^= 1;
                assert_eq!(Note::parse(&damaged, "ab12", name), None, "byte {n}");
                assert_eq!(Note::parse(&text[..n], "ab12", name), None, "{n} bytes");
            }
        }
        // A tag that has no place in a line is left out, and the object is then read to compare it.
        let odd = Note {
            chunks: BTreeMap::from([((0, [0; 4]), stored(1, 2, Some("a b")))]),
        };
        let text = odd.text("a", NoteName::Coarser);
        let found = Note::parse(&text, "a", NoteName::Coarser).unwrap();
        assert_eq!(found.chunks[&(0, [0; 4])], stored(1, 2, None));
    }

    #[test]
    fn names_of_notes_are_distinguished_from_others() {
        let part = OutputPart::new(3, 12).unwrap();
        for name in [
            NoteName::Complete(part),
            NoteName::Begun(part),
            NoteName::Coarser,
        ] {
            assert_eq!(NoteName::parse(&name.object()), Some(name));
            assert!(is_note(&format!("{}/{}", folder("00ff"), name.object())));
        }
        for other in [
            ".voxpatch.tasks",
            ".voxpatch.tasks/0-of-1",
            ".voxpatch.tasks/00/1-of-1",
            ".voxpatch.tasks/00/0-of-1.txt",
            ".voxpatch.tasks/thesis/0-of-1",
            ".voxpatch.tasks/00/0-of-1/more",
            ".voxpatch.tasks/00/coarser.begun",
            "0/.voxpatch.tasks/00/0-of-1",
            "0/c/0",
        ] {
            assert!(!is_note(other), "{other}");
        }
    }
}
