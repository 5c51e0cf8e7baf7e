#!/usr/bin/env python3
"""Random patches per second from TIFF, HDF5 and zipped Zarr, compared with tifffile, h5py and zarr-python.

A generated int16 volume that compresses about two times is written by the peers in their own formats:

- tiled OME-TIFF, tiles of 256 x 256, zlib: tifffile's `aszarr` through zarr;
- HDF5 in chunks of 64^3, gzip: h5py, with a file of its own for each thread;
- zipped Zarr v3 in chunks of 64^3, zstd: zarr-python;
- an uncompressed TIFF stack whose pages follow each other, next to the same voxels in `.npy`: both by voxpatch.

The rows `voxpatch` are `voxpatch.open(path)[...]`, which decodes the chunks of each patch anew. So do the peers, except h5py
with its default cache; `h5py, no cache` is equal work. The rows `Queue` are what training takes, with `--memory` MiB for
waiting patches and decoded chunks, which are reused if they fit.

Each side with each number of threads is a process of its own, pinned to as many cores as it has threads, so that a library
that starts threads by itself has no more. One thread is on the first of the two cores. Voxels are compared first. Then the
sides alternate in one run, with the same places in every round, and the table has the medians. Files are in the page cache.

    pip install tifffile imagecodecs h5py zarr
    python scripts/bench_formats.py [--size 256] [--patch 96] [--count 40] [--rounds 5] [--memory 32] [--cores 0,1]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Place = tuple[slice, slice, slice]
Reader = Callable[[Place], np.ndarray]
CHUNK = (64, 64, 64)

# The case, and its sides: a name, how it reads, and the file. The first is the one that the others are compared with.
CASES = [
    (
        "OME-TIFF, tiles, zlib",
        [("voxpatch", "ours", "a.ome.tif"), ("Queue", "queue", "a.ome.tif"), ("tifffile", "tifffile", "a.ome.tif")],
    ),
    (
        "HDF5, 64^3, gzip",
        [
            ("voxpatch", "ours", "a.h5"),
            ("Queue", "queue", "a.h5"),
            ("h5py, no cache", "h5py-anew", "a.h5"),
            ("h5py", "h5py", "a.h5"),
        ],
    ),
    (
        "zipped Zarr v3, 64^3, zstd",
        [("voxpatch", "ours", "a.zarr.zip"), ("Queue", "queue", "a.zarr.zip"), ("zarr-python", "zarr", "a.zarr.zip")],
    ),
    ("TIFF stack, not compressed", [("voxpatch", "ours", "flat.tif"), ("voxpatch, .npy", "ours", "a.npy")]),
]


def make(folder: pathlib.Path, size: int) -> None:
    """Write a smooth volume with noise in all formats."""
    import h5py
    import tifffile
    import zarr

    shape = (size, 2 * size, 2 * size)
    random = np.random.default_rng(0)
    waves = [np.sin(np.arange(n) / length) * 30 for n, length in zip(shape, (20, 31, 17), strict=True)]
    volume = np.empty(shape, np.int16)
    for z in range(size):
        page = waves[0][z] + waves[1][:, None] + waves[2][None, :]
        volume[z] = (page + random.integers(-8, 9, size=page.shape)).astype(np.int16)
    np.save(folder / "a.npy", volume)
    tifffile.imwrite(folder / "flat.tif", volume, photometric="minisblack")
    tifffile.imwrite(
        folder / "a.ome.tif", volume, ome=True, photometric="minisblack", metadata={"axes": "ZYX"},
        tile=(256, 256), compression="zlib",
    )
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", data=volume, chunks=CHUNK, compression="gzip")
    with zarr.storage.ZipStore(folder / "a.zarr.zip", mode="w") as store:
        zarr.create_array(store, data=volume, chunks=CHUNK)


def readers(kind: str, path: pathlib.Path, threads: int) -> list[Reader]:
    """Open a file for each thread, or once where a library is made for that."""
    if kind == "ours":
        import voxpatch

        volume = voxpatch.open(path)
        return [lambda place: np.asarray(volume[place] if volume.ndim == 3 else volume[(0, *place)])] * threads
    if kind.startswith("h5py"):
        import h5py

        cache = {} if kind == "h5py" else {"rdcc_nbytes": 0}
        sets = [h5py.File(path, **cache)["data"] for _ in range(threads)]
        return [lambda place, data=data: data[place] for data in sets]
    import zarr

    zarr.config.set({"threading.max_workers": threads})
    if kind == "zarr":
        array = zarr.open_array(zarr.storage.ZipStore(path, mode="r"), mode="r")
        return [lambda place: array[place]] * threads
    import tifffile

    arrays = [zarr.open(tifffile.imread(path, aszarr=True), mode="r") for _ in range(threads)]
    return [lambda place, array=array: array[place] for array in arrays]


def places(shape: tuple[int, ...], patch: int, count: int, seed: int) -> list[Place]:
    random = np.random.default_rng(seed)
    starts = random.integers(0, [n - patch + 1 for n in shape], size=(count, 3))
    return [tuple(slice(int(n), int(n) + patch) for n in start) for start in starts]


def rounds_of(kind: str, path: pathlib.Path, threads: int, options: argparse.Namespace) -> Iterator[int]:
    """Compare the voxels, then read a round of patches each time; yield how many they were."""
    expected = np.load(path.parent / "a.npy", mmap_mode="r")
    if kind == "queue":
        import voxpatch

        queue = voxpatch.Queue(
            [voxpatch.Subject(ct=path)], voxpatch.UniformSampler(options.patch), options.count,
            threads=threads, max_length=8, memory=options.memory << 20,
        )
        for n, sample in enumerate(queue):
            z, y, x, z_end, y_end, x_end = (int(n) for n in sample["location"])
            if n < 8 and not np.array_equal(np.asarray(sample["ct"])[0], expected[z:z_end, y:y_end, x:x_end]):
                raise SystemExit(f"Queue and numpy have different voxels in {path.name}")
        yield 0
        while True:
            yield sum(1 for _ in queue)
    own = readers(kind, path, threads)
    for reader, place in zip(itertools.cycle(own), places(expected.shape, options.patch, 8, 1), strict=False):
        if not np.array_equal(reader(place), expected[place]):
            raise SystemExit(f"{kind} and numpy have different voxels in {path.name} at {place}")
    yield 0

    def work(reader: Reader, part: list[Place]) -> int:
        return sum(reader(place).shape[0] == options.patch for place in part)

    with ThreadPoolExecutor(threads) as pool:
        for seed in itertools.count(2):
            every = places(expected.shape, options.patch, options.count, seed)
            parts = [every[n::threads] for n in range(threads)]
            yield work(own[0], every) if threads == 1 else sum(pool.map(work, own, parts))


def serve(pipe: Any, cores: list[int], kind: str, path: pathlib.Path, threads: int, options: argparse.Namespace) -> None:
    """Run a round for each message, and answer with patches per second."""
    os.sched_setaffinity(0, cores)
    rounds = rounds_of(kind, path, threads, options)
    next(rounds)
    pipe.send(0.0)
    while pipe.recv():
        began = time.perf_counter()
        done = next(rounds)
        pipe.send(done / (time.perf_counter() - began))


def compare(sides: list[tuple[str, str, str]], folder: pathlib.Path, threads: int, options: argparse.Namespace) -> list[float]:
    """Return the median patches per second of each side."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _, kind, name in sides:
        pipe, theirs = context.Pipe()
        arguments = (theirs, options.cores[:threads], kind, folder / name, threads, options)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        pipe.recv()  # fails if the voxels are different
        pipes.append(pipe)
        processes.append(process)
    rates: list[list[float]] = [[] for _ in sides]
    for number in range(options.rounds + 1):
        for pipe, found in zip(pipes, rates, strict=True):
            pipe.send(True)
            rate = pipe.recv()
            if number > 0:  # the first is to warm up
                found.append(rate)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return [statistics.median(found) for found in rates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="slices; rows and columns are twice as many")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--count", type=int, default=40, help="patches of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=32, help="MiB of the queue")
    parser.add_argument("--cores", default="0,1", help="the two cores")
    options = parser.parse_args()
    options.cores = [int(core) for core in options.cores.split(",")]
    if len(options.cores) != 2:
        parser.error("give two cores")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make(folder, options.size)
        whole = (folder / "a.npy").stat().st_size
        print(f"{options.size} x {2 * options.size} x {2 * options.size} of int16, patches of {options.patch}^3\n")
        print("| file | compressed to | threads | tool | patches/s | rate of voxpatch / this |")
        print("|---|---|---|---|---|---|")
        for case, sides in CASES:
            share = f"{100 * (folder / sides[0][2]).stat().st_size / whole:.0f} %"
            for threads in (1, 2):
                rates = compare(sides, folder, threads, options)
                for (tool, _, _), rate in zip(sides, rates, strict=True):
                    print(f"| {case} | {share} | {threads} | {tool} | {rate:.1f} | {rates[0] / rate:.2f} |", flush=True)


if __name__ == "__main__":
    main()
