"""Real values: the same number from every door, as nibabel reads it."""

import itertools
import pathlib
import pickle
import struct
from typing import Any

import numpy as np
import pytest

import voxpatch

nibabel = pytest.importorskip("nibabel", reason="nibabel is the reference")

SHAPE = (7, 8, 9)
RESCALES = [(1.0, -1024.0), (1.0, 300.0), (0.5, -3.0), (-2.0, 0.25), (1.0, 0.0)]
#: The type of real values by stored type, where the slope is 1 and the intercept -1024 or 300.
TYPES = {"uint8": "int16", "int8": "int16", "uint16": "int32", "int16": "int16 int32", "int32": "int64", "float32": "float32"}


def expected_type(stored: str, slope: float, intercept: float) -> str:
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope != 1.0:
        return "float32"
    types = TYPES[stored].split()
    return types[0] if intercept < 0 else types[-1]


def write(path: pathlib.Path, dtype: str, slope: float, intercept: float) -> np.ndarray[Any, Any]:
    """A NIfTI file with these stored numbers, which are returned; nibabel would scale them."""
    stored = np.random.default_rng(1).integers(0, 127, SHAPE).astype(dtype)
    image = nibabel.Nifti1Image(stored.T, np.diag([0.5, 0.7, 2.0, 1.0]))
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(data)
    assert np.array_equal(np.asanyarray(nibabel.load(path).dataobj.get_unscaled()).T, stored)
    return stored


@pytest.mark.parametrize(("dtype", "rescale"), list(itertools.product(TYPES, RESCALES)))
def test_every_consumer_gives_the_values_that_nibabel_gives(
    tmp_path: pathlib.Path, dtype: str, rescale: tuple[float, float]
) -> None:
    path = tmp_path / "a.nii"
    stored = write(path, dtype, *rescale)
    real = nibabel.load(path).get_fdata().T
    wanted = np.dtype(expected_type(dtype, *rescale))
    volume = voxpatch.open(path)
    assert (volume.dtype, volume.values) == (wanted, "real") and volume[0].dtype == wanted
    assert volume.rescale == (None if rescale == (1.0, 0.0) else rescale)
    assert np.array_equal(volume[0], real)
    raw = voxpatch.open(path, values="stored")
    assert raw.dtype == dtype and np.array_equal(raw[0], stored)
    assert np.array_equal(raw.astype("real")[0], real) and np.array_equal(volume.astype("stored")[0], stored)
    for values in ("float32", "float64", "int64", np.int32):
        if np.array_equal(np.round(real), real) or np.dtype(values).kind == "f":
            cast = voxpatch.open(path, values=values)
            assert cast.dtype == values and np.array_equal(cast[0], real)
            assert np.array_equal(pickle.loads(pickle.dumps(cast))[0], real)
            assert np.array_equal(volume.astype(values)[0], real)

    for given, array in [(None, real), ("stored", stored)]:
        subject = voxpatch.Subject(ct=str(path), other=str(path), values=None if given is None else {"ct": given})
        queue = voxpatch.Queue([subject], voxpatch.UniformSampler(4), 6, batch_size=3, seed=1)
        for batch in queue:
            assert batch["ct"].dtype == (wanted if given is None else dtype)
            for name, of in [("ct", array), ("other", real)]:
                for patch, at in zip(batch[name], batch["location"]):
                    assert np.array_equal(patch[0], of[at[0] : at[3], at[1] : at[4], at[2] : at[5]])
        for source in (path, voxpatch.open(path), {"image": str(path)}):
            for item in voxpatch.GridSampler(source, 4, 2, values=given):
                at = item["location"]
                assert np.array_equal(item["image"][0], array[at[0] : at[3], at[1] : at[4], at[2] : at[5]])
        for source in (path, voxpatch.open(path)):
            seen = []
            out = voxpatch.predict(lambda b: seen.append(b.dtype) or b, source, None, 4, 2, values=given)
            assert set(seen) == {np.dtype("float32")}
            np.testing.assert_allclose(out[0], array, rtol=1e-5, atol=1e-4)

    for name in ("a.npy", "b.nii", "c.nrrd", "d.mha", "e.zarr"):
        for source in (path, voxpatch.open(path), raw):
            array = stored if source is raw else real
            copy = voxpatch.convert(source, tmp_path / name, overwrite=True)
            assert np.array_equal(copy[0], array) and copy.rescale is None
            assert np.array_equal(others(tmp_path / name), array), "as other programs read it"


