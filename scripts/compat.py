#!/usr/bin/env python3
"""Compares voxpatch with nibabel, SimpleITK, numpy and zarr-python on real files, both ways.

    compat.py --voxpatch PATH_TO_BINARY --data PATH_TO_DATA [--only TEXT]

Reading: the report of `voxpatch info` on each file and array, and the voxels that `voxpatch convert` reads from it,
compared with the format's reference library. Writing: the outputs of `voxpatch convert` (.npy, .nii, .nrrd, .mha, .mhd,
Zarr v3 and v2 with every codec, sharded and not, with coarser levels), read with numpy, nibabel, SimpleITK, zarr-python
and ome-zarr-models. Synthetic headers and filters, such as Analyze pairs, sequences of MetaImage, OME-Zarr 0.6 and the
codecs of numcodecs, must be read or refused by name. Prints one line per check and a summary; exit status 1 if any
failed.

Needs numpy, nibabel, SimpleITK, zarr and ome-zarr-models. Files are only written to a temporary folder.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import nibabel
import numcodecs
import numpy as np
import SimpleITK as sitk
import zarr
from ome_zarr_models import open_ome_zarr
from zarr.abc.codec import ArrayArrayCodec
from zarr.codecs import numcodecs as v3

warnings.simplefilter("ignore")

FLAT = (".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ".npy")
CODECS = ("zstd", "blosc-zstd", "blosc-lz4", "gzip", "none")
# The storage of a Zarr: its version, codec and shard.
STORES = [("3", codec, shard) for codec in CODECS for shard in ("none", "64")]
STORES += [("2", codec, "none") for codec in (*CODECS, "zlib")]
DTYPES = ("bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64").split()
# Codecs of zarr-python that voxpatch refuses with a message; all others must open.
REFUSED_CODECS = ("zfpy", "pcodec", "delta", "fixedscaleoffset", "adler32", "fletcher32",
                  "crc32", "vlen", "lzma", "lz4", "shuffle", "bitround", "packbits", "quantize")
UNITS = {"nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1e3}


class Tally:
    """A counter of checks that prints a line for each."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, ok, why=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
        print(f"{'ok  ' if ok else 'FAIL'} {name}" + ("" if ok or not why else f": {why}"), flush=True)
        return ok

    def same(self, name, found, expected):
        return self.check(name, found == expected, f"{found!r} instead of {expected!r}")

    def near(self, name, found, expected, scale=1.0):
        found, expected = np.asarray(found, float), np.asarray(expected, float)
        ok = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-6, atol=1e-5 * scale)
        return self.check(name, ok, f"{found.tolist()} instead of {expected.tolist()}")

    def voxels(self, name, found, expected):
        """Checks that voxels are equal bit for bit; axes c, z, y, x."""
        if found.shape != expected.shape:
            return self.check(name, False, f"shape {found.shape} instead of {expected.shape}")
        found, expected = native(found), native(expected)
        if found.dtype != expected.dtype:
            return self.check(name, False, f"{found.dtype} instead of {expected.dtype}")
        wrong = int((bits(found) != bits(expected)).sum())
        return self.check(name, wrong == 0, f"{wrong} of {found.size} voxels differ")


def native(array):
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def bits(array):
    """Returns a view of the same memory as whole numbers, so that NaN equals itself."""
    return array.view(f"u{array.dtype.itemsize}")


class Voxpatch:
    def __init__(self, binary):
        self.binary = str(binary)

    def run(self, *arguments):
        command = [self.binary, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    def info(self, path):
        done = self.run("info", "--json", path)
        return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr.strip())

    def convert(self, source, target, *options):
        done = self.run("convert", source, target, *options)
        return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}")


