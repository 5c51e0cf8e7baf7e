"""NIfTI-Zarr images, written by zarr-python with headers of nibabel, against what both of them read."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import voxpatch
from voxels import check_voxels

nibabel = pytest.importorskip("nibabel")
zarr = pytest.importorskip("zarr")

AXES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def affine(rng: np.random.Generator) -> np.ndarray:
    """Return an oblique affine."""
    found = np.eye(4)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    found[:3, :3] = turn * rng.uniform(0.5, 3, 3)
    found[:3, 3] = rng.normal(size=3) * 50
    return found


def header_of(version: int, shape: tuple[int, ...], dtype: str, place: np.ndarray, **more) -> bytes:
    """Return a header as nibabel writes it; ``shape`` is x, y, z and so on."""
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=more.get("endianness", "<"))
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    if more.get("form", "sform") == "sform":
        header.set_sform(place, 1)
    header.set_qform(place, 1)
    header.set_slope_inter(*more.get("slope_inter", (None, None)))
    header.set_xyzt_units(more.get("unit", "mm"), "sec")
    stream = io.BytesIO()
    header.write_to(stream)
    return stream.getvalue()[: 348 if version == 1 else 540]


def write(path: Path, levels: list[np.ndarray], header: bytes, *, zarr_format=2, factors=None, compressed=False, dtype="u1") -> None:
    """Write levels z, y, x (or t, z, y, x; or t, c, z, y, x), each half of the previous one, and the header."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    rank = levels[0].ndim
    names = {3: "zyx", 4: "tzyx", 5: "tczyx"}[rank]
    datasets = []
    for n, level in enumerate(levels):
        array = group.create_array(str(n), shape=level.shape, chunks=(1,) * (rank - 3) + (4, 8, 8), dtype=level.dtype)
        array[...] = level
        spacing, shift = (factors or (lambda n: ([3.0 * 2**n] * 3, [1.5 * (2**n - 1)] * 3)))(n)
        datasets.append({"path": str(n), "coordinateTransformations": [
            {"type": "scale", "scale": [1.0] * (rank - 3) + spacing},
            {"type": "translation", "translation": [0.0] * (rank - 3) + shift},
        ]})  # fmt: skip
    axes = [{"name": name, "type": AXES[name]} | ({"unit": "micrometer"} if AXES[name] == "space" else {}) for name in names]
    image = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs.update({"multiscales": image} if zarr_format == 2 else {"ome": {"version": "0.5", "multiscales": image}})
    settings = {} if compressed else {"compressors": None}
    binary = np.frombuffer(header, dtype)
    group.create_array("nifti", shape=binary.shape, chunks=binary.shape, dtype=dtype, **settings)[...] = binary


