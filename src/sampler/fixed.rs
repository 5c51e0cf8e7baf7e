//! Patches at given locations, for validation or to inspect training patches.
//!
//! A file has rows `z0,y0,x0,z1,y1,x1`: the first voxel, and one past the last.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use super::draw::Sampler;
use crate::error::{Error, Result};
use crate::files::open_regular;
use crate::region::{Region, Shape};
use crate::volume::{FileKind, Overwrite, StagedFile};

/// A list of patch locations, the same in every epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedLocations {
    regions: Vec<Region>,
}

const HEADER: &str = "z0,y0,x0,z1,y1,x1";
/// The maximum length of a row in bytes.
const LONGEST: u64 = 4096;

/// The file kind of lists of locations.
pub const LOCATIONS: FileKind = FileKind {
    name: "a list of locations",
    recognizes: is_list,
};

/// Returns `true` if the head of a file is that of a list of locations.
fn is_list(head: &[u8]) -> bool {
    // The last line may be cut.
    let whole = head.iter().rposition(|&byte| byte == b'\n');
    let Ok(text) = str::from_utf8(&head[..whole.unwrap_or(head.len())]) else {
        return false;
    };
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let mut lines = lines.map(|(n, line)| (n, line.trim()));
    lines.all(|(n, line)| line.is_empty() || n == 0 && is_header(line) || parse(line).is_ok())
}

impl FixedLocations {
    /// Creates the list from regions, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the list is empty, a region is empty, or regions differ in size.
    pub fn new(regions: Vec<Region>) -> Result<Self> {
        let bad = |value: String, problem: &str| Error::InvalidArgument {
            argument: "location list",
            value,
            problem: problem.to_owned(),
        };
        let Some(first) = regions.first() else {
            return Err(bad("[]".to_owned(), "it needs at least one location"));
        };
        if first.is_empty() {
            return Err(bad(
                format!("[{first}]"),
                "a patch needs at least one voxel",
            ));
        }
        if let Some(other) = regions.iter().find(|region| region.shape != first.shape) {
            return Err(bad(
                format!("[{first}] and [{other}]"),
                "all patches must have the same size",
            ));
        }
        Ok(Self { regions })
    }

    /// Reads rows `z0,y0,x0,z1,y1,x1`, half-open, with or without this header. Empty lines and spaces around numbers
    /// are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidLocation`], with the line, if a row is not six whole numbers, is empty, or has a different size
    /// than the first; as [`new`](Self::new); [`Error::Io`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = open_regular(path)?;
        let mut lines = BufReader::new(file);
        let mut regions: Vec<Region> = Vec::new();
        let mut row = Vec::new();
        for line in 1.. {
            row.clear();
            let mut limited = std::io::Read::take(&mut lines, LONGEST);
            let length = limited.read_until(b'\n', &mut row);
            if length.map_err(Error::io("read", path))? == 0 {
                break;
            }
            let bad = |problem: String| Error::InvalidLocation {
                path: path.to_path_buf(),
                line,
                problem,
            };
            let text = String::from_utf8_lossy(&row);
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.is_empty() || line == 1 && is_header(text) {
                continue;
            }
            let region = parse(text).map_err(bad)?;
            let shape = regions.first().map_or(region.shape, |first| first.shape);
            if region.shape != shape {
                return Err(bad(format!(
                    "a patch of {:?}, but the first has {shape:?}: all must have one size",
                    region.shape
                )));
            }
            regions.push(region);
        }
        Self::new(regions)
    }

    /// Writes the format that [`read`](Self::read) reads, with the header. An existing list is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::NotOverwritable`] if `path` exists and is not a list, [`Error::Io`] if writing fails.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut text = format!("{HEADER}\n");
        for region in &self.regions {
            let ([z0, y0, x0], [z1, y1, x1]) = (region.start, region.end());
            // Writing to a string does not fail.
            let _ = writeln!(text, "{z0},{y0},{x0},{z1},{y1},{x1}");
        }
        let staged = StagedFile::new(path, Overwrite::File(LOCATIONS))?;
        let mut file = staged.file();
        file.write_all(text.as_bytes())
            .map_err(Error::io("write", path))?;
        staged.finish()
    }

    /// Returns the locations, in order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
}

