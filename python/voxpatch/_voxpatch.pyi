"""The compiled half of the package `voxpatch`. scripts/stub_docs.py writes the docstrings."""

import pathlib
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, Literal, SupportsIndex, TypeAlias, final, overload

import numpy as np
import numpy.typing as npt

from .options import (
    Affine,
    AggregationStats,
    Array,
    ConvertPlan,
    DType,
    Interpolation,
    Padding,
    Part,
    Path,
    QueueStats,
    Settings,
    Values,
)

__version__: str

_Index: TypeAlias = SupportsIndex | slice | EllipsisType
_One: TypeAlias = tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex]

@final
class Volume:
    """A volume that stays where it is, with axes c, z, y, x.

    An index along c, z, y, x, as of a numpy array, reads only the chunks that it touches, and gives an array that owns its
    memory. A volume is pickled by how it was opened; one in memory takes its voxels along.

    See Also
    --------
    open : Open a volume.
    write : Write an array as a volume.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> volume = voxpatch.Volume.from_array(np.arange(24, dtype=np.int16).reshape(2, 3, 4), spacing=(5, 1, 1))
    >>> volume.shape, volume.spacing
    ((1, 2, 3, 4), (5.0, 1.0, 1.0))
    >>> volume[0, 1, :, 2:]
    array([[14, 15],
           [18, 19],
           [22, 23]], dtype=int16)
    """
    @staticmethod
    def from_array(
        array: npt.ArrayLike, *, spacing: Sequence[float] | None = None, affine: Affine | None = None
    ) -> Volume:
        """Make a volume in memory of an array, which is copied.

        Parameters
        ----------
        array : array_like
            Values with axes z, y, x or c, z, y, x.
        spacing : sequence of three floats, optional
            Distance between voxel centers along z, y, x, in mm.
        affine : array_like, optional
            Matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+. It replaces `spacing`.

        Returns
        -------
        Volume
            The volume.

        Examples
        --------
        >>> import numpy as np, voxpatch
        >>> voxpatch.Volume.from_array(np.zeros((2, 8, 8, 8), np.float32)).shape
        (2, 8, 8, 8)
        """
    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of channels, and of voxels along z, y, x."""
    @property
    def ndim(self) -> int:
        """Number of axes: four."""
    @property
    def time_points(self) -> int | None:
        """Number of time points, whose channels follow one after the other, or None without an axis of time."""
    @property
    def size(self) -> int:
        """Number of values."""
    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that slices give."""
    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centers along z, y, x, in mm."""
    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+, as nibabel's do."""
    @property
    def chunks(self) -> tuple[int, int, int, int] | None:
        """Shape (c, z, y, x) of the unit that is read and decoded at once, or None if any box is read alone."""
    @property
    def shards(self) -> tuple[int, int, int, int] | None:
        """Shape (c, z, y, x) of the files of a sharded Zarr, which hold several chunks; that of the chunks otherwise."""
    @property
    def rescale(self) -> tuple[float, float] | None:
        """Slope and intercept that make stored values real ones, or None without them."""
    @property
    def values(self) -> str:
        """Values that slices give: "real", "stored", or the name of the type that real ones are cast to."""
    @property
    def format(self) -> str:
        """Name of the file format."""
    @property
    def path(self) -> pathlib.Path | str | None:
        """Path of the file or folder, the address in a store as a string, or None for a volume in memory."""
    @overload
    def __getitem__(self, key: _One, /) -> Any: ...
    @overload
    def __getitem__(self, key: _Index | tuple[_Index, ...], /) -> Array:
        """Return self[key]."""
    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Read the whole volume into memory.

        Parameters
        ----------
        dtype : dtype, optional
            Type of the array; that of the volume if not given.
        copy : bool, optional
            False is an error, since a volume is not an array.

        Returns
        -------
        numpy.ndarray
            The values (c, z, y, x).
        """
    def astype(self, values: Values) -> Volume:
        """Return the same volume with other values. Nothing is read.

        Parameters
        ----------
        values : {"real", "stored"} or dtype
            "real" applies slope and intercept, "stored" gives the numbers in the file, and a type casts real values to it.

        Returns
        -------
        Volume
            The volume, whose slices give these values.

        Examples
        --------
        >>> import numpy as np, voxpatch
        >>> voxpatch.Volume.from_array(np.zeros((8, 8, 8), np.int16)).astype("float32").dtype
        dtype('float32')
        """
    def on_grid_of(
        self,
        reference: Volume,
        *,
        tolerance: float = 0.1,
        same_grid: bool = False,
        resample: bool = False,
        interpolation: Interpolation | None = None,
        outside: Padding | None = None,
    ) -> Volume:
        """Return the same voxels on the grid of another volume that covers the same part of the world.

        Flipped and permuted axes are turned, and larger voxels spread, all when it is read. With `resample`, values
        between voxels are computed.

        Parameters
        ----------
        reference : Volume
            The volume with the grid.
        tolerance : float, default 0.1
            How far, in voxels, the corners of the two volumes may lie apart.
        same_grid : bool, default False
            Match by shape a volume that does not say where it lies, such as a ``.npy`` file or an array.
        resample : bool, default False
            Resample a volume of any spacing, directions and extent. Otherwise it must cover the same.
        interpolation : {"nearest", "linear", "cubic", "label-linear"}, optional
            How values between voxels are computed, as in :func:`open`, with `resample`; "linear" for floats. Integers may
            be labels, so it must be given for them.
        outside : float or {"edge", "reflect", "wrap"}, optional
            Values beyond the faces of the volume, with `resample`; 0 if not given.

        Returns
        -------
        Volume
            The volume on the other grid.

        Raises
        ------
        ValueError
            If the two volumes do not cover the same, without `resample`.

        Examples
        --------
        >>> import numpy as np, voxpatch
        >>> scan = voxpatch.Volume.from_array(np.zeros((8, 8, 8)), affine=np.diag([1, 1, 1, 1]))
        >>> flipped = voxpatch.Volume.from_array(np.zeros((8, 8, 8)), affine=[[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> np.array_equal(flipped.on_grid_of(scan).affine, scan.affine)
        True
        """
    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    def to_dask(self, chunks: int | tuple[int, int, int, int] | None = None) -> Any:
        """Return a dask array of blocks that are read when they are computed.

        Parameters
        ----------
        chunks : int or (int, int, int, int), optional
            Shape (c, z, y, x) of the blocks. If not given, they are whole shards or chunks, as many as fit into 64 MiB.

        Returns
        -------
        dask.array.Array
            The values (c, z, y, x). Its name changes with the files and with nothing else, so that results can be cached.
        """
    def __dask_tokenize__(self) -> tuple[Any, ...]: ...
    def _repr_html_(self) -> str:
        """Return facts and the three middle slices, for notebooks."""

_Opening: TypeAlias = tuple[
    int, str, bool, str, bool, str | None, bool, str, Sequence[tuple[str, str]], str | None, int | None
]
_Grid: TypeAlias = Volume | tuple[_Lengths, Affine]
_Resampling: TypeAlias = tuple[Sequence[float] | None, str | None, _Grid | None, str, bool, Padding]

def _open(
    path: Path,
    options: _Opening,
    part: tuple[Part | None, Part | None, Sequence[Part] | None],
    values: Values,
    resample: _Resampling,
    normalize: str,
) -> Volume:
    """Open a part of the volume at a path, for `voxpatch.open`."""
def _write(
    path: Path,
    array: npt.ArrayLike | Volume,
    spacing: Sequence[float] | None,
    affine: Affine | None,
    options: Settings,
) -> Volume:
    """Write an array, (z, y, x) or (c, z, y, x), as a volume, and open it."""
def _convert(source: Path | Volume, path: Path, dry_run: bool, options: Settings) -> Volume | ConvertPlan:
    """Copy a volume into another format, voxel type or chunking, box by box, and open the copy; with `dry_run` write nothing,
    and return what the copy would need as a dictionary.
    """
def _reopen(
    place: Path | Array,
    affine: Affine | None,
    options: _Opening,
    region: tuple[tuple[int, int], ...] | None,
    channels: tuple[int, int] | None,
    values: Values,
    resample: _Resampling,
    normalized: tuple[str, int] | None,
) -> Volume:
    """Open a volume that was pickled."""
def _on_grid(
    volume: Volume,
    path: Path,
    shape: _Lengths,
    affine: Affine | None,
    matching: tuple[float, bool, tuple[str | None, Padding] | None],
) -> Volume:
    """Open a volume that was pickled on another's grid."""

_Part: TypeAlias = tuple[str, Volume | str, Padding, DType | None, Values, str, str | None]
_Parts: TypeAlias = tuple[str, list[_Part], tuple[float, bool, str | None]]

@final
class SubjectList:
    """A list of subjects that loaders share in one process."""

    @staticmethod
    def known(parts: Sequence[_Parts], text: str) -> SubjectList:
        """Make a list of subjects that are all known: their parts, and a text that identifies them."""

    @staticmethod
    def made(length: int, make: Callable[[int], _Parts], text: str) -> SubjectList:
        """Make a list of subjects that a function makes: it gets the number of each and returns its parts."""

    def check(self, index: int) -> None:
        """Open a subject: what is wrong with it is an error now."""

def _stats(
    volumes: list[Any],
    labels: list[Any] | None,
    ignore_label: int | None,
    percentiles: list[float],
    threads: int,
    results: str | None,
) -> str:
    """Return the statistics of volumes, with a label map for each if there are some, as JSON: those of all voxels, and of each
    volume.
    """

def _survey(parts: Sequence[_Parts], threads: int, alike: bool) -> int:
    """Return a number that differs between lists of subjects whose images differ in name, shape, channels or
    type; with `alike`, images that do not fit into one batch are an error. Subjects that cannot be
    opened are left to the loader.
    """

_Turning: TypeAlias = tuple[tuple[float, float, float], float, float, tuple[int, int, int] | None]
_Pairs: TypeAlias = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
_Affine: TypeAlias = tuple[_Pairs, _Pairs, _Pairs, _Pairs, bool, tuple[float, float, float]]
_Elastic: TypeAlias = tuple[tuple[int, int, int], tuple[float, ...], float]
_Augment: TypeAlias = tuple[_Turning, _Affine | None, _Elastic | None]

@final
class Epochs:
    """The plan of every epoch, and the part of this rank."""

    def __new__(
        cls,
        subjects: SubjectList,
        sampler: Settings,
        counts: int | Sequence[int],
        seed: int,
        window: int | None,
        shuffle: tuple[bool, bool],
        shard: tuple[int, int, int, str],
        together: int | None,
    ) -> Epochs: ...
    def length(self) -> tuple[int, int]:
        """Return how many patches and batches an epoch has for this rank."""

    def settled(self, state: str) -> str:
        """Return a state, or the start of the next epoch for one at the end of its own."""

    def start(
        self,
        epoch: int,
        state: str | None,
        worker: tuple[int, int],
        threads: int,
        max_length: int,
        memory: int,
        skip_errors: bool,
        contiguous: bool = False,
        same_images: bool = False,
        stay_in_epoch: bool = False,
        augment: _Augment = ...,
    ) -> EpochLoader:
        """Start an epoch at its first patch or at a saved state; `contiguous` if it is read in batches."""

_Sample: TypeAlias = tuple[
    dict[str, Array],
    npt.NDArray[np.int64],
    int,
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64] | None,
    int,
]
_Batch: TypeAlias = tuple[
    dict[str, Array],
    npt.NDArray[np.int64],
    list[int],
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64] | None,
]

@final
class EpochLoader:
    """An iterator over one epoch; its threads end with it."""

    def batch(self, wait: bool = True) -> _Batch | None | Literal[False]:
        """Return the next batch as (arrays by name, locations (b, 6), numbers of the subjects, orientations (b, 3), affines
        (b, 4, 4), displacements (b, z, y, x, 3) or None), or None at the end; without `wait`, False if it is not ready.
        """

    def samples(self, wait: bool = True) -> list[_Sample] | None | Literal[False]:
        """Return the samples of the next batch one by one, each as `sample` gives it, or None at the end; without
        `wait`, False if they are not ready.
        """

    def sample(self, wait: bool = True) -> _Sample | None | Literal[False]:
        """Return the next patch as (arrays by name, location (6,), number of the subject, orientation (3,), affine (4, 4),
        displacement (z, y, x, 3) or None, place in the epoch), or None at the end; without `wait`, False if it is not ready.
        """

    def state(self) -> str:
        """Return the position in the epoch, as a line of text."""

    def remaining(self) -> int:
        """Return how many patches are still to come."""

    def stats(self) -> QueueStats:
        """Return the statistics so far."""

    def close(self) -> None:
        """End the threads. Nothing comes any more, as after the last patch."""

_Lengths: TypeAlias = Sequence[int]

@final
class Grid:
    """Patches of one size that cover a volume, numbered in the order that keeps the fewest voxels waiting."""

    def __new__(
        cls,
        volume: _Lengths,
        patch: _Lengths,
        overlap: _Lengths,
        placement: str = "edge",
        margin: _Lengths = ...,
        fit: bool = False,
    ) -> Grid: ...
    def __len__(self) -> int: ...
    def output(self, halo: _Lengths, scale: int) -> Grid:
        """Return the grid of predictions that lack `halo` voxels at each face of a patch and have voxels of `scale` of the
        volume's.
        """

    @property
    def volume(self) -> tuple[int, int, int]:
        """Shape of the covered volume, z, y, x."""

    def location(self, index: int) -> npt.NDArray[np.int64]:
        """Return the location of patch `index`, int64 (6,): first voxel along z, y, x, and one past the last."""

    def locations(self) -> npt.NDArray[np.int64]:
        """Return the locations of all patches, int64 (N, 6)."""

    def find(self, locations: Sequence[Sequence[int]]) -> list[int]:
        """Return the numbers of the patches at these locations."""

def _output_place(
    patch: _Lengths, channels: int, shape: _Lengths, halo: _Lengths | None, scale: int | None
) -> tuple[tuple[int, int, int], int]:
    """Return the halo and the scale of predictions of `channels` and `shape` for patches of `patch` voxels; those that are
    not given follow from the shapes.
    """
def _read_box(volume: Volume, location: Sequence[int], padding: Padding) -> Array:
    """Read the box at a location, (c, z, y, x), padded where it hangs over the volume."""
@final
class Aggregator:
    """An aggregator of the predictions of a grid's patches into one volume."""

    def __new__(
        cls,
        grid: Grid,
        channels: int,
        prediction: npt.DTypeLike,
        blending: Settings,
        output: Path | None,
        like: Volume | None,
        scale: float,
        storage: Settings,
    ) -> Aggregator: ...
    def add(self, numbers: Sequence[int], batch: Array) -> None:
        """Add the predictions (B, C, z, y, x) of the patches with these numbers, or none of them."""

    @property
    def channels(self) -> int:
        """Number of channels of the predictions."""

    def finish(self, partial: bool) -> tuple[Array | Volume, AggregationStats]:
        """Finish the output: return the array (c, z, y, x) or the volume at its path, and the statistics. Missing patches are
        an error, unless a partial output is accepted.
        """

@final
class Frontier:
    """The unfinished blocks of an output."""

    @property
    def channels(self) -> int:
        """Channels of predictions."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels of a prediction along z, y, x."""

    def options(self) -> Settings:
        """How predictions become voxels: words, numbers and the type of the output."""

    def weights(self) -> list[npt.NDArray[np.float32]] | None:
        """Weights of patches: arrays (starts, voxels) along z, y, x; the array (1, voxels) of a window that is not a product,
        row by row; or None where voxels are passed on.
        """

    def add(self, index: int, vote: str) -> tuple[list[int], list[tuple[object, ...]]]:
        """Add a patch by a word, "predicted", "skipped" or "left-out". Return its place along z, y, x, and for each block: its
        number, its shape, the common voxels, whether the patch adds to it, whether it is fresh, whether it is final, and
        if so, whether it has values, and the parts by whose weights it is divided.
        """

    def refuse(self, index: int, at: tuple[int, int, int, int], value: float) -> None:
        """Raise the error of a prediction whose first value that is not finite is `value` at `at` (c, z, y, x)."""

@final
class Ticket:
    """A batch that a thread of Python predicts."""

    def answer(self, given: Sequence[tuple[Array, bool]]) -> None:
        """Answer with a list that has an array for each output and whether nothing else holds it."""

    def fail(self, error: BaseException) -> None:
        """Answer with what was raised."""

def _predict(
    call: object,
    volume: Volume,
    outputs: Sequence[Settings],
    settings: Settings,
    mask: Volume | None,
    progress: Callable[[int, int], object] | None,
) -> Settings:
    """Predict a volume with `call(batch, locations)`, which returns a list with an array for each output and whether nothing
    else holds it, and return the statistics.

    On a device, `call` has `begin(frontiers, scales)`, `blend(patches, batch)` and `end()`; the latter two return final
    blocks, each as its output, its number and its values or None. With several devices it has `deal(ticket, batch)`.
    """
