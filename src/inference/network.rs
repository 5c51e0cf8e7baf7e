//! Networks from files, for any runtime: one input (n, c, z, y, x), and outputs that are centered in the patch, with
//! voxels of the input's size or larger.
//!
//! A network is prepared once for each shape of patch, and all threads share the result.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::model::{Model, OutputSpec};
use super::place::OutputPlace;
use super::pool::PatchPool;
use crate::dtype::DType;
use crate::error::{Cause, Error, Result, works_with};
use crate::patch::Patch;
use crate::region::{AXES, Region, Shape};
use crate::volume::Layout;

/// The number of patch shapes for which a prepared network is cached.
pub(super) const PREPARED_SHAPES: usize = 4;

/// Voxels by which a patch is extended to see how its output grows. Networks that halve a patch up to six times accept
/// it.
const PROBE_EXTENSION: u64 = 64;

/// The most halvings for which multiples of a patch's length are tried.
const MOST_HALVINGS: u32 = 6;

/// The dtype and the axis lengths of an output.
pub(super) type OutputKind = (DType, Vec<u64>);

/// A function that takes the voxels of the next output, in native byte order.
pub(super) type TakeOutput<'a> = &'a mut dyn FnMut(DType, &[u8]) -> Result<()>;

/// A runtime for networks.
pub(super) trait Runtime: Send + Sync {
    /// A network prepared for one shape of input.
    type Ready: Send + Sync;

    /// Prepares the network for an input of these lengths, and returns the kinds of its outputs.
    fn prepare(&self, input: [usize; 5]) -> Result<(Self::Ready, Vec<OutputKind>), Cause>;

    /// Returns the kinds of the outputs for an input of these lengths.
    fn outputs(&self, input: [usize; 5]) -> Result<Vec<OutputKind>, Cause>;

    /// Runs the network, and passes all values of each output to `take`, in order.
    fn run(
        &self,
        ready: &Self::Ready,
        input: [usize; 5],
        values: Vec<f32>,
        take: TakeOutput<'_>,
    ) -> Result<(), Cause>;
}

/// A network with its runtime.
pub(super) struct Network<R: Runtime> {
    pub(super) path: PathBuf,
    /// The checksum (crc32c) of the file and of its external weights, which identifies the network.
    pub(super) crc: u32,
    pub(super) runtime: R,
    pub(super) axes: InputAxes,
    /// The outputs' names.
    pub(super) names: Vec<String>,
    /// The only output to return, as an index into `names`; `None` for all.
    pub(super) only: Option<usize>,
    /// The declared position of the outputs.
    pub(super) place: OutputPlace,
    pub(super) ready: Mutex<Vec<Arc<ReadyNetwork<R::Ready>>>>,
}

/// A network prepared for one shape of patch.
pub(super) struct ReadyNetwork<T> {
    channels: u64,
    patch: Shape,
    network: T,
    outputs: Vec<NetworkOutput>,
}

impl<R: Runtime> Network<R> {
    /// Selects a single output: the one called `name`, or the first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if no output has the name.
    pub(super) fn only(&mut self, name: Option<&str>) -> Result<()> {
        let found = match name {
            Some(name) => self.names.iter().position(|own| own == name),
            None => Some(0),
        };
        let missing = || Error::InvalidArgument {
            argument: "output",
            value: name.unwrap_or_default().to_owned(),
            problem: format!("the model's outputs are {}", self.names.join(", ")),
        };
        self.only = Some(found.ok_or_else(missing)?);
        Ok(())
    }

    /// Returns the outputs for patches of `patch` voxels of such a volume.
    pub(super) fn planned(&self, input: &Layout, patch: Shape) -> Result<Vec<NetworkOutput>> {
        self.axes.check_channels(&self.path, input)?;
        Ok(self.ready(input.channels, patch)?.outputs.clone())
    }

