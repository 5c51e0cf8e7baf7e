#!/usr/bin/env python3
"""The peers' own tests of samplers, grids, aggregators, queues and inferers, run with voxpatch's classes instead of
theirs.

    python scripts/peer_tests.py torchio [--tests FOLDER] [--theirs]
    python scripts/peer_tests.py torchio2 --tests FOLDER [--theirs]
    python scripts/peer_tests.py monai --tests FOLDER [--theirs]

FOLDER is the folder `tests` of a checkout of the peer, best of the version that is installed. Without it, TorchIO's
tests come from its source distribution on PyPI (the last one that has them). With --theirs the peer's own classes are
tested, for comparison.

Prints a line for each test, and fails if a test fails that is not listed below with its reason.
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
from dataclasses import dataclass, field
from pathlib import Path

#: The last release of TorchIO whose source distribution has tests.
WITH_TESTS = "0.18.21"


@dataclass(frozen=True)
class Suite:
    """A peer's tests, the replacement of the peer's classes by voxpatch's, and the tests that may fail."""

    files: tuple[str, ...]
    #: Run before the tests are imported.
    plugin: str
    #: Test names, with the reasons why they may fail.
    exceptions: dict[str, str] = field(default_factory=dict)


TORCHIO = Suite(
    files=(
        "data/sampler/test_label_sampler.py",
        "data/sampler/test_patch_sampler.py",
        "data/sampler/test_random_sampler.py",
        "data/sampler/test_uniform_sampler.py",
        "data/sampler/test_weighted_sampler.py",
        "data/inference/test_grid_sampler.py",
        "data/inference/test_aggregator.py",
        "data/inference/test_inference.py",
        "data/test_queue.py",
    ),
    plugin="import voxpatch.compat.torchio\n\nvoxpatch.compat.torchio.patch_torchio()\n",
    exceptions={
        "TestAggregator.test_overlap_hann": "compares floats for equality: ours differ from TorchIO's in the last bit",
    },
)

#: Tests of TorchIO's last source distribution that may fail.
OLD_TORCHIO = {
    "TestLabelSampler.test_label_probabilities": "a patch larger than the map, which TorchIO 1.2 refuses as well",
    "TestWeightedSampler.test_weighted_sampler": "the key 'index_ini', which patches of TorchIO 1.2 have not either",
}

MONAI = Suite(
    files=(
        "inferers/test_sliding_window_inference.py",
        "inferers/test_patch_inferer.py",
        "inferers/test_avg_merger.py",
        "inferers/test_slice_inferer.py",
    ),
    plugin="""import monai.inferers
import monai.inferers.inferer

import voxpatch.compat.monai

monai.inferers.sliding_window_inference = voxpatch.compat.monai.sliding_window_inference
monai.inferers.inferer.sliding_window_inference = voxpatch.compat.monai.sliding_window_inference
""",
)

#: TorchIO 2 does not have patch classes to replace: it reads all files through voxpatch's backend.
TORCHIO2 = Suite(
    files=(
        "test_affine.py",
        "test_axes.py",
        "test_backends.py",
        "test_image.py",
        "test_patches.py",
        "test_queue.py",
        "test_subject.py",
    ),
    plugin="""import voxpatch.compat.torchio2 as compat

compat.register(compat.SUFFIXES + (".nii", ".nii.gz"))
""",
    exceptions={
        "TestImageWithBackends.test_nifti_uses_nibabel_backend": "asks for TorchIO's own backend",
        "TestImageWithBackends.test_dataobj_returns_backend": "asks for TorchIO's own backend",
        "TestZarrBackend.test_zarr_lazy_load": "asks for TorchIO's own backend",
        "TestBackendResolver.test_resolve_nifti_path": "asks for TorchIO's own backend",
        "TestReaderWriterKwargs.test_reader_kwargs_passed": "counts the calls of nibabel.load",
        "TestNibabelReader.test_invalid_ndim_raises": "we read NIfTI with time and channels, as channels",
        "TestNibabelReader.test_invalid_ndim_shape_from_header": "we read NIfTI with time and channels, as channels",
        "TestReaderErrors.test_sitk_shape_reader_invalid_ndim": "we read a picture as a volume of one plane",
    },
)

#: The suites by name. TorchIO 1 and 2 are one package, so one environment has one of them.
SUITES = {"torchio": TORCHIO, "torchio2": TORCHIO2, "monai": MONAI}


def source(version: str, folder: Path) -> Path | None:
    """Download the tests of a TorchIO release; None if its source distribution has none."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "torchio", "--dest", str(folder), f"torchio=={version}"]
    subprocess.run(command, check=True)
    (archive,) = folder.glob(f"*{version}.tar.gz")
    with tarfile.open(archive) as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        packed.extractall(folder, filter="data")
    tests = folder / f"torchio-{version}" / "tests"
    return tests if (tests / TORCHIO.files[0]).exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=sorted(SUITES), help="the peer whose tests run")
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a checkout of the peer")
    parser.add_argument("--theirs", action="store_true", help="test the peer's own classes")
    settings = parser.parse_args()
    suite = SUITES[settings.peer]
    package = settings.peer.removesuffix("2")
    installed = importlib.metadata.version(package)
    if package == "torchio" and (suite is TORCHIO2) != (int(installed.split(".")[0]) >= 2):
        parser.error(f"torchio {installed} is installed, which does not go with the suite {settings.peer}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = settings.tests and settings.tests.resolve()
        title, excepted = f"the tests in {tests}", suite.exceptions
        if tests is None and suite is TORCHIO:
            for version in (installed, WITH_TESTS):
                if tests is None:
                    tests = source(version, folder)
                    title = f"the tests of TorchIO {version}"
                    excepted = OLD_TORCHIO if version == WITH_TESTS else suite.exceptions
        if tests is None:
            print("there is no source distribution with tests: give --tests")
            return 2
        title = f"{title}, {package} {installed}"
        return run(suite, tests, folder, title, excepted, ours=not settings.theirs)


def run(suite: Suite, tests: Path, folder: Path, title: str, excepted: dict[str, str], *, ours: bool) -> int:
    """Run the tests in a separate process and print the outcome of each."""
    (folder / "in_place.py").write_text(suite.plugin if ours else "")
    # Not in the folder of the package next to the tests, which is not the installed one.
    place = folder / "apart"
    shutil.copytree(tests, place / "tests")
    files = [str(place / "tests" / file) for file in suite.files if (tests / file).exists()]
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "in_place", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--rootdir", str(place), "-o", "junit_family=xunit1", "--import-mode=prepend", *files]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {"QUICKTEST": "1", **os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if not report.exists():
        print(done.stdout, done.stderr, sep="\n")
        return 2
    failed = 0
    print(f"{title}, {'our' if ours else 'its own'} classes")
    cases = list(tree.parse(report).iter("testcase"))
    counts = dict.fromkeys(("passed", "failed", "skipped", "excepted"), 0)
    for case in cases:
        test = f"{case.get('classname', '').rsplit('.', 1)[-1]}.{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = next((child for child in case if child.tag == "skipped"), None)
        outcome, word = "passed", "passed"
        if skipped is not None:
            outcome, word = f"skipped: {skipped.get('message')}", "skipped"
        elif problem is not None and test in excepted:
            outcome, word = f"excepted: {excepted[test]}", "excepted"
        elif problem is not None:
            failed += 1
            outcome, word = f"FAILED: {problem.get('message', '')[:300]}", "failed"
        counts[word] += 1
        print(f"  {test:64} {outcome}")
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    raise SystemExit(main())
