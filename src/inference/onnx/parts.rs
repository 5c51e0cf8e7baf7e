//! Networks of many nodes, prepared part by part.
//!
//! tract's time for optimizing a network grows with the square of its nodes: 5000 of them take minutes. A long network
//! is therefore cut into parts in the order in which its nodes run. Each part is optimized alone, and a run passes the
//! values from part to part.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tract_onnx::prelude::*;

/// Nodes that are optimized together.
const NODES_PER_PART: usize = 200;

/// The most nodes of a network that is not cut.
const MAX_NODES_UNSPLIT: usize = 600;

/// A network prepared for running.
pub(super) struct NetworkParts {
    input: OutletId,
    outputs: Vec<OutletId>,
    #[allow(clippy::struct_field_names, reason = "it is made of nothing else")]
    parts: Vec<NetworkPart>,
}

/// Some of a network's nodes, with their input and output values by position in the network.
struct NetworkPart {
    network: Arc<TypedRunnableModel>,
    inputs: Vec<OutletId>,
    outputs: Vec<OutletId>,
    /// Values that no later part needs.
    done: Vec<OutletId>,
}

impl NetworkParts {
    /// Optimizes a network whose lengths are all known.
    pub(super) fn new(model: TypedModel) -> TractResult<Self> {
        let input = model.input_outlets()?[0];
        let outputs = model.output_outlets()?.to_vec();
        let parts = match cut(&model)? {
            Some(parts) => parts,
            None => vec![NetworkPart {
                network: model.into_optimized()?.into_runnable()?,
                inputs: vec![input],
                outputs: outputs.clone(),
                done: Vec::new(),
            }],
        };
        Ok(Self {
            input,
            outputs,
            parts,
        })
    }

    /// Runs the network and returns all outputs.
    pub(super) fn run(&self, input: TValue) -> TractResult<Vec<TValue>> {
        let mut values = HashMap::from([(self.input, input)]);
        let missing = |place: &OutletId| TractError::msg(format!("no part computes {place:?}"));
        for part in &self.parts {
            let taken = part.inputs.iter();
            let taken = taken.map(|at| values.get(at).cloned().ok_or_else(|| missing(at)));
            let taken = taken.collect::<TractResult<TVec<_>>>()?;
            for at in &part.done {
                values.remove(at);
            }
            let given = part.network.run(taken)?;
            values.extend(part.outputs.iter().copied().zip(given));
        }
        let outputs = self.outputs.iter();
        outputs
            .map(|at| values.get(at).cloned().ok_or_else(|| missing(at)))
            .collect()
    }
}

/// Returns the parts of a long network; `None` for a network that is not cut.
fn cut(model: &TypedModel) -> TractResult<Option<Vec<NetworkPart>>> {
    let inputs: HashSet<usize> = model.input_outlets()?.iter().map(|at| at.node).collect();
    let is_known = |node: usize| {
        let outputs = &model.node(node).outputs;
        outputs.iter().all(|output| output.fact.konst.is_some())
    };
    let mut nodes = model.eval_order()?;
    nodes.retain(|node| !inputs.contains(node) && !is_known(*node));
    let computed: HashSet<usize> = nodes.iter().copied().collect();
    let outputs = model.output_outlets()?;
    if nodes.len() <= MAX_NODES_UNSPLIT || !outputs.iter().all(|at| computed.contains(&at.node)) {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for part in nodes.chunks(NODES_PER_PART) {
        parts.push(optimized(model, part)?);
    }
    // A value is kept until the last part that needs it, and outputs to the end.
    let mut wanted: HashSet<OutletId> = outputs.iter().copied().collect();
    for part in parts.iter_mut().rev() {
        let inputs = part.inputs.iter().copied();
        part.done = inputs.filter(|at| wanted.insert(*at)).collect();
    }
    Ok(Some(parts))
}

/// Returns some nodes of a network, in the order in which they run, as a separate optimized network.
fn optimized(model: &TypedModel, nodes: &[usize]) -> TractResult<NetworkPart> {
    let own: HashSet<usize> = nodes.iter().copied().collect();
    let mut part = TypedModel {
        symbols: model.symbols.clone(),
        ..TypedModel::default()
    };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let mut places: HashMap<OutletId, OutletId> = HashMap::new();
    for &n in nodes {
        let node = model.node(n);
        for at in &node.inputs {
            if places.contains_key(at) {
                continue;
            }
            let fact = model.outlet_fact(*at)?;
            let name = format!("value {}.{} of the network", at.node, at.slot);
            let place = if let Some(value) = &fact.konst {
                part.add_const(name, Arc::clone(value))?
            } else {
                inputs.push(*at);
                part.add_source(name, fact.clone())?
            };
            places.insert(*at, place);
        }
        let taken: TVec<OutletId> = node.inputs.iter().map(|at| places[at]).collect();
        let given = part.wire_node(node.name.clone(), node.op.clone(), &taken)?;
        for (slot, place) in given.into_iter().enumerate() {
            let at = OutletId::new(n, slot);
            places.insert(at, place);
            let takers = &node.outputs[slot].successors;
            let is_taken = takers.iter().any(|taker| !own.contains(&taker.node));
            if is_taken || model.output_outlets()?.contains(&at) {
                outputs.push(at);
            }
        }
    }
    let given: Vec<OutletId> = outputs.iter().map(|at| places[at]).collect();
    part.select_output_outlets(&given)?;
    Ok(NetworkPart {
        network: part.into_optimized()?.into_runnable()?,
        inputs,
        outputs,
        done: Vec::new(),
    })
}
