"""The volumes of the benchmark: one scan in every kind of storage, created once.

The scan is the chest CT of `voxpatch demo`. `planes` is how many of its planes a folder's volumes have.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import ours

CLASSES = 4
THRESHOLDS = "-500,-100,200"


@dataclass(frozen=True)
class Stored:
    """A kind of storage: voxel type, and for Zarr the voxels of a chunk along each axis and the codec."""

    name: str
    dtype: str
    flags: tuple = ()
    chunk: int | None = None
    codec: str = "none"

    @property
    def voxel_bytes(self):
        return {"float32": 4, "int16": 2, "uint8": 1}[self.dtype]

    @property
    def says(self):
        return f"{self.name} ({self.dtype})"


def zarr(name, dtype, chunk, shard, codec):
    flags = ("--chunk", chunk, "--shard", shard, "--codec", codec)
    return Stored(name, dtype, flags, chunk, codec)


STORES = {
    store.name: store
    for store in [
        Stored("f32.npy", "float32"),
        Stored("i16.npy", "int16"),
        Stored("f32.nii", "float32"),
        Stored("i16.nii", "int16"),
        zarr("i16-blosc-zstd.zarr", "int16", 64, "none", "blosc-zstd"),
        zarr("i16-zstd.zarr", "int16", 64, "none", "zstd"),
        zarr("i16-shard256-32.zarr", "int16", 32, 256, "zstd"),
        zarr("i16-shard256-64.zarr", "int16", 64, 256, "zstd"),
        zarr("f32-blosc-lz4.zarr", "float32", 64, "none", "blosc-lz4"),
        zarr("f32-none.zarr", "float32", 64, "none", "none"),
    ]
}
LABELS = zarr("labels.zarr", "uint8", 64, "none", "zstd")


class Volumes:
    def __init__(self, folder, shape, binary, say):
        self.folder, self.shape, self.binary, self.say = folder, shape, binary, say
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name):
        return self.folder / name

    def _voxpatch(self, name, *command):
        self.say(f"making {name}")
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _scan(self):
        scan = self.path("ct.zarr")
        if not scan.exists():
            demo = self.path("demo")
            shutil.rmtree(demo, ignore_errors=True)
            self._voxpatch("ct.zarr", *ours.demo(self.binary, demo, self.shape))
            (demo / "ct.zarr").rename(scan)
            shutil.rmtree(demo)
        return scan

    def need(self, name):
        """Returns the path of a volume, which is created if it does not exist."""
        path = self.path(name)
        if path.exists():
            return path
        scan = self._scan()
        if name in STORES:
            store = STORES[name]
            self._voxpatch(name, *ours.convert(self.binary, scan, path, "--dtype", store.dtype, *store.flags))
        elif name == "labels.zarr":
            flags = ("--model", f"threshold:{THRESHOLDS}", "--reduce", "argmax", "--blend", "crop", *LABELS.flags)
            self._voxpatch(name, *ours.infer(self.binary, scan, path, min(128, *self.shape), 0, *flags))
        elif name == "labels.npy":
            self._voxpatch(name, *ours.convert(self.binary, self.need("labels.zarr"), path))
        elif name == "i16.nii.gz":
            self.say(f"making {name}")
            half = path.with_suffix(".incomplete")
            with open(self.need("i16.nii"), "rb") as source, gzip.open(half, "wb", compresslevel=1) as target:
                shutil.copyfileobj(source, target, 8 << 20)
            half.rename(path)
        elif name == "i16.b2nd":
            self.say(f"making {name}")
            program = (
                "import blosc2, numpy, sys; voxels = numpy.load(sys.argv[1], mmap_mode='r');"
                "blosc2.asarray(voxels, urlpath=sys.argv[2], mode='w', chunks=tuple(min(64, n) for n in voxels.shape),"
                "cparams={'codec': blosc2.Codec.ZSTD, 'clevel': 5})"
            )
            subprocess.run([sys.executable, "-c", program, self.need("i16.npy"), path], check=True, capture_output=True)
        else:
            raise KeyError(name)
        return path

    def taller(self, factor):
        """The scan in chunks of 64 with `factor` times its planes. Taller ones repeat the scan's whole chunk rows
        as hard links: the same work to decode, without the disk space; their pages are shared in the page cache."""
        source = self.need("i16-blosc-zstd.zarr")
        if factor == 1:
            return source, self.shape[0]
        planes = max(1, round(self.shape[0] * factor))
        path = self.path(f"i16-blosc-zstd-{planes}.zarr")
        if not path.exists():
            half = path.with_suffix(".incomplete")
            shutil.rmtree(half, ignore_errors=True)
            (half / "0").mkdir(parents=True)
            shutil.copy(source / "zarr.json", half / "zarr.json")
            array = json.loads((source / "0" / "zarr.json").read_text())
            array["shape"][-3] = planes
            (half / "0" / "zarr.json").write_text(json.dumps(array))
            whole = max(1, self.shape[0] // 64)
            lead = ["0"] * (len(array["shape"]) - 3)
            for row in range(-(-planes // 64)):
                there = source.joinpath("0", "c", *lead, str(row % whole))
                here = half.joinpath("0", "c", *lead, str(row))
                shutil.copytree(there, here, copy_function=os.link)
            half.rename(path)
        return path, planes


def files(path):
    path = Path(path)
    return [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]


def warm(path):
    """Brings a volume into the page cache."""
    for file in files(path):
        with open(file, "rb", buffering=0) as opened:
            while opened.read(8 << 20):
                pass


def drop(path):
    """Asks the kernel to drop a volume's pages from the page cache. It drops those that are written and not mapped."""
    for file in files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def stored_bytes(path):
    return sum(file.stat().st_size for file in files(path))
