"""Patches of a grid, and their predictions as one volume: for inference loops of your own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._voxpatch import Aggregator, Grid, Volume, _output_place, _read_box
from .errors import InvalidError
from .files import open as open_volume
from .files import storage_options
from .options import word
from .sizes import count, overlap_voxels, size
from .subject import Subject

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from .options import (
        Accumulator,
        AggregationStats,
        Array,
        Blend,
        DType,
        NonFinite,
        Overlap,
        Padding,
        Path,
        Placement,
        Reduce,
        Settings,
        Size,
        StorageOptions,
        Values,
        VolumeLike,
    )
    from .queue import Sample


def as_volume(given: VolumeLike, values: Values | None = None) -> Volume:
    """Return a volume, opened if it is a path, with the values that are asked for."""
    if isinstance(given, Volume):
        return given if values is None else given.astype(values)
    if isinstance(given, (str, os.PathLike)):
        return open_volume(given, values="real" if values is None else values)
    volume = Volume.from_array(given)
    return volume if values is None else volume.astype(values)


class GridSampler:
    """The patches of a grid that covers a whole volume, as a map-style dataset.

    Item ``i`` is ``{"ct": array (C, Z, Y, X), ..., "location": int64 (6,)}``, read when it is asked for. A location is the
    first voxel along z, y, x and one past the last. A torch ``DataLoader`` takes the sampler as it is, with any number of
    workers. Patches are numbered in the order in which a :class:`GridAggregator` holds least.

    Parameters
    ----------
    subject : Subject, dict, Volume, path or array
        A :class:`Subject` (or a dictionary that makes one), whose volumes are brought to the first one's grid, or one
        volume, which is then called ``"image"``.
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    overlap : int, float or three of them, default 0.5
        What neighbors share along z, y, x: voxels (int), or a fraction of the patch from 0 up to 1 (float). The last patch
        of an axis is moved to the volume's edge.
    padding : float or {"constant", "edge", "reflect", "wrap"}, optional
        Let patches cover half the overlap beyond each face too, which the aggregator crops again. Patches may then be
        larger than the volume. A number is the value there.
    placement : {"edge", "even", "padded"}, default "edge"
        Where patches start: every step and at the far edge, spread evenly as nnU-Net does, or every step with the last
        patch hanging over.
    values : {"real", "stored"} or dtype, optional
        Values of the patches, as in :func:`open`. A :class:`Subject` has its own. Normalized values are those of a volume
        that was opened with `normalize`.

    See Also
    --------
    GridAggregator : Blends the predictions of these patches.
    predict : Does all of it.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> sampler = voxpatch.GridSampler(np.zeros((8, 8, 8), np.float32), patch_size=4, overlap=2)
    >>> len(sampler)
    27
    >>> sampler[26]["image"].shape, sampler[26]["location"].tolist()
    ((1, 4, 4, 4), [4, 4, 4, 8, 8, 8])

    Patches of normalized values:

    >>> np.save("ct.npy", np.full((8, 8, 8), -300, np.int16))
    >>> ct = voxpatch.open("ct.npy", normalize=(-1000, 400))
    >>> float(voxpatch.GridSampler(ct, patch_size=4)[0]["image"].max())
    0.5
    """

    def __init__(
        self,
        subject: Subject | Mapping[str, Any] | VolumeLike,
        patch_size: Size,
        overlap: Overlap = 0.5,
        padding: Padding | None = None,
        *,
        placement: Placement = "edge",
        values: Values | None = None,
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
        #: Voxels that neighbors share along z, y, x.
        self.overlap = overlap_voxels(overlap, self.patch_size)
        self.padding = padding
        self.placement = placement
        #: The volumes on the grid of the patches, once they are needed.
        self._matched: dict[str, Volume] = {}
        #: Voxels of the volume along z, y, x.
        self.spatial_shape: tuple[int, int, int] = self.first_volume().shape[1:]
        for name in self.subject.volumes:
            self._volume(name)
        self._grid: Grid | None = self._make_grid()

    def _volume(self, name: str) -> Volume:
        """Return a volume on the grid of the patches."""
        if name not in self._matched:
            self._matched[name] = self.subject.on_grid(name)
        return self._matched[name]

    def _make_grid(self) -> Grid:
        padded = self.padding is not None
        margin = tuple(overlap // 2 if padded else 0 for overlap in self.overlap)
        return Grid(self.spatial_shape, self.patch_size, self.overlap, self.placement, margin, padded)

    @property
    def grid(self) -> Grid:
        """The grid of patches, for the compiled half."""
        if self._grid is None:
            self._grid = self._make_grid()
        return self._grid

    def first_volume(self) -> Volume:
        """Return the volume whose spacing and affine an output gets.

        Returns
        -------
        Volume
            The subject's first volume.
        """
        return self._volume(next(iter(self.subject.volumes)))

    @property
    def locations(self) -> npt.NDArray[np.int64]:
        """Locations of all patches, int64 (N, 6): first voxel along z, y, x and one past the last."""
        return self.grid.locations()

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> Sample:
        """Read a patch.

        Parameters
        ----------
        index : int
            Number of the patch; negative ones count from the end.

        Returns
        -------
        dict
            Arrays (C, Z, Y, X) by the volumes' names, and ``"location"``, int64 (6,).
        """
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"patch {index}: the grid has {len(self)}")
        location = self.grid.location(number)
        corners = tuple(location.tolist())
        padding: Padding = "edge" if self.padding is None else self.padding
        sample: Sample = {
            name: _read_box(self._volume(name), corners, padding) for name in self.subject.volumes
        }
        sample["location"] = location
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grid": None, "_matched": {}}

    def __repr__(self) -> str:
        return (
            f"<voxpatch.GridSampler of {self.subject.name}: {len(self)} patches of {self.patch_size}, "
            f"overlap {self.overlap}>"
        )


class GridAggregator:
    """Predictions of a :class:`GridSampler`'s patches, blended into one volume (C, Z, Y, X).

    Predictions may come in any order and from any device, once each; the output is the same to the last bit. They may
    lack a rim of each patch, as after convolutions without padding, or have larger voxels.

    Parameters
    ----------
    sampler : GridSampler
        The sampler whose patches are predicted.
    blend : {"average", "hann", "gaussian", "linear", "nnunet", "crop"}, Gaussian or array, default "hann"
        Weights of overlapping predictions. "crop" takes each voxel from the patch in which it lies deepest, untouched;
        of a patch that is missing or left out, from the next deepest. An array has the axes z, y, x of a patch.
    output : str or path-like, optional
        Path of a volume that is written as it becomes final, so that memory holds only what is not final. Without it
        the output is in memory.
    reduce : {"mean", "softmax", "sigmoid", "argmax"}, Threshold or Quantize, default "mean"
        Reduction of the blended channels.
    dtype : dtype, optional
        Type of the output; the predictions' if not given.
    labels : sequence of int, optional
        Output values of the classes of ``reduce="argmax"``.
    accumulator : {"float32", "float16", "bfloat16"}, default "float32"
        Type of the weighted sums. They are float32 here in any case, because patches may be missing in the end.
    non_finite : {"refuse", "leave-out", "keep"}, default "refuse"
        What to do with patches that have NaN, infinity, or values that the output or the sums cannot hold.
    fill : float, default 0
        Output value where no patch votes; the output's type must hold it.
    halo : int or (int, int, int), optional
        Voxels that predictions lack at each face along z, y, x. It follows from their size, unless that can be read in
        two ways, as 8 voxels for patches of 16.
    average_integers : bool, default False
        Whether integer predictions are quantities that may be averaged. Otherwise they are class numbers, which need
        ``blend="crop"``; or predict a float channel for each class, with ``reduce="argmax"``.
    clip : bool, default False
        Write values beyond the range of the output's type as its nearest value, with a warning that counts them.
        Otherwise they are an error.
    scale : int, optional
        Voxels of the volume along one voxel of the predictions. It follows from their size, as `halo` does.
    **storage : StorageOptions
        How `output` is stored: ``zarr``, ``chunk``, ``shard``, ``codec``, ``clevel``, ``pyramid``, ``levels``,
        ``overwrite`` and ``storage_options``, as in :func:`write`.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    >>> sampler = voxpatch.GridSampler(scan, patch_size=4, overlap=2)
    >>> aggregator = voxpatch.GridAggregator(sampler)
    >>> for patch in sampler:
    ...     aggregator.add_batch(2 * patch["image"][None], patch["location"][None])
    >>> np.allclose(aggregator.finish()[0], 2 * scan, atol=1e-5)
    True
    """

    def __init__(
        self,
        sampler: GridSampler,
        blend: Blend = "hann",
        output: Path | None = None,
        *,
        reduce: Reduce = "mean",
        dtype: DType | None = None,
        labels: Sequence[int] | None = None,
        accumulator: Accumulator = "float32",
        non_finite: NonFinite = "refuse",
        fill: float = 0.0,
        halo: Size | None = None,
        average_integers: bool = False,
        clip: bool = False,
        scale: int | None = None,
        **storage: Unpack[StorageOptions],
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
        self._came: npt.NDArray[np.bool_] | None = None
        self._finished: Array | Volume | None = None
        self._stats: AggregationStats | None = None
        #: torch, if tensors were added.
        self._torch: Any = None

    def add_batch(self, batch: Any, locations: Any) -> None:
        """Add a batch of predictions: all of them or, if one is wrong, none.

        Parameters
        ----------
        batch : array or torch.Tensor
            Predictions (B, C, Z, Y, X), on any device.
        locations : array or torch.Tensor
            Locations (B, 6) of their patches, as the sampler gave them.

        Raises
        ------
        ValueError
            If shapes do not fit, a location is not the sampler's or came before, or values are refused.
        """
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

    def _started(self, batch: Array) -> Aggregator:
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

    def finish(self, *, partial: bool = False) -> Volume | Array:
        """Finish the output.

        Parameters
        ----------
        partial : bool, default False
            Accept that patches are missing. Otherwise they are an error.

        Returns
        -------
        Volume or numpy.ndarray
            The volume at `output`, opened, or the array (C, Z, Y, X) without one.
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
            self._finished, stats = self._running.finish(partial)
            self._stats = stats
            warn_of_clipped(stats, stacklevel=3)
        return self._finished

    def get_output_tensor(self) -> Any:
        """Finish the output and read it into memory.

        Returns
        -------
        torch.Tensor or numpy.ndarray
            The output (C, Z, Y, X): a tensor if tensors were added, else an array.
        """
        output = self.finish()
        array = output[...] if isinstance(output, Volume) else output
        return array if self._torch is None else self._torch.from_numpy(array)

    def stats(self) -> AggregationStats:
        """Return the statistics of a finished output.

        Returns
        -------
        dict
            ``patches``, ``skipped``, ``uncovered_voxels``, ``clipped_values``, ``chunks_written`` and ``peak_live_bytes``,
            the most bytes that were held at once.
        """
        if self._stats is None:
            raise InvalidError("the output is not finished: call finish() first")
        return self._stats


