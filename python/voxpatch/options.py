"""Words and values that options take; type checkers know them all.

Where an option is a word with numbers, such as ``"gaussian:0.2"``, there is a small class for it: ``Gaussian(0.2)``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._voxpatch import Volume

#: An array of any type and number of axes.
Array = Union["npt.NDArray[Any]"]
#: Options on their way to the compiled half, and its reports.
Settings = dict[str, Any]
#: A path of a file or folder.
Path = Union[str, "os.PathLike[str]"]
#: A volume in any form: opened, by its path, or as an array (z, y, x) or (c, z, y, x).
VolumeLike = Union["Volume", Path, Array]
#: A type of voxels.
DType = Union[str, type, "np.dtype[Any]"]
#: A matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+.
Affine = Union[Sequence[Sequence[float]], Array]
#: Voxels along z, y, x: one number for all three, or three.
Size = Union[int, Sequence[int]]
#: Overlaps along z, y, x: voxels (int), or a fraction of the patch from 0 up to 1 (float); one for all three, or three.
Overlap = Union[float, Sequence[float]]
#: Some channels or time points, or a part of an axis: a number, a slice or range of step 1, or (first, end).
Part = Union[int, slice, range, "tuple[int, int]"]

#: The values that a volume gives: real ones, stored ones, or real ones of a type.
Values = Union[Literal["real", "stored"], DType]
#: Distances between voxels along z, y, x in mm: one number for all three, or three.
Spacing = Union[float, Sequence[float]]
#: How values between voxels are computed.
Interpolation = Literal["nearest", "linear", "cubic", "label-linear"]
#: The grid of predictions: that of the volume that the model gets, or that of its file.
OutputGrid = Literal["model", "source"]
#: How uncompressed files are read.
ReadMethod = Literal["auto", "mmap", "mmap-resident", "pread"]
#: The treatment of DICOM slices that are shifted within their plane.
Tilt = Literal["refuse", "shear"]
#: The meaning of a Zarr chunk that has no file.
MissingChunks = Literal["fill", "error"]
#: The compression of chunks.
Codec = Literal["zstd", "blosc-zstd", "blosc-lz4", "gzip", "zlib", "none"]
#: The voxels of coarser levels: the mean, or the most frequent value.
Downsample = Literal["mean", "mode"]
#: A version of Zarr.
Zarr = Literal[2, 3]
#: Voxels of a shard along z, y, x, or None for a file for each chunk.
Shard = Union[Size, Literal["auto"], None]

#: What lies beyond the faces of a volume: a number, or a way to continue the voxels inside.
Padding = Union[float, Literal["constant", "edge", "reflect", "wrap"]]
#: Where the patches of a grid start.
Placement = Literal["edge", "even", "padded"]
#: A tool whose placement and weights are used.
Preset = Literal["torchio", "monai", "nnunet"]
#: What to do with values that are NaN or infinite, or too large for the sums or the output.
NonFinite = Literal["refuse", "leave-out", "keep"]
#: The type of weighted sums.
Accumulator = Literal["float32", "float16", "bfloat16"]
#: Where predictions are blended: on the device where they are, in the memory of the host, or where it is faster.
BlendOn = Literal["auto", "device", "host"]
#: Test-time augmentation.
Tta = Literal["flips"]
#: What finished chunks survive: a killed process, or a power cut too.
Durability = Literal["none", "chunk"]
#: Normalization of all channels: z-scores, the values that become 0 and 1, or a class of numbers.
NormalizeAll = Union[Literal["zscore", "zscore:nonzero", "none"], "tuple[float, float]", "Percentile", "MeanStd", "NnunetCt"]
#: Normalization of what the model gets: one for all channels, a list with one for each, one in a mask, or the text of any.
Normalize = Union[NormalizeAll, "list[NormalizeAll]", "Within", str]

#: What to do with patches that do not fit around their center.
Border = Literal["drop", "shift", "pad"]
#: What to do with a subject whose map leaves no center to draw.
Empty = Literal["error", "skip", "uniform"]
#: What to do with patches that cannot be shared evenly by ranks.
Uneven = Literal["repeat", "drop", "exact"]
#: What to do with a patch that cannot be read.
OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian weights of overlapping patches.

    Parameters
    ----------
    sigma : float, default 0.125
        Standard deviation as a fraction of the patch.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> grid = voxpatch.GridSampler(np.zeros((8, 8, 8)), patch_size=4)
    >>> aggregator = voxpatch.GridAggregator(grid, blend=voxpatch.Gaussian(0.25))
    """

    sigma: float = 0.125

    def __str__(self) -> str:
        return f"gaussian:{float(self.sigma)}"


