"""Helpers of the test rigs in this folder: synthetic volumes, runs, and digests of outputs. Standard library only."""

import argparse
import hashlib
import random
import struct
import subprocess
from pathlib import Path


def arguments(what, parts=(), **numbers):
    """Parses the arguments of a rig: the binary, a seed, whole numbers with these defaults, and the parts to run."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    parser.add_argument("--seed", type=int, default=1)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    if parts:
        parser.add_argument("parts", nargs="*", default=list(parts), help=f"of {', '.join(parts)}; all if none is given")
    found = parser.parse_args()
    found.voxpatch = found.voxpatch.resolve(strict=True)
    return found


def write_scan(path, shape, seed=3):
    """Writes uint16 noise, which is not compressible, to an .npy file."""
    head = "{'descr': '<u2', 'fortran_order': False, 'shape': (%d, %d, %d), }" % shape
    head += " " * (-(len(head) + 11) % 64) + "\n"
    voxels = random.Random(seed).randbytes(2 * shape[0] * shape[1] * shape[2])
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head.encode() + voxels)


def digest(output):
    """Returns the digest of the names and bytes of all files of an output; None if it does not exist."""
    if not output.exists():
        return None
    files = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(output.parent)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def run(words, **options):
    """Runs a command to its end and captures standard error."""
    words = [str(word) for word in words]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", **options)


def sound(words, **options):
    """Runs a command that must succeed."""
    done = run(words, **options)
    if done.returncode != 0:
        raise SystemExit(f"{words} ended with {done.returncode}: {done.stderr}")
    return done


def left(folder):
    """Returns the hidden names in a folder: those of unfinished outputs."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
