"""Sampling by labels, and epochs of a training queue with a slow consumer."""

import time

from .reading import Now, loaded, measure

LABELS = (0, 1, 2, 3)


def torchio_labels(scan, labels, patch, seconds, threads, **_):
    import torch
    import torchio

    torch.set_num_threads(threads)
    began = time.perf_counter()
    images = {
        "ct": torchio.ScalarImage(tensor=torch.from_numpy(loaded(scan))),
        "label": torchio.LabelMap(tensor=torch.from_numpy(loaded(labels))),
    }
    sampler = torchio.LabelSampler(patch, "label", dict.fromkeys(LABELS, 1))
    patches = sampler(torchio.Subject(**images))
    shape = images["ct"].data.shape[-3:]
    return measure(began, shape, patch, seconds, None, lambda *_: Now(next(patches)["ct"].data.clone()))


def monai_labels(scan, labels, patch, seconds, threads, **_):
    import torch
    from monai.transforms import RandCropByLabelClasses
    from monai.transforms.utils import map_classes_to_indices

    torch.set_num_threads(threads)
    began = time.perf_counter()
    ct, label = (torch.from_numpy(loaded(path)) for path in (scan, labels))
    indices = map_classes_to_indices(label, num_classes=len(LABELS))
    crop = RandCropByLabelClasses((patch,) * 3, ratios=[1] * len(LABELS), num_classes=len(LABELS), num_samples=1)
    return measure(began, ct.shape[-3:], patch, seconds, None, lambda *_: Now(crop(ct, label=label, indices=indices)[0].clone()))


def consume(began, batches, delay):
    """Alternates between taking a batch and `delay` seconds of other work, and measures the waiting time."""
    stall = first = None
    count = 0
    batches = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - asked
        if batch is None:
            break
        if first is None:
            first, stall = time.perf_counter() - began, 0.0
        else:
            stall += waited
        count += 1
        if delay:
            time.sleep(delay)
    seconds = time.perf_counter() - began
    return {"batches": count, "first_batch_seconds": first, "stall_seconds": stall, "seconds": seconds}


def voxpatch_queue(scan, patch, subjects, per_subject, batch, delay, budget, threads, **_):
    import torch  # noqa: F401  as in a training program
    import voxpatch

    began = time.perf_counter()
    queue = voxpatch.Queue(
        [voxpatch.Subject(ct=scan, name=f"{n}") for n in range(subjects)],
        voxpatch.UniformSampler(patch),
        per_subject,
        batch_size=batch,
        memory=budget << 20,
        max_length=64,
        threads=threads,
    )
    told = consume(began, queue, delay)
    found = queue.stats()
    return {**told, "patches": told["batches"] * batch, **{key: found[name] for key, name in [("chunks", "chunks_decoded"), ("bytes_read", "bytes_read")] if name in found}}


def torchio_queue(scan, patch, subjects, per_subject, batch, delay, threads, **_):
    import torch
    import torchio

    began = time.perf_counter()
    data = torchio.SubjectsDataset([torchio.Subject(ct=torchio.ScalarImage(scan)) for _ in range(subjects)])
    queue = torchio.Queue(data, max_length=64, samples_per_volume=per_subject, sampler=torchio.UniformSampler(patch),
                          num_workers=threads)
    loader = torchio.SubjectsLoader(queue, batch_size=batch, num_workers=0)
    return consume(began, (one["ct"][torchio.DATA] for one in loader), delay)


def monai_cached(scan, patch, subjects, per_subject, batch, delay, threads, **_):
    """Returns a dataset that loads all scans once and caches them, as in MONAI's tutorials; an item is one batch from
    one scan."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropSamplesd

    began = time.perf_counter()
    steps = [LoadImaged("ct"), EnsureChannelFirstd("ct"), RandSpatialCropSamplesd("ct", (patch,) * 3, batch, random_size=False)]
    data = CacheDataset([{"ct": scan}] * subjects, Compose(steps), num_workers=threads, progress=False)
    loader = DataLoader(data, batch_size=1, shuffle=True, num_workers=threads, persistent_workers=True)

    def batches():
        for _ in range(per_subject // batch):
            for one in loader:
                yield one["ct"]

    return consume(began, batches(), delay)
