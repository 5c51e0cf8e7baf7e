//! The results of a command: a table for people, a JSON object for programs.

use std::fmt;
use std::io::{self, Write};

use anyhow::Context;
use clap::{ArgAction, Args};
use serde_json::{Map, Value as Json, json};
use voxpatch::meter::anonymous_bytes;
use voxpatch::volume::DiskSpace;
use voxpatch::{DType, Layout, Shape};

/// How results are printed.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Printing {
    /// Print one JSON object, with all figures.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print also speeds, memory and counts of chunks.
    #[arg(short, long)]
    verbose: bool,
    /// Print help (-h: a summary).
    #[arg(short, long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Named results, in the order in which they are printed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    json: Map<String, Json>,
}

/// A line of the table.
#[derive(Debug)]
struct Row {
    key: String,
    text: String,
    /// `true` to print it only if the user wants details.
    is_detail: bool,
}

impl Report {
    /// Adds a result: its key and value for programs, its text for people.
    pub(crate) fn add(&mut self, key: &str, value: impl Into<Json>, text: impl Into<String>) {
        self.rows.push(Row {
            key: key.replace('_', " "),
            text: text.into(),
            is_detail: false,
        });
        self.json.insert(key.to_owned(), value.into());
    }

    /// Adds a number or a word that reads the same for both.
    pub(crate) fn plain(&mut self, key: &str, value: impl Into<Json> + ToString) {
        let text = value.to_string();
        self.add(key, value, text);
    }

    /// Adds a number of bytes.
    pub(crate) fn bytes(&mut self, key: &str, count: u64) {
        self.add(key, count, bytes(count));
    }

    /// Adds a number of seconds, with so many decimals for people.
    pub(crate) fn seconds(&mut self, key: &str, seconds: f64, decimals: usize) {
        self.add(key, rounded(seconds, 6), format!("{seconds:.decimals$}"));
    }

    /// Adds the shape, channels and voxel type of a volume.
    pub(crate) fn layout(&mut self, layout: &Layout) {
        let shape = layout.shape.map(|n| n.to_string()).join(" x ");
        self.add("shape", json!(layout.shape), shape);
        self.plain("channels", layout.channels);
        self.plain("dtype", layout.dtype.name());
    }

    /// Adds results that people see only with `--verbose`.
    pub(crate) fn details(&mut self, add: impl FnOnce(&mut Self)) {
        let first = self.rows.len();
        add(self);
        for row in &mut self.rows[first..] {
            row.is_detail = true;
        }
    }

    /// Adds a result that only the JSON object has.
    pub(crate) fn only_json(&mut self, key: &str, value: impl Into<Json>) {
        self.json.insert(key.to_owned(), value.into());
    }

    /// The object.
    pub(crate) fn into_json(self) -> Json {
        Json::Object(self.json)
    }

    /// The object as text.
    pub(crate) fn object(&self) -> String {
        format!("{:#}\n", Json::Object(self.json.clone()))
    }

    /// Writes the table or the object to standard output.
    pub(crate) fn print(self, printing: Printing) -> anyhow::Result<()> {
        if printing.json {
            return print(&self.object());
        }
        let rows = self.rows.iter();
        let rows: Vec<&Row> = rows
            .filter(|row| printing.verbose || !row.is_detail)
            .collect();
        let width = rows.iter().map(|row| row.key.len()).max();
        let width = width.unwrap_or(0) + 2;
        let mut table = String::new();
        for Row { key, text, .. } in rows {
            let indented = text.replace('\n', &format!("\n{:width$}", ""));
            table.push_str(format!("{key:width$}{indented}").trim_end());
            table.push('\n');
        }
        print(&table)
    }
}

/// Standard output was closed by its reader: the command ends successfully.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes to standard output; [`Closed`] if nobody reads it any more.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Says, in a line each, of which outputs the disk may be too small; of those that cannot even be begun
/// says the error.
pub(crate) fn warn_of_space(outputs: &[DiskSpace]) {
    let doubtful = outputs
        .iter()
        .filter(|space| space.may_run_out() && space.check().is_ok());
    for space in doubtful {
        // If standard error is closed, writing fails with the same error later.
        let _ = writeln!(
            io::stderr(),
            "voxpatch: {} may not fit: it takes up to {} if it does not compress, and {} are free there",
            space.output.display(),
            bytes(space.max_bytes),
            bytes(space.free_bytes.unwrap_or(0)),
        );
    }
}

/// Adds the bytes of outputs, and those that are free where the first one goes.
pub(crate) fn add_disk(report: &mut Report, outputs: &[u64], space: &[DiskSpace]) {
    for &output in outputs {
        let text = format!("{} before compression", bytes(output));
        report.add("output_bytes", output, text);
    }
    if let Some(free) = space.first().and_then(|space| space.free_bytes) {
        report.add("free_bytes", free, bytes(free));
    }
}

/// Adds what the process takes in all: what it has now, and what its work is going to hold.
pub(crate) fn add_process(report: &mut Report, held: u64) {
    let process = anonymous_bytes().map(|now| now.saturating_add(held));
    let text = process.map_or_else(|| "unknown".to_owned(), bytes);
    report.add("process_bytes", process, format!("{text} in all, at most"));
}

/// Adds the rates of `patches` patches of so many bytes.
pub(crate) fn add_rates(report: &mut Report, patches: u64, patch_bytes: u64, seconds: f64) {
    let rate = float(patches) / seconds.max(1e-9);
    let megabytes = rate * float(patch_bytes) / 1e6;
    for (key, rate) in [
        ("patches_per_second", rate),
        ("megabytes_per_second", megabytes),
    ] {
        report.add(key, rounded(rate, 1), format!("{rate:.1}"));
    }
}

/// Returns the bytes of a patch.
pub(crate) fn patch_bytes(channels: u64, patch: Shape, dtype: DType) -> voxpatch::Result<u64> {
    Layout::new(patch, channels, dtype).decoded_bytes()
}

/// Bytes for people, if they are known.
pub(crate) fn known_bytes(count: Option<u64>) -> String {
    count.map_or_else(|| "unknown".to_owned(), bytes)
}

/// Bytes for people, with the exact number where it is short.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = None;
    let mut value = float(count);
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = Some(name);
    }
    match unit {
        Some(unit) if value < 10.0 => format!("{value:.2} {unit}"),
        Some(unit) => format!("{value:.1} {unit}"),
        None => format!("{count} bytes"),
    }
}

/// A count as a float, for rates and shares that need no exactness.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) const fn float(count: u64) -> f64 {
    count as f64
}

/// A number with no more than `digits` decimals, for programs.
pub(crate) fn rounded(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well_at_every_size() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(300 << 20), "300.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
