//! A Python function as a model: threads of ours ask, the thread that called `predict` answers.
//!
//! So no thread of ours ever waits for the interpreter, and a function that raises, or Ctrl-C,
//! ends the run where it was called.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use pyo3::PyErr;
use voxpatch::aggregator::Frontier;
use voxpatch::inference::{Blender, FinalBlock, InputValues, OutputSpec, PatchPool};
use voxpatch::normalize::Scale;
use voxpatch::{DType, Error, Layout, Model, Patch, Region, Result, Shape, Voxels};

use crate::array::{Held, Memory};
use crate::wait::guarded;

/// What the threads tell the caller's.
pub(crate) enum Message {
    /// A batch to be predicted.
    Batch(Request),
    /// The unfinished blocks of each output, at the start of a pass.
    Begin(Vec<Arc<Frontier>>, Vec<Scale>, Sender<()>),
    /// Patches to be predicted or skipped, and blended, in their turn.
    Blend(Turn),
    /// The end of a pass.
    End(Sender<Vec<Final>>),
    /// No turn that waits will come.
    Stop,
    /// A function raised an exception on a thread of its own.
    Raised(PyErr),
    /// Patches done, and all.
    Progress(u64, u64),
    /// The run is over.
    Done(Result<Outcome>),
}

/// What a run did, or what it would take.
pub(crate) enum Outcome {
    Done {
        done: voxpatch::inference::InferenceStats,
        peak_bytes: u64,
        /// Bytes of the device, if predictions were blended there.
        device_bytes: Option<u64>,
    },
    Planned(Box<Planned>),
    Tasks(Vec<voxpatch::inference::PlannedTask>),
    Status(voxpatch::inference::JobStatus),
    /// The numbers of the normalization; `None` without one.
    Measured(Option<String>),
    Committed,
}

/// A run that was planned and not begun.
pub(crate) struct Planned {
    pub(crate) plan: voxpatch::inference::InferencePlan,
    pub(crate) probe: voxpatch::inference::Probe,
    pub(crate) space: Vec<voxpatch::volume::DiskSpace>,
    /// Bytes of the device, if predictions would be blended there.
    pub(crate) device_bytes: Option<u64>,
}

/// The patches of a batch.
pub(crate) struct Batch {
    /// The patches' values, all in one; `None` once they are with the model.
    voxels: Option<Lent>,
    /// Channels, and voxels along z, y, x, of each.
    channels: u64,
    shape: Shape,
    pub(crate) regions: Vec<Region>,
    /// The pool of the batch's memory.
    pub(crate) pool: PatchPool,
}

/// A batch for the model, with the channel for its predictions. Dropping it ends the run.
pub(crate) struct Request {
    pub(crate) batch: Batch,
    reply: Sender<Vec<Vec<Answer>>>,
}

/// A prediction.
pub(crate) enum Answer {
    Copied(Patch),
    /// A prediction that the requesting thread copies while the next batch is predicted.
    Held(Held),
}

/// Patches to be blended, in their turn within the pass.
pub(crate) struct Turn {
    pub(crate) number: u64,
    pub(crate) patches: Vec<u64>,
    /// Their voxels; `None` if they are skipped.
    pub(crate) batch: Option<Batch>,
    pub(crate) reply: Sender<Vec<Final>>,
}

/// A final block: its output, its number, and its values.
pub(crate) type Final = (usize, u64, Option<Answer>);

impl Batch {
    /// The array's shape, b, c, z, y, x.
    pub(crate) fn axes(&self) -> [u64; 5] {
        let [z, y, x] = self.shape;
        [self.regions.len() as u64, self.channels, z, y, x]
    }

    /// Takes the voxels away; what is left can be answered.
    pub(crate) fn take_voxels(&mut self) -> Option<Lent> {
        self.voxels.take()
    }
}

impl Request {
    /// Gives the predictions, for each output those of each patch.
    pub(crate) fn answer(self, predictions: Vec<Vec<Answer>>) {
        // The requesting thread is gone if the run was stopped.
        let _ = self.reply.send(predictions);
    }
}

/// A patch that goes back to its pool on drop: with the last array or tensor on its memory.
pub(crate) struct Lent {
    patch: Patch,
    pool: PatchPool,
}

impl Memory for Lent {
    fn dtype(&self) -> DType {
        self.patch.dtype()
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.patch.bytes_mut()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let nothing = Patch::new(Region::whole([0; 3]), 0, Voxels::zeros(DType::U8, 0));
        if let Ok(nothing) = nothing {
            self.pool.give(std::mem::replace(&mut self.patch, nothing));
        }
    }
}

/// The model that the threads see.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) input: InputValues,
    /// How it blends predictions, if it does.
    pub(crate) blends: Option<Blends>,
    pub(crate) outputs: Vec<OutputSpec>,
    pub(crate) caller: Sender<Message>,
}

