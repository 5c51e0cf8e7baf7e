"""HDF5 data sets of many layouts, written by h5py, against the arrays that were written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import voxpatch
from damage import check_damage, total
from voxels import check_voxels

h5py = pytest.importorskip("h5py")

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]


def made(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return smooth values with noise, which compressions meet in practice."""
    rng = np.random.default_rng(3)
    values = np.indices(shape).sum(axis=0) * 3 + rng.integers(0, 5, shape)
    return (values % 100 - (0 if dtype[0] == "u" else 50)).astype(dtype)


def layouts():
    """Yield a name, the type, the version bounds of the library, and the options of h5py."""
    small = (4, 8, 16)
    for dtype in DTYPES:
        yield f"{dtype} contiguous", dtype, None, {}
        yield f"{dtype} chunks", dtype, None, {"chunks": small, "compression": "gzip", "shuffle": True}
    filters = {
        "none": {},
        "gzip": {"compression": "gzip"},
        "gzip 9 shuffle": {"compression": "gzip", "compression_opts": 9, "shuffle": True},
        "fletcher32": {"fletcher32": True},
        "gzip shuffle fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
        "lzf": {"compression": "lzf"},
        "lzf shuffle fletcher32": {"compression": "lzf", "shuffle": True, "fletcher32": True},
        "scaleoffset": {"scaleoffset": 0},
    }
    bounds = [None, ("earliest", "v108"), ("v110", "v110"), ("latest", "latest")]
    for (name, options), bound, chunks in itertools.product(filters.items(), bounds, [small, (5, 7, 9)]):
        yield f"{name} {bound} {chunks}", "int16", bound, {"chunks": chunks, **options}
    for maxshape, bound in itertools.product([(None, 33, 40), (None, None, 40), (30, 60, 80)], bounds):
        yield f"resizable {maxshape} {bound}", "uint16", bound, {"chunks": small, "maxshape": maxshape, "compression": "gzip"}
    for bound in bounds:
        yield f"one chunk {bound}", "int16", bound, {"chunks": (17, 33, 40)}
        yield f"one chunk gzip {bound}", "int16", bound, {"chunks": (17, 33, 40), "compression": "gzip"}


def test_layouts_of_h5py(tmp_path):
    count = 0
    for name, dtype, bound, options in layouts():
        path = tmp_path / "a.h5"
        voxels = made((17, 33, 40), dtype)
        for order in "<>" if dtype in ("int16", "float32") and bound is None else "=":
            with h5py.File(path, "w", libver=bound) as file:
                file.create_dataset("group/raw", data=voxels.astype(np.dtype(dtype).newbyteorder(order)), **options)
            check_voxels(path, voxels[None], (name, order))
            check_voxels(f"{path}:/group/raw", voxels[None], (name, order))
            check_voxels(f"{path}:group/raw", voxels[None], (name, order), trusted=False)
            count += 1
    print(f"{count} layouts of HDF5")
    assert count >= 110


def test_szip_and_nbit(tmp_path):
    path, count = tmp_path / "a.h5", 0
    if not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        pytest.skip("this HDF5 has no szip")
    small = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
    for dtype, options, chunk in itertools.product(
        small, [("nn", 8), ("nn", 32), ("ec", 8), ("ec", 16)], [(4, 8, 16), (5, 7, 9), (17, 33, 40)]
    ):
        voxels = made((17, 33, 40), dtype)
        for more in [{}, {"shuffle": True}, {"fletcher32": True}]:
            with h5py.File(path, "w") as file:
                file.create_dataset("raw", data=voxels, chunks=chunk, compression="szip", compression_opts=options, **more)
            check_voxels(path, voxels[None], (dtype, options, chunk, more), trusted=False)
            count += 1
    noise = np.random.default_rng(1).integers(0, 1 << 16, (9, 20, 30), "uint16")
    for order in "<>":
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=noise.astype(f"{order}u2"), chunks=(4, 8, 16), compression="szip")
        check_voxels(path, noise[None], f"noise {order}")
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=noise, chunks=(4, 8, 16), compression=h5py.h5z.FILTER_NBIT)
    check_voxels(path, noise[None], "nbit")
    assert count == 8 * 4 * 3 * 3


