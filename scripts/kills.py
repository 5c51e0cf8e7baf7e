#!/usr/bin/env python3
"""Kills `voxpatch infer --resume` and `voxpatch convert` at random moments, goes on, and compares with unbroken runs.

    scripts/kills.py --voxpatch target/release/voxpatch --kills 200

Half of the kills (SIGKILL) go to runs of infer into one output, until one gets to the end; then the next output is
begun. Every output must have the files of the unbroken run, byte for byte, pass `voxpatch verify`, and leave nothing
beside it; parts 1, 2, 3 and 8 are compared alike. The other half go to convert, to Zarr and to flat files by turns:
its output is there and whole or not there at all, and the same command makes it.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rig


def killed(words, after):
    """Runs a command for so many seconds; true if it had to be killed."""
    child = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(after)
        return False
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return True


def timed(words):
    began = time.monotonic()
    rig.sound(words)
    return time.monotonic() - began


def infers(voxpatch, folder, kills, draw):
    """Kills inference; the number of outputs that are not as they should be."""
    scan, whole = folder / "scan.npy", folder / "whole" / "out.zarr"
    rig.write_scan(scan, (192, 128, 128))
    whole.parent.mkdir()

    def command(target, *more):
        return [voxpatch, "infer", scan, target, "--patch", 48, "--overlap", 24, "--model", "gaussian:1", "--chunk", 16,
                "--shard", 32, "--pyramid", "mean", *more]

    took, failed, done, outputs = timed(command(whole)), 0, 0, 0
    expected = rig.digest(whole)
    while done < kills:
        target = folder / str(outputs) / "out.zarr"
        target.parent.mkdir()
        durability = ["none", "chunk"][outputs % 2]
        outputs += 1
        was_killed = False
        while not target.exists():
            was_killed = killed(command(target, "--resume", "--durability", durability), draw.uniform(0, took * 0.8))
            done += was_killed
        same = rig.digest(target) == expected
        verified = rig.run([voxpatch, "verify", target]).returncode == 0
        # Killed between naming the output and tidying up, a run leaves its notes behind.
        left = [] if was_killed else rig.left(target.parent)
        failed += not (same and verified and not left)
        print(f"output {outputs}, {done} kills so far: same {same}, verified {verified}, left {left}", flush=True)
    for parts in (1, 2, 3, 8):
        target = folder / f"parts {parts}" / "out.zarr"
        target.parent.mkdir()
        for part in draw.sample(range(parts), parts):
            rig.sound(command(target, "--part", f"{part}/{parts}"))
        same = rig.digest(target) == expected
        failed += not same
        print(f"{parts} parts: same {same}", flush=True)
    return done, outputs, failed


def converts(voxpatch, folder, kills, draw):
    """Kills conversions; the number of outputs that are not as they should be."""
    scan = folder / "scan.npy"
    ways = []
    for name, more in [("out.zarr", ["--chunk", 16, "--shard", 64, "--pyramid", "mean"]), ("out.nii", [])]:
        words = [voxpatch, "convert", scan, folder / "whole convert" / name, *more]
        (folder / "whole convert").mkdir(exist_ok=True)
        took = timed(words)
        ways.append((name, more, took, rig.digest(words[3])))
    done = failed = runs = 0
    while done < kills:
        name, more, took, expected = ways[runs % 2]
        runs += 1
        with tempfile.TemporaryDirectory(dir=folder) as place:
            target = Path(place) / name
            words = [voxpatch, "convert", scan, target, *more]
            done += killed(words, draw.uniform(0, took))
            found = rig.digest(target)
            if found is None:
                rig.sound(words)
                found = rig.digest(target)
            visible = [path.name for path in Path(place).iterdir() if not path.name.startswith(".")]
            if found != expected or visible != [name]:
                failed += 1
                print(f"convert {runs}: {name} is not that of an unbroken run, beside {visible}", flush=True)
    print(f"{done} kills of {runs} conversions, {failed} wrong", flush=True)
    return done, failed


def main():
    asked = rig.arguments(__doc__, kills=200)
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        done, outputs, failed = infers(asked.voxpatch, folder, asked.kills - asked.kills // 2, draw)
        more, wrong = converts(asked.voxpatch, folder, asked.kills // 2, draw)
    print(f"{done + more} kills, {outputs} outputs of infer, {failed + wrong} failed")
    return int(failed + wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
