"""Zip archives of Zarr and of numpy arrays, written by other programs, against the arrays that were written."""

from __future__ import annotations

import itertools
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import voxpatch
from damage import check_damage, total
from voxels import check_voxels

zarr = pytest.importorskip("zarr")


def made(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    """Return values that are nowhere the same as nearby."""
    rng = np.random.default_rng(7)
    return (np.indices(shape).sum(axis=0) * 3 + rng.integers(0, 5, shape)).astype(dtype)


def write_store(path: Path, voxels: np.ndarray, version: int, method: int, **options) -> None:
    """Write an array into a zip archive with zarr-python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata that are written twice are entries of the same name
        store = zarr.storage.ZipStore(path, mode="w", compression=method)
        array = zarr.create_array(store, shape=voxels.shape, dtype=voxels.dtype, zarr_format=version, **options)
        array[...] = voxels
        array.attrs["note"] = "written last"
        store.close()


def variants():
    """Yield a version of Zarr, a method of zip, and options of zarr-python."""
    for version, method in itertools.product([2, 3], [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]):
        for chunks, shards in [((1, 8, 16, 16), None), ((1, 5, 7, 9), None), ((2, 4, 8, 8), (2, 8, 16, 32))]:
            if shards is not None and version == 2:
                continue
            for compressors in [None, "auto"]:
                yield version, method, {"chunks": chunks, "shards": shards, "compressors": compressors}
    for dtype in ("uint8", "int8", "float32", "float64", "uint16", "int32", "uint64"):
        yield 3, zipfile.ZIP_STORED, {"chunks": (1, 8, 16, 16), "dtype": dtype}
        yield 2, zipfile.ZIP_DEFLATED, {"chunks": (1, 8, 16, 16), "dtype": dtype}


def test_archives_of_zarr_python(tmp_path):
    count = 0
    for version, method, options in variants():
        voxels = made((2, 17, 33, 40), options.pop("dtype", "int16"))
        path = tmp_path / f"{count}.zarr.zip"
        write_store(path, voxels, version, method, **options)
        check_voxels(path, voxels, (version, method, options))
        count += 1
    print(f"{count} archives")
    assert count >= 30


def test_ozx_of_ngff_zarr(tmp_path):
    ngff = pytest.importorskip("ngff_zarr", reason="ngff-zarr writes .ozx")
    voxels = made((16, 32, 48), "uint16")
    image = ngff.to_ngff_image(
        voxels, dims=["z", "y", "x"], scale={"z": 2.0, "y": 0.5, "x": 0.25},
        axes_units={axis: "millimeter" for axis in "zyx"},
    )
    path = tmp_path / "scan.ozx"
    ngff.to_ngff_zarr(str(path), ngff.to_multiscales(image, scale_factors=[2], chunks=16), version="0.5")
    volume = check_voxels(path, voxels[None], "ozx")
    assert np.allclose(volume.spacing, (2.0, 0.5, 0.25))
    coarse = voxpatch.open(path, level=1)
    assert coarse.shape == (1, 8, 16, 24)
    with pytest.raises(ValueError, match="level"):
        voxpatch.open(path, level=2)


def test_a_group_of_arrays_in_an_archive_lists_them(tmp_path):
    path = tmp_path / "several.zip"
    voxels = made((4, 5, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = zarr.storage.ZipStore(path, mode="w")
        group = zarr.create_group(store)
        for name in ("raw", "labels"):
            group.create_array(name, shape=voxels.shape, dtype=voxels.dtype, chunks=(2, 5, 6))[...] = voxels
        store.close()
    with pytest.raises(ValueError, match="labels, raw"):
        voxpatch.open(path)
    check_voxels(path / "raw", voxels[None], "raw")
    with pytest.raises((ValueError, OSError)):
        voxpatch.open(path / "other")


def test_numpy_archives(tmp_path):
    """Cases of nnU-Net: several arrays, stored or deflated."""
    for save, dtype in itertools.product([np.savez, np.savez_compressed], ["float32", "int16", "uint8", ">f8"]):
        path = tmp_path / "case.npz"
        data, seg = made((2, 9, 10, 11), dtype), made((1, 9, 10, 11), "int8")
        save(path, data=data, seg=seg)
        with pytest.raises(ValueError, match="data, seg"):
            voxpatch.open(path)
        check_voxels(path / "data", data.astype(np.dtype(dtype).newbyteorder("=")), (save, dtype))
        check_voxels(path / "seg.npy", seg, (save, dtype))
        save(path, data)
        check_voxels(path, data.astype(np.dtype(dtype).newbyteorder("=")), (save, dtype))
    save(path, order=np.asfortranarray(made((3, 4, 5))))
    check_voxels(path, made((3, 4, 5))[None], "Fortran order")


def test_wide_archives(tmp_path):
    """An entry of more than 65 535 others, and one that is written as a stream, with zip64 numbers."""
    path = tmp_path / "a.npz"
    voxels = made((4, 5, 6))
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("data.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, voxels)
    check_voxels(path, voxels[None], "zip64")
    path = tmp_path / "many.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(66_000):
            archive.writestr(f"other/{n}", b"")
        archive.writestr(".zarray", (
            '{"zarr_format": 2, "shape": [2, 3, 4], "chunks": [2, 3, 4], "dtype": "|u1", "compressor": null, '
            '"fill_value": 0, "order": "C", "filters": null}'
        ))
        archive.writestr("0.0.0", bytes(range(24)))
    check_voxels(path, np.arange(24, dtype="uint8").reshape(1, 2, 3, 4), "66 002 entries")


def test_damaged_archives_are_errors(tmp_path):
    rng = np.random.default_rng(5)
    outcomes = []
    voxels = made((1, 8, 9, 10), "uint8")
    for version, method in itertools.product([2, 3], [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]):
        path = tmp_path / "a.zarr.zip"
        write_store(path, voxels, version, method, chunks=(1, 4, 9, 10))
        outcomes.append(check_damage(path, rng, 400))
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / "a.npz"
        save(path, voxels)
        outcomes.append(check_damage(path, rng, 200))
    assert min(total(outcomes).values()) > 20, outcomes
