//! Renaming complete outputs to their final names, all outputs of a run together.
//!
//! Once all outputs of a run are complete, each of their folders gets a file that lists them all: the inodes of the
//! data that will get the names, and the id of the run. Only then are they renamed, and only when all have their names
//! are the folders removed. If a process is killed in between, the remaining files list the outputs that have their
//! names, so that the next process can do the rest.
//!
//! An output of several parts keeps the id of its run in an extended attribute, where the file system supports it. The
//! id distinguishes a late part of this run from another run.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use serde_json::{Value as Json, json};

use super::super::staged::{self, inode};
use super::leftover::{Places, remove_at_once};
use super::{Partial, RunDescription};
use crate::error::{Error, Result};

#[cfg(test)]
pub(super) use super::steps::step;

/// Does nothing; in tests, it fails at a chosen step.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
pub(super) const fn step(_: &str) -> Result<()> {
    Ok(())
}

/// The name of the file that exists while an output gets its name.
pub(super) const PUBLISHING: &str = "publishing";

/// The extended attribute that holds the id of an output's run.
const ATTRIBUTE: &str = "user.voxpatch.run";

/// Bytes of an id.
const ID: usize = 32;

/// A list of a run's outputs that are about to get their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// The index of the output to which the folder belongs.
    own: usize,
    /// The outputs; at least one.
    outputs: Vec<Entry>,
}

/// An output that is about to get its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The inode of its data folder.
    pub(super) inode: u64,
    /// The id of its run.
    pub(super) run: String,
}

impl Marker {
    /// Reads the marker of a folder, if its output was about to get its name.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(PUBLISHING)).ok()?;
        let found: Json = serde_json::from_slice(&text).ok()?;
        let entry = |found: &Json| {
            Some(Entry {
                inode: found.get("inode")?.as_u64()?,
                run: found.get("run")?.as_str()?.to_owned(),
            })
        };
        let outputs: Option<Vec<Entry>> = found
            .get("outputs")?
            .as_array()?
            .iter()
            .map(entry)
            .collect();
        let (own, outputs) = (found.get("own")?.as_u64()?, outputs?);
        let own = usize::try_from(own)
            .ok()
            .filter(|&own| own < outputs.len())?;
        Some(Self { own, outputs })
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let entries = self.outputs.iter();
        let entries: Vec<Json> = entries
            .map(|entry| json!({"inode": entry.inode, "run": entry.run}))
            .collect();
        let text = json!({"own": self.own, "outputs": entries}).to_string();
        let (path, begun) = (folder.join(PUBLISHING), folder.join("publishing.begun"));
        fs::write(&begun, text).map_err(Error::io("write", &begun))?;
        fs::rename(&begun, &path).map_err(Error::io("write", &path))
    }

    /// Returns the entry of the folder's own output.
    pub(super) fn own(&self) -> &Entry {
        &self.outputs[self.own]
    }
}

impl RunDescription<'_> {
    fn own(&self) -> usize {
        place_of(self.target, self.group)
    }
}

fn place_of(target: &Path, group: &[PathBuf]) -> usize {
    let found = group.iter().position(|other| other == target);
    found.unwrap_or(0)
}

/// Returns `true` if the output has its name and belongs to this run. The evidence is the marker of another output of
/// the run or, with several parts, the attribute of the output itself.
pub(in super::super) fn is_finished(run: &RunDescription<'_>, parts: bool) -> bool {
    let Ok(places) = Places::of(run.target) else {
        return false;
    };
    let found = places.target.symlink_metadata();
    if !found.is_ok_and(|found| found.is_dir()) {
        return false;
    }
    let (own, inode) = (run.own(), inode(&places.target).unwrap_or(0));
    let listed = |folder: &PathBuf| {
        let marker = Marker::read(folder);
        let entry = marker.and_then(|marker| marker.outputs.get(own).cloned());
        entry.is_some_and(|entry| entry.inode == inode && entry.run == run.id)
    };
    let others = run.group.iter().filter(|other| *other != run.target);
    let mut others = others.filter_map(|other| Places::of(other).ok());
    others.any(|other| listed(&other.folder) || listed(&other.done))
        || parts && id_of(&places.target).as_deref() == Some(&*run.id)
}

/// Renames the complete outputs of one run to their final names, and removes the folders in which they were built.
pub(in super::super) fn publish(outputs: &[Partial]) -> Result<()> {
    for output in outputs {
        output.overwrite.check(&output.places.target)?;
    }
    let markers: Vec<Marker> = outputs.iter().map(|own| marker(own, outputs)).collect();
    step("mark")?;
    for (output, marker) in outputs.iter().zip(&markers) {
        // Without the attribute, a late part gets the error that the output exists.
        let _ = setxattr(
            output.data(),
            ATTRIBUTE,
            output.id.as_bytes(),
            XattrFlags::empty(),
        );
        marker.write(&output.places.folder)?;
        step("marked one")?;
    }
    for output in outputs {
        let Places { target, .. } = &output.places;
        staged::publish(&output.data(), target, output.overwrite)?;
        step("named one")?;
    }
    for output in outputs {
        remove_at_once(&output.places)?;
        step("tidied one")?;
    }
    Ok(())
}

/// Creates the marker for the folder of an output.
fn marker(own: &Partial, outputs: &[Partial]) -> Marker {
    let entry = |target: &PathBuf| {
        let growing = outputs.iter().find(|output| same(&output.places, target));
        if let Some(output) = growing {
            return Entry {
                inode: inode(&output.data()).unwrap_or(0),
                run: output.id.clone(),
            };
        }
        finished(target, place_of(target, &own.group), outputs)
    };
    let target = vec![own.places.target.clone()];
    let together = if own.group.is_empty() {
        &target
    } else {
        &own.group
    };
    let place = together.iter().position(|other| same(&own.places, other));
    Marker {
        own: place.unwrap_or(0),
        outputs: together.iter().map(entry).collect(),
    }
}

fn same(places: &Places, target: &Path) -> bool {
    Places::of(target).is_ok_and(|other| other.target == places.target)
}

/// Returns the entry of an output of the run that already has its name.
fn finished(target: &Path, place: usize, outputs: &[Partial]) -> Entry {
    let inode = inode(target).unwrap_or(0);
    let markers = outputs
        .iter()
        .filter_map(|output| Marker::read(&output.places.folder));
    let mut listed = markers.filter_map(|marker| marker.outputs.get(place).cloned());
    listed
        .find(|entry| entry.inode == inode)
        .unwrap_or_else(|| Entry {
            inode,
            run: id_of(target).unwrap_or_default(),
        })
}

/// Returns the run id in the attribute of an output.
fn id_of(output: &Path) -> Option<String> {
    let mut id = [0; ID];
    let length = getxattr(output, ATTRIBUTE, &mut id).ok()?;
    String::from_utf8(id.get(..length)?.to_vec()).ok()
}

/// Returns the id of a run: a hash of everything that its output depends on.
pub(in super::super) fn id(depends: &Json) -> String {
    // FNV-1a, 128 bits.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in depends.to_string().bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}
