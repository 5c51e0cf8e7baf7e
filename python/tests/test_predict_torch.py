"""Prediction with torch: modules, devices, tensors in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voxpatch

torch = pytest.importorskip("torch", reason="torch is not installed")


def scan(*shape: int) -> Any:
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


class Watched(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 2, 1)
        self.drop = torch.nn.Dropout(0.5)
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.seen.append((x.dtype, x.device.type, torch.is_grad_enabled(), self.training))
        return self.drop(self.layer(x))


def test_a_module_gets_tensors_without_gradients_in_evaluation_mode(tmp_path: Path) -> None:
    net, array = Watched(), scan(1, 20, 21, 22)
    out = voxpatch.predict(net, array, tmp_path / "o.zarr", 8, 4, batch_size=3)
    assert set(net.seen) == {(torch.float32, "cpu", False, False)} and net.training
    with torch.no_grad():
        expected = net.layer(torch.from_numpy(array)[None])[0]
    np.testing.assert_allclose(out[...], expected, atol=1e-5)


def test_a_function_gets_tensors_where_a_device_is_given(tmp_path: Path) -> None:
    kinds = set()

    def model(x: Any) -> Any:
        kinds.add(type(x))
        return {"a": x.bfloat16(), "b": x.half()}

    array = scan(1, 16, 16, 16)
    out = voxpatch.predict(model, array, {"a": tmp_path / "a.zarr", "b": tmp_path / "b.npy"}, 8, device="cpu")
    assert kinds == {torch.Tensor} and out["a"].dtype == np.float32 and out["b"].dtype == np.float16
    np.testing.assert_allclose(out["a"][...], array, rtol=1e-2)


def test_without_an_output_an_array_comes_back() -> None:
    array = scan(1, 16, 17, 18)
    np.testing.assert_allclose(voxpatch.predict(torch.nn.Identity(), array, None, 8, 0.5), array, rtol=1e-6)


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    net, array = Watched().eval(), scan(1, 24, 16, 16)
    options: Any = dict(patch_size=8, part=0, num_parts=2, chunk=8, shard=None)
    assert voxpatch.predict(net, array, tmp_path / "o.zarr", **options) is None
    with pytest.raises(ValueError):
        voxpatch.predict(Watched().eval(), array, tmp_path / "o.zarr", **{**options, "part": 1})
    out = voxpatch.predict(net, array, tmp_path / "o.zarr", **{**options, "part": 1})
    assert out.shape == (2, 24, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_of_ones_own_with_a_data_loader(workers: int, tmp_path: Path) -> None:
    array = scan(1, 20, 21, 22)
    voxpatch.write(tmp_path / "a.zarr", array, chunk=8, shard=None)
    sampler = voxpatch.GridSampler(tmp_path / "a.zarr", 8, 4)
    aggregator = voxpatch.GridAggregator(sampler, "hann")
    for batch in torch.utils.data.DataLoader(sampler, batch_size=4, num_workers=workers):
        aggregator.add_batch(batch["image"].requires_grad_() * 2, batch["location"])
    out = aggregator.get_output_tensor()
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, torch.from_numpy(array) * 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_module_on_a_gpu(tmp_path: Path) -> None:
    net, array = Watched().cuda().eval(), scan(1, 20, 21, 22)
    out = voxpatch.predict(net, array, tmp_path / "o.zarr", 8, 4)
    assert {seen[1] for seen in net.seen} == {"cuda"}
    with torch.no_grad():
        expected = net.layer(torch.from_numpy(array).cuda()[None])[0].cpu()
    np.testing.assert_allclose(out[...], expected, atol=1e-3)


def test_tqdm_shows_a_bar_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    voxpatch.predict(lambda b: b, scan(1, 16, 16, 16), tmp_path / "a.zarr", 8)
    assert capsys.readouterr().err == ""
    voxpatch.predict(lambda b: b, scan(1, 16, 16, 16), tmp_path / "b.zarr", 8, progress=True)
    assert "27/27" in capsys.readouterr().err