@dataclass(frozen=True)
class Threshold:
    """A reduction of each channel to 0 and 1.

    Parameters
    ----------
    value : float, default 0.5
        Values above it become 1.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.linspace(0, 1, 8**3, dtype=np.float32).reshape(8, 8, 8)
    >>> mask = voxpatch.predict(lambda batch: batch, scan, None, 4, reduce=voxpatch.Threshold(0.9))
    >>> mask.dtype, int(mask.min()), int(mask.max())
    (dtype('uint8'), 0, 1)
    """

    value: float = 0.5

    def __str__(self) -> str:
        return f"threshold:{float(self.value)}"


@dataclass(frozen=True)
class Quantize:
    """A reduction of each channel to the bytes 0 to 255.

    Parameters
    ----------
    low, high : float
        Values that become 0 and 255.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.linspace(0, 1, 8**3, dtype=np.float32).reshape(8, 8, 8)
    >>> voxpatch.predict(lambda batch: batch, scan, None, 4, reduce=voxpatch.Quantize(0, 1)).dtype
    dtype('uint8')
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"quantize:{float(self.low)},{float(self.high)}"


@dataclass(frozen=True)
class Percentile:
    """A normalization: each channel is clipped to two of its percentiles, which become 0 and 1.

    Parameters
    ----------
    low, high : float
        Percentiles from 0 to 100. They are those of ``numpy.percentile`` for types of 8 and 16 bits, and within 1/8192 of
        their value for others.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.arange(8**3, dtype=np.int16).reshape(8, 8, 8)
    >>> out = voxpatch.predict(lambda batch: batch, scan, None, 4, normalize=voxpatch.Percentile(0.5, 99.5))
    >>> float(out.min()), float(out.max())
    (0.0, 1.0)
    """

    low: float = 0.5
    high: float = 99.5

    def __str__(self) -> str:
        return f"percentile:{float(self.low)},{float(self.high)}"


@dataclass(frozen=True)
class MeanStd:
    """A normalization: a mean is subtracted, and the rest divided by a deviation, such as those of a data set.

    Parameters
    ----------
    mean : float
        The value that becomes 0.
    std : float
        The difference that becomes 1.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.full((8, 8, 8), 7, np.float32)
    >>> out = voxpatch.predict(lambda batch: batch, scan, None, 4, normalize=voxpatch.MeanStd(5, 4))
    >>> round(float(out.max()), 3)
    0.5
    """

    mean: float
    std: float

    def __str__(self) -> str:
        return f"mean-std:{float(self.mean)},{float(self.std)}"


@dataclass(frozen=True)
class NnunetCt:
    """Normalization of CT as nnU-Net does it: values are clipped, then a mean is subtracted, and the rest divided by a deviation.

    The numbers are in ``foreground_intensity_properties_per_channel`` of nnU-Net's fingerprint of a data set.

    Parameters
    ----------
    low, high : float
        The lowest and the highest value that are kept: ``percentile_00_5`` and ``percentile_99_5``.
    mean, std : float
        The value that becomes 0, and the difference that becomes 1.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.full((8, 8, 8), 3000, np.int16)
    >>> ct = voxpatch.NnunetCt(low=-968, high=326, mean=101, std=75)
    >>> round(float(voxpatch.predict(lambda batch: batch, scan, None, 4, normalize=ct).max()), 3)
    3.0
    """

    low: float
    high: float
    mean: float
    std: float

    def __str__(self) -> str:
        return f"nnunet-ct:{float(self.low)},{float(self.high)},{float(self.mean)},{float(self.std)}"


@dataclass(frozen=True)
class Within:
    """A normalization that is measured in a mask: only voxels where it is not 0 count. All voxels are normalized.

    Parameters
    ----------
    normalize : {"zscore", "zscore:nonzero"}, Percentile or list
        The normalization.
    mask : str or path-like
        Path of the mask, of which the first channel is used; in a `Queue`, the name of a volume of the subject, or a path.
        It is brought to the grid of the volume by nearest neighbor if both files state the position of their voxels, and
        must have its shape otherwise.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> np.save("brain.npy", np.arange(8**3).reshape(8, 8, 8) >= 256)
    >>> scan = np.full((8, 8, 8), 100, np.float32)
    >>> scan[4:] = np.arange(256).reshape(4, 8, 8)
    >>> out = voxpatch.predict(lambda batch: batch, scan, None, 4, normalize=voxpatch.Within("zscore", "brain.npy"))
    >>> abs(float(out[0, 4:].mean())) < 1e-5
    True
    """

    normalize: NormalizeAll | list[NormalizeAll]
    mask: str | os.PathLike[str]

    def __str__(self) -> str:
        from .sizes import normalization

        return f"{normalization(self.normalize)}@{os.fspath(self.mask)}"


#: Weights of overlapping patches: a word, :class:`Gaussian`, or an array (z, y, x).
Blend = Union[Literal["average", "hann", "gaussian", "linear", "nnunet", "crop"], Gaussian, Array]
#: The reduction of blended channels.
Reduce = Union[Literal["mean", "softmax", "sigmoid", "argmax"], Threshold, Quantize]


class StorageOptions(TypedDict, total=False):
    """How an output is stored: keywords of ``predict`` and ``GridAggregator``, explained at ``write``."""

    zarr: Zarr
    chunk: Size
    shard: Shard
    codec: Codec
    clevel: int
    pyramid: Downsample
    levels: int
    overwrite: bool
    storage_options: Mapping[str, str | bool | float] | None


class ConvertPlan(TypedDict):
    """What a conversion would need."""

    #: Threads.
    threads: int
    #: Whether each chunk of the source is read once.
    reads_once: bool
    #: Bytes of decoded chunks that are kept.
    cache_bytes: int
    #: Bytes that the conversion would hold.
    peak_bytes: int
    #: Bytes of the whole process.
    process_bytes: int | None
    #: Bytes of the output before it is compressed.
    output_bytes: int
    #: Free bytes of the output's disk.
    free_bytes: int | None


class PredictPlan(TypedDict):
    """What a prediction would need."""

    #: Patches of the grid.
    patches: int
    #: Patches that are predicted, in all passes.
    patches_predicted: int
    #: Passes in which outputs are written.
    passes: int
    #: Where predictions would be blended.
    blend_on: Literal["device", "host"]
    #: Bytes that blending would take on the device, without the model and its predictions; None on the host.
    device_bytes: int | None
    #: Bytes that the run would hold, the model not counted.
    peak_bytes: int
    #: Bytes that the model takes, measured on one batch.
    model_bytes: int | None
    #: Bytes of the whole process.
    process_bytes: int | None
    #: Seconds that the run would take, extrapolated from one batch.
    estimated_seconds: float
    #: Bytes of each output before it is compressed.
    output_bytes: list[int]
    #: Free bytes of the output's disk.
    free_bytes: int | None


class JobStatus(TypedDict):
    """The progress of a job's tasks."""

    #: Whether the outputs have their names.
    published: bool
    #: Whether all chunks are there.
    complete: bool
    #: The number of parts; None before one has begun and after the outputs are published.
    parts: int | None
    #: Each part that has begun: its number, its finished chunks, and all of them.
    begun: list[tuple[int, int, int]]
    #: Finished chunks of all outputs.
    chunks_done: int
    #: Chunks of all outputs.
    chunks: int


