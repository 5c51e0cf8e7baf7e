"""Volumes as arrays of other packages, read when they are computed: dask here, xarray in :mod:`voxpatch.xarray`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InvalidError

if TYPE_CHECKING:
    from ._voxpatch import Volume

#: Bytes of a block, unless a shard has more.
_BLOCK = 64 << 20


def to_dask(volume: Volume, chunks: int | tuple[int, int, int, int] | None = None) -> Any:
    """Return a dask array of blocks that are read when they are computed, for :meth:`Volume.to_dask`."""
    try:
        import dask.array
        import dask.base
    except ImportError as error:
        raise ImportError("to_dask needs the package dask: pip install 'dask[array]'") from error
    import numpy as np

    if chunks is not None and not isinstance(chunks, int) and len(chunks) != 4:
        raise InvalidError(f"chunks {chunks!r}: give one length, or four of them along c, z, y, x")
    blocks = block_shape(volume) if chunks is None else chunks
    return dask.array.from_array(
        volume,
        blocks,
        name=f"voxpatch-{dask.base.tokenize(volume, blocks)}",
        lock=False,
        asarray=True,
        fancy=False,
        inline_array=True,
        meta=np.empty((0, 0, 0, 0), volume.dtype),
    )


def block_shape(volume: Volume) -> tuple[int, int, int, int]:
    """Return the shape of blocks: whole shards, as many as fit into a block along x, then y, then z, then channels."""
    shape, itemsize = volume.shape, volume.dtype.itemsize
    unit = volume.shards or (1, 1, 1, 1)
    block = [min(one, length) for one, length in zip(unit, shape)]
    for axis in (3, 2, 1, 0):
        others = itemsize
        for other in range(4):
            others *= block[other] if other != axis else 1
        fitting = max(1, _BLOCK // max(1, others * unit[axis]))
        block[axis] = min(shape[axis], fitting * unit[axis])
    channels, z, y, x = block
    return channels, z, y, x
