"""TIFF files of many kinds, written by tifffile, against the arrays that were written."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import voxpatch
from damage import check_damage, total
from voxels import check_voxels

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
UM = 1e-3


def made(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Return smooth values with noise, which compressions and predictors meet in practice."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).sum(axis=0)
    noise = rng.integers(0, 5, shape)
    if np.dtype(dtype).kind == "f":
        return (grid * 0.75 + noise - 3.5).astype(dtype)
    return ((grid * 3 + noise) % 100 + (0 if dtype[0] == "u" else -50)).astype(dtype)


def variants():
    """Yield a name, the array, c, z, y, x, and the options of tifffile."""
    for dtype in DTYPES:
        stack = made((3, 20, 37), dtype)
        for compression, predictor in [
            (None, None), ("lzw", False), ("zlib", False), ("zstd", False), ("packbits", False), ("lzw", True), ("zlib", True)
        ]:
            if predictor and dtype in ("uint64", "int64"):  # tifffile has no predictor for them
                continue
            options = {"compression": compression, "photometric": "minisblack"}
            if predictor is not None:
                options["predictor"] = predictor
            yield f"{dtype} {compression} {predictor}", stack[None], options
    for dtype, tile, order in itertools.product(["uint8", "uint16", "float32"], [None, (16, 16), (32, 16)], "<>"):
        for compression, big in [(None, False), ("zlib", True), ("lzw", False)]:
            options = {"byteorder": order, "tile": tile, "compression": compression, "bigtiff": big}
            yield f"{dtype} {tile} {order} {compression}", made((3, 40, 37), dtype)[None], {
                **options, "photometric": "minisblack"
            }
    for rows, compression in itertools.product([1, 3, 7, 16, 64], [None, "zlib", "packbits", "lzw", "zstd"]):
        yield f"strips {rows} {compression}", made((4, 33, 21), "int16")[None], {
            "rowsperstrip": rows, "compression": compression, "photometric": "minisblack"
        }


def test_stacks_have_the_voxels_that_tifffile_wrote(tmp_path):
    path, count = tmp_path / "a.tif", 0
    for name, expected, options in variants():
        tifffile.imwrite(path, expected[0], **options)
        check_voxels(path, expected, name)
        count += 1
    print(f"{count} variants of TIFF")
    assert count >= 150, count


def test_colors_and_planes_are_channels(tmp_path):
    path = tmp_path / "a.tif"
    for n, (dtype, planar, compression, tile) in enumerate(
        itertools.product(["uint8", "uint16"], ["contig", "separate"], [None, "zlib", "lzw"], [None, (16, 16)])
    ):
        pixels = made((2, 3, 18, 20), dtype, n)  # z, c, y, x
        given = pixels if planar == "separate" else pixels.transpose(0, 2, 3, 1)
        tifffile.imwrite(
            path, given, photometric="rgb", planarconfig=planar, compression=compression, tile=tile
        )
        check_voxels(path, pixels.transpose(1, 0, 2, 3), (dtype, planar, compression, tile))
    one = made((20, 22, 3), "uint8")
    tifffile.imwrite(path, one, photometric="rgb", compression="jpeg", compressionargs={"level": 100})
    volume = voxpatch.open(path)
    oracle = tifffile.imread(path).transpose(2, 0, 1)[:, None]
    assert np.abs(volume[...].astype(int) - oracle.astype(int)).max() <= 4  # decoders round chroma differently
    gray = made((2, 32, 48), "uint8")
    tifffile.imwrite(path, gray, photometric="minisblack", compression="jpeg", tile=(16, 16))
    assert np.abs(voxpatch.open(path)[0].astype(int) - tifffile.imread(path).astype(int)).max() <= 2


def test_ome_files_have_axes_spacing_and_levels(tmp_path):
    path = tmp_path / "a.ome.tif"
    lengths = {"T": 2, "C": 3, "Z": 4}
    metadata = {
        "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 2000.0, "PhysicalSizeZUnit": "nm",
    }
    count = 0
    for letters in ["ZYX", "CZYX", "ZCYX", "TZYX", "TCZYX", "TZCYX", "CTZYX", "ZTCYX"]:
        for compression, tile in [(None, None), ("zlib", (16, 16)), ("zstd", None)]:
            shape = tuple(lengths.get(letter, 0) or {"Y": 20, "X": 24}[letter] for letter in letters)
            array = made(shape, "uint16", count)
            tifffile.imwrite(
                path, array, ome=True, compression=compression, tile=tile, photometric="minisblack",
                metadata={**metadata, "axes": letters},
            )
            missing = [letter for letter in "TCZ" if letter not in letters]
            full = array.reshape((1,) * len(missing) + array.shape)
            order = "".join(missing) + letters
            sorted_ = full.transpose([order.index(letter) for letter in "TCZYX"])
            expected = sorted_.reshape((-1, *sorted_.shape[2:]))
            volume = check_voxels(path, expected, (letters, compression))
            assert np.allclose(volume.spacing, [2 * UM, 0.5 * UM, 0.25 * UM]), letters
            assert (volume.time_points or 1) == (2 if "T" in letters else 1), letters
            count += 1
    assert count == 24


def test_pyramids_in_sub_directories_are_levels(tmp_path):
    path = tmp_path / "a.ome.tif"
    stack = made((3, 64, 96), "uint16")
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        options = {"tile": (16, 16), "photometric": "minisblack", "compression": "zlib"}
        metadata = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 3.0}
        writer.write(stack, subifds=2, metadata=metadata, **options)
        writer.write(stack[:, ::2, ::2], subfiletype=1, **options)
        writer.write(stack[:, ::4, ::4], subfiletype=1, **options)
    for level, step in enumerate((1, 2, 4)):
        volume = check_voxels(path, stack[None, :, ::step, ::step], level, level=level)
        assert np.allclose(volume.spacing, [3 * UM, step * UM, step * UM]), level
    with pytest.raises(ValueError, match="3 levels"):
        voxpatch.open(path, level=3)


def test_imagej_stacks_have_axes_and_spacing(tmp_path):
    path = tmp_path / "a.tif"
    for letters, dtype in itertools.product(["ZYX", "ZCYX", "TZYX", "TZCYX", "TCYX", "CYX"], ["uint8", "uint16", "float32"]):
        lengths = {"T": 2, "C": 3, "Z": 4, "Y": 10, "X": 12}
        array = made(tuple(lengths[letter] for letter in letters), dtype)
        tifffile.imwrite(
            path, array, imagej=True, resolution=(4.0, 2.0),
            metadata={"axes": letters, "spacing": 3.0, "unit": "um", "finterval": 1.5},
        )
        missing = [letter for letter in "TCZ" if letter not in letters]
        full = array.reshape((1,) * len(missing) + array.shape)
        order = "".join(missing) + letters
        sorted_ = full.transpose([order.index(letter) for letter in "TCZYX"])
        volume = check_voxels(path, sorted_.reshape((-1, *sorted_.shape[2:])), (letters, dtype))
        assert np.allclose(volume.spacing[1:], [0.5 * UM, 0.25 * UM]), letters


def test_axes_that_tifffile_writes_are_followed(tmp_path):
    path = tmp_path / "a.tif"
    for letters in ["ZYX", "CZYX", "ZCYX", "TCZYX"]:
        lengths = {"T": 2, "C": 3, "Z": 4, "Y": 10, "X": 12}
        array = made(tuple(lengths[letter] for letter in letters), "int16")
        for compression, truncate in [(None, False), (None, True), ("zlib", False)]:
            if truncate and letters == "TCZYX":
                continue
            tifffile.imwrite(
                path, array, metadata={"axes": letters}, photometric="minisblack", compression=compression,
                truncate=truncate,
            )
            missing = [letter for letter in "TCZ" if letter not in letters]
            full = array.reshape((1,) * len(missing) + array.shape)
            order = "".join(missing) + letters
            sorted_ = full.transpose([order.index(letter) for letter in "TCZYX"])
            check_voxels(path, sorted_.reshape((-1, *sorted_.shape[2:])), (letters, compression, truncate))


def test_a_folder_of_slices_is_in_natural_order(tmp_path):
    stack = made((12, 9, 8), "uint16")
    for z, page in enumerate(stack):
        tifffile.imwrite(tmp_path / f"slice{z}.tif", page, compression=["zlib", "zlib"][z % 2], photometric="minisblack")
    (tmp_path / "notes.txt").write_text("slices")
    check_voxels(tmp_path, stack[None], "folder")
    tifffile.imwrite(tmp_path / "slice12.tif", stack[0, :5], photometric="minisblack", compression="zlib")
    with pytest.raises(ValueError, match="pages are different"):
        voxpatch.open(tmp_path)


def test_sparse_tiles_are_zero(tmp_path):
    path = tmp_path / "a.tif"
    expected = np.zeros((2, 32, 48), "uint16")
    expected[:, :16, 16:32] = 7

    tifffile.imwrite(path, expected, tile=(16, 16), compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in tif.pages:
            for name in ("TileOffsets", "TileByteCounts"):
                kept = [value if n == 1 else 0 for n, value in enumerate(page.tags[name].value)]
                page.tags[name].overwrite(kept)
    check_voxels(path, expected[None], "sparse")


def test_what_is_not_read_is_refused_with_its_reason(tmp_path):
    path = tmp_path / "a.tif"
    stack = made((2, 16, 16), "uint16")
    for options, word in [
        ({"compression": "lzma"}, "LZMA"),
        ({"compression": "jpeg2000"}, "JPEG 2000"),
        ({"compression": "jpegxl"}, "JPEG XL"),
    ]:
        tifffile.imwrite(path, stack, photometric="minisblack", **options)
        with pytest.raises(ValueError, match=word):
            voxpatch.open(path)
    tifffile.imwrite(path, made((2, 16, 16), "float32").astype("complex64"), photometric="minisblack")
    with pytest.raises(ValueError, match="complex"):
        voxpatch.open(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(stack, photometric="minisblack")
        writer.write(stack[:, :8], photometric="minisblack")
    with pytest.raises(ValueError, match="pages are different"):
        voxpatch.open(path)


def test_damaged_files_are_errors(tmp_path):
    """Change bytes: an error or a volume, never a crash."""
    rng = np.random.default_rng(3)
    outcomes = []
    path = tmp_path / "a.ome.tif"
    for compression, tile in itertools.product([None, "zlib", "lzw", "zstd", "packbits", "jpeg"], [None, (16, 16)]):
        tifffile.imwrite(
            path, made((2, 32, 32), "uint8"), compression=compression, tile=tile, ome=True, photometric="minisblack"
        )
        outcomes.append(check_damage(path, rng, 100))
    assert min(total(outcomes).values()) > 20, outcomes


def random_access(path: Path) -> np.ndarray:
    """Read through the chunks that tifffile finds, first the last voxel and then all."""
    zarr = pytest.importorskip("zarr")
    with tifffile.imread(path, aszarr=True) as store:
        array = zarr.open(store, mode="r")
        last = array[(-1,) * array.ndim]
        voxels = array[...]
    assert voxels.flat[-1] == last
    return voxels


def test_outputs_are_read_by_tifffile(tmp_path):
    codecs = itertools.cycle(["none", "zlib", "zstd"])
    sizes = [(1, 5, 6, 7), (3, 4, 16, 17), (1, 1, 8, 9), (2, 3, 40, 70)]
    for n, (dtype, shape) in enumerate(
        itertools.product(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"], sizes)
    ):
        voxels, codec = made(shape, dtype), next(codecs)
        path = tmp_path / ("a.tif", "b.ome.tif", "c.tiff")[n % 3]
        tile = (2, 16, 32) if shape[3] == 70 else None
        voxpatch.write(path, voxels, spacing=(2.0, 0.5, 0.25), overwrite=True, codec=codec, chunk=tile)
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff and file.is_ome and len(file.pages) == shape[0] * shape[1]
            assert all(page.is_tiled == bool(tile) for page in file.pages)
            assert file.pages[0].compression == {"none": 1, "zlib": 8, "zstd": 50000}[codec]
            if tile:
                assert file.pages[0].tile == (16, 32)
            else:
                assert file.pages[0].rowsperstrip == shape[2] and len(file.pages[0].dataoffsets) == 1
            assert np.array_equal(file.asarray().reshape(shape), voxels), (dtype, shape)
            assert file.series[0].axes == "CZYX"[-len(np.squeeze(voxels).shape):]
            pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
            assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == [2.0, 0.5, 0.25]
            assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"mm"}
        assert np.array_equal(random_access(path).reshape(shape), voxels), (dtype, shape, codec)
        volume = check_voxels(path, voxels, (dtype, shape))
        assert np.allclose(volume.spacing, (2.0, 0.5, 0.25))


def test_outputs_are_read_by_libtiff(tmp_path):
    path = tmp_path / "a.ome.tif"
    for codec, dtype in itertools.product(["none", "zlib"], ["uint8", "int16", "uint16", "float32"]):
        voxels = made((1, 4, 40, 300), dtype)
        voxpatch.write(path, voxels, overwrite=True, codec=codec)
        for z, page in enumerate(voxels[0]):
            assert np.array_equal(imagecodecs.tiff_decode(path.read_bytes(), index=z), page), (codec, dtype, z)


def test_pages_of_one_tile_are_read_by_itk(tmp_path):
    """ITK reads tiles of gray values as colors, so a page of a single tile is a strip."""
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / "a.ome.tif"
    for codec, dtype, (shape, chunk) in itertools.product(
        ["none", "zlib"],
        ["uint8", "int16", "uint16", "float32"],
        [((4, 40, 37), None), ((3, 256, 250), None), ((3, 35, 300), (1, 35, 300)), ((3, 35, 300), (2, 48, 304))],
    ):
        voxels = made(shape, dtype)
        spacing = (2.0, 0.7, 0.25)
        options = {"spacing": spacing} | ({"chunk": chunk} if chunk else {})
        voxpatch.write(path, voxels, overwrite=True, codec=codec, **options)
        image = sitk.ReadImage(str(path))
        assert np.allclose(image.GetSpacing()[:2], spacing[:0:-1]), image.GetSpacing()
        assert image.GetNumberOfComponentsPerPixel() == 1, (codec, dtype, shape)
        assert np.array_equal(sitk.GetArrayFromImage(image), voxels), (codec, dtype, shape)
        check_voxels(path, voxels[None], (codec, dtype, shape))


def test_predictions_are_written_in_tiles(tmp_path):
    """Patches end inside tiles: blocks become final in any order, and a compressed tile waits for all of its voxels."""
    voxels = made((1, 20, 50, 90), "float32")
    voxpatch.write(tmp_path / "in.npy", voxels)
    for n, (codec, chunk) in enumerate(itertools.product(["none", "zlib", "zstd"], [None, (3, 16, 32)])):
        path = tmp_path / f"{n}.ome.tif"
        storage = {"codec": codec} | ({"chunk": chunk} if chunk else {})
        voxpatch.predict(lambda batch: batch * 2, tmp_path / "in.npy", path, (16, 24, 24), 0.5, **storage)
        assert np.allclose(tifffile.imread(path), voxels[0] * 2), (codec, chunk)
    with pytest.raises(ValueError, match="only Zarr"):
        voxpatch.predict(
            lambda batch: batch, tmp_path / "in.npy", tmp_path / "r.tif", 16, resume=True, codec="zlib", model_id="a"
        )


def test_copies_keep_the_voxels(tmp_path):
    path = tmp_path / "from.zarr"
    voxels = made((2, 9, 33, 40), "int16")
    voxpatch.write(path, voxels, spacing=(0.002, 0.0005, 0.00025))
    voxpatch.convert(path, tmp_path / "d.ome.tif")
    check_voxels(tmp_path / "d.ome.tif", voxels, "converted")
    assert np.array_equal(tifffile.imread(tmp_path / "d.ome.tif"), voxels)
    voxpatch.convert(path, tmp_path / "f.ome.tif", codec="zstd", chunk=(4, 16, 16))
    assert np.array_equal(tifffile.imread(tmp_path / "f.ome.tif"), voxels)
    voxpatch.write(tmp_path / "g.nii.gz", voxels[:1])
    voxpatch.convert(tmp_path / "g.nii.gz", tmp_path / "g.ome.tif", codec="zlib", chunk=16)
    assert np.array_equal(tifffile.imread(tmp_path / "g.ome.tif"), voxels[0])
    for options, problem in [({"chunk": 15}, "multiples of 16"), ({"codec": "gzip"}, "zlib"), ({"pyramid": "mean"}, "Zarr")]:
        with pytest.raises(ValueError, match=problem):
            voxpatch.convert(path, tmp_path / "h.tif", **options)
    for dtype in ("int64", "uint64", "float16"):
        with pytest.raises(ValueError, match="OME-TIFF has no"):
            voxpatch.write(tmp_path / "e.tif", made((1, 4, 5, 6), dtype))
    assert not any(path.name.startswith(("e.tif", ".e.tif", "h.tif", ".h.tif")) for path in tmp_path.iterdir())
