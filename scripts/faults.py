#!/usr/bin/env python3
"""Makes every system call with which a small run writes fail once, and checks what is left.

    scripts/faults.py --voxpatch target/release/voxpatch            # every call, every error, and SIGKILL at every call
    scripts/faults.py --voxpatch target/release/voxpatch --every 20

strace makes the k-th call of one kind fail (ENOSPC, EIO, EDQUOT) or kills the process there. Each time, the run must
end with one line that names the error and leave nothing that looks finished, or not need the call. The same command
must then give the bytes of an undisturbed run. If an earlier output had the name, the earlier or the new output must
have it at every moment. Exits with 77 if strace cannot trace.
"""

import collections
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rig

FULL = [("ENOSPC", "no space"), ("EIO", "input/output"), ("EDQUOT", "quota")]
BROKEN = [("EIO", "input/output")]
ERRORS = {
    "write": FULL,
    "pwrite64": FULL,
    "fallocate": FULL[:2],
    "ftruncate": FULL[:2],
    "openat": [FULL[0], ("EMFILE", "too many open files")],
    "mkdir": FULL[:1],
    "rename": FULL[:2],
    "renameat": FULL[:2],
    "renameat2": FULL[:2],
    "linkat": FULL[:1],
    "fsync": BROKEN,
    "fdatasync": BROKEN,
    "syncfs": BROKEN,
    "flock": [("ENOLCK", "no locks")],
    "unlink": BROKEN,
    "unlinkat": BROKEN,
    "rmdir": BROKEN,
}
KILL = ("KILL", None)
# Calls that clean up: an error there may be ignored, and the files that they should have removed may stay.
TIDYING = {"unlink", "unlinkat", "rmdir"}


class Run:
    """A command, and its output without faults."""

    def __init__(self, name, words, target, again, before=None):
        self.name, self.words, self.target, self.again = name, words, target, again
        self.before, self.old = before, None  # the command that creates the earlier output, and its digest
        self.expected = None


def runs(voxpatch, scan):
    convert = [voxpatch, "convert", scan, "TARGET", "--threads", 1]
    infer = [voxpatch, "infer", scan, "TARGET", "--patch-size", 16, "--overlap", 8, "--model", "gaussian:1", "--threads", 1]
    small = ["--chunk", 8, "--shard", 16, "--pyramid", "mean"]
    return [
        Run("convert to Zarr", [*convert, *small], "out.zarr", "--overwrite"),
        Run("convert to Zarr v2", [*convert, "--zarr", 2, "--chunk", 8], "out.zarr", "--overwrite"),
        Run("convert to npy", convert, "out.npy", "--overwrite"),
        Run("convert to mhd", convert, "out.mhd", "--overwrite"),
        Run("infer to Zarr", [*infer, *small], "out.zarr", "--overwrite"),
        Run("infer to nii", infer, "out.nii", "--overwrite"),
        Run("infer, resumable", [*infer, *small, "--resume"], "out.zarr", "--resume"),
        Run("infer, durable", [*infer, *small, "--resume", "--durability", "chunk"], "out.zarr", "--resume"),
        Run("infer, the only part", [*infer, *small, "--part", "0/1"], "out.zarr", "--resume"),
        Run("infer, the last part", [*infer, *small, "--part", "1/2"], "out.zarr", "--resume",
            [*infer, *small, "--part", "0/2"]),
        Run("convert over a Zarr", [*convert, *small], "out.zarr", "--overwrite", [*convert, "--chunk", 4, "--shard", 4]),
        Run("convert over an npy", convert, "out.npy", "--overwrite", [*convert, "--dtype", "float32"]),
        Run("infer over a Zarr", [*infer, *small, "--resume", "--overwrite"], "out.zarr", "--resume",
            [*convert, "--chunk", 4, "--shard", 4]),
    ]


def words(this, folder, *more, of=None):
    of = this.words if of is None else of
    return [str(folder / this.target) if word == "TARGET" else word for word in of] + list(more)


def prepare(this, folder):
    """Creates the earlier output and returns its digest."""
    if this.before is None:
        return None
    rig.sound(words(this, folder, of=this.before))
    return outcome(this, folder)


def outcome(this, folder):
    """Returns the digest of an output; for a header and voxels in two files, regardless of the second file's name."""
    target = folder / this.target
    if target.suffix != ".mhd" or not target.exists():
        return rig.digest(target)
    header, name = target.read_bytes().rsplit(b"ElementDataFile = ", 1)
    return header + (folder / name.decode().strip()).read_bytes()