def levels_of(shape: tuple[int, ...], dtype: str = "int16", count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    voxels = rng.integers(0, 100, shape).astype(dtype)
    return [voxels[..., :: 2**n, :: 2**n, :: 2**n] for n in range(count)]


def test_the_header_places_the_voxels_and_converts_them(tmp_path):
    rng = np.random.default_rng(1)
    cases = itertools.product([1, 2], [2, 3], ["sform", "qform"], [(None, None), (0.5, -7)], "<>")
    for n, (version, zarr_format, form, slope_inter, endianness) in enumerate(cases):
        place, levels = affine(rng), levels_of((9, 14, 20), count=1)
        if form == "qform":
            place[:3, :3] = np.diag([0.7, 0.8, 2.5])
        header = header_of(
            version, (20, 14, 9), "int16", place, form=form, slope_inter=slope_inter, endianness=endianness
        )  # fmt: skip
        path = tmp_path / f"{n}.nii.zarr"
        write(path, levels, header, zarr_format=zarr_format, compressed=n % 3 == 0, dtype=["u1", "i1"][n % 2])
        image = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
        oracle = image.from_fileobj(io.BytesIO(header + bytes(4)))
        slope, inter = oracle.get_slope_inter()
        expected = levels[0] if slope is None else (levels[0] * np.float32(slope) + np.float32(inter)).astype("float32")
        volume = check_voxels(path, expected[None], n)
        assert np.allclose(volume.affine, oracle.get_best_affine(), atol=1e-5), n
        assert np.allclose(volume.spacing, oracle.get_zooms()[::-1], rtol=1e-6)
        # The array inside means the same.
        assert np.array_equal(voxpatch.open(path / "0").affine, volume.affine)
        assert np.array_equal(voxpatch.open(path, values="stored")[0], levels[0])


def test_levels_are_placed_relative_to_the_finest(tmp_path):
    rng = np.random.default_rng(3)
    for shape in [(16, 24, 32), (2, 16, 24, 32), (2, 3, 16, 24, 32)]:
        place, levels = affine(rng), levels_of(shape)
        path = tmp_path / f"{len(shape)}.nii.zarr"
        lengths = shape[-3:][::-1] + {3: (), 4: shape[:1], 5: shape[:2]}[len(shape)]
        write(path, levels, header_of(1, lengths, "int16", place), zarr_format=3 if len(shape) == 4 else 2)
        for n, level in enumerate(levels):
            volume = voxpatch.open(path, level=n)
            assert np.array_equal(volume[...].reshape(level.shape), level)
            coarse = np.diag([2.0**n] * 3 + [1])
            coarse[:3, 3] = (2**n - 1) / 2
            assert np.allclose(volume.affine, place.astype("float32") @ coarse, atol=1e-4), (shape, n)
            assert np.array_equal(voxpatch.open(path / str(n)).affine, volume.affine)
        with pytest.raises(ValueError, match="no level 3"):
            voxpatch.open(path, level=3)


def test_units_magics_and_extensions(tmp_path):
    place, levels = np.diag([2.0, 3.0, 4.0, 1.0]), levels_of((8, 8, 8), count=1)
    for version, unit, factor in [(1, "micron", 1e-3), (2, "meter", 1e3), (1, "unknown", 1.0)]:
        header = header_of(version, (8, 8, 8), "int16", place, unit=unit)
        write(tmp_path / "a.nii.zarr", levels, header + bytes(4000))
        assert np.allclose(voxpatch.open(tmp_path / "a.nii.zarr").spacing, np.array([4, 3, 2]) * factor)
    for version, at, old in [(1, 344, b"n+1"), (2, 4, b"n+2")]:
        header = header_of(version, (8, 8, 8), "int16", place)
        for new in (old.replace(b"+", b"z"), old.replace(b"+", b"i")):
            assert header[at : at + 3] in (old, old.replace(b"+", b"i"))
            write(tmp_path / "b.nii.zarr", levels, header[:at] + new + header[at + 3 :])
            assert np.allclose(voxpatch.open(tmp_path / "b.nii.zarr").spacing, (4, 3, 2))


def test_lengths_of_the_header_do_not_matter_and_other_arrays_of_this_name_neither(tmp_path):
    levels = levels_of((8, 8, 8), count=1)
    write(tmp_path / "a.nii.zarr", levels, header_of(1, (1, 2, 3), "uint8", np.diag([2.0, 3.0, 4.0, 1.0])))
    assert np.allclose(check_voxels(tmp_path / "a.nii.zarr", levels[0][None], "lengths").spacing, (4, 3, 2))
    group = zarr.open_group(tmp_path / "a.nii.zarr", mode="a")
    del group["nifti"]
    group.create_array("nifti", shape=(4, 4, 4), dtype="u1")[...] = 1
    assert np.allclose(voxpatch.open(tmp_path / "a.nii.zarr").spacing, [0.003] * 3)


def test_headers_that_are_damaged_are_refused(tmp_path):
    place, levels = np.diag([2.0, 3.0, 4.0, 1.0]), levels_of((8, 8, 8), count=1)
    header = header_of(1, (8, 8, 8), "int16", place, slope_inter=(2, 1))
    path = tmp_path / "a.nii.zarr"
    infinite = header[:280] + np.array([np.inf] * 12, "<f4").tobytes() + header[328:]
    unit = header[:123] + b"\x07" + header[124:]
    for damaged, problem in [
        (header[:100], "348 are needed"), (header[:2], "ends inside"), (b"\0" * 348, "sizeof_hdr"),
        (header[:344] + b"xxxx", "magic"), (infinite, "not finite"), (unit, "xyzt_units"),
    ]:  # fmt: skip
        write(path, levels, damaged)
        with pytest.raises(ValueError, match=problem):
            voxpatch.open(path)
    # Lengths that lie: no more is read than a header has, and no chunk of that size is decoded.
    write(path, levels, header)
    document = json.loads((path / "nifti/.zarray").read_text())
    for shape, chunks in [([1 << 40], [1 << 40]), ([1 << 40], [348]), ([348], [1 << 30])]:
        (path / "nifti/.zarray").write_text(json.dumps(document | {"shape": shape, "chunks": chunks}))
        with pytest.raises(ValueError, match="maximum|larger than"):
            voxpatch.open(path)
    (path / "nifti/.zarray").write_text(json.dumps(document | {"shape": [540], "chunks": [540]}))
    with pytest.raises(OSError, match="348"):
        voxpatch.open(path)
    # The finest level has no place: none has.
    write(path, levels_of((8, 8, 8), count=2), header, factors=lambda n: ([float(n)] * 3, [0.0] * 3))
    for level in (0, 1):
        with pytest.raises(ValueError, match="no volume has"):
            voxpatch.open(path, level=level)
    # Changed bytes: an error or a volume.
    rng = np.random.default_rng(1)
    outcomes = {"opened": 0, "refused": 0}
    write(path, levels, header)
    chunk = path / "nifti/0"
    used = [*range(4), *range(76, 124), *range(252, 348)]
    for _ in range(300):
        damaged = bytearray(header)
        for at in rng.choice(used, 4):
            damaged[at] = rng.integers(256)
        chunk.write_bytes(damaged)
        try:
            voxpatch.open(path)
            outcomes["opened"] += 1
        except (ValueError, OSError) as error:
            assert "panicked" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5, outcomes


def test_zipped_images_and_untrusted_ones(tmp_path):
    place, levels = np.diag([2.0, 3.0, 4.0, 1.0]), levels_of((8, 8, 8), count=2)
    write(tmp_path / "a.nii.zarr", levels, header_of(1, (8, 8, 8), "int16", place), zarr_format=3)
    volume = check_voxels(tmp_path / "a.nii.zarr", levels[0][None], "untrusted", trusted=False)
    assert np.allclose(volume.spacing, (4, 3, 2))
    with zipfile.ZipFile(tmp_path / "a.nii.zarr.zip", "w") as archive:
        for file in sorted((tmp_path / "a.nii.zarr").rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(tmp_path / "a.nii.zarr"))
    zipped = voxpatch.open(tmp_path / "a.nii.zarr.zip", level=1)
    assert np.allclose(zipped.spacing, (8, 6, 4))
    assert np.array_equal(zipped[0], levels[1])
    outside = tmp_path / "outside"
    (tmp_path / "a.nii.zarr/nifti").rename(outside)
    (tmp_path / "a.nii.zarr/nifti").symlink_to(outside)
    with pytest.raises(voxpatch.VoxpatchError):
        voxpatch.open(tmp_path / "a.nii.zarr", trusted=False)
