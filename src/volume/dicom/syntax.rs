//! The transfer syntaxes that are read.

use super::elements::Encoding;

/// How the pixel data of a file are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Syntax {
    /// Uncompressed.
    Native {
        /// `true` if samples are big-endian.
        big_endian: bool,
    },
    /// The whole data set is one deflate stream.
    Deflated,
    /// Uncompressed frames in fragments.
    Encapsulated,
    /// Packed runs of bytes.
    Rle,
    /// JPEG baseline or lossless.
    Jpeg,
    /// JPEG-LS, lossless or near-lossless.
    JpegLs,
    /// JPEG 2000.
    Jpeg2000,
}

/// The unique identifiers of transfer syntaxes, after `1.2.840.10008.1.2`.
const KNOWN: [(&str, Syntax); 15] = [
    ("", Syntax::Native { big_endian: false }),
    (".1", Syntax::Native { big_endian: false }),
    (".2", Syntax::Native { big_endian: true }),
    (".1.99", Syntax::Deflated),
    (".1.98", Syntax::Encapsulated),
    (".5", Syntax::Rle),
    (".4.50", Syntax::Jpeg),
    (".4.51", Syntax::Jpeg),
    (".4.57", Syntax::Jpeg),
    (".4.70", Syntax::Jpeg),
    (".4.80", Syntax::JpegLs),
    (".4.81", Syntax::JpegLs),
    (".4.90", Syntax::Jpeg2000),
    (".4.91", Syntax::Jpeg2000),
    (".4.92", Syntax::Jpeg2000),
];

/// Transfer syntaxes that are not read, with their names.
const FOREIGN: [(&str, &str); 6] = [
    (".4.110", "JPEG XL"),
    (".4.111", "JPEG XL"),
    (".4.112", "JPEG XL"),
    (".4.201", "High-Throughput JPEG 2000"),
    (".4.202", "High-Throughput JPEG 2000"),
    (".4.203", "High-Throughput JPEG 2000"),
];

const ROOT: &str = "1.2.840.10008.1.2";

impl Syntax {
    /// Returns the syntax with this unique identifier, and the encoding of its elements.
    pub(super) fn of(uid: &str) -> Result<(Self, Encoding), String> {
        let end = uid.strip_prefix(ROOT);
        let known = end.and_then(|end| KNOWN.iter().find(|(own, _)| *own == end));
        let Some(&(end, syntax)) = known else {
            let name = end.and_then(|end| FOREIGN.iter().find(|(own, _)| *own == end));
            let name = name.map_or(String::new(), |(_, name)| format!(" ({name})"));
            return Err(format!(
                "its transfer syntax {:?}{name} is not read: decompress the files first, as with gdcmconv or dcmconv",
                super::excerpt(uid)
            ));
        };
        let encoding = Encoding {
            explicit: !end.is_empty(),
            big_endian: syntax == Self::Native { big_endian: true },
        };
        Ok((syntax, encoding))
    }

    /// Returns `true` if frames are stored in fragments.
    pub(super) const fn is_encapsulated(self) -> bool {
        !matches!(self, Self::Native { .. } | Self::Deflated)
    }

    /// Returns `true` if the decoder is memory-safe.
    pub(super) const fn is_safe(self) -> bool {
        !matches!(self, Self::Jpeg2000)
    }

    /// Returns the name of the codec; `None` if there is none.
    pub(super) const fn codec(self) -> Option<&'static str> {
        match self {
            Self::Native { .. } | Self::Encapsulated => None,
            Self::Deflated => Some("deflate"),
            Self::Rle => Some("rle"),
            Self::Jpeg => Some("jpeg"),
            Self::JpegLs => Some("jpeg-ls"),
            Self::Jpeg2000 => Some("jpeg2000"),
        }
    }
}
