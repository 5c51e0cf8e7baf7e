"""Manners: other threads go on, Ctrl-C stops, panics are exceptions, nothing starts at import."""

from __future__ import annotations

import gc
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import voxpatch
from conftest import faulty, needs_faulty
from voxpatch import Queue, Subject, UniformSampler


def counted(stop: threading.Event) -> int:
    """How far a thread counts until it is told to stop."""
    n = 0
    while not stop.is_set():
        n += 1
    return n


def rate(seconds: float, work: object) -> float:
    """Counts a second of another thread while `work` is called again and again."""
    stop, total = threading.Event(), []
    counter = threading.Thread(target=lambda: total.append(counted(stop)))
    counter.start()
    began = time.thread_time(), time.monotonic()
    while time.monotonic() - began[1] < seconds:
        work()  # type: ignore[operator]
    passed = time.monotonic() - began[1]
    stop.set()
    counter.join()
    return total[0] / passed


@needs_faulty
@pytest.mark.parametrize("threads", [0, 2])
def test_another_thread_runs_while_a_queue_or_a_slice_waits(threads: int) -> None:
    # Reads that only sleep take no core: what the counter loses is the interpreter's lock, which would be nearly all of it.
    volume = faulty((64, 64, 64), milliseconds=20)
    queue = iter(Queue([Subject(ct=volume)], UniformSampler(32), 10_000, threads=threads, max_length=2))
    idle = rate(1.0, lambda: time.sleep(0.02))
    assert rate(1.0, lambda: next(queue)) > 0.2 * idle
    assert rate(1.0, lambda: volume[0, :2, :2, :2]) > 0.2 * idle


@needs_faulty
@pytest.mark.parametrize("threads", [0, 2])
def test_a_panic_is_an_ordinary_exception(threads: int) -> None:
    volume = faulty((16, 16, 16), panics=True)
    with pytest.raises(voxpatch.errors.PanicError, match="this volume panics") as found:
        volume[:]
    assert isinstance(found.value, RuntimeError)
    queue = Queue([Subject(ct=volume)], UniformSampler(8), 3, threads=threads)
    iterator = iter(queue)
    for _ in range(3):
        with pytest.raises(voxpatch.errors.PanicError, match="this volume panics"):
            next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


INTERRUPTED = {
    "queue": "for _ in voxpatch.Queue([voxpatch.Subject(ct=slow)], voxpatch.UniformSampler(8), 10**6, threads=2): pass",
    "queue without threads": "for _ in voxpatch.Queue([voxpatch.Subject(ct=slow)], voxpatch.UniformSampler(8), 10**6, threads=0): pass",
    "batches": "for _ in voxpatch.Queue([voxpatch.Subject(ct=slow)], voxpatch.UniformSampler(8), 10**6, batch_size=50): pass",
    "one long read": "voxpatch._voxpatch._faulty((256, 256, 256), milliseconds=60_000)[:]",
    "convert": "voxpatch.convert(slow, folder + '/out.zarr', chunk=32, shard=None)",
    "convert to a flat file": "voxpatch.convert(slow, folder + '/out.npy')",
    "convert to a compressed file": "voxpatch.convert(slow, folder + '/out.nii.gz')",
    "convert with levels": "voxpatch.convert(slow, folder + '/out.zarr', chunk=32, pyramid='mean')",
    "write": "voxpatch.write(folder + '/out.nrrd', slow)",
    "predict": "voxpatch.predict(same, slow, folder + '/out.zarr', 64, 32, chunk=32, shard=None)",
    "predict to a flat file": "voxpatch.predict(same, slow, folder + '/out.npy', 64, 32)",
    "predict several outputs": "voxpatch.predict(twice, slow, [folder + '/a.zarr', folder + '/b.npy'], 64, 32)",
    "predict into memory": "voxpatch.predict(same, slow, None, 64)",
    "measuring for a z-score": "voxpatch.predict(same, slow, folder + '/out.npy', 64, normalize='zscore')",
    "reading a mask": "voxpatch.predict(same, large, folder + '/out.npy', 64, mask=slow, same_grid=True)",
    "a slow model": "voxpatch.predict(lambda batch: time.sleep(0.3) or batch, large, folder + '/out.npy', 64)",
    "a dry run": "voxpatch.predict(lambda batch: time.sleep(60), large, folder + '/out.npy', 64, dry_run=True)",
    "a label map": "voxpatch.Queue([voxpatch.Subject(ct=large, label=slow)], voxpatch.LabelSampler(8, 'label'), 3).__iter__().__next__()",
    "a grid": "for _ in voxpatch.GridSampler(slow, 64): pass",
}


