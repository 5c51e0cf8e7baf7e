#!/usr/bin/env python3
"""Compares the memory that `--dry-run` reports with the memory that the command takes.

    scripts/memory_promise.py --voxpatch target/release/voxpatch --runs 100 --model unet.onnx

Each run is one command with random settings (convert, sample, or infer with parts, pyramids, masks, flat files and Zarr
of several codecs), first with `--dry-run` and then without. Its anonymous memory is read from /proc every millisecond.
A command that takes over 16 MiB more than reported is a failure. Needs numpy.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MIB = 1 << 20
ALLOWED = 16 * MIB


def anonymous(pid):
    """Returns the anonymous memory of a process in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def watched(words):
    """Runs a command. Returns its exit status, its output, its errors and its peak in bytes."""
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.is_set():
            peak[0] = max(peak[0], anonymous(process.pid))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    ended.set()
    watcher.join()
    return process.returncode, out, err, peak[0]


def sound(words):
    status, out, err, _ = watched(words)
    if status != 0:
        sys.exit(f"{' '.join(map(str, words))}: {err}")
    return out


def inputs(voxpatch, place, shape, seed):
    """Creates one volume in many formats, a label map and a mask. Returns the names of the volumes."""
    noise = np.random.default_rng(seed)
    blocks = noise.integers(-1000, 1000, [n // 8 + 1 for n in shape], dtype=np.int16)
    voxels = blocks.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]]
    voxels = voxels + noise.integers(0, 64, shape, dtype=np.int16)
    np.save(place / "i16.npy", voxels)
    np.save(place / "f32.npy", voxels.astype(np.float32))
    labels = (voxels > 300).astype(np.uint8) + (voxels > 800)
    np.save(place / "labels.npy", labels.astype(np.uint8))
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 4 :, : shape[2] // 2] = 1
    np.save(place / "mask.npy", mask)
    names = ["i16.npy", "f32.npy"]

    def stored(source, target, *options):
        sound([voxpatch, "convert", place / source, place / target, *options])
        names.append(target)

    stored("i16.npy", "sharded.zarr")
    stored("f32.npy", "lz4.zarr", "--codec", "blosc-lz4", "--chunk", 64, "--shard", "none")
    stored("f32.npy", "large.zarr", "--codec", "zstd", "--chunk", 128, "--shard", "none")
    stored("i16.npy", "v2.zarr", "--zarr", 2)
    stored("i16.npy", "i16.nii")
    sound([voxpatch, "convert", place / "labels.npy", place / "labels.zarr", "--codec", "blosc-lz4"])
    sound([voxpatch, "convert", place / "mask.npy", place / "mask.zarr", "--chunk", 128, "--shard", "none"])
    subprocess.run(["gzip", "-1k", place / "i16.nii"], check=True)
    names.append("i16.nii.gz")
    return names


def storage(draw):
    """Returns random storage of an output: its extension and options."""
    if draw.random() < 0.25:
        return draw.choice([".npy", ".nii", ".nrrd"]), []
    words = []
    if draw.random() < 0.7:
        words += ["--codec", draw.choice(["zstd", "blosc-lz4", "blosc-zstd", "gzip", "none"])]
    kind = draw.randrange(4)
    if kind == 0:
        words += ["--chunk", draw.choice([32, 64, 100]), "--shard", "none"]
    elif kind == 1:
        words += ["--chunk", 32, "--shard", draw.choice([64, 128, 256])]
    elif kind == 2:
        words += ["--zarr", 2]
        words = [word if word != "blosc-zstd" else "zlib" for word in words]
    if draw.random() < 0.4:
        words += ["--pyramid", draw.choice(["mean", "mode"])]
    return ".zarr", words


