//! Writing Zarr arrays in an OME-Zarr group. Each write chunk is encoded and written once.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::Value as Json;

use super::super::create::CreateOptions;
use super::super::mmap::start_writing;
use super::super::overwrite::FolderKind;
use super::super::staged::StagedFolder;
use super::super::{Layout, VolumeMut};
use super::arrays::{Arrays, ChunkPlace};
use super::document;
use super::encode::UnencodedChunk;
use super::objects::{ObjectsOutput, store_of};
use crate::error::{Error, Result};
use crate::files::NewFile;
use crate::region::Region;

/// A Zarr image under construction.
#[derive(Debug)]
pub(in super::super) struct ZarrWriter {
    arrays: Arrays,
    target: Target,
}

/// The place of an image under construction.
#[derive(Debug)]
enum Target {
    Folder(StagedFolder),
    Objects(Box<ObjectsOutput>),
}

impl ZarrWriter {
    /// Returns the layout of the finest level of an image with `layout`'s shape and type.
    pub(in super::super) fn describe(layout: &Layout, options: &CreateOptions) -> Result<Layout> {
        Ok(document::plan(layout, options)?.swap_remove(0).layout)
    }

    /// Creates the image that `layout` and `options` describe.
    pub(in super::super) fn create(layout: &Layout, options: &CreateOptions) -> Result<Self> {
        let (arrays, planned) = Arrays::planned(layout, options)?;
        let files = document::files(&planned, &name(&layout.path), options);
        let files = files.into_iter().map(|(key, file)| (key, text(&file)));
        let target = if let Some(remote) = store_of(&layout.path, options)? {
            let files = files.collect();
            let output = ObjectsOutput::create(remote, arrays.layout(), options.overwrite, files)?;
            Target::Objects(Box::new(output))
        } else {
            let overwrite = FolderKind::ZARR.overwrite(options.overwrite);
            let staged = StagedFolder::new(&layout.path, overwrite)?;
            for (key, file) in files {
                let path = staged.path().join(key);
                make_parent(&path)?;
                fs::write(&path, file).map_err(Error::io("write", &path))?;
            }
            Target::Folder(staged)
        };
        Ok(Self { arrays, target })
    }

    fn keep(&self, place: &ChunkPlace, chunk: &UnencodedChunk<'_>) -> Result<bool> {
        let staged = match &self.target {
            Target::Folder(staged) => staged,
            Target::Objects(output) => {
                let put = |bytes| output.put(&place.key, bytes);
                return chunk.put(|bytes| bytes.map_or(Ok(()), put));
            }
        };
        let path = staged.path().join(&place.key);
        let mut file = NewFile::new(path.clone());
        let is_stored = chunk.encode_to(&mut |bytes| {
            if file.file().is_none() {
                make_parent(&path)?;
            }
            file.append(bytes)
        })?;
        // So that flushing the folder takes less time.
        file.file().map(start_writing);
        file.keep();
        Ok(is_stored)
    }
}

impl VolumeMut for ZarrWriter {
    fn layout(&self) -> &Layout {
        self.arrays.layout()
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let keep = |place: &ChunkPlace, chunk: &UnencodedChunk<'_>| self.keep(place, chunk);
        self.arrays.write(channels, region, voxels, &keep)
    }

    fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        self.arrays.pyramid_buffer_bytes(order)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let keep = |place: &ChunkPlace, chunk: &UnencodedChunk<'_>| self.keep(place, chunk);
        self.arrays.finish(&keep)?;
        match self.target {
            Target::Folder(staged) => staged.finish(),
            Target::Objects(output) => output.finish(),
        }
    }
}

/// Returns the name of the image in this folder.
pub(super) fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Serializes a document as it is written.
pub(super) fn text(document: &Json) -> Vec<u8> {
    serde_json::to_vec_pretty(document).expect("a document of ours has string keys")
}

fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(Error::io("create", folder))
}
