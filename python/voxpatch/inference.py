"""Patches of a grid, and their predictions as one volume: for inference loops of one's own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from ._voxpatch import Aggregator, Grid, Volume, _output_place, _read_box
from .errors import InvalidError
from .files import open as open_volume
from .files import storage_options
from .sizes import Size, count, size
from .subject import Subject

if TYPE_CHECKING:
    import numpy as np

#: A volume in any form: opened, by its path, or as an array (z, y, x) or (c, z, y, x).
VolumeLike = Union[Volume, str, "os.PathLike[str]", "np.ndarray[Any, Any]"]
#: What lies beyond the faces: a number, "constant" (0), "edge", "reflect" or "wrap".
Padding = Union[float, str]


def as_volume(given: VolumeLike, values: Any = None) -> Volume:
    """The volume, opened if it is not, with the values that are asked for."""
    if isinstance(given, Volume):
        return given if values is None else given.astype(values)
    if isinstance(given, (str, os.PathLike)):
        return open_volume(given, values="real" if values is None else values)
    volume = Volume.from_array(given)
    return volume if values is None else volume.astype(values)


class GridSampler:
    """The patches of a grid that covers a whole volume, as a map-style dataset.

    ``subject`` is a :class:`Subject`, whose volumes are brought to the first one's grid, or one volume, which is then
    called ``"image"``. Item ``i`` is ``{"ct":
    array (C, Z, Y, X), ..., "location": int64 (6,)}``, read when it is asked for: first voxel along z, y, x and
    one past the last. A torch ``DataLoader`` takes the sampler as it is, with any number of workers.

    Neighbours share ``overlap`` voxels along z, y, x; the last patch of an axis is moved to the
    volume's edge. With ``padding`` (a number, ``"constant"``, ``"edge"``, ``"reflect"`` or ``"wrap"``)
    patches also cover half the overlap beyond each face, which the aggregator cuts off again, and may
    be larger than the volume. ``placement`` is ``"edge"``, ``"even"`` (spread evenly, as nnU-Net does) or
    ``"padded"`` (the last hangs over). ``values`` is as in :class:`Subject`, for volumes that are not one.

    Patches are numbered in the order in which a :class:`GridAggregator` holds least.
    """

    def __init__(
        self,
        subject: Subject | Mapping[str, Any] | VolumeLike,
        patch_size: Size,
        overlap: Size = 0,
        padding: Padding | None = None,
        *,
        placement: str = "edge",
        values: Any = None,
    ) -> None:
        if isinstance(subject, Subject):
            if values is not None:
                raise InvalidError("values: a Subject has its own, give them to that")
        elif isinstance(subject, Mapping):
            subject = Subject(values=values, **subject)
        else:
            subject = Subject(image=as_volume(subject, values))
        self.subject: Subject = subject
        self.patch_size = size("patch_size", patch_size)
        self.overlap = size("overlap", overlap, least=0)
        self.padding = padding
        self.placement = placement
        #: The volumes on the first one's grid, once they are needed.
        self._matched: dict[str, Volume] = {}
        #: Voxels along z, y, x.
        self.spatial_shape: tuple[int, int, int] = self.first_volume().shape[1:]
        for name in self.subject.volumes:
            self._volume(name)
        self._grid: Grid | None = self._make_grid()

    def _volume(self, name: str) -> Volume:
        """A volume on the first one's grid."""
        if name not in self._matched:
            volume = self.subject[name]
            assert isinstance(volume, Volume)
            if name != next(iter(self.subject.volumes)):
                tolerance, same_grid = self.subject.tolerance, self.subject.same_grid
                volume = volume.on_grid_of(self.first_volume(), tolerance=tolerance, same_grid=same_grid)
            self._matched[name] = volume
        return self._matched[name]

    def _make_grid(self) -> Grid:
        padded = self.padding is not None
        margin = tuple(overlap // 2 if padded else 0 for overlap in self.overlap)
        return Grid(self.spatial_shape, self.patch_size, self.overlap, self.placement, margin, padded)

    @property
    def grid(self) -> Grid:
        """The grid of patches."""
        if self._grid is None:
            self._grid = self._make_grid()
        return self._grid

    def first_volume(self) -> Volume:
        """The volume whose spacing and affine an output gets."""
        return self._volume(next(iter(self.subject.volumes)))

    @property
    def locations(self) -> np.ndarray[Any, Any]:
        """Where all patches lie, int64 (N, 6)."""
        return self.grid.locations()

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"patch {index}: the grid has {len(self)}")
        location = self.grid.location(number)
        corners = tuple(location.tolist())
        padding: Padding = "edge" if self.padding is None else self.padding
        sample: dict[str, Any] = {
            name: _read_box(self._volume(name), corners, padding) for name in self.subject.volumes
        }
        sample["location"] = location
        return sample

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grid": None, "_matched": {}}

    def __repr__(self) -> str:
        return (
            f"<voxpatch.GridSampler of {self.subject.name}: {len(self)} patches of {self.patch_size}, "
            f"overlap {self.overlap}>"
        )


