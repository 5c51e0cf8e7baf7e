//! Resumed runs, and runs of several processes.
//!
//! Outputs survive the end of their process (see [`resumable`]), and finished chunks are not predicted again. A
//! fingerprint of everything that the voxels depend on is stored with them; a run with a different fingerprint is
//! refused. Each part of a run owns whole write chunks and predicts every patch that touches them, so all parts
//! together give the bytes of one run.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::mask::PatchMask;
use super::model::Model;
use super::passes::ChunkRanges;
use super::planned::{PlannedOutput, Resume};
use super::schedule::Schedule;
use crate::aggregator::Blend;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::region::{Region, chunk_range, indices};
use crate::volume::{
    Durability, Layout, OutputPart, OutputRequest, Resumable, ResumeOptions, RunParts, Volume,
    VolumeMut, check_resumable, finalize_all, input_fingerprint, resumable,
};

/// A partly written output, for an aggregator. The run finishes it, together with its other outputs.
#[derive(Clone, Debug)]
pub(super) struct Unfinished(pub(super) Arc<Resumable>);

impl Unfinished {
    /// Returns `true` if this run must write the chunk at `index` (z, y, x) of any channel.
    pub(super) fn is_wanted(&self, [z, y, x]: [u64; 3]) -> bool {
        let mut channels = 0..self.layout().channels;
        channels.any(|channel| self.0.is_pending([channel, z, y, x]))
    }
}

