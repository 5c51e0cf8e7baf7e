#!/usr/bin/env python3
"""The overhead of Python: processor time per patch from the queue, compared with the Rust loader that it drives.

Reads random patches of a synthetic float32 scan with a warm page cache, with two threads and with none. All variants
alternate, and the medians of several rounds are printed. Processor time is that of all threads, because other work on
the machine hardly changes it. The share of the consumer's own thread is printed too, because a network waits for it.
Needs a package that was built with the feature `testing`, whose `_drained` takes patches without Python in between.

    python scripts/bench_python.py [--patch 96] [--count 300] [--rounds 9]
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import voxpatch
from voxpatch import _voxpatch


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Returns the processor time of all threads, and of this thread."""
    began, own = time.process_time(), time.thread_time()
    work()
    return time.process_time() - began, time.thread_time() - own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Smooth along x, as a scan is, so that it compresses.
        scan = np.cumsum(random.integers(-9, 10, (256, 256, 256)), axis=2).astype(np.float32)
        voxpatch.write(folder / "sharded.zarr", scan)
        np.save(folder / "mapped.npy", scan)
        print("| file | threads | Rust loader, ms a patch | queue | queue, batches of 1 | queue, batches of 4 |")
        print("|---|---|---|---|---|---|")
        for file in ("sharded.zarr", "mapped.npy"):
            for threads in (2, 0):
                row(folder / file, threads, arguments)


def row(path: pathlib.Path, threads: int, arguments: argparse.Namespace) -> None:
    subject = voxpatch.Subject(ct=path)

    def queue(batch_size: int | None) -> voxpatch.Queue:
        sampler = voxpatch.UniformSampler(arguments.patch)
        return voxpatch.Queue(
            [subject], sampler, arguments.count, threads=threads, max_length=64, batch_size=batch_size
        )

    def taken(batch_size: int | None) -> Callable[[], Any]:
        own = queue(batch_size)

        def work() -> None:
            own.set_epoch(0)
            for _ in own:
                pass

        return work

    def rust() -> Callable[[], Any]:
        own = queue(None)

        def work() -> None:
            own.set_epoch(0)
            _voxpatch._drained(iter(own)._loader)  # type: ignore[attr-defined]

        return work

    ways = [rust(), taken(None), taken(1), taken(4)]
    seconds: list[list[tuple[float, float]]] = [[] for _ in ways]
    for _ in range(arguments.rounds):
        for way, found in zip(ways, seconds, strict=True):
            found.append(timed(way))
    per_patch = [[1000 * statistics.median(each) / arguments.count for each in zip(*found, strict=True)] for found in seconds]
    base = per_patch[0][0]
    cells = [f"{base:.2f}"]
    cells += [f"{all_of_it:.2f} ({100 * (all_of_it / base - 1):+.1f} %), {own:.2f} here" for all_of_it, own in per_patch[1:]]
    print(f"| {path.name} | {threads} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
