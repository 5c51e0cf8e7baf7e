"""A measurement: a separate process, observed from outside.

Memory is that of the process and its children without files behind it (anonymous and shared pages), read from /proc 50
times a second, in the same way for every side. A process that exceeds the time or memory limit is killed, and this is
its result.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path


def family(root):
    """Returns a process and all its descendants."""
    found, new = [], [root]
    while new:
        pid = new.pop()
        found.append(pid)
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                new.extend(int(child) for child in listing.read_text().split())
            except OSError:
                pass
    return found


def fields(path, wanted, scale):
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in wanted) * scale


def anonymous_bytes(root):
    """Returns the anonymous bytes of a process. For several processes, their shares are summed, so that common pages
    count once."""
    try:
        pids = family(root)
    except OSError:
        return 0
    if len(pids) == 1:
        return fields(f"/proc/{root}/status", ("RssAnon", "RssShmem"), 1 << 10)
    return sum(fields(f"/proc/{pid}/smaps_rollup", ("Pss_Anon", "Pss_Shmem"), 1 << 10) for pid in pids)


class Watch(threading.Thread):
    def __init__(self, process, seconds, memory):
        super().__init__(daemon=True)
        self.process, self.seconds, self.memory = process, seconds, memory
        self.peak, self.storage, self.why = 0, 0, None

    def run(self):
        began = time.monotonic()
        while self.process.poll() is None:
            self.peak = max(self.peak, anonymous_bytes(self.process.pid))
            self.storage = max(self.storage, fields(f"/proc/{self.process.pid}/io", ("read_bytes",), 1))
            if self.peak > self.memory:
                self.why = f"needs more than {self.memory / 2**30:.1f} GiB"
            elif time.monotonic() - began > self.seconds:
                self.why = f"takes longer than {self.seconds:.0f} s"
            if self.why:
                try:
                    os.killpg(self.process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                return
            time.sleep(0.02)


def available_bytes():
    return fields("/proc/meminfo", ("MemAvailable",), 1 << 10)


@contextmanager
def pinned(threads):
    """Processes that are started within it get the first `threads` processors, and no others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(command, seconds, threads, folder):
    """Returns the last JSON object that the command printed, with `wall_seconds` and `peak_anonymous_bytes`; or
    `error`. The process has as many processors as threads."""
    command = [str(part) for part in command]
    numbers = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS", "RAYON_NUM_THREADS")}
    with tempfile.TemporaryFile(dir=folder) as out, tempfile.TemporaryFile(dir=folder) as err:
        began = time.monotonic()
        with pinned(threads):
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True,
                                       env={**os.environ, **numbers, "TMPDIR": str(folder)})
        watch = Watch(process, seconds, available_bytes() * 0.85)
        watch.start()
        try:
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        watch.join()
        out.seek(0), err.seek(0)
        printed, complaint = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    told = {"wall_seconds": time.monotonic() - began}
    if watch.why:
        return {**told, "error": watch.why}
    if process.returncode:
        last = [line.strip() for line in complaint.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        return {**told, "error": last[-1][:300]}
    try:
        said = json.loads(printed)
    except json.JSONDecodeError:
        said = json.loads(printed.strip().splitlines()[-1])
    return {**said, **told, "peak_anonymous_bytes": watch.peak, "storage_bytes": watch.storage}
