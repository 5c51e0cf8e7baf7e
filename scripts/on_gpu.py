#!/usr/bin/env python3
"""Measures prediction from disk to disk, and training from the queue, compared with the GPU's work alone.

    PYTHONPATH=scripts python scripts/on_gpu.py SCAN.zarr SCAN.npy FOLDER [--patch 128] [--rounds 3] [--classes 4]
    PYTHONPATH=scripts python scripts/on_gpu.py --device cpu --made 96 FOLDER/scan.zarr FOLDER/scan.npy FOLDER --patch 32

Needs torch, and this package; MONAI and nnU-Net's predictor are included if they are installed, with the scan in memory.
Both files contain the same scan; `--made N` makes them, of N voxels along each axis. The variants alternate, each in a
separate process, in which the GPU's warm-up is not counted; the medians are printed. `alone` is the network on batches that
are already on the device. The copies and the encoding are the limits: the patches of the scan up as they are stored, all
predictions or only labels down, and labels into the Zarr output. With `--device cpu` the same code runs without a GPU, and
copies cost nothing.
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
from types import SimpleNamespace
from typing import Any

from benchmark import measure


def network(torch: Any, given: argparse.Namespace) -> Any:
    """Returns a few convolutions as at the top of a U-Net, in half precision on a GPU."""
    nn = torch.nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, second, last = nn.Conv3d(1, 32, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1), nn.Conv3d(32, given.classes, 1)
            self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

        def forward(self, x: Any) -> Any:
            with torch.autocast("cuda", torch.float16, enabled=given.device != "cpu"):
                return self.layers(x / 1000)

    torch.manual_seed(0)
    return Half().to(given.device).to(memory_format=torch.channels_last_3d)


def patches(shape: list[int], patch: int) -> int:
    step, count = patch // 2, 1
    for length in shape:
        count *= max(0, -(-(length - patch) // step)) + 1
    return count


def predict(way: str, given: argparse.Namespace) -> dict[str, float]:
    """Predicts the scan in one way. Returns the seconds, and the bytes of a GPU at the peak."""
    import numpy
    import torch

    def wait() -> None:
        if given.device != "cpu":
            torch.cuda.synchronize()

    net, patch = network(torch, given).eval(), given.patch
    flat = numpy.load(given.flat, mmap_mode="r")
    shape = list(flat.shape)[-3:]
    batches = -(-patches(shape, patch) // given.batch)
    warm = torch.zeros((given.batch, 1, patch, patch, patch), device=given.device)
    with torch.no_grad():
        found = net(warm)
        net(warm[:1])
    wait()
    if given.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    if way == "alone":
        with torch.no_grad():
            for _ in range(batches):
                net(warm)
        wait()
    elif way == "copy up":
        stored = torch.from_numpy(numpy.zeros(warm.shape, flat.dtype))
        for _ in range(batches):
            (stored if given.device == "cpu" else stored.pin_memory()).to(given.device, non_blocking=True).float()
        wait()
    elif way.startswith("copy down"):
        labels = torch.zeros(shape, dtype=torch.uint8, device=given.device)
        for tensor, times in [(labels, 1)] if "labels" in way else [(found, batches)]:
            here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=given.device != "cpu")
            for _ in range(times):
                here.copy_(tensor, non_blocking=True)
        wait()
    elif way == "encode labels":
        import voxpatch

        labels_here = (numpy.asarray(flat).reshape(shape) > 0).astype(numpy.uint8)
        began = time.perf_counter()
        voxpatch.write(given.folder / "out.zarr", labels_here, overwrite=True)
    elif way.startswith("voxpatch"):
        import voxpatch

        scan, name = (given.flat, "out.npy") if "npy" in way else (given.scan, "out.zarr")
        voxpatch.predict(
            net, scan, given.folder / name, patch, patch // 2, batch_size=given.batch, reduce="argmax", memory=2 << 30,
            blend_on="device" if "device" in way else "host", overwrite=True,
        )
    elif way.startswith("MONAI"):
        from monai.inferers import sliding_window_inference

        scan = torch.from_numpy(numpy.array(flat)).float().reshape(1, 1, *shape)
        where = given.device if "device" in way else "cpu"
        with torch.no_grad():
            out = sliding_window_inference(
                scan.to(where), (patch,) * 3, given.batch, net, 0.5, "gaussian", device=where, sw_device=given.device
            )
        numpy.save(given.folder / "monai.npy", out[0].argmax(0).to(torch.uint8).cpu().numpy())
    else:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(0.5, True, False, "device" in way, torch.device(given.device), allow_tqdm=False)
        predictor.network, predictor.allowed_mirroring_axes = net, None
        predictor.configuration_manager = SimpleNamespace(patch_size=(patch,) * 3)
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=given.classes)
        scan = torch.from_numpy(numpy.array(flat)).float().reshape(1, *shape)
        out = predictor.predict_sliding_window_return_logits(scan)
        numpy.save(given.folder / "nnunet.npy", out.argmax(0).to(torch.uint8).cpu().numpy())
    seconds = time.perf_counter() - began
    held = 0 if given.device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "device_bytes": held}


def train(way: str, given: argparse.Namespace) -> float:
    """Trains and returns the seconds per step."""
    import torch
    import voxpatch

    net = network(torch, given).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    size, steps = (96, 300) if given.device != "cpu" else (given.patch, 20)
    queue = voxpatch.Queue([voxpatch.Subject(ct=given.scan)], voxpatch.UniformSampler(size), (steps + 10) * given.batch,
                           max_length=4096, memory=1 << 30, batch_size=given.batch, seed=1)
    source = iter(queue)
    is_cuda = given.device != "cpu"
    same = torch.from_numpy(next(source)["ct"]).to(given.device)
    began = 0.0
    for n in range(steps + 5):
        if n == 5:
            if is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
        voxels = same
        if way != "alone":
            voxels = torch.from_numpy(next(source)["ct"])
            voxels = (voxels.pin_memory() if is_cuda else voxels).to(given.device, non_blocking=True)
        loss = net(voxels).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def make(given: argparse.Namespace) -> None:
    """Makes a scan of noise, in both files."""
    import numpy
    import voxpatch

    scan = numpy.random.default_rng(0).normal(0, 300, (given.made,) * 3).astype(numpy.int16)
    numpy.save(given.flat, scan)
    voxpatch.write(given.scan, scan, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=pathlib.Path)
    parser.add_argument("flat", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--made", type=int, help="make both files, of this many voxels along each axis")
    parser.add_argument("--seconds", type=float, default=300, help="the longest that one measurement may take")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        kind, way = given.way
        print(json.dumps(predict(way, given) if kind == "predict" else {"seconds": train(way, given)}))
        return
    if given.made:
        make(given)
    limits = ["alone", "copy up", "copy down, predictions", "copy down, labels", "encode labels"]
    peers = []
    if importlib.util.find_spec("monai"):
        peers += ["MONAI, sums in memory", "MONAI, sums on the device"]
    if importlib.util.find_spec("nnunetv2"):
        peers += ["nnU-Net, sums in memory", "nnU-Net, sums on the device"]
    ours = [f"voxpatch, {kind}, sums {place}" for place in ["on the device", "in memory"] for kind in ["Zarr", ".npy"]]
    ways = [("predict", way) for way in limits + ours + peers]
    ways += [("train", "alone"), ("train", "voxpatch.Queue")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            command = [sys.executable, *sys.argv, "--way", *way]
            told = measure.run(command, given.seconds, len(os.sched_getaffinity(0)), given.folder)
            print(*way, told, file=sys.stderr, flush=True)
            found[way].append(told)
    print(f"{given.classes} classes, patches of {given.patch} in batches of {given.batch}, on {given.device}\n")
    print("| what | how | seconds | anonymous MiB | device MiB |\n|---|---|---|---|---|")
    for (kind, way), all_told in found.items():
        good = [told for told in all_told if "error" not in told]
        if not good:
            print(f"| {kind} | {way} | {all_told[-1]['error']} | | |")
            continue
        seconds, held = (statistics.median(told[key] for told in good) for key in ("seconds", "peak_anonymous_bytes"))
        device = max(told.get("device_bytes", 0) for told in good)
        print(f"| {kind} | {way} | {seconds:.4g} | {held / 2**20:.0f} | {f'{device / 2**20:.0f}' if device else ''} |")


if __name__ == "__main__":
    main()
