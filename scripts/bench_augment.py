#!/usr/bin/env python3
"""Patches per second with a random rotation, scale and elastic deformation, compared with TorchIO and batchgeneratorsv2.

An image of int16 in chunks and a label map of uint8, on two cores. Each tool gets patches with the same ranges, all of them
deformed, the image linearly and the labels by the nearest voxel:

- voxpatch reads the patches through the map, from a Zarr array on disk, with two threads;
- TorchIO deforms a patch that is in memory already, with `RandomAffine` and `RandomElasticDeformation`, in two processes;
- batchgeneratorsv2 deforms an enlarged patch that is in memory already, as nnU-Net does, with `SpatialTransform`, in two
  processes of one thread each.

So the others do not read at all. The tools alternate, and the medians of several rounds are printed.

    pip install torchio batchgeneratorsv2
    python scripts/bench_augment.py [--patch 96] [--count 24] [--rounds 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

DEGREES, SCALES = 30.0, (0.7, 1.4)
POINTS, LARGEST = 7, 7.5


def volumes(size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    scan = np.cumsum(random.integers(-9, 10, (size,) * 3), axis=2).astype(np.int16)
    label = (np.add.outer(np.add.outer(np.arange(size), np.arange(size)), np.arange(size)) // 40 % 4).astype(np.uint8)
    return scan, label


def ours(folder: pathlib.Path, patch: int, count: int) -> Any:
    import voxpatch

    subject = voxpatch.Subject(
        ct=folder / "scan.zarr", label=folder / "label.zarr", interpolation={"ct": "linear", "label": "nearest"}
    )
    queue = voxpatch.Queue(
        [subject],
        voxpatch.UniformSampler(patch),
        count,
        threads=2,
        affine=voxpatch.RandomAffine(scales=SCALES, degrees=DEGREES),
        elastic=voxpatch.RandomElastic(POINTS, LARGEST),
    )

    def work() -> int:
        return sum(1 for _ in queue)

    return work


def _torchio(task: tuple[int, int]) -> int:
    import torch
    import torchio

    patch, count = task
    torch.set_num_threads(1)
    scan, label = volumes(patch)
    subject = torchio.Subject(
        ct=torchio.ScalarImage(tensor=torch.from_numpy(scan[None])), label=torchio.LabelMap(tensor=torch.from_numpy(label[None]))
    )
    affine = torchio.RandomAffine(scales=SCALES, degrees=DEGREES)
    elastic = torchio.RandomElasticDeformation(num_control_points=POINTS, max_displacement=LARGEST)
    return sum(1 for _ in range(count) if elastic(affine(subject)) is not None)


def _batchgenerators(task: tuple[int, int]) -> int:
    import torch
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    patch, count = task
    torch.set_num_threads(1)
    # nnU-Net's enlarged patch for these ranges is about 1.5 times as long.
    scan, label = volumes(patch * 3 // 2)
    transform = SpatialTransform(
        (patch,) * 3,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=1,
        elastic_deform_scale=(0, 0.2),
        elastic_deform_magnitude=(0, 0.2),
        p_rotation=1,
        rotation=(-np.deg2rad(DEGREES), np.deg2rad(DEGREES)),
        p_scaling=1,
        scaling=SCALES,
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        mode_seg="nearest",
    )
    image = torch.from_numpy(scan[None].astype(np.float32))
    labels = torch.from_numpy(label[None].astype(np.int16))
    return sum(1 for _ in range(count) if transform(image=image, segmentation=labels) is not None)


def timed(work: Any) -> float:
    began = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    import voxpatch

    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(2) as pool:
        folder = pathlib.Path(name)
        scan, label = volumes(256)
        voxpatch.write(folder / "scan.zarr", scan)
        voxpatch.write(folder / "label.zarr", label)
        patch, count = arguments.patch, arguments.count
        few = max(2, count // 6)
        tools = {
            "voxpatch": ours(folder, patch, count * 4),
            "TorchIO": lambda: sum(pool.map(_torchio, [(patch, few)] * 2, chunksize=1)),
            "batchgeneratorsv2": lambda: sum(pool.map(_batchgenerators, [(patch, few)] * 2, chunksize=1)),
        }
        for work in tools.values():
            work()
        rates: dict[str, list[float]] = {name: [] for name in tools}
        for _ in range(arguments.rounds):
            for tool, work in tools.items():
                rates[tool].append(timed(work))
        best = statistics.median(rates["voxpatch"])
        print("| tool | patches/s | voxpatch is faster by |")
        print("|---|---|---|")
        for tool, all_of_them in rates.items():
            rate = statistics.median(all_of_them)
            print(f"| {tool} | {rate:.1f} | {best / rate:.1f} |")


if __name__ == "__main__":
    main()
