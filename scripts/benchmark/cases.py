"""The cases of the benchmark: tools, tasks and volumes."""

import math
from dataclasses import dataclass
from pathlib import Path

from . import floors, ours
from .case import ALONE, EPOCH, FIRST, FIRST_BATCH, JOB, RATE, STALL, TIME, WHOLE, Case, Side, peer
from .peers.inference import thresholds
from .volumes import LABELS, STORES, Volumes

MAIN_STORES = ("f32.npy", "i16-blosc-zstd.zarr", "f32-blosc-lz4.zarr")
COLD_STORES = ("f32.npy", "i16-blosc-zstd.zarr", "i16-shard256-32.zarr")
COLD_PATCHES = 64
IN_MEMORY = {"torchio": "TorchIO, in memory", "monai": "MONAI, in memory"}


def sampled(told):
    """Returns the figures of `voxpatch sample`. The time for the index of a map is part of the first patch's."""
    beforehand = told["index_seconds"]
    return {"chunks": told["chunks_decoded"], "first_patch_seconds": beforehand + told["first_patch_seconds"],
            "whole_seconds": beforehand + told["seconds"]}


def inferred(told):
    return {"chunks": told["chunks_read"], "job_seconds": told["seconds"]}


@dataclass
class Settings:
    quick: bool
    binary: Path
    volumes: Volumes
    threads: int
    rounds: int
    seconds: float  # for each measurement of a rate
    limit: float  # the time limit of a run
    output: Path  # a folder for temporary files

    def patch(self, size):
        """Returns the patch size, at most the volume's."""
        return even(min(size, *self.volumes.shape))

    def planes(self, factor):
        return max(1, round(self.volumes.shape[0] * factor))


def even(n):
    return n - n % 2