class Truth:
    """A file as read by a reference library: voxels (c, z, y, x), spacing (z, y, x) and affine."""

    def __init__(self, path):
        self.rescale = (1.0, 0.0)
        self.codecs = []
        self.files = [path]
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            self.nifti(path)
        elif name.endswith(".npy"):
            self.numpy(path)
        else:
            self.itk(path)

    def nifti(self, path):
        image = nibabel.load(path)
        raw = np.asarray(image.dataobj.get_unscaled())
        self.format = "nifti-2" if isinstance(image, nibabel.Nifti2Image) else "nifti-1"
        self.affine = image.affine
        zooms = [float(z) for z in image.header.get_zooms()[:3]]
        self.spacing = (zooms + [1.0] * 3)[:3][::-1]
        self.rescale = (float(image.dataobj.slope), float(image.dataobj.inter))
        raw = raw.reshape(raw.shape + (1,) * max(0, 3 - raw.ndim))
        raw = raw.reshape(raw.shape[:3] + (-1,), order="F")
        self.array = raw.transpose(3, 2, 1, 0)
        self.codecs = ["gzip"] if path.name.endswith(".gz") else []

    @property
    def real(self):
        """Returns the real values: integers if the slope is 1 and the intercept whole, otherwise float32."""
        slope, inter = self.rescale
        if (slope, inter) in ((1.0, 0.0), (0.0, 0.0)):
            return self.array
        if slope != 1 or inter % 1 or self.array.dtype.kind == "f":
            return (self.array.astype("f8") * slope + inter).astype("f4")
        whole = np.iinfo(self.array.dtype)
        low, high = int(whole.min + inter), int(whole.max + inter)
        holds = (t for t in "u1 i1 i2 u2 i4 u4 i8".split() if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
        is_ct = self.array.dtype == np.int16 and -16384 <= inter < 0
        return (self.array.astype("i8") + int(inter)).astype("i2" if is_ct else next(holds))

    def numpy(self, path):
        array = np.load(path)
        self.format, self.affine, self.spacing = "npy", np.eye(4), [1.0] * 3
        self.array = array if array.ndim == 4 else array.reshape((1,) * (4 - array.ndim) + array.shape)

    def itk(self, path):
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        dims = image.GetDimension()
        if image.GetNumberOfComponentsPerPixel() > 1:
            array = np.moveaxis(array, -1, 0)
        elif dims < 4:
            array = array[None]
        self.array = array if array.ndim == 4 else array[:, None]
        used = min(dims, 3)
        direction = np.array(image.GetDirection()).reshape(dims, dims)[:used, :used]
        affine = np.eye(4)
        affine[:used, :used] = direction * np.array(image.GetSpacing()[:used])
        affine[:used, 3] = image.GetOrigin()[:used]
        self.affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS+
        self.spacing = (list(image.GetSpacing()[:3]) + [1.0] * 3)[:3][::-1]
        head = path.read_bytes()[: 1 << 16].split(b"\n\n")[0].decode("latin-1").lower()
        nrrd = path.suffix in (".nrrd", ".nhdr")
        self.format = "nrrd" if nrrd else "metaimage"
        if nrrd:
            self.codecs = ["gzip"] if "encoding: gz" in head else []
        else:
            self.codecs = ["zlib"] if "compresseddata = true" in head else []
        key = "data file:" if nrrd else "elementdatafile ="
        for line in head.splitlines():
            name = line[len(key):].strip()
            if line.startswith(key) and name != "local":
                found = [p for p in path.parent.iterdir() if p.name.lower() == Path(name).name]
                self.files += found


def check_info(tally, name, info, truth):
    array = truth.array
    tally.same(f"{name} format", info["format"], truth.format)
    tally.same(f"{name} shape", info["shape"], list(array.shape[1:]))
    tally.same(f"{name} channels", info["channels"], array.shape[0])
    tally.same(f"{name} dtype", info["dtype"], truth.real.dtype.name)
    tally.same(f"{name} stored dtype", info["stored_dtype"], array.dtype.name)
    tally.same(f"{name} codecs", info["codecs"], truth.codecs)
    tally.same(f"{name} read_chunk", info["read_chunk"], None)
    tally.same(f"{name} write_chunk", info["write_chunk"], None)
    tally.near(f"{name} spacing", info["spacing"], truth.spacing)
    tally.near(f"{name} affine", info["affine"], truth.affine)
    tally.same(f"{name} stored_bytes", info["stored_bytes"], sum(p.stat().st_size for p in truth.files))
    tally.same(f"{name} decoded_bytes", info["decoded_bytes"], truth.real.nbytes)


def check_voxels(tally, voxpatch, name, path, expected, work, *options):
    """Checks the voxels through a numpy file, whose writing is thereby checked as well."""
    out = work / "out.npy"
    problem = voxpatch.convert(path, out, "--overwrite", *options)
    if not tally.check(f"{name} -> npy", not problem, problem):
        return
    found = np.load(out)
    shape = expected.shape[1:] if expected.shape[0] == 1 else expected.shape
    tally.same(f"{name} npy shape", found.shape, shape)
    tally.voxels(f"{name} voxels", found.reshape(expected.shape), expected)


def check_flat(tally, voxpatch, data, path, work):
    name = str(path.relative_to(data))
    truth = Truth(path)
    info, problem = voxpatch.info(path)
    if not tally.check(f"{name} info", info is not None, problem):
        return
    check_info(tally, name, info, truth)
    check_voxels(tally, voxpatch, name, path, truth.real, work)
    check_voxels(tally, voxpatch, f"{name} (stored)", path, truth.array, work, "--values", "stored")
    check_nifti_output(tally, voxpatch, name, path, truth, work)
    check_itk_output(tally, voxpatch, name, path, truth, work)


def check_nifti_output(tally, voxpatch, name, path, truth, work):
    out = work / "out.nii"
    problem = voxpatch.convert(path, out, "--overwrite")
    if not tally.check(f"{name} -> nii", not problem, problem):
        return
    image = nibabel.load(out)
    found = np.asarray(image.dataobj.get_unscaled())
    found = found.reshape(found.shape[:3] + (-1,)).transpose(3, 2, 1, 0)
    expected = truth.array.astype("u1") if truth.array.dtype == bool else truth.array
    tally.voxels(f"{name} nii voxels", found, expected)
    tally.near(f"{name} nii affine", image.affine, truth.affine, scale=10)
    tally.near(f"{name} nii zooms", [float(z) for z in image.header.get_zooms()[:3]][::-1], truth.spacing)
    if image.header["qform_code"] > 0:
        tally.near(f"{name} nii qform", image.get_qform(), truth.affine, scale=100)
    slope, inter = image.dataobj.slope, image.dataobj.inter
    tally.near(f"{name} nii rescale", [slope, inter], truth.rescale)
    itk = sitk.ReadImage(str(out))
    tally.near(f"{name} nii spacing (SimpleITK)", itk.GetSpacing()[:3][::-1], truth.spacing)


def check_itk_output(tally, voxpatch, name, path, truth, work):
    """Checks NRRD and MetaImage outputs with SimpleITK."""
    for extension in ("nrrd", "mha", "mhd"):
        out = work / f"out.{extension}"
        problem = voxpatch.convert(path, out, "--overwrite")
        label = f"{name} -> {extension}"
        if truth.real.dtype.name == "float16":
            tally.check(f"{label} refused", "float32" in problem, problem or "it was written")
            continue
        if not tally.check(label, not problem, problem):
            continue
        found = Truth(out)
        expected = truth.real.astype("u1") if truth.real.dtype == bool else truth.real
        tally.voxels(f"{label} voxels", found.array, expected)
        tally.near(f"{label} affine", found.affine, truth.affine, scale=10)
        tally.near(f"{label} spacing", found.spacing, truth.spacing)


def halved(array, method):
    """Returns the next level of an array (c, z, y, x), computed with numpy."""
    factors = [1, *(min(n, 2) for n in array.shape[1:])]
    padding = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    there = np.pad(np.ones(array.shape, bool), padding)
    blocks = [n for pair in zip(there.shape, factors, strict=True) for n in (pair[0] // pair[1], pair[1])]
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def cells(values):
        values = np.pad(values, padding).reshape(blocks).transpose(order)
        return values.reshape(*values.shape[:4], -1)

    values, there = cells(array), there.reshape(blocks).transpose(order)
    there = there.reshape(values.shape)
    if method == "mean":
        mean = (values.astype("f8") * there).sum(-1) / there.sum(-1)
        return np.rint(mean).astype(array.dtype) if array.dtype.kind in "iu" else mean.astype(array.dtype)
    counts = ((values[..., :, None] == values[..., None, :]) & there[..., None, :]).sum(-1) * there
    most = counts == counts.max(-1, keepdims=True)
    return np.where(most, values, values.max()).min(-1).astype(array.dtype)


def check_pyramid(tally, voxpatch, work):
    """Checks coarser levels: their voxels with numpy, their positions with ome-zarr-models."""
    random = np.random.default_rng(7)
    for version in "23":
        for method, dtype in (("mean", "int16"), ("mean", "float32"), ("mode", "uint8")):
            array = random.integers(0, 5, (2, 37, 1, 50)).astype(dtype)
            affine = np.array([[0.5, 0, 0, 7], [0, 3, 0, 8], [0, 0, 2, 9], [0, 0, 0, 1.0]])
            source = work / "source.nii"
            nibabel.save(nibabel.Nifti1Image(array.transpose(3, 2, 1, 0), affine), source)
            out = work / "pyramid.zarr"
            label = f"pyramid {method} of {dtype} in zarr {version}"
            how = ("--pyramid", method, "--zarr", version, "--chunk", "8")
            problem = voxpatch.convert(source, out, "--overwrite", *how)
            if not tally.check(label, not problem, problem):
                continue
            model = open_ome_zarr(zarr.open_group(out, mode="r"), version={"2": "0.4", "3": "0.5"}[version])
            attributes = model.attributes if version == "2" else model.attributes.ome
            levels = attributes.multiscales[0].datasets
            tally.same(f"{label} levels", len(levels), 4)
            expected, spacing, origin = array, np.array([2.0, 3.0, 0.5]), np.array([9.0, 8.0, 7.0])
            for level in levels:
                found = np.asarray(zarr.open_array(out / level.path, mode="r")[...])
                tally.voxels(f"{label} level {level.path}", found, expected)
                scale, shift = level.coordinateTransformations
                tally.near(f"{label} level {level.path} scale", scale.scale[1:], spacing)
                tally.near(f"{label} level {level.path} translation", shift.translation[1:], origin)
                step = np.array([min(n, 2) for n in expected.shape[1:]])
                origin, spacing = origin + (step - 1) / 2 * spacing, spacing * step
                expected = halved(expected, method)


def arrays(folder):
    """Returns every Zarr array at or below a folder."""
    for path in sorted([*folder.rglob(".zarray"), *folder.rglob("zarr.json")]):
        if path.name == "zarr.json" and json.loads(path.read_text()).get("node_type") != "array":
            continue
        yield path.parent


def refusable(folder, array):
    """Returns the reason why voxpatch may refuse an array that zarr-python reads, or None."""
    if not 2 <= array.ndim <= 8:
        return f"{array.ndim} dimensions"
    if array.dtype.name not in DTYPES:
        return f"{array.dtype}"
    if 0 in array.shape:
        return "no voxels"
    path = folder / "zarr.json"
    text = (path if path.exists() else folder / ".zarray").read_text().lower()
    return next((codec for codec in REFUSED_CODECS if f'"{codec}' in text or f"numcodecs.{codec}" in text), "")


def check_zarr(tally, voxpatch, data, folder, work):
    name = str(folder.relative_to(data))
    try:
        array = zarr.open_array(folder, mode="r")
        voxels = np.asarray(array[...])
    except Exception as error:  # zarr-python lacks a codec, or the array is broken on purpose.
        info, _ = voxpatch.info(folder)
        print(f"skip {name}: zarr-python: {type(error).__name__} (voxpatch {'opens' if info else 'refuses'} it)")
        return
    info, problem = voxpatch.info(folder)
    reason = refusable(folder, array)
    if reason and info is None:
        tally.check(f"{name} refused ({reason})", bool(problem) and "panicked" not in problem, problem)
        return
    if not tally.check(f"{name} info", info is not None, problem):
        return
    voxels = voxels.reshape((1,) * (3 - voxels.ndim) + voxels.shape)
    voxels = voxels.reshape((math.prod(voxels.shape[:-3]),) + voxels.shape[-3:])
    inner, outer = ([1, 1, 1, *chunk][-3:] for chunk in (array.chunks, array.shards or array.chunks))
    tally.same(f"{name} format", info["format"], f"zarr-v{array.metadata.zarr_format}")
    tally.same(f"{name} shape", info["shape"], list(voxels.shape[1:]))
    tally.same(f"{name} channels", info["channels"], voxels.shape[0])
    tally.same(f"{name} dtype", info["dtype"], voxels.dtype.name)
    tally.same(f"{name} read_chunk", info["read_chunk"], list(inner))
    tally.same(f"{name} write_chunk", info["write_chunk"], list(outer))
    tally.same(f"{name} decoded_bytes", info["decoded_bytes"], voxels.nbytes)
    check_voxels(tally, voxpatch, name, folder, voxels, work)


def check_scale(tally, voxpatch, data, folder):
    """Checks the spacing of an OME-Zarr image's finest level, in mm."""
    group = zarr.open_group(folder, mode="r")
    attributes = dict(group.attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    transforms = image["datasets"][0]["coordinateTransformations"]
    scale = next(t["scale"] for t in transforms if t["type"] == "scale")[-3:]
    units = [UNITS.get(axis.get("unit", "millimeter"), 1.0) for axis in image["axes"]][-3:]
    info, problem = voxpatch.info(folder)
    name = str(folder.relative_to(data))
    if tally.check(f"{name} info", info is not None, problem):
        expected = [s * u for s, u in zip(scale, units, strict=True)]
        ok = np.allclose(info["spacing"], expected, rtol=1e-9)
        tally.check(f"{name} spacing", ok, f"{info['spacing']} instead of {expected}")


def check_zarr_output(tally, voxpatch, name, path, work):
    """Checks every codec, sharded and not, with zarr-python."""
    reference = work / "reference.npy"
    problem = voxpatch.convert(path, reference, "--overwrite")
    if not tally.check(f"{name} reference", not problem, problem):
        return
    expected = np.load(reference)
    source, _ = voxpatch.info(path)
    for version, codec, shard in STORES:
        out = work / "out.zarr"
        label = f"{name} -> zarr {version} {codec} shard {shard}"
        how = ("--zarr", version, "--chunk", 32, "--shard", shard, "--codec", codec)
        problem = voxpatch.convert(path, out, "--overwrite", *how)
        if not tally.check(label, not problem, problem):
            continue
        array = zarr.open_group(out, mode="r")["0"]
        tally.same(f"{label} version", array.metadata.zarr_format, int(version))
        sharded = getattr(array, "shards", None) is not None
        tally.check(f"{label} sharding", sharded == (shard != "none"), f"{sharded}")
        found = np.asarray(array[...])
        tally.voxels(f"{label} voxels", found, expected)
        info, problem = voxpatch.info(out)
        if tally.check(f"{label} info", info is not None, problem):
            tally.near(f"{label} affine", info["affine"], source["affine"])
            tally.near(f"{label} spacing", info["spacing"], source["spacing"])
        again = work / "again.npy"
        problem = voxpatch.convert(out, again, "--overwrite")
        if tally.check(f"{label} -> npy", not problem, problem):
            tally.voxels(f"{label} round trip", np.load(again), expected)


def check_dtypes(tally, voxpatch, work):
    """Checks all twelve voxel types in both byte orders and both array orders, through every output."""
    random = np.random.default_rng(20240)
    for name in DTYPES:
        for order in "<>":
            for memory in "CF":
                dtype = np.dtype(name).newbyteorder(order)
                raw = random.integers(0, 2 if name == "bool" else 256, (2, 9, 10, 11 * dtype.itemsize), "u1")
                array = np.asarray(raw.view(dtype), order=memory)
                source = work / "source.npy"
                np.save(source, array)
                label = f"npy {name} {order} {memory}"
                check_voxels(tally, voxpatch, label, source, array, work)
                if (order, memory) != ("<", "C"):
                    continue
                out = work / "out.nii"
                problem = voxpatch.convert(source, out, "--overwrite")
                if name == "float16":
                    tally.check(f"{label} -> nii refused", "float32 (--dtype)" in problem, problem or "it was written")
                    problem = voxpatch.convert(source, out, "--overwrite", "--dtype", "float32")
                    array = array.astype("f4")
                if tally.check(f"{label} -> nii", not problem, problem):
                    found = np.asarray(nibabel.load(out).dataobj)
                    found = found.reshape(found.shape[:3] + (-1,)).transpose(3, 2, 1, 0)
                    same = np.array_equal(found, array, equal_nan=name.startswith("float"))
                    tally.check(f"{label} nii voxels", same)
                check_zarr_output(tally, voxpatch, label, source, work)
                check_itk_output(tally, voxpatch, label, source, Truth(source), work)


def little(shape=(5, 6, 7), dtype="int16"):
    """Returns a small volume with distinct voxels."""
    return (np.arange(math.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


def check_file(tally, voxpatch, name, path, expected, work, affine=None):
    """Checks a synthetic file: its voxels (z, y, x), and its position if known."""
    info, problem = voxpatch.info(path)
    if not tally.check(f"{name} info", info is not None, problem):
        return
    if affine is not None:
        tally.near(f"{name} affine", info["affine"], affine)
    expected = expected.reshape((-1, *expected.shape[-3:]))
    check_voxels(tally, voxpatch, name, path, expected, work)


def check_refused(tally, voxpatch, name, path, *words):
    """Checks for an error message with these words."""
    info, problem = voxpatch.info(path)
    ok = info is None and "panicked" not in problem and all(word in problem for word in words)
    tally.check(f"{name} refused", ok, problem or "it was read")


def patch_bytes(source, target, *changes):
    """Writes a copy of a file with different bytes at some places."""
    data = bytearray(source.read_bytes())
    for offset, values in changes:
        data[offset : offset + len(values)] = values
    target.write_bytes(data)
    return target


def check_nifti_headers(tally, voxpatch, work):
    """Checks NIfTI and Analyze headers with errors that other programs accept."""
    array = little()
    place = np.array([[-0.8, 0.1, 0, 3], [0.1, 0.9, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(array.T, place)
    image.set_qform(place, 1, strip_shears=True)
    image.set_sform(image.get_qform(), 1)
    place = image.get_qform()
    good = work / "good.nii"
    nibabel.save(image, good)
    for name, *changes in [
        ("nothing",),
        ("bitpix 32", (72, b"\x20\0")),
        ("bitpix 0", (72, b"\0\0")),
        ("dim[4] = 0", (40, np.array([4, 7, 6, 5, 0, 0, 0, 0], "<i2").tobytes())),
        ("dim[4..] = 0 of 7", (40, np.array([7, 7, 6, 5, 0, 0, 0, 0], "<i2").tobytes())),
        ("dim[4..] = 1 of 7", (40, np.array([7, 7, 6, 5, 1, 1, 1, 1], "<i2").tobytes())),
        ("an sform of zeros", (280, bytes(48))),
    ]:
        check_file(tally, voxpatch, f"nifti with {name}", patch_bytes(good, work / "odd.nii", *changes), array, work, place)
    for name, image_of in [("analyze", nibabel.AnalyzeImage), ("spm99", nibabel.Spm99AnalyzeImage), ("spm2", nibabel.Spm2AnalyzeImage)]:
        affine = np.diag([-0.8, 0.9, 2.5, 1.0])
        path = work / f"{name}.img"
        nibabel.save(image_of(array.T, affine), path)
        if name != "analyze":
            check_refused(tally, voxpatch, f"{name} with a .mat", path, ".mat")
            path.with_suffix(".mat").unlink()
        seen = nibabel.load(path).affine
        for file in (path, path.with_suffix(".hdr")):
            check_file(tally, voxpatch, f"{name} {file.suffix}", file, array, work, None if name == "analyze" else seen)
    pointer = work / "pointer.nii"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    check_refused(tally, voxpatch, "git-lfs pointer", pointer, "git lfs pull")


def check_text_headers(tally, voxpatch, work):
    """Checks NRRD in many files, and MetaImage with thousands of fields."""
    array = little((40, 6, 7))
    slices = work / "slices"
    slices.mkdir()
    for z, values in enumerate(array):
        (slices / f"z{z:02}.raw").write_bytes(values.tobytes())
    for name, files in [
        ("LIST", "LIST\n" + "\n".join(f"z{z:02}.raw" for z in range(40))),
        ("LIST 2", "LIST 2\n" + "\n".join(f"z{z:02}.raw" for z in range(40))),
        ("pattern", "z%02d.raw 0 39 1"),
    ]:
        path = slices / "scan.nhdr"
        path.write_text(f"NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 40\nendian: little\nencoding: raw\ndata file: {files}\n")
        check_file(tally, voxpatch, f"nhdr {name}", path, array, work)
    for frames in (26, 1200):
        array = little((frames, 6, 7), "uint8")
        fields = ["ObjectType = Image", "NDims = 3", f"DimSize = 7 6 {frames}", "ElementType = MET_UCHAR",
                  "ElementSpacing = 0.2 0.2 1", "BinaryData = True", "BinaryDataByteOrderMSB = False", "CompressedData = False"]
        for n in range(frames):
            fields += [f"Seq_Frame{n:04}_ImageStatus = OK", f"Seq_Frame{n:04}_Timestamp = {n / 10:.3f}",
                       f"Seq_Frame{n:04}_ProbeToTrackerTransform = 1 0 0 {n} 0 1 0 0 0 0 1 0 0 0 0 1"]
        path = work / f"sequence{frames}.mha"
        path.write_bytes("\n".join([*fields, "ElementDataFile = LOCAL\n"]).encode() + array.tobytes())
        check_file(tally, voxpatch, f"MetaImage of {frames} frames", path, array, work)


def check_ome_versions(tally, voxpatch, work):
    """Checks axes, units and transformations of OME-Zarr 0.1 to 0.6, and pyramids with rounded-down sizes."""
    array = little((9, 11, 13), "uint16")
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = {"type": "scale", "scale": [3000.0, 2000.0, 1000.0]}
    shift = {"type": "translation", "translation": [30000.0, 20000.0, 10000.0]}
    turn = {"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]}
    ends = {"input": "0", "output": "world"}
    placed = np.array([[1, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    scaled = np.diag([1, 2, 3, 1.0])
    turned = np.array([[1, 0, 0, 0], [0, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])

    def image(version, steps, **more):
        if version == "0.6":
            more["coordinateSystems"] = [{"name": "world", "axes": axes}]
        elif version != "0.1":
            more["axes"] = axes
        return {"name": "x", "datasets": [{"path": "0", "coordinateTransformations": steps}], **more}

    def sequence(*steps):
        return [{"type": "sequence", **ends, "transformations": list(steps)}]

    for name, version, steps, affine in [
        ("0.4", "0.4", [scale, shift], placed),
        ("0.5", "0.5", [scale, shift], placed),
        ("0.6 scale", "0.6", [{**scale, **ends}], scaled),
        ("0.6 sequence", "0.6", sequence(scale, shift), placed),
        ("0.6 rotation", "0.6", sequence(scale, turn), turned),
        ("0.6 mapAxis", "0.6", sequence(scale, {"type": "mapAxis", "mapAxis": [1, 0, 2]}), turned),
        ("0.6 affine", "0.6", [{"type": "affine", "affine": [[3000.0, 0, 0, 30000], [0, 2000, 0, 20000], [0, 0, 1000, 10000]], **ends}], placed),
    ]:
        path = work / "ome.zarr"
        shutil.rmtree(path, ignore_errors=True)
        group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
        group.create_array("0", shape=array.shape, chunks=(4, 4, 4), dtype=array.dtype)[...] = array
        if version == "0.4":
            group.attrs["multiscales"] = [{"version": "0.4", **image(version, steps)}]
        else:
            group.attrs["ome"] = {"version": version, "multiscales": [image(version, steps)]}
        for place in (path, path / "0"):
            check_file(tally, voxpatch, f"OME-Zarr {name} {'array' if place.name == '0' else 'image'}", place, array, work, affine)
    group.attrs["ome"] = {"version": "0.6", "multiscales": [image("0.6", [{"type": "displacements", "path": "d", **ends}])]}
    check_refused(tally, voxpatch, "OME-Zarr 0.6 displacements", path, "displacements")

    # bioformats2raw: sizes are rounded down, and the levels only have a scale.
    path = work / "floored.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    levels = [array, array[:8:2, :10:2, :12:2], array[:8:4, :8:4, :12:4]]
    sets = []
    for n, level in enumerate(levels):
        group.create_array(str(n), shape=level.shape, chunks=(4, 4, 4), dtype=level.dtype)[...] = level
        sets.append({"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [v * 2**n for v in (3000.0, 2000.0, 1000.0)]}]})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": sets}]
    for n, level in enumerate(levels):
        name = f"floored pyramid level {n}"
        problem = voxpatch.convert(path, work / "level.npy", "--overwrite", "--level", n)
        if tally.check(name, not problem, problem):
            tally.voxels(f"{name} voxels", np.load(work / "level.npy"), level)


def check_json(tally, voxpatch, work):
    """Checks numbers outside of JSON, as zarr-python writes them, and fill values that are strings."""
    array = little((6, 7, 8), "float32")
    for version in (2, 3):
        path = work / f"nan{version}.zarr"
        store = zarr.create_array(path, shape=array.shape, chunks=(4, 4, 4), dtype="f4", zarr_format=version,
                                  fill_value=float("nan"), attributes={"low": float("nan"), "high": float("inf")})
        store[:4] = array[:4]
        check_file(tally, voxpatch, f"NaN in zarr {version}", path, np.asarray(store[...]), work)
    document = work / "nan2.zarr" / ".zarray"
    document.write_text(document.read_text().replace('"NaN"', "NaN"))
    check_file(tally, voxpatch, "a bare NaN as fill value", work / "nan2.zarr", np.asarray(store[...]), work)
    whole = little((6, 7, 8))
    path = work / "zero.zarr"
    store = zarr.create_array(path, shape=whole.shape, chunks=(4, 4, 4), dtype="i2", zarr_format=2, fill_value=0)
    store[...] = whole
    document = path / ".zarray"
    document.write_text(document.read_text().replace('"fill_value": 0', '"fill_value": "0"'))
    check_file(tally, voxpatch, 'fill_value "0"', path, whole, work)


#: Codecs that zarr-python gets from numcodecs: whether voxpatch reads them, as filters of v2 and as codecs of v3.
FILTERS = [
    ("bitround", True, "float32", numcodecs.BitRound(10), v3.BitRound(keepbits=10)),
    ("fixedscaleoffset", True, "float32", numcodecs.FixedScaleOffset(offset=-20, scale=2, dtype="f4", astype="i2"),
     v3.FixedScaleOffset(offset=-20, scale=2, dtype="f4", astype="i2")),
    ("shuffle", True, "int16", numcodecs.Shuffle(2), v3.Shuffle(elementsize=2)),
    ("bz2", True, "int16", numcodecs.BZ2(5), v3.BZ2(level=5)),
    ("zlib", True, "int16", numcodecs.Zlib(5), v3.Zlib(level=5)),
    ("adler32", True, "int16", numcodecs.Adler32(), v3.Adler32()),
    ("fletcher32", True, "int16", numcodecs.Fletcher32(), v3.Fletcher32()),
    ("delta", False, "int16", numcodecs.Delta("i2"), v3.Delta(dtype="i2")),
    ("quantize", True, "float32", numcodecs.Quantize(1, "f4"), v3.Quantize(digits=1, dtype="f4")),
    ("packbits", False, "bool", numcodecs.PackBits(), v3.PackBits()),
    ("lz4", False, "int16", numcodecs.LZ4(), v3.LZ4()),
    ("lzma", False, "int16", numcodecs.LZMA(), v3.LZMA()),
]


def check_filters(tally, voxpatch, work):
    """Checks that each codec of numcodecs is read as by zarr-python, or refused by its name."""
    for name, read, dtype, filter_, codec in FILTERS:
        array = (little((6, 7, 8)) % 2).astype(bool) if dtype == "bool" else little((6, 7, 8), dtype)
        for version in (2, 3):
            path = work / f"{name}{version}.zarr"
            if version == 2:
                store = zarr.create(store=str(path), shape=array.shape, chunks=(4, 4, 4), dtype=array.dtype,
                                    zarr_format=2, filters=[filter_], compressor=None)
            else:
                to_bytes = zarr.codecs.BytesCodec()
                codecs = [codec, to_bytes] if isinstance(codec, ArrayArrayCodec) else [to_bytes, codec]
                store = zarr.create(store=str(path), shape=array.shape, chunks=(4, 4, 4), dtype=array.dtype,
                                    zarr_format=3, codecs=codecs)
            store[...] = array
            label = f"numcodecs {name} in zarr {version}"
            if read:
                check_file(tally, voxpatch, label, path, np.asarray(store[...]), work)
            else:
                check_refused(tally, voxpatch, label, path, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxpatch", required=True, type=Path, help="the binary")
    parser.add_argument("--data", required=True, type=Path, help="the folder of real files")
    parser.add_argument("--only", default="", help="only files whose path contains this text; `made`: only synthetic files")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    voxpatch = Voxpatch(arguments.voxpatch.resolve())
    tally = Tally()
    inside = [p for p in sorted(data.rglob("*")) if ".zarr" not in str(p.relative_to(data).parent)]
    flat = [p for p in inside if p.is_file() and p.name.lower().endswith(FLAT) and arguments.only in str(p)]
    stores = [p for p in arrays(data) if arguments.only in str(p)]
    if not data.is_dir():
        print(f"{data} does not exist: only synthetic volumes are compared")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for path in flat:
            check_flat(tally, voxpatch, data, path, work)
        for path in stores:
            check_zarr(tally, voxpatch, data, path, work)
        for path in sorted(data.rglob("*.ome.zarr")):
            if arguments.only in str(path):
                check_scale(tally, voxpatch, data, path)
        through = [
            "nifti/anatomical.nii",
            "nifti/big.nii.gz",
            "nifti/example4d.nii.gz",
            "ct_lung_mha/3DCT_lung_baseline_small.mha",
            "ct_tooth_nhdr_bigendian/tooth.nhdr",
            "em_fib25_ome_zarr/em_fib25_s2_v05_sharded.ome.zarr",
            "zarr/zarr_java_v2_sample/bool",
        ]
        for name in through:
            if (data / name).exists() and arguments.only in name:
                check_zarr_output(tally, voxpatch, name, data / name, work)
        if not arguments.only:
            check_dtypes(tally, voxpatch, work)
            check_pyramid(tally, voxpatch, work)
        if arguments.only in ("", "made"):
            check_nifti_headers(tally, voxpatch, work)
            check_text_headers(tally, voxpatch, work)
            check_ome_versions(tally, voxpatch, work)
            check_json(tally, voxpatch, work)
            check_filters(tally, voxpatch, work)
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