def test_contiguous_voxels_are_read_without_chunks(tmp_path):
    path = tmp_path / "a.h5"
    voxels = made((17, 33, 40), "int16")
    for name, options, is_flat in [("contiguous", {}, True), ("chunks", {"chunks": (4, 8, 16)}, False)]:
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=voxels, **options)
        volume = check_voxels(path, voxels[None], name)
        assert (volume.chunks is None) == is_flat, name


def test_filters_of_hdf5plugin(tmp_path):
    plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin writes blosc, LZ4 and zstd")
    voxels = made((17, 33, 40), "uint16")
    for n, options in enumerate(
        [
            *(plugin.Blosc(cname=name, shuffle=shuffle) for name in ("lz4", "zstd", "blosclz", "zlib") for shuffle in (0, 1, 2)),
            plugin.LZ4(), plugin.LZ4(nbytes=1024), plugin.Zstd(), plugin.Zstd(clevel=19),
        ]
    ):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=voxels, chunks=(4, 8, 16), **options)
        check_voxels(path, voxels[None], n)
        if n < 12:
            with pytest.raises(ValueError, match="blosc"):
                voxpatch.open(path, trusted=False)
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=voxels, chunks=(4, 8, 16), **plugin.FciDecomp() if hasattr(plugin, "FciDecomp") else plugin.ZFP())
    with pytest.raises(ValueError, match="filter 320"):
        voxpatch.open(path)


def test_bitshuffle_of_hdf5plugin(tmp_path):
    plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin writes bitshuffle")
    path = tmp_path / "a.h5"
    chunks = [(4, 8, 16), (3, 5, 7), (17, 33, 40), (1, 1, 5)]
    for n, (dtype, chunk, kind, elements) in enumerate(
        itertools.product(["uint8", "int16", "float32", "float64"], chunks, ["none", "lz4", "zstd"], [0, 64, 1024])
    ):
        voxels = made((17, 33, 40) if chunk != (1, 1, 5) else (2, 3, 12), dtype)
        with h5py.File(path, "w") as file:
            options = plugin.Bitshuffle(nelems=elements, cname=kind)
            file.create_dataset("raw", data=voxels, chunks=chunk, **options)
        check_voxels(path, voxels[None], (dtype, chunk, kind, elements), trusted=False)
    assert n == 4 * 4 * 3 * 3 - 1
    noise = np.random.default_rng(1).integers(0, 1 << 32, (9, 20, 30), "uint32")
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=noise, chunks=(4, 8, 16), fletcher32=True, **plugin.Bitshuffle())
    check_voxels(path, noise[None], "noise")


def test_bitshuffle_that_is_damaged_is_refused(tmp_path):
    plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin writes bitshuffle")
    path, voxels = tmp_path / "a.h5", made((4, 8, 16), "uint16")
    for kind in ("none", "lz4", "zstd"):
        with h5py.File(path, "w") as file:
            raw = file.create_dataset("raw", data=voxels, chunks=voxels.shape, **plugin.Bitshuffle(cname=kind))
            place = raw.id.get_chunk_info(0)
        whole = path.read_bytes()
        chunk = whole[place.byte_offset : place.byte_offset + place.size]
        lies = [chunk[:9], b"", chunk[:-1]]
        if kind != "none":
            huge = (1 << 62).to_bytes(8, "big")
            lies += [
                huge + chunk[8:], b"\xff" * 12, chunk[:8] + bytes(4) + chunk[12:], chunk[:8] + b"\0\0\0\6" + chunk[12:],
                (voxels.nbytes - 2).to_bytes(8, "big") + chunk[8:], chunk[:12] + b"\x7f\xff\xff\xff" + chunk[16:],
            ]  # fmt: skip
        for lie in lies:
            with h5py.File(path, "w") as file:
                raw = file.create_dataset("raw", shape=voxels.shape, dtype="u2", chunks=voxels.shape, **plugin.Bitshuffle(cname=kind))
                raw.id.write_direct_chunk((0, 0, 0), lie or b"\0")
            with pytest.raises((ValueError, OSError)):
                voxpatch.open(path)[...]
        path.write_bytes(whole)
        outcomes = check_damage(path, np.random.default_rng(2), 200, allowed="hdf5-reader")
        assert min(outcomes.values()) > 5, outcomes


