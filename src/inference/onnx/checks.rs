//! Checks of an ONNX file before it is run: a node that would be computed differently, or not at all, is refused by
//! name.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::type_proto::Value as Declared;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};

use super::super::network::no_network;
use super::operator;
use crate::error::{Error, Result};

/// The operator sets that tract computes as specified.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=22;

/// The operators of domains other than ONNX's own that tract runs.
const OTHER_DOMAINS: [(&str, &[&str]); 2] = [
    (
        "ai.onnx.ml",
        &[
            "ArrayFeatureExtractor",
            "CategoryMapper",
            "LinearClassifier",
            "LinearRegressor",
            "Normalizer",
            "TreeEnsembleClassifier",
        ],
    ),
    (
        "com.microsoft",
        &[
            "BiasGelu",
            "FastGelu",
            "GatherBlockQuantized",
            "GroupQueryAttention",
            "MatMulNBits",
            "MultiHeadAttention",
            "QuickGelu",
            "RotaryEmbedding",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
        ],
    ),
];

/// Returns `true` if a domain is ONNX's own.
pub(super) fn is_own(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// Checks the operator set, the names, and every node's operator.
///
/// # Errors
///
/// [`Error::ModelFile`] and [`Error::ModelOperator`].
pub(super) fn check(
    path: &Path,
    proto: &ModelProto,
    graph: &GraphProto,
    known: &OnnxOpRegister,
) -> Result<()> {
    check_opset(path, proto)?;
    check_operators(path, graph, known)?;
    check_names(path, graph)
}

fn check_opset(path: &Path, proto: &ModelProto) -> Result<()> {
    let own = proto.opset_import.iter().filter(|set| is_own(&set.domain));
    let mut versions: Vec<i64> = own.map(|set| set.version).collect();
    versions.dedup();
    let (first, last) = (OPSETS.start(), OPSETS.end());
    let problem = match versions[..] {
        [version] if OPSETS.contains(&version) => return Ok(()),
        [version] => format!("it has operator set {version}"),
        [] => "it names no operator set".to_owned(),
        _ => format!("it names several operator sets, {versions:?}"),
    };
    let allowed = format!("{problem}, and sets {first} to {last} can be run: export it in set 18");
    Err(no_network(path, allowed))
}

/// Checks that every node, including those in branches and loops, has a supported operator.
fn check_operators(path: &Path, graph: &GraphProto, known: &OnnxOpRegister) -> Result<()> {
    for node in &graph.node {
        let is_there = known.0.contains_key(&node.op_type);
        let other = OTHER_DOMAINS
            .iter()
            .find(|(domain, _)| *domain == node.domain);
        let is_meant = match other {
            Some((_, operators)) => operators.contains(&&*node.op_type),
            None => is_own(&node.domain),
        };
        if !is_there || !is_meant {
            return Err(operator(path, node, None));
        }
        for inner in graphs(&node.attribute) {
            check_operators(path, inner, known)?;
        }
    }
    Ok(())
}

fn graphs(attributes: &[AttributeProto]) -> impl Iterator<Item = &GraphProto> {
    attributes
        .iter()
        .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Checks that every name is defined once, and that every output is computed.
fn check_names(path: &Path, graph: &GraphProto) -> Result<()> {
    let mut given: HashSet<&str> = HashSet::new();
    let twice = |kind: &str, name: &str| {
        let problem = format!("{kind} {name:?} is defined twice");
        Err(no_network(path, problem))
    };
    for input in &graph.input {
        if !given.insert(&input.name) {
            return twice("its input", &input.name);
        }
    }
    // A weight may also be listed among the inputs.
    given.extend(graph.initializer.iter().map(|weight| &*weight.name));
    for name in graph.node.iter().flat_map(|node| &node.output) {
        if !name.is_empty() && !given.insert(name) {
            return twice("its value", name);
        }
    }
    let mut outputs: HashSet<&str> = HashSet::new();
    for output in &graph.output {
        if !outputs.insert(&output.name) {
            return twice("its output", &output.name);
        }
        if !given.contains(&*output.name) {
            let problem = format!("no node computes its output {:?}", output.name);
            return Err(no_network(path, problem));
        }
    }
    Ok(())
}

/// Returns the name of the element type of an input or output, if it is known.
pub(super) fn element(info: &ValueInfoProto) -> Option<String> {
    let Declared::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    let kind = DataType::try_from(tensor.elem_type).ok()?;
    (kind != DataType::Undefined).then(|| format!("{kind:?}").to_lowercase())
}

/// Returns the external files in which a network has weights, each once.
///
/// # Errors
///
/// [`Error::ModelFile`] for a file outside the network's folder, [`Error::Io`] for one that cannot be found.
pub(super) fn external(path: &Path, graph: &GraphProto) -> Result<Vec<PathBuf>> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str() != OsStr::new("") => folder,
        _ => Path::new("."),
    };
    let mut names: Vec<&str> = tensors(graph).filter_map(location).collect();
    names.sort_unstable();
    names.dedup();
    let outside = |name: &str| {
        let problem = format!("it has weights in {name:?}, which is not in its folder");
        no_network(path, problem)
    };
    let root = folder.canonicalize().map_err(Error::io("find", folder))?;
    let file = |name: &str| {
        let plain = Path::new(name).components();
        let is_plain = |part| {
            matches!(
                part,
                std::path::Component::Normal(_) | std::path::Component::CurDir
            )
        };
        if !plain.into_iter().all(is_plain) {
            return Err(outside(name));
        }
        let file = folder.join(name);
        let real = file
            .canonicalize()
            .map_err(Error::io("find the weights in", &file))?;
        if real.starts_with(&root) && real.is_file() {
            Ok(file)
        } else {
            Err(outside(name))
        }
    };
    names.into_iter().map(file).collect()
}

/// Returns all weights and constants of a graph, including those in branches and loops.
fn tensors(graph: &GraphProto) -> Box<dyn Iterator<Item = &TensorProto> + '_> {
    let attributes = || {
        graph
            .node
            .iter()
            .flat_map(|node: &NodeProto| &node.attribute)
    };
    let constants = attributes().flat_map(|one| one.t.iter().chain(&one.tensors));
    let inner = graph.node.iter().flat_map(|node| graphs(&node.attribute));
    Box::new(
        graph
            .initializer
            .iter()
            .chain(constants)
            .chain(inner.flat_map(tensors)),
    )
}

fn location(tensor: &TensorProto) -> Option<&str> {
    let entry = tensor
        .external_data
        .iter()
        .find(|entry| entry.key == "location");
    entry.map(|entry| &*entry.value)
}
