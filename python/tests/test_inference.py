"""Grids, aggregators and predictions, against numpy loops that hold everything in memory."""

from __future__ import annotations

import _thread
import functools
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxpatch
from voxpatch import calls
from conftest import faulty, needs_faulty

MODES = ["crop", "average", "hann", "gaussian", "linear", "nnunet"]


def scan(shape=(1, 23, 19, 31), dtype=np.float32, seed=1):
    return (np.random.default_rng(seed).standard_normal(shape) * 50).astype(dtype)


def sampler(array, patch=(8, 9, 10), overlap=(4, 2, 6), **options):
    return voxpatch.GridSampler(voxpatch.Volume.from_array(array), patch, overlap, **options)


def window(mode, length):
    n = np.arange(length)
    return {
        "average": np.ones(length),
        "hann": np.sin(np.pi * (n + 1) / (length + 1)) ** 2,
        "gaussian": np.exp(-((n - (length - 1) / 2) ** 2) / (2 * (length / 8) ** 2)),
        "linear": np.minimum(n + 1, length - n),
        "nnunet": np.exp(-((n - length // 2) ** 2) / (2 * (length / 8) ** 2)),
    }[mode]


def blended(predictions, locations, shape, mode):
    """Weighted means in float64, all in memory."""
    first = predictions[0]
    weights = np.einsum("i,j,k->ijk", *(window(mode, length) for length in first.shape[1:]))
    sums, total = np.zeros((first.shape[0], *shape)), np.zeros(shape)
    for prediction, (z, y, x, z1, y1, x1) in zip(predictions, locations):
        sums[:, z:z1, y:y1, x:x1] += prediction * weights
        total[z:z1, y:y1, x:x1] += weights
    return sums / total


def test_a_sampler_is_a_dataset_of_the_patches_that_cover_the_volume():
    array = scan((2, 10, 20, 31))
    grid = voxpatch.GridSampler(voxpatch.Subject(ct=array, label=(array[0] > 0).astype(np.uint8)), (5, 20, 12), (2, 4, 6))
    places = grid.locations
    assert places.dtype == np.int64 and places.shape == (len(grid), 6)
    assert sorted(set(places[:, 0])) == [0, 3, 5] and sorted(set(places[:, 2])) == [0, 6, 12, 18, 19]
    seen = np.zeros(array.shape[1:], bool)
    for number, sample in enumerate(grid):
        z, y, x, z1, y1, x1 = sample["location"]
        assert (sample["location"] == places[number]).all()
        np.testing.assert_array_equal(sample["ct"], array[:, z:z1, y:y1, x:x1])
        np.testing.assert_array_equal(sample["label"], (array[:1] > 0)[:, z:z1, y:y1, x:x1])
        seen[z:z1, y:y1, x:x1] = True
    assert seen.all()
    np.testing.assert_array_equal(grid[-1]["ct"], grid[len(grid) - 1]["ct"])
    with pytest.raises(IndexError):
        grid[len(grid)]


def test_padding_is_that_of_numpy():
    array = scan((1, 9, 8, 7))
    for mode in ["constant", "edge", "reflect", "wrap", 3]:
        grid = sampler(array, 6, 4, padding=mode)
        options = {"mode": "constant", "constant_values": 3} if mode == 3 else {"mode": mode}
        padded = np.pad(array, [(0, 0)] + [(2, 2)] * 3, **options)
        for sample in grid:
            z, y, x, z1, y1, x1 = sample["location"] + 2
            np.testing.assert_array_equal(sample["image"], padded[:, z:z1, y:y1, x:x1])


def test_impossible_grids_name_axis_and_sizes():
    array = scan((1, 10, 20, 30))
    with pytest.raises(ValueError, match="21 voxels along y .* 20"):
        sampler(array, (5, 21, 5), 0)
    with pytest.raises(ValueError, match="overlap"):
        sampler(array, 5, (2, 4, 6))
    with pytest.raises(ValueError, match="same grid"):
        voxpatch.GridSampler(voxpatch.Subject(a=array, b=array[:, :9]), 4)


def test_a_pickled_sampler_reads_the_same(tmp_path):
    voxpatch.write(tmp_path / "a.zarr", scan(), chunk=8, shard=None)
    grid = voxpatch.GridSampler(tmp_path / "a.zarr", 8, 2, padding="edge")
    again = pickle.loads(pickle.dumps(grid))
    assert len(again) == len(grid)
    for one, other in zip(grid, again):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["location"], other["location"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [None, "reflect"])
def test_identity_gives_the_volume_back_in_any_order(mode, padding):
    array = scan()
    grid = sampler(array, padding=padding)
    order = np.random.default_rng(3).permutation(len(grid))
    forward = voxpatch.GridAggregator(grid, mode)
    shuffled = voxpatch.GridAggregator(grid, mode)
    for index in range(len(grid)):
        sample = grid[index]
        forward.add_batch(sample["image"][None], sample["location"][None])
    for part in np.array_split(order, 5):
        samples = [grid[int(index)] for index in part]
        shuffled.add_batch(np.stack([s["image"] for s in samples]), np.stack([s["location"] for s in samples]))
    np.testing.assert_allclose(forward.get_output_tensor(), array, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(forward.get_output_tensor(), shuffled.get_output_tensor())
    assert forward.stats()["patches"] == len(grid)


@pytest.mark.parametrize("mode", MODES[1:])
def test_blending_is_the_weighted_mean(mode):
    grid = sampler(scan())
    random = np.random.default_rng(7)
    predictions = [random.standard_normal((2, 8, 9, 10)).astype(np.float32) for _ in range(len(grid))]
    aggregator = voxpatch.GridAggregator(grid, mode)
    aggregator.add_batch(np.stack(predictions), grid.locations)
    expected = blended(predictions, grid.locations, grid.spatial_shape, mode)
    np.testing.assert_allclose(aggregator.finish(), expected, atol=2e-6)


def test_weights_of_ones_own():
    grid = sampler(scan())
    weights = np.random.default_rng(5).uniform(0.1, 1, (8, 9, 10)).astype(np.float32)
    predictions = np.random.default_rng(6).standard_normal((len(grid), 1, 8, 9, 10)).astype(np.float32)
    aggregator = voxpatch.GridAggregator(grid, weights)
    aggregator.add_batch(predictions, grid.locations)
    sums, total = np.zeros((1, *grid.spatial_shape)), np.zeros(grid.spatial_shape)
    for prediction, (z, y, x, z1, y1, x1) in zip(predictions, grid.locations):
        sums[:, z:z1, y:y1, x:x1] += prediction * weights
        total[z:z1, y:y1, x:x1] += weights
    np.testing.assert_allclose(aggregator.finish(), sums / total, atol=1e-5)


def test_an_output_on_disk_equals_the_one_in_memory(tmp_path):
    array = scan((1, 40, 33, 35))
    volume = voxpatch.Volume.from_array(array, spacing=(2.0, 1.0, 0.5))
    grid = voxpatch.GridSampler(volume, 16, 8)
    outputs = []
    for path in [None, tmp_path / "out.zarr", tmp_path / "out.npy"]:
        aggregator = voxpatch.GridAggregator(grid, "hann", path)
        for sample in grid:
            both = np.concatenate([sample["image"], -sample["image"]])
            aggregator.add_batch(both[None], sample["location"][None])
        outputs.append(aggregator.finish())
        np.testing.assert_array_equal(aggregator.get_output_tensor(), outputs[0])
    assert isinstance(outputs[1], voxpatch.Volume) and outputs[1].shape == (2, 40, 33, 35)
    assert outputs[1].spacing == (2.0, 1.0, 0.5)


def test_labels_pass_through_crop_untouched_and_argmax_gives_bytes():
    labels = np.random.default_rng(2).integers(-(2**62), 2**62, (1, 14, 15, 16))
    grid = sampler(labels, 6, 2)
    aggregator = voxpatch.GridAggregator(grid, "crop")
    for sample in grid:
        aggregator.add_batch(sample["image"][None], sample["location"][None])
    out = aggregator.get_output_tensor()
    assert out.dtype == np.int64
    np.testing.assert_array_equal(out, labels)
    scores = scan((3, 14, 15, 16))
    grid = sampler(scores, 6, 2)
    for labels, expected in [(None, scores.argmax(0)), ([7, 0, 300], np.array([7, 0, 300])[scores.argmax(0)])]:
        aggregator = voxpatch.GridAggregator(grid, "hann", reduce="argmax", labels=labels)
        for sample in grid:
            aggregator.add_batch(sample["image"][None], sample["location"][None])
        out = aggregator.get_output_tensor()
        np.testing.assert_array_equal(out[0], expected)
        assert out.dtype == (np.uint8 if labels is None else np.uint16)


def test_predictions_of_another_size_lie_where_they_belong():
    array = scan((1, 24, 24, 24))
    grid = sampler(array, 8, 4)
    half = voxpatch.GridAggregator(grid, "average", scale=2)
    rimless = voxpatch.GridAggregator(grid, "average", fill=-1)
    for sample in grid:
        half.add_batch(sample["image"][None, :, ::2, ::2, ::2], sample["location"][None])
        rimless.add_batch(sample["image"][None, :, 1:-1, 1:-1, 1:-1], sample["location"][None])
    np.testing.assert_allclose(half.get_output_tensor(), array[:, ::2, ::2, ::2], rtol=1e-6)
    expected = np.full_like(array, -1)
    expected[:, 1:-1, 1:-1, 1:-1] = array[:, 1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(rimless.get_output_tensor(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="predictions of"):
        voxpatch.GridAggregator(grid).add_batch(sample["image"][None, :, :7], sample["location"][None])


def rim(batch, z, y, x):
    return batch[..., z : batch.shape[-3] - z, y : batch.shape[-2] - y, x : batch.shape[-1] - x]


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("through", ["predict", "aggregator"])
def test_halo_and_scale_are_said_where_the_size_could_mean_either(through, patch):
    array = np.arange(24 * 28 * 32, dtype=np.float32).reshape(1, 24, 28, 32)

    def run(model, **said):
        if through == "predict":
            return voxpatch.predict(model, array, None, patch, patch - 4, blend="average", fill=-1, **said)
        grid = sampler(array, patch, patch - 4)
        aggregator = voxpatch.GridAggregator(grid, "average", fill=-1, **said)
        for sample in grid:
            aggregator.add_batch(model(sample["image"][None]), sample["location"][None])
        return aggregator.get_output_tensor()

    q, h = patch // 4, patch // 2 - 2
    # Half the patch, or a quarter of it: a rim is missing, or the voxels are larger.
    for halo, wanted in [((q, q, q), 2), ((q, 0, 0), None), ((0, q, q), None), ((h, h, h), patch // 4)]:
        model = lambda batch: rim(batch, *halo)  # noqa: B023, E731
        with pytest.raises(ValueError, match="two ways") as raised:
            run(model)
        assert f"halo of {', '.join(map(str, halo))}" in str(raised.value)
        assert (f"scale of {wanted}" if wanted else "scales that differ by axis") in str(raised.value)
        out = run(model, halo=halo)
        inner = tuple(slice(n, length - n) for n, length in zip(halo, array.shape[1:]))
        np.testing.assert_allclose(out[0][inner], array[0][inner], rtol=1e-6)
        assert out.shape == array.shape
        with pytest.raises(ValueError, match="scale of 1, not 2"):
            run(model, halo=halo, scale=2)
    for scale in (2, 4):
        model = lambda batch: batch[..., ::scale, ::scale, ::scale]  # noqa: B023, E731
        with pytest.raises(ValueError, match=f"two ways.*scale of {scale}"):
            run(model)
        for said in ({"scale": scale}, {"halo": 0}, {"halo": 0, "scale": scale}):
            np.testing.assert_allclose(run(model, **said), array[..., ::scale, ::scale, ::scale], rtol=1e-6)
    # Where only one fits, nothing need be said.
    out = run(lambda batch: rim(batch, 1, 2, 0))
    np.testing.assert_allclose(out[0][1:-1, 2:-2], array[0][1:-1, 2:-2], rtol=1e-6)
    for model, problem in [
        (lambda batch: batch[..., ::2, ::2], "differ by axis"),
        (lambda batch: np.repeat(np.moveaxis(batch, 1, -1), 5, -1), "channels seem to come last"),
        (lambda batch: batch.repeat(2, 2).repeat(2, 3).repeat(2, 4), "longer than the patch along z"),
        (lambda batch: batch[..., 1:], "lacks 1 voxels along x"),
    ]:
        with pytest.raises(ValueError, match=problem):
            run(model)


@pytest.mark.parametrize("through", ["predict", "aggregator"])
@pytest.mark.parametrize("mode", ["crop", "average", "hann", "gaussian", "linear", "nnunet"])
@pytest.mark.parametrize(("halo", "scale"), [(0, 1), (1, 1), ((2, 0, 1), 1), (0, 2), (2, 2)])
def test_every_blend_puts_predictions_where_they_belong(through, mode, halo, scale):
    """Each voxel of a ramp says where it lies: with a rim that is missing, or at half the resolution."""
    array = np.arange(16 * 20 * 24, dtype=np.float32).reshape(1, 16, 20, 24)
    z, y, x = np.broadcast_to(halo, 3)

    def model(batch):
        inside = batch[..., z : 8 - z, y : 8 - y, x : 8 - x]
        return inside.reshape(*inside.shape[:2], *(m for n in inside.shape[2:] for m in (n // scale, scale))).mean((3, 5, 7))

    if through == "predict":
        found = voxpatch.predict(model, array, None, 8, 4, blend=mode, halo=halo, scale=scale, fill=-1)
    else:
        grid = sampler(array, 8, 4)
        aggregator = voxpatch.GridAggregator(grid, mode, halo=halo, scale=scale, fill=-1)
        for sample in grid:
            aggregator.add_batch(model(sample["image"][None]), sample["location"][None])
        found = aggregator.finish()
    expected = array.reshape(1, *(m for n in array.shape[1:] for m in (n // scale, scale))).mean((2, 4, 6))
    inner = (slice(None), *(slice(n // scale, length - n // scale) for n, length in zip((z, y, x), expected.shape[1:])))
    np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-5)
    rim_of_fill = np.ones(expected.shape, bool)
    rim_of_fill[inner] = False
    assert np.all(found[rim_of_fill] == -1)


def test_what_is_wrong_with_a_batch_is_said():
    grid = sampler(scan())
    aggregator = voxpatch.GridAggregator(grid, "crop")
    sample = grid[0]
    with pytest.raises(ValueError, match="no prediction"):
        aggregator.finish()
    aggregator.add_batch(sample["image"][None], sample["location"][None])
    with pytest.raises(ValueError, match="was already added"):
        aggregator.add_batch(sample["image"][None], sample["location"][None])
    with pytest.raises(ValueError, match="no patch of the grid"):
        aggregator.add_batch(sample["image"][None], sample["location"][None] + 1)
    with pytest.raises(ValueError, match=r"\(B, C, Z, Y, X\)"):
        aggregator.add_batch(sample["image"], sample["location"])
    with pytest.raises(ValueError, match=f"{len(grid) - 1} of {len(grid)} patches did not come"):
        aggregator.finish()
    bad = np.full_like(sample["image"], np.nan)
    with pytest.raises(ValueError, match="NaN|finite"):
        aggregator.add_batch(bad[None], grid[1]["location"][None])
    out = aggregator.finish(partial=True)
    z, y, x, z1, y1, x1 = sample["location"]
    assert (out[:, z:6, y:8, x:7] == sample["image"][:, :6, :8, :7]).all() and (out == 0).any()
    with pytest.raises(ValueError, match="invalid blend"):
        voxpatch.GridAggregator(grid, "bad").add_batch(sample["image"][None], sample["location"][None])


def smooth(batch):
    """Something that looks at its neighborhood and at several channels."""
    total = batch.sum(1, keepdims=True)
    return np.concatenate([np.roll(total, 1, -1), total * 2], axis=1)


@pytest.mark.parametrize("mode", ["crop", "average", "hann", "gaussian"])
def test_predict_equals_a_loop_over_the_patches(tmp_path, mode):
    array = scan((2, 30, 25, 37))
    threads = set()

    def model(batch):
        threads.add(threading.get_ident())
        assert batch.dtype == np.float32 and batch.shape[0] <= 3
        return smooth(batch)

    out = voxpatch.predict(
        model, array, tmp_path / "out.zarr", 12, 6, blend=mode, batch_size=3, threads=3, chunk=8, shard=16
    )
    grid = voxpatch.GridSampler(array, 12, 6)
    aggregator = voxpatch.GridAggregator(grid, mode)
    for sample in grid:
        aggregator.add_batch(smooth(sample["image"][None]), sample["location"][None])
    np.testing.assert_array_equal(out[...], aggregator.finish())
    assert threads == {threading.get_ident()}, "the model is called on the caller's thread only"


def test_real_values_normalized_flipped_and_reduced(tmp_path):
    nib = pytest.importorskip("nibabel", reason="nibabel makes a file with a slope")
    stored = (scan((20, 18, 16), seed=4)).astype(np.int16)
    image = nib.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(2.0, -100.0)
    nib.save(image, tmp_path / "a.nii")
    raw = voxpatch.open(tmp_path / "a.nii")
    real = voxpatch.open(tmp_path / "a.nii", values="real")[...]
    out = voxpatch.predict(lambda batch: batch, raw, tmp_path / "o.zarr", 8, 0.5)
    np.testing.assert_allclose(out[...], real, rtol=1e-6)
    out = voxpatch.predict(lambda batch: batch, raw, tmp_path / "n.zarr", 8, 0.5, normalize=(-150, 50), tta="flips")
    np.testing.assert_allclose(out[...], np.clip((real + 150) / 200, 0, 1), atol=1e-5)
    out = voxpatch.predict(lambda batch: batch, raw, tmp_path / "z.zarr", 8, 4, normalize="zscore", reduce="threshold:0")
    np.testing.assert_array_equal(out[...], real >= real.mean())
    assert out.dtype == np.uint8


def test_some_channels_of_a_volume_are_predicted(tmp_path):
    array = scan((3, 16, 17, 18))
    voxpatch.write(tmp_path / "a.zarr", array, chunk=8, shard=None)
    two = voxpatch.open(tmp_path / "a.zarr", channels=slice(1, 3))
    out = voxpatch.predict(lambda batch: batch, two, tmp_path / "o.zarr", 8, 2)
    np.testing.assert_allclose(out[...], array[1:], rtol=1e-6)


def test_several_outputs_have_their_own_files(tmp_path):
    array = scan((1, 24, 24, 24))

    def both(batch):
        return {"labels": np.concatenate([-batch, batch], 1), "half": batch[..., ::2, ::2, ::2], "unwanted": batch}

    out = voxpatch.predict(
        both,
        array,
        {"half": tmp_path / "half.zarr", "labels": tmp_path / "labels.zarr"},
        8,
        4,
        reduce={"labels": "argmax"},
        blend={"half": "average"},
        scale={"half": 2},
    )
    np.testing.assert_allclose(out["half"][...], array[..., ::2, ::2, ::2], rtol=1e-6)
    np.testing.assert_array_equal(out["labels"][...], array > 0)
    pair = voxpatch.predict(lambda b: (b, -b), array, [tmp_path / "a.zarr", tmp_path / "b.zarr"], 8, 0)
    np.testing.assert_array_equal(pair[1][...], -array)
    with pytest.raises(ValueError, match="2 outputs"):
        voxpatch.predict(lambda b: (b, -b), array, tmp_path / "c.zarr", 8)


def test_a_mask_leaves_patches_out(tmp_path):
    array = np.abs(scan((1, 32, 32, 32))) + 1
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0, 0, 0] = 1
    calls = []

    def model(batch):
        calls.append(len(batch))
        return batch

    with pytest.raises(ValueError, match="same_grid=True"):
        voxpatch.predict(model, array, tmp_path / "o.zarr", 16, 0, mask=mask, fill=-7)
    calls.clear()
    out = voxpatch.predict(model, array, tmp_path / "o.zarr", 16, 0, mask=mask, same_grid=True, fill=-7)
    assert sum(calls) == 2, "the first look and one patch"
    np.testing.assert_array_equal(out[:, :16, :16, :16], array[:, :16, :16, :16])
    assert (out[:, 16:] == -7).all()
    out = voxpatch.predict(model, array, tmp_path / "v.zarr", 16, 0, mask=mask, same_grid=True, vote=[5.0])
    assert (out[:, 16:] == 5).all()


def test_what_the_model_raises_arrives_and_leaves_nothing(tmp_path):
    calls = []

    def broken(batch):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError("the fourth")
        return batch

    with pytest.raises(ZeroDivisionError, match="the fourth"):
        voxpatch.predict(broken, scan(), tmp_path / "o.zarr", 8, 4)
    assert not (tmp_path / "o.zarr").exists()
    with pytest.raises(ValueError, match="when it was first called"):
        voxpatch.predict(lambda b: b if not b.any() else b[:, :, :4], scan(), tmp_path / "p.zarr", 8, 4)
    with pytest.raises(OSError, match="out.zarr"):
        voxpatch.write(tmp_path / "out.zarr", scan())
        voxpatch.predict(lambda b: b, scan(), tmp_path / "out.zarr", 8, 4)


def test_progress_is_told_and_may_stop_the_run(tmp_path):
    told = []
    voxpatch.predict(lambda b: b, scan(), tmp_path / "o.zarr", 8, 4, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] and told == sorted(told)

    def stop(done, total):
        if done > 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        voxpatch.predict(lambda b: b, scan(), tmp_path / "p.zarr", 8, 4, progress=stop)


@pytest.mark.parametrize("laid_out", [np.ascontiguousarray, np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder())])
@pytest.mark.parametrize("ours", [False, True])
def test_predictions_of_any_memory_order_are_the_same(laid_out, ours, monkeypatch):
    # `ours` is said of what came from a GPU.
    given = calls.Call.__call__
    monkeypatch.setattr(calls.Call, "__call__", lambda *all: [(laid_out(array), ours) for array, _ in given(*all)])
    array = scan((2, 24, 17, 20))
    halves = voxpatch.predict(lambda b: b.astype(np.float16), array, None, 8, 4, batch_size=3, blend="crop")
    assert np.array_equal(halves, array.astype(np.float16))


def test_ctrl_c_stops_at_once(tmp_path):
    slow = threading.Event()

    def model(batch):
        slow.set()
        time.sleep(0.02)
        return batch

    def press():
        slow.wait()
        time.sleep(0.3)
        pressed.append(time.monotonic())
        _thread.interrupt_main()

    pressed: list[float] = []
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        voxpatch.predict(model, scan((1, 128, 128, 128)), tmp_path / "o.zarr", 8, 4)
    # Much less than a second on an idle machine; all batches would take minutes.
    assert time.monotonic() - pressed[0] < 10
    assert not (tmp_path / "o.zarr").exists()


@needs_faulty
def test_ctrl_c_stops_while_reading_is_slow_and_panics_are_errors(tmp_path):
    def press():
        time.sleep(0.5)
        pressed.append(time.monotonic())
        _thread.interrupt_main()

    pressed: list[float] = []
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        voxpatch.predict(lambda b: b, faulty((64, 64, 64), milliseconds=10_000), tmp_path / "o.zarr", 8)
    # Before the reads that it is in the middle of have ended.
    assert time.monotonic() - pressed[0] < 5
    with pytest.raises(RuntimeError, match="panics at"):
        voxpatch.predict(lambda b: b, faulty((16, 16, 16), panics=True), tmp_path / "p.zarr", 8)


@needs_faulty
def test_other_python_threads_go_on_meanwhile(tmp_path):
    def count(seconds):
        counted, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            counted += 1
            time.sleep(0.0005)
        return counted

    idle = count(1.0)
    counted = []
    thread = threading.Thread(target=lambda: counted.append(count(1.0)))
    thread.start()
    while thread.is_alive():
        voxpatch.predict(lambda b: b, faulty((32, 32, 32), milliseconds=3), None, 8)
    assert counted[0] > idle / 2


def test_a_run_that_was_ended_goes_on_and_other_models_are_refused(tmp_path):
    array = scan((1, 48, 40, 40))
    calls = []

    def model(batch):
        calls.append(1)
        if len(calls) == 40:
            raise RuntimeError("a power cut")
        return batch * 2

    options = dict(chunk=8, shard=None, resume=True, model_id="twice")
    path = tmp_path / "o.zarr"
    with pytest.raises(RuntimeError, match="power cut"):
        voxpatch.predict(model, array, path, 12, 4, **options)
    with pytest.raises(ValueError, match="twice|model"):
        voxpatch.predict(lambda b: b, array, path, 12, 4, **{**options, "model_id": "other"})
    whole = voxpatch.predict(lambda b: b * 2, array, tmp_path / "whole.zarr", 12, 4, chunk=8, shard=None)
    before = len(calls)
    out = voxpatch.predict(model, array, path, 12, 4, **options)
    assert len(calls) - before < len(voxpatch.GridSampler(array, 12, 4)), "what was done is not predicted again"
    np.testing.assert_array_equal(out[...], whole[...])


class Doubling:
    def __call__(self, batch):
        return batch * 2


@pytest.mark.parametrize("how", [dict(resume=True), dict(part=0, num_parts=2)])
def test_a_model_without_a_name_is_resumed_only_with_an_id(how, tmp_path):
    array, path = scan((1, 24, 16, 16)), tmp_path / "o.zarr"
    options = dict(chunk=8, shard=None, **how)

    def inner(batch):
        return batch * 2

    for model in (lambda b: b * 2, inner, functools.partial(smooth), Doubling(), Doubling().__call__):
        with pytest.raises(voxpatch.errors.InvalidError, match="model_id"):
            voxpatch.predict(model, array, path, 8, 4, **options)
        assert not list(tmp_path.iterdir())
    whole = how.get("resume", False)
    assert (voxpatch.predict(inner, array, path, 8, 4, model_id="twice", **options) is not None) == whole
    again = tmp_path / "again.zarr"
    assert (voxpatch.predict(smooth, array, again, 8, 4, **options) is not None) == whole


def test_a_dry_run_says_what_a_run_takes_and_writes_nothing(tmp_path):
    array = scan((1, 48, 40, 40))
    options = dict(chunk=8, shard=None, memory=64 << 20)
    told = voxpatch.predict(smooth, array, tmp_path / "o.zarr", 16, 8, dry_run=True, **options)
    assert not list(tmp_path.iterdir())
    assert told["patches"] == told["patches_predicted"] == len(voxpatch.GridSampler(array, 16, 8))
    assert told["passes"] == 1 and 0 < told["peak_bytes"] <= 64 << 20 and told["estimated_seconds"] > 0
    assert told["process_bytes"] >= told["peak_bytes"] + told["model_bytes"]
    # smooth gives two channels.
    assert told["output_bytes"] == [2 * array.nbytes] and told["free_bytes"] > 0
    none = np.zeros(array.shape, np.uint8)
    none[:, :8] = 1
    masked = voxpatch.predict(smooth, array, tmp_path / "o.npy", 16, 8, dry_run=True, mask=none, same_grid=True)
    assert masked["patches_predicted"] < told["patches_predicted"]
    several = voxpatch.predict(lambda b: (b, b), array, [tmp_path / "a.zarr", tmp_path / "b.npy"], 16, dry_run=True)
    assert several["output_bytes"] == [array.nbytes] * 2
    with pytest.raises(ValueError, match="memory"):
        voxpatch.predict(smooth, array, tmp_path / "o.zarr", 16, 8, dry_run=True, memory=1000)
    copied = voxpatch.convert(voxpatch.Volume.from_array(array), tmp_path / "c.zarr", dry_run=True, memory=32 << 20)
    assert not list(tmp_path.iterdir())
    assert 0 < copied["peak_bytes"] <= 32 << 20 and copied["process_bytes"] >= copied["peak_bytes"]
    assert copied["output_bytes"] == array.nbytes and copied["threads"] >= 1 and copied["reads_once"] is False


def test_parts_together_are_the_whole(tmp_path):
    array = scan((1, 40, 33, 35))
    options = dict(blend="hann", chunk=8, shard=None)
    whole = voxpatch.predict(smooth, array, tmp_path / "whole.zarr", 12, 6, **options)
    path = tmp_path / "parts.zarr"
    for part in range(3):
        out = voxpatch.predict(smooth, array, path, 12, 6, part=part, num_parts=3, **options)
        assert (out is None) == (part < 2)
    np.testing.assert_array_equal(out[...], whole[...])
    with pytest.raises(ValueError, match="num_parts"):
        voxpatch.predict(smooth, array, path, 12, 6, num_parts=3)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({0: None}, "output.0. is None: give a path for each output"),
        ([None], "output.0. is None: give a path for each output"),
        ({"labels": 3}, "output.'labels'. is 3: give a path"),
        (["a.zarr", None], "output.1. is None"),
        ({}, "output is empty"),
        ([], "output is empty"),
        (3, "output is a int: give a path, None for an array"),
        (["a.zarr", "b.zarr"], "the model gives 1 outputs"),
        ({1: "a.zarr"}, "the model gives 1 outputs"),
    ],
)
def test_an_output_that_is_not_a_path_says_what_to_give(output, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(voxpatch.errors.InvalidError, match=message):
        voxpatch.predict(lambda batch: batch, scan(), output, 8)
    for kept in ({"resume": True}, {"part": 0}):
        with pytest.raises(ValueError, match="output=None gives an array"):
            voxpatch.predict(lambda batch: batch, scan(), None, 8, model_id="same", **kept)
    with pytest.raises(ValueError, match="model 3: give a function"):
        voxpatch.predict(3, scan(), None, 8)
    assert not list(tmp_path.iterdir())


def test_overlaps_are_voxels_or_fractions_wherever_they_are_given():
    array = scan((1, 16, 16, 16))
    half = voxpatch.GridSampler(array, 8)
    assert half.overlap == (4, 4, 4) and len(half) == 27
    for same in (0.5, 4, (4, 0.5, np.float32(0.5)), np.array(4)):
        assert np.array_equal(voxpatch.GridSampler(array, 8, same).locations, half.locations)
    for wrong in (1.0, 1.5, -1, "half", (1, 2), None):
        with pytest.raises(ValueError, match="overlap"):
            voxpatch.GridSampler(array, 8, wrong)


def test_settings_that_make_no_sense_are_refused(tmp_path):
    out = tmp_path / "o.zarr"
    for wrong in [
        {"overlap": 1.5},
        {"preset": "other"},
        {"tta": "turns"},
        {"placement": "anywhere"},
        {"reduce": "median"},
        {"normalize": "minmax"},
        {"memory": 1},
        {"padding": "mirror"},
    ]:
        with pytest.raises(ValueError):
            voxpatch.predict(lambda b: b, scan(), out, 8, **wrong)
    with pytest.raises(TypeError, match="predict.. got an unexpected keyword argument .codek"):
        voxpatch.predict(lambda b: b, scan(), out, 8, codek="zstd")
    with pytest.raises(ValueError, match="axes B, C, Z, Y, X"):
        voxpatch.predict(lambda b: b[0], scan(), out, 8)
    assert not out.exists()


def test_predict_leaves_torch_alone(tmp_path):
    code = """
import sys, numpy as np, voxpatch
out = voxpatch.predict(lambda b: b, np.ones((9, 9, 9), np.float32), sys.argv[1], 4, 2)
assert abs(out[...] - 1).max() < 1e-6 and "torch" not in sys.modules and "tqdm" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(voxpatch.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "o.zarr")], check=True, env=environment)


def test_parts_of_different_inputs_are_never_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    stored = rng.integers(0, 99, (4, 16, 16, 16)).astype(np.int16)
    voxpatch.write(tmp_path / "four.zarr", stored, chunk=8, shard=None)
    voxpatch.write(tmp_path / "four.npy", stored)
    array = stored[0].astype(np.float32)
    inputs = {
        "zarr 0": lambda: voxpatch.open(tmp_path / "four.zarr", channels=0),
        "zarr 1": lambda: voxpatch.open(tmp_path / "four.zarr", channels=1),
        "npy 0": lambda: voxpatch.open(tmp_path / "four.npy", channels=0),
        "npy 3": lambda: voxpatch.open(tmp_path / "four.npy", channels=3),
        "array": lambda: array.copy(),
        "another array": lambda: array + 1,
    }
    options: Any = dict(num_parts=2, chunk=8, shard=None)
    for n, (name, first) in enumerate(inputs.items()):
        for m, (other, second) in enumerate(inputs.items()):
            path = tmp_path / f"{n}-{m}.zarr"
            assert voxpatch.predict(smooth, first(), path, 8, 4, part=0, **options) is None
            if name == other:
                assert voxpatch.predict(smooth, second(), path, 8, 4, part=1, **options) is not None
            else:
                with pytest.raises(ValueError, match="input"):
                    voxpatch.predict(smooth, second(), path, 8, 4, part=1, **options)
                assert not path.exists()


def test_inputs_of_which_some_channels_are_read_are_watched(tmp_path: Path) -> None:
    for name in ("a.npy", "a.zarr", "a.nii"):
        stored = np.zeros((2, 16, 16, 16), np.int16)
        voxpatch.write(tmp_path / name, stored)
        written = []

        def model(batch: np.ndarray, name: str = name, written: list[int] = written) -> np.ndarray:
            if not written:
                time.sleep(0.02)
                voxpatch.write(tmp_path / name, np.ones((2, 16, 16, 16), np.int16), overwrite=True)
                written.append(1)
            return batch

        with pytest.raises(ValueError, match=name):
            voxpatch.predict(model, voxpatch.open(tmp_path / name, channels=1), tmp_path / "o.zarr", 8, 4)
        assert not (tmp_path / "o.zarr").exists()


@pytest.mark.parametrize("mode", ["crop", "hann"])
def test_a_batch_is_added_whole_or_not_at_all(mode):
    array = scan()
    grid = sampler(array)
    values = np.stack([sample["image"] for sample in grid])
    aggregator = voxpatch.GridAggregator(grid, mode)
    spoilt = values[2:6].copy()
    spoilt[2, 0, 1, 1, 1] = np.nan
    aggregator.add_batch(values[:2], grid.locations[:2])
    with pytest.raises(voxpatch.VoxpatchError):
        aggregator.add_batch(spoilt, grid.locations[2:6])
    with pytest.raises(voxpatch.VoxpatchError):
        aggregator.add_batch(values[[4, 5, 1, 6]], grid.locations[[4, 5, 1, 6]])
    with pytest.raises(voxpatch.VoxpatchError):
        aggregator.add_batch(values[[4, 5, 4]], grid.locations[[4, 5, 4]])
    aggregator.add_batch(values[2:], grid.locations[2:])
    np.testing.assert_allclose(aggregator.get_output_tensor(), array, atol=1e-3)


def test_crop_without_some_patches_leaves_no_hole_where_others_cover():
    array = scan()
    grid = sampler(array)
    came = [number for number in range(len(grid)) if number % 3]
    aggregator = voxpatch.GridAggregator(grid, "crop", fill=-7)
    covered = np.zeros(array.shape[1:], bool)
    for number in reversed(came):
        z, y, x, z1, y1, x1 = grid.locations[number]
        covered[z:z1, y:y1, x:x1] = True
        aggregator.add_batch(grid[number]["image"][None], grid.locations[number][None])
    out = aggregator.finish(partial=True)
    assert 0 < covered.sum() < covered.size
    np.testing.assert_array_equal(out, np.where(covered, array, np.float32(-7)))
    assert aggregator.stats()["uncovered_voxels"] == (~covered).sum()


@pytest.mark.parametrize("options", [{"dtype": "bool", "fill": 7}, {"dtype": "uint8", "fill": -1}, {"dtype": "int16", "fill": 0.5}])
def test_a_fill_that_the_output_cannot_hold_is_refused(options):
    grid = sampler(scan())
    aggregator = voxpatch.GridAggregator(grid, "average", **options)
    with pytest.raises(voxpatch.VoxpatchError, match="fill"):
        aggregator.add_batch(grid[0]["image"][None], grid.locations[:1])
