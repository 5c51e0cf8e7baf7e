//! Networks from ONNX files, run on the CPU by tract, which is compiled in.
//!
//! Threads share a network and run it concurrently, each on one core. No type of tract is visible outside this file and
//! its folder.

mod cast;
mod checks;
mod parts;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Length;
use tract_onnx::pb::type_proto::Value as Declared;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{Factoid, InferenceOp};

use self::parts::NetworkParts;
use super::model::{Model, OutputSpec};
use super::network::{InputAxes, Network, OutputKind, Runtime, TakeOutput, no_network};
use super::place::OutputPlace;
use super::pool::PatchPool;
use crate::dtype::DType;
use crate::error::{Cause, Error, Result};
use crate::files::{checksum, read_up_to};
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// The name under which tract's own Resize is registered; no ONNX operator has this name.
const RESIZE: &str = "tract's Resize";

/// A network from an ONNX file.
///
/// It has one input of five axes (batch, channel, z, y, x) and of type f32, f16 or f64. Lengths may be fixed in the
/// file or left open. Patches are run in batches of the length that the file fixes, otherwise one by one. Outputs keep
/// their type, including 64-bit integers. Operator sets 7 to 22 are supported; weights may be in other files of the
/// network's folder.
///
/// ```
/// use voxpatch::inference::{Model, Onnx};
/// use voxpatch::{DType, Layout};
///
/// # fn main() -> voxpatch::Result<()> {
/// # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
/// let model = Onnx::open("tests/data/onnx/unet.onnx")?;
/// let scan = Layout::new([100, 128, 128], 1, DType::I16);
/// assert_eq!(model.outputs(&scan, [32; 3])?[0].channels, 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Onnx(Network<Tract>);

/// The tract runtime, with a network whose lengths may be open.
struct Tract {
    model: InferenceModel,
    input: DatumType,
}

impl Onnx {
    /// Reads a network from a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::ModelFile`] if it is not ONNX or has no input that fits a
    /// volume, and [`Error::ModelOperator`] if it has a node that cannot be run.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read_up_to(path, u64::MAX)?;
        let crc = crc32c::crc32c(&bytes);
        let runtime = runtime();
        let mut proto = runtime
            .proto_model_for_read(&mut Cursor::new(bytes))
            .map_err(|_| no_network(path, "it is not an ONNX file"))?;
        let mut graph = proto
            .graph
            .take()
            .ok_or_else(|| no_network(path, "it is not an ONNX file, or has no graph"))?;
        let axes = input_axes(path, &graph)?;
        checks::check(path, &proto, &graph, &runtime.op_register)?;
        let weights = checks::external(path, &graph)?;
        let crc = weights
            .iter()
            .try_fold(crc, |crc, file| checksum(crc, file))?;
        let names = graph.output.iter().map(|out| out.name.clone()).collect();
        cast::rename(&mut graph);
        // The file without its graph, to find out which node is invalid.
        let rest = proto.clone();
        proto.graph = Some(graph);
        let folder = path.parent().and_then(Path::to_str);
        let parsed = caught(|| runtime.parse(&proto, folder));
        let parsed = parsed.map_err(|error| unusable(path, (&rest, &proto), &runtime, error))?;
        if !parsed.unresolved_inputs.is_empty() {
            let missing = parsed.unresolved_inputs.join(", ");
            return Err(no_network(path, format!("no node computes {missing}")));
        }
        let model = parsed.model;
        let input = model.input_fact(0).ok();
        let input = input.and_then(|fact| fact.datum_type.concretize());
        let floats = [DatumType::F32, DatumType::F16, DatumType::F64];
        let Some(input) = input.filter(|kind| floats.contains(kind)) else {
            let problem = format!("its input takes {input:?}, not f32, f16 or f64");
            return Err(no_network(path, problem));
        };
        Ok(Self(Network {
            path: path.to_path_buf(),
            crc,
            runtime: Tract { model, input },
            axes,
            names,
            only: None,
            place: OutputPlace::default(),
            ready: Mutex::default(),
        }))
    }
}

impl Onnx {
    /// Selects a single output: the one called `name`, or the first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if no output has the name.
    pub fn only(mut self, name: Option<&str>) -> Result<Self> {
        self.0.only(name)?;
        Ok(self)
    }

    /// Sets the position of the outputs in their patch, where their lengths are ambiguous.
    #[must_use]
    pub fn with_place(mut self, place: OutputPlace) -> Self {
        self.0.place = place;
        self
    }
}

