#!/usr/bin/env python3
"""Checks one CT and one label map through every format and every consumer: the same real value at the same place in the
world.

    PYTHONPATH=python value_paths.py --voxpatch PATH_TO_BINARY [--short] [--only TEXT] [--table FILE.csv]

The volumes are written by nibabel, SimpleITK, numpy, zarr-python, ngff-zarr and by voxpatch: with slope and
intercept, in millimeters and in microns, on an oblique and on an aligned grid. Each goes through `info`, `convert`
to every format, `sample`, `infer`, `preview`, and the package's `open`, `Queue`, `GridSampler`, `predict` and
`convert`. The outputs are read with nibabel, SimpleITK, numpy and zarr-python, and every voxel is looked up by its
place in the world. A path is one source, one consumer and one reader.

Prints wrong values and refusals, each with its reason, and a table; exit status 1 if a value is wrong, if a path is
refused that should not be, or the other way round. Without ngff-zarr its rows are skipped with a message.
"""

from __future__ import annotations

import argparse
import collections
import csv
import gzip
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import zarr

import voxpatch

try:
    import ngff_zarr
except ImportError:
    ngff_zarr = None

warnings.simplefilter("ignore")

Array = np.ndarray[Any, Any]

SHAPE = (24, 20, 28)
SPACING = (1.6, 0.9, 0.7)
#: Slope and intercept. All real values have an exact float32.
RESCALES = {"ct": {"plain": (1.0, 0.0), "hu": (1.0, -1024.0), "scaled": (0.5, -100.25)},
            "label": {"plain": (1.0, 0.0), "shifted": (1.0, -1.0), "doubled": (2.0, 0.0)}}
#: Units in headers, with their length in millimeters.
MICRON = 1e-3
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: The outputs of `convert` and `infer`, and the programs that read them.
TARGETS = {
    "npy": ("numpy",),
    "nii": ("nibabel", "SimpleITK"),
    "nii.gz": ("nibabel", "SimpleITK"),
    "mha": ("SimpleITK",),
    "mhd": ("SimpleITK",),
    "nrrd": ("SimpleITK",),
    "zarr": ("zarr-python",),
    "v2.zarr": ("zarr-python",),
}


def stored_ct(rescale: str) -> Array:
    """Returns the numbers in a CT's file; each voxel differs from its neighbors and from its mirror images."""
    z, y, x = np.indices(SHAPE)
    return ((z * 97 + y * 41 + x * 13 + z * y + (x == 3) * 900) % 2900).astype(np.int16)