@needs_faulty
@pytest.mark.parametrize("what", INTERRUPTED)
def test_ctrl_c_stops_within_a_second(what: str, tmp_path: pathlib.Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time, voxpatch
        folder = {str(tmp_path)!r}
        import numpy as np
        slow = voxpatch._voxpatch._faulty((512, 512, 512), milliseconds=100)
        large = np.ones((512, 512, 512), np.uint8)
        same = lambda batch: batch
        twice = lambda batch: (batch, batch)
        print("begun", flush=True)
        try:
            {INTERRUPTED[what]}
        except KeyboardInterrupt:
            print("stopped", time.time(), flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.Random(what).uniform(0.2, 0.8))
    sent = time.time()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=15)  # the process ends, too
    assert process.returncode == 0 and out.startswith("stopped"), out
    assert float(out.split()[1]) - sent < 1.0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing half-written is left"


@pytest.mark.parametrize("part", [None, 1])
def test_ctrl_c_leaves_what_can_be_resumed(part: int | None, tmp_path: pathlib.Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time, numpy as np, voxpatch
        scan = np.arange(96 * 64 * 64, dtype=np.float32).reshape(96, 64, 64)
        calls = []
        def same(batch):
            time.sleep(int(sys.argv[1]) / 1000)
            calls.append(1)
            if len(calls) == 12:
                print("begun", flush=True)
            return batch
        part = {part}
        how = dict(resume=True) if part is None else dict(part=part, num_parts=2)
        try:
            out = voxpatch.predict(same, scan, {str(tmp_path / "out.zarr")!r}, 16, 8, model_id="same", chunk=8, shard=None,
                                   threads=2, **how)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        else:
            print("done", len(calls), flush=True)
        """
    )

    def run(milliseconds: int, interrupt: bool) -> str:
        command = [sys.executable, "-c", program, str(milliseconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if interrupt:
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        return out

    assert run(20, interrupt=True) == "stopped\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.zarr.partial"]
    resumed = run(0, interrupt=False)
    assert resumed.startswith("done")
    assert (tmp_path / "out.zarr").exists() == (part is None)


def test_a_fork_while_other_threads_read_is_no_harm(subjects: list[Subject]) -> None:
    volume = voxpatch.open(subjects[0]["label"].path)
    expected = volume[:]
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            volume[0, 3:20, 4:20, 5:20]

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if np.array_equal(volume[:], expected) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_an_iterator_of_another_process_says_so(subjects: list[Subject]) -> None:
    iterator = iter(Queue(subjects, UniformSampler(8), 5))
    next(iterator)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            next(iterator)
        except RuntimeError as error:
            del iterator
            os._exit(0 if "started in another process" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    next(iterator)


def test_an_import_starts_nothing_and_loads_little() -> None:
    program = """
        import os, sys
        before = set(sys.modules)
        import voxpatch
        assert len(os.listdir("/proc/self/task")) == 1, "a thread"
        loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
        others = loaded - set(sys.stdlib_module_names) - {"voxpatch"}
        assert not others, others
        slow = loaded & {"asyncio", "concurrent", "ctypes", "http", "multiprocessing", "sqlite3", "ssl", "subprocess", "unittest", "xml"}
        assert not slow, slow
        assert len(loaded) < 100, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_errors_are_pickled() -> None:
    for error in (voxpatch.errors.NotFoundError(2, "gone", "/x"), voxpatch.errors.UnknownNameError("mr"), voxpatch.errors.PanicError("p")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


def loader_threads() -> list[str]:
    """Return the names of this process's loader threads; empty where the system does not list threads."""
    names = []
    for task in pathlib.Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(task.read_text().strip())
        except OSError:  # it has ended
            pass
    return [name for name in names if name.startswith("voxpatch-loader")]


def test_iterators_that_are_dropped_anywhere_leave_no_thread_behind(subjects: list[Subject]) -> None:
    gc.collect()  # what other tests' tracebacks hold
    gc.disable()
    chosen = random.Random(4)
    for _ in range(150):
        queue = Queue(
            subjects,
            UniformSampler(8),
            10,
            threads=chosen.randrange(4),
            max_length=chosen.choice([1, 2, 64]),
            batch_size=chosen.choice([None, 1, 4]),
        )
        iterator = iter(queue)
        for _ in range(chosen.randrange(6)):
            next(iterator)
        if chosen.randrange(2):
            del iterator
        else:
            del queue
            del iterator
    gc.enable()
    # The system lists a thread for a moment after it was joined.
    deadline = time.monotonic() + 10
    while (names := loader_threads()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not names
