#!/usr/bin/env python3
"""Random 96^3 patches per second, page cache warm: the loader beside TensorStore, in one run.

    scripts/bench_patches.py --voxpatch target/release/voxpatch FOLDER

FOLDER holds a scan in the ways that `cargo bench --bench patches -- SCAN FOLDER` stores it. Each
measurement is a process of its own; both sides take turns, and what is printed is the median of
the rounds. Without the `tensorstore` package only our side runs.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

STORES = ["i16bz.zarr", "f32lz4.zarr", "f32raw.zarr", "i16s256.zarr"]
PATCH = 96


def read_with_tensorstore(path, count):
    """Eight reads in flight, no more than 100 MiB of chunks kept; prints patches per second."""
    import random
    import time
    from collections import deque

    import tensorstore

    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(Path(path) / "0")}},
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 100 << 20}}),
        open=True,
        read=True,
    ).result()
    draw = random.Random(1)
    flying = deque()
    began = time.perf_counter()
    for _ in range(count):
        z, y, x = (draw.randrange(n - PATCH + 1) for n in array.shape)
        flying.append(array[z : z + PATCH, y : y + PATCH, x : x + PATCH].read())
        if len(flying) == 8:
            flying.popleft().result()
    for read in flying:
        read.result()
    print(count / (time.perf_counter() - began))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tensorstore", metavar="COUNT", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tensorstore:
        return read_with_tensorstore(arguments.folder, arguments.tensorstore)

    def run(*command):
        return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout

    def ours(path, memory):
        options = ["--patch", PATCH, "--count", 1500, "--memory", f"{memory}MiB", "--json"]
        return json.loads(run(arguments.voxpatch, "sample", path, *options))["patches_per_second"]

    sides = {f"voxpatch, {memory} MiB": lambda path, memory=memory: ours(path, memory) for memory in (128, 512)}
    if importlib.util.find_spec("tensorstore"):
        sides["TensorStore"] = lambda path: float(run(sys.executable, __file__, path, "--tensorstore", 400))
    else:
        print("tensorstore is not installed: only our side runs", file=sys.stderr)
    print("| store | " + " | ".join(sides) + " | ratio at 128 MiB | ratio at 512 MiB |")
    print("|---" * (len(sides) + 3) + "|")
    for name in STORES:
        path = arguments.folder / name
        rates = {side: [] for side in sides}
        for round_ in range(arguments.rounds + 1):
            for side, measure in sides.items():
                rate = measure(path)
                if round_:  # the first round only warms the page cache
                    rates[side].append(rate)
        medians = [statistics.median(rates[side]) for side in sides]
        ratios = [f"{mine / medians[2]:.1f}" if len(medians) > 2 else "" for mine in medians[:2]]
        print(f"| {name} | " + " | ".join(f"{rate:.0f}" for rate in medians) + f" | {' | '.join(ratios)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
