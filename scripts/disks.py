#!/usr/bin/env python3
"""Tests with full disks, failing disks, and files that are truncated while they are read.

    scripts/disks.py --voxpatch target/release/voxpatch --truncations 200

Full disks (tmpfs, and ext4 in a file): every writer must report it and leave nothing that looks finished. Once there is
room, the same command must give the bytes of an undisturbed run. A failing disk (an ext4 image that is truncated while
it is mounted) and a file that is truncated while patches are read from it, with 1 thread and with 4, must be an error
that names the file. Mounting needs root; tests that cannot mount are skipped with a message.
"""

import collections
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import rig

# Planes so small that voxels are copied out of a map; longer pieces are read by system calls.
MAPPED = (1600, 64, 64)


@contextmanager
def tmpfs(place):
    rig.sound(["mount", "-t", "tmpfs", "-o", "size=20m", "voxpatch-rig", place])
    try:
        yield
    finally:
        rig.sound(["umount", place])


@contextmanager
def ext4(place):
    image = place.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    rig.sound(["mkfs.ext4", "-q", "-F", "-m", "0", image])
    rig.sound(["mount", "-o", "loop", image, place])
    try:
        yield
    finally:
        rig.sound(["umount", place])
        image.unlink()


def leave(place, spare):
    """Fills a disk except for a number of bytes. Returns the file that fills it."""
    ballast = place / "ballast"
    free = os.statvfs(place)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - spare)
    return ballast


# Write chunks that fit on the disk, so that the output is started.
SMALL = ["--chunk", 16, "--shard", 32]


def full(voxpatch, folder):
    scan = folder / "scan.npy"
    rig.write_scan(scan, (96, 96, 96))
    infer = ["infer", scan, "TARGET", "--patch-size", 32, "--overlap", 8, "--dtype", "float32"]
    runs = [
        ("out.zarr", ["convert", scan, "TARGET"]),
        ("out.zarr", ["convert", scan, "TARGET", *SMALL]),
        ("out.zarr", ["convert", scan, "TARGET", "--zarr", 2, "--codec", "none"]),
        ("out.npy", ["convert", scan, "TARGET", "--dtype", "float32"]),
        ("out.nii", ["convert", scan, "TARGET", "--dtype", "float32"]),
        ("out.mhd", ["convert", scan, "TARGET", "--dtype", "float32"]),
        ("out.zarr", infer),
        ("out.zarr", [*infer, *SMALL]),
        ("out.npy", infer),
        ("out.zarr", [*infer, *SMALL, "--resume"]),
        ("out.zarr", [*infer, *SMALL, "--resume", "--durability", "chunk"]),
    ]
    wrong = 0
    for kind in (tmpfs, ext4):
        place = folder / kind.__name__
        place.mkdir()
        try:
            for name, words in runs:
                with kind(place):
                    wrong += not filled(voxpatch, kind.__name__, place, name, words)
        except SystemExit as error:
            print(f"SKIPPED: {kind.__name__} cannot be mounted here ({error})")
            continue
        print(f"full {kind.__name__}: {len(runs)} commands", flush=True)
    return wrong


def filled(voxpatch, kind, place, name, words):
    command = [voxpatch, *[place / name if word == "TARGET" else word for word in words]]
    rig.sound(command)
    expected = rig.digest(place / name)
    for path in list(place.iterdir()):
        if path.name != "lost+found":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.sync()
    ballast = leave(place, 1 << 20)
    done = rig.run(command)
    visible = [path.name for path in place.iterdir() if path.name not in ("ballast", "lost+found")]
    problems = []
    if done.returncode != 1 or "no space" not in done.stderr.lower():
        problems.append(f"it ended with {done.returncode}: {done.stderr}")
    if [path for path in visible if not path.startswith(".")] or (visible and "--resume" not in words):
        problems.append(f"it left {visible}")
    ballast.unlink()
    done = rig.run(command)
    if done.returncode != 0 or rig.digest(place / name) != expected or rig.left(place):
        problems.append(f"with room again, it ended with {done.returncode}, {done.stderr}, {rig.left(place)}")
    for problem in problems:
        print(f"  full {kind}, {words[0]} to {name}: {problem}", flush=True)
    return not problems


def failing(voxpatch, folder):
    """Reads from a disk whose end is missing."""
    place = folder / "failing"
    place.mkdir()
    words = [["convert", "SCAN", folder / "failed.zarr"], ["convert", "SCAN", folder / "failed.npy"],
             ["sample", "SCAN", "--patch-size", 24, "--samples-per-subject", 500, "--threads", 1],
             ["sample", "SCAN", "--patch-size", 24, "--samples-per-subject", 500, "--threads", 4],
             ["infer", "SCAN", folder / "failed.zarr", "--patch-size", 24, "--overlap", 8]]
    wrong = 0
    for command in words:
        try:
            with ext4(place):
                rig.write_scan(place / "scan.npy", MAPPED)
                os.sync()
                # The middle of the file: everything before it can be read.
                voxels = (place / "scan.npy").read_bytes()
                half = len(voxels) // 2 // 4096 * 4096
                middle = place.with_suffix(".img").read_bytes().index(voxels[half : half + 4096])
                # After mounting it again, nothing of it is in the system's cache.
                image = place.with_suffix(".img")
                rig.sound(["umount", place])
                rig.sound(["mount", "-o", "loop,ro", image, place])
                os.truncate(image, middle)
                done = rig.run([voxpatch, *[place / "scan.npy" if word == "SCAN" else word for word in command]])
                if done.returncode != 1 or "scan.npy" not in done.stderr or not re.search("input/output|disk failed", done.stderr, re.IGNORECASE):
                    wrong += 1
                    print(f"  failing disk, {command[0]}: it ended with {done.returncode}: {done.stderr}", flush=True)
        except SystemExit as error:
            print(f"SKIPPED: ext4 cannot be mounted here ({error})")
            return wrong
        made = [path.name for path in folder.iterdir() if path.name.startswith(("failed", ".failed"))]
        wrong += bool(made)
    print(f"failing disk: {len(words)} commands", flush=True)
    return wrong


def truncations(voxpatch, folder, count, draw):
    wrong = 0
    for threads in (1, 4):
        ends = collections.Counter()
        sound = folder / "sound.npy"
        rig.write_scan(sound, MAPPED)
        for _ in range(count):
            scan = folder / "cut.npy"
            shutil.copyfile(sound, scan)
            words = [voxpatch, "sample", scan, "--patch-size", 24, "--samples-per-subject", 2_000_000, "--threads", threads]
            child = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(draw.uniform(0.03, 0.3))
            os.truncate(scan, draw.randrange(0, sound.stat().st_size))
            try:
                _, error = child.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                _, error = child.communicate()
                ends["it went on for a minute"] += 1
                continue
            named = child.returncode == 1 and "cut.npy" in error
            ends["an error that names the file" if named else f"exit status {child.returncode}"] += 1
        wrong += count - ends["an error that names the file"]
        print(f"{count} truncations, {threads} threads: {dict(ends)}", flush=True)
    return wrong


def main():
    asked = rig.arguments(__doc__, ("full", "failing", "truncations"), truncations=200)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        if "full" in asked.parts:
            wrong += full(asked.voxpatch, Path(folder))
        if "failing" in asked.parts:
            wrong += failing(asked.voxpatch, Path(folder))
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        if "truncations" in asked.parts:
            wrong += truncations(asked.voxpatch, Path(folder), asked.truncations, random.Random(asked.seed))
    print(f"{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
