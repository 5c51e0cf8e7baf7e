//! A run as tasks for other machines: its parts with their costs, its progress, and its publication.
//!
//! A task is a [part](OutputPart) that may be run again, twice at once, and in any order. The marks of its finished
//! chunks are in the journals next to the output, or in notes below it in a store, so a scheduler need not know what a
//! lost worker had done.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use super::fit::Reach;
use super::passes::{self, ChunkRanges};
use super::planned::Resume;
use super::predictor::InferencePlan;
use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::region::{Region, chunk_range};
use crate::volume::{ChunkShape, Layout, OutputPart, OutputProgress, output_progress};

/// The time between two attempts to get what another process holds.
const PAUSE: Duration = Duration::from_millis(50);

/// A task of a run: the write chunks that it owns, and its costs.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTask {
    /// The part of the outputs that the task writes.
    pub part: OutputPart,
    /// The region of each output that it owns: whole write chunks.
    pub regions: Vec<Region>,
    /// The number of patches that it predicts.
    pub patches: u64,
    /// The number of these that an earlier part predicts too, because they touch both.
    pub repeated_patches: u64,
    /// The decoded bytes of the input that it reads, in whole chunks.
    pub input_bytes: u64,
}

/// The progress of a run's tasks, as their journals or notes have it. Notes in a store may be some time old.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobStatus {
    /// Whether the outputs have their names. It is known from an extended attribute, where the file system has them, or
    /// from the metadata of an object.
    pub published: bool,
    /// The number of parts into which the run was split; `None` before one has begun and after the outputs are published.
    pub parts: Option<u32>,
    /// The number of finished write chunks of each part that has begun and owns some, with their total, over all outputs.
    pub begun: Vec<(u32, u64, u64)>,
    /// The number of finished write chunks of all outputs.
    pub chunks_done: u64,
    /// The number of write chunks of all outputs.
    pub chunks: u64,
}

impl JobStatus {
    /// Returns `true` if every chunk is finished, so that the outputs can be published.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.published || self.chunks_done == self.chunks
    }
}

impl InferencePlan {
    /// Splits the run into at most `count` tasks, those with most patches first. Each owns whole write chunks, so tasks
    /// share nothing; there are fewer if the outputs have fewer layers of write chunks.
    ///
    /// Run a task by a plan with its [part](Self::with_part) that [may repeat](Self::with_repeats). All tasks of a run
    /// must have the same `count`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](Error::InvalidArgument) if `count` is 0, [`Unsupported`](Error::Unsupported) if an output is a
    /// flat file.
    pub fn tasks(&self, count: u32) -> Result<Vec<PlannedTask>> {
        self.schedule().check_resumable()?;
        let (schedule, volume, _) = self.followed()?;
        schedule.tasks(volume.layout(), count)
    }

    /// Makes a resumable run repeatable: if another process is writing the same part, it waits until that ends, and then
    /// writes what is missing. In a store it does not wait: both write the same bytes. A part that was finished or published before has nothing to do.
    pub fn with_repeats(mut self) -> Self {
        if let Some(resume) = &mut self.schedule_mut().resume {
            resume.repeats = true;
        }
        self
    }

    /// Returns the progress of a run that was split into tasks.
    ///
    /// # Errors
    ///
    /// [`RunMismatch`](Error::RunMismatch) if the outputs were begun with different settings;
    /// [`Io`](Error::Io) if their journals or notes cannot be read.
    pub fn status(&self) -> Result<JobStatus> {
        self.schedule().check_resumable()?;
        let (schedule, volume, model) = self.followed()?;
        let outputs = schedule.output_progress(volume, model)?;
        schedule.status(&outputs)
    }

    /// Publishes the outputs of a run that was split into tasks, once all are finished. The last task does this too; it
    /// succeeds if the outputs are published already.
    ///
    /// # Errors
    ///
    /// [`MissingChunks`](Error::MissingChunks), naming the unfinished parts; [`Interrupted`](Error::Interrupted) if
    /// `progress` asks for it while another process holds the outputs, or while coarser levels are made, whose finished
    /// chunks are kept for the next commit; the errors of [`status`](Self::status) and of
    /// writing.
    pub fn commit(self, progress: Progress<'_>) -> Result<()> {
        self.schedule().check_resumable()?;
        let (schedule, volume, model) = self.followed()?;
        loop {
            let outputs = schedule.output_progress(volume, model)?;
            let status = schedule.status(&outputs)?;
            if status.published {
                return Ok(());
            }
            if !status.is_complete() {
                return Err(schedule.unfinished_parts(&status));
            }
            let part = OutputPart::new(0, status.parts.unwrap_or(1))?;
            let resume = Resume {
                part,
                durability: schedule.resume.map(|it| it.durability).unwrap_or_default(),
                repeats: true,
            };
            match schedule.publish_parts(resume, volume, model, false, progress) {
                Err(Error::Locked { .. }) => pause(progress)?,
                done => return done,
            }
        }
    }
}

/// Waits for another process a moment.
pub(super) fn pause(progress: Progress<'_>) -> Result<()> {
    report(progress, 0, 0)?;
    thread::sleep(PAUSE);
    Ok(())
}

