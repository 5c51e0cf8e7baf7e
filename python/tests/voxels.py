"""The voxels of a file, against the array that was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import voxpatch


def check_voxels(path: str | Path, expected: np.ndarray, name: object, **options) -> voxpatch.Volume:
    """Compare all voxels, and those of a box that cuts chunks."""
    volume = voxpatch.open(path, **options)
    assert volume.dtype == expected.dtype, (name, volume.dtype)
    assert volume.shape == expected.shape, (name, volume.shape, expected.shape)
    assert np.array_equal(volume[...], expected), name
    z, y, x = (n // 3 for n in expected.shape[1:])
    assert np.array_equal(volume[:, z:, y : y + 3, x:], expected[:, z:, y : y + 3, x:]), name
    return volume
