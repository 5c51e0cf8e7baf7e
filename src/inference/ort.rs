//! Networks from ONNX files, run on the CPU by ONNX Runtime, which is loaded on first use.
//!
//! `ORT_DYLIB_PATH` names its library, version 1.17 or later. Each thread that predicts has its own session, because a
//! session cannot run twice at the same time. No type of ONNX Runtime is visible outside this file.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use ort::session::Session;
use ort::value::{DynTensor, DynValue, Tensor, TensorElementType};

use super::external::locations;
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

/// The environment variable with the path of ONNX Runtime's library.
const LIBRARY: &str = "ORT_DYLIB_PATH";

/// A network from an ONNX file, run by ONNX Runtime.
///
/// It has one input of five axes (batch, channel, z, y, x) and of type f32, f16 or f64. Lengths may be fixed in the
/// file or left open. Patches are run in batches of the length that the file fixes, otherwise one by one.
#[derive(Debug)]
pub struct OnnxRuntime(Network<Sessions>);

/// A function that takes the type, the lengths and the voxels of the next output.
type TakeTensor<'a> = &'a mut dyn FnMut(DType, &[i64], &[u8]) -> Result<(), Cause>;

/// The pool of sessions of a network, which grows to one per thread that runs it.
struct Sessions {
    path: PathBuf,
    input: TensorElementType,
    idle: Mutex<Vec<Session>>,
}

impl OnnxRuntime {
    /// Loads ONNX Runtime from the library in `ORT_DYLIB_PATH`, if it is not loaded yet, and reads a network from a
    /// file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `ORT_DYLIB_PATH` is not set, [`Error::Io`] if the library cannot be loaded or a
    /// file cannot be read, and [`Error::ModelFile`] if the runtime cannot run the network or it has no input that fits
    /// a volume.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        load()?;
        let refused =
            |error: ort::Error| no_network(path, format!("ONNX Runtime cannot load it: {error}"));
        let bytes = read_up_to(path, u64::MAX)?;
        let session = session(path).map_err(refused)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let weights = locations(&bytes).into_iter().map(|name| folder.join(name));
        let mut crc = crc32c::crc32c(&bytes);
        for file in weights {
            crc = checksum(crc, &file)?;
        }
        let (input, axes) = input(path, &session)?;
        let names = session.outputs().iter().map(|out| out.name().to_owned());
        Ok(Self(Network {
            path: path.to_path_buf(),
            crc,
            axes,
            names: names.collect(),
            only: None,
            place: OutputPlace::default(),
            ready: Mutex::default(),
            runtime: Sessions {
                path: path.to_path_buf(),
                input,
                idle: Mutex::new(vec![session]),
            },
        }))
    }
}

impl OnnxRuntime {
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

impl Model for OnnxRuntime {
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

impl Runtime for Sessions {
    type Ready = ();

    fn prepare(&self, input: [usize; 5]) -> Result<((), Vec<OutputKind>), Cause> {
        Ok(((), self.outputs(input)?))
    }

    fn outputs(&self, input: [usize; 5]) -> Result<Vec<OutputKind>, Cause> {
        let values = vec![0.0; input.iter().product()];
        let mut kinds = Vec::new();
        self.with_outputs(input, values, &mut |dtype, axes, _| {
            let axes = axes.iter().map(|&n| u64::try_from(n));
            kinds.push((dtype, axes.collect::<Result<_, _>>()?));
            Ok(())
        })?;
        Ok(kinds)
    }

