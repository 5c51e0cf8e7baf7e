"""Small volumes for all tests."""

from __future__ import annotations

import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch import _voxpatch

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)

Voxels = np.ndarray[Any, Any]

#: Only a package built with the feature `testing` has volumes that misbehave.
faulty = getattr(_voxpatch, "_faulty", None)
needs_faulty = pytest.mark.skipif(faulty is None, reason="this build has not the feature `testing`")


@pytest.fixture(scope="session")
def voxels() -> Voxels:
    return np.random.default_rng(1).integers(-1000, 3000, (2, 29, 37, 41)).astype(np.int16)


@pytest.fixture(scope="session")
def files(voxels: Voxels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The same voxels in each format."""
    folder = tmp_path_factory.mktemp("formats")
    np.save(folder / "c.npy", voxels)
    for end, options in {
        "nii": {},
        "nrrd": {},
        "mha": {},
        "zarr": {"chunk": (8, 16, 8), "shard": 32},
        "v2.zarr": {"zarr": 2, "chunk": 16, "codec": "blosc-lz4"},
    }.items():
        voxpatch.write(folder / f"c.{end}", voxels, spacing=(2.5, 1.0, 0.5), **options)
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[voxpatch.Subject]:
    """Three scans with labels on disk."""
    folder = tmp_path_factory.mktemp("subjects")
    random = np.random.default_rng(2)
    made = []
    for n in range(3):
        scan = random.normal(0, 100, (30 + n, 34, 38)).astype(np.float32)
        labels = (scan > 120).astype(np.uint8) + (scan > 200)
        np.save(folder / f"ct{n}.npy", scan)
        voxpatch.write(folder / f"label{n}.zarr", labels, chunk=8, shard=16)
        made.append(voxpatch.Subject(ct=folder / f"ct{n}.npy", label=folder / f"label{n}.zarr", age=60 + n))
    return made


def patch_of(subject: voxpatch.Subject, name: str, location: Voxels) -> Voxels:
    """What numpy cuts out of a subject's volume."""
    z, y, x, z1, y1, x1 = location.tolist()
    return np.asarray(subject[name])[:, z:z1, y:y1, x:x1]


def key(sample: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a patch: subject, place and voxels."""
    voxels = tuple(sample[name].tobytes() for name in sorted(sample) if name not in ("location", "subject"))
    return (sample["subject"]["index"], *sample["location"].tolist(), hash(voxels))
