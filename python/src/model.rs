//! A Python function as a model: threads of ours ask, the thread that called `predict` answers.
//!
//! So no thread of ours ever waits for the interpreter, and a function that raises, or Ctrl-C,
//! ends the run where it was called.

use std::sync::mpsc::{Sender, channel};

use voxpatch::inference::{OutputSpec, PatchPool};
use voxpatch::{DType, Error, Layout, Model, Patch, Region, Result, Shape, Voxels};

use crate::array::{Held, Memory};
use crate::wait::guarded;

/// What the threads tell the caller's.
pub(crate) enum Message {
    /// A batch to be predicted.
    Batch(Request),
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
    },
    Planned(Box<Planned>),
}

/// A run that was planned and not begun.
pub(crate) struct Planned {
    pub(crate) plan: voxpatch::inference::InferencePlan,
    pub(crate) probe: voxpatch::inference::Probe,
    pub(crate) space: Vec<voxpatch::volume::DiskSpace>,
}

/// A batch for the model, with the channel for its predictions. Dropping it ends the run.
pub(crate) struct Request {
    /// The patches' values, all in one; `None` once they are with the model.
    pub(crate) voxels: Option<Lent>,
    /// Channels, and voxels along z, y, x, of each.
    pub(crate) channels: u64,
    pub(crate) shape: Shape,
    pub(crate) regions: Vec<Region>,
    reply: Sender<Vec<Vec<Answer>>>,
}

/// A prediction.
pub(crate) enum Answer {
    Copied(Patch),
    /// A prediction that the requesting thread copies while the next batch is predicted.
    Held(Held),
}

impl Request {
    /// The array's shape, b, c, z, y, x.
    pub(crate) fn axes(&self) -> [u64; 5] {
        let [z, y, x] = self.shape;
        [self.regions.len() as u64, self.channels, z, y, x]
    }

    /// Takes the voxels away; what is left can be answered.
    pub(crate) fn take_voxels(&mut self) -> Option<Lent> {
        self.voxels.take()
    }

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
    pub(crate) outputs: Vec<OutputSpec>,
    pub(crate) caller: Sender<Message>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Batch(_) => "Batch",
            Self::Progress(..) => "Progress",
            Self::Done(_) => "Done",
        })
    }
}

impl Model for Asked {
    fn id(&self) -> Result<String> {
        Ok(self.id.clone())
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(self.outputs.clone())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let (reply, answer) = channel();
        let request = guarded(|| stacked(batch, pool, reply))?;
        let sent = self.caller.send(Message::Batch(request));
        sent.map_err(|_| Error::Interrupted)?;
        let answered = answer.recv().map_err(|_| Error::Interrupted)?;
        let copied = |predicted: Answer| match predicted {
            Answer::Copied(patch) => Ok(patch),
            Answer::Held(held) => held.to_patch(pool),
        };
        let outputs = answered.into_iter();
        outputs
            .map(|output| output.into_iter().map(copied).collect())
            .collect()
    }
}

/// All patches of a batch in one array.
fn stacked(
    mut batch: Vec<Patch>,
    pool: &PatchPool,
    reply: Sender<Vec<Vec<Answer>>>,
) -> Result<Request> {
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
    let pool = pool.clone();
    Ok(Request {
        voxels: Some(Lent { patch, pool }),
        channels,
        shape,
        regions,
        reply,
    })
}