    /// Predicts a batch of f32 patches: for each output, the predictions in the order of the patches, from the pool.
    pub(super) fn predict_all(&self, batch: &[Patch], pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let outputs = self.only.map_or(self.names.len(), |_| 1);
        let mut all = vec![Vec::with_capacity(batch.len()); outputs];
        let alike = |a: &Patch, b: &Patch| a.shape() == b.shape() && a.channels() == b.channels();
        let groups = batch.chunk_by(alike);
        for group in groups.flat_map(|group| group.chunks(self.axes.batch())) {
            let (channels, patch) = (group[0].channels(), group[0].shape());
            let ready = self.ready(channels, patch)?;
            let input = self.axes.filled(channels, patch);
            let mut values: Vec<f32> = Vec::with_capacity(input.iter().product());
            for patch in group {
                values.extend_from_slice(patch.as_slice::<f32>()?);
            }
            // A batch of fixed length is padded with zeros.
            values.resize(input.iter().product(), 0.0);
            let mut places = all.iter_mut().zip(&ready.outputs);
            let mut n = 0;
            let mut take = |dtype: DType, voxels: &[u8]| -> Result<()> {
                let is_wanted = self.gives(n);
                n += 1;
                let Some((out, output)) = is_wanted.then(|| places.next()).flatten() else {
                    return Ok(());
                };
                let parts = voxels.chunks((voxels.len() / input[0]).max(1));
                for (patch, part) in group.iter().zip(parts) {
                    out.push(output.patch(patch.region(), dtype, part, pool)?);
                }
                Ok(())
            };
            let run = self.runtime.run(&ready.network, input, values, &mut take);
            run.map_err(|cause| match cause.downcast::<Error>() {
                // The network ran, but what it returned was not taken.
                Ok(own) => *own,
                Err(cause) => self.failed("run", channels, patch, cause),
            })?;
        }
        Ok(all)
    }

    /// Returns the network for patches of one shape, and prepares it on first use.
    fn ready(&self, channels: u64, patch: Shape) -> Result<Arc<ReadyNetwork<R::Ready>>> {
        // Other threads wait instead of preparing it again.
        let mut kept = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept
            .iter()
            .find(|r| (r.channels, r.patch) == (channels, patch));
        if let Some(found) = found {
            return Ok(Arc::clone(found));
        }
        let made = self.made_ready(channels, patch);
        let made = Arc::new(made.map_err(|error| self.with_multiple(error, channels, patch))?);
        if kept.len() == PREPARED_SHAPES {
            kept.remove(0);
        }
        kept.push(Arc::clone(&made));
        Ok(made)
    }

    fn made_ready(&self, channels: u64, patch: Shape) -> Result<ReadyNetwork<R::Ready>> {
        self.axes.check_patch(&self.path, patch)?;
        let (network, kinds) = self
            .runtime
            .prepare(self.axes.filled(channels, patch))
            .map_err(|cause| self.failed("prepared", channels, patch, cause))?;
        Ok(ReadyNetwork {
            channels,
            patch,
            network,
            outputs: self.placed(channels, patch, kinds)?,
        })
    }

    /// Returns the outputs of these kinds for patches of one shape, with their halos and scales.
    fn placed(
        &self,
        channels: u64,
        patch: Shape,
        kinds: Vec<OutputKind>,
    ) -> Result<Vec<NetworkOutput>> {
        let covers = |(_, axes): &OutputKind| axes.ends_with(&patch);
        let longer = self
            .axes
            .longer(patch)
            .filter(|_| !kinds.iter().all(covers));
        let longer = longer.and_then(|longer| {
            let grown = self.runtime.outputs(self.axes.filled(channels, longer));
            Some((longer, grown.ok()?))
        });
        let outputs = self.names.iter().zip(kinds).enumerate();
        let outputs = outputs.filter(|(n, _)| self.gives(*n));
        let outputs = outputs.map(|(n, (name, (dtype, axes)))| {
            let longer = longer
                .as_ref()
                .map(|(longer, grown)| (*longer, &*grown[n].1));
            NetworkOutput::new(
                &self.path,
                (name.clone(), self.place),
                dtype,
                (patch, &axes),
                longer,
            )
        });
        outputs.collect()
    }

