//! Comparison of the descriptions of two runs, by field.

use std::path::Path;

use serde_json::Value as Json;

use crate::error::{Difference, Error, Result};

/// A list of fields that differ.
#[derive(Debug, Default)]
pub(in super::super) struct Differences(Vec<Difference>);

impl Differences {
    /// Compares a saved value with the current one, field by field; `name` is the name of both.
    pub(in super::super) fn compare(&mut self, name: &str, saved: &Json, here: &Json) {
        self.compare_without(name, saved, here, "");
    }

    /// As [`compare`](Self::compare), without the field `but`.
    pub(in super::super) fn compare_without(
        &mut self,
        name: &str,
        saved: &Json,
        here: &Json,
        but: &str,
    ) {
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

    /// Returns an error that names every difference, if there are any.
    pub(in super::super) fn check(&mut self, folder: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::RunMismatch {
            path: folder.to_path_buf(),
            differences: std::mem::take(&mut self.0),
        })
    }
}

/// Returns `true` if two values are equal, or are equal once the current one is saved and read again.
fn same(saved: &Json, here: &Json) -> bool {
    saved == here || {
        let again = serde_json::from_str::<Json>(&here.to_string());
        again.is_ok_and(|again| again == *saved)
    }
}
