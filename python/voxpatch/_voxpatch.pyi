"""The compiled half of the package `voxpatch`."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsIndex, final

import numpy as np
import numpy.typing as npt

_Array = np.ndarray[Any, Any]
_Path = str | os.PathLike[str]
_Index = SupportsIndex | slice | Any | tuple[Any, ...]
_Affine = Sequence[Sequence[float]] | _Array

@final
class Volume:
    """A volume that stays where it is, with axes c, z, y, x.

    Slices read the chunks that they touch and nothing else, and give an array of their own.
    """

    @staticmethod
    def from_array(
        array: npt.ArrayLike, *, spacing: tuple[float, float, float] | None = None, affine: _Affine | None = None
    ) -> Volume:
        """A volume in memory, of an array with axes z, y, x or c, z, y, x."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, and voxels along z, y, x."""

    @property
    def ndim(self) -> int:
        """Four: c, z, y, x."""

    @property
    def time_points(self) -> int | None:
        """Time points of what is stored: among the channels all of the first come first. None without an axis of time."""

    @property
    def size(self) -> int:
        """How many values there are."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values that slices give."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along z, y, x, in mm."""

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """The matrix that takes voxel indices (x, y, z, 1) to millimetres in RAS+."""

    @property
    def chunks(self) -> tuple[int, int, int, int] | None:
        """The unit that is read and decoded at once, c, z, y, x; None where any box is read alone."""

    @property
    def rescale(self) -> tuple[float, float] | None:
        """Slope and intercept that make stored values real ones, or None."""

    @property
    def values(self) -> str:
        """Which values slices give: `"real"`, `"stored"`, or the name of the type that real ones are cast to."""

    @property
    def format(self) -> str:
        """The file format."""

    @property
    def path(self) -> os.PathLike[str] | None:
        """Where it is; None for a volume in memory."""

    def __getitem__(self, key: _Index, /) -> Any:
        """The box that an index asks for, read and nothing else, as an array of its own."""

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> _Array:
        """The whole volume in memory."""

    def astype(self, values: npt.DTypeLike | Literal["stored", "real"]) -> Volume:
        """The same volume with other values: `"real"` (slope and intercept applied), `"stored"`, or real ones of a type."""

    def on_grid_of(self, reference: Volume, *, tolerance: float = 0.1, same_grid: bool = False) -> Volume:
        """The same voxels on the grid of another volume that covers the same: flipped and permuted axes are turned, and
        larger voxels spread, all when it is read. `tolerance` is in voxels. With `same_grid` a volume that does not
        say where it lies, such as a `.npy` file or an array, matches by its shape."""

    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    def _repr_html_(self) -> str:
        """Facts and the three middle slices, for notebooks."""

_Opening = tuple[int, str, bool, str, bool]

def _open(path: _Path, options: _Opening, part: tuple[Any, Any, Any], values: Any) -> Volume: ...
def _write(
    path: _Path,
    array: npt.ArrayLike | Volume,
    spacing: Sequence[float] | None,
    affine: _Affine | None,
    options: dict[str, Any],
) -> Volume: ...
def _convert(source: _Path | Volume, path: _Path, dry_run: bool, options: dict[str, Any]) -> Any: ...
def _reopen(
    place: Any,
    affine: _Affine | None,
    options: _Opening,
    region: tuple[tuple[int, int], ...] | None,
    channels: tuple[int, int] | None,
    values: Any,
) -> Volume: ...
def _on_grid(
    volume: Volume, path: _Path, shape: _Lengths, affine: _Affine | None, tolerance: float, same_grid: bool
) -> Volume: ...

_Parts = tuple[str, list[tuple[str, Volume | str, float | str, Any, Any]], tuple[float, bool]]

@final
class SubjectList:
    """A list of subjects that loaders share in one process."""

    @staticmethod
    def known(parts: Sequence[_Parts], text: str) -> SubjectList:
        """Subjects that are all known: their parts, and a text that tells them from others."""

    @staticmethod
    def made(length: int, make: Callable[[int], _Parts], text: str) -> SubjectList:
        """Subjects that a function makes, which is given the number of each and gives its parts."""

    def check(self, index: int) -> None:
        """Opens a subject: what is wrong with it is an error now."""