fn is_header(text: &str) -> bool {
    let names = text.split(',').map(|name| name.trim().to_lowercase());
    names.eq(HEADER.split(',').map(str::to_owned))
}

fn parse(text: &str) -> Result<Region, String> {
    let numbers: Option<Vec<i64>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    let Some(&[z0, y0, x0, z1, y1, x1]) = numbers.as_deref() else {
        let start: String = text.chars().take(80).collect();
        return Err(format!("{start:?} is not {HEADER}, six whole numbers"));
    };
    let (start, end) = ([z0, y0, x0], [z1, y1, x1]);
    let mut shape = [0; 3];
    for a in 0..3 {
        shape[a] = end[a]
            .checked_sub(start[a])
            .and_then(|length| u64::try_from(length).ok())
            .filter(|&length| length > 0)
            .ok_or_else(|| format!("{text}: an end must be after its start"))?;
    }
    Ok(Region::new(start, shape))
}

impl Sampler for FixedLocations {
    fn patch(&self) -> Shape {
        self.regions[0].shape
    }

    fn draw_count(&self) -> Option<u64> {
        Some(self.regions.len() as u64)
    }

    fn draw(&self, _epoch: u64, n: u64) -> Result<Region> {
        let region = usize::try_from(n).ok().and_then(|n| self.regions.get(n));
        region.copied().ok_or_else(|| Error::IndexOutOfRange {
            what: "draw",
            index: n,
            count: self.regions.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::draws;

    fn read(text: &str) -> Result<FixedLocations> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        std::fs::write(&path, text).unwrap();
        FixedLocations::read(&path)
    }

    #[test]
    fn a_list_survives_a_round_trip_through_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        let far = (1 << 31) + 5;
        let regions = vec![
            Region::new([-3, 0, far], [8, 9, 10]),
            Region::new([4, 5, 6], [8, 9, 10]),
        ];
        let fixed = FixedLocations::new(regions.clone()).unwrap();
        fixed.write(&path).unwrap();
        fixed.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("z0,y0,x0,z1,y1,x1\n-3,0,2147483653,5,9,2147483663\n"));
        let read = FixedLocations::read(&path).unwrap();
        assert_eq!((read.regions(), read.patch()), (&regions[..], [8, 9, 10]));
        let all: Result<Vec<_>> = draws(&read, 4, 0..u64::MAX).collect();
        assert_eq!(all.unwrap(), regions, "the list ends where it ends");
        assert!(read.draw(0, 2).is_err());
    }

    #[test]
    fn the_header_spaces_and_line_ends_do_not_matter() {
        let expected = FixedLocations::new(vec![Region::new([1, 2, 3], [2, 2, 2])]).unwrap();
        for text in [
            "1,2,3,3,4,5",
            "z0,y0,x0,z1,y1,x1\n1,2,3,3,4,5\n",
            "\u{feff}Z0, Y0, X0, Z1, Y1, X1\r\n 1, 2, 3, 3, 4, 5\r\n\r\n",
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_invalid_row_is_reported_with_its_line() {
        for (row, what) in [
            ("1,2,3,4,5", "six whole numbers"),
            ("1,2,3,4,5,6,7", "six whole numbers"),
            ("1,2,3,4.5,5,6", "six whole numbers"),
            ("z0,y0,x0,z1,y1,x1", "six whole numbers"),
            ("1,2,3,4,2,6", "after its start"),
            ("1,2,3,4,1,6", "after its start"),
            ("-9223372036854775808,0,0,9223372036854775807,1,1", "after"),
            ("0,0,0,2,2,3", "one size"),
            (&"1".repeat(5000), "six whole numbers"),
        ] {
            let error = read(&format!("0,0,0,2,2,2\n\n{row}\n")).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("line 3") && text.contains(what), "{text}");
        }
        assert!(read("z0,y0,x0,z1,y1,x1\n").is_err(), "no location at all");
    }
}
