//! Zarr images that are written over several runs: finished chunks, and coarser levels that are produced at the end.

use std::ops::Range;

use serde_json::json;

use super::super::chunk::check_whole_chunks;
use super::super::create::CreateOptions;
use super::super::options::OpenOptions;
use super::super::overwrite::FolderKind;
use super::super::partial::{self, Partial, Record, RunDescription};
use super::super::pyramid::Level;
use super::super::resume::{OutputProgress, ResumeOptions, RunParts};
use super::super::{Layout, VolumeMut};
use super::ZarrVolume;
use super::arrays::{Arrays, ChunkPlace};
use super::coarser::{Levels, rebuild, rebuilding_threads};
use super::document::{self, PlannedLevel, sizes};
use super::encode::UnencodedChunk;
use super::write::{name, text};
use crate::error::{Error, Result};
use crate::progress::{Progress, silent};
use crate::region::Region;

/// An image, or a part of one, under construction.
#[derive(Debug)]
pub(in super::super) struct ZarrResumable {
    arrays: Arrays,
    levels: Vec<Level>,
    options: CreateOptions,
    partial: Partial,
    owned: Region,
    /// `true` if this is the only part, or all parts.
    whole: bool,
    /// Threads that produce coarser levels.
    threads: usize,
}

impl ZarrResumable {
    /// Starts or resumes the image. Returns `None` if it is finished and has its final name.
    pub(in super::super) fn open(
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<Option<Self>> {
        let owned = check_owned(layout, resume)?;
        let (arrays, planned) = Arrays::planned(layout, options)?;
        let run = run(layout, options, resume, &planned)?;
        let mut found = Vec::new();
        let opened = Partial::open(&run, resume.part, owned, &mut |record| found.push(record))?;
        let Some(partial) = opened else {
            return Ok(None);
        };
        let resumed = !found.is_empty();
        mark(&arrays, &partial, found);
        let whole = resume.part.count() == 1;
        let mut output = Self {
            arrays,
            levels: sizes(&planned),
            options: options.clone(),
            partial,
            owned,
            whole,
            threads: rebuilding_threads(layout, resume),
        };
        if options.pyramid.is_some() && (resumed || !whole) {
            let made = output.arrays.made_in_passing(&output.levels, owned);
            output.arrays = output.arrays.only(made);
        }
        Ok(Some(output))
    }

    /// Opens all parts of the image. Returns `None` if it is finished and has its final name.
    pub(in super::super) fn open_all(
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
        parts: RunParts,
    ) -> Result<Option<Self>> {
        let (arrays, planned) = Arrays::planned(layout, options)?;
        let run = run(layout, options, resume, &planned)?;
        let mut found = Vec::new();
        let RunParts { count, wrote_part } = parts;
        let opened = Partial::open_all(&run, count, wrote_part, &mut |record| found.push(record))?;
        let Some(partial) = opened else {
            return Ok(None);
        };
        mark(&arrays, &partial, found);
        Ok(Some(Self {
            arrays,
            levels: sizes(&planned),
            options: options.clone(),
            partial,
            owned: Region::whole(layout.shape),
            whole: true,
            threads: rebuilding_threads(layout, resume),
        }))
    }

    /// Returns what the journals of the image have.
    pub(in super::super) fn progress(
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<OutputProgress> {
        let (arrays, planned) = Arrays::planned(layout, options)?;
        let run = run(layout, options, resume, &planned)?;
        let mut found = OutputProgress::default();
        found.parts = partial::recorded(&run, &mut |part, record| {
            let chunks = found.done.entry(part).or_default();
            if let Some(Record {
                level: 0,
                channel,
                index: [z, y, x],
                ..
            }) = record
                && arrays.levels()[0].written.holds(channel, [z, y, x])
            {
                chunks.insert([channel, z, y, x]);
            }
        })?;
        found.published = found.parts.is_none() && partial::is_finished(&run, true);
        Ok(found)
    }

    /// Finishes the images of one run, and renames them to their final names unless they are single parts of several.
    /// None gets its name before all are complete.
    pub(in super::super) fn finish_all(images: Vec<Self>, progress: Progress<'_>) -> Result<()> {
        for image in &images {
            image.check_complete()?;
        }
        if !images.iter().all(|image| image.whole) {
            return Ok(());
        }
        for image in &images {
            let arrays = (&image.arrays, &*image.levels);
            let how = (image.options.pyramid, image.threads);
            rebuild(arrays, how, image, progress)?;
        }
        let partials: Vec<Partial> = images.into_iter().map(|image| image.partial).collect();
        partial::publish(&partials)
    }

    pub(in super::super) fn owned(&self) -> Region {
        self.owned
    }

    pub(in super::super) const fn arrays(&self) -> &Arrays {
        &self.arrays
    }

    /// Checks that every owned chunk is done.
    pub(in super::super) fn check_complete(&self) -> Result<()> {
        let written = &self.arrays.levels()[0].written;
        match self.arrays.missing(written, self.owned) {
            None => Ok(()),
            Some(missing) => Err(Error::MissingChunks {
                path: self.partial.folder().to_path_buf(),
                missing,
            }),
        }
    }

    fn store(&self, place: &ChunkPlace, chunk: &UnencodedChunk<'_>) -> Result<bool> {
        let mut file = self.partial.new_file();
        let is_stored = chunk.encode_to(&mut |bytes| file.append(bytes))?;
        let record = Record {
            level: u32::try_from(place.level).expect("a volume has fewer than 64 levels"),
            channel: place.channel,
            index: place.index,
            bytes: file.length(),
        };
        self.partial.keep(&place.key, &record, file)?;
        Ok(is_stored)
    }
}

impl Levels for ZarrResumable {
    fn open(&self, level: usize) -> Result<ZarrVolume> {
        let folder = self.partial.data().join(level.to_string());
        ZarrVolume::open(&folder, &OpenOptions::default())
    }

    fn keep(&self, place: &ChunkPlace, chunk: &UnencodedChunk<'_>) -> Result<bool> {
        self.store(place, chunk)
    }
}

impl VolumeMut for ZarrResumable {
    fn layout(&self) -> &Layout {
        self.arrays.layout()
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        if !self.owned.contains(&region) {
            return Err(Error::NotOwned {
                path: self.layout().path.clone(),
                region,
                owned: self.owned,
            });
        }
        let keep = |place: &ChunkPlace, chunk: &UnencodedChunk<'_>| self.store(place, chunk);
        self.arrays.write(channels, region, voxels, &keep)
    }

    fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        self.arrays.pyramid_buffer_bytes(order)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Self::finish_all(vec![*self], &silent)
    }
}

/// Returns the region that a part owns: whole write chunks of the volume.
pub(super) fn check_owned(layout: &Layout, resume: &ResumeOptions) -> Result<Region> {
    let owned = resume.owned.unwrap_or(Region::whole(layout.shape));
    if !owned.is_inside(layout.shape) {
        return Err(Error::OutOfBounds {
            region: owned,
            shape: layout.shape,
        });
    }
    if !owned.is_empty() {
        check_whole_chunks(layout, &(0..layout.channels), owned)?;
    }
    Ok(owned)
}

pub(super) fn run<'a>(
    layout: &'a Layout,
    options: &CreateOptions,
    resume: &'a ResumeOptions,
    planned: &[PlannedLevel],
) -> Result<RunDescription<'a>> {
    if !resume.fingerprint.is_object() {
        return Err(Error::InvalidArgument {
            argument: "fingerprint",
            value: resume.fingerprint.to_string(),
            problem: "it must be a JSON object, so that differences can be named".to_owned(),
        });
    }
    let files = document::files(planned, &name(&layout.path), options);
    let Layout {
        shape,
        channels,
        dtype,
        geometry,
        rescale,
        ..
    } = layout;
    let depends = json!({
        "fingerprint": resume.fingerprint,
        "layout": format!("{shape:?} {channels} {dtype} {geometry:?} {rescale:?}"),
    });
    Ok(RunDescription {
        target: &layout.path,
        overwrite: FolderKind::ZARR.overwrite(options.overwrite),
        group: &resume.group,
        repeats: resume.repeats,
        id: partial::id(&depends),
        fingerprint: &resume.fingerprint,
        durability: resume.durability,
        files: files
            .iter()
            .map(|(key, document)| (key.clone(), text(document)))
            .collect(),
    })
}

/// Marks a recorded chunk as done if its file exists and has the recorded length.
fn mark(arrays: &Arrays, partial: &Partial, records: Vec<Record>) {
    let data = partial.data();
    for Record {
        level,
        channel,
        index,
        bytes,
    } in records
    {
        let Ok(level) = usize::try_from(level) else {
            continue;
        };
        let Some(array) = arrays
            .levels()
            .get(level)
            .filter(|array| array.written.holds(channel, index))
        else {
            continue;
        };
        let sound = bytes.is_none_or(|bytes| {
            let path = data.join(array.key(level, channel, index));
            std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes)
        });
        if sound {
            array.written.set(channel, index);
        } else {
            array.written.clear(channel, index);
        }
    }
}