class TaskDone(TypedDict):
    """What a task has done."""

    #: Number of the part, from 0.
    part: int
    #: Number of parts.
    parts: int
    #: Patches that were predicted.
    patches: int
    #: Whether the outputs are published.
    whole: bool


class AggregationStats(TypedDict):
    """What an aggregator has done."""

    #: Patches that were added.
    patches: int
    #: Patches that were left out.
    skipped: int
    #: Voxels that no patch covers.
    uncovered_voxels: int
    #: Values beyond the range of the output's type.
    clipped_values: int
    #: Chunks that were written.
    chunks_written: int
    #: The most bytes that were held at once.
    peak_live_bytes: int


class QueueStats(TypedDict):
    """What an epoch of a queue has done."""

    #: Patches that were delivered.
    delivered: int
    #: Patches that were left out.
    left_out: int
    #: The reasons for the first of them.
    reasons: list[str]
    #: The first images whose chunks are far larger than a patch along some axis, with what a conversion saves.
    slow: list[str]
    #: Seconds that the caller waited.
    waited_seconds: float
    #: Chunks that were decoded.
    chunks: int
    #: Bytes that were read.
    bytes: int
    #: Copies of chunks into patches.
    copies: int
    #: Mean number of different subjects in a batch, or in 8 samples in a row.
    subjects_per_batch: float
    #: Patches that are ready.
    ready: int
    #: Patches that are being filled.
    in_progress: int


def word(option: Blend | Reduce) -> str | Array:
    """Return an option as the compiled half takes it: the word of a class that stands for one."""
    return str(option) if isinstance(option, (Gaussian, Threshold, Quantize)) else option