    /// Adds to an error about a patch's shape the multiple that its lengths must be, if one is found.
    fn with_multiple(&self, error: Error, channels: u64, patch: Shape) -> Error {
        match error {
            Error::ModelRun {
                path,
                action,
                channels,
                patch,
                source,
                ..
            } => Error::ModelRun {
                multiple: self.multiple(channels, patch),
                path,
                action,
                channels,
                patch,
                source,
            },
            Error::ModelFile { path, problem } if self.axes.fits(patch) => Error::ModelFile {
                problem: problem + &works_with(self.multiple(channels, patch)),
                path,
            },
            other => other,
        }
    }

    /// Returns the smallest power of two such that patches work if their lengths are odd multiples of it, and not all
    /// lengths of `patch` are multiples of it.
    fn multiple(&self, channels: u64, patch: Shape) -> Option<u64> {
        let works = |&multiple: &u64| {
            let odd = |a: usize| match self.axes.0[2 + a] {
                Some(fixed) => fixed,
                None => (patch[a].div_ceil(multiple) | 1).saturating_mul(multiple),
            };
            let shape: Shape = std::array::from_fn(odd);
            let kinds = self.runtime.outputs(self.axes.filled(channels, shape));
            kinds.is_ok_and(|kinds| self.placed(channels, shape, kinds).is_ok())
        };
        let is_new = |multiple: &u64| !patch.iter().all(|n| n.is_multiple_of(*multiple));
        let powers = (1..=MOST_HALVINGS).map(|n| 1_u64 << n);
        powers.filter(is_new).find(works)
    }

    /// Returns `true` if output `n` is selected.
    fn gives(&self, n: usize) -> bool {
        self.only.is_none_or(|only| only == n)
    }

    fn failed(&self, action: &'static str, channels: u64, patch: Shape, source: Cause) -> Error {
        Error::ModelRun {
            path: self.path.clone(),
            action,
            channels,
            patch,
            multiple: None,
            source,
        }
    }
}

impl<R: Runtime> Model for Network<R> {
    fn id(&self) -> Result<String> {
        let path = self.path.display();
        Ok(format!("{path} with crc32c {:08x}", self.crc))
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        let planned = self.planned(input, patch)?;
        let predictions = planned.into_iter().map(|output| OutputSpec {
            name: output.name,
            channels: output.channels,
            dtype: output.dtype,
            halo: output.halo,
            scale: output.scale,
            average_integers: false,
        });
        Ok(predictions.collect())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let real = batch.into_iter().map(|p| pool.convert(p, DType::F32));
        let real = real.collect::<Result<Vec<_>>>()?;
        let predictions = self.predict_all(&real, pool)?;
        for patch in real {
            pool.give(patch);
        }
        Ok(predictions)
    }
}

impl<R: Runtime> fmt::Debug for Network<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("path", &self.path)
            .field("axes", &self.axes)
            .field("outputs", &self.names)
            .finish_non_exhaustive()
    }
}

/// The lengths of the input's axes n, c, z, y, x; `None` where the file does not fix them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InputAxes(pub(super) [Option<u64>; 5]);

impl InputAxes {
    /// Returns the number of patches per call of the network: the number that the file fixes, or 1.
    fn batch(&self) -> usize {
        let fixed = self.0[0].and_then(|n| usize::try_from(n).ok());
        fixed.unwrap_or(1).max(1)
    }

    /// Checks that a volume has the number of channels that the network takes.
    ///
    /// # Errors
    ///
    /// [`Error::ModelChannels`].
    fn check_channels(&self, path: &Path, input: &Layout) -> Result<()> {
        match self.0[1] {
            Some(expected) if expected != input.channels => Err(Error::ModelChannels {
                path: path.to_path_buf(),
                expected,
                volume: input.path.clone(),
                actual: input.channels,
            }),
            _ => Ok(()),
        }
    }

    /// Returns `true` if a patch has the size that the network takes.
    fn fits(&self, patch: Shape) -> bool {
        (0..3).all(|a| self.0[2 + a].is_none_or(|length| length == patch[a]))
    }