def _survey(parts: Sequence[_Parts], threads: int, alike: bool) -> int:
    """A number that differs between lists of subjects whose images differ in name, shape, channels or type."""

@final
class Epochs:
    """What every epoch consists of, and who gets which part of it."""

    def __new__(
        cls,
        subjects: SubjectList,
        sampler: dict[str, Any],
        counts: int | Sequence[int],
        seed: int,
        window: int,
        shuffle: tuple[bool, bool],
        shard: tuple[int, int, int, str],
        together: int | None,
    ) -> Epochs: ...
    def length(self) -> tuple[int, int]:
        """Patches and batches that an epoch has for this rank."""

    def settled(self, state: str) -> str:
        """A state; the start of the next epoch for one at the end of its own."""

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
    ) -> EpochLoader:
        """Start an epoch at its first patch or at a saved state; `contiguous` if it is read in batches."""

_Sample = tuple[dict[str, _Array], npt.NDArray[np.int64], int]

@final
class EpochLoader:
    """An iterator over one epoch; its threads end with it."""

    def batch(self) -> tuple[dict[str, _Array], npt.NDArray[np.int64], list[int]] | None:
        """The next batch as (arrays by name, locations (b, 6), numbers of the subjects); None at the end."""

    def samples(self) -> list[_Sample] | None:
        """The samples of the next batch one by one, each as [`sample`](Self::sample) gives it."""

    def sample(self) -> _Sample | None:
        """The next patch as (arrays by name, location (6,), number of the subject); None at the end."""

    def state(self) -> str:
        """Where the epoch is, as a line of text."""

    def remaining(self) -> int:
        """Patches that are still to come."""

    def stats(self) -> dict[str, Any]:
        """What was done so far."""

    def close(self) -> None:
        """Ends its threads."""

_Location = tuple[int, int, int, int, int, int]
_Lengths = Sequence[int]

@final
class Grid:
    """Patches of one size that cover a volume, numbered in the order that keeps the fewest voxels waiting."""

    def __new__(
        cls,
        volume: _Lengths,
        patch: _Lengths,
        overlap: _Lengths,
        placement: Literal["edge", "even", "padded"] | str = "edge",
        margin: _Lengths = ...,
        fit: bool = False,
    ) -> Grid: ...
    def __len__(self) -> int: ...
    def output(self, halo: _Lengths, scale: int) -> Grid:
        """Where predictions lie that lack `halo` voxels at each face of a patch and whose voxels are `scale`
        of the volume's long."""

    @property
    def volume(self) -> tuple[int, int, int]:
        """The volume that is covered, z, y, x."""

    def location(self, index: int) -> npt.NDArray[np.int64]:
        """Where patch `index` lies, int64 (6,): first voxel along z, y, x, and one past the last."""

    def locations(self) -> npt.NDArray[np.int64]:
        """Where all patches lie, int64 (N, 6)."""

    def find(self, locations: Sequence[Sequence[int]]) -> list[int]:
        """The numbers of the patches that lie at these locations."""

def _output_place(
    patch: _Lengths, channels: int, shape: _Lengths, halo: _Lengths | None, scale: int | None
) -> tuple[tuple[int, int, int], int]: ...
def _read_box(volume: Volume, location: Sequence[int], padding: float | str) -> _Array: ...
@final
class Aggregator:
    """Blends predictions of the patches of a grid into one volume."""

    def __new__(
        cls,
        grid: Grid,
        channels: int,
        prediction: npt.DTypeLike,
        blending: dict[str, Any],
        output: _Path | None,
        like: Volume | None,
        scale: float,
        storage: dict[str, Any],
    ) -> Aggregator: ...
    def add(self, numbers: Sequence[int], batch: _Array) -> None:
        """Adds the predictions (B, C, z, y, x) of the patches with these numbers."""

    @property
    def channels(self) -> int:
        """Channels of the predictions."""

    def finish(self, partial: bool) -> tuple[_Array | Volume, dict[str, Any]]:
        """Finishes the output: the array (c, z, y, x), or the volume at its path, and what was done. Patches
        that did not come are an error, unless a partial output will do."""

def _predict(
    call: Callable[[_Array, npt.NDArray[np.int64]], Sequence[tuple[_Array, bool]]],
    volume: Volume,
    outputs: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    mask: Volume | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
