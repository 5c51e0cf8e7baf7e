"""Volumes: facts, slices as numpy has them, writing, pickles."""

from __future__ import annotations

import json
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]


def random_index(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An index of whole numbers, slices of any step, and an ellipsis now and then."""
    parts: list[Any] = []
    for length in shape:
        kind = random.integers(4)
        low, high = (int(n) for n in random.integers(-length - 2, length + 3, 2))
        if kind == 0:
            parts.append(int(random.integers(-length, length)))
        elif kind == 1:
            parts.append(slice(None))
        elif kind == 2:
            parts.append(slice(low, high))
        else:
            parts.append(slice(low, high, int(random.choice([-7, -2, -1, 2, 3]))))
    if random.integers(3) == 0:
        at = int(random.integers(len(parts)))
        end = int(random.integers(at, len(parts) + 1))
        parts[at:end] = [...]
    elif random.integers(3) == 0:
        parts = parts[: int(random.integers(1, 5))]
    return tuple(parts)


@pytest.mark.parametrize("name", ["c.npy", "c.nii", "c.nrrd", "c.mha", "c.zarr", "c.v2.zarr"])
def test_slices_are_those_of_numpy(name: str, files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    volume = voxpatch.open(files[name])
    assert volume.shape == voxels.shape and volume.dtype == voxels.dtype and len(volume) == 2
    random = np.random.default_rng(3)
    for _ in range(150):
        index = random_index(random, voxels.shape)
        found, expected = volume[index], voxels[index]
        assert np.array_equal(found, expected), index
        if expected.ndim:
            assert found.flags.c_contiguous and found.flags.writeable and found.flags.aligned, index
            assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(np.asarray(volume), voxels)
    assert np.asarray(volume, dtype=np.float32).dtype == np.float32


def test_an_array_that_was_read_is_its_owner_s_alone(files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    volume = voxpatch.open(files["c.npy"])
    box = volume[0, 3:9, 4:8, 5:12]
    box[:] = 7
    assert np.array_equal(volume[0, 3:9, 4:8, 5:12], voxels[0, 3:9, 4:8, 5:12])


def test_what_is_no_index_says_so(files: dict[str, pathlib.Path]) -> None:
    volume = voxpatch.open(files["c.npy"])
    for index in [2, (0, 29), (0, 0, 0, -42), (0, 0, 0, 0, 0), (..., ...)]:
        with pytest.raises(IndexError):
            volume[index]
    for index in [True, 1.5, np.array([1, 2]), (0, [1, 2]), None, "a"]:
        with pytest.raises(TypeError, match="takes a whole number or a slice"):
            volume[index]


def test_geometry_and_chunks_are_told(files: dict[str, pathlib.Path]) -> None:
    volume = voxpatch.open(files["c.zarr"])
    assert volume.spacing == (2.5, 1.0, 0.5)
    assert np.array_equal(np.diag(volume.affine), [0.5, 1.0, 2.5, 1.0])
    assert volume.chunks == (1, 8, 16, 8) and volume.format == "zarr-v3"
    assert volume.path == files["c.zarr"]
    assert voxpatch.open(files["c.npy"]).chunks is None
    assert repr(volume).startswith("<voxpatch.Volume ") and "int16" in repr(volume)


def test_channels_and_values_are_chosen(files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    for channels in [1, -1, slice(1, 2), range(1, 2), (1, 2)]:
        volume = voxpatch.open(files["c.zarr"], channels=channels)
        assert volume.shape == (1, 29, 37, 41) and np.array_equal(volume[:], voxels[1:])
    for channels in [2, (1, 1), slice(None, None, 2), "all"]:
        with pytest.raises(ValueError, match="channels"):
            voxpatch.open(files["c.zarr"], channels=channels)
    as_float = voxpatch.open(files["c.zarr"], values="float32")
    assert as_float.dtype == np.float32 and np.array_equal(as_float[:], voxels.astype(np.float32))
    assert np.array_equal(as_float.astype("stored")[1], voxels[1])


def write_times(folder: pathlib.Path, voxels: Voxels) -> None:
    """An OME-Zarr image with axes t, c, z, y, x, a chunk for each box of a channel."""
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space"} for name in "zyx"]
    scale = {"type": "scale", "scale": [1.0, 1.0, 2.5, 1.0, 0.5]}
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": [image]}}}
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": voxels.shape,
        "data_type": str(voxels.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, *voxels.shape[2:]]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    (folder / "0").mkdir(parents=True)
    (folder / "zarr.json").write_text(json.dumps(group))
    (folder / "0" / "zarr.json").write_text(json.dumps(array))
    for t, c in np.ndindex(*voxels.shape[:2]):
        chunk = folder / "0" / "c" / f"{t}" / f"{c}" / "0" / "0" / "0"
        chunk.parent.mkdir(parents=True)
        chunk.write_bytes(voxels[t, c].tobytes())


def test_time_points_of_an_image_are_chosen(tmp_path: pathlib.Path) -> None:
    times = np.random.default_rng(0).integers(0, 99, (4, 3, 5, 6, 7)).astype("<i2")
    write_times(tmp_path / "t.zarr", times)
    whole = voxpatch.open(tmp_path / "t.zarr")
    assert whole.time_points == 4 and whole.shape == (12, 5, 6, 7)
    assert np.array_equal(whole[:], times.reshape(12, 5, 6, 7))
    for t in [0, 2, -1]:
        volume = voxpatch.open(tmp_path / "t.zarr", time=t)
        assert volume.shape == (3, 5, 6, 7) and np.array_equal(volume[:], times[t])
        one = voxpatch.open(tmp_path / "t.zarr", time=t, channels=-1)
        assert one.shape == (1, 5, 6, 7) and np.array_equal(one[0], times[t, 2])
        assert np.array_equal(pickle.loads(pickle.dumps(one))[0], times[t, 2])
    for some in [slice(1, 3), range(1, 3), (1, 3)]:
        volume = voxpatch.open(tmp_path / "t.zarr", time=some)
        assert np.array_equal(volume[:], times[1:3].reshape(6, 5, 6, 7))
    for wrong in [4, -5, slice(None, None, 2), (2, 2), "first"]:
        with pytest.raises(ValueError, match="time .* of the 4 that there are"):
            voxpatch.open(tmp_path / "t.zarr", time=wrong)
    with pytest.raises(ValueError, match="channels 3.* of the 3 that there are"):
        voxpatch.open(tmp_path / "t.zarr", time=1, channels=3)


def test_patches_come_from_the_time_point_that_was_opened(tmp_path: pathlib.Path) -> None:
    times = np.random.default_rng(0).integers(0, 99, (4, 2, 9, 8, 7)).astype("<i2")
    write_times(tmp_path / "t.zarr", times)
    subjects = [voxpatch.Subject(scan=voxpatch.open(tmp_path / "t.zarr", time=t), t=t) for t in range(4)]
    seen = set()
    for sample in voxpatch.Queue(subjects, voxpatch.UniformSampler(4), samples_per_subject=2, threads=1):
        t = sample["subject"]["t"]
        z, y, x, z1, y1, x1 = sample["location"].tolist()
        assert np.array_equal(sample["scan"], times[t][:, z:z1, y:y1, x:x1])
        seen.add(t)
    assert seen == {0, 1, 2, 3}


def test_the_fourth_axis_of_nifti_is_time(files: dict[str, pathlib.Path], voxels: Voxels, tmp_path: pathlib.Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel writes the file with four axes")
    image = nibabel.Nifti1Image(voxels.transpose(3, 2, 1, 0), np.eye(4))
    nibabel.save(image, tmp_path / "times.nii")
    assert voxpatch.open(tmp_path / "times.nii").time_points == 2
    volume = voxpatch.open(tmp_path / "times.nii", time=1)
    assert volume.time_points == 1 and np.array_equal(volume[:], voxels[1:])
    # Channels are the fifth axis, behind a single time point.
    assert nibabel.load(files["c.nii"]).shape == (*voxels.shape[:0:-1], 1, 2)
    with pytest.raises(voxpatch.VoxpatchError, match="time"):
        voxpatch.open(files["c.nii"], time=1)
    voxpatch.write(tmp_path / "flat.nii", voxels[0])
    for path in [files["c.npy"], files["c.zarr"], tmp_path / "flat.nii"]:
        assert voxpatch.open(path).time_points is None
        with pytest.raises(voxpatch.VoxpatchError, match="has no time axis") as error:
            voxpatch.open(path, time=0)
        assert isinstance(error.value, ValueError) and path.name in str(error.value)


def test_slope_and_intercept_are_applied_unless_stored_values_are_asked_for(tmp_path: pathlib.Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel writes the file with a slope")
    values = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([0.5, 0.7, 2.0, 1.0]))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    volume = voxpatch.open(tmp_path / "scaled.nii")
    expected = nibabel.load(tmp_path / "scaled.nii").get_fdata().T.astype(np.float32)
    assert volume.rescale == (2.0, -1024.0) and volume.dtype == np.float32
    assert np.array_equal(volume[0], expected)
    assert np.array_equal(voxpatch.open(tmp_path / "scaled.nii", values="stored")[0], values.T)


@pytest.mark.parametrize(
    "dtype", "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64".split()
)
def test_every_type_goes_there_and_back(dtype: str, tmp_path: pathlib.Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (9, 8, 7)).astype(dtype)
    volume = voxpatch.write(tmp_path / "v.zarr", values, chunk=4, shard=8)
    assert volume.dtype == dtype and np.array_equal(volume[0], values)
    assert np.array_equal(voxpatch.Volume.from_array(values[:, ::-1])[0], values[:, ::-1]), "any strides"
    swapped = values.astype(values.dtype.newbyteorder(">"))
    assert np.array_equal(voxpatch.Volume.from_array(swapped)[0], values)


def test_conversions_keep_voxels_and_geometry(files: dict[str, pathlib.Path], voxels: Voxels, tmp_path: pathlib.Path) -> None:
    done = voxpatch.convert(files["c.nii"], tmp_path / "c.zarr", dtype="float32", pyramid="mean", chunk=16, shard=None)
    assert np.array_equal(done[:], voxels.astype(np.float32)) and done.spacing == (2.5, 1.0, 0.5)
    assert voxpatch.open(tmp_path / "c.zarr", level=1).shape == (2, 15, 19, 21)
    with pytest.raises(FileExistsError):
        voxpatch.convert(files["c.nii"], tmp_path / "c.zarr")
    voxpatch.convert(voxpatch.open(files["c.nii"]), tmp_path / "c.zarr", overwrite=True)
    assert voxpatch.open(tmp_path / "c.zarr").dtype == np.int16
    with pytest.raises(TypeError, match="convert.. got an unexpected keyword argument 'chunks'"):
        voxpatch.convert(files["c.nii"], tmp_path / "d.zarr", chunks=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr"], "nothing is left of what failed"


@pytest.mark.parametrize("name", ["c.npy", "c.zarr"])
def test_volumes_are_pickled_by_what_they_are_opened_by(name: str, files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    volume = voxpatch.open(files[name], channels=1, values="float64", read_method="mmap-resident")
    text = pickle.dumps(volume)
    assert len(text) < 1000, "no voxels in it"
    again = pickle.loads(text)
    assert repr(again) == repr(volume) and again.dtype == np.float64
    assert np.array_equal(again[0], voxels[1])


@pytest.mark.parametrize("method", ["auto", "mmap", "mmap-resident", "pread"])
def test_files_are_read_as_asked(method: Any, files: dict[str, pathlib.Path], voxels: Voxels) -> None:
    again = pickle.loads(pickle.dumps(voxpatch.open(files["c.npy"], read_method=method)))
    assert np.array_equal(again[:, 3:9, :, 5:7], voxels[:, 3:9, :, 5:7])


def test_a_volume_in_memory_takes_its_voxels_along(voxels: Voxels) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume = voxpatch.Volume.from_array(voxels, affine=affine)
    again = pickle.loads(pickle.dumps(volume))
    assert np.array_equal(again[:], voxels) and np.array_equal(again.affine, affine)
    assert volume.path is None and volume.spacing == (3.0, 2.0, 1.0)


def test_a_notebook_shows_facts_and_three_slices(files: dict[str, pathlib.Path]) -> None:
    shown = voxpatch.open(files["c.zarr"])._repr_html_()
    assert shown.count("data:image/png;base64,") == 3 and "2.5 x 1 x 0.5 mm" in shown


def test_the_slices_of_a_notebook_are_pictures() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the picture back")
    import io

    from voxpatch.html import gray, png

    plane = np.arange(20 * 30, dtype=np.float32).reshape(20, 30)
    plane[3, 4] = np.nan
    found = np.asarray(image.open(io.BytesIO(png(gray(plane)))))
    assert np.array_equal(found, gray(plane)) and found[0, 0] == 0 and found[-1, -1] == 255
    assert max(gray(np.zeros((1000, 500))).shape) <= 192


def test_errors_are_those_that_python_users_catch(tmp_path: pathlib.Path, files: dict[str, pathlib.Path]) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        voxpatch.open(tmp_path / "no.nii")
    assert missing.value.errno == 2 and missing.value.filename == str(tmp_path / "no.nii")
    assert isinstance(missing.value, voxpatch.VoxpatchError)
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="npy"):
        voxpatch.open(tmp_path / "text.npy")
    cut = files["c.npy"].read_bytes()[:-100]
    (tmp_path / "cut.npy").write_bytes(cut)
    with pytest.raises(OSError, match="the file is truncated"):
        voxpatch.open(tmp_path / "cut.npy")
    with pytest.raises(ValueError, match="level"):
        voxpatch.open(files["c.npy"], level=1)
    with pytest.raises(ValueError, match="missing_chunks"):
        voxpatch.open(files["c.npy"], missing_chunks="maybe")
    with pytest.raises(ValueError, match="read_method \"both\": it is 'auto', 'mmap', 'mmap-resident' or 'pread'"):
        voxpatch.open(files["c.npy"], read_method="both")
    with pytest.raises(ValueError, match="z, y, x or c, z, y, x"):
        voxpatch.Volume.from_array(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="complex128"):
        voxpatch.Volume.from_array(np.zeros((3, 3, 3), complex))
    damaged = tmp_path / "damaged.zarr"
    voxpatch.write(damaged, np.random.default_rng(0).random((16, 16, 16)), chunk=8, shard=None)
    chunk = next(path for path in sorted(damaged.rglob("c/**/*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"123456789")
    with pytest.raises(OSError, match="cannot be decoded"):
        voxpatch.open(damaged)[:]


def test_compressed_nifti_is_read_by_others(voxels: Voxels, tmp_path: pathlib.Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    sitk = pytest.importorskip("SimpleITK")
    volume = voxpatch.write(tmp_path / "a.nii.gz", voxels[0], spacing=(3.0, 2.0, 1.0))
    assert np.array_equal(volume[0], voxels[0])
    path = tmp_path / "a.nii.gz"
    assert path.stat().st_size < voxels[0].nbytes
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj).T, voxels[0])
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels[0]) and image.GetSpacing() == (1.0, 2.0, 3.0)
    voxpatch.convert(path, tmp_path / "b.nii.gz")
    assert np.array_equal(voxpatch.open(tmp_path / "b.nii.gz")[0], voxels[0])