    /// Checks that a patch has the size that the network takes.
    ///
    /// # Errors
    ///
    /// [`Error::ModelFile`].
    fn check_patch(&self, path: &Path, patch: Shape) -> Result<()> {
        let [_, _, wanted @ ..] = self.0;
        if self.fits(patch) {
            return Ok(());
        }
        let wanted: Vec<String> = (0..3)
            .map(|a| wanted[a].map_or_else(|| AXES[a].to_string(), |length| length.to_string()))
            .collect();
        let problem = format!(
            "it takes patches of {} voxels, not {patch:?}: use this patch size",
            wanted.join(" x ")
        );
        Err(no_network(path, problem))
    }

    /// Returns the input's lengths for patches of a shape.
    fn filled(&self, channels: u64, patch: Shape) -> [usize; 5] {
        let length = |n| usize::try_from(n).expect("a patch is in memory");
        let [z, y, x] = patch.map(length);
        [self.batch(), length(channels), z, y, x]
    }

    /// Returns a longer patch, if the network fixes no length.
    fn longer(&self, patch: Shape) -> Option<Shape> {
        let open = self.0[2..].iter().all(Option::is_none);
        open.then(|| patch.map(|length| length.saturating_add(PROBE_EXTENSION)))
    }
}

/// An output of a network for patches of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetworkOutput {
    /// Its name in the file.
    pub(super) name: String,
    /// Number of channels.
    pub(super) channels: u64,
    /// The dtype of the values.
    pub(super) dtype: DType,
    /// Voxels along z, y, x.
    pub(super) shape: Shape,
    /// Voxels (z, y, x) of the patch cropped from each face.
    pub(super) halo: Shape,
    /// Patch voxels per output voxel along each axis.
    pub(super) scale: u64,
}

impl NetworkOutput {
    /// Creates the output called `name` that has the lengths `axes` for patches of `patch` voxels; `longer` is a longer
    /// patch with its lengths. An output without a channel axis has one channel.
    ///
    /// # Errors
    ///
    /// [`Error::ModelFile`] if no halo and scale center it in the patch.
    fn new(
        path: &Path,
        (name, place): (String, OutputPlace),
        dtype: DType,
        (patch, axes): (Shape, &[u64]),
        longer: Option<(Shape, &[u64])>,
    ) -> Result<Self> {
        let Some((channels, shape)) = split(axes) else {
            let problem = format!(
                "its output {name:?} has the shape {axes:?}, not n, c, z, y, x: export the network without it"
            );
            return Err(no_network(path, problem));
        };
        let longer = longer.and_then(|(patch, axes)| Some((patch, split(axes)?.1)));
        let found = place.find(patch, (channels, shape), longer);
        let (halo, scale) =
            found.map_err(|error| no_network(path, format!("its output {name:?}: {error}")))?;
        Ok(Self {
            name,
            channels,
            dtype,
            shape,
            halo,
            scale,
        })
    }

    /// Copies the voxels predicted for the region `input` to a patch at their position in the volume.
    ///
    /// # Errors
    ///
    /// [`Error::BufferLength`] if the number of voxels is not the one announced.
    fn patch(&self, input: Region, dtype: DType, voxels: &[u8], pool: &PatchPool) -> Result<Patch> {
        let scale = i64::try_from(self.scale).expect("a scale is at most a patch's length");
        let start = std::array::from_fn(|a| {
            let first = input.start[a].saturating_add_unsigned(self.halo[a]);
            first.div_euclid(scale)
        });
        let mut patch = pool.take(Region::new(start, self.shape), self.channels, dtype)?;
        let expected = patch.bytes().len();
        if voxels.len() != expected {
            return Err(Error::BufferLength {
                expected: expected as u64,
                actual: voxels.len() as u64,
            });
        }
        patch.bytes_mut().copy_from_slice(voxels);
        Ok(patch)
    }
}

/// Creates an [`Error::ModelFile`].
pub(super) fn no_network(path: &Path, problem: impl Into<String>) -> Error {
    Error::ModelFile {
        path: path.to_path_buf(),
        problem: problem.into(),
    }
}

