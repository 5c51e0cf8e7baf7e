"""TorchIO 2 reads volumes through voxpatch: call :func:`register` once, and ``ScalarImage("huge.ome.zarr")`` is lazy.

Images keep TorchIO's order of axes, (C, I, J, K) with I along x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchio.data.backends import normalize_index, register_backend, unregister_backend

import voxpatch
from voxpatch.inference import as_array

#: What voxpatch reads box by box, and TorchIO as a whole or not at all.
SUFFIXES = (".zarr", ".npy", ".nrrd", ".nhdr", ".mha", ".mhd")

_NAME = "voxpatch"
#: What torch has less use for.
_WIDER = {"uint16": np.int32, "uint32": np.int64}


class VoxpatchBackend:
    """A volume as TorchIO's ``ImageDataBackend``: slices read only the chunks that they touch."""

    def __init__(self, volume: voxpatch.Volume, affine: Any = None) -> None:
        self.volume = volume
        self._affine = volume.affine if affine is None else as_array(affine)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, I, J, K)."""
        c, z, y, x = self.volume.shape
        return c, x, y, z

    @property
    def affine(self) -> torch.Tensor:
        """Matrix float64 (4, 4), voxels to mm in RAS+."""
        return torch.as_tensor(self._affine, dtype=torch.float64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.volume.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        c, i, j, k = normalize_index(index)
        array = self.volume[c, k, j, i]
        array = array.astype(_WIDER.get(array.dtype.name, array.dtype), copy=False)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 2, 1)))

    def to_tensor(self) -> torch.Tensor:
        """Read the whole volume."""
        return self[...]


def register(suffixes: Sequence[str] = SUFFIXES) -> None:
    """Make TorchIO read paths that end like this through voxpatch, real values where there is a slope."""
    ends = tuple(suffix.lower() for suffix in suffixes)

    def matches(request: Any) -> bool:
        return request.path is not None and str(request.path).rstrip("/").lower().endswith(ends)

    def make(request: Any) -> VoxpatchBackend:
        volume = voxpatch.open(request.path)
        return VoxpatchBackend(volume if volume.rescale is None else volume.astype("float32"), request.affine)

    register_backend(_NAME, matches, make)


def unregister() -> None:
    """Make TorchIO read as before."""
    unregister_backend(_NAME)
