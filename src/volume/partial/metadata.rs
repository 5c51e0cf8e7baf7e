//! The metadata of an output under construction, written by the run that started it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value as Json;

use super::super::staged::parent;
use super::RunDescription;
use super::compare::Differences;
use super::files::make_parents;
use crate::error::{Error, Result};

/// The top-level documents of an output, one per format version.
const TOP: [&str; 2] = ["zarr.json", ".zgroup"];

/// Writes the metadata, or checks that existing metadata match this run's.
pub(super) fn write_metadata(run: &RunDescription<'_>, folder: &Path) -> Result<()> {
    let data = folder.join("data");
    let mut differences = Differences::default();
    let mut missing = Vec::new();
    let parsed = |text: &[u8]| serde_json::from_slice(text).unwrap_or(Json::Null);
    for (key, text) in &run.files {
        let path = data.join(key);
        match fs::read(&path) {
            Ok(found) => differences.compare(key, &parsed(&found), &parsed(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push((path, text)),
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
    }
    for top in TOP {
        let ours = run.files.iter().any(|(key, _)| key == top);
        if !ours && let Ok(found) = fs::read(data.join(top)) {
            differences.compare(top, &parsed(&found), &Json::Null);
        }
    }
    differences.check(folder)?;
    for (path, text) in missing {
        make_parents(&path, run.durability)?;
        let begun = folder.join("metadata.begun");
        let mut file = File::create(&begun).map_err(Error::io("write", &begun))?;
        file.write_all(text).map_err(Error::io("write", &begun))?;
        run.durability.sync(&file, &begun)?;
        fs::rename(&begun, &path).map_err(Error::io("write", &path))?;
        run.durability.sync_folder(parent(&path))?;
    }
    Ok(())
}