/// How a function blends its predictions on its device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blends {
    /// Bytes of the device that sums may take.
    pub(crate) memory: Option<u64>,
    /// Whether each patch is predicted from all eight sides.
    pub(crate) flips: bool,
    /// Whether inputs are normalized there.
    pub(crate) normalizes: bool,
    /// Batches that other devices still predict when their turns are answered.
    pub(crate) late: usize,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Batch(_) => "Batch",
            Self::Begin(..) => "Begin",
            Self::Blend(_) => "Blend",
            Self::End(_) => "End",
            Self::Stop => "Stop",
            Self::Raised(_) => "Raised",
            Self::Progress(..) => "Progress",
            Self::Done(_) => "Done",
        })
    }
}

impl Model for Asked {
    fn id(&self) -> Result<String> {
        // As the flips of a model in Rust are identified.
        Ok(match self.blends {
            Some(Blends { flips: true, .. }) => format!("the flips of {}", self.id),
            _ => self.id.clone(),
        })
    }

    fn input(&self) -> InputValues {
        self.input
    }

    fn blender(&self) -> Option<&dyn Blender> {
        self.blends.is_some().then_some(self as &dyn Blender)
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        let mut outputs = self.outputs.clone();
        if let Some(Blends { flips: true, .. }) = self.blends {
            for output in &mut outputs {
                output.dtype = DType::F32;
            }
        }
        Ok(outputs)
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let (reply, answer) = channel();
        let batch = guarded(|| stacked(batch, pool))?;
        self.send(Message::Batch(Request { batch, reply }))?;
        let answered = answer.recv().map_err(|_| Error::Interrupted)?;
        let outputs = answered.into_iter();
        let copied = |one: Answer| one.into_patch(pool);
        outputs
            .map(|output| output.into_iter().map(copied).collect())
            .collect()
    }
}

impl Asked {
    fn send(&self, message: Message) -> Result<()> {
        let sent = self.caller.send(message);
        sent.map_err(|_| Error::Interrupted)
    }
}

impl Answer {
    fn into_patch(self, pool: &PatchPool) -> Result<Patch> {
        match self {
            Self::Copied(patch) => Ok(patch),
            Self::Held(held) => held.to_patch(pool),
        }
    }
}

impl Blender for Asked {
    fn memory(&self) -> Option<u64> {
        self.blends.and_then(|blends| blends.memory)
    }

    fn late_batches(&self) -> usize {
        self.blends.map_or(0, |blends| blends.late)
    }

    fn normalizes(&self) -> bool {
        self.blends.is_some_and(|blends| blends.normalizes)
    }

    fn begin(&self, outputs: Vec<Arc<Frontier>>, scales: &[Scale]) -> Result<()> {
        let (reply, answer) = channel();
        self.send(Message::Begin(outputs, scales.to_vec(), reply))?;
        answer.recv().map_err(|_| Error::Interrupted)
    }

    fn blend(
        &self,
        turn: u64,
        patches: &[u64],
        batch: Option<Vec<Patch>>,
        pool: &PatchPool,
    ) -> Result<Vec<FinalBlock>> {
        let (reply, answer) = channel();
        let batch = batch.map(|batch| guarded(|| stacked(batch, pool)));
        if let Some(Err(_)) = batch {
            self.stop();
        }
        let batch = batch.transpose()?;
        let patches = patches.to_vec();
        self.send(Message::Blend(Turn {
            number: turn,
            patches,
            batch,
            reply,
        }))?;
        let blocks = answer.recv().map_err(|_| Error::Interrupted)?;
        finals(blocks, pool)
    }

    fn stop(&self) {
        // The caller is gone if the run was stopped.
        let _ = self.send(Message::Stop);
    }

    fn end(&self) -> Result<Vec<FinalBlock>> {
        let (reply, answer) = channel();
        self.send(Message::End(reply))?;
        let blocks = answer.recv().map_err(|_| Error::Interrupted)?;
        finals(blocks, &PatchPool::default())
    }
}

fn finals(blocks: Vec<Final>, pool: &PatchPool) -> Result<Vec<FinalBlock>> {
    let each = blocks.into_iter();
    let each = each.map(|(output, block, values)| {
        let values = values.map(|values| values.into_patch(pool)).transpose()?;
        Ok(FinalBlock {
            output,
            block,
            values,
        })
    });
    each.collect()
}

/// All patches of a batch in one array.
fn stacked(mut batch: Vec<Patch>, pool: &PatchPool) -> Result<Batch> {
    let regions: Vec<Region> = batch.iter().map(Patch::region).collect();
    let first = batch.first().ok_or(Error::Interrupted)?;
    let (channels, shape, dtype) = (first.channels(), first.shape(), first.dtype());
    let patch = if batch.len() == 1 {
        batch.swap_remove(0)
    } else {
        let count = channels.saturating_mul(batch.len() as u64);
        let mut all = pool.take(Region::whole(shape), count, dtype)?;
        let length = first.bytes().len().max(1);
        for (part, patch) in all.bytes_mut().chunks_exact_mut(length).zip(batch) {
            part.copy_from_slice(patch.bytes());
            pool.give(patch);
        }
        all
    };
    Ok(Batch {
        voxels: Some(Lent {
            patch,
            pool: pool.clone(),
        }),
        channels,
        shape,
        regions,
        pool: pool.clone(),
    })
}
