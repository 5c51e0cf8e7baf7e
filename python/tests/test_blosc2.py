"""Blosc2 arrays, written by python-blosc2, against the arrays that were written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import voxpatch
from damage import check_damage, total

blosc2 = pytest.importorskip("blosc2", reason="blosc2 writes .b2nd")

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64", ">i2"]


def made(shape, dtype):
    rng = np.random.default_rng(2)
    return ((np.indices(shape).sum(axis=0) * 3 + rng.integers(0, 5, shape)) % 100).astype(dtype)


def variants():
    for dtype in DTYPES:
        yield dtype, (2, 9, 20, 17), (1, 4, 16, 16), (1, 3, 8, 16), blosc2.Codec.ZSTD, [blosc2.Filter.SHUFFLE], 8
    filters = [[], [blosc2.Filter.SHUFFLE], [blosc2.Filter.BITSHUFFLE]]
    codecs = [blosc2.Codec.ZSTD, blosc2.Codec.LZ4, blosc2.Codec.LZ4HC, blosc2.Codec.ZLIB, blosc2.Codec.BLOSCLZ]
    for codec, chain, level, dtype in itertools.product(codecs, filters, [0, 1, 9], ["uint8", "int16", "float32"]):
        yield dtype, (17, 33, 40), (8, 16, 32), (4, 8, 16), codec, chain, level
    for shape, chunk, block in [
        ((33, 40), (16, 16), (8, 16)), ((5, 6, 7), (5, 6, 7), (5, 6, 7)), ((3, 20, 20, 20), (3, 7, 20, 9), (2, 3, 20, 4)),
    ]:  # fmt: skip
        yield "float32", shape, chunk, block, blosc2.Codec.ZSTD, [blosc2.Filter.SHUFFLE], 5


def test_arrays_of_python_blosc2(tmp_path):
    count = 0
    for dtype, shape, chunk, block, codec, filters, level in variants():
        path = tmp_path / f"{count}.b2nd"
        voxels = made(shape, dtype)
        voxels[: shape[0] // 2] = 0
        params = {"codec": codec, "clevel": level, "filters": filters, "filters_meta": [0] * len(filters)}
        blosc2.asarray(voxels, urlpath=str(path), chunks=chunk, blocks=block, cparams=params)
        volume = voxpatch.open(path, trusted=False)
        expected = voxels.reshape((1,) * (4 - voxels.ndim) + shape).astype(np.dtype(dtype).newbyteorder("="))
        name = (dtype, shape, chunk, block, codec, filters, level)
        assert volume.dtype == expected.dtype and np.array_equal(volume[...], expected), name
        count += 1
    assert count >= 150
    path = tmp_path / "zeros.b2nd"
    blosc2.zeros((9, 20, 17), dtype="i4", urlpath=str(path))
    assert not voxpatch.open(path)[...].any()
    path = tmp_path / "full.b2nd"
    blosc2.full((9, 20, 17), 7, dtype="u2", urlpath=str(path), chunks=(9, 20, 17))
    assert (voxpatch.open(path)[...] == 7).all()


def test_damaged_arrays_are_errors(tmp_path):
    rng = np.random.default_rng(3)
    outcomes = []
    path = tmp_path / "a.b2nd"
    for codec in (blosc2.Codec.ZSTD, blosc2.Codec.LZ4, blosc2.Codec.BLOSCLZ):
        path.unlink(missing_ok=True)
        blosc2.asarray(made((9, 20, 17), "uint16"), urlpath=str(path), chunks=(4, 16, 16), cparams={"codec": codec})
        outcomes.append(check_damage(path, rng, 700))
    assert min(total(outcomes).values()) > 20, outcomes
