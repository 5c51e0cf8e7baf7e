"""Random patches at uniformly distributed places.

`first_patch_seconds` begin with opening the volume (with loading it, where a peer holds it in memory), and the rate is
that of the patches after the first, read for `seconds` or up to `count` patches.
"""

import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Now:
    """A result that is already available."""

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


def read_so_far():
    """Returns the bytes that this process has read by system calls; mapped files do not count."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    return 0


def measure(began, shape, patch, seconds, count, begin_read, flying=1, chunk=None):
    """Measures reads. `begin_read(z, y, x)` returns an object with `result()`; `flying` reads are in progress at a
    time."""
    draw = random.Random(1)
    touched = 0

    def begin():
        nonlocal touched
        start = [draw.randrange(n - patch + 1) for n in shape]
        if chunk:
            several = 1
            for at in start:
                several *= (at + patch - 1) // chunk - at // chunk + 1
            touched += several
        return begin_read(*start)

    begin().result()
    first = time.perf_counter() - began
    touched, done, read = 0, 0, read_so_far()
    started = time.perf_counter()
    waiting = deque(begin() for _ in range(flying))
    begun = flying
    while waiting:
        waiting.popleft().result()
        done += 1
        enough = begun >= count if count else time.perf_counter() - started >= seconds
        if not enough:
            waiting.append(begin())
            begun += 1
    took = time.perf_counter() - started
    told = {"patches": done, "seconds": took, "patches_per_second": done / took, "first_patch_seconds": first,
            "whole_seconds": first + took}
    if chunk:  # sides with this figure do not cache anything between patches
        told["chunks"], told["bytes_read"] = touched, read_so_far() - read
    return told


def box(array, patch):
    return lambda z, y, x: array[..., z : z + patch, y : y + patch, x : x + patch]


def tensorstore(path, patch, seconds, count, budget, threads, **_):
    import tensorstore

    began = time.perf_counter()
    context = tensorstore.Context({
        "cache_pool": {"total_bytes_limit": budget << 20},
        "data_copy_concurrency": {"limit": threads},
        "file_io_concurrency": {"limit": max(threads, 4)},
    })
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/0"}}
    array = tensorstore.open(spec, context=context, open=True, read=True).result()
    part, read = box(array, patch), read_so_far()
    told = measure(began, array.shape[-3:], patch, seconds, count, lambda *at: part(*at).read(), flying=8)
    told["bytes_read"] = read_so_far() - read
    metrics = {m["name"]: m["values"][0]["value"] for m in tensorstore.experimental_collect_matching_metrics("/tensorstore/cache/chunk_cache/")}
    if "/tensorstore/cache/chunk_cache/reads" in metrics:
        told["chunks"] = metrics["/tensorstore/cache/chunk_cache/reads"]
    return told


def zarr_python(path, patch, seconds, count, threads, pipeline=None, **_):
    import zarr

    zarr.config.set({"threading.max_workers": threads})
    if pipeline:
        zarr.config.set({"codec_pipeline.path": pipeline})
    began = time.perf_counter()
    array = zarr.open_array(f"{path}/0", mode="r")
    part = box(array, patch)
    return measure(began, array.shape[-3:], patch, seconds, count, lambda *at: Now(part(*at)), chunk=array.chunks[-1])


def zarrs(**arguments):
    import zarrs  # noqa: F401  the pipeline is found by its name

    return zarr_python(pipeline="zarrs.ZarrsCodecPipeline", **arguments)


def blosc2(path, patch, seconds, count, threads, **_):
    import blosc2

    blosc2.set_nthreads(threads)
    began = time.perf_counter()
    array = blosc2.open(path, mode="r", mmap_mode="r")
    part = box(array, patch)
    return measure(began, array.shape, patch, seconds, count, lambda *at: Now(part(*at)))


def numpy_mapped(path, patch, seconds, count, threads, **_):
    import numpy

    began = time.perf_counter()
    array = numpy.load(path, mmap_mode="r")
    part = box(array, patch)
    with ThreadPoolExecutor(threads) as pool:
        return measure(began, array.shape[-3:], patch, seconds, count,
                       lambda *at: pool.submit(lambda: part(*at).copy()), flying=2 * threads)


def nibabel_mapped(path, patch, seconds, count, **_):
    import nibabel
    import numpy

    began = time.perf_counter()
    stored = nibabel.load(path, mmap=True).dataobj

    def read(z, y, x):
        part = stored[x : x + patch, y : y + patch, z : z + patch]
        return Now(numpy.ascontiguousarray(part.T))

    return measure(began, stored.shape[2::-1], patch, seconds, count, read)


def loaded(path):
    """Returns the whole scan in memory, (1, z, y, x)."""
    import numpy

    if str(path).endswith(".npy"):
        scan = numpy.load(path)
    else:
        import nibabel

        scan = numpy.ascontiguousarray(numpy.asarray(nibabel.load(path).dataobj).T)
    return scan.reshape(1, *scan.shape[-3:])


def torchio(path, patch, seconds, count, threads, **_):
    import torch
    import torchio

    torch.set_num_threads(threads)
    began = time.perf_counter()
    scan = torch.from_numpy(loaded(path))
    subject = torchio.Subject(ct=torchio.ScalarImage(tensor=scan))
    patches = torchio.UniformSampler(patch)(subject)
    return measure(began, scan.shape[-3:], patch, seconds, count, lambda *_: Now(next(patches)["ct"].data.clone()))


def monai(path, patch, seconds, count, threads, **_):
    import nibabel  # noqa: F401  imported before the clock starts
    import torch
    from monai.transforms import RandSpatialCrop

    torch.set_num_threads(threads)
    began = time.perf_counter()
    scan = torch.from_numpy(loaded(path))
    crop = RandSpatialCrop((patch,) * 3, random_size=False)
    return measure(began, scan.shape[-3:], patch, seconds, count, lambda *_: Now(crop(scan).clone()))
