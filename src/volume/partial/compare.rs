//! What two runs say of themselves, and in which fields they differ.

use std::path::Path;

use serde_json::Value as Json;

use crate::error::{Difference, Error, Result};

/// The fields that differ.
#[derive(Debug, Default)]
pub(super) struct Differences(Vec<Difference>);

impl Differences {
    /// Compares what was saved with what is here, field by field; `name` is what both are called.
    pub(super) fn compare(&mut self, name: &str, saved: &Json, here: &Json) {
        self.compare_without(name, saved, here, "");
    }

    /// The same, but for one field.
    pub(super) fn compare_without(&mut self, name: &str, saved: &Json, here: &Json, but: &str) {
        let nothing = Json::Null;
        match (saved, here) {
            (Json::Object(a), Json::Object(b)) => {
                let added = b.keys().filter(|key| !a.contains_key(*key));
                for key in a.keys().chain(added).filter(|key| *key != but) {
                    let inner = match name {
                        "" => key.clone(),
                        _ => format!("{name}.{key}"),
                    };
                    let value = |of: &Json| of.get(key).unwrap_or(&nothing).clone();
                    self.compare(&inner, &value(saved), &value(here));
                }
            }
            _ if same(saved, here) => {}
            _ => self.0.push(Difference {
                field: name.trim_start_matches("fingerprint.").to_owned(),
                saved: saved.to_string(),
                here: here.to_string(),
            }),
        }
    }

    /// An error that names every difference, if there are any.
    pub(super) fn check(&mut self, folder: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::RunMismatch {
            path: folder.to_path_buf(),
            differences: std::mem::take(&mut self.0),
        })
    }
}

/// Equal, if not as numbers then as what was saved and read again.
fn same(saved: &Json, here: &Json) -> bool {
    saved == here || {
        let again = serde_json::from_str::<Json>(&here.to_string());
        again.is_ok_and(|again| again == *saved)
    }
}
