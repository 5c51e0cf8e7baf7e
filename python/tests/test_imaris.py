"""Imaris files, written by h5py as Imaris lays them out, against the arrays that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import voxpatch
from damage import check_damage
from voxels import check_voxels

h5py = pytest.importorskip("h5py")


def text(value: object) -> np.ndarray:
    """Return a text as Imaris stores it: an array of single characters."""
    return np.array([character.encode() for character in str(value)], dtype="S1")


def write(path: Path, levels: list[np.ndarray], *, chunk=(4, 8, 16), extent=None, names=None, unit="um", **options) -> None:
    """Write levels t, c, z, y, x. Data sets are padded to whole chunks, with a value that must never be read."""
    options = options or {"compression": "gzip", "compression_opts": 2}
    extent = extent or [(0.0, 1.0)] * 3
    with h5py.File(path, "w") as file:
        for n, level in enumerate(levels):
            for t, c in np.ndindex(level.shape[:2]):
                voxels = level[t, c]
                padding = [(0, -n % size) for n, size in zip(voxels.shape, chunk, strict=True)]
                group = file.create_group(f"DataSet/ResolutionLevel {n}/TimePoint {t}/Channel {c}")
                group.create_dataset("Data", data=np.pad(voxels, padding, constant_values=99), chunks=chunk, **options)
                for letter, length in zip("ZYX", voxels.shape, strict=True):
                    group.attrs[f"ImageSize{letter}"] = text(length)
                group.attrs["HistogramMin"] = text("0.000")
        image = file.create_group("DataSetInfo/Image")
        for axis, (start, end) in enumerate(extent):  # x, y, z
            image.attrs[f"ExtMin{axis}"], image.attrs[f"ExtMax{axis}"] = text(start), text(end)
        if unit is not None:
            image.attrs["Unit"] = text(unit)
        for c, name in enumerate(names or []):
            file.create_group(f"DataSetInfo/Channel {c}").attrs["Name"] = text(name)
        file.create_dataset("Thumbnail/Data", data=np.zeros((16, 64), "u1"))


def levels_of(shape: tuple[int, ...], dtype: str = "uint16", count: int = 3) -> list[np.ndarray]:
    voxels = np.random.default_rng(5).integers(1, 90, shape).astype(dtype)
    return [voxels[..., :: 2**n, :: 2**n, :: 2**n] for n in range(count)]


def test_channels_times_levels_and_spacing(tmp_path):
    path = tmp_path / "a.ims"
    extent = [(10.0, 26.5), (-4.0, 6.5), (100.0, 120.0)]
    for shape in [(1, 1, 10, 21, 33), (1, 3, 10, 21, 33), (2, 1, 9, 16, 32), (2, 3, 4, 8, 16)]:
        for dtype, options in [("uint8", {}), ("uint16", {"shuffle": True, "compression": "gzip"}), ("float32", {"compression": "lzf"})]:
            levels = levels_of(shape, dtype)
            write(path, levels, extent=extent, names=["DAPI", "b", "c"][: shape[1]], **options)
            for n, level in enumerate(levels):
                flat = level.reshape((-1, *level.shape[2:]))
                volume = check_voxels(path, flat, (shape, dtype, n), level=n, trusted=False)
                assert volume.chunks == (1, 4, 8, 16)
                size = [(end - start) / length for (start, end), length in zip(extent, level.shape[:1:-1], strict=True)]
                assert np.allclose(volume.spacing, np.array(size[::-1]) * 1e-3), (shape, n)
                corner = [start + own / 2 for (start, _), own in zip(extent, size, strict=True)]
                assert np.allclose(volume.affine[:3, 3], np.array(corner) * 1e-3)
            with pytest.raises(ValueError, match="3 levels"):
                voxpatch.open(path, level=3)
    raw = voxpatch.open(f"{path}:/DataSet/ResolutionLevel 1/TimePoint 1/Channel 2/Data")
    assert np.array_equal(raw[0, :2, :4, :8], levels[1][1, 2]) and raw.shape == (1, 4, 8, 16)


def omero(path: Path) -> list[dict] | None:
    """Return the display settings of the channels of an OME-Zarr image."""
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    return ome.get("omero", {}).get("channels")


def test_time_points_are_a_choice_and_names_and_colors_are_kept(tmp_path):
    path = tmp_path / "a.ims"
    stored = levels_of((3, 2, 10, 21, 33))
    write(path, stored, names=["DAPI", "GFP"])
    with h5py.File(path, "a") as file:
        for c, (color, limits) in enumerate([("0.000 0.500 1.000", "3.000 77.500"), ("1.000 1.000 1.000", "0.000 255.000")]):
            own = file[f"DataSetInfo/Channel {c}"].attrs
            own["Color"], own["ColorRange"], own["ColorMode"] = text(color), text(limits), text("BaseColor")
        times = file.create_group("DataSetInfo/TimeInfo").attrs
        times["DatasetTimePoints"], times["FileTimePoints"] = text(3), text(3)
        for t in range(3):
            times[f"TimePoint{t + 1}"] = text(f"2026-01-01 00:00:0{t}.000")
    window = {"min": 0.0, "max": 65535.0}
    shown = [
        {"active": True, "color": "0080FF", "window": {**window, "start": 3.0, "end": 77.5}, "label": "DAPI"},
        {"active": True, "color": "FFFFFF", "window": {**window, "start": 0.0, "end": 255.0}, "label": "GFP"},
    ]
    for level, voxels in enumerate(stored):
        volume = voxpatch.open(path, level=level)
        assert (volume.time_points, volume.shape[0]) == (3, 6)
        for t in range(3):
            one = voxpatch.open(path, level=level, time=t)
            assert one.time_points == 1 and np.array_equal(one[...], voxels[t]), (level, t)
            for c in range(2):
                both = voxpatch.open(path, level=level, time=t, channels=c)
                assert np.array_equal(both[...], voxels[t, c : c + 1]), (level, t, c)
        last = voxpatch.open(path, level=level, time=(1, 3))
        assert last.time_points == 2 and np.array_equal(last[...], voxels[1:].reshape(-1, *voxels.shape[2:]))
        with pytest.raises(ValueError, match="time"):
            voxpatch.open(path, level=level, time=3)
    for n, (choice, lengths) in enumerate([({}, {"t": 3, "c": 2}), ({"time": 1}, {"c": 2}), ({"time": (0, 2)}, {"t": 2, "c": 2})]):
        out = tmp_path / f"{n}.zarr"
        voxpatch.convert(voxpatch.open(path, **choice), out)
        assert omero(out) == shown, choice
        array = json.loads((out / "0/zarr.json").read_text())
        names = dict(zip(array["dimension_names"], array["shape"], strict=True))
        assert {name: names[name] for name in names if name in "tc" and (names[name] > 1)} == lengths
    voxpatch.convert(voxpatch.open(path, channels=1), tmp_path / "one.zarr")
    assert omero(tmp_path / "one.zarr") is None


def test_colors_that_are_not_numbers_are_left_out(tmp_path):
    path = tmp_path / "a.ims"
    cases = {
        "no color": (None, "0 9"), "no range": ("1 0 0", None), "two numbers": ("1 0", "0 9"), "a word": ("1 0 red", "0 9"),
        "nan": ("1 0 nan", "0 9"), "one end": ("1 0 0", "9"), "infinite": ("1 0 0", "0 1e999"), "empty": ("", "0 9"),
    }  # fmt: skip
    for name, (color, limits) in cases.items():
        write(path, levels_of((1, 1, 4, 8, 16), "float32", 1), names=["DAPI"])
        with h5py.File(path, "a") as file:
            own = file["DataSetInfo/Channel 0"].attrs
            for key, value in [("Color", color), ("ColorRange", limits)]:
                if value is not None:
                    own[key] = text(value) if value else np.array([b"\0"], "S1")
        out = tmp_path / f"{name}.zarr"
        voxpatch.convert(voxpatch.open(path), out)
        assert omero(out) is None, name
    with h5py.File(path, "a") as file:
        own = file["DataSetInfo/Channel 0"].attrs
        own["Color"], own["ColorRange"] = text("2.5 -1 0.25"), text("-0.5 2.5")
    voxpatch.convert(voxpatch.open(path), tmp_path / "float.zarr")
    window = {"min": -0.5, "max": 2.5, "start": -0.5, "end": 2.5}
    assert omero(tmp_path / "float.zarr") == [{"active": True, "color": "FF0040", "window": window, "label": "DAPI"}]


def test_chunks_that_are_not_stored_are_zero(tmp_path):
    path = tmp_path / "a.ims"
    levels = levels_of((1, 2, 8, 16, 32), count=1)
    levels[0][0, 1] = 0
    write(path, levels)
    with h5py.File(path, "a") as file:
        group = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 1"]
        del group["Data"]
        group.create_dataset("Data", shape=(8, 16, 32), dtype="u2", chunks=(4, 8, 16), compression="gzip", compression_opts=2)
    check_voxels(path, levels[0][0], "empty")


def test_units_and_extents_that_are_missing(tmp_path):
    path, levels = tmp_path / "a.ims", levels_of((1, 1, 4, 8, 16), count=1)
    for unit, factor in [("um", 1e-3), ("nm", 1e-6), ("mm", 1.0), (None, 1e-3)]:
        write(path, levels, extent=[(0, 16), (0, 8), (0, 4)], unit=unit)
        assert np.allclose(voxpatch.open(path).spacing, [factor] * 3)
    write(path, levels, unit="furlong")
    with pytest.raises(ValueError, match="furlong"):
        voxpatch.open(path)
    for extent in [[(0, 0)] * 3, [(1, 0)] * 3, [("x", 1)] * 3, [("nan", 1)] * 3, [(0, "1e999")] * 3]:
        write(path, levels, extent=extent)
        assert np.array_equal(voxpatch.open(path).spacing, [1.0] * 3), extent


def test_files_that_lie_are_refused(tmp_path):
    path, levels = tmp_path / "a.ims", levels_of((1, 2, 4, 8, 16), count=1)
    group = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 1"
    for name, value in [("ImageSizeX", 17), ("ImageSizeY", 0), ("ImageSizeZ", -1), ("ImageSizeX", 1 << 70), ("ImageSizeX", "many")]:
        write(path, levels)
        with h5py.File(path, "a") as file:
            file[group].attrs[name] = text(value)
        with pytest.raises(ValueError, match=name):
            voxpatch.open(path)
    for change in [
        {"shape": (4, 8, 16), "dtype": "u1", "chunks": (4, 8, 16)}, {"shape": (4, 8, 16), "dtype": "u2", "chunks": (4, 8, 8)},
        {"shape": (4, 8, 16), "dtype": "u2"}, {"shape": (8, 16, 16), "dtype": "u2", "chunks": (4, 8, 16)},
        {"shape": (4, 8), "dtype": "u2"}, {"shape": (4, 8, 16), "dtype": "S3"},
    ]:  # fmt: skip
        write(path, levels)
        with h5py.File(path, "a") as file:
            del file[f"{group}/Data"]
            for letter in "XYZ":
                del file[group].attrs[f"ImageSize{letter}"]
            file[group].create_dataset("Data", **change)
        with pytest.raises(ValueError):
            voxpatch.open(path)
    write(path, levels)
    with h5py.File(path, "a") as file:
        del file[f"{group}/Data"]
    with pytest.raises(ValueError, match="Channel 1"):
        voxpatch.open(path)
    write(path, levels_of((2, 2, 4, 8, 16), count=1))
    with h5py.File(path, "a") as file:
        del file["DataSet/ResolutionLevel 0/TimePoint 1/Channel 1"]
    with pytest.raises(ValueError, match="Channel 1"):
        voxpatch.open(path)


def test_damaged_files_are_errors(tmp_path):
    path = tmp_path / "a.ims"
    write(path, levels_of((1, 2, 6, 12, 20), "uint8", count=2))
    outcomes = check_damage(path, np.random.default_rng(3), 300, allowed="hdf5-reader")
    assert min(outcomes.values()) > 20, outcomes


def test_a_level_is_converted_and_sampled(tmp_path):
    path = tmp_path / "a.ims"
    levels = levels_of((1, 2, 10, 21, 33))
    write(path, levels, extent=[(0, 33), (0, 21), (0, 10)])
    voxpatch.convert(voxpatch.open(path, level=1), tmp_path / "b.zarr")
    copied = check_voxels(tmp_path / "b.zarr", levels[1][0], "copy")
    assert np.allclose(copied.affine, voxpatch.open(path, level=1).affine)
