"""The limits of this machine, measured in the same run: the floor of every figure.

Rates are bytes of decoded voxels per second, for all threads together. Chunks are 64^3 voxels of the scan.
"""

import mmap
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

COPY = 64 << 20
REPEATS = 5


def best(work, least=0.2):
    """Returns the least seconds of several calls."""
    times, began = [], time.perf_counter()
    while len(times) < REPEATS or time.perf_counter() - began < least:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def shared(threads, work):
    """Returns the seconds for `threads` concurrent calls."""
    with ThreadPoolExecutor(threads) as pool:
        return best(lambda: list(pool.map(work, range(threads))))


def copy_rate(threads):
    sources = [numpy.ones(COPY, numpy.uint8) for _ in range(threads)]
    targets = [numpy.zeros(COPY, numpy.uint8) for _ in range(threads)]
    return threads * COPY / shared(threads, lambda n: numpy.copyto(targets[n], sources[n]))


def fault_cost(folder):
    """Returns the seconds for the first touch of a page of a mapped file that is in the page cache."""
    path = Path(folder) / "faults.tmp"
    path.write_bytes(bytes(64 << 20))
    first, again = [], []
    for _ in range(2 * REPEATS):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            view = numpy.frombuffer(mapped, numpy.uint8)[:: mmap.PAGESIZE]
            for times in (first, again):
                started = time.perf_counter()
                view.sum()
                times.append(time.perf_counter() - started)
            pages = len(view)
            del view
    path.unlink()
    return max(min(first) - min(again), 0) / pages


def write_rate(folder):
    """Returns the rate of writing to the disk, and not only to the page cache."""
    path = Path(folder) / "write.tmp"
    block = os.urandom(8 << 20)
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(16):
            file.write(block)
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    path.unlink()
    return 16 * len(block) / took


def codecs():
    import numcodecs

    return {
        "blosc-lz4": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
        "blosc-zstd": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE),
        "zstd": numcodecs.Zstd(3),
    }


def codec_rates(scan, threads):
    """Returns the rates of decoding and encoding, for both voxel types, with one chunk per thread."""
    import numcodecs

    numcodecs.blosc.use_threads = False
    found = {}
    middle = [max(0, n // 2 - 32) for n in scan.shape[-3:]]
    chunk = scan[..., middle[0] : middle[0] + 64, middle[1] : middle[1] + 64, middle[2] : middle[2] + 64]
    for dtype in ("float32", "int16"):
        voxels = numpy.ascontiguousarray(chunk.astype(dtype))
        for name, codec in codecs().items():
            packed = codec.encode(voxels)
            targets = [numpy.empty_like(voxels) for _ in range(threads)]
            found[f"decode {name} {dtype}"] = threads * voxels.nbytes / shared(threads, lambda n: codec.decode(packed, targets[n]))
            found[f"encode {name} {dtype}"] = threads * voxels.nbytes / shared(threads, lambda _: codec.encode(voxels))
    return found


def gunzip_rate(scan):
    """Returns the rate of one thread, because a gzip stream cannot be unpacked in parallel."""
    voxels = numpy.ascontiguousarray(scan[..., scan.shape[-3] // 2 :, :, :][..., :32, :, :].astype("int16")).tobytes()
    packed = zlib.compress(voxels, 1)
    return len(voxels) / best(lambda: zlib.decompress(packed))


def measured(folder, scan_path, threads):
    scan = numpy.load(scan_path, mmap_mode="r")
    return {
        "copy": copy_rate(threads),
        "copy, one thread": copy_rate(1),
        "fault_seconds": fault_cost(folder),
        "write": write_rate(folder),
        "gunzip": gunzip_rate(scan),
        **codec_rates(scan, threads),
    }