def half(size):
    """Returns the overlap of windows that cover each voxel about twice along each axis; TorchIO needs an even
    number."""
    return even(size // 2)


def count_of(settings, first=64):
    """Returns the number of patches that take `settings.seconds` at the rate of the last run."""
    def count(last):
        return first if last is None else max(first, round(last["patches_per_second"] * settings.seconds))

    return count


def our_sample(settings, source, patch, budget, count, *flags, name=None, threads=None, floor=None, calibrate=True):
    def command(last):
        made = [flag() if callable(flag) else flag for flag in flags]
        return ours.sample(settings.binary, source(), patch, count(last), budget, threads or settings.threads, *made)

    return Side(name or f"voxpatch, {budget} MiB", command, ours=True, budget=budget, translate=sampled, floor=floor, calibrate=calibrate)


def tensorstore_with_peak_of(mine, common, floor):
    """Returns TensorStore with the cache with which the peak of its memory is that of our side `mine`, or comes closest
    to it."""
    cache = mine.budget

    def command(last):
        nonlocal cache
        if last and mine.last:
            cache = max(1, cache - round((last["peak_anonymous_bytes"] - mine.last["peak_anonymous_bytes"]) / 2**20))
        return peer("reading.tensorstore", **{**common, "budget": cache})(last)

    return Side(f"TensorStore, peak of voxpatch, {mine.budget} MiB", command, package="tensorstore", budget=mine.budget, floor=floor,
                calibrate=True)


def reading_sides(settings, name, source, patch, budgets, count=None, threads=None):
    """Returns all sides that can read random patches of this volume: `count` patches, or for some seconds."""
    store = STORES.get(name, STORES["i16-blosc-zstd.zarr"])
    threads = threads or settings.threads
    floor = floors.reading(patch, store.voxel_bytes, store.chunk, store.codec, store.dtype)
    often = (lambda _last: count) if count else count_of(settings)
    sides = [our_sample(settings, source, patch, budget, often, threads=threads, floor=floor, calibrate=not count)
             for budget in budgets]
    common = {"path": source, "patch": patch, "seconds": settings.seconds, "count": count, "threads": threads}

    def add(title, package, function, path=None, budget=None):
        command = peer(f"reading.{function}", **{**common, "path": path or source, "budget": budget})
        sides.append(Side(title, command, package=package, budget=budget, floor=floor, reads=path))

    if store.chunk:
        for budget in budgets:
            add(f"TensorStore, {budget} MiB", "tensorstore", "tensorstore", budget=budget)
        sides += [] if count else [tensorstore_with_peak_of(mine, common, floor) for mine in sides[: len(budgets)]]
        add("zarr-python", "zarr", "zarr_python")
        add("zarrs for Python", "zarrs", "zarrs")
        if name == "i16-blosc-zstd.zarr":
            add("blosc2, its own .b2nd", "blosc2", "blosc2", path=lambda: settings.volumes.need("i16.b2nd"))
    elif name.endswith(".npy"):
        add("numpy, mapped", "numpy", "numpy_mapped")
    else:
        add("nibabel, mapped", "nibabel", "nibabel_mapped")
    if not store.chunk and not count:
        for package, title in IN_MEMORY.items():
            add(title, package, package)
    return sides


def random_reads(settings):
    stores = [*MAIN_STORES, "i16-shard256-32.zarr"] if settings.quick else list(STORES)
    for name in stores:
        main = name in MAIN_STORES and not settings.quick
        for size in (64, 96, 128) if main else (96,):
            patch = settings.patch(size)
            budgets = (128, 256, 512) if main and size == 96 else (256,)
            source = lambda name=name: settings.volumes.need(name)
            sides = reading_sides(settings, name, source, patch, budgets)
            yield Case("random", f"{patch}^3 of {name}", sides, (RATE, FIRST), lambda source=source: [source()],
                       len(sides) * (settings.seconds + 2), settings.rounds, settings.limit, settings.threads)


def cold_reads(settings):
    for name in COLD_STORES[1:2] if settings.quick else COLD_STORES:
        patch = settings.patch(96)
        source = lambda name=name: settings.volumes.need(name)
        sides = reading_sides(settings, name, source, patch, (256,), count=COLD_PATCHES)
        yield Case("cold", f"{COLD_PATCHES} of {patch}^3 of {name}", sides, (WHOLE, FIRST), lambda source=source: [source()],
                   len(sides) * 4, settings.rounds, settings.limit, settings.threads, cold=True)


def labels(settings):
    patch = settings.patch(96)
    need = settings.volumes.need
    name = "i16-blosc-zstd.zarr"
    shares = ("--labels", lambda: need("labels.zarr"), "--label-weights", "0:1,1:1,2:1,3:1")
    blocks = math.prod(math.ceil(n / LABELS.chunk) for n in settings.volumes.shape)
    reading = floors.reading(patch, 2, STORES[name].chunk, STORES[name].codec, "int16")

    def floor(result, measured):
        whole_map = blocks * LABELS.chunk**3 / measured["decode zstd int16"]
        return reading(result, measured) + whole_map

    sides = [our_sample(settings, lambda: need(name), patch, 256, count_of(settings), *shares, floor=floor)]
    for package, title, function in [
        ("torchio", "TorchIO LabelSampler", "torchio_labels"),
        ("monai", "MONAI RandCropByLabelClasses", "monai_labels"),
    ]:
        command = peer(f"training.{function}", scan=lambda: need("i16.npy"), labels=lambda: need("labels.npy"), patch=patch,
                       seconds=settings.seconds, threads=settings.threads)
        sides.append(Side(title, command, package=package))
    yield Case("labels", f"{patch}^3, four classes, equal shares", sides, (FIRST, RATE),
               lambda: [need(one) for one in (name, "labels.zarr", "i16.npy", "labels.npy")],
               60, settings.rounds, settings.limit, settings.threads)


def epochs(settings):
    patch, subjects, per_subject, batch = settings.patch(96), 4, 64, 4
    need = settings.volumes.need
    for delay in (0, 20) if settings.quick else (0, 5, 20):
        common = {"patch": patch, "subjects": subjects, "per_subject": per_subject, "batch": batch, "delay": delay / 1e3,
                  "threads": settings.threads, "budget": 256}
        sides = []
        for name in ("f32-blosc-lz4.zarr", "f32.nii"):
            store = STORES[name]
            floor = floors.reading(patch, 4, store.chunk, store.codec, "float32")
            command = peer("training.voxpatch_queue", scan=lambda name=name: need(name), **common)
            sides.append(Side(f"voxpatch.Queue, {name}, 256 MiB", command, ours=True, package="voxpatch", floor=floor, budget=256))
        for package, title, function in [("torchio", "TorchIO Queue", "torchio_queue"), ("monai", "MONAI CacheDataset", "monai_cached")]:
            command = peer(f"training.{function}", scan=lambda: need("f32.nii"), **common)
            sides.append(Side(f"{title}, f32.nii", command, package=package))
        yield Case("epoch", f"{subjects * per_subject} patches of {patch}^3, batches of {batch}, {delay} ms a batch", sides,
                   (STALL, FIRST_BATCH, EPOCH), lambda: [need("f32-blosc-lz4.zarr"), need("f32.nii")],
                   50, settings.rounds, settings.limit, settings.threads)


def windows(shape, patch, overlap):
    return math.prod(max(1, math.ceil((n - patch) / (patch - overlap)) + 1) for n in shape)


PEERS_BY_BLEND = {
    "crop": [("TorchIO crop", "torchio", "crop"), ("KonfAI Trim", "konfai", "Trim")],
    "average": [("TorchIO average", "torchio", "average"), ("MONAI constant", "monai", "constant"),
                ("patchly avg", "patchly", "avg"), ("KonfAI Mean", "konfai", "Mean")],
    "hann": [("TorchIO hann", "torchio", "hann"), ("MONAI gaussian", "monai", "gaussian"),
             ("patchly gaussian", "patchly", "gaussian"), ("KonfAI Cosinus", "konfai", "Cosinus")],
}


def blending_sides(settings, source, shape, patch, overlap, blend, memory, ways, classes=None, threads=None, peers=None):
    """Returns the sides that blend. `ways` are voxpatch's outputs: `.npy` or a codec of Zarr. The peers have the same
    kind of blend."""
    threads = threads or settings.threads
    sides = []
    count, voxels = windows(shape, patch, overlap), math.prod(shape)
    flags = ["--blend", blend, "--memory", f"{memory}MiB", "--threads", threads]
    if classes:
        flags += ["--model", "threshold:" + ",".join(map(str, thresholds(classes))), "--reduce", "argmax"]
    else:
        flags += ["--dtype", "float32"]
    for way in ways:
        target = settings.output / ("ours.npy" if way == ".npy" else "ours.zarr")
        more = [] if way == ".npy" else ["--codec", way]
        output_bytes = voxels * (1 if classes else 4)
        floor = floors.blending(count, patch, classes or 1, output_bytes, way, "int16" if classes else "float32")
        command = lambda _last, target=target, more=more: ours.infer(settings.binary, source(), target, patch, overlap, *flags, *more)
        sides.append(Side(f"voxpatch {blend}, {way}, {memory} MiB", command, ours=True, budget=memory, translate=inferred, floor=floor))
    for title, package, mode in PEERS_BY_BLEND[blend]:
        if peers is not None and package not in peers:
            continue
        floor = floors.blending(count, patch, classes or 1, voxels * (1 if classes else 4), "none", "float32")
        command = peer(f"inference.{package}", source=source, target=str(settings.output / "theirs.npy"), patch=patch,
                       overlap=overlap, mode=mode, classes=classes, threads=threads)
        sides.append(Side(title, command, package=package, floor=floor))
    return sides


def identity(settings):
    patch = settings.patch(128)
    source = lambda: settings.volumes.need("f32.npy")
    for blend in ("crop", "hann") if settings.quick else ("crop", "average", "hann"):
        ways = ("blosc-lz4", ".npy", "zstd") if blend == "hann" else ("blosc-lz4", ".npy")
        # patchly takes longer than all others together, so it runs once.
        peers = None if blend == "average" else ("torchio", "monai", "konfai")
        sides = blending_sides(settings, source, settings.volumes.shape, patch, half(patch), blend, 350, ways, peers=peers)
        yield Case("identity", f"{blend}, {patch}^3 over {half(patch)}", sides, (JOB, ALONE), lambda: [source()],
                   len(sides) * 12, settings.rounds, settings.limit, settings.threads)


def classes(settings):
    # TorchIO takes minutes for many classes.
    chosen = [(4, 128, 0.5, 1024)] if settings.quick else [(4, 128, 1, 1024), (32, 64, 0.25, 1536)]
    peers = ("monai", "konfai") if settings.quick else ("torchio", "monai", "konfai")
    for count, size, part, memory in chosen:
        limit = settings.limit if count < 32 else min(settings.limit, 100)
        patch = settings.patch(size)
        source = lambda part=part: settings.volumes.taller(part)[0]
        shape = (settings.planes(part), *settings.volumes.shape[1:])
        sides = blending_sides(settings, source, shape, patch, half(patch), "hann", memory, ("zstd", ".npy"), classes=count,
                               peers=peers)
        yield Case("classes", f"{count} classes to argmax, hann, {patch}^3 over {half(patch)}, {shape[0]} planes", sides, (JOB, ALONE),
                   lambda source=source: [source()], len(sides) * 20, min(2, settings.rounds), limit, settings.threads)


def conversion(settings):
    source = lambda: settings.volumes.need("i16.nii.gz")
    target = settings.output / "converted.zarr"
    flags = ("--chunk", "64", "--shard", "none", "--codec", "zstd", "--threads", settings.threads, "--memory", "256MiB")
    floor = floors.unpacking(math.prod(settings.volumes.shape) * 2)
    sides = [
        Side("voxpatch convert", lambda _last: ours.convert(settings.binary, source(), target, *flags), ours=True, floor=floor),
        Side("nibabel and zarr-python",
             peer("conversion.nibabel_and_zarr", source=source, target=str(settings.output / "theirs.zarr"), chunk=64,
                  threads=settings.threads), package="zarr", floor=floor),
    ]
    yield Case("convert", "i16.nii.gz to Zarr of 64^3, zstd", sides, (TIME,), lambda: [source()], 60, min(2, settings.rounds),
               settings.limit, settings.threads)


def scaling(settings):
    patch, tall = settings.patch(96), settings.volumes.taller
    factor_of_parts = 1 if settings.quick else 0.25
    part = lambda: tall(factor_of_parts)[0]
    name = "i16-blosc-zstd.zarr"
    for factor in (1, 4) if settings.quick else (0.25, 1, 4, 16):
        source = lambda factor=factor: tall(factor)[0]
        planes = settings.planes(factor)
        reads = lambda source=source: [source()]
        few = min(settings.rounds, 2 if factor <= 1 else 1)
        if planes >= patch:
            sides = [side for side in reading_sides(settings, name, source, patch, (256,)) if "blosc2" not in side.name]
            yield Case("scaling", f"random {patch}^3, {planes} planes", sides, (RATE, FIRST), reads, 12, few,
                       settings.limit, settings.threads, curve="random patches by planes", x=planes)
        if settings.quick and factor > 1:
            continue
        cube = even(min(128, planes, settings.patch(128)))
        shape = (planes, *settings.volumes.shape[1:])
        sides = blending_sides(settings, source, shape, cube, half(cube), "hann", 350, ("blosc-lz4",), peers=("torchio", "monai"))
        yield Case("scaling", f"hann {cube}^3 over {half(cube)}, {planes} planes", sides, (JOB, ALONE), reads, 40 * max(0.5, factor / 2),
                   few, max(settings.limit, 30 * factor), settings.threads, curve="identity by planes", x=planes)
    for threads in range(1, settings.threads + 1):
        source = lambda: tall(1)[0]
        sides = [side for side in reading_sides(settings, name, source, patch, (256,), threads=threads) if "blosc2" not in side.name]
        yield Case("scaling", f"random {patch}^3, {threads} threads", sides, (RATE,), lambda: [source()], 12,
                   min(2, settings.rounds), settings.limit, threads, curve="random patches by threads", x=threads)
        shape = (settings.planes(factor_of_parts), *settings.volumes.shape[1:])
        cube = even(min(128, *shape))
        sides = blending_sides(settings, part, shape, cube, half(cube), "hann", 350, ("blosc-lz4",), threads=threads,
                               peers=("torchio", "monai"))
        yield Case("scaling", f"hann {cube}^3 over {half(cube)}, {threads} threads", sides, (JOB, ALONE), lambda: [part()], 15,
                   min(2, settings.rounds), settings.limit, threads, curve="identity by threads", x=threads)
    for size, overlap in [] if settings.quick else [(128, 0), (128, 32), (128, 64), (96, 48), (64, 0), (64, 16), (64, 32)]:
        shape = (settings.planes(factor_of_parts), *settings.volumes.shape[1:])
        if size > min(shape):
            continue
        sides = blending_sides(settings, part, shape, size, overlap, "hann", 350, ("blosc-lz4",), peers=("torchio", "monai"))
        yield Case("scaling", f"hann {size}^3 over {overlap}", sides, (JOB, ALONE), lambda: [part()], 15,
                   min(2, settings.rounds), settings.limit, settings.threads, curve="identity by patch and overlap", x=f"{size}/{overlap}")


def all_cases(settings):
    for part in (random_reads, cold_reads, labels, epochs, identity, classes, conversion, scaling):
        yield from part(settings)
