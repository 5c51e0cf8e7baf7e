"""Volumes as arrays of dask and xarray, and as the arrays that viewers take."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]


@pytest.fixture
def volume(files: dict[str, pathlib.Path]) -> voxpatch.Volume:
    return voxpatch.open(files["c.zarr"])


def test_a_volume_has_what_viewers_look_for(volume: voxpatch.Volume, voxels: Voxels) -> None:
    # napari and dask look for these; a layer reads by slices, and numpy by __array__.
    assert (volume.shape, volume.ndim, volume.dtype, volume.size) == (voxels.shape, 4, voxels.dtype, voxels.size)
    assert volume.chunks is not None and volume.shards is not None
    assert all(shard % chunk == 0 for shard, chunk in zip(volume.shards, volume.chunks))
    assert np.array_equal(np.asarray(volume), voxels)
    assert np.array_equal(volume[0, 5], voxels[0, 5]) and np.array_equal(volume[:, ::2, 3:4], voxels[:, ::2, 3:4])


def test_dask_computes_the_voxels_of_every_format(files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    pytest.importorskip("dask.array", reason="dask is not installed")
    for name, path in files.items():
        array = voxpatch.open(path).to_dask()
        assert (array.shape, array.dtype) == (voxels.shape, voxels.dtype), name
        assert np.array_equal(array.compute(scheduler="threads"), voxels), name
        small = voxpatch.open(path).to_dask(chunks=(1, 8, 37, 20))
        assert small.chunks == ((1, 1), (8, 8, 8, 5), (37,), (20, 20, 1)), name
        assert np.array_equal(small[1, 3:20, ::3, 40].compute(), voxels[1, 3:20, ::3, 40]), name
        assert small.astype("int64").sum().compute() == voxels.astype("int64").sum(), name


def test_dask_s_blocks_are_whole_shards(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask.array", reason="dask is not installed")
    volume = voxpatch.write(tmp_path / "big.zarr", np.zeros((100, 90, 80), np.int16), chunk=8, shard=16)
    assert volume.shards == (1, 16, 16, 16)
    assert volume.to_dask().numblocks == (1, 1, 1, 1)
    for limit, blocks in [(1, (16, 16, 16)), (16 * 16 * 48 * 2, (16, 16, 48)), (16 * 40 * 80 * 2, (16, 32, 80))]:
        monkeypatch.setattr("voxpatch.arrays._BLOCK", limit)
        assert volume.to_dask().chunksize == (1, *blocks)
    with pytest.raises(ValueError, match="four of them"):
        volume.to_dask(chunks=(8, 8, 8))  # type: ignore[arg-type]


def test_dask_s_names_change_with_the_files_and_with_nothing_else(tmp_path: pathlib.Path) -> None:
    base = pytest.importorskip("dask.base", reason="dask is not installed")
    path = tmp_path / "a.npy"
    np.save(path, np.arange(4000, dtype=np.int16).reshape(10, 20, 20))
    volume = voxpatch.open(path)
    names = {voxpatch.open(path).to_dask().name for _ in range(3)}
    assert names == {volume.to_dask().name}
    others = [volume.to_dask(5), voxpatch.open(path, values="stored").astype("float32").to_dask()]
    others.append(voxpatch.open(path, box=((0, 5), (0, 20), (0, 20))).to_dask())
    names |= {other.name for other in others}
    assert len(names) == 4
    os.utime(path, ns=(1, 1))
    assert voxpatch.open(path).to_dask().name not in names
    one, other = (voxpatch.Volume.from_array(np.full((4, 4, 4), n, np.int16)) for n in (1, 2))
    assert base.tokenize(one) == base.tokenize(voxpatch.Volume.from_array(np.full((4, 4, 4), 1, np.int16)))
    assert base.tokenize(one) != base.tokenize(other)


def test_xarray_opens_a_volume_lazily(files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    from voxpatch.xarray import VoxpatchBackend

    for name, path in files.items():
        with xarray.open_dataset(path, engine=VoxpatchBackend) as data:
            image = data["image"]
            assert image.dims == ("c", "z", "y", "x") and image.shape == voxels.shape, name
            for index in (
                np.s_[1, 3:20, ::3, 40], np.s_[0, 20:3:-2, :, -1], np.s_[:, 5:5], np.s_[0, [3, 1, 20]], np.s_[..., ::-1],
            ):  # fmt: skip
                assert np.array_equal(image[index].values, xarray.DataArray(voxels)[index].values), (name, index)
            assert np.array_equal(data.isel(c=0).sel(z=2 * image.attrs["spacing"][0]).image.values, voxels[0, 2]), name
            assert np.array_equal(image.values, voxels), name
    volume = voxpatch.open(files["c.zarr"], level=0)
    data = xarray.open_dataset(volume, engine=VoxpatchBackend, drop_variables="x")
    assert "x" not in data.coords and data.image.attrs["spacing"] == list(volume.spacing)
    assert np.allclose(data.image.attrs["affine"], volume.affine)
    pytest.importorskip("dask.array", reason="dask is not installed")
    blocks = xarray.open_dataset(files["c.v2.zarr"], engine=VoxpatchBackend, chunks={"c": 1, "z": 16, "y": 16, "x": 16}).image
    assert blocks.chunks == ((1, 1), (16, 13), (16, 16, 5), (16, 16, 9)) and np.array_equal(blocks.values, voxels)
    assert xarray.open_dataset(files["c.v2.zarr"], engine=VoxpatchBackend, chunks={}).image.data.numblocks == (2, 2, 3, 3)
    chosen = xarray.open_dataset(files["c.nii"], engine=VoxpatchBackend, options={"channels": 1})
    assert chosen.image.shape == (1, *voxels.shape[1:])
    assert VoxpatchBackend().guess_can_open("scan.nii.gz") and not VoxpatchBackend().guess_can_open("scan.nc")


def test_napari_s_layers_take_a_volume_and_a_pyramid(voxels: Voxels, tmp_path: pathlib.Path) -> None:
    layers = pytest.importorskip("napari.layers", reason="napari is not installed")
    volume = voxpatch.write(tmp_path / "scan.zarr", voxels, spacing=(2.5, 1.0, 0.5), chunk=8, shard=16, pyramid="mean")
    layer = layers.Image(volume, scale=(1, *volume.spacing), contrast_limits=(-1000, 3000))
    assert (layer.multiscale, layer.data.shape, layer.extent.data.shape) == (False, voxels.shape, (2, 4))
    layer._slice_dims(_dims([1, 13 * 2.5, 0, 0]))
    assert np.array_equal(layer._data_view, voxels[1, 13])
    levels = [voxpatch.open(tmp_path / "scan.zarr", level=n) for n in range(2)]
    pyramid = layers.Image(levels, multiscale=True, contrast_limits=(-1000, 3000))
    assert [level.shape for level in pyramid.data] == [level.shape for level in levels]
    pyramid.data_level = 1
    pyramid._slice_dims(_dims([1, 14, 0, 0]))
    assert np.array_equal(pyramid._data_view, levels[1][1, 7])


def _dims(place: list[float]) -> Any:
    """Return the state of a viewer that shows y and x at a place."""
    from napari.components import Dims

    dims = Dims(ndim=4, ndisplay=2, range=tuple((0, 1000, 1) for _ in place))
    dims.point = place
    return dims


def test_dask_image_filters_a_volume(volume: voxpatch.Volume, voxels: Voxels) -> None:
    filters = pytest.importorskip("dask_image.ndfilters", reason="dask-image is not installed")
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    array = volume.to_dask(chunks=(1, 16, 16, 16)).astype("float32")
    found = filters.gaussian_filter(array, sigma=(0, 1, 1, 1)).compute(scheduler="threads")
    expected = ndimage.gaussian_filter(voxels.astype("float32"), sigma=(0, 1, 1, 1))
    assert np.abs(found - expected).max() < 0.01
