#!/usr/bin/env python3
"""Simulates power failures while `voxpatch` writes to a disk, and checks the disk's content.

    scripts/powercut.py --voxpatch target/release/voxpatch --cuts 20

The disk is an ext4 file system in a file, mounted by a loop device. At a random moment the writer is stopped, and the
file is copied: it contains what the device has received, as after a power failure. (A copy that changed while it was
made is repeated.) On the copy, every chunk under its final name and every chunk in the journal of `infer --resume
--durability chunk` must be that of an undisturbed run, and resuming must give that run's bytes. An output of `convert`
must be complete or not exist. Needs root; exits with 77 if mounting is not possible.
"""

import json
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import rig


@contextmanager
def mounted(image, folder, options):
    folder.mkdir(exist_ok=True)
    rig.sound(["mount", "-o", f"loop,{options}", image, folder])
    try:
        yield folder
    finally:
        rig.sound(["umount", folder])


def disk(image):
    with open(image, "wb") as file:
        file.truncate(96 << 20)
    rig.sound(["mkfs.ext4", "-q", "-F", image])


def snapshot(image, copy):
    """Copies the device's content, and repeats this until it did not change during the copy."""
    for _ in range(20):
        rig.sound(["cp", "--sparse=always", image, copy])
        if rig.run(["cmp", image, copy]).returncode == 0:
            return
    raise SystemExit("the disk never came to rest while its writer was stopped")


def cut(words, image, copy, after):
    """Runs a command for some seconds, copies the disk, and kills the command. Returns True if it was still running."""
    child = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    child.send_signal(signal.SIGSTOP)
    snapshot(image, copy)
    running = child.poll() is None
    child.kill()
    child.wait()
    return running


CRC32C = [0] * 256
for _n in range(256):
    _sum = _n
    for _ in range(8):
        _sum = _sum >> 1 ^ 0x82F63B78 * (_sum & 1)
    CRC32C[_n] = _sum


def crc32c(bytes):
    total = 0xFFFFFFFF
    for byte in bytes:
        total = total >> 8 ^ CRC32C[(total ^ byte) & 255]
    return total ^ 0xFFFFFFFF


def journalled(partial):
    """Returns the chunks that are finished according to a journal: the path of each, and its length, or None for one
    without a file."""
    path = partial / "journal.0-of-1"
    if not path.exists():
        return {}
    text, found = path.read_bytes(), {}
    start = len(b"voxpatch journal 1\n")
    at = start + 12 + struct.unpack_from("<Q", text, start)[0]
    while len(record := text[at : at + 56]) == 56 and crc32c(record[:52]) == struct.unpack_from("<I", record, 52)[0]:
        level, stored, _, z, y, x, length = struct.unpack_from("<IIQQQQQ", record)
        found[f"{level}/c/{z}/{y}/{x}"] = length if stored else None
        at += 56
    return found


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def infer(voxpatch, place, scan, cuts, draw):
    words = [voxpatch, "infer", scan, "TARGET", "--patch-size", 32, "--overlap", 16, "--model", "gaussian:1", "--chunk", 16,
             "--shard", "none", "--threads", 2, "--resume", "--durability", "chunk"]

    def command(target):
        return [target if word == "TARGET" else word for word in words]

    image, copy = place / "disk.img", place / "copy.img"
    disk(image)
    with mounted(image, place / "disk", "commit=30") as folder:
        began = time.monotonic()
        rig.sound(command(folder / "out.zarr"))
        took, whole, expected = time.monotonic() - began, files(folder / "out.zarr"), rig.digest(folder / "out.zarr")
    totals = dict(cuts=0, published=0, files=0, damaged=0, noted=0, noted_but_damaged=0, notes_lost=0, not_resumed=0)
    for _ in range(cuts):
        disk(image)
        with mounted(image, place / "disk", "commit=30") as folder:
            cut(command(folder / "out.zarr"), image, copy, draw.uniform(0.1, 1.1) * took)
            before = journalled(folder / ".out.zarr.partial")
        with mounted(copy, place / "copy", "commit=30") as folder:
            partial, target = folder / ".out.zarr.partial", folder / "out.zarr"
            published = target.exists()
            data = target if published else partial / "data"
            found, notes = files(data) if data.exists() else {}, journalled(partial)
            totals["cuts"] += 1
            totals["published"] += published
            totals["files"] += len(found)
            totals["damaged"] += sum(whole.get(name) != bytes for name, bytes in found.items())
            totals["noted"] += len(notes)
            totals["noted_but_damaged"] += sum(found.get(name) != whole.get(name) for name in notes)
            totals["notes_lost"] += 0 if published else len(before.keys() - notes.keys())
            if not published:
                rig.sound(command(target))
            verified = rig.run([voxpatch, "verify", target]).returncode == 0
            same = rig.digest(target) == expected
            # A power failure between renaming and cleaning up leaves the empty folder of the run.
            left = [] if published else rig.left(folder)
            if not (verified and same) or left:
                totals["not_resumed"] += 1
                print(f"  published {published}, verified {verified}, same {same}, left {left}", flush=True)
    return totals


def convert(voxpatch, place, scan, cuts, draw):
    image, copy = place / "disk.img", place / "copy.img"
    totals = dict(cuts=0, absent=0, whole=0, damaged=0)
    names = {"out.zarr": ["--chunk", 16, "--shard", 32], "out.npy": []}
    expected, took = {}, {}
    for name, more in names.items():
        disk(image)
        with mounted(image, place / "disk", "commit=30") as folder:
            began = time.monotonic()
            rig.sound([voxpatch, "convert", scan, folder / name, *more])
            took[name], expected[name] = time.monotonic() - began, rig.digest(folder / name)
    for n in range(cuts):
        name = list(names)[n % 2]
        disk(image)
        with mounted(image, place / "disk", "commit=30") as folder:
            cut([voxpatch, "convert", scan, folder / name, *names[name]], image, copy, draw.uniform(0.5, 1.3) * took[name])
        with mounted(copy, place / "copy", "commit=30") as folder:
            found = rig.digest(folder / name)
            totals["cuts"] += 1
            totals["absent" if found is None else "whole" if found == expected[name] else "damaged"] += 1
            if found is None:
                rig.sound([voxpatch, "convert", scan, folder / name, *names[name]])
                totals["damaged"] += rig.digest(folder / name) != expected[name]
    return totals


def main():
    asked = rig.arguments(__doc__, cuts=20, size=96)
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        try:
            disk(place / "disk.img")
            with mounted(place / "disk.img", place / "disk", "commit=30"):
                pass
        except (OSError, SystemExit) as error:
            print(f"SKIPPED: no ext4 file system can be mounted here ({error})")
            return 77
        scan = place / "scan.npy"
        rig.write_scan(scan, (asked.size,) * 3)
        inferred = infer(asked.voxpatch, place, scan, asked.cuts, draw)
        print("infer --resume --durability chunk: " + json.dumps(inferred), flush=True)
        converted = convert(asked.voxpatch, place, scan, asked.cuts, draw)
        print("convert: " + json.dumps(converted), flush=True)
    return int(bool(inferred["damaged"] or inferred["noted_but_damaged"] or inferred["not_resumed"] or converted["damaged"]))


if __name__ == "__main__":
    sys.exit(main())