def calls(log, folder):
    """Returns the calls in a log that concern a folder: their kinds, and the number of each among its thread's
    calls."""
    seen, found = collections.Counter(), set()
    for line in log.read_text(errors="replace").splitlines():
        entry = re.match(r"(\d+) +(\w+)\(", line)
        if not entry:
            continue
        thread, kind = entry.groups()
        seen[thread, kind] += 1
        reads = kind == "openat" and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", line)
        if str(folder) in line and not reads:
            found.add((kind, seen[thread, kind]))
    return sorted(found)


def strace(log, more):
    return ["strace", "-f", "-y", "-qq", "-o", log, "-e", "trace=" + ",".join(ERRORS), *more, "--"]


def judge(this, kind, k, error, text):
    """Returns the problems after one fault as a list, and the outcome of the run as a word."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        log, work = folder / "log", folder / "work"
        work.mkdir()
        old = prepare(this, work)
        force = ["--overwrite"] if old is not None and this.again == "--overwrite" else []
        fault = "signal=KILL" if text is None else f"error={error}"
        done = rig.run([*strace(log, ["-e", f"inject={kind}:{fault}:when={k}"]), *words(this, work, *force)])
        hits = re.findall(r"^.*(?:\(INJECTED\)|killed by SIGKILL).*$", log.read_text(errors="replace"), re.MULTILINE)
        problems, made = [], outcome(this, work)
        finished = made is not None and made != old
        if old is not None and made is None:
            problems.append("what had the name is gone")
        if finished and made != this.expected and kind not in TIDYING:
            problems.append("something that is not whole looks finished")
        if not hits:
            word = "not reached"
            if done.returncode != 0:
                problems.append(f"it failed without a fault: {done.stderr}")
        elif done.returncode == 0:
            word = "needless"
            if made != this.expected:
                problems.append("it ended with 0, but the output differs")
        elif text is None:
            word = "killed"
        else:
            word = "whole, reported" if finished else "reported"
            if done.returncode != 1:
                problems.append(f"it ended with {done.returncode}")
            lines = done.stderr.strip().splitlines()
            mute = any("(2<" in hit for hit in hits)
            if not mute and (len(lines) != 1 or not lines[0].startswith("voxpatch: ") or text not in lines[0].lower()):
                problems.append(f"it said {done.stderr!r}")
            # Each thread's k-th call fails, so the call that cleans up may have failed, too.
            stays = this.again == "--resume" or kind in TIDYING or len(hits) > 1
            if rig.left(work) and not stays:
                problems.append(f"it left {rig.left(work)}")
        again = [this.again] if this.again == "--overwrite" else []
        done = rig.run(words(this, work, *again))
        if text is None and "move it away" in done.stderr and not finished:
            # Killed between two renames: the voxels have their name, the header does not.
            (work / this.target).with_suffix(".raw").unlink()
            word = "killed between two names"
            done = rig.run(words(this, work, *again))
        # If the record of its run is missing, the command can only report that the output exists.
        told = finished and this.again == "--resume" and done.returncode == 1 and "exists already" in done.stderr
        if done.returncode != 0 and not told:
            problems.append(f"the same command failed afterwards: {done.stderr}")
        elif outcome(this, work) != this.expected:
            problems.append("the same command gave other bytes afterwards")
        if this.again == "--resume" and rig.left(work):
            problems.append(f"resuming it left {rig.left(work)}")
    return [f"{this.name}, {kind} {k}, {error}: {problem}" for problem in problems], word


def sweep(this, every, pool):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        (folder / "work").mkdir()
        force = ["--overwrite"] if prepare(this, folder / "work") is not None and this.again == "--overwrite" else []
        rig.sound([*strace(folder / "log", []), *words(this, folder / "work", *force)])
        this.expected = outcome(this, folder / "work")
        found = calls(folder / "log", folder / "work")
    points = [(kind, k, *error) for kind, k in found for error in [*ERRORS[kind], KILL]]
    points = points[::every]
    results = list(pool.map(lambda point: judge(this, *point), points))
    words_ = collections.Counter(word for _, word in results)
    problems = [problem for found, _ in results for problem in found]
    told = ", ".join(f"{count} {word}" for word, count in sorted(words_.items()))
    print(f"{this.name}: {len(found)} calls, {len(points)} faults: {told}; {len(problems)} wrong", flush=True)
    for problem in problems:
        print("  " + problem, flush=True)
    return len(points), len(problems)


def main():
    asked = rig.arguments(__doc__, every=1, jobs=2)
    try:
        rig.sound(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=write:error=EIO:when=1000", "true"])
    except (OSError, SystemExit) as error:
        print(f"SKIPPED: strace cannot trace here ({error})")
        return 77
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        scan = Path(folder) / "scan.npy"
        rig.write_scan(scan, (24, 24, 24))
        totals = [sweep(this, asked.every, pool) for this in runs(asked.voxpatch, scan)]
    faults, wrong = (sum(column) for column in zip(*totals))
    print(f"{faults} faults, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
