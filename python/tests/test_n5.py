"""N5 arrays, written by tensorstore or by a few lines here, against the arrays that were written."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import voxpatch
from voxels import check_voxels

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
ENCODERS = {
    "raw": ({"type": "raw"}, bytes),
    "gzip": ({"type": "gzip"}, gzip.compress),
    "zlib": ({"type": "gzip", "useZlib": True}, zlib.compress),
    "bzip2": ({"type": "bzip2"}, bz2.compress),
}


def made(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    return ((np.indices(shape).sum(axis=0) * 3 + rng.integers(0, 5, shape)) % 100).astype(dtype)


def write(path: Path, voxels: np.ndarray, block: tuple[int, ...], kind: str = "gzip", **attributes) -> None:
    """Write an array; blocks of zeros are left out, and blocks at the edges are cut."""
    settings, encode = ENCODERS[kind]
    path.mkdir(parents=True, exist_ok=True)
    (path / "attributes.json").write_text(json.dumps({
        "dimensions": voxels.shape[::-1], "blockSize": block[::-1], "dataType": str(voxels.dtype), "compression": settings,
        **attributes,
    }))
    for index in itertools.product(*(range(-(-n // b)) for n, b in zip(voxels.shape, block, strict=True))):
        part = voxels[tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True))]
        if not part.any():
            continue
        header = struct.pack(f">HH{part.ndim}I", 0, part.ndim, *part.shape[::-1])
        file = path.joinpath(*map(str, index[::-1]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header + encode(part.astype(part.dtype.newbyteorder(">")).tobytes()))


def test_arrays_of_every_type_and_compression(tmp_path):
    count = 0
    for dtype, kind in itertools.product(DTYPES, ENCODERS):
        voxels = made((9, 17, 20), dtype)
        voxels[:4, :8, :8] = 0
        write(tmp_path / f"{count}.n5", voxels, (4, 8, 8), kind)
        check_voxels(tmp_path / f"{count}.n5", voxels[None], (dtype, kind), trusted=False)
        count += 1
    voxels = made((3, 5, 6, 7), "int16")
    write(tmp_path / "four", voxels, (1, 2, 6, 4))
    check_voxels(tmp_path / "four", voxels, "channels")


def test_arrays_of_tensorstore(tmp_path):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore writes N5")
    compressions = [
        {"type": "raw"}, {"type": "gzip", "level": 6}, {"type": "bzip2"}, {"type": "zstd", "level": 3},
        {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, {"type": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2},
    ]  # fmt: skip
    for n, (compression, dtype) in enumerate(itertools.product(compressions, ["uint8", "uint16", "float32", "int64"])):
        path = tmp_path / f"{n}.n5"
        voxels = made((9, 17, 20), dtype)
        store = tensorstore.open({
            "driver": "n5", "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {"dimensions": [20, 17, 9], "blockSize": [8, 8, 4], "dataType": dtype, "compression": compression},
        }, create=True).result()  # fmt: skip
        store[...] = voxels.transpose()
        check_voxels(path, voxels[None], (compression, dtype))
        if compression["type"] == "blosc":
            with pytest.raises(ValueError, match="blosc"):
                voxpatch.open(path, trusted=False)


def test_groups_and_spacing(tmp_path):
    root = tmp_path / "a.n5"
    voxels = made((5, 6, 7), "uint8")
    root.mkdir()
    (root / "attributes.json").write_text('{"n5": "2.5.1"}')
    write(root / "volumes/raw", voxels, (2, 3, 4), pixelResolution={"dimensions": [0.25, 0.5, 2.0], "unit": "um"})
    volume = check_voxels(root, voxels[None], "the only array")
    assert np.allclose(volume.spacing, (0.002, 0.0005, 0.00025))
    write(root / "volumes/labels", voxels, (2, 3, 4), resolution=[4, 8, 40], units=["nm"] * 3)
    assert np.allclose(voxpatch.open(root / "volumes/labels").spacing, (40e-6, 8e-6, 4e-6))
    with pytest.raises(ValueError, match="labels, .*raw"):
        voxpatch.open(root)


def test_blocks_that_are_damaged_are_refused(tmp_path):
    path = tmp_path / "a.n5"
    voxels = made((4, 4, 4), "uint16") + 1
    write(path, voxels, (4, 4, 4))
    block = path / "0/0/0"
    whole = block.read_bytes()
    bomb = struct.pack(">HH3I", 0, 3, 4, 4, 4) + gzip.compress(bytes(1 << 26))
    large = struct.pack(">HH3I", 0, 3, 1 << 30, 4, 4) + whole[16:]
    for damaged in (b"", whole[:3], whole[:15], whole[:-9], bomb, large, b"\0\5" + whole[2:], whole[:3] + b"\2" + whole[4:]):
        block.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)):
            voxpatch.open(path)[...]
    rng = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        block.write_bytes(damaged)
        try:
            assert np.array_equal(voxpatch.open(path)[0], voxels) or damaged[:16] != whole[:16]
        except (ValueError, OSError) as error:
            assert "panicked" not in str(error)
    write(tmp_path / "b.n5", voxels, (4, 4, 4), compression={"type": "xz"})
    with pytest.raises(ValueError, match="xz"):
        voxpatch.open(tmp_path / "b.n5")
