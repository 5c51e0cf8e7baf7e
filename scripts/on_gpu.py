#!/usr/bin/env python3
"""Measures prediction from disk to disk, and training from the queue, compared with the GPU's work alone.

    PYTHONPATH=scripts python scripts/on_gpu.py SCAN.zarr SCAN.npy FOLDER [--patch 128] [--rounds 3]

Needs torch with a GPU, and this package; MONAI is included if it is installed, with the scan in memory. Both files
contain the same scan. The variants alternate, each in a separate process, in which the GPU's warm-up is not counted;
the medians are printed. `alone` is the network on batches that are already on the GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

from benchmark import measure

CLASSES = 4


def network(torch: Any) -> Any:
    """Returns a few convolutions as at the top of a U-Net, in half precision."""
    nn = torch.nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, second, last = nn.Conv3d(1, 32, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1), nn.Conv3d(32, CLASSES, 1)
            self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

        def forward(self, x: Any) -> Any:
            with torch.autocast("cuda", torch.float16):
                return self.layers(x / 1000)

    torch.manual_seed(0)
    return Half().cuda().to(memory_format=torch.channels_last_3d)


def patches(shape: list[int], patch: int) -> int:
    step, count = patch // 2, 1
    for length in shape:
        count *= max(0, -(-(length - patch) // step)) + 1
    return count


def predict(way: str, given: argparse.Namespace) -> float:
    import numpy
    import torch

    net, patch = network(torch).eval(), given.patch
    warm = torch.zeros((given.batch, 1, patch, patch, patch), device="cuda")
    with torch.no_grad():
        net(warm), net(warm[:1])
    torch.cuda.synchronize()
    began = time.perf_counter()
    if way == "alone":
        shape = list(numpy.load(given.flat, mmap_mode="r").shape)
        with torch.no_grad():
            for _ in range(-(-patches(shape[-3:], patch) // given.batch)):
                net(warm)
        torch.cuda.synchronize()
    elif way.startswith("voxpatch"):
        import voxpatch

        scan, name = (given.flat, "out.npy") if "npy" in way else (given.scan, "out.zarr")
        voxpatch.predict(net, scan, given.folder / name, patch, patch // 2, batch_size=given.batch, reduce="argmax", memory=2 << 30)
    else:
        from monai.inferers import sliding_window_inference

        scan = torch.from_numpy(numpy.load(given.flat)).float()
        scan = scan.reshape(1, 1, *scan.shape[-3:])
        where = "cuda" if "GPU" in way else "cpu"
        with torch.no_grad():
            out = sliding_window_inference(scan.to(where), (patch,) * 3, given.batch, net, 0.5, "gaussian", device=where, sw_device="cuda")
        numpy.save(given.folder / "monai.npy", out[0].argmax(0).to(torch.uint8).cpu().numpy())
    return time.perf_counter() - began


def train(way: str, given: argparse.Namespace) -> float:
    """Trains and returns the seconds per step."""
    import torch
    import voxpatch

    net = network(torch).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    size, steps = 96, 300
    queue = voxpatch.Queue([voxpatch.Subject(ct=given.scan)], voxpatch.UniformSampler(size), (steps + 10) * given.batch,
                           max_length=4096, memory=1 << 30, batch_size=given.batch, seed=1)
    source = iter(queue)
    same = torch.from_numpy(next(source)["ct"]).cuda()
    began = 0.0
    for n in range(steps + 5):
        if n == 5:
            torch.cuda.synchronize()
            began = time.perf_counter()
        voxels = same if way == "alone" else torch.from_numpy(next(source)["ct"]).pin_memory().cuda(non_blocking=True)
        loss = net(voxels).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=pathlib.Path)
    parser.add_argument("flat", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        kind, way = given.way
        print(json.dumps({"seconds": predict(way, given) if kind == "predict" else train(way, given)}))
        return
    ways = [("predict", "alone"), ("predict", "voxpatch, Zarr"), ("predict", "voxpatch, .npy")]
    if importlib.util.find_spec("monai"):
        ways += [("predict", "MONAI, sums in memory"), ("predict", "MONAI, sums on the GPU")]
    ways += [("train", "alone"), ("train", "voxpatch.Queue")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            command = [sys.executable, *sys.argv, "--way", *way]
            told = measure.run(command, 300, len(os.sched_getaffinity(0)), given.folder)
            print(*way, told, file=sys.stderr, flush=True)
            found[way].append(told)
    print("| what | how | seconds | anonymous MiB |\n|---|---|---|---|")
    for (kind, way), all_told in found.items():
        good = [told for told in all_told if "error" not in told]
        if good:
            seconds, held = (statistics.median(told[key] for told in good) for key in ("seconds", "peak_anonymous_bytes"))
            print(f"| {kind} | {way} | {seconds:.4g} | {held / 2**20:.0f} |")
        else:
            print(f"| {kind} | {way} | {all_told[-1]['error']} | |")


if __name__ == "__main__":
    main()
