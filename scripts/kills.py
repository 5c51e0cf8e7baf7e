#!/usr/bin/env python3
"""Kills `voxpatch infer --resume` at random moments, goes on with it, and compares with an unbroken run.

    scripts/kills.py --voxpatch target/release/voxpatch --kills 100

Runs into one output are killed (SIGKILL) until one gets to the end; then the next output is begun, until
there were enough kills. Every output must have the files of the unbroken run, byte for byte, pass
`voxpatch verify`, and leave nothing beside it; parts 1, 2, 3 and 8 are compared alike.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def digest(folder):
    """Of the names and bytes of all chunks and of the arrays' documents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if str(name) != "zarr.json":  # it holds the output's name
            total.update(str(name).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        scan = folder / "scan.npy"
        np.save(scan, np.random.default_rng(3).normal(size=(192, 128, 128)).astype(np.float32))

        def command(target, *more):
            words = [arguments.voxpatch, "infer", scan, folder / target, "--patch", 48, "--overlap", 24, "--model",
                     "gaussian:1", "--chunk", 16, "--shard", 32, "--pyramid", "mean", *more]
            return [str(word) for word in words]

        began = time.monotonic()
        subprocess.run(command("whole.zarr"), check=True, stdout=subprocess.DEVNULL)
        whole, expected = time.monotonic() - began, digest(folder / "whole.zarr")
        kills = outputs = 0
        while kills < arguments.kills:
            target = folder / f"{outputs}.zarr"
            outputs += 1
            while not target.exists():
                child = subprocess.Popen(command(target.name, "--resume"), stdout=subprocess.DEVNULL)
                try:
                    child.wait(draw.uniform(0, whole * 0.8))
                    failed += child.returncode != 0
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                    kills += 1
            verified = subprocess.run([arguments.voxpatch, "verify", target], stdout=subprocess.DEVNULL).returncode == 0
            same = digest(target) == expected
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            failed += not (same and verified and not left)
            print(f"output {outputs}, {kills} kills so far: same {same}, verified {verified}, left {left}", flush=True)
        for parts in (1, 2, 3, 8):
            for part in draw.sample(range(parts), parts):
                more = ["--part", f"{part}/{parts}"]
                subprocess.run(command(f"parts{parts}.zarr", *more), check=True, stdout=subprocess.DEVNULL)
            same = digest(folder / f"parts{parts}.zarr") == expected
            failed += not same
            print(f"{parts} parts: same {same}", flush=True)
    print(f"{kills} kills, {outputs} outputs, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
