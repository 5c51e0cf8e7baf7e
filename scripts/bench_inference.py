#!/usr/bin/env python3
"""Sliding-window identity over a 1069 x 512 x 512 f32 scan, side by side with TorchIO and MONAI in memory.

    scripts/bench_inference.py --voxpatch target/release/voxpatch SCAN.npy

Patches of 128^3 that overlap by 64. Each measurement is a process of its own and all sides take turns;
printed are medians: seconds, million voxels of output per second, and peak anonymous memory. The peers hold the
scan and the output in memory, and their time is that of the patches alone; ours includes reading the scan
and writing the output. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PATCH, OVERLAP = 128, 64


def torchio_identity(volume, mode):
    import torch
    import torchio

    subject = torchio.Subject(ct=torchio.ScalarImage(tensor=torch.from_numpy(volume[None])))
    began = time.perf_counter()
    sampler = torchio.GridSampler(subject, PATCH, OVERLAP)
    aggregator = torchio.GridAggregator(sampler, overlap_mode=mode)
    for batch in torch.utils.data.DataLoader(sampler, batch_size=1):
        aggregator.add_batch(batch["ct"][torchio.DATA], batch[torchio.LOCATION])
    aggregator.get_output_tensor()
    return time.perf_counter() - began


def monai_identity(volume, mode):
    import torch
    from monai.inferers import sliding_window_inference

    tensor = torch.from_numpy(volume[None, None])
    began = time.perf_counter()
    sliding_window_inference(tensor, (PATCH,) * 3, 1, lambda window: window.clone(), overlap=0.5, mode=mode)
    return time.perf_counter() - began


PEERS = {
    "TorchIO hann": ("torchio", torchio_identity, "hann"),
    "TorchIO crop": ("torchio", torchio_identity, "crop"),
    "MONAI constant": ("monai", monai_identity, "constant"),
    "MONAI gaussian": ("monai", monai_identity, "gaussian"),
}


class Peak(threading.Thread):
    """The most anonymous memory of this process, looked at 50 times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak = max(self.peak, int(line.split()[1]) << 10)


def measure_peer(name, scan):
    import numpy

    _, run, mode = PEERS[name]
    volume = numpy.load(scan)
    peak = Peak()
    peak.start()
    seconds = run(volume, mode)
    peak.stopped.set()
    print(json.dumps({"seconds": seconds, "peak_anonymous_bytes": peak.peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="350MiB")
    parser.add_argument("--only", nargs="*", help="parts of names of sides")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return measure_peer(arguments.peer, arguments.scan)

    def run(*command):
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1] if "--peer" in command else done.stdout)

    with tempfile.TemporaryDirectory(dir=arguments.scan.parent) as folder:
        def ours(name, *flags):
            target = Path(folder) / name
            return lambda: run(arguments.voxpatch, "infer", arguments.scan, target, "--patch", PATCH, "--overlap", OVERLAP,
                               "--memory", arguments.memory, "--force", "--json", *flags)

        sides = {
            "voxpatch hann, Zarr zstd": ours("a.zarr", "--blend", "hann"),
            "voxpatch hann, Zarr blosc-lz4": ours("b.zarr", "--blend", "hann", "--codec", "blosc-lz4"),
            "voxpatch hann, .npy": ours("c.npy", "--blend", "hann"),
            "voxpatch crop, Zarr blosc-lz4": ours("d.zarr", "--blend", "crop", "--codec", "blosc-lz4"),
        }
        for name, (package, *_) in PEERS.items():
            if importlib.util.find_spec(package):
                sides[name] = lambda name=name: run(sys.executable, __file__, arguments.scan, "--peer", name)
        if arguments.only:
            sides = {name: side for name, side in sides.items() if any(part in name for part in arguments.only)}
        found = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                found[name].append(side())
                print(name, f"{found[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    voxels = 1069 * 512 * 512
    print("| | seconds | Mvoxel/s | peak anonymous MiB |")
    print("|---|---|---|---|")
    for name, runs in found.items():
        seconds = statistics.median(one["seconds"] for one in runs)
        peak = statistics.median(one["peak_anonymous_bytes"] for one in runs)
        print(f"| {name} | {seconds:.1f} | {voxels / seconds / 1e6:.0f} | {peak / 2**20:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