impl Schedule {
    fn tasks(&self, input: &Layout, count: u32) -> Result<Vec<PlannedTask>> {
        let reach = Reach::new(&self.outputs);
        let slow = self.grid.order()[0];
        let mut tasks = Vec::new();
        // Places along the slowest axis that earlier parts need.
        let mut before = 0..0;
        for index in 0..count.max(1) {
            let part = OutputPart::new(index, count)?;
            let owned: ChunkRanges = self.outputs.iter().map(|o| Self::owned(o, part)).collect();
            if passes::is_empty(&owned) {
                continue;
            }
            let needed = reach.of(&owned);
            let mut repeated = needed.clone();
            repeated[slow] = needed[slow].start.max(before.start)..needed[slow].end.min(before.end);
            let region =
                |output: &super::PlannedOutput| part.region(&output.layout, output.order()[0]);
            tasks.push(PlannedTask {
                part,
                regions: self.outputs.iter().map(region).collect(),
                patches: self.predictions_within(&needed),
                repeated_patches: if repeated[slow].is_empty() {
                    0
                } else {
                    self.predictions_within(&repeated)
                },
                input_bytes: self.input_bytes(input, &needed),
            });
            before = if before.is_empty() {
                needed[slow].clone()
            } else {
                before.start.min(needed[slow].start)..before.end.max(needed[slow].end)
            };
        }
        tasks.sort_by_key(|task| (std::cmp::Reverse(task.patches), task.part.index()));
        Ok(tasks)
    }

    /// Returns the decoded bytes of the read chunks that patches at these places touch.
    fn input_bytes(&self, input: &Layout, needed: &[Range<usize>; 3]) -> u64 {
        let (mut start, mut end) = ([0; 3], [0; 3]);
        for a in 0..3 {
            let starts = &self.grid.axes()[a].starts[needed[a].clone()];
            let (Some(first), Some(last)) = (starts.first(), starts.last()) else {
                return 0;
            };
            start[a] = *first;
            end[a] = last.saturating_add_unsigned(self.grid.patch()[a]);
        }
        let shape = std::array::from_fn(|a| end[a].abs_diff(start[a]));
        let Some(read) = Region::new(start, shape).intersection(&Region::whole(input.shape)) else {
            return 0;
        };
        let [_, chunk @ ..] = input.read_chunk.unwrap_or([1; 4]);
        let range = chunk_range(&read, chunk);
        let covered = |a: usize| {
            let end = range[a].end.saturating_mul(chunk[a]);
            end.min(input.shape[a]) - range[a].start * chunk[a]
        };
        (0..3).map(covered).fold(
            input.channels * input.dtype.size() as u64,
            u64::saturating_mul,
        )
    }

    /// Returns the recorded progress of each output.
    fn output_progress(
        &self,
        volume: &dyn crate::volume::Volume,
        model: &dyn super::Model,
    ) -> Result<Vec<OutputProgress>> {
        let resume = Resume {
            part: OutputPart::WHOLE,
            durability: crate::volume::Durability::None,
            repeats: true,
        };
        let found = self.outputs.iter().map(|output| {
            let options = self.resume_options(resume, output, volume, model)?;
            output_progress(&output.layout.path, &output.layout, &output.store, &options)
        });
        found.collect()
    }

    fn status(&self, outputs: &[OutputProgress]) -> Result<JobStatus> {
        let layouts = self.outputs.iter().map(|output| &output.layout);
        let chunks = layouts.map(|layout| {
            let [_, chunk @ ..] = layout.write_chunk.unwrap_or([1; 4]);
            let along = (0..3).map(|a| layout.shape[a].div_ceil(chunk[a]));
            along.fold(layout.channels, u64::saturating_mul)
        });
        let mut status = JobStatus {
            published: outputs.iter().all(|output| output.published),
            parts: outputs.iter().find_map(|output| output.parts),
            chunks: chunks.sum(),
            ..JobStatus::default()
        };
        if status.published {
            status.chunks_done = status.chunks;
            return Ok(status);
        }
        let Some(parts) = status.parts else {
            return Ok(status);
        };
        for index in 0..parts {
            let part = OutputPart::new(index, parts)?;
            let (mut done, mut total, mut begun) = (0, 0, false);
            for (output, found) in self.outputs.iter().zip(outputs) {
                let owned = Self::owned(output, part);
                let along = owned.iter().map(|range| range.end - range.start);
                let of_output = along.fold(output.layout.channels, u64::saturating_mul);
                total += of_output;
                let is_complete = found.complete.contains(&index);
                begun |= is_complete || found.done.contains_key(&index);
                let is_owned =
                    |index: &ChunkShape| (0..3).all(|a| owned[a].contains(&index[a + 1]));
                done += match (found.published || is_complete, found.done.get(&index)) {
                    (true, _) => of_output,
                    (false, Some(chunks)) => chunks.iter().filter(|at| is_owned(at)).count() as u64,
                    (false, None) => 0,
                };
            }
            if begun && total > 0 {
                status.begun.push((index, done, total));
            }
            status.chunks_done += done;
        }
        Ok(status)
    }

    /// Returns the error that names the parts that are not finished.
    fn unfinished_parts(&self, status: &JobStatus) -> Error {
        let missing = status.chunks - status.chunks_done;
        let parts = status.parts.unwrap_or(0);
        let is_done = |part: &u32| {
            status
                .begun
                .iter()
                .any(|(n, done, total)| n == part && done == total)
        };
        let owns = |part: &u32| {
            let part = OutputPart::new(*part, parts);
            part.is_ok_and(|part| {
                let owned: ChunkRanges =
                    self.outputs.iter().map(|o| Self::owned(o, part)).collect();
                !passes::is_empty(&owned)
            })
        };
        let mut left = (0..parts).filter(|part| owns(part) && !is_done(part));
        let named: Vec<String> = left.by_ref().take(5).map(|part| part.to_string()).collect();
        let more = if left.next().is_some() { ", ..." } else { "" };
        let first = &self.outputs[0].layout.path;
        Error::MissingChunks {
            path: first.clone(),
            missing: if named.is_empty() {
                "every chunk: no part has been started".to_owned()
            } else {
                format!(
                    "{missing} of {} chunks: run parts {}{more} of {parts}",
                    status.chunks,
                    named.join(", ")
                )
            },
        }
    }
}