def blending(
    blend: Blend,
    reduce: Reduce,
    dtype: DType | None,
    labels: Sequence[int] | None,
    accumulator: Accumulator,
    vote: Sequence[float] | None,
    non_finite: NonFinite,
    fill: float,
    average_integers: bool,
    clip: bool,
) -> Settings:
    """Return how predictions become voxels, as the compiled half takes it."""
    return {
        "blend": word(blend),
        "reduce": word(reduce),
        "labels": None if labels is None else list(labels),
        "accumulator": accumulator,
        "vote": None if vote is None else list(vote),
        "non_finite": non_finite,
        "fill": float(fill),
        "average_integers": average_integers,
        "clip": clip,
        "dtype": dtype,
    }


def warn_of_clipped(stats: AggregationStats, stacklevel: int) -> None:
    """Warn if an output's type does not have all values."""
    if clipped := stats["clipped_values"]:
        message = f"{clipped} values do not fit the output's type and became its nearest"
        warnings.warn(message, stacklevel=stacklevel + 1)


def output_place(
    patch: Sequence[int], predicted: Sequence[int], halo: Size | None = None, scale: int | None = None
) -> tuple[tuple[int, int, int], int]:
    """Return the halo and scale of predictions (C, Z, Y, X) of these lengths for patches of ``patch`` voxels.

    What is not given follows from the lengths; they are refused where they can be read in two ways.
    """
    channels, *lengths = (int(n) for n in predicted)
    rim = None if halo is None else size("halo", halo, least=0)
    factor = None if scale is None else count("scale", scale, least=1)
    found, factor = _output_place(patch, channels, lengths, rim, factor)
    return (found[0], found[1], found[2]), factor


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> Array:
    """Return a numpy array of an array or a tensor on any device."""
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