def stored_label(rescale: str) -> Array:
    """Returns three blocks near one corner."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 2:8, 4:12] = 1
    label[9:13, 2:10, 4:9] = 2
    label[3:6, 8:11, 12:21] = 3
    return label + 1 if rescale == "shifted" else label


def oblique() -> Array:
    """Returns the matrix from voxel x, y, z to RAS mm: rotated about two axes, x to the left, y to the back."""
    a, b = np.deg2rad([17.0, -11.0])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1, -1, 1]) @ np.diag(SPACING[::-1])
    affine[:3, 3] = [31.0, 42.5, -77.25]
    return affine


def aligned() -> Array:
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = [1.4, 4.5, -3.2]
    return affine


@dataclass
class Source:
    """A file, with its content according to the program that wrote it."""

    name: str
    path: Path
    kind: str
    real: Array
    #: None if the format cannot store it.
    affine: Array | None
    #: A word of the error, if the file is refused or cannot be written to the following targets.
    refused: str = ""
    refused_targets: tuple[str, ...] = ()


@dataclass
class Found:
    """The content that a program reads."""

    real: Array
    affine: Array | None


@dataclass
class Outcome:
    source: Source
    consumer: str
    reader: str
    #: "right", "WRONG" or "refused".
    word: str
    detail: str = ""


# Reading, by others


def by_nibabel(path: Path) -> Found:
    image = nibabel.load(path)
    units = image.header.get_xyzt_units() if isinstance(image, nibabel.Nifti1Pair) else ("mm", "sec")
    unit = {"meter": 1e3, "micron": 1e-3}.get(units[0], 1.0)
    array = image.get_fdata(dtype=np.float64)
    return Found(array.reshape(array.shape[:3]).T, np.diag([unit, unit, unit, 1.0]) @ image.affine)


def by_itk(path: Path) -> Found:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Found(sitk.GetArrayFromImage(image).astype(np.float64), LPS @ affine)


def by_numpy(path: Path) -> Found:
    return Found(np.load(path).astype(np.float64).reshape(SHAPE), None)


def by_zarr(path: Path) -> Found:
    """Reads the array with zarr-python, and its position from the OME metadata, or from voxpatch's attribute if it is
    rotated."""
    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    level = image["datasets"][0]
    array = group[level["path"]]
    names = [axis["name"] for axis in image["axes"]]
    units = {"millimeter": 1.0, "micrometer": 1e-3}
    factor = [units[axis["unit"]] for axis in image["axes"] if axis["name"] in "zyx"]
    steps = {step["type"]: step[step["type"]] for step in level["coordinateTransformations"]}
    affine = np.eye(4)
    for n, name in enumerate("xyz"):
        at, unit = names.index(name), factor[[a for a in names if a in "zyx"].index(name)]
        affine[n, n] = steps["scale"][at] * unit
        affine[n, 3] = steps.get("translation", [0.0] * len(names))[at] * unit
    own = np.array(array.attrs["voxpatch"]["affine"])
    turned = not np.allclose(own[:3, :3], np.diag(np.diag(own[:3, :3]))) or (np.diag(own) < 0).any()
    if not turned and not np.allclose(own, affine, atol=1e-6):
        raise ValueError(f"OME-Zarr says {affine.tolist()}, our own attribute {own.tolist()}")
    return Found(np.asarray(array[...], np.float64).reshape(array.shape[-3:]), own if turned else affine)


READERS: dict[str, Callable[[Path], Found]] = {
    "nibabel": by_nibabel,
    "SimpleITK": by_itk,
    "numpy": by_numpy,
    "zarr-python": by_zarr,
}


def compare(source: Source, found: Found, start: tuple[int, int, int] = (0, 0, 0), shape: Any = SHAPE) -> str:
    """Returns the problem of a volume that should be a box of the source; empty if it is correct."""
    stop = [a + n for a, n in zip(start, shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    expected = source.real[box]
    if source.affine is None or found.affine is None:
        return same(found.real, expected)
    indices = np.indices(expected.shape).reshape(3, -1) + np.array(start)[:, None]
    world = source.affine @ np.vstack([indices[::-1], np.ones(indices.shape[1])])
    places = (np.linalg.inv(found.affine) @ world)[2::-1]
    nearest = np.rint(places).astype(int)
    if found.real.size != expected.size:
        return f"{found.real.shape} voxels instead of {expected.shape}"
    if np.abs(places - nearest).max() > 0.01:
        return f"voxels are {np.abs(places - nearest).max():.3g} voxels away from where they should be"
    if (nearest < 0).any() or (nearest >= np.array(found.real.shape)[:, None]).any():
        return f"voxels are outside: {nearest.min(1)} to {nearest.max(1)}"
    return same(found.real[tuple(nearest)], expected.ravel())


def same(found: Array, expected: Array) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape} instead of {expected.shape}"
    different = ~np.isclose(found, expected, rtol=1e-6, atol=1e-6)
    if different.any():
        at = np.unravel_index(np.argmax(different), found.shape)
        return f"{int(different.sum())} values differ, the first is {found[at]} instead of {expected[at]}"
    return ""


# Writing, by others


def patched(path: Path, slope: float, intercept: float) -> None:
    """Writes slope and intercept into a file that nibabel wrote with the stored numbers."""
    image = nibabel.load(path)
    header = image.header.copy()
    for key, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if key in header:
            header[key] = value
    name = path.with_suffix(".hdr") if path.suffix == ".img" else path
    packed = name.suffix == ".gz"
    data = bytearray(gzip.decompress(name.read_bytes()) if packed else name.read_bytes())
    block = header.binaryblock
    # The offset of the voxels is set on writing, and not kept in the loaded header.
    kept = np.frombuffer(bytes(data[: len(block)]), header.structarr.dtype)["vox_offset"]
    header["vox_offset"] = kept.item()
    data[: len(block)] = header.binaryblock
    name.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))


def nibabel_sources(folder: Path, kind: str) -> Iterator[Source]:
    stored_of = stored_ct if kind == "ct" else stored_label
    classes = {
        "nii": (nibabel.Nifti1Image, ".nii", oblique()),
        "nii.gz": (nibabel.Nifti1Image, ".nii.gz", oblique()),
        "hdr+img": (nibabel.Nifti1Pair, ".img", oblique()),
        "nifti2": (nibabel.Nifti2Image, ".nii", aligned()),
        "analyze": (nibabel.Spm2AnalyzeImage, ".img", aligned()),
        "analyze+mat": (nibabel.Spm2AnalyzeImage, ".img", aligned()),
    }
    for form, (image_of, end, place) in classes.items():
        for rescale, (slope, intercept) in RESCALES[kind].items():
            for unit in ("mm", "micron") if "analyze" not in form else ("mm",):
                if "analyze" in form and (intercept or (slope != 1 and "mat" in form)):
                    continue
                stored = stored_of(rescale)
                name = f"nibabel {form} {rescale} {unit}"
                path = folder / f"{kind} {name}".replace(" ", "_").replace("+", "_").replace("nii.gz", "gz")
                path = path.with_name(path.name + end)
                factor = MICRON if unit == "micron" else 1.0
                affine = np.diag([1 / factor] * 3 + [1.0]) @ place
                image = image_of(stored.T, affine)
                if "analyze" not in form:
                    image.header.set_xyzt_units(unit)
                    image.set_sform(affine, 1)
                    image.set_qform(affine, 1)
                nibabel.save(image, path)
                if form == "analyze":
                    path.with_suffix(".mat").unlink()
                patched(path, slope, intercept)
                seen = by_nibabel(path)
                assert np.array_equal(seen.real, stored * slope + intercept), name
                # SPM's Analyze header has its origin as a whole voxel.
                seen_place = seen.affine if form == "analyze" else place
                yield Source(name, path, kind, seen.real, seen_place, refused="mat" if "mat" in form else "")
    big = nibabel.Nifti1Image(stored_of("plain").T, oblique(), nibabel.Nifti1Header(endianness=">"))
    path = folder / f"{kind}_nibabel_big_endian.nii"
    nibabel.save(big, path)
    yield Source("nibabel nii big-endian", path, kind, stored_of("plain").astype(float), oblique())
    # With the slope that nibabel itself finds for fractions in int16.
    if kind == "ct":
        image = nibabel.Nifti1Image(stored_of("plain").T * 0.37 - 500, oblique())
        image.header.set_data_dtype(np.int16)
        path = folder / "ct_nibabel_own_slope.nii"
        nibabel.save(image, path)
        yield Source("nibabel nii own slope", path, kind, by_nibabel(path).real, oblique())


def itk_image(real: Array, affine: Array) -> Any:
    image = sitk.GetImageFromArray(real)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def itk_sources(folder: Path, kind: str) -> Iterator[Source]:
    """Writes files with SimpleITK, which does not store a slope: real values, and fractions in one more file of each
    format."""
    for end in ("nii", "nii.gz", "mha", "mhd", "nrrd", "nhdr"):
        for packed in (False, True) if end in ("mha", "mhd", "nrrd", "nhdr") else (False,):
            real = stored_ct("plain") - 1024 if kind == "ct" else stored_label("plain")
            path = folder / f"{kind}_itk{'_packed' if packed else ''}.{end}"
            sitk.WriteImage(itk_image(real, oblique()), str(path), packed)
            name = f"SimpleITK {end}{' compressed' if packed else ''}"
            yield Source(name, path, kind, real.astype(float), oblique())
        if kind == "ct":
            real = (stored_ct("plain") * 0.5 - 100.25).astype(np.float32)
            path = folder / f"ct_itk_float.{end}"
            sitk.WriteImage(itk_image(real, oblique()), str(path))
            yield Source(f"SimpleITK {end} float", path, kind, real.astype(float), oblique())


def text_sources(folder: Path, kind: str) -> Iterator[Source]:
    """Writes headers with units by hand, because none of the programs writes them."""
    real = (stored_ct("plain") - 1024).astype(np.int16) if kind == "ct" else stored_label("plain")
    kinds = {"int16": ("short", "MET_SHORT"), "uint8": ("uchar", "MET_UCHAR")}[real.dtype.name]
    for unit, word, factor in (("micron", "microns", 1e3), ("mm", "mm", 1.0), ("m", "m", 1e-3)):
        place = np.diag([factor] * 3 + [1.0]) @ oblique()
        columns = " ".join("(" + ",".join(repr(float(v)) for v in place[:3, a]) + ")" for a in range(3))
        origin = ",".join(repr(float(v)) for v in place[:3, 3])
        head = (
            f"NRRD0004\ntype: {kinds[0]}\ndimension: 3\nspace: right-anterior-superior\n"
            f"sizes: {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\nspace directions: {columns}\nspace origin: ({origin})\n"
            f'space units: "{word}" "{word}" "{word}"\nkinds: domain domain domain\nendian: little\nencoding: raw\n'
        )
        path = folder / f"{kind}_text_{unit}.nrrd"
        path.write_bytes(head.encode() + b"\n" + real.tobytes())
        yield Source(f"by hand nrrd {unit}", path, kind, real.astype(float), oblique())
        slices = folder / f"{kind}_slices_{unit}"
        slices.mkdir()
        for z in range(SHAPE[0]):
            (slices / f"z{z:03}.raw").write_bytes(real[z].tobytes())
        names = "\n".join(f"z{z:03}.raw" for z in range(SHAPE[0]))
        (slices / "scan.nhdr").write_text(f"{head}data file: LIST 2\n{names}\n")
        yield Source(f"by hand nhdr LIST {unit}", slices / "scan.nhdr", kind, real.astype(float), oblique())
        lps = LPS @ place
        spacing = np.linalg.norm(lps[:3, :3], axis=0)

        def line(values: Any) -> str:
            return " ".join(repr(float(v)) for v in np.ravel(values))

        head = (
            f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"CompressedData = False\nDistanceUnits = {'um' if unit == 'micron' else unit}\n"
            f"TransformMatrix = {line((lps[:3, :3] / spacing).T)}\nOffset = {line(lps[:3, 3])}\n"
            f"ElementSpacing = {line(spacing)}\nDimSize = {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\n"
            f"ElementType = {kinds[1]}\nElementDataFile = LOCAL\n"
        )
        path = folder / f"{kind}_text_{unit}.mha"
        path.write_bytes(head.encode() + real.tobytes())
        yield Source(f"by hand mha {unit}", path, kind, real.astype(float), oblique())
    path = folder / f"{kind}_text.raw"
    path.write_bytes(real.tobytes())
    facts = {"shape": SHAPE, "dtype": real.dtype.name, "spacing": SPACING}
    path.with_suffix(".json").write_text(json.dumps(facts))
    yield Source("by hand raw", path, kind, real.astype(float), np.diag([*SPACING[::-1], 1.0]))


def numpy_sources(folder: Path, kind: str) -> Iterator[Source]:
    real = (stored_ct("plain") - 1024).astype(np.int16) if kind == "ct" else stored_label("plain")
    for name, array in (("C", real), ("Fortran", np.asfortranarray(real)), ("big-endian", real.astype(">i2"))):
        path = folder / f"{kind}_numpy_{name}.npy"
        np.save(path, array)
        yield Source(f"numpy {name}", path, kind, real.astype(float), None)
    if kind == "ct":
        # Whole numbers that are exact in half floats.
        real = (stored_ct("plain") % 2000).astype(np.float16)
        path = folder / "ct_numpy_half.npy"
        np.save(path, real)
        flat = ("nii", "nii.gz", "mha", "mhd", "nrrd", "folder")
        yield Source("numpy half", path, kind, real.astype(float), None, "float32", flat)


def ome_image(version: str, unit: str, names: str, path: str) -> dict[str, Any]:
    """Returns an entry of `multiscales` whose world is `aligned()`, or `oblique()` with an affine of 0.6."""
    factor = MICRON if unit == "micrometer" else 1.0
    place = (oblique() if version == "0.6" else aligned()).copy()
    place[:3] /= factor
    types = {"c": "channel", "t": "time"}
    axes = [{"name": n, "type": types.get(n, "space"), **({"unit": unit} if n in "xyz" else {})} for n in names]
    if version == "0.6":
        # The world's axes are named in the same order.
        order = ["xyz".index(n) for n in names]
        matrix = place[:3][order][:, [*order, 3]]
        step = {"type": "affine", "affine": matrix.tolist(), "input": path, "output": "world"}
        systems = [{"name": "world", "axes": axes}]
        return {"name": "x", "coordinateSystems": systems, "datasets": [
            {"path": path, "coordinateTransformations": [{"type": "sequence", "input": path, "output": "world",
                                                          "transformations": [step]}]}]}
    spaced = {n: (place["xyz".index(n), "xyz".index(n)], place["xyz".index(n), 3]) for n in "xyz"}
    scale = [spaced.get(n, (1.0, 0.0))[0] for n in names]
    shift = [spaced.get(n, (1.0, 0.0))[1] for n in names]
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
    return {"name": "x", "axes": axes, "datasets": [{"path": path, "coordinateTransformations": steps}],
            **({"version": version} if version == "0.4" else {})}


def zarr_sources(folder: Path, kind: str) -> Iterator[Source]:
    real = (stored_ct("plain") - 1024).astype(np.int16) if kind == "ct" else stored_label("plain")
    for version, unit, names in (
        ("0.4", "millimeter", "zyx"), ("0.4", "micrometer", "zyx"), ("0.4", "micrometer", "xyz"),
        ("0.4", "micrometer", "tczyx"), ("0.5", "millimeter", "zyx"), ("0.5", "micrometer", "czyx"),
        ("0.5", "micrometer", "zcyx"), ("0.5", "millimeter", "zyxc"), ("0.6", "millimeter", "zyx"),
        ("0.6", "micrometer", "zyx"), ("0.6", "micrometer", "xyz"),
    ):
        path = folder / f"{kind}_zarr_{version}_{unit}_{names}.zarr"
        zarr_format = 2 if version == "0.4" else 3
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        spatial = [n for n in names if n in "zyx"]
        array = real.transpose([("z", "y", "x").index(n) for n in spatial])
        array = array.reshape([array.shape[spatial.index(n)] if n in "zyx" else 1 for n in names])
        chunks = tuple(min(7, n) for n in array.shape)
        stored = group.create_array("0", shape=array.shape, chunks=chunks, dtype=array.dtype)
        stored[...] = array
        image = ome_image(version, unit, names, "0")
        if version == "0.4":
            group.attrs["multiscales"] = [image]
        else:
            group.attrs["ome"] = {"version": version, "multiscales": [image]}
        place = oblique() if version == "0.6" else aligned()
        label = f"zarr-python OME {version} {names} {unit}"
        yield Source(label, path, kind, real.astype(float), place)
        if (version, unit, names) in (("0.4", "micrometer", "xyz"), ("0.5", "millimeter", "zyx")):
            yield Source(f"{label}, its array", path / "0", kind, real.astype(float), place)
    for zarr_format, codec in ((2, "v2"), (3, "v3"), (3, "v3 sharded")):
        path = folder / f"{kind}_zarr_plain_{codec.replace(' ', '_')}.zarr"
        how: dict[str, Any] = {"dimension_names": ["x", "y", "z"]} if zarr_format == 3 else {
            "attributes": {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}}
        how |= {"shards": (14, 10, 12)} if "sharded" in codec else {}
        stored = zarr.create_array(path, shape=real.T.shape, chunks=(7, 5, 6), dtype=real.dtype,
                                   zarr_format=zarr_format, **how)
        stored[...] = real.T
        yield Source(f"zarr-python array {codec} xyz", path, kind, real.astype(float), None)


def ngff_sources(folder: Path, kind: str) -> Iterator[Source]:
    if ngff_zarr is None:
        return
    real = (stored_ct("plain") - 1024).astype(np.int16) if kind == "ct" else stored_label("plain")
    for version in ("0.4", "0.5", "0.6"):
        for unit, factor in (("millimeter", 1.0), ("micrometer", MICRON)):
            path = folder / f"{kind}_ngff_{version}_{unit}.zarr"
            place = aligned()
            image = ngff_zarr.to_ngff_image(
                real, dims=("z", "y", "x"),
                scale={n: place[a, a] / factor for a, n in enumerate("xyz")},
                translation={n: place[a, 3] / factor for a, n in enumerate("xyz")},
                axes_units=dict.fromkeys("zyx", unit),
            )
            levels = ngff_zarr.to_multiscales(image, scale_factors=[], chunks=8)
            ngff_zarr.to_ngff_zarr(str(path), levels, version=version)
            yield Source(f"ngff-zarr {version} {unit}", path, kind, real.astype(float), place)


def our_sources(folder: Path, kind: str, binary: Path) -> Iterator[Source]:
    """Writes voxpatch's outputs of a file with slope and intercept, in microns, and of arrays."""
    first = next(s for s in nibabel_sources(folder, kind) if ("hu" in s.name or "doubled" in s.name) and "micron" in s.name)
    for end in TARGETS:
        path = folder / f"{kind}_ours.{end}"
        how = ["--zarr", "2"] if end.startswith("v2") else []
        subprocess.run([binary, "convert", first.path, path, *how], check=True, capture_output=True)
        yield Source(f"voxpatch convert {end}", path, kind, first.real, None if end == "npy" else first.affine)
    for end in TARGETS:
        path = folder / f"{kind}_ours_written.{end}"
        options = {"zarr": 2, "shard": None} if end.startswith("v2") else {}
        affine = None if end == "npy" else oblique()
        voxpatch.write(path, first.real.astype(np.int16), affine=affine, **options)
        yield Source(f"voxpatch write {end}", path, kind, first.real, affine)


