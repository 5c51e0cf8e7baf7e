#!/usr/bin/env python3
"""Kills `voxpatch infer --resume` and `voxpatch convert` at random moments, resumes them, and compares with
uninterrupted runs.

    scripts/kills.py --voxpatch target/release/voxpatch --kills 200

A third of the kills (SIGKILL) hit runs of infer into one output, until one run finishes; then the next output is
started. Every output must have the files of the uninterrupted run, byte for byte, pass `voxpatch verify`, and leave
nothing next to it. Runs in 1, 2, 3 and 8 parts are compared in the same way. The second third hit parts in any order,
with different threads and memory each time: the bytes must be those of an uninterrupted run of the process that started
the output. The last third hit convert, alternating between Zarr and flat files: its output must be complete or not
exist, and the same command must complete it.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rig


def killed(words, after):
    """Runs a command for a number of seconds. Returns True if it had to be killed."""
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
    """Kills inference. Returns the number of wrong outputs."""
    scan, whole = folder / "scan.npy", folder / "whole" / "out.zarr"
    rig.write_scan(scan, (192, 128, 128))
    whole.parent.mkdir()

    def command(target, *more):
        return [voxpatch, "infer", scan, target, "--patch-size", 48, "--overlap", 24, "--model", "gaussian:1", "--chunk", 16,
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
        if was_killed and rig.left(target.parent):
            # Killed between naming the output and cleaning up: the same command does the rest.
            rig.sound(command(target, "--resume", "--durability", durability))
        left = rig.left(target.parent)
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


def parts(voxpatch, folder, kills, draw):
    """Kills parts that run in any order. Returns the number of wrong outputs."""
    scan, whole = folder / "scan.npy", folder / "whole parts" / "out.zarr"
    means = [["--threads", threads, "--memory", memory] for threads in (1, 3) for memory in ("28MiB", "40MiB", "256MiB")]

    def command(target, *more):
        return [voxpatch, "infer", scan, target, "--patch-size", 48, "--overlap", 24, "--model", "gaussian:1", "--chunk", 8,
                "--pyramid", "mean", *more]

    expected, took = set(), 0
    for n, mean in enumerate(means):
        target = folder / f"whole parts {n}" / whole.name
        target.parent.mkdir()
        took = max(took, timed(command(target, *mean)))
        expected.add(rig.digest(target))
    done = outputs = failed = 0
    while done < kills:
        target = folder / f"any parts {outputs}" / "out.zarr"
        target.parent.mkdir()
        outputs += 1
        count, runs = draw.choice([1, 2, 3, 5]), 0
        while not target.exists() and runs < 500:
            runs += 1
            part = f"{draw.randrange(count)}/{count}"
            words = command(target, "--part", part, *draw.choice(means))
            if draw.random() < 0.5:
                done += killed(words, draw.uniform(0, took / count))
            else:
                rig.sound(words)
        for part in draw.sample(range(count), count):
            # A late part reports that everything is done, and cleans up.
            late = rig.run(command(target, "--part", f"{part}/{count}", "--json", *draw.choice(means)))
            told = '"whole": true' in late.stdout or (count == 1 and "exists already" in late.stderr)
            failed += not told
        same, left = rig.digest(target) in expected, rig.left(target.parent)
        failed += not same or bool(left)
        print(f"{count} parts, {runs} runs, {done} kills so far: same {same}, left {left}", flush=True)
    print(f"{len(expected)} ways to store it", flush=True)
    return done, outputs, failed


def converts(voxpatch, folder, kills, draw):
    """Kills conversions. Returns the number of wrong outputs."""
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
                print(f"convert {runs}: {name} differs from an uninterrupted run; visible: {visible}", flush=True)
    print(f"{done} kills of {runs} conversions, {failed} wrong", flush=True)
    return done, failed


def main():
    asked = rig.arguments(__doc__, kills=200)
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        third = asked.kills // 3
        done, outputs, failed = infers(asked.voxpatch, folder, asked.kills - 2 * third, draw)
        of_parts, more_outputs, stuck = parts(asked.voxpatch, folder, third, draw)
        more, wrong = converts(asked.voxpatch, folder, third, draw)
    failed += stuck + wrong
    print(f"{done + of_parts + more} kills, {outputs + more_outputs} outputs of infer, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