def compact(path: Path, voxels: np.ndarray) -> None:
    """Write a data set whose voxels are in its header."""
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.COMPACT)
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.py_create(voxels.dtype)
        made = h5py.h5d.create(file.id, b"raw", kind, h5py.h5s.create_simple(voxels.shape), create)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(voxels))


def test_compact_data_sets(tmp_path):
    path = tmp_path / "a.h5"
    for dtype, order, shape in itertools.product(DTYPES, "<>", [(4, 5, 6), (1, 1, 1), (2, 3, 4, 5), (7, 9)]):
        voxels = made(shape, dtype)
        compact(path, voxels.astype(voxels.dtype.newbyteorder(order)))
        expected = voxels.reshape((1,) * (3 - len(shape)) + shape)
        check_voxels(path, expected if expected.ndim == 4 else expected[None], (dtype, order, shape), trusted=False)
    largest = made((16, 32, 63), "int16")
    compact(path, largest)
    check_voxels(path, largest[None], "nearly 64 KiB")
    outcomes = check_damage(path, np.random.default_rng(2), 100, allowed="hdf5-reader")
    compact(path, made((2, 3, 4), "int16"))
    small = check_damage(path, np.random.default_rng(3), 300, allowed="hdf5-reader")
    assert min(total([outcomes, small]).values()) > 10, (outcomes, small)


def test_axes(tmp_path):
    """Axes by number, by tags of ilastik and by labels; contiguous and chunked."""
    path = tmp_path / "a.h5"
    lengths = {"t": 2, "c": 3, "z": 5, "y": 6, "x": 7}
    orders = ["yx", "zyx", "czyx", "tczyx", "xyz", "zyxc", "yxc", "tzyxc", "tzyx", "ctzyx", "cyx", "tyxc", "zcyx"]
    for order, chunked, kind in itertools.product(orders, [False, True], ["tags", "labels", "none"]):
        if kind == "none" and order not in ("yx", "zyx", "czyx", "tczyx"):
            continue
        voxels = made(tuple(lengths[axis] for axis in order), "int16")
        with h5py.File(path, "w") as file:
            data = file.create_dataset("raw", data=voxels, chunks=(2,) * len(order) if chunked else None)
            if kind == "tags":
                data.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 1} for axis in order]})
            elif kind == "labels":
                for dim, axis in zip(data.dims, order, strict=True):
                    dim.label = axis
        full = "".join(axis for axis in "tczyx" if axis in order)
        expected = voxels.transpose([order.index(axis) for axis in full])
        shape = [lengths[axis] if axis in order else 1 for axis in "tczyx"]
        expected = expected.reshape(shape[0] * shape[1], *shape[2:])
        apart = "t" in order and "c" in order and order.index("c") != order.index("t") + 1
        if apart and not chunked:
            with pytest.raises(ValueError, match="next to each other"):
                voxpatch.open(path)
        else:
            check_voxels(path, expected, (order, chunked, kind))


def test_spacing_and_fill(tmp_path):
    path = tmp_path / "a.h5"
    voxels = made((8, 8, 8), "float32")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", shape=(8, 16, 8), dtype="f4", chunks=(4, 4, 4), fillvalue=-2.5)
        data[:, :8] = voxels
        data.attrs["element_size_um"] = [2.0, 0.5, 0.25]
    expected = np.full((1, 8, 16, 8), -2.5, "f4")
    expected[0, :, :8] = voxels
    volume = check_voxels(path, expected, "fill")
    assert np.allclose(volume.spacing, (0.002, 0.0005, 0.00025))
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", shape=(100, 70, 80), dtype="i2", fillvalue=7)
    check_voxels(path, np.full((1, 100, 70, 80), 7, "i2"), "nothing stored")
    with h5py.File(path, "w") as file:
        file.create_dataset("mask", data=voxels > 10)
    assert np.array_equal(voxpatch.open(path)[0], (voxels > 10).astype("u1"))
    with h5py.File(path, "w", userblock_size=1024) as file:
        file.create_dataset("raw", data=voxels, chunks=(4, 4, 4))
    with pytest.raises(ValueError):
        voxpatch.open(path)  # a user block is before the signature


