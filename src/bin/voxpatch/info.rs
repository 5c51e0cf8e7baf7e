//! `voxpatch info`: what a volume is.

use serde_json::json;
use voxpatch::volume::ChunkShape;

use crate::args;
use crate::report::{self, Report};

/// Opens the volume and tells its layout.
pub(crate) fn run(settings: &args::Info) -> anyhow::Result<()> {
    let options = settings.opening.options(settings.level);
    let volume = settings.chosen.of(&options.open(&settings.path)?)?;
    let layout = volume.layout();
    let decoded = layout.decoded_bytes()?;
    let stored = volume.stored_bytes()?;
    let geometry = layout.geometry;

    let mut told = Report::default();
    told.plain("format", layout.format.to_string());
    told.add("shape", json!(layout.shape), by(&layout.shape));
    told.plain("channels", layout.channels);
    told.plain("dtype", layout.dtype.name());
    for (key, chunk) in [
        ("read_chunk", layout.read_chunk),
        ("write_chunk", layout.write_chunk),
    ] {
        told.add(key, json!(chunk.map(in_space)), chunk_text(chunk));
    }
    let codecs = if layout.codecs.is_empty() {
        "none".to_owned()
    } else {
        layout.codecs.join(", ")
    };
    told.add("codecs", json!(layout.codecs), codecs);
    told.add(
        "spacing",
        json!(geometry.spacing),
        format!("{} mm", by(&geometry.spacing.map(short))),
    );
    told.add("affine", json!(geometry.affine), matrix(&geometry.affine));
    if let Some(rescale) = layout.rescale {
        told.plain("slope", rescale.slope);
        told.plain("intercept", rescale.intercept);
    }
    told.add("stored_bytes", stored, report::bytes(stored));
    let ratio = report::float(decoded) / report::float(stored.max(1));
    let text = format!("{} ({ratio:.2} x stored)", report::bytes(decoded));
    told.add("decoded_bytes", decoded, text);
    told.print(settings.json)
}

/// Lengths with crosses between them.
fn by<T: ToString>(lengths: &[T]) -> String {
    let lengths: Vec<String> = lengths.iter().map(T::to_string).collect();
    lengths.join(" x ")
}

fn in_space([_, z, y, x]: ChunkShape) -> [u64; 3] {
    [z, y, x]
}

fn chunk_text(chunk: Option<ChunkShape>) -> String {
    match chunk {
        None => "any box".to_owned(),
        Some([1, z, y, x]) => by(&[z, y, x]),
        Some([c, z, y, x]) => format!("{} of {c} channels", by(&[z, y, x])),
    }
}

/// A number to six digits, without what f64 adds at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if value != 0.0 && (text == "0" || text == "-0") {
        return format!("{value:e}");
    }
    text.to_owned()
}

/// The rows of the affine that say something, in columns.
fn matrix(affine: &voxpatch::Affine) -> String {
    let cells: Vec<Vec<String>> = affine[..3]
        .iter()
        .map(|row| row.iter().map(|&value| short(value)).collect())
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, text)| format!("{text:>w$}", w = width(column)))
            .collect();
        cells.join("  ")
    };
    let lines: Vec<String> = cells.iter().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_but_not_lost() {
        assert_eq!(short(0.66), "0.66");
        assert_eq!(short(-5.0), "-5");
        assert_eq!(short(0.1 + 0.2), "0.3");
        assert_eq!(short(8e-9), "8e-9");
        assert_eq!(short(0.0), "0");
    }
}