impl Model for Onnx {
    fn id(&self) -> Result<String> {
        self.0.id()
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        self.0.outputs(input, patch)
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.0.predict(batch)
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        self.0.predict_pooled(batch, pool)
    }
}

impl Tract {
    /// Returns the network with all shapes known.
    fn typed(&self, input: [usize; 5]) -> TractResult<TypedModel> {
        let fact = InferenceFact::dt_shape(self.input, input);
        self.model.clone().with_input_fact(0, fact)?.into_typed()
    }
}

impl Runtime for Tract {
    type Ready = NetworkParts;

    fn prepare(&self, input: [usize; 5]) -> Result<(Self::Ready, Vec<OutputKind>), Cause> {
        let prepared = caught(|| {
            let typed = self.typed(input)?;
            let kinds = kinds(&typed)?;
            Ok((NetworkParts::new(typed)?, kinds))
        });
        Ok(prepared?)
    }

    fn outputs(&self, input: [usize; 5]) -> Result<Vec<OutputKind>, Cause> {
        Ok(caught(|| kinds(&self.typed(input)?))?)
    }

    fn run(
        &self,
        ready: &Self::Ready,
        input: [usize; 5],
        values: Vec<f32>,
        take: TakeOutput<'_>,
    ) -> Result<(), Cause> {
        let outputs = caught(|| {
            let tensor = Tensor::from_shape(&input, &values)?;
            drop(values);
            let tensor = tensor.cast_to_dt(self.input)?.into_owned();
            ready.run(tensor.into())
        });
        for value in outputs? {
            take_voxels(&value, take)?;
        }
        Ok(())
    }
}

/// Runs code that may panic on a damaged file, and turns a panic into an error.
fn caught<T>(work: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        let message = message.unwrap_or("it did not say why");
        Err(TractError::msg(format!("tract panicked: {message}")))
    })
}

/// Creates tract's runtime, with resizing as in all supported operator sets.
fn runtime() -> tract_onnx::Onnx {
    let mut runtime = tract_onnx::onnx().with_ignore_value_info(true);
    let known = runtime.op_register.0["Resize"];
    runtime.op_register.insert(RESIZE, known);
    runtime.op_register.insert("Resize", resize);
    runtime.op_register.insert("Upsample", resize);
    runtime.op_register.insert(cast::NAME, cast::build);
    runtime
}

/// Builds a Resize of operator set 13 or later from that of any set. Up to set 10, the operator had no region of
/// interest before the scales, and the nearest voxel was the one below. Up to set 9 it was called Upsample.
fn resize(
    context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (mut context, mut node) = (context.clone(), node.clone());
    if context.onnx_operator_set_version <= 10 {
        node.input.insert(1.min(node.input.len()), String::new());
        let said = [
            ("coordinate_transformation_mode", "asymmetric"),
            ("nearest_mode", "floor"),
        ];
        node.attribute
            .extend(said.map(|(name, value)| AttributeProto {
                name: name.to_owned(),
                r#type: AttributeType::String.into(),
                s: value.as_bytes().to_vec(),
                ..AttributeProto::default()
            }));
    }
    context.onnx_operator_set_version = context.onnx_operator_set_version.max(13);
    context.framework.op_register.0[RESIZE](&context, &node)
}

/// Returns the axis lengths of the only input that is not a weight.
fn input_axes(path: &Path, graph: &GraphProto) -> Result<InputAxes> {
    let given = |input: &&ValueInfoProto| !graph.initializer.iter().any(|w| w.name == input.name);
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(given).collect();
    let axes: Vec<Option<Vec<Option<u64>>>> = inputs.iter().map(|input| declared(input)).collect();
    if let [Some(axes)] = &axes[..]
        && let Ok(axes) = <[Option<u64>; 5]>::try_from(&axes[..])
    {
        let kind = checks::element(inputs[0]).unwrap_or_else(|| "an unknown type".to_owned());
        if !["float", "float16", "double"].contains(&&*kind) {
            let problem = format!("its input takes {kind}, not float, float16 or double");
            return Err(no_network(path, problem));
        }
        if graph.output.is_empty() {
            return Err(no_network(path, "it has no output"));
        }
        return Ok(InputAxes(axes));
    }
    let described = |(input, axes): (&&ValueInfoProto, &Option<Vec<Option<u64>>>)| match axes {
        Some(axes) => format!("{:?} of {} axes", input.name, axes.len()),
        None => format!("{:?} of unknown axes", input.name),
    };
    let told: Vec<String> = inputs.iter().zip(&axes).map(described).collect();
    let problem = format!(
        "it must have one input of 5 axes, n, c, z, y, x, but has {}",
        if told.is_empty() {
            "none".to_owned()
        } else {
            told.join(" and ")
        }
    );
    Err(no_network(path, problem))
}