# Consumers


@dataclass
class Bench:
    """The shared state of all consumers."""

    binary: Path
    work: Path

    def run(self, *arguments: Any) -> tuple[str, str]:
        """Runs a command. Returns its output, and its error."""
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return done.stdout, "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"

    def through(self, source: Source, label: Source) -> list[Outcome]:
        """Passes a source through every consumer, with a label map on its grid."""
        outcomes: list[Outcome] = []
        folder = Path(tempfile.mkdtemp(dir=self.work))

        def note(consumer: str, reader: str, check: Callable[[], str]) -> None:
            try:
                problem = check()
            except (Refused, voxpatch.VoxpatchError) as refusal:
                outcomes.append(Outcome(source, consumer, reader, "refused", str(refusal)))
                return
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(source, consumer, reader, "WRONG" if problem else "right", problem))

        def command(*arguments: Any) -> str:
            out, problem = self.run(*arguments)
            if problem:
                raise Refused(problem)
            return out

        def info() -> str:
            facts = json.loads(command("info", source.path, "--json"))
            place = source.affine if source.affine is not None else np.eye(4)
            if not np.allclose(facts["affine"], place, atol=1e-4):
                return f"affine {facts['affine']}"
            if facts["shape"] != list(SHAPE):
                return f"shape {facts['shape']}"
            spacing = np.linalg.norm(place[:3, :3], axis=0)[::-1]
            return "" if np.allclose(facts["spacing"], spacing, atol=1e-5) else f"spacing {facts['spacing']}"

        note("info", "--json", info)

        def written(consumer: str, end: str, arguments: tuple[Any, ...], expected: Source | None = None) -> None:
            out = folder / f"{consumer.split()[0]}.{end}"
            more = ("--zarr", "2") if end.startswith("v2") else ()
            problem = ""
            try:
                command(*arguments[:2], out, *arguments[2:], *more)
            except Refused as refusal:
                problem = str(refusal)

            for reader in TARGETS[end]:
                def check(reader: str = reader) -> str:
                    if problem:
                        raise Refused(problem)
                    return compare(expected or source, READERS[reader](out))

                note(f"{consumer} {end}", reader, check)

        for end in TARGETS:
            written("convert", end, ("convert", source.path))
        model = ("--patch-size", "16", "--overlap", "8", "--blend", "crop")
        for end in TARGETS:
            written("infer", end, ("infer", source.path, *model))
        cut = float(np.median(source.real)) if source.kind == "ct" else 1.0
        above = Source(source.name, source.path, source.kind, (source.real >= cut).astype(float), source.affine)
        classes = (*model, "--model", f"threshold:{cut}", "--reduce", "argmax")
        for end in ("nii.gz", "zarr"):
            written("infer-threshold", end, ("infer", source.path, *classes), above)
        masked = self.masked(source, label)
        if masked is not None:
            patches = ("--patch-size", "4", "--overlap", "0", "--mask", label.path, "--fill", "-2000")
            written("infer-mask", "nii", ("infer", source.path, *patches, *together(source, label)), masked)
        note("preview", "SimpleITK", lambda: self.preview(source, label, folder, command))

        places = folder / "places.csv"
        draw = ("sample", source.path, "--patch-size", "6", "--samples-per-subject", "4", "--seed", "5")

        def locations() -> list[list[int]]:
            with places.open() as lines:
                rows = list(csv.reader(lines))
            return [[int(v) for v in row] for row in rows if row and not row[0].startswith("z")]

        def patches(values: Array) -> str:
            for patch, at in zip(values, locations(), strict=True):
                box = tuple(slice(a, b) for a, b in zip(at[:3], at[3:], strict=True))
                problem = same(np.asarray(patch, float).reshape(6, 6, 6), source.real[box])
                if problem:
                    return problem
            return ""

        def sampled_npy() -> str:
            command(*draw, "--out", folder / "p.npy", "--locations", places, "--overwrite")
            return patches(np.load(folder / "p.npy"))

        def sampled_zarr() -> str:
            command(*draw, "--out", folder / "p.zarr", "--locations", places, "--overwrite")
            return patches(np.asarray(zarr.open_group(folder / "p.zarr", mode="r")["0"][...]))

        def sampled_folder() -> str:
            command(*draw, "--out", str(folder / "patches") + "/", "--locations", places, "--overwrite")
            files = sorted((folder / "patches").glob("*.nii"))
            if len(files) != 4:
                return f"{len(files)} files"
            for file, at in zip(files, locations(), strict=True):
                problem = compare(source, by_nibabel(file), tuple(at[:3]), (6, 6, 6))
                problem = problem or compare(source, by_itk(file), tuple(at[:3]), (6, 6, 6))
                if problem:
                    return problem
            return ""

        def sampled_labels() -> str:
            command(*draw, "--labels", label.path, *together(source, label), "--locations", places,
                    "--out", folder / "l.npy", "--overwrite")
            for at in locations():
                center = tuple(a + 3 for a in at[:3])
                if at_place(label, source, center) == 0:
                    return f"the center {center} has no label"
            return patches(np.load(folder / "l.npy"))

        note("sample npy", "numpy", sampled_npy)
        note("sample zarr", "zarr-python", sampled_zarr)
        note("sample folder", "nibabel, SimpleITK", sampled_folder)
        note("sample --labels", "numpy", sampled_labels)
        self.in_python(source, label, folder, note)
        return outcomes

    def masked(self, source: Source, label: Source) -> Source | None:
        """Returns the expected prediction in patches of 4 voxels, without those that are only background."""
        if source.kind != "ct":
            return None
        indices = np.indices(SHAPE).reshape(3, -1)
        label_here = np.array([at_place(label, source, tuple(i)) for i in indices.T]).reshape(SHAPE)
        blocks = label_here.reshape(6, 4, 5, 4, 7, 4).max(axis=(1, 3, 5)) != 0
        kept = blocks.repeat(4, 0).repeat(4, 1).repeat(4, 2)
        return Source(source.name, source.path, "ct", np.where(kept, source.real, -2000.0), source.affine)

    def preview(self, source: Source, label: Source, folder: Path, command: Callable[..., str]) -> str:
        """Checks the axial slice, painted from the values and the affine, and then with the label map as an overlay."""
        low, high = float(source.real.min()), float(source.real.max())
        out, over = folder / "a.png", folder / "b.png"
        window = f"--window={low},{high}"
        command("preview", source.path, out, window)
        at = "--at=" + ",".join(str(n // 2) for n in SHAPE)
        command("preview", source.path, over, window, at, "--overlay", label.path, *together(source, label))
        plain, laid = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int) for path in (out, over))
        affine = source.affine if source.affine is not None else np.eye(4)
        orientation = nibabel.io_orientation(affine)
        up = np.argsort(orientation[:, 0])  # voxel axis (x, y, z) along R, A, S
        if up.tolist() != [0, 1, 2]:
            return f"axes {up}"
        size = panel(np.linalg.norm(affine[:3, :3], axis=0)[::-1])
        middle = source.real[SHAPE[0] // 2]
        gray = spread(spread(middle, size[1], 0), size[2], 1)
        labels = np.array([[at_place(label, source, (SHAPE[0] // 2, y, x)) for x in range(SHAPE[2])]
                           for y in range(SHAPE[1])])
        rows = ((2 * np.arange(size[1]) + 1) * SHAPE[1]) // (2 * size[1])
        columns = ((2 * np.arange(size[2]) + 1) * SHAPE[2]) // (2 * size[2])
        covered = labels[rows][:, columns] != 0
        if orientation[1, 1] > 0:
            gray, covered = gray[::-1], covered[::-1]
        if orientation[0, 1] > 0:
            gray, covered = gray[:, ::-1], covered[:, ::-1]
        top = (plain.shape[0] - size[1]) // 2
        axial = plain[top : top + size[1], : size[2]]
        expected = np.rint((gray - low) / (high - low) * 255)
        off = (np.abs(axial - expected[..., None]).max(-1) > 2).mean()
        if off > 0.005:  # The letter on the left.
            return f"{off:.1%} of the axial slice's pixels have another gray"
        changed = (axial != laid[top : top + size[1], : size[2]]).any(-1)
        wrong = (changed != covered).mean()
        return f"{wrong:.1%} of the overlay's pixels are wrong" if wrong > 0.005 else ""

    def in_python(self, source: Source, label: Source, folder: Path, note: Callable[..., None]) -> None:
        path = source.path
        near: dict[str, Any] = {"same_grid": True} if source.affine is None or label.affine is None else {}

        def opened() -> str:
            volume = voxpatch.open(path)
            affine = None if source.affine is None else volume.affine
            return compare(source, Found(volume[0].astype(float), affine))

        def boxed() -> str:
            volume = voxpatch.open(path, box=((2, 20), (3, 15), (5, 28)))
            affine = None if source.affine is None else volume.affine
            return compare(source, Found(volume[0].astype(float), affine), (2, 3, 5), (18, 12, 23))

        def box_of(at: Any) -> tuple[slice, ...]:
            return tuple(slice(int(a), int(b)) for a, b in zip(at[:3], at[3:], strict=True))

        def labels_at(at: Any) -> Array:
            box = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(at[:3], at[3:], strict=True)], indexing="ij"))
            places = box.reshape(3, -1).T
            return np.array([at_place(label, source, tuple(p)) for p in places]).reshape(box.shape[1:])

        def queued() -> str:
            subject = voxpatch.Subject(image=path, label=label.path, **near)
            queue = voxpatch.Queue([subject], voxpatch.LabelSampler(5, "label"), samples_per_subject=6, batch_size=2, seed=3)
            seen = 0
            for batch in queue:
                for image, mask, at in zip(batch["image"], batch["label"], batch["location"], strict=True):
                    problem = same(np.asarray(image[0], float), source.real[box_of(at)])
                    problem = problem or same(np.asarray(mask[0], float), labels_at(at))
                    if problem:
                        return problem
                    seen += 1
            return "" if seen == 6 else f"{seen} patches"

        def gridded() -> str:
            subject = voxpatch.Subject(image=path, label=label.path, **near)
            grid = voxpatch.GridSampler(subject, patch_size=(12, 10, 14), overlap=2)
            for item in grid:
                at = item["location"]
                problem = same(np.asarray(item["image"][0], float), source.real[box_of(at)])
                problem = problem or same(np.asarray(item["label"][0], float), labels_at(at))
                if problem:
                    return problem
            return "" if len(grid) >= 8 else f"{len(grid)} patches"

        def predicted() -> str:
            out = voxpatch.predict(lambda batch: batch, path, None, 16, 8, blend="crop")
            return same(np.asarray(out[0], float), source.real)

        note("open", "numpy", opened)
        note("open box", "numpy", boxed)
        note("Queue", "numpy", queued)
        note("GridSampler", "numpy", gridded)
        note("predict", "numpy", predicted)
        for end in ("nii.gz", "zarr", "mha"):
            for reader in TARGETS[end]:
                out = folder / f"python.{end}"

                def stored(out: Path = out, reader: str = reader) -> str:
                    voxpatch.predict(lambda batch: batch, path, out, 16, 8, blend="crop", overwrite=True)
                    return compare(source, READERS[reader](out))

                note(f"predict {end}", reader, stored)
        for end in TARGETS:
            def copied(end: str = end) -> str:
                out = folder / f"copied.{end}"
                options = {"zarr": 2, "shard": None} if end.startswith("v2") else {}
                voxpatch.convert(path, out, overwrite=True, **options)
                return compare(source, READERS[TARGETS[end][0]](out))

            note(f"voxpatch.convert {end}", TARGETS[end][0], copied)


class Refused(Exception):
    """A path that ends in an error message."""


def together(source: Source, label: Source) -> tuple[str, ...]:
    return ("--same-grid",) if source.affine is None or label.affine is None else ()


def at_place(label: Source, source: Source, at: tuple[int, ...]) -> float:
    """Returns the label at the world position of a voxel of a different volume."""
    if label.affine is None or source.affine is None:
        return float(label.real[at])
    world = source.affine @ [*at[::-1], 1.0]
    place = np.rint((np.linalg.inv(label.affine) @ world)[2::-1]).astype(int)
    inside = all(0 <= p < n for p, n in zip(place, SHAPE, strict=True))
    return float(label.real[tuple(place)]) if inside else 0.0


def panel(spacing: Array) -> list[int]:
    """Returns the pixels along z, y, x of a preview."""
    extent = np.array(SHAPE) * spacing
    pixels = np.clip(extent.max() / spacing.min(), 512, 768)
    return [int(np.floor(n / extent.max() * pixels + 0.5)) for n in extent]


def spread(values: Array, pixels: int, axis: int) -> Array:
    """Interpolates linearly between voxel centers."""
    n = values.shape[axis]
    at = np.clip((np.arange(pixels) + 0.5) * n / pixels - 0.5, 0, n - 1)
    return np.apply_along_axis(lambda line: np.interp(at, np.arange(n), line), axis, values)


def is_expected(outcome: Outcome) -> bool:
    """Returns True if a path gives the right values, or is refused for the right reason where it should be."""
    word, targets = outcome.source.refused, outcome.source.refused_targets
    # Targets matter to consumers that keep the type of the source; the others write the model's type.
    keeps_type = outcome.consumer.split()[0] not in ("infer-threshold", "predict")
    if word and (not targets or (keeps_type and outcome.consumer.split()[-1] in targets)):
        return outcome.word == "refused" and word in outcome.detail
    return outcome.word == "right"


def short(sources: list[Source]) -> list[Source]:
    """Selects one CT for each program and format, and one label map for each program."""
    kept, seen = [], set()
    for source in sources:
        words = source.name.split()
        key = (source.kind, words[0])
        if source.kind == "ct":
            key += (words[1], "xyz" in words, "0.6" in words)
        if key not in seen:
            seen.add(key)
            kept.append(source)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxpatch", required=True, type=Path, help="the binary")
    parser.add_argument("--short", action="store_true", help="one CT for each program and format, one label map for each program")
    parser.add_argument("--only", default="", help="only sources whose name contains this text")
    parser.add_argument("--table", type=Path, help="a CSV file with a row for each path")
    settings = parser.parse_args()
    binary = settings.voxpatch.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources: list[Source] = []
        for kind in ("ct", "label"):
            (folder / kind).mkdir()
            for makers in (nibabel_sources, itk_sources, text_sources, numpy_sources, zarr_sources, ngff_sources):
                sources += makers(folder / kind, kind)
            (folder / kind / "first").mkdir()
            sources += our_sources(folder / kind / "first", kind, binary)
        if ngff_zarr is None:
            print("ngff-zarr is not installed: nothing is written by it")
        labels = [source for source in sources if source.kind == "label"]
        if settings.short:
            sources = short(sources)
        sources = [source for source in sources if settings.only in source.name]
        bench = Bench(binary, folder)
        # Each source with a label map of a different program on its grid.
        pairs = []
        for n, source in enumerate(sources):
            grid = [label for label in labels if on_one_grid(source, label) and not label.refused]
            pairs.append((source, grid[n * 7 % len(grid)]))
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda pair: bench.through(*pair), pairs))
    outcomes = [outcome for some in found for outcome in some]
    return report(outcomes, settings.table)


