"""MONAI's results beside ours, from the same predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import voxpatch

torch = pytest.importorskip("torch", reason="torch is not installed")
inferers = pytest.importorskip("monai.inferers", reason="monai is not installed")

from voxpatch.compat import monai as ours  # noqa: E402


def scan(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Looks beyond its voxel, so that overlapping windows differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


CASES = [
    ((33, 29, 40), (16, 16, 16), 0.25),
    ((33, 29, 40), (16, 12, 10), (0.5, 0.3, 0.6)),
    ((20, 9, 31), (16, 16, 16), 0.5),
    ((16, 16, 16), (16, 16, -1), 0.25),
]


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("shape", "roi", "overlap"), CASES)
def test_the_call_gives_what_monai_gives(mode: str, shape: Any, roi: Any, overlap: Any) -> None:
    net, inputs = Net().eval(), scan(2, 2, *shape)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(inputs, roi, 3, net, overlap, mode=mode)
    found = ours.sliding_window_inference(inputs, roi, 3, net, overlap, mode=mode)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("padding", "cval"), [("constant", -2.0), ("replicate", 0.0), ("circular", 0.0)])
def test_small_volumes_are_padded_as_monai_pads(padding: str, cval: float) -> None:
    net, inputs = Net().eval(), scan(1, 2, 13, 30, 11)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(inputs, 16, 1, net, 0.5, padding_mode=padding, cval=cval)
    found = ours.sliding_window_inference(inputs, 16, 1, net, 0.5, padding_mode=padding, cval=cval)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_volume_on_disk_is_predicted_to_disk(tmp_path: Any) -> None:
    net, inputs = Net().eval(), scan(1, 2, 40, 33, 35)
    voxpatch.write(tmp_path / "in.zarr", inputs[0].numpy(), chunk=16, shard=None)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(inputs, 16, 1, net, 0.25, mode="gaussian")
    found = ours.sliding_window_inference(
        tmp_path / "in.zarr", 16, 2, net, 0.25, "gaussian", output=tmp_path / "out.zarr", options={"reduce": "argmax"}
    )
    assert isinstance(found, voxpatch.Volume) and found.dtype == np.uint8
    scores, labels = expected[0].numpy(), found[0]
    best = np.sort(scores, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], scores.argmax(0)[clear])


def test_further_arguments_reach_the_predictor_and_weights_are_taken() -> None:
    inputs, weights = scan(1, 1, 20, 20, 20), torch.rand(8, 8, 8) + 0.1

    def predictor(x: Any, factor: float) -> Any:
        return x.cumsum(-1) * factor

    expected = inferers.sliding_window_inference(inputs, 8, 2, predictor, 0.5, roi_weight_map=weights, factor=3.0)
    found = ours.sliding_window_inference(inputs, 8, 2, predictor, 0.5, roi_weight_map=weights, factor=3.0)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.3, (2, 4, 0)])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_merger_is_a_drop_in_for_monai_s(overlap: Any, batch: int, tmp_path: Any) -> None:
    net, inputs = Net().eval(), scan(batch, 2, 21, 20, 26)
    with torch.no_grad():
        expected = inferers.PatchInferer(inferers.SlidingWindowSplitter(8, overlap), batch_size=4)(inputs, net)
        for output in [None, tmp_path / f"{batch}.zarr"]:
            merged = inferers.PatchInferer(
                inferers.SlidingWindowSplitter(8, overlap),
                ours.VoxpatchMerger,
                batch_size=4,
                patch_size=8,
                overlap=overlap,
                output=output,
            )(inputs, net)
            if output is not None:
                merged = torch.from_numpy(merged[...]).reshape(expected.shape)
            torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-4)


def test_patches_that_a_filter_leaves_out_do_not_vote() -> None:
    inputs = scan(1, 1, 16, 16, 16)
    splitter = inferers.SlidingWindowSplitter(8, 0.0, filter_fn=lambda patch, location: tuple(location) != (8, 0, 0))
    merged = inferers.PatchInferer(splitter, ours.VoxpatchMerger, patch_size=8, options={"fill": -5.0})(
        inputs, torch.nn.Identity()
    )
    assert (merged[0, 0, 8:, :8, :8] == -5).all()
    torch.testing.assert_close(merged[0, 0, :8], inputs[0, 0, :8])


def test_the_preset_of_predict_is_monai_s(tmp_path: Any) -> None:
    net, inputs = Net().eval(), scan(1, 2, 33, 29, 40)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(inputs, 16, 1, net, 0.25, mode="gaussian")
    out = voxpatch.predict(net, inputs[0].numpy(), tmp_path / "o.zarr", 16, preset="monai")
    torch.testing.assert_close(torch.from_numpy(out[...]), expected[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [(16, 16, 16), (15, 9, 13), (7, 5, 17)])
def test_the_preset_of_predict_is_nnunet_s(tmp_path: Any, patch: tuple[int, int, int]) -> None:
    sliding = pytest.importorskip("nnunetv2.inference.sliding_window_prediction", reason="nnunetv2 is not installed")
    net, inputs = Net().eval(), scan(1, 2, 33, 29, 40)
    steps = sliding.compute_steps_for_sliding_window((33, 29, 40), patch, 0.5)
    weights = sliding.compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu"))
    sums, total = torch.zeros(3, 33, 29, 40), torch.zeros(33, 29, 40)
    with torch.no_grad():
        for z in steps[0]:
            for y in steps[1]:
                for x in steps[2]:
                    box = (..., slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
                    sums[box] += net(inputs[box])[0] * weights
                    total[box] += weights
    out = voxpatch.predict(net, inputs[0].numpy(), tmp_path / "o.zarr", patch, preset="nnunet")
    # Its Gaussian is cut off at four standard deviations, ours is not.
    torch.testing.assert_close(torch.from_numpy(out[...]), sums / total, atol=2e-3, rtol=1e-3)


def test_windows_with_coordinates_and_weights_that_depend_on_them_are_monais() -> None:
    net, inputs = Net().eval(), scan(1, 2, 20, 18, 22)

    def weighted(outputs: Any, window: Any, importance: Any) -> Any:
        return outputs, importance * (window.mean() > 0) + 0.5

    def placed(window: Any, places: Any) -> Any:
        return net(window) + float(places[0][2].start)

    for call, options in ((net, {"process_fn": weighted}), (placed, {"with_coord": True}), (net, {"buffer_steps": 2})):
        with torch.no_grad():
            expected = inferers.sliding_window_inference(inputs, 8, 2, call, 0.5, **options)
            found = ours.sliding_window_inference(inputs, 8, 2, call, 0.5, **options)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="with_coord"):
        ours.sliding_window_inference(inputs, 8, 2, placed, with_coord=True, output="never.zarr")
    with pytest.raises(ValueError, match="buffer_dim"):
        ours.sliding_window_inference(inputs, 8, 2, net, buffer_steps=1, buffer_dim=4)


def test_a_gradient_flows_through_tensors_in_memory() -> None:
    inputs = scan(1, 2, 12, 12, 12).requires_grad_()
    ours.sliding_window_inference(inputs, 8, 2, Net().eval()).sum().backward()
    assert inputs.grad is not None and bool((inputs.grad != 0).any())


@pytest.mark.parametrize("patch", [(64, 63, 5), (15, 9, 13)])
@pytest.mark.parametrize("part", [0.5, 0.3, 0.0])
def test_the_preset_places_as_many_patches_as_nnunet(patch: tuple[int, int, int], part: float) -> None:
    from voxpatch._voxpatch import Grid
    from voxpatch.prediction import _placed

    volume = (1071, 64, 1000)
    placed = _placed(volume, patch, part, None, None, None, None, "nnunet")
    grid = Grid(volume, patch, placed["overlap"], placed["placement"], placed["margin"], True)
    starts = grid.locations()[:, :3]
    for axis, (length, voxels) in enumerate(zip(volume, patch)):
        room = max(0, length - voxels)
        count = int(np.ceil(room / (voxels * (1 - part)))) + 1
        expected = [int(np.round(room / max(1, count - 1) * n)) for n in range(count)]
        assert np.unique(starts[:, axis]).tolist() == sorted(set(expected))
