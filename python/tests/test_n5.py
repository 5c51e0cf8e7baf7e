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


def pyramid(path: Path, voxels: np.ndarray, count: int, attributes: list[dict] | None = None, names: list[str] | None = None) -> list[np.ndarray]:
    """Write levels, each half of the previous one, as ``s0``, ``s1`` and so on."""
    levels = [voxels[..., :: 2**n, :: 2**n, :: 2**n] for n in range(count)]
    for n, level in enumerate(levels):
        block = (2,) * (level.ndim - 3) + (4, 8, 8)
        write(path / (names[n] if names else f"s{n}"), level, block, **(attributes[n] if attributes else {}))
    return levels


def check_levels(path: Path, levels: list[np.ndarray], spacing: list[float], case: object, names: list[str] | None = None) -> None:
    """Compare all levels, and the position of their centers, whether they are opened by number or by path."""
    corner = None
    for n, level in enumerate(levels):
        volume = voxpatch.open(path, level=n)
        assert np.array_equal(volume[...].reshape(level.shape), level), (case, n)
        assert np.allclose(volume.spacing, np.array(spacing) * 2**n, rtol=1e-12), (case, n, volume.spacing)
        # The outer corner of the first voxel is the same on all levels.
        own = volume.affine[:3, 3] - np.array(volume.spacing[::-1]) / 2
        corner = own if corner is None else corner
        assert np.allclose(own, corner, atol=1e-12), (case, n)
        by_path = voxpatch.open(path / (names[n] if names else f"s{n}"))
        assert np.array_equal(by_path.affine, volume.affine), (case, n)
    with pytest.raises(ValueError, match=f"no level {len(levels)}"):
        voxpatch.open(path, level=len(levels))


def test_groups_of_levels_are_images(tmp_path):
    voxels = made((12, 20, 28), "uint16")
    micrometers = {"pixelResolution": {"unit": "um", "dimensions": [0.25, 0.5, 2.0]}}
    spacing = [2e-3, 0.5e-3, 0.25e-3]
    factors = [{"downsamplingFactors": [2**n] * 3} for n in range(3)]
    for case, group, own in [
        ("factors and resolution of the arrays", {}, [own | micrometers for own in factors]),
        ("factors of the arrays", micrometers, factors),
        ("factors of the group", micrometers | {"downsamplingFactors": [[2**n] * 3 for n in range(3)]}, [{}] * 3),
        ("scales", micrometers | {"scales": [[2**n] * 3 for n in range(3)]}, [{}] * 3),
        ("Paintera", {"multiScale": True, "resolution": [0.25, 0.5, 2.0], "units": ["um"] * 3}, factors),
    ]:
        root = tmp_path / case.replace(" ", "")
        levels = pyramid(root / "volume", voxels, 3, own)
        (root / "attributes.json").write_text('{"n5": "4.0.0"}')
        # Only the root needs attributes.
        if group:
            (root / "volume/attributes.json").write_text(json.dumps(group))
        check_levels(root / "volume", levels, spacing, case)
        # A root with a single image is that image.
        assert np.array_equal(voxpatch.open(root, level=2)[0], levels[2])


def test_levels_with_transforms_are_images(tmp_path):
    voxels = made((2, 12, 20, 28), "uint8")
    names = ["fine", "half/inner"]
    nanometers = [4.0, 8.0, 12.0]
    transforms = [
        {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [n * 2**level for n in nanometers],
         "translate": [100 + n * (2**level - 1) / 2 for n in nanometers]}
        for level in range(2)
    ]  # fmt: skip
    image = [{"name": "em", "datasets": [{"path": name, "transform": own} for name, own in zip(names, transforms, strict=True)]}]
    levels = pyramid(tmp_path / "a.n5", voxels, 2, names=names)
    (tmp_path / "a.n5/attributes.json").write_text(json.dumps({"multiscales": image}))
    for n, level in enumerate(levels):
        volume = voxpatch.open(tmp_path / "a.n5", level=n)
        assert np.array_equal(volume[...], level)
        assert np.allclose(volume.spacing, np.array(nanometers) * 1e-6 * 2**n)
        assert np.allclose(volume.affine[:3, 3], [n * 1e-6 for n in transforms[n]["translate"][::-1]])
    # The array says it, too.
    single = tmp_path / "b.n5/s0"
    write(single, voxels[0], (4, 8, 8), transform=transforms[0] | {"axes": ["x", "y", "z"], "scale": [1, 2, 3]})
    assert np.allclose(voxpatch.open(single).spacing, (3e-6, 2e-6, 1e-6))


def test_pyramids_that_are_damaged_are_refused_or_have_no_position(tmp_path):
    root = tmp_path / "a.n5"
    voxels = made((12, 20, 28), "uint8")
    levels = pyramid(root, voxels, 2)
    micrometers = {"pixelResolution": {"unit": "um", "dimensions": [1, 2, 3]}}

    def group(**attributes: object) -> None:
        (root / "attributes.json").write_text(json.dumps({"n5": "4.0.0"} | micrometers | attributes))

    for paths, problem in [(["../a"], "inside"), (["s0", "/etc"], "inside"), (["s0", "s9"], "not an array"), ([7], "inside")]:
        group(multiscales=[{"datasets": [{"path": path} for path in paths]}])
        with pytest.raises(ValueError, match=problem):
            voxpatch.open(root, level=len(paths) - 1)
    # Attributes that make no sense are no position, and the voxels stay.
    for factors in ([[0, 0, 0]], [[1, 1, 1], [1e308, 1e308, 1e308]], [[-1, 1, 1]], "x", [[1]], {"a": 1}):
        group(scales=factors)
        for n, level in enumerate(levels):
            volume = voxpatch.open(root, level=n)
            assert np.array_equal(volume[0], level)
            assert np.isfinite(volume.affine).all() and min(volume.spacing) > 0
    group(multiscales=[{"datasets": [{"path": "s0", "transform": {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [0, 1, 1]}}]}])
    assert min(voxpatch.open(root).spacing) > 0
    group(multiscales=[{"datasets": [{"path": "s0"}] * 65}])
    assert np.array_equal(voxpatch.open(root, level=1)[0], levels[1])
    group()
    (root / "s1").rename(tmp_path / "outside")
    (root / "s1").symlink_to(tmp_path / "outside")
    with pytest.raises(voxpatch.VoxpatchError):
        voxpatch.open(root, level=1, trusted=False)
