//! Casts of voxels to INT64.
//!
//! tract treats every cast to INT64 as arithmetic with lengths, whose symbolic numbers take several times the memory. A
//! cast whose values reach an output is a cast of voxels.

use std::collections::{HashMap, HashSet};

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::tract_core::ops::cast::cast;
#[allow(clippy::wildcard_imports, reason = "tract's interface for operators")]
use tract_onnx::tract_hir::internal::*;

/// The name under which such a cast is registered; no ONNX operator has this name.
pub(super) const NAME: &str = "Cast of voxels";

/// Operators that move the voxels of their first input without changing them.
const MOVES: [&str; 11] = [
    "Dropout",
    "Expand",
    "Flatten",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// Renames the casts to INT64 whose values reach an output.
pub(super) fn rename(graph: &mut GraphProto) {
    let by_output: HashMap<&str, usize> = (0..)
        .zip(&graph.node)
        .flat_map(|(n, node)| node.output.iter().map(move |name| (&**name, n)))
        .collect();
    let mut wanted: Vec<&str> = graph.output.iter().map(|output| &*output.name).collect();
    let (mut seen, mut casts) = (HashSet::new(), Vec::new());
    while let Some(name) = wanted.pop() {
        let Some(&n) = by_output.get(name) else {
            continue;
        };
        if !seen.insert(n) {
            continue;
        }
        let node = &graph.node[n];
        if is_cast(node) {
            casts.push(n);
        } else if node.op_type == "Concat" {
            wanted.extend(node.input.iter().map(|name| &**name));
        } else if MOVES.contains(&&*node.op_type) {
            wanted.extend(node.input.first().map(|name| &**name));
        }
    }
    for n in casts {
        NAME.clone_into(&mut graph.node[n].op_type);
    }
}

fn is_cast(node: &NodeProto) -> bool {
    let to = node
        .attribute
        .iter()
        .find(|attribute| attribute.name == "to");
    node.op_type == "Cast" && to.is_some_and(|to| to.i == DataType::Int64 as i64)
}

/// Builds the operator of a renamed cast.
#[allow(clippy::unnecessary_wraps, reason = "tract asks for a result")]
pub(super) fn build(
    _context: &ParsingContext,
    _node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(ToInt64), Vec::new()))
}

#[derive(Clone, Debug)]
struct ToInt64;

impl Expansion for ToInt64 {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, DatumType::I64)?;
        solver.equals(&outputs[0].rank, &inputs[0].rank)?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, cast(DatumType::I64), inputs)
    }
}