/// Returns the number of channels and the lengths along z, y, x of an output.
fn split(axes: &[u64]) -> Option<(u64, Shape)> {
    match *axes {
        [_, c, z, y, x] => Some((c, [z, y, x])),
        [_, z, y, x] => Some((1, [z, y, x])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A runtime whose only output has one voxel too few.
    struct Short;

    impl Runtime for Short {
        type Ready = ();

        fn prepare(&self, input: [usize; 5]) -> Result<((), Vec<OutputKind>), Cause> {
            Ok(((), self.outputs(input)?))
        }

        fn outputs(&self, input: [usize; 5]) -> Result<Vec<OutputKind>, Cause> {
            Ok(vec![(DType::U8, input.map(|n| n as u64).to_vec())])
        }

        fn run(
            &self,
            (): &(),
            _: [usize; 5],
            values: Vec<f32>,
            take: TakeOutput<'_>,
        ) -> Result<(), Cause> {
            Ok(take(DType::U8, &vec![0; values.len() - 1])?)
        }
    }

    #[test]
    fn an_output_of_another_length_is_refused() {
        let network = Network {
            path: PathBuf::from("net.onnx"),
            crc: 0,
            runtime: Short,
            axes: InputAxes([None; 5]),
            names: vec!["y".to_owned()],
            only: None,
            place: OutputPlace::default(),
            ready: Mutex::default(),
        };
        let patch = Patch::zeros(Region::whole([4; 3]), 1, DType::F32).unwrap();
        let error = network.predict(vec![patch]).unwrap_err();
        let wanted = matches!(
            error,
            Error::BufferLength {
                expected: 64,
                actual: 63
            }
        );
        assert!(wanted, "{error}");
    }

    #[test]
    fn lengths_that_the_file_fixes_are_asked_for() {
        let open = InputAxes([None; 5]);
        let fixed = InputAxes([Some(4), Some(2), None, Some(8), Some(9)]);
        assert_eq!((open.batch(), fixed.batch()), (1, 4));
        assert_eq!(open.longer([8; 3]), Some([72; 3]));
        assert_eq!(fixed.longer([8; 3]), None);
        assert_eq!(fixed.filled(2, [7, 8, 9]), [4, 2, 7, 8, 9]);
        let path = Path::new("net.onnx");
        assert!(open.check_patch(path, [3, 4, 5]).is_ok());
        assert!(fixed.check_patch(path, [3, 8, 9]).is_ok());
        let error = fixed.check_patch(path, [3, 8, 8]).unwrap_err().to_string();
        assert!(error.contains("z x 8 x 9 voxels, not [3, 8, 8]"), "{error}");
        let layout = Layout::new([8; 3], 1, DType::F32);
        assert!(open.check_channels(path, &layout).is_ok());
        let error = fixed.check_channels(path, &layout).unwrap_err().to_string();
        assert!(error.contains("needs volumes of 2 channels, but memory has 1"));
    }

    #[test]
    fn a_prediction_is_at_the_position_of_its_voxels() {
        let read = |scale: Option<u64>, axes: &[u64]| {
            let place = OutputPlace { halo: None, scale };
            let (named, patch) = (("y".to_owned(), place), ([32; 3], axes));
            NetworkOutput::new(Path::new("n"), named, DType::F32, patch, None)
        };
        let out = |axes: &[u64]| read(None, axes).unwrap();
        let region = Region::new([8, 16, 24], [32; 3]);
        for (output, start) in [
            (out(&[1, 2, 32, 32, 32]), [8, 16, 24]),
            (out(&[1, 2, 30, 30, 30]), [9, 17, 25]),
            (read(Some(2), &[1, 2, 16, 16, 16]).unwrap(), [4, 8, 12]),
            (read(Some(1), &[1, 2, 16, 16, 16]).unwrap(), [16, 24, 32]),
            (out(&[1, 32, 32, 32]), [8, 16, 24]),
        ] {
            let count = output.channels * Region::whole(output.shape).voxels();
            let voxels = vec![0; usize::try_from(count * 4).unwrap()];
            let pool = PatchPool::default();
            let patch = output.patch(region, DType::F32, &voxels, &pool).unwrap();
            assert_eq!(patch.region(), Region::new(start, output.shape));
        }
        let error = read(None, &[1, 2, 16, 16, 16]).unwrap_err().to_string();
        assert!(
            error.contains("output \"y\"") && error.contains("two ways"),
            "{error}"
        );
    }
}
