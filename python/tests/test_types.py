"""What type checkers make of programs that use the package."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch import Gaussian, Quantize, Threshold
from voxpatch.options import Array

#: Programs that a type checker accepts, with the types that it finds.
RIGHT = """
from typing import Any
import numpy as np
import voxpatch
from typing_extensions import assert_type
from voxpatch import Gaussian, GridAggregator, GridSampler, Quantize, Queue, Subject, Threshold, Volume
from voxpatch.options import Array, ConvertPlan, PredictPlan, QueueStats

def net(batch: Array) -> Array: return batch

assert_type(voxpatch.predict(net, "a.zarr", None, 64), Array)
assert_type(voxpatch.predict(net, "a.zarr", "b.zarr", 64, 0.5, chunk=32, overwrite=True), Volume)
assert_type(voxpatch.predict("net.onnx", "a.zarr", ["b.zarr", "c.zarr"], 64), list[Volume])
assert_type(voxpatch.predict(net, "a.zarr", {"b": "b.zarr"}, 64, blend={"b": "crop"}), dict[str, Volume])
assert_type(voxpatch.predict(net, "a.zarr", "b.zarr", 64, part=0, num_parts=2), Volume | None)
assert_type(voxpatch.predict(net, "a.zarr", {0: "b.zarr"}, 64, part=0), dict[int, Volume] | None)
assert_type(voxpatch.predict(net, "a.zarr", "b.zarr", 64, dry_run=True), PredictPlan)
assert_type(voxpatch.predict(net, "a.zarr", "b.zarr", 64, dry_run=True)["peak_bytes"], int)
voxpatch.predict(net, "a.zarr", None, 64, blend=Gaussian(0.2), reduce=Threshold(0.5), normalize=(-1000, 400), tta="flips")
voxpatch.predict(net, "a.zarr", None, 64, reduce=Quantize(0, 1), padding="edge", placement="even", durability="chunk")

volume = voxpatch.open("a.nii", values="float32", box=[slice(3), (0, 4), 5], read_method="mmap")
assert_type(volume, Volume)
assert_type(volume[0, :, 3:5], Array)
assert_type(volume.shape, tuple[int, int, int, int])
assert_type(voxpatch.convert("a.nii", "b.zarr"), Volume)
assert_type(voxpatch.convert("a.nii", "b.zarr", dry_run=True), ConvertPlan)
assert_type(GridAggregator(GridSampler("a.nii", 64), "crop").finish(), Volume | Array)
queue = Queue([Subject(ct="a.nii"), {"ct": "b.nii"}], voxpatch.UniformSampler(64, border="pad"), [3, 4])
assert_type(queue.stats(), QueueStats)
for sample in queue:
    assert_type(sample, dict[str, Any])
"""

#: Calls that a type checker refuses.
WRONG = [
    'voxpatch.open("a", read_method="map")',
    'voxpatch.open("a", missing_chunks="none")',
    'voxpatch.open("a", io="mmap")',
    'voxpatch.write("a", [], codec="lzma")',
    'voxpatch.predict(len, "a", "b", 3, blend="gausian")',
    'voxpatch.predict(len, "a", "b", 3, reduce="median")',
    'voxpatch.predict(len, "a", "b", 3, padding="mirror")',
    'voxpatch.predict(len, "a", "b", 3, placement="middle")',
    'voxpatch.predict(len, "a", "b", 3, preset="nnformer")',
    'voxpatch.predict(len, "a", "b", 3, durability=True)',
    'voxpatch.predict(len, "a", "b", 3, num_workers=3)',
    'voxpatch.predict(len, "a", "b", 3, chunks=3)',
    'voxpatch.predict(len, "a", {0: None}, 3)',
    'voxpatch.GridSampler("a", 3, placement="middle")',
    'voxpatch.GridAggregator(voxpatch.GridSampler("a", 3), non_finite="error")',
    'voxpatch.GridAggregator(voxpatch.GridSampler("a", 3), chunks=3)',
    'voxpatch.UniformSampler(3, border="clip")',
    'voxpatch.LabelSampler(3, "label", empty="ignore")',
    'voxpatch.Queue([], voxpatch.UniformSampler(3), 1, on_error="ignore")',
    'voxpatch.Queue([], voxpatch.UniformSampler(3), 1, uneven="cut")',
]


def mypy(program: str, folder: pathlib.Path) -> list[str]:
    """What mypy says, by default strictly, of a program."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    file = folder / "program.py"
    file.write_text(program)
    root = pathlib.Path(voxpatch.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--no-error-summary", "--no-pretty",
               "--config-file", str(root / "pyproject.toml"), f"--cache-dir={folder / 'cache'}", str(file)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={"MYPYPATH": str(root)}, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_types_are_known(tmp_path: pathlib.Path) -> None:
    assert mypy(RIGHT, tmp_path) == []


def test_wrong_words_and_names_are_refused(tmp_path: pathlib.Path) -> None:
    told = mypy("\n".join(["import voxpatch", *WRONG]), tmp_path)
    lines = {int(match[1]) for line in told if (match := re.search(r"program.py:(\d+)", line))}
    assert [wrong for number, wrong in enumerate(WRONG, 2) if number not in lines] == []


def test_the_classes_are_the_words() -> None:
    assert [str(one) for one in (Gaussian(), Gaussian(0.25), Threshold(), Quantize(-1, 2))] == [
        "gaussian:0.125", "gaussian:0.25", "threshold:0.5", "quantize:-1.0,2.0",
    ]  # fmt: skip
    assert Gaussian(0.25) == Gaussian(0.25) and hash(Threshold(1)) == hash(Threshold(1))
    with pytest.raises(AttributeError):
        Gaussian().sigma = 1  # type: ignore[misc]


def test_classes_and_words_do_the_same() -> None:
    scan = np.random.default_rng(3).random((12, 12, 12), np.float32)

    def run(**options: Any) -> Array:
        return voxpatch.predict(lambda batch: batch, scan, None, 6, **options)

    for option, pairs in {
        "blend": [(Gaussian(0.25), "gaussian:0.25"), (Gaussian(), "gaussian")],
        "reduce": [(Threshold(0.25), "threshold:0.25"), (Quantize(0.25, 0.5), "quantize:0.25,0.5")],
    }.items():
        for one, word in pairs:
            np.testing.assert_array_equal(run(**{option: one}), run(**{option: word}))
    aggregator = voxpatch.GridAggregator(voxpatch.GridSampler(scan, 6), Gaussian(0.25), reduce=Quantize(0.25, 0.5))
    for patch in aggregator.sampler:
        aggregator.add_batch(patch["image"][None], patch["location"][None])
    np.testing.assert_array_equal(aggregator.finish(), run(blend=Gaussian(0.25), reduce=Quantize(0.25, 0.5)))


def test_any_is_rare() -> None:
    """`Any` stands for what is not known: samples, metadata, models of any kind, options on their way to the compiled half."""
    folder = pathlib.Path(voxpatch.__file__).parent
    found = sum(len(re.findall(r"\bAny\b", file.read_text())) for file in [*folder.glob("*.py"), *folder.glob("*.pyi")])
    assert found <= 120, found