def others(path: pathlib.Path) -> np.ndarray[Any, Any]:
    """What the usual program for a format reads."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".nii":
        return nibabel.load(path).get_fdata().T
    if path.suffix == ".zarr":
        zarr = pytest.importorskip("zarr")
        return np.asarray(zarr.open(str(path / "0"), mode="r")[...])
    sitk = pytest.importorskip("SimpleITK")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_paddings_are_real_values_and_normalized_ones_after_normalizing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ct.nii"
    stored = write(path, "int16", 1.0, -1024.0)
    hu = stored - 1024
    subject = voxpatch.Subject(ct=path, padding=-1000)
    sampler = voxpatch.UniformSampler(6, border="pad")
    hung = 0
    for batch in voxpatch.Queue([subject], sampler, 40, batch_size=4, seed=3):
        for patch, at in zip(batch["ct"], batch["location"]):
            padded = np.pad(hu, 8, constant_values=-1000)
            at = at + 8
            assert patch.dtype == np.int16
            assert np.array_equal(patch[0], padded[at[0] : at[3], at[1] : at[4], at[2] : at[5]])
            hung += int((patch == -1000).any())
    assert hung > 0
    with pytest.raises(voxpatch.VoxpatchError, match=r"0\.5.*int16"):
        next(iter(voxpatch.Queue([voxpatch.Subject(ct=path, padding=0.5)], voxpatch.UniformSampler(4), 1)))
    floats = voxpatch.Subject(ct=path, padding=0.5, values="float32")
    batch = next(iter(voxpatch.Queue([floats], voxpatch.UniformSampler(6, border="pad"), 8, batch_size=8)))
    assert (batch["ct"] == 0.5).any()

    edges: list[np.ndarray[Any, Any]] = []

    def model(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        edges.append(batch[:, :, 0, 0, 0].ravel())
        return batch

    for normalize, low in [("zscore", 0.0), ((-1024, 0), 0.0), (None, -2000.0)]:
        edges.clear()
        voxpatch.predict(model, path, None, 6, 2, padding=low, normalize=normalize)
        # The first patch begins outside; the call with zeros comes before it.
        assert edges[1][0] == low, normalize


def test_a_value_that_does_not_fit_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ct.nii"
    write(path, "int16", 1.0, -1024.0)
    data = bytearray(path.read_bytes())
    data[352 + 2 * 100 : 352 + 2 * 101] = struct.pack("<h", -32768)
    path.write_bytes(data)
    at = np.unravel_index(100, SHAPE)
    place = rf"-33792.*\[{at[0]}, {at[1]}, {at[2]}\].*int16"
    with pytest.raises(voxpatch.VoxpatchError, match=place):
        voxpatch.open(path)[...]
    for values in ("int32", "float32"):
        assert voxpatch.open(path, values=values)[(0, *at)] == -33792
    cast = voxpatch.open(path, values="int32").astype("uint8")
    with pytest.raises(voxpatch.VoxpatchError, match="does not fit"):
        cast[...]
    queue = voxpatch.Queue([voxpatch.Subject(ct=path, values="uint8")], voxpatch.UniformSampler(4), 1)
    with pytest.raises(voxpatch.VoxpatchError):
        next(iter(queue))


def test_label_maps_must_have_whole_values(tmp_path: pathlib.Path) -> None:
    path, weights = tmp_path / "labels.nii", tmp_path / "weights.nii"
    stored = write(path, "uint8", 2.0, 1.0)
    write(weights, "uint8", 0.5, 0.0)
    sampler = voxpatch.LabelSampler(1, label_name="label", label_weights={2 * int(stored.max()) + 1: 1})
    for batch in voxpatch.Queue([voxpatch.Subject(label=path)], sampler, 5):
        assert (batch["label"] == 2 * stored.max() + 1).all()
    halves = voxpatch.LabelSampler(1, label_name="label")
    with pytest.raises(voxpatch.VoxpatchError, match="whole numbers"):
        next(iter(voxpatch.Queue([voxpatch.Subject(label=weights)], halves, 1)))


def test_class_numbers_are_not_averaged(tmp_path: pathlib.Path) -> None:
    array = np.random.default_rng(0).integers(0, 5, (12, 12, 12))
    for dtype in ("uint8", "int64", "bool"):
        model = lambda b: b.astype(dtype)  # noqa: B023, E731
        with pytest.raises(voxpatch.VoxpatchError, match="crop"):
            voxpatch.predict(model, array.astype(np.float32), None, 8, 4)
        found = voxpatch.predict(model, array.astype(np.float32), None, 8, 4, blend="crop")
        assert found.dtype == dtype and np.array_equal(found[0], array.astype(dtype))
        grid = voxpatch.GridSampler(array.astype(np.float32), 8, 4)
        for mode in ("hann", "average"):
            aggregator = voxpatch.GridAggregator(grid, mode)
            with pytest.raises(voxpatch.VoxpatchError, match="crop"):
                aggregator.add_batch(np.zeros((1, 1, 8, 8, 8), dtype), grid.locations[:1])
    values = voxpatch.predict(
        lambda b: b.astype(np.int16), array.astype(np.float32), None, 8, 4, average_integers=True
    )
    assert np.array_equal(values[0], array)
    apart = voxpatch.predict(lambda b: b.astype(np.uint8), array.astype(np.float32), None, 6, 0)
    assert np.array_equal(apart[0], array)


def test_what_a_type_cannot_hold_is_counted(tmp_path: pathlib.Path) -> None:
    array = np.array([[[-5, 0, 300, 255]]], np.int16)
    with pytest.raises(voxpatch.VoxpatchError, match=r"2 of 4 values do not fit uint8.* -5 .*\[0, 0, 0\]"):
        voxpatch.write(tmp_path / "a.zarr", array, dtype="uint8")
    assert not (tmp_path / "a.zarr").exists()
    with pytest.warns(UserWarning, match="2 values were clipped"):
        written = voxpatch.write(tmp_path / "a.zarr", array, dtype="uint8", clip=True)
    assert np.array_equal(written[0], [[[0, 0, 255, 255]]])
    with pytest.warns(UserWarning, match="1 values were rounded"):
        rounded = voxpatch.write(tmp_path / "b.npy", np.array([[[0.5, 2.0]]]), dtype="int8")
    assert np.array_equal(rounded[0], [[[0, 2]]])
    with pytest.raises(voxpatch.VoxpatchError, match=r"value -5 .*\[0, 0, 0\].* uint8.*clip=True"):
        voxpatch.predict(lambda b: b, array, None, (1, 1, 4), dtype="uint8")
    with pytest.warns(UserWarning, match="2 values do not fit"):
        found = voxpatch.predict(lambda b: b, array, None, (1, 1, 4), dtype="uint8", clip=True)
    assert np.array_equal(found[0], [[[0, 0, 255, 255]]])
    grid = voxpatch.GridSampler(array, (1, 1, 4))
    batch, locations = grid[0]["image"][None], grid.locations
    strict = voxpatch.GridAggregator(grid, dtype="uint8")
    with pytest.raises(voxpatch.VoxpatchError, match="clip=True"):
        strict.add_batch(batch, locations)
        strict.finish()
    lenient = voxpatch.GridAggregator(grid, dtype="uint8", clip=True)
    lenient.add_batch(batch, locations)
    with pytest.warns(UserWarning, match="2 values do not fit"):
        assert np.array_equal(lenient.finish()[0], [[[0, 0, 255, 255]]])