/// Returns the lengths of an input's axes; `None` for an axis that is not fixed.
fn declared(input: &ValueInfoProto) -> Option<Vec<Option<u64>>> {
    let Declared::TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
    let length = |value: &Option<Length>| match value {
        Some(Length::DimValue(n)) => u64::try_from(*n).ok().filter(|&n| n > 0),
        _ => None,
    };
    let axes = tensor.shape.as_ref()?.dim.iter();
    Some(axes.map(|axis| length(&axis.value)).collect())
}

fn operator(path: &Path, node: &NodeProto, source: Option<TractError>) -> Error {
    let first = || node.output.first().cloned().unwrap_or_default();
    let name = Some(node.name.clone()).filter(|name| !name.is_empty());
    let domain = &node.domain;
    let op_type = match &*node.op_type {
        cast::NAME => "Cast",
        other => other,
    };
    Error::ModelOperator {
        path: path.to_path_buf(),
        node: name.unwrap_or_else(first),
        operator: if checks::is_own(domain) {
            op_type.to_owned()
        } else {
            format!("{domain}.{op_type}")
        },
        source: source.map(Into::into),
    }
}

/// Returns the reason why a graph cannot be parsed: the first node that cannot be built alone, if any.
fn unusable(
    path: &Path,
    (rest, proto): (&ModelProto, &ModelProto),
    runtime: &tract_onnx::Onnx,
    error: TractError,
) -> Error {
    let alone = |node: &&NodeProto| {
        let mut proto = rest.clone();
        proto.graph = Some(GraphProto {
            node: vec![(*node).clone()],
            ..GraphProto::default()
        });
        caught(|| runtime.parse(&proto, None)).is_err()
    };
    let mut nodes = proto.graph.iter().flat_map(|graph| &graph.node);
    match nodes.find(alone) {
        Some(node) => operator(path, node, Some(error)),
        None => no_network(path, format!("{error:#}")),
    }
}

/// Returns the kinds of all outputs.
fn kinds(model: &TypedModel) -> TractResult<Vec<OutputKind>> {
    let outlets = model.output_outlets()?.iter();
    let shape = |outlet: &OutletId| {
        let fact = model.outlet_fact(*outlet)?;
        let axes = fact.shape.iter().map(TDim::to_i64);
        let axes = axes.map(|n| Ok(u64::try_from(n?)?));
        let axes = axes.collect::<TractResult<_>>()?;
        TractResult::Ok((voxel_type(fact.datum_type)?, axes))
    };
    outlets.map(shape).collect()
}

/// Passes on the values of an output as voxels.
fn take_voxels(value: &Tensor, take: TakeOutput<'_>) -> Result<(), Cause> {
    // An output may consist of symbolic lengths: they are numbers once all lengths are known.
    let value = match value.datum_type() {
        DatumType::TDim => value.cast_to::<i64>()?,
        _ => std::borrow::Cow::Borrowed(value),
    };
    let values = value.try_as_plain_ram()?;
    macro_rules! taken {
        ($($kind:ident $native:ty),*) => {
            match value.datum_type() {
                $(DatumType::$kind => {
                    let voxels = bytemuck::cast_slice(values.as_slice::<$native>()?);
                    Ok(take(DType::$kind, voxels)?)
                })*
                other => Err(no_voxels(other).into()),
            }
        };
    }
    taken!(Bool bool, U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, U64 u64, I64 i64, F16 f16, F32 f32, F64 f64)
}

/// Returns the dtype that [`take_voxels`] will pass on.
fn voxel_type(kind: DatumType) -> TractResult<DType> {
    macro_rules! named {
        ($($kind:ident),*) => {
            match kind {
                DatumType::TDim => Ok(DType::I64),
                $(DatumType::$kind => Ok(DType::$kind),)*
                other => Err(no_voxels(other)),
            }
        };
    }
    named!(Bool, U8, I8, U16, I16, U32, I32, U64, I64, F16, F32, F64)
}

fn no_voxels(kind: DatumType) -> TractError {
    TractError::msg(format!("an output of {kind:?} holds no voxels"))
}

#[cfg(test)]
mod tests;