class GridAggregator:
    """Predictions of a :class:`GridSampler`'s patches as one volume (C, Z, Y, X).

    ``blend`` says how overlapping predictions are weighed: ``"crop"`` (each voxel from the patch
    in which it lies deepest, untouched), ``"average"``, ``"hann"``, ``"gaussian"`` (``"gaussian:0.125"``, the standard
    deviation as a part of the patch), ``"linear"``, ``"nnunet"``, or an array of weights (z, y, x).

    ``output`` is the path of a volume that is written as it becomes final, so that memory holds what is
    not final only; ``**storage`` is as in :func:`voxpatch.write`. Without it the output is in memory.
    ``reduce`` says what becomes of blended channels: ``"mean"``, ``"softmax"``, ``"sigmoid"``, ``"argmax"``
    (``labels`` maps its classes), ``"threshold:0.5"`` or ``"quantize:0,1"``; ``dtype`` is the type that is stored.
    Values beyond its range are an error, or become its nearest with ``clip=True``, which a warning counts.
    ``fill`` is the value where no patch votes; the stored type must hold it. NaN, infinity and values that the
    stored type or the sums cannot hold are an error, unless ``non_finite`` is ``"leave-out"`` or ``"keep"``.
    Sums are float32 here whatever ``accumulator`` says, because patches may be missing in the end. In the place of
    a patch that is missing or left out, ``"crop"`` takes each voxel from the patch in which it lies deepest.

    Integer predictions are class numbers, which are never averaged: take ``"crop"``, or predict a float channel for
    each class and ``reduce="argmax"``. ``average_integers=True`` says that they are quantities.

    Predictions may come in any order and from any device, once each; the output is the same to
    the last bit. They may lack a rim of each patch, as after convolutions without padding, or have larger
    voxels. Their size shows which, unless both are possible (8 voxels for patches of 16): then say ``halo``, the
    voxels missing at each face (one number, or three for z, y, x), or ``scale``, the volume's voxels along one of theirs.
    """

    def __init__(
        self,
        sampler: GridSampler,
        blend: str | np.ndarray[Any, Any] = "crop",
        output: str | os.PathLike[str] | None = None,
        *,
        reduce: str = "mean",
        dtype: Any = None,
        labels: Sequence[int] | None = None,
        accumulator: str = "float32",
        non_finite: str = "refuse",
        fill: float = 0.0,
        halo: Size | None = None,
        average_integers: bool = False,
        clip: bool = False,
        scale: int | None = None,
        **storage: Any,
    ) -> None:
        self.sampler = sampler
        self.output = output
        self.halo = halo
        self.scale = scale
        self._blending = blending(
            blend, reduce, dtype, labels, accumulator, None, non_finite, fill, average_integers, clip
        )
        self._storage = storage_options("GridAggregator", storage)
        self._running: Aggregator | None = None
        self._came: np.ndarray[Any, Any] | None = None
        self._finished: Any = None
        self._stats: dict[str, Any] = {}
        #: torch, if tensors were added.
        self._torch: Any = None

    def add_batch(self, batch: Any, locations: Any) -> None:
        """Adds predictions (B, C, Z, Y, X) of the patches at these locations (B, 6), as numpy arrays or as
        torch tensors on any device: all of them, or, if one is wrong, none."""
        import numpy as np

        if is_tensor(batch):
            self._torch = sys.modules["torch"]
        values = as_array(batch)
        places = as_array(locations).reshape(-1, 6).astype(np.int64)
        if values.ndim != 5 or len(values) != len(places):
            raise InvalidError(
                f"a batch of shape {values.shape} with {len(places)} locations: give (B, C, Z, Y, X) and (B, 6)"
            )
        if self._finished is not None:
            raise InvalidError("the output is finished: make another aggregator")
        running = self._started(values)
        numbers = self.sampler.grid.find(places.tolist())
        running.add(numbers, values)
        assert self._came is not None
        self._came[numbers] = True

    def _started(self, batch: np.ndarray[Any, Any]) -> Aggregator:
        if self._running is None:
            import numpy as np

            halo, scale = output_place(self.sampler.patch_size, batch.shape[1:], self.halo, self.scale)
            grid = self.sampler.grid if (halo, scale) == ((0, 0, 0), 1) else self.sampler.grid.output(halo, scale)
            self._running = Aggregator(
                grid,
                batch.shape[1],
                batch.dtype,
                self._blending,
                self.output,
                self.sampler.first_volume(),
                scale,
                self._storage,
            )
            self._came = np.zeros(len(grid), bool)
        return self._running

    def finish(self, *, partial: bool = False) -> Any:
        """Finishes the output and gives it: the opened :class:`Volume` at ``output``, else the array (C, Z, Y, X).

        Patches that did not come are an error, unless ``partial`` lets the others vote alone.
        """
        if self._finished is None:
            if self._running is None or self._came is None:
                raise InvalidError("no prediction was added: nothing is known of the output")
            missing = (~self._came).nonzero()[0]
            if len(missing) and not partial:
                raise InvalidError(
                    f"{len(missing)} of {len(self._came)} patches did not come, the first is number {missing[0]} at "
                    f"{self.sampler.grid.location(int(missing[0])).tolist()}: add them, or finish(partial=True)"
                )
            self._finished, self._stats = self._running.finish(partial)
            warn_of_clipped(self._stats, stacklevel=3)
        return self._finished

    def get_output_tensor(self) -> Any:
        """The whole output in memory, (C, Z, Y, X): a torch tensor if tensors were added, else an array."""
        output = self.finish()
        array = output[...] if isinstance(output, Volume) else output
        return array if self._torch is None else self._torch.from_numpy(array)

    def stats(self) -> dict[str, Any]:
        """What was done, once it is finished: patches, voxels that none covered, bytes held at most."""
        return dict(self._stats)