    fn run(
        &self,
        (): &(),
        input: [usize; 5],
        values: Vec<f32>,
        take: TakeOutput<'_>,
    ) -> Result<(), Cause> {
        self.with_outputs(input, values, &mut |dtype, _, voxels| {
            Ok(take(dtype, voxels)?)
        })
    }
}

impl Sessions {
    /// Runs the network, and passes the type, the lengths and the voxels of each output to `take`.
    fn with_outputs(
        &self,
        input: [usize; 5],
        values: Vec<f32>,
        take: TakeTensor<'_>,
    ) -> Result<(), Cause> {
        let tensor = tensor(self.input, input, values)?;
        let lock = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = lock().pop();
        let mut session = match idle {
            Some(session) => session,
            None => session(&self.path)?,
        };
        let outputs = session.run(ort::inputs![tensor])?;
        for value in outputs.values() {
            take_voxels(&value, take)?;
        }
        drop(outputs);
        lock().push(session);
        Ok(())
    }
}

/// Loads the library once.
fn load() -> Result<()> {
    let Some(library) = env::var_os(LIBRARY).filter(|path| !path.is_empty()) else {
        return Err(Error::InvalidArgument {
            argument: LIBRARY,
            value: "(not set)".to_owned(),
            problem: "it must name the library of ONNX Runtime (libonnxruntime.so)".to_owned(),
        });
    };
    let library = PathBuf::from(library);
    let failed = |error| Error::io("load", &library)(io::Error::other(error));
    ort::init_from(&library).map_err(failed)?.commit();
    Ok(())
}

/// Creates a session that runs on one core.
fn session(path: &Path) -> ort::Result<Session> {
    Session::builder()?
        .with_intra_threads(1)?
        .commit_from_file(path)
}

/// Returns the type and the axes of the only input.
fn input(path: &Path, session: &Session) -> Result<(TensorElementType, InputAxes)> {
    let [input] = session.inputs() else {
        let problem = format!("it must have one input, not {}", session.inputs().len());
        return Err(no_network(path, problem));
    };
    let axes = input.dtype().tensor_shape();
    let axes: Vec<Option<u64>> = axes.map_or_else(Vec::new, |axes| {
        let length = |&n: &i64| u64::try_from(n).ok().filter(|&n| n > 0);
        axes.iter().map(length).collect()
    });
    let Ok(axes) = <[Option<u64>; 5]>::try_from(&axes[..]) else {
        let problem = format!(
            "it must have one input of 5 axes, n, c, z, y, x, but has {:?} of {} axes",
            input.name(),
            axes.len()
        );
        return Err(no_network(path, problem));
    };
    match input.dtype().tensor_type() {
        Some(
            kind @ (TensorElementType::Float32
            | TensorElementType::Float16
            | TensorElementType::Float64),
        ) => Ok((kind, InputAxes(axes))),
        kind => {
            let problem = format!("its input takes {kind:?}, not f32, f16 or f64");
            Err(no_network(path, problem))
        }
    }
}

/// Converts values to the network's input type.
fn tensor(kind: TensorElementType, axes: [usize; 5], values: Vec<f32>) -> ort::Result<DynTensor> {
    Ok(match kind {
        TensorElementType::Float16 => {
            let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            Tensor::from_array((axes, values))?.upcast()
        }
        TensorElementType::Float64 => {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            Tensor::from_array((axes, values))?.upcast()
        }
        _ => Tensor::from_array((axes, values))?.upcast(),
    })
}

/// Passes on the type, the lengths and the voxels of an output.
fn take_voxels(value: &DynValue, take: TakeTensor<'_>) -> Result<(), Cause> {
    let kind = value.dtype().tensor_type();
    macro_rules! taken {
        ($($kind:ident $dtype:ident $native:ty),*) => {
            match kind {
                $(Some(TensorElementType::$kind) => {
                    let (axes, values) = value.try_extract_tensor::<$native>()?;
                    take(DType::$dtype, axes, bytemuck::cast_slice(values))
                })*
                other => Err(format!("an output of {other:?} holds no voxels").into()),
            }
        };
    }
    taken!(Bool Bool bool, Uint8 U8 u8, Int8 I8 i8, Uint16 U16 u16, Int16 I16 i16, Uint32 U32 u32, Int32 I32 i32,
        Uint64 U64 u64, Int64 I64 i64, Float16 F16 f16, Float32 F32 f32, Float64 F64 f64)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::region::Region;
    use crate::volume::{VolumeExt, open};

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/onnx")
            .join(name)
    }

    fn array(name: &str) -> Patch {
        let volume = open(file(name)).unwrap();
        let whole = Region::whole(volume.layout().shape);
        volume.read(whole).unwrap().converted(DType::F32)
    }

    #[test]
    #[ignore = "needs ORT_DYLIB_PATH"]
    fn every_network_returns_the_stored_output() {
        for name in [
            "unet",
            "tissue",
            "argmax",
            "half",
            "fixed",
            "fixed_batch_of_3",
            "conv_valid",
            "max_pool",
        ] {
            let input = array(&format!("{name}.in.npy"));
            let model = OnnxRuntime::open(file(&format!("{name}.onnx"))).unwrap();
            let layout = Layout::new(input.shape(), input.channels(), DType::F32);
            let outputs = model.0.planned(&layout, input.shape()).unwrap();
            let place = match name {
                "conv_valid" => ([2; 3], 1),
                "max_pool" => ([0; 3], 2),
                _ => ([0; 3], 1),
            };
            assert_eq!((outputs[0].halo, outputs[0].scale), place, "{name}");
            let all = model
                .0
                .predict_all(&[input.clone(), input], &PatchPool::default())
                .unwrap();
            for (k, patches) in all.into_iter().enumerate() {
                let expected = array(&format!("{name}.out{k}.npy"));
                assert_eq!(patches.len(), 2, "{name}");
                for found in patches {
                    assert_eq!(found.shape(), expected.shape(), "{name}");
                    let found = found.converted(DType::F32);
                    let pairs = found.as_slice::<f32>().unwrap().iter();
                    for (found, expected) in pairs.zip(expected.as_slice::<f32>().unwrap()) {
                        let error = (found - expected).abs();
                        assert!(error <= 1e-4 * expected.abs().max(1.0), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "needs ORT_DYLIB_PATH"]
    fn threads_run_a_network_side_by_side() {
        let input = array("unet.in.npy");
        let model = OnnxRuntime::open(file("unet.onnx")).unwrap();
        let alone = model.predict(vec![input.clone()]).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(model.predict(vec![input.clone()]).unwrap(), alone));
            }
        });
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_where_it_is_named() {
        if env::var_os(LIBRARY).is_none() {
            let error = OnnxRuntime::open(file("unet.onnx")).unwrap_err();
            assert!(error.to_string().contains(LIBRARY), "{error}");
        }
    }

    #[test]
    #[ignore = "needs ORT_DYLIB_PATH"]
    fn files_that_cannot_be_run_say_why() {
        let unet = file("unet.onnx");
        let error = |name: &str| OnnxRuntime::open(file(name)).unwrap_err().to_string();
        assert!(error("none.onnx").starts_with("cannot open"));
        assert!(error("unet.in.npy").contains("as a model: "));
        assert!(
            error("wrong_rank.onnx").contains("5 axes, n, c, z, y, x, but has \"volume\" of 4")
        );
        assert!(error("wrong_operator.onnx").contains("Frobnicate"));
        let model = OnnxRuntime::open(unet).unwrap();
        let error = model
            .outputs(&Layout::new([9; 3], 1, DType::F32), [7; 3])
            .unwrap_err();
        assert!(matches!(error, Error::ModelRun { .. }), "{error}");
    }
}