def settings(draw, names, models):
    """Returns the words of a random command, without the program, and its number of parts."""
    common = ["--threads", draw.randint(1, 4), "--memory", f"{draw.choice([64, 100, 128, 256, 350, 512])}MiB"]
    source = draw.choice(names)
    kind = draw.random()
    if kind < 0.2:
        extension, words = storage(draw)
        if draw.random() < 0.3:
            words += ["--dtype", draw.choice(["float32", "uint8", "int32"]), "--clip"]
        return ["convert", source, f"out{extension}", *words, *common], 1
    if kind < 0.4:
        words = ["sample", source, "--patch-size", draw.choice([32, 64, "96,96,48", 128]), "--samples-per-subject", draw.choice([50, 300])]
        words += ["--seed", draw.randrange(1000)]
        if draw.random() < 0.5:
            words += ["--labels", draw.choice(["labels.npy", "labels.zarr"])]
        if draw.random() < 0.7:
            words += ["--out", draw.choice(["out.npy", "out.zarr", "out/"])]
        if draw.random() < 0.3:
            words += ["--border", draw.choice(["pad", "shift", "drop"])]
        return [*words, *common], 1
    extension, words = storage(draw)
    patch = draw.choice([48, 64, 96, 128, "32,128,128"])
    words += ["--patch-size", patch, "--overlap", draw.choice([0, 8, 16])]
    model = draw.choice(models)
    if model != "identity":
        words += ["--model", model]
        if draw.random() < 0.3:
            words += ["--normalize", "zscore" if draw.random() < 0.5 else "window:-500,500"]
        if draw.random() < 0.2:
            words += ["--tta", "flips"]
    if draw.random() < 0.3:
        words += ["--mask", draw.choice(["mask.npy", "mask.zarr"])]
    if draw.random() < 0.3:
        words += ["--batch-size", draw.choice([2, 4])]
    if draw.random() < 0.3:
        words += ["--accumulator", draw.choice(["bf16", "f32"])]
    if draw.random() < 0.3:
        words += ["--blend", draw.choice(["crop", "average", "gaussian", "linear"])]
    parts = 1
    if extension == ".zarr" and draw.random() < 0.4:
        parts = draw.choice([2, 3])
    elif extension == ".zarr" and draw.random() < 0.2:
        words += ["--resume"]
    return ["infer", source, f"out{extension}", *words, *common], parts


def cleared(place):
    for path in [*place.glob("out*"), *place.glob(".out*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxpatch", default="target/release/voxpatch")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", default="300,256,256")
    parser.add_argument("--model", action="append", default=[], help="a model to draw next to the built-in ones")
    parser.add_argument("--only", help="only commands that contain this word")
    options = parser.parse_args()
    voxpatch = Path(options.voxpatch).resolve()
    shape = [int(n) for n in options.shape.split(",")]
    models = ["identity", "gaussian:1.5", "threshold:-200,100,500"]
    models += [str(Path(model).resolve()) for model in options.model] * 2
    draw = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="voxpatch-memory-"))
    above, measured, refused = [], 0, 0
    worst = (-(1 << 60), "")
    try:
        names = inputs(voxpatch, place, shape, options.seed)
        while measured < options.runs:
            words, parts = settings(draw, names, models)
            if options.only and options.only not in map(str, words):
                continue
            named = [place / word if (place / str(word)).exists() or str(word).startswith("out") else word for word in words]
            for part in range(parts):
                own = ["--part", f"{part}/{parts}"] if parts > 1 else []
                status, out, err, _ = watched([voxpatch, *named, *own, "--dry-run", "--json"])
                if status != 0:
                    # Too little memory for these settings, or a format that cannot store the volume.
                    refused += 1
                    break
                told = json.loads(out)
                status, out, err, taken = watched([voxpatch, *named, *own, "--json"])
                if status != 0:
                    sys.exit(f"{' '.join(map(str, named))}: {err}")
                seen = json.loads(out).get("peak_anonymous_bytes") or taken
                taken = max(taken, seen)
                measured += 1
                promised = told["process_bytes"]
                over = taken - promised
                line = f"{taken / MIB:7.1f} MiB of {promised / MIB:7.1f}  {' '.join(map(str, [*words, *own]))}"
                print(("! " if over > ALLOWED else "  ") + line, flush=True)
                worst = max(worst, (over, words[0]))
                if over > ALLOWED:
                    above.append(line)
            cleared(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"worst: {worst[0] / MIB:.1f} MiB above, by {worst[1]}")
    print(f"{measured} runs, {refused} refused, {len(above)} more than {ALLOWED // MIB} MiB above what was reported")
    sys.exit(1 if above else 0)


if __name__ == "__main__":
    main()