def blending(
    blend: str | np.ndarray[Any, Any],
    reduce: str,
    dtype: Any,
    labels: Sequence[int] | None,
    accumulator: str,
    vote: Sequence[float] | None,
    non_finite: str,
    fill: float,
    average_integers: bool,
    clip: bool,
) -> dict[str, Any]:
    """How predictions become voxels, as the compiled half takes it."""
    return {
        "blend": blend,
        "reduce": reduce,
        "labels": None if labels is None else list(labels),
        "accumulator": accumulator,
        "vote": None if vote is None else list(vote),
        "non_finite": non_finite,
        "fill": float(fill),
        "average_integers": average_integers,
        "clip": clip,
        "dtype": dtype,
    }


def warn_of_clipped(stats: Mapping[str, Any], stacklevel: int) -> None:
    """Warns if an output's type does not have all values."""
    if clipped := stats["clipped_values"]:
        message = f"{clipped} values do not fit the output's type and became its nearest"
        warnings.warn(message, stacklevel=stacklevel + 1)


def output_place(
    patch: Sequence[int], predicted: Sequence[int], halo: Size | None = None, scale: int | None = None
) -> tuple[tuple[int, int, int], int]:
    """The halo and scale of predictions (C, Z, Y, X) of these lengths for patches of ``patch`` voxels.

    What is not said follows from the lengths; an error where they can be read in two ways.
    """
    channels, *lengths = (int(n) for n in predicted)
    rim = None if halo is None else size("halo", halo, least=0)
    factor = None if scale is None else count("scale", scale, least=1)
    found, factor = _output_place(patch, channels, lengths, rim, factor)
    return (found[0], found[1], found[2]), factor


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array of an array or a tensor on any device."""
    import numpy as np

    if is_tensor(value):
        torch = sys.modules["torch"]
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()  # numpy has no such type
        if value.is_cuda:
            # Into memory that the GPU reaches, which torch keeps for the next one.
            here = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            value = here.copy_(value)
        return np.asarray(value.cpu().numpy())
    return np.asarray(value)
