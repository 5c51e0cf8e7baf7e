"""`scripts/bench`: every case for voxpatch and for each peer that supports it, alternating, each run in a separate
process.

    scripts/bench                     everything, under an hour on two cores, into docs/benchmarks
    scripts/bench --quick             a quarter of the scan and the main cases, under eight minutes
    scripts/bench --only random/96    cases whose group/name holds one of these words
    scripts/bench --list              the cases, and who takes part

The first run also installs the peers. Close all other programs: the figures are for an idle machine.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import case, cases, install, measure, pictures, report, volumes

ROOT = Path(__file__).resolve().parents[2]


def say(what):
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def sizes(text):
    shape = tuple(int(part) for part in text.split(","))
    return shape if len(shape) == 3 else shape * 3


def arguments():
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="cases whose group/name contains one of these")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--voxpatch", type=Path, help="the binary (default: target/release/voxpatch is built)")
    parser.add_argument("--size", type=sizes, metavar="Z,Y,X", help="voxels of the scan (1069,512,512, or 267,512,512 if quick)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement of a rate")
    parser.add_argument("--minutes", type=float, help="for all cases together; rounds are skipped to keep to it")
    parser.add_argument("--limit", type=float, help="the most seconds that one run may take")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench-data", help="folder of the volumes, which are created on the first run")
    parser.add_argument("--out", type=Path, help="folder of the report (docs/benchmarks; docs/benchmarks/quick; .bench-data/only)")
    parser.add_argument("--no-install", action="store_true", help="measure only the peers that are already installed")
    return parser.parse_args()


def machine(threads):
    processor = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    total = measure.fields("/proc/meminfo", ("MemTotal",), 1 << 10)
    return {"processor": processor[0] if processor else platform.machine(), "cores": len(processor), "threads": threads,
            "memory_gib": round(total / 2**30, 1), "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(), "load_before": os.getloadavg()[0]}


def ours_binary(given):
    if given:
        return given.resolve()
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "voxpatch"


def imports(versions, threads, folder):
    """Measures the memory of a process that has only imported a peer, which is part of the peer's memory in every
    case."""
    held = {}
    for module in [name for name in versions if name in install.PEERS]:
        program = f"import time, {module}; time.sleep(0.1); print('{{}}')"
        told = measure.run([sys.executable, "-c", program], 120, threads, folder)
        held[module] = told.get("peak_anonymous_bytes")
    return held


def main():
    given = arguments()
    shape = given.size or ((267, 512, 512) if given.quick else (1069, 512, 512))
    folder = given.folder / "x".join(map(str, shape))
    output = folder / "written"
    out = given.out or (given.folder / "only" if given.only else ROOT / "docs" / "benchmarks" / ("quick" if given.quick else ""))
    rounds = given.rounds or (2 if given.quick else 3)
    minutes = given.minutes or (6.5 if given.quick else 50)
    settings = cases.Settings(
        quick=given.quick, binary=given.voxpatch, volumes=volumes.Volumes(folder, shape, given.voxpatch, say), threads=given.threads,
        rounds=rounds, seconds=given.seconds or (0.8 if given.quick else 2), limit=given.limit or (45 if given.quick else 150), output=output,
    )
    chosen = [one for one in cases.all_cases(settings) if not given.only or any(word in one.title for word in given.only)]
    if given.list:
        for one in chosen:
            print(one.title, *(side.name for side in one.sides), sep="\n    ")
        return 0
    if not chosen:
        sys.exit("bench: no case is called like that; --list tells them")
    settings.binary = settings.volumes.binary = ours_binary(given.voxpatch)
    versions, reasons = install.remembered(given.folder / "installed.json", say, not given.no_install)
    output.mkdir(parents=True, exist_ok=True)

    began = time.monotonic()
    made = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "voxpatch": subprocess.run([settings.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "shape": shape, "machine": machine(given.threads), "versions": versions, "left_out": reasons,
    }
    from . import limits  # needs the packages that were just installed

    say("measuring what the machine can do")
    made["limits"] = limits.measured(folder, settings.volumes.need("f32.npy"), given.threads)
    made["imports"] = imports(versions, given.threads, output)
    end = began + minutes * 60
    left = sum(one.weight for one in chosen)
    for one in chosen:
        now = time.monotonic()
        until = now + max(0, end - now) * one.weight / left
        left -= one.weight
        case.run_case(one, reasons, output, until, say)
        made["minutes"] = round((time.monotonic() - began) / 60, 1)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({**made, "cases": report.plain(chosen, made["limits"])}, indent=1) + "\n")
    shutil.rmtree(output)
    results = json.loads((out / "results.json").read_text())
    drawn = pictures.draw(results, out)
    (out / "results.md").write_text(report.markdown(results, drawn))
    say(f"{out / 'results.md'}, in {made['minutes']} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
