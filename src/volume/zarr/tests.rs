//! What the arrays of other software, of ours and of villains decode to.

mod damage;
mod foreign;
mod golden;
mod reads;
mod written;

use std::path::{Path, PathBuf};

use super::*;
use crate::volume::{CreateOptions, Volume};

/// The folder of real scans, if this machine has it.
fn shared(path: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("skipped: there is no {}", found.display());
    None
}

fn open(path: &Path) -> Result<ZarrVolume> {
    ZarrVolume::open(path, &OpenOptions::default())
}

/// An error and all that caused it, in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
