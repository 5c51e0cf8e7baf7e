"""Made scans for the examples: bright blobs in noise, and where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import voxpatch


def scan(folder: Path, number: int, shape: tuple[int, int, int] = (64, 72, 80)) -> voxpatch.Subject:
    """A CT-like volume as sharded Zarr, and its labels. They are made unless they exist."""
    ct_path, label_path = folder / f"ct{number}.zarr", folder / f"label{number}.zarr"
    if not label_path.exists():
        random = np.random.default_rng(number)
        place = np.indices(shape, dtype=np.float32)
        labels = np.zeros(shape, np.uint8)
        for _ in range(6):
            center = [random.uniform(8, length - 8) for length in shape]
            distance = sum((axis - at) ** 2 for axis, at in zip(place, center))
            labels[distance < random.uniform(5, 9) ** 2] = 1
        ct = random.normal(0, 60, shape) + 400.0 * labels
        settings = {"chunk": 16, "shard": 64, "spacing": (2.0, 1.0, 1.0)}
        voxpatch.write(ct_path, ct.astype(np.int16), **settings)
        voxpatch.write(label_path, labels, **settings)
    return voxpatch.Subject(ct=ct_path, label=label_path, case=number)