def test_data_sets_are_listed_and_refusals_say_why(tmp_path):
    path = tmp_path / "a.h5"
    voxels = made((4, 5, 6), "uint8")
    with h5py.File(path, "w") as file:
        file["raw"] = voxels
        file["deep/er/labels"] = voxels
        file["deep/link"] = h5py.SoftLink("/raw")
        file["loop"] = h5py.SoftLink("/")
        file["names"] = ["a", "b"]
        file["number"] = 3.0
    with pytest.raises(ValueError, match=r"several data sets: /deep/er/labels \(4 x 5 x 6, uint8\)") as raised:
        voxpatch.open(path)
    assert "/raw" in str(raised.value) and "names" not in str(raised.value)
    check_voxels(f"{path}:/deep/link", voxels[None], "link")
    for inside, word in [("/none", "no data set"), ("/names", "numbers|axes"), ("/deep", "no data set"), ("/number", "axes")]:
        with pytest.raises(ValueError, match=word):
            voxpatch.open(f"{path}:{inside}")
    with pytest.raises(ValueError, match="level"):
        voxpatch.open(path, level=1)
    with h5py.File(path, "w") as file:
        file["names"] = ["a", "b"]
    with pytest.raises(ValueError, match="no data set of numbers"):
        voxpatch.open(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=voxels.astype("c8"))
    with pytest.raises(ValueError, match="no data set of numbers"):
        voxpatch.open(path)


def test_voxels_in_another_file_are_read_from_the_same_folder_only(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)  # where the C library looks for the file
    path, voxels = folder / "a.h5", made((4, 5, 6), "int16")

    def write(*places):
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", shape=voxels.shape, dtype="<i2", external=list(places))[...] = voxels

    write(("raw.bin", 6, h5py.h5f.UNLIMITED))
    check_voxels(path, voxels[None], "external", trusted=False)
    monkeypatch.chdir(tmp_path)
    check_voxels(path, voxels[None], "external, from elsewhere")
    (folder / "raw.bin").write_bytes(bytes(245))
    with pytest.raises((ValueError, OSError), match="245"):
        voxpatch.open(path)
    (folder / "raw.bin").unlink()
    with pytest.raises(OSError, match="raw.bin"):
        voxpatch.open(path)
    monkeypatch.chdir(folder)
    for name in (str(tmp_path / "raw.bin"), "../raw.bin"):
        write((name, 0, h5py.h5f.UNLIMITED))
        with pytest.raises(ValueError, match="outside the header's folder"):
            voxpatch.open(path)
        check_voxels(path, voxels[None], "external, allowed", allow_external=True)
    (folder / "link.bin").symlink_to(tmp_path / "raw.bin")
    write(("link.bin", 0, h5py.h5f.UNLIMITED))
    with pytest.raises(ValueError, match="outside the header's folder"):
        voxpatch.open(path)
    write(("a.bin", 0, 100), ("b.bin", 0, 140))
    with pytest.raises(ValueError, match="several other files"):
        voxpatch.open(path)


def test_damaged_files_are_errors(tmp_path):
    rng = np.random.default_rng(3)
    outcomes = []
    path = tmp_path / "a.h5"
    for bound, options in itertools.product(
        [None, ("latest", "latest")],
        [{}, {"chunks": (2, 8, 8), "compression": "gzip"}, {"chunks": (2, 8, 8), "compression": "lzf", "shuffle": True},
         {"chunks": (2, 8, 8), "fletcher32": True}, {"chunks": (2, 8, 8), "maxshape": (None, None, 20)}],
    ):
        with h5py.File(path, "w", libver=bound) as file:
            file.create_dataset("raw", data=made((5, 17, 20), "uint8"), **options)
        outcomes.append(check_damage(path, rng, 200, allowed="hdf5-reader"))
    assert min(total(outcomes).values()) > 20, outcomes


def test_damage_behind_a_checksum_is_found(tmp_path):
    path = tmp_path / "a.h5"
    voxels = made((5, 17, 20), "int32")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", data=voxels, chunks=(5, 17, 20), fletcher32=True)
        place = data.id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    for at in range(0, voxels.nbytes, 331):
        damaged = bytearray(whole)
        damaged[place + at] ^= 16
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match="fletcher32"):
            voxpatch.open(path)[...]
