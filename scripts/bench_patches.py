#!/usr/bin/env python3
"""Random 96^3 patches per second, page cache warm: the loader beside TensorStore and TorchIO, in one run.

    scripts/bench_patches.py --voxpatch target/release/voxpatch FOLDER

FOLDER holds a scan in the ways that `cargo bench --bench patches -- SCAN FOLDER` stores it. Each
measurement is a process of its own; all sides take turns, and what is printed is the median of
the rounds: patches per second, and in brackets the seconds to the first patch. Those of the peers begin
with opening the scan (TorchIO's with loading it into memory), ours with starting the loader. TensorStore
is measured on Zarr only, TorchIO on .npy only. Without its package a peer is left out. The ratios
are ours to the first peer of the line.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

STORES = ["i16bz.zarr", "f32lz4.zarr", "f32raw.zarr", "i16s256.zarr", "f32.npy"]
PATCH = 96


def read_with_tensorstore(path, count):
    """Eight reads in flight, no more than 100 MiB of chunks kept; prints patches per second."""
    import random
    import time
    from collections import deque

    import tensorstore

    began = time.perf_counter()
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}},
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 100 << 20}}),
        open=True,
        read=True,
    ).result()
    draw = random.Random(1)

    def read():
        z, y, x = (draw.randrange(n - PATCH + 1) for n in array.shape)
        return array[z : z + PATCH, y : y + PATCH, x : x + PATCH].read()

    read().result()
    first = time.perf_counter() - began
    flying = deque()
    began = time.perf_counter()
    for _ in range(count):
        flying.append(read())
        if len(flying) == 8:
            flying.popleft().result()
    for patch in flying:
        patch.result()
    print(json.dumps([count / (time.perf_counter() - began), first]))


def read_with_torchio(path, count):
    """A uniform sampler over the scan in memory, each patch touched; prints patches per second."""
    import time

    import numpy
    import torch
    import torchio

    began = time.perf_counter()
    scan = numpy.load(path)
    scan = torch.from_numpy(scan.reshape(1, *scan.shape[-3:]))
    subject = torchio.Subject(ct=torchio.ScalarImage(tensor=scan))
    patches = torchio.UniformSampler(PATCH)(subject, count + 1)
    next(patches)["ct"].data.clone()
    first = time.perf_counter() - began
    began = time.perf_counter()
    for patch in patches:
        patch["ct"].data.clone()
    print(json.dumps([count / (time.perf_counter() - began), first]))


PEERS = {"TensorStore": read_with_tensorstore, "TorchIO, in memory": read_with_torchio}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1500, help="patches of a measurement; the peers read 400 at most")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return PEERS[arguments.peer](arguments.folder, min(arguments.count, 400))

    def run(*command):
        parts = [str(part) for part in command]
        return json.loads(subprocess.run(parts, check=True, capture_output=True, text=True).stdout)

    def ours(memory):
        def measure(path):
            options = ["--patch", PATCH, "--count", arguments.count, "--memory", f"{memory}MiB", "--json"]
            told = run(arguments.voxpatch, "sample", path, *options)
            return told["patches_per_second"], told["first_patch_seconds"]

        return measure

    def theirs(peer):
        return lambda path: run(sys.executable, __file__, path, "--peer", peer, "--count", arguments.count)

    sides = {f"voxpatch, {memory} MiB": ours(memory) for memory in (128, 512)}
    for peer, package in {"TensorStore": "tensorstore", "TorchIO, in memory": "torchio"}.items():
        if importlib.util.find_spec(package):
            sides[peer] = theirs(peer)
        else:
            print(f"{package} is not installed: {peer} is left out", file=sys.stderr)
    print("| store | " + " | ".join(sides) + " | ratio at 128 MiB | ratio at 512 MiB |")
    print("|---" * (len(sides) + 3) + "|")
    for name in STORES:
        path = arguments.folder / name
        left_out = "TensorStore" if path.suffix == ".npy" else "TorchIO, in memory"
        found = {side: [] for side in sides if side != left_out}
        for round_ in range(arguments.rounds + 1):
            for side, figures in found.items():
                measured = sides[side](path)
                if round_:  # the first round only warms the page cache
                    figures.append(measured)
        medians = {side: [statistics.median(column) for column in zip(*figures)] for side, figures in found.items()}
        cells = [f"{medians[side][0]:.0f} ({medians[side][1]:.2f} s)" if side in medians else "" for side in sides]
        rates = [rate for rate, _ in medians.values()]
        ratios = [f"{mine / rates[2]:.1f}" if len(rates) > 2 else "" for mine in rates[:2]]
        print(f"| {name} | " + " | ".join(cells + ratios) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
