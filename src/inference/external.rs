//! The external files in which an ONNX network stores weights.
//!
//! Only the fields of the format (protobuf) that lead to weights are read.

use std::collections::BTreeSet;

/// A message that may contain weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WeightMessage {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
    /// A key and a value that locate a tensor's values.
    Entry,
}

impl WeightMessage {
    /// Returns the kind of message in field `number`, if it leads to weights.
    const fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Function, 7) | (Self::Graph, 1) => Self::Node,
            (Self::Function, 11) | (Self::Node, 5) => Self::Attribute,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Tensor, 13) => Self::Entry,
            _ => return None,
        })
    }
}

/// Returns the names, relative to the network's folder, of all external files with weights.
///
/// `bytes` is the network's file. Malformed messages are skipped: the runtime refuses such a file.
pub(super) fn locations(bytes: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![(WeightMessage::Model, bytes)];
    while let Some((message, bytes)) = left.pop() {
        if message == WeightMessage::Entry {
            let text = |wanted| {
                let value = fields(bytes).find_map(|(n, value)| (n == wanted).then_some(value));
                value.and_then(|value| std::str::from_utf8(value).ok())
            };
            if text(1) == Some("location")
                && let Some(name) = text(2)
            {
                found.insert(name.to_owned());
            }
            continue;
        }
        let inner = fields(bytes).filter_map(|(n, value)| Some((message.field(n)?, value)));
        left.extend(inner);
    }
    found
}

/// Returns the length-delimited fields of a message: number and bytes.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut bytes)?;
            let length = match key & 7 {
                0 => {
                    varint(&mut bytes)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut bytes)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (value, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            if key & 7 == 2 {
                return Some((key >> 3, value));
            }
        }
    })
}

/// Reads a varint and advances `bytes` past it.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a length-delimited field.
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut length = value.len();
        let mut bytes = vec![number << 3 | 2];
        if number > 15 {
            bytes = vec![(number << 3 | 2) | 0x80, number >> 4];
        }
        while length > 0x7F {
            bytes.push(u8::try_from(length & 0x7F).unwrap() | 0x80);
            length >>= 7;
        }
        bytes.push(u8::try_from(length).unwrap());
        [&bytes[..], value].concat()
    }

    /// Returns a tensor with values in an external file, after a number and inline values.
    fn tensor(name: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            field(
                13,
                &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
            )
        };
        let numbers = [8, 0x80, 1, 0x3D, 1, 2, 3, 4, 0x41, 1, 2, 3, 4, 5, 6, 7, 8];
        [
            &numbers[..],
            &field(9, &[7; 300]),
            &entry("offset", "elsewhere.bin"),
            &entry("location", name),
        ]
        .concat()
    }

    #[test]
    fn weights_are_found_wherever_a_network_may_have_them() {
        let graph = |fields: &[Vec<u8>]| field(7, &fields.concat());
        let node = |fields: &[Vec<u8>]| field(1, &field(5, &fields.concat()));
        let branch = field(5, &tensor("branch.bin"));
        let cases = [
            (
                "weights.bin",
                graph(&[field(2, b"name"), field(5, &tensor("weights.bin"))]),
            ),
            (
                "constant.bin",
                graph(&[node(&[field(5, &tensor("constant.bin"))])]),
            ),
            (
                "several.bin",
                graph(&[node(&[field(10, &tensor("several.bin"))])]),
            ),
            ("branch.bin", graph(&[node(&[field(6, &branch)])])),
            ("branch.bin", graph(&[node(&[field(11, &branch)])])),
            (
                "sparse.bin",
                graph(&[field(15, &field(1, &tensor("sparse.bin")))]),
            ),
            (
                "indices.bin",
                graph(&[node(&[field(22, &field(2, &tensor("indices.bin")))])]),
            ),
            (
                "function.bin",
                field(25, &field(7, &field(5, &field(5, &tensor("function.bin"))))),
            ),
        ];
        let mut all = Vec::new();
        for (name, bytes) in &cases {
            let found = locations(bytes);
            assert_eq!(found.iter().collect::<Vec<_>>(), [name]);
            all.extend(bytes);
        }
        assert_eq!(locations(&all).len(), 7);
        assert!(locations(&graph(&[field(5, &field(9, &[0; 40]))])).is_empty());
        // It returns for any bytes.
        for end in 0..all.len() {
            locations(&all[..end]);
            locations(&all[end..]);
        }
    }
}