impl VolumeMut for Unfinished {
    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    /// Skips chunks that are done; channels are skipped one by one.
    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let [_, chunk @ ..] = self.layout().write_chunk.unwrap_or([1; 4]);
        let bytes =
            usize::try_from(region.voxels()).unwrap_or(usize::MAX) * self.layout().dtype.size();
        for (channel, voxels) in channels.zip(voxels.chunks_exact(bytes.max(1))) {
            let mut chunks = indices(chunk_range(&region, chunk));
            if chunks.any(|[z, y, x]| !self.0.is_done([channel, z, y, x])) {
                self.0
                    .write_channels(channel..channel + 1, region, voxels)?;
            }
        }
        Ok(())
    }

    fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        self.0.pyramid_buffer_bytes(order)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Schedule {
    /// Restricts the schedule to the write chunks of a part, which can be resumed.
    pub(super) fn with_part(mut self, part: OutputPart, durability: Durability) -> Result<Self> {
        self.check_resumable()?;
        self.resume = Some(Resume {
            part,
            durability,
            repeats: false,
        });
        let owned = self.owned_part();
        self.fit(owned)?;
        Ok(self)
    }

    /// Checks that all outputs can be resumed and written in parts.
    pub(super) fn check_resumable(&self) -> Result<()> {
        let mut outputs = self.outputs.iter();
        outputs.try_for_each(|output| check_resumable(&output.layout))
    }

    /// Returns the write chunks that this run's part owns, if it is one of several.
    pub(super) fn owned_part(&self) -> Option<ChunkRanges> {
        let part = self.resume?.part;
        let owned = self.outputs.iter().map(|output| Self::owned(output, part));
        (part.count() > 1).then(|| owned.collect())
    }

    /// Returns the write chunks of an output that a part owns.
    pub(super) fn owned(output: &PlannedOutput, part: OutputPart) -> [Range<u64>; 3] {
        let region = part.region(&output.layout, output.order()[0]);
        let [_, chunk @ ..] = output.layout.write_chunk.unwrap_or([1; 4]);
        chunk_range(&region, chunk)
    }

    /// Starts the outputs, or opens those of an earlier run.
    pub(super) fn unfinished(
        &self,
        resume: Resume,
        volume: &dyn Volume,
        model: &dyn Model,
    ) -> Result<Vec<Unfinished>> {
        let begun = self.outputs.iter().map(|output| {
            let options = self.resume_options(resume, output, volume, model)?;
            let opened = resumable(&output.layout.path, &output.layout, &output.store, &options);
            opened.map(|opened| Unfinished(Arc::new(opened)))
        });
        begun.collect()
    }

    /// Publishes the outputs of several parts if all are complete; returns `false` if some are not. `begun` is
    /// `true` if this process has written its part.
    pub(super) fn assemble(
        &self,
        resume: Resume,
        volume: &dyn Volume,
        model: &dyn Model,
        begun: bool,
        progress: Progress<'_>,
    ) -> Result<bool> {
        match self.publish_parts(resume, volume, model, begun, progress) {
            // Other parts are unfinished, or another process is publishing now.
            Err(Error::MissingChunks { .. } | Error::Locked { .. }) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Publishes the outputs of several parts. `begun` is `true` if this process has written its part.
    pub(super) fn publish_parts(
        &self,
        resume: Resume,
        volume: &dyn Volume,
        model: &dyn Model,
        begun: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        let options = |output| self.resume_options(resume, output, volume, model);
        let options: Vec<ResumeOptions> =
            self.outputs.iter().map(options).collect::<Result<_>>()?;
        let outputs = self.outputs.iter().zip(&options);
        let outputs: Vec<OutputRequest<'_>> = outputs
            .map(|(output, resume)| OutputRequest {
                path: &output.layout.path,
                layout: &output.layout,
                options: &output.store,
                resume,
            })
            .collect();
        let parts = resume.part.count();
        let run = RunParts {
            count: parts,
            wrote_part: begun,
        };
        finalize_all(&outputs, run, progress)
    }

    pub(super) fn resume_options(
        &self,
        resume: Resume,
        output: &PlannedOutput,
        volume: &dyn Volume,
        model: &dyn Model,
    ) -> Result<ResumeOptions> {
        Ok(ResumeOptions {
            fingerprint: self.fingerprint(output, volume, model)?,
            part: resume.part,
            owned: Some(resume.part.region(&output.layout, output.order()[0])),
            durability: resume.durability,
            threads: self.inference.threads,
            memory: self.memory(),
            group: self.paths(),
            repeats: resume.repeats,
        })
    }

    /// Returns the outputs' paths.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let outputs = self.outputs.iter();
        outputs.map(|output| output.layout.path.clone()).collect()
    }

    /// Returns everything that an output's voxels depend on.
    fn fingerprint(
        &self,
        output: &PlannedOutput,
        volume: &dyn Volume,
        model: &dyn Model,
    ) -> Result<Json> {
        let blending = &output.blending;
        let blend = match &blending.blend {
            Blend::Custom(window) => {
                format!(
                    "a window with crc32c {:08x}",
                    crc(bytemuck::cast_slice(window.weights()))
                )
            }
            blend => format!("{blend:?}"),
        };
        let mut fingerprint = json!({
            "input": input_fingerprint(volume)?,
            "model": model.id()?,
            "output": output.spec.name,
            "halo": output.spec.halo,
            "scale": output.spec.scale,
            "patch": self.grid.patch(),
            "starts": self.grid.axes().each_ref().map(|axis| axis.starts.clone()),
            "order": self.grid.order(),
            "joined": self.grid.joined(),
            "output grid": blending.onto.as_ref().map(|onto| {
                json!([onto.predicted.geometry.affine, onto.written.shape, onto.written.geometry.affine])
            }),
            "normalized": self.scales.as_ref().map(|scales| format!("{scales:?}")),
            "padding": format!("{:?}", self.padding),
            "blend": blend,
            "reduce": format!("{:?}", blending.reduce),
            "accumulator": format!("{:?}", blending.accumulator),
            "skipped": format!("{:?}", blending.skipped),
            "not finite": format!("{:?}", blending.non_finite),
            "fill": blending.fill,
            "mask": self.patch_mask.as_ref().map(PatchMask::crc),
        });
        if blending.sums_elsewhere {
            // Their last bits may differ from those of sums in memory.
            fingerprint["sums"] = json!("elsewhere");
        }
        Ok(fingerprint)
    }
}

impl PatchMask {
    fn crc(&self) -> u32 {
        crc(bytemuck::cast_slice(self.bits()))
    }
}

fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