def on_one_grid(source: Source, label: Source) -> bool:
    if source.affine is None or label.affine is None:
        return source.affine is None and label.affine is None
    return np.allclose(source.affine, label.affine, atol=1e-3)


def report(outcomes: list[Outcome], table: Path | None) -> int:
    bad = 0
    refusals: collections.Counter[tuple[str, str]] = collections.Counter()
    for outcome in outcomes:
        if not is_expected(outcome):
            bad += 1
            print(f"{outcome.word} {outcome.source.kind}: {outcome.source.name} -> {outcome.consumer}, "
                  f"read by {outcome.reader}: {outcome.detail}")
        elif outcome.word == "refused":
            refusals[outcome.source.name, outcome.detail.split(": ")[-1]] += 1
    for (source, reason), count in refusals.items():
        print(f"refused, {count} paths of {source}: {reason}")
    if table:
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["source", "kind", "consumer", "reader", "outcome", "detail"])
            for o in outcomes:
                rows.writerow([o.source.name, o.source.kind, o.consumer, o.reader, o.word, o.detail])
    writers = sorted({o.source.name.split()[0] for o in outcomes})
    consumers = list(dict.fromkeys(o.consumer.split()[0] for o in outcomes))
    counts = collections.Counter((o.consumer.split()[0], o.source.name.split()[0]) for o in outcomes if o.word == "right")
    print("right paths".ljust(18), *(w.rjust(12) for w in writers))
    for consumer in consumers:
        print(consumer.ljust(18), *(str(counts[consumer, w]).rjust(12) for w in writers))
    words = collections.Counter(o.word for o in outcomes)
    print(f"{len(outcomes)} paths: {words['right']} right, {words['WRONG']} wrong, {words['refused']} refused")
    return 1 if bad or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
