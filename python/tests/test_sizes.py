"""Every argument that is a size: whatever it is given, a typed error or a result, and never much memory."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import voxpatch

#: Numbers that are no sizes, or huge ones. A size of 10**12 may be allowed where nothing is allocated for it.
VALUES = """
[-1, 0, -(2**31), 10**12, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, math.nan,
 math.inf, -math.inf, "8", "", b"8", [], [8], [8, 8], [8, 8, 8, 8], [8, 8, -1], [8, 8, 2**63], [8, 8, math.nan], {}, object(),
 np.int64(-1), np.int8(-1), np.uint64(2**64 - 1), np.float32("nan"), np.float64(8.5), np.array([]), np.array(-1),
 np.array([2**62] * 3), np.array([math.nan] * 3), np.zeros((2, 2), int), iter(range(10**9)), itertools.count()]
"""
#: Forms in which an ordinary size comes.
FORMS = "[1, True, np.int8(1), np.uint64(1), np.array(1), np.int64(1)]"

#: What takes a size, given as `v`.
ARGUMENTS = {
    "UniformSampler": "first(Queue([subject], UniformSampler(v), 1, threads=0))",
    "samples_per_subject": "len(Queue([subject], UniformSampler(8), v))",
    "samples_per_subject of each": "len(Queue([subject], UniformSampler(8), [v]))",
    "max_length": "first(Queue([subject], UniformSampler(8), 3, max_length=v, threads=1))",
    "queue's memory": "first(Queue([subject], UniformSampler(8), 3, memory=v, threads=1))",
    "queue's batch_size": "first(Queue([subject], UniformSampler(8), 3, batch_size=v, threads=0))",
    "seed": "first(Queue([subject], UniformSampler(8), 3, seed=v, threads=0))",
    "world_size": "len(Queue([subject], UniformSampler(8), 3, rank=0, world_size=v))",
    "rank": "len(Queue([subject], UniformSampler(8), 3, rank=v, world_size=2))",
    "epoch": "queue.set_epoch(v) or first(queue)",
    "GridSampler": "len(GridSampler(array, v))",
    "GridSampler's overlap": "len(GridSampler(array, 8, v))",
    "halo": "added(halo=v)",
    "scale": "added(scale=v)",
    "aggregator's chunk": "added(output=out, chunk=v, shard=None)",
    "predict": "predict(same, array, out, v)",
    "overlap": "predict(same, array, out, 8, v)",
    "predict's batch_size": "predict(same, array, out, 8, batch_size=v)",
    "predict's halo": "predict(same, array, out, 8, halo=v)",
    "predict's scale": "predict(same, array, out, 8, scale=v)",
    "margin": "predict(same, array, out, 8, padding='edge', margin=v)",
    "predict's memory": "predict(same, array, out, 8, memory=v)",
    "part": "predict(same, array, out, 8, part=v, num_parts=2, model_id='same', chunk=8, shard=None)",
    "num_parts": "predict(same, array, out, 8, part=0, num_parts=v, model_id='same', chunk=8, shard=None)",
    "chunk": "write(out, array, chunk=v, shard=None)",
    "shard": "write(out, array, chunk=1, shard=v)",
    "write's memory": "write(out, array, memory=v)",
    "clevel": "write(out, array, clevel=v)",
    "level": "open(stored, level=v)",
    "channels": "open(stored, channels=v)",
    "box": "open(stored, box=[(0, 8), (0, v), (0, 8)])",
    "an index": "open(stored)[0, v]",
    "a slice": "open(stored)[0, :v]",
    "LazySubjects": "len(Queue(LazySubjects(v, lambda n: subject), UniformSampler(8), 1))",
}
#: Tried with no more than what a machine has: a thread each.
THREADS = {
    "queue's threads": "first(Queue([subject], UniformSampler(8), 3, threads=v))",
    "predict's threads": "predict(same, array, out, 8, threads=v)",
    "write's threads": "write(out, array, threads=v)",
}

PROGRAM = """
import itertools, json, math, os, resource, shutil, sys, tempfile, time
import numpy as np
import voxpatch
from voxpatch import GridAggregator, GridSampler, LazySubjects, Queue, Subject, UniformSampler, open, predict, write

expression, values = sys.argv[1], eval(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
folder = tempfile.mkdtemp(dir=sys.argv[3])
out, stored = os.path.join(folder, "out.zarr"), os.path.join(folder, "stored.zarr")
array = np.ones((16, 16, 16), np.float32)
write(stored, array, chunk=8, shard=None)
subject = Subject(ct=stored)
queue = Queue([subject], UniformSampler(8), 2, threads=0)
same = lambda batch: batch

def first(queue):
    return next(iter(queue))

def added(output=None, **options):
    sampler = GridSampler(array, 8)
    aggregator = GridAggregator(sampler, "crop", output, **options)
    aggregator.add_batch(sampler[0]["image"][None], sampler[0]["location"][None])

results = []
for v in values:
    shutil.rmtree(out, ignore_errors=True)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    shown = type(v).__name__ if hasattr(v, "__next__") else repr(v)
    try:
        eval(expression)
        kind = "done"
    except Exception as error:
        typed = isinstance(error, (voxpatch.VoxpatchError, TypeError)) and not isinstance(error, voxpatch.errors.PanicError)
        kind = "refused" if typed else f"{type(error).__name__}: {error}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.append([shown, kind, grown >> 10, time.monotonic() - began])
print(json.dumps(results))
"""


def results(expression: str, values: str, folder: pathlib.Path) -> list[tuple[str, str, int, float]]:
    """What became of each value: "done", "refused" with an error of ours, or another error; MiB and seconds that it took."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(voxpatch.__file__).parent.parent)}
    command = [sys.executable, "-c", PROGRAM, expression, values, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[tuple[str, str, int, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("what", ARGUMENTS)
def test_every_size_is_a_result_or_a_typed_error(what: str, tmp_path: pathlib.Path) -> None:
    found = results(ARGUMENTS[what], VALUES, tmp_path)
    wrong = [one for one in found if one[1] not in ("done", "refused") or one[2] > 300 or one[3] > 20]
    assert not wrong, wrong
    assert sum(one[1] == "refused" for one in found) > 10, "most are not sizes"


@pytest.mark.parametrize("what", THREADS)
def test_threads_are_numbers(what: str, tmp_path: pathlib.Path) -> None:
    values = VALUES.replace("10**12, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1,", "")
    values = values.replace("np.uint64(2**64 - 1), ", "").replace("True, ", "")
    found = results(THREADS[what], values, tmp_path)
    wrong = [one for one in found if one[1] not in ("done", "refused") or one[2] > 300 or one[3] > 20]
    assert not wrong, wrong


@pytest.mark.parametrize("what", [*ARGUMENTS, *THREADS])
def test_every_size_may_be_any_kind_of_whole_number(what: str, tmp_path: pathlib.Path) -> None:
    found = results({**ARGUMENTS, **THREADS}[what], FORMS, tmp_path)
    kinds = {one[1] for one in found if one[0] != "True"}
    assert len(kinds) == 1 and kinds <= {"done", "refused"}, found
