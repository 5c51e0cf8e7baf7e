#!/usr/bin/env python3
"""Tests every way to run a queue in a torch DataLoader: no hang, no duplicate patch, no lost patch.

For each start method, number of worker processes, kind of file or store, parent that has or has not read before, and persistent
or temporary workers, three epochs are compared with the same epochs without workers, patch by patch, in a process with
a limit of 60 seconds. Prints a table; the exit code is 1 if any case is wrong. Needs torch, and the package voxpatch.

    python scripts/fork_matrix.py [--short] [--seconds 60] [--kinds npy,sharded,zarr2,remote]
        [--methods fork] [--workers 2] [--parents warm]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from store_server import served

EPOCHS = 3
SUBJECTS = 5
SAMPLES = 9

#: The environment variable with the address of the store of remote volumes.
STORE = "VOXPATCH_FORK_STORE"


def make_data(folder: pathlib.Path) -> None:
    import numpy as np
    import voxpatch

    random = np.random.default_rng(1)
    for n in range(SUBJECTS):
        voxels = random.integers(0, 30_000, (48, 40, 44)).astype(np.int16)
        np.save(folder / f"{n}.npy", voxels)
        voxpatch.write(folder / f"{n}.zarr", voxels, chunk=16, shard=32)
        voxpatch.write(folder / f"{n}-flat.zarr", voxels, zarr=2, chunk=16, codec="blosc-lz4")


def queue(folder: pathlib.Path, kind: str, batch: int | None):
    import voxpatch

    end = {"npy": ".npy", "sharded": ".zarr", "zarr2": "-flat.zarr", "remote": ".zarr"}[kind]
    scans = [folder / f"{n}{end}" for n in range(SUBJECTS)]
    if kind == "remote":
        options = {"endpoint_url": os.environ[STORE], "anon": True, "region": "us-east-1"}
        scans = [voxpatch.open(f"s3://{folder.name}/{scan.name}", storage_options=options) for scan in scans]
    subjects = [voxpatch.Subject(ct=scan, number=n) for n, scan in enumerate(scans)]
    return voxpatch.Queue(
        subjects, voxpatch.UniformSampler(16), SAMPLES, threads=2, max_length=20, batch_size=batch
    )


def told(item) -> list[tuple]:
    """Returns the identity of each patch of a batch or of samples: its subject, its place, and a sum of its voxels."""
    places = item["location"].reshape(-1, 6).tolist()
    numbers = [one["number"] for one in item["subject"]] if isinstance(item["subject"], list) else item["subject"]["number"].tolist()
    sums = item["ct"].reshape(len(places), -1).long().sum(1).tolist()
    return list(zip(numbers, map(tuple, places), sums, strict=True))


def case(folder: pathlib.Path, kind: str, method: str, workers: int, warm: bool, persistent: bool, inside: bool) -> None:
    """Runs one case in a separate process; raises if an epoch is wrong."""
    import torch  # noqa: F401  (the queue is torch's if torch is there)
    from torch.utils.data import DataLoader

    # The reference is computed without a DataLoader.
    expected = []
    plain = queue(folder, kind, 4)
    for _ in range(EPOCHS):
        epoch = []
        for item in plain:
            item = {"ct": torch.from_numpy(item["ct"]), "location": item["location"], "subject": item["subject"]}
            epoch.extend(told(item))
        expected.append(epoch)
    if not warm:
        raise SystemExit("a cold parent is another process")
    check(folder, kind, method, workers, persistent, inside, expected, keep=plain)


def check(folder, kind, method, workers, persistent, inside, expected, keep=None) -> None:
    from torch.utils.data import DataLoader

    own = queue(folder, kind, 4 if inside else None)
    running = None
    if keep is not None:
        # Threads prefetch in the parent, and stop half-way, while it forks.
        running = iter(own)
        next(running)
        own.set_epoch(0)
    loader = DataLoader(
        own,
        batch_size=None if inside else 4,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        persistent_workers=persistent and workers > 0,
    )
    for n in range(EPOCHS):
        found = [patch for item in loader for patch in told(item)]
        if inside:
            assert found == expected[n], f"epoch {n}: the order differs"
        assert sorted(found) == sorted(expected[n]), f"epoch {n}: {len(found)} patches of {len(expected[n])}, {len(set(found))} different"
        assert len(own) == (-(-len(found) // 4) if inside else len(found)), "len"
    del running


def run(arguments: argparse.Namespace) -> int:
    kinds = arguments.kinds.split(",") if arguments.kinds else ["npy", "sharded", "remote"] if arguments.short else ["npy", "sharded", "zarr2", "remote"]
    methods = arguments.methods.split(",")
    parents = [name == "warm" for name in arguments.parents.split(",")]
    numbers = [int(number) for number in arguments.workers.split(",")]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name) / "data"
        folder.mkdir()
        make_data(folder)
        if "remote" in kinds:
            os.environ[STORE] = stack.enter_context(served(folder.parent, 2))
        wrong = 0
        print("| files | start | workers | parent | workers live on | batches by | result | seconds |")
        print("|---|---|---|---|---|---|---|---|")
        for kind, method, workers in itertools.product(kinds, methods, numbers):
            if workers == 0 and method != "fork":
                continue
            for warm, persistent, inside in itertools.product(parents, [False, True], [True, False]):
                if persistent and workers == 0:
                    continue
                if arguments.short and (persistent != inside or workers == 1):
                    continue
                began = time.monotonic()
                command = [sys.executable, __file__, "--case", str(folder), kind, method, str(workers)]
                command += [str(int(flag)) for flag in (warm, persistent, inside)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.seconds)
                    result = "ok" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
                except subprocess.TimeoutExpired:
                    result = "HANG"
                wrong += result != "ok"
                row = [kind, method, workers, "warm" if warm else "cold", persistent, "queue" if inside else "DataLoader"]
                print("|", " | ".join(map(str, row)), "|", result, "|", f"{time.monotonic() - began:.1f} |", flush=True)
        print(f"\n{wrong} wrong")
        return int(wrong > 0)


def one(words: list[str]) -> None:
    folder, kind, method, workers = pathlib.Path(words[0]), words[1], words[2], int(words[3])
    warm, persistent, inside = (word == "1" for word in words[4:])
    if warm:
        case(folder, kind, method, workers, warm, persistent, inside)
        return
    # A cold parent gets the reference from a different process.
    import pickle

    code = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import fork_matrix as m; m.reference({str(folder)!r}, {kind!r})"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    check(folder, kind, method, workers, persistent, inside, pickle.loads(text))


def reference(folder: str, kind: str) -> None:
    """Writes the patches of the epochs, for a process that has not read anything itself."""
    import pickle

    import torch

    plain = queue(pathlib.Path(folder), kind, 4)
    expected = []
    for _ in range(EPOCHS):
        epoch = []
        for item in plain:
            epoch.extend(told({**item, "ct": torch.from_numpy(item["ct"])}))
        expected.append(epoch)
    sys.stdout.buffer.write(pickle.dumps(expected))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a quarter of the cases")
    parser.add_argument("--seconds", type=float, default=60.0, help="a case that takes longer hangs")
    parser.add_argument("--kinds", help="kinds of volumes: npy, sharded, zarr2, and remote (sharded ones in a store)")
    parser.add_argument("--methods", default="fork,spawn,forkserver", help="start methods")
    parser.add_argument("--parents", default="warm,cold", help="parents that have read before, and that have not")
    parser.add_argument("--workers", default="0,1,2,4", help="numbers of workers")
    parser.add_argument("--case", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        one(arguments.case)
        return 0
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
