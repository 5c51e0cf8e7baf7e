#!/usr/bin/env python3
"""TorchIO's own tests of samplers, grids, aggregators and queues, run with our classes in place of TorchIO's.

    python scripts/torchio_tests.py [--tests FOLDER] [--theirs]

The tests are taken from the source distribution on PyPI of the TorchIO that is installed or, as those since
0.18.80 hold none, of the last one known to have them; FOLDER is the folder `tests` of a checkout of
TorchIO, for the tests of any other version. With --theirs TorchIO's own classes are tested, to compare.

Prints a table, and fails if any test fails that is not listed below with its reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
import xml.etree.ElementTree as tree
from pathlib import Path

#: The last release whose source distribution has these tests.
WITH_TESTS = "0.18.21"

#: What is tested.
FILES = (
    "data/sampler/test_label_sampler.py",
    "data/sampler/test_patch_sampler.py",
    "data/sampler/test_random_sampler.py",
    "data/sampler/test_uniform_sampler.py",
    "data/sampler/test_weighted_sampler.py",
    "data/inference/test_grid_sampler.py",
    "data/inference/test_aggregator.py",
    "data/inference/test_inference.py",
    "data/test_queue.py",
)

#: Tests of that release that need not pass, and why.
EXCEPTIONS = {
    "TestLabelSampler.test_label_probabilities": "a patch larger than the map, which TorchIO 1.2 refuses as well",
    "TestWeightedSampler.test_weighted_sampler": "the key 'index_ini', which patches of TorchIO 1.2 have not either",
}

PLUGIN = """
import sys

if {ours}:
    import voxpatch.compat.torchio

    voxpatch.compat.torchio.patch_torchio()
"""


def source(version: str, folder: Path) -> Path | None:
    """The tests of a release, or None if its source distribution has none."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "torchio", "--dest", str(folder), f"torchio=={version}"]
    subprocess.run(command, check=True)
    (archive,) = folder.glob(f"*{version}.tar.gz")
    with tarfile.open(archive) as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        packed.extractall(folder, filter="data")
    tests = folder / f"torchio-{version}" / "tests"
    return tests if (tests / FILES[0]).exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a checkout of TorchIO")
    parser.add_argument("--theirs", action="store_true", help="test TorchIO's own classes")
    settings = parser.parse_args()
    installed = importlib.metadata.version("torchio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = settings.tests and settings.tests.resolve()
        told, excepted = f"the tests in {tests}", {}
        for version in (installed, WITH_TESTS):
            if tests is None:
                tests = source(version, folder)
                told = f"the tests of TorchIO {version}"
                excepted = EXCEPTIONS if version == WITH_TESTS else {}
        if tests is None:
            print("no source distribution has tests: give --tests")
            return 2
        return run(tests, folder, f"{told}, TorchIO {installed}", excepted, ours=not settings.theirs)


def run(tests: Path, folder: Path, told: str, excepted: dict[str, str], *, ours: bool) -> int:
    """Runs them in a process of their own, and prints what became of each."""
    (folder / "in_place.py").write_text(PLUGIN.format(ours=ours))
    # Away from the package that lies beside them, which is not the one that is installed.
    place = folder / "apart"
    shutil.copytree(tests, place / "tests")
    files = [str(place / "tests" / file) for file in FILES if (tests / file).exists()]
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "in_place", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--rootdir", str(place), "-o", "junit_family=xunit1", "--import-mode=prepend", *files]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if not report.exists():
        print(done.stdout, done.stderr, sep="\n")
        return 2
    failed = 0
    print(f"{told}, {'our' if ours else 'its own'} classes")
    cases = list(tree.parse(report).iter("testcase"))
    for case in cases:
        test = f"{case.get('classname', '').rsplit('.', 1)[-1]}.{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = next((child for child in case if child.tag == "skipped"), None)
        outcome = "passed"
        if skipped is not None:
            outcome = f"skipped: {skipped.get('message')}"
        elif problem is not None and test in excepted:
            outcome = f"excepted: {excepted[test]}"
        elif problem is not None:
            failed += 1
            outcome = f"FAILED: {problem.get('message', '')[:300]}"
        print(f"  {test:64} {outcome}")
    print(f"{len(cases)} tests, {failed} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    raise SystemExit(main())
