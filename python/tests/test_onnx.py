"""Networks from ONNX files, run by the installed onnxruntime."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch.onnx import OnnxModel, weight_files

FILES = pathlib.Path(__file__).parents[2] / "tests/data/onnx"
has_runtime = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import onnxruntime"], capture_output=True, check=False).returncode != 0,
    reason="onnxruntime is not installed",
)


def stored(name: str) -> tuple[Any, list[Any]]:
    """A network's input (C, Z, Y, X) and the outputs that belong to it."""
    outputs = sorted(FILES.glob(f"{name}.out*.npy"), key=lambda path: int(path.name.split(".out")[1].removesuffix(".npy")))
    return np.load(FILES / f"{name}.in.npy"), [np.load(path) for path in outputs]


def four(array: Any) -> Any:
    return array if array.ndim == 4 else array[None]


@has_runtime
@pytest.mark.parametrize("name", sorted(path.name.removesuffix(".in.npy") for path in FILES.glob("*.in.npy")))
def test_networks_give_what_is_stored_next_to_them(name: str) -> None:
    given, expected = stored(name)
    batch = four(given).astype(np.float32)[None]
    found = OnnxModel(FILES / f"{name}.onnx")(batch)
    assert len(found) == len(expected) > 0
    for one, output in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(one[0].astype(float), four(output).astype(float), rtol=1e-3, atol=1e-4)


@has_runtime
def test_predictions_lie_where_they_belong() -> None:
    given, (expected,) = stored("conv_valid")
    found = voxpatch.predict(FILES / "conv_valid.onnx", given.astype(np.float32), None, given.shape[1:], 0, blend="crop", halo=2)
    assert found.shape == given.shape
    np.testing.assert_allclose(found[:, 2:-2, 2:-2, 2:-2], expected, rtol=1e-4, atol=1e-5)


@has_runtime
def test_a_batch_that_the_file_fixes_is_filled_up() -> None:
    given, _ = stored("fixed_batch_of_3")
    batch = np.stack([four(given).astype(np.float32) * n for n in range(7)])
    model = OnnxModel(FILES / "fixed_batch_of_3.onnx")
    whole = next(iter(model(batch).values()))
    assert len(whole) == 7
    for n in range(7):
        np.testing.assert_array_equal(next(iter(model(batch[n : n + 1]).values()))[0], whole[n])


@has_runtime
def test_runs_resume_with_the_same_network_only(tmp_path: pathlib.Path) -> None:
    scan = np.random.default_rng(1).normal(size=four(stored("unet")[0]).shape).astype(np.float32)
    shutil.copy(FILES / "unet.onnx", tmp_path / "net.onnx")
    size = scan.shape[1:]
    name = OnnxModel(FILES / "unet.onnx")._names[0]
    out = {name: tmp_path / "out.zarr"}
    how: Any = dict(num_parts=2, chunk=8, shard=None, threads=2)
    wide = np.tile(scan, (1, 4, 4, 1))
    assert voxpatch.predict(tmp_path / "net.onnx", wide, out, size, 0, part=0, **how) is None
    # The same bytes elsewhere are the same network; other bytes are not.
    shutil.copy(tmp_path / "net.onnx", tmp_path / "copy.onnx")
    changed = (tmp_path / "net.onnx").read_bytes() + b"\x2a\x00"
    (tmp_path / "net.onnx").write_bytes(changed)
    with pytest.raises(ValueError, match="model"):
        voxpatch.predict(tmp_path / "net.onnx", wide, out, size, 0, part=1, **how)
    done = voxpatch.predict(tmp_path / "copy.onnx", wide, out, size, 0, part=1, **how)
    assert done is not None
    expected = voxpatch.predict(FILES / "unet.onnx", wide, {name: tmp_path / "whole.zarr"}, size, 0)
    np.testing.assert_array_equal(done[name][...], expected[name][...])


@has_runtime
def test_outputs_have_their_names(tmp_path: pathlib.Path) -> None:
    given, _ = stored("cast_int64")
    names = [one.name for one in OnnxModel(FILES / "cast_int64.onnx")._session.get_outputs()]
    assert len(names) == 3
    scan = four(given).astype(np.float32)
    out = {names[1]: tmp_path / "one.npy"}
    done = voxpatch.predict(FILES / "cast_int64.onnx", scan, out, scan.shape[1:], 0, blend="crop")
    assert list(done) == [names[1]] and (tmp_path / "one.npy").exists()
    with pytest.raises(ValueError, match="3 outputs"):
        voxpatch.predict(FILES / "cast_int64.onnx", scan, None, scan.shape[1:], 0)


@has_runtime
def test_weights_in_other_files_count(tmp_path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx writes the network")
    network = onnx.load(FILES / "conv.onnx")
    onnx.save_model(
        network, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert weight_files((tmp_path / "net.onnx").read_bytes()) == ["weights.bin"]
    first = OnnxModel(tmp_path / "net.onnx").identity()
    assert first == OnnxModel(tmp_path / "net.onnx").identity() != OnnxModel(FILES / "conv.onnx").identity()
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert OnnxModel(tmp_path / "net.onnx").identity() != first
    (tmp_path / "weights.bin").unlink()
    with pytest.raises((OSError, ValueError), match="weights.bin"):
        OnnxModel(tmp_path / "net.onnx").identity()


def test_any_bytes_are_searched_for_weights() -> None:
    content = (FILES / "unet.onnx").read_bytes()
    random = np.random.default_rng(2)
    assert weight_files(content) == []
    for end in random.integers(0, len(content), 50):
        weight_files(content[:end])
        weight_files(content[end:])
    for _ in range(50):
        weight_files(random.bytes(200))


@has_runtime
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gone.onnx", FileNotFoundError, "gone.onnx"),
        ("conv.in.npy", ValueError, "conv.in.npy: onnxruntime cannot load"),
        ("unet.onnx", ValueError, "unet.onnx: the network cannot run on a batch of shape .1, 3, 7, 7, 7."),
    ],
)
def test_errors_name_the_file(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        voxpatch.predict(FILES / name, np.zeros((3, 16, 16, 16), np.float32), None, 7, 0)


@has_runtime
def test_devices_are_those_of_the_runtime() -> None:
    import onnxruntime

    with pytest.raises(ValueError, match="device 'tpu': onnxruntime takes 'cpu', 'cuda' or 'cuda:N'"):
        OnnxModel(FILES / "unet.onnx", "tpu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match="pip install onnxruntime-gpu"):
            OnnxModel(FILES / "unet.onnx", "cuda:0")
    assert OnnxModel(FILES / "unet.onnx", "cpu")._session.get_providers() == ["CPUExecutionProvider"]


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install onnxruntime"):
        voxpatch.predict(FILES / "unet.onnx", np.zeros((1, 16, 16, 16), np.float32), None, 16)
