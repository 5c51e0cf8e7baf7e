"""Cases, and runs with alternating sides."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import install, measure, volumes


@dataclass(frozen=True)
class Metric:
    key: str
    unit: str
    more_is_better: bool


RATE = Metric("patches_per_second", "patches/s", True)
FIRST = Metric("first_patch_seconds", "s to the first patch", False)
JOB = Metric("job_seconds", "s from file to file", False)
ALONE = Metric("seconds", "s in memory alone", False)
STALL = Metric("stall_seconds", "s of stall", False)
FIRST_BATCH = Metric("first_batch_seconds", "s to the first batch", False)
EPOCH = Metric("seconds", "s for the epoch", False)
WHOLE = Metric("whole_seconds", "s from opening to the last patch", False)
TIME = Metric("seconds", "s", False)


@dataclass
class Side:
    """One tool in a case. `command` returns the command line for the last result, which is None in the first round.
    `budget` is the side's memory limit in MiB: it is compared with peers with the same budget, and with those without
    one. `translate` renames figures to the names that all sides use. With `calibrate`, first runs only determine a good
    count or budget. `reads` creates a volume that only this side reads. `last` is the result of the last run."""

    name: str
    command: Callable
    ours: bool = False
    package: str | None = None
    budget: int | None = None
    floor: Callable | None = None
    translate: Callable = dict
    reads: Callable | None = None
    calibrate: bool = False
    last: dict | None = None
    runs: list = field(default_factory=list)
    error: str | None = None


@dataclass
class Case:
    """A comparison of sides. `seconds` is the time limit of a run, and `weight` the case's share of the benchmark's
    time. A case with `curve` is a point of this curve, at `x`."""

    group: str
    name: str
    sides: list
    metrics: tuple
    reads: Callable
    weight: float
    rounds: int
    seconds: float
    threads: int
    cold: bool = False
    curve: str | None = None
    x: float | str | None = None

    @property
    def title(self):
        return f"{self.group}/{self.name}"


def peer(function, **arguments):
    """Returns the command line of a peer's function; paths may be created on demand."""
    def command(_last):
        known = {key: str(value()) if callable(value) else value for key, value in arguments.items()}
        return [sys.executable, "-m", "benchmark.peers", function, json.dumps(known)]

    return command


def run_case(case, reasons, folder, until, say):
    """Runs rounds until there are enough of them or the time is over; the first always runs."""
    for side in case.sides:
        if side.package in reasons:
            side.error = f"not installed: {reasons[side.package]}"
    paths = case.reads()
    for side in case.sides:
        if side.reads and not side.error:
            try:
                paths.append(side.reads())
            except subprocess.CalledProcessError as failed:
                side.error = install.last_line(failed.stderr.decode(errors="replace"))
    if not case.cold:
        for path in paths:
            volumes.warm(path)

    def run(side):
        if case.cold:
            for path in paths:
                volumes.drop(path)
        told = measure.run(side.command(side.last), case.seconds, case.threads, folder)
        side.error = told.get("error")
        side.last = None if side.error else {**told, **side.translate(told)}

    for side in case.sides:
        for _ in range(3 if side.calibrate else 0):  # a useful number of patches to measure: few are slower than many
            if not side.error:
                run(side)
    for number in range(case.rounds):
        if number and time.monotonic() > until:
            break
        for side in case.sides:
            if side.error:
                continue
            run(side)
            if side.error:
                say(f"{case.title}: {side.name}: {side.error}")
                continue
            side.runs.append(side.last)
            key = case.metrics[0]
            say(f"{case.title}: {side.name}: {side.last[key.key]:.4g} {key.unit}, {side.last['peak_anonymous_bytes'] / 2**20:.0f} MiB")
