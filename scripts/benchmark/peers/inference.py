"""Sliding windows over a scan in memory, blended: the identity, or a model with one channel per class, and their
argmax.

`seconds` are those of the windows alone; `job_seconds` begin with reading the scan from a .npy file or from
Zarr, and end when the result is written as .npy, as voxpatch's do.
"""

import time


def classes_of(count):
    """Returns the same as the built-in model `threshold` with `thresholds(count)`: a channel of ones and zeros for each
    class."""
    import torch

    edges = [float("-inf"), *thresholds(count), float("inf")]
    return lambda x: torch.cat([((x >= low) & (x < high)).to(torch.float32) for low, high in zip(edges, edges[1:])], dim=-4)


def thresholds(count):
    """Returns `count - 1` evenly spaced values from -950 upwards, so that air, lung, tissue and bone are all
    divided."""
    step = 1400 // (count - 1)
    return [-950 + n * step for n in range(count - 1)]


def job(source, target, classes, threads, predict):
    """Runs a job. `predict(scan, model)` returns the blended tensor (c, z, y, x) of a scan, a tensor (z, y, x)."""
    import numpy
    import torch
    import zarr

    torch.set_num_threads(threads)
    began = time.perf_counter()
    if source.endswith(".npy"):
        voxels = numpy.load(source)
    else:
        voxels = zarr.open_array(f"{source}/0", mode="r")[:]
    scan = torch.from_numpy(voxels.reshape(voxels.shape[-3:])).to(torch.float32)
    del voxels
    started = time.perf_counter()
    blended = predict(scan, classes_of(classes) if classes else torch.clone)
    if classes:
        blended = blended.argmax(0).to(torch.uint8)
    seconds = time.perf_counter() - started
    if target:
        numpy.save(target, blended.numpy())
    return {"seconds": seconds, "job_seconds": time.perf_counter() - began}


def torchio(source, target, patch, overlap, mode, threads, classes=None, **_):
    import torch
    import torchio

    def predict(scan, model):
        subject = torchio.Subject(ct=torchio.ScalarImage(tensor=scan[None]))
        sampler = torchio.GridSampler(subject, patch, overlap)
        aggregator = torchio.GridAggregator(sampler, overlap_mode=mode)
        for batch in torch.utils.data.DataLoader(sampler, batch_size=1):
            aggregator.add_batch(model(batch["ct"][torchio.DATA]), batch[torchio.LOCATION])
        return aggregator.get_output_tensor()

    return job(source, target, classes, threads, predict)


def monai(source, target, patch, overlap, mode, threads, classes=None, **_):
    from monai.inferers import sliding_window_inference

    def predict(scan, model):
        return sliding_window_inference(scan[None, None], (patch,) * 3, 1, model, overlap=overlap / patch, mode=mode)[0]

    return job(source, target, classes, threads, predict)


def patchly(source, target, patch, overlap, mode, threads, classes=None, **_):
    import torch
    from patchly import Aggregator, GridSampler, SamplingMode

    def predict(scan, model):
        size, step = (patch,) * 3, (patch - overlap,) * 3
        sampler = GridSampler(scan[None], tuple(scan.shape), size, step, spatial_first=False, mode=SamplingMode.SAMPLE_EDGE)
        output = torch.zeros((classes or 1, *scan.shape))
        aggregator = Aggregator(sampler, output=output, weights=mode, spatial_first=False)
        for window, where in sampler:
            aggregator.append(model(window), where)
        return aggregator.get_output(inplace=True)

    return job(source, target, classes, threads, predict)


def konfai(source, target, patch, overlap, mode, threads, classes=None, **_):
    import torch
    from konfai.data.patching import accumulate, blend, grid

    def predict(scan, model):
        size = [patch] * 3
        cut = grid.ModelPatch(size, overlap=overlap)
        cut.load(list(scan.shape))
        combine = getattr(blend, mode)()
        combine.set_patch_config(size, overlap)
        sums = accumulate.StreamingAccumulator(cut.get_patch_slices(), size, combine, sweep_axis=cut.get_sweep_axis())
        output = torch.empty((classes or 1, *scan.shape), dtype=torch.float32)

        def keep(slabs):
            for rows, slab in slabs:
                output[(slice(None),) + (slice(None),) * cut.get_sweep_axis() + (rows,)] = slab[0]

        for index in range(cut.get_size()):
            keep(sums.add_layer(index, model(cut.get_data(scan[None], index, 0, True))[None]))
        keep(sums.finalize())
        return output

    return job(source, target, classes, threads, predict)
