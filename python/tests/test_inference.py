"""Grids, aggregators and prediction, beside plain numpy."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch import GridAggregator, GridSampler

Voxels = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def scan() -> Voxels:
    return np.random.default_rng(5).normal(0, 100, (1, 30, 34, 38)).astype(np.float32)


def test_a_grid_is_a_sequence_of_patches_that_cover_the_volume(scan: Voxels) -> None:
    sampler = GridSampler(scan, 16, (4, 6, 8))
    seen = np.zeros(scan.shape, bool)
    assert len(sampler) == len(sampler.locations) == len(list(sampler))
    for n, item in enumerate(sampler):
        z, y, x, z1, y1, x1 = item["location"].tolist()
        assert item["location"].tolist() == sampler.locations[n].tolist()
        assert np.array_equal(item["image"], scan[:, z:z1, y:y1, x:x1])
        seen[:, z:z1, y:y1, x:x1] = True
    assert seen.all()
    with pytest.raises(IndexError):
        sampler[len(sampler)]
    again = pickle.loads(pickle.dumps(sampler))
    assert np.array_equal(again[3]["image"], sampler[3]["image"])


@pytest.mark.parametrize("mode", ["crop", "average", "hann", "gaussian", "linear", "nnunet", "monai"])
@pytest.mark.parametrize("padding_mode", [None, "reflect", -5.0])
def test_the_identity_gives_the_scan_back(scan: Voxels, mode: str, padding_mode: Any) -> None:
    sampler = GridSampler(scan, (16, 12, 20), (4, 6, 8), padding_mode)
    aggregator = GridAggregator(sampler, mode)
    order = np.random.default_rng(3).permutation(len(sampler))
    for some in np.array_split(order, 7):
        batch = np.stack([sampler[int(n)]["image"] for n in some])
        aggregator.add_batch(batch, sampler.locations[some])
    found = aggregator.get_output_tensor()
    assert found.shape == scan.shape and found.dtype == np.float32
    assert np.abs(found - scan).max() < 1e-3
    assert aggregator.stats["patches"] == len(sampler) and aggregator.stats["uncovered_voxels"] == 0


def test_weights_of_one_s_own_are_what_numpy_makes_of_them(scan: Voxels) -> None:
    weights = np.random.default_rng(8).uniform(0.1, 1, (16, 16, 16)).astype(np.float32)
    sampler = GridSampler(scan, 16, 8)
    aggregator = GridAggregator(sampler, weights)
    sums, total = np.zeros(scan.shape), np.zeros(scan.shape)
    for n, (z, y, x, z1, y1, x1) in enumerate(sampler.locations.tolist()):
        patch = sampler[n]["image"] + np.float32(n)
        aggregator.add_batch(patch[None], sampler.locations[n])
        sums[:, z:z1, y:y1, x:x1] += patch * weights
        total[:, z:z1, y:y1, x:x1] += weights
    assert np.allclose(aggregator.get_output_tensor(), sums / total, atol=1e-3)


def test_mistakes_with_an_aggregator_are_told(scan: Voxels) -> None:
    sampler = GridSampler(scan, 16, 8)
    aggregator = GridAggregator(sampler, "hann")
    patch = sampler[0]["image"][None]
    with pytest.raises(ValueError, match="no patch was added"):
        aggregator.finish()
    aggregator.add_batch(patch, sampler.locations[:1])
    with pytest.raises(ValueError, match="was added before"):
        aggregator.add_batch(patch, sampler.locations[:1])
    with pytest.raises(ValueError, match="begins at"):
        aggregator.add_batch(patch, [[1, 2, 3, 17, 18, 19]])
    with pytest.raises(ValueError, match="axes b, c, z, y, x"):
        aggregator.add_batch(patch[0], sampler.locations[1:2])
    with pytest.raises(ValueError, match="not finite|NaN"):
        aggregator.add_batch(patch * np.nan, sampler.locations[1:2])
    with pytest.raises(ValueError, match="overlap_mode"):
        GridAggregator(sampler, "triangle").add_batch(patch, sampler.locations[:1])
    with pytest.raises(ValueError):
        aggregator.finish()  # patches are missing


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_predict_runs_a_function_over_all_of_a_volume(
    scan: Voxels, tmp_path: pathlib.Path, workers: int, batch_size: int
) -> None:
    voxpatch.write(tmp_path / "scan.nii", scan, spacing=(2.0, 1.0, 0.5))
    told: list[tuple[int, int]] = []
    shapes = set()

    def model(batch: Voxels) -> Voxels:
        shapes.add(batch.shape[0])
        return np.concatenate([batch, -2 * batch], axis=1)

    out = voxpatch.predict(
        model,
        tmp_path / "scan.nii",
        tmp_path / "out.zarr",
        16,
        8,
        batch_size,
        num_workers=workers,
        progress=lambda done, total: told.append((done, total)),
        chunk=8,
        shard=16,
    )
    assert out.shape == (2, 30, 34, 38) and out.spacing == (2.0, 1.0, 0.5)
    assert np.abs(out[0] - scan[0]).max() < 1e-3 and np.abs(out[1] + 2 * scan[0]).max() < 1e-3
    assert told[-1][0] == told[-1][1] == len(GridSampler(scan, 16, 8))
    assert batch_size in shapes


def test_classes_become_labels_and_several_outputs_go_into_several_files(
    scan: Voxels, tmp_path: pathlib.Path
) -> None:
    def model(batch: Voxels) -> tuple[Voxels, Voxels]:
        classes = np.concatenate([-batch, batch], axis=1)
        return classes, classes[:, :, ::2, ::2, ::2]

    paths = [tmp_path / "fine.npy", tmp_path / "coarse.npy"]
    fine, coarse = voxpatch.predict(model, scan, paths, 16, 8, reduce=[10, 20])
    assert fine.dtype == np.uint8 and fine.shape == (1, 30, 34, 38) and coarse.shape == (1, 15, 17, 19)
    assert np.array_equal(np.asarray(fine), np.where(scan > 0, 20, 10))


def test_an_error_of_the_model_is_the_caller_s_and_leaves_no_output(scan: Voxels, tmp_path: pathlib.Path) -> None:
    calls = []

    def model(batch: Voxels) -> Voxels:
        calls.append(1)
        if len(calls) == 9:
            raise KeyError("no such organ")
        return batch

    with pytest.raises(KeyError, match="no such organ"):
        voxpatch.predict(model, scan, tmp_path / "out.zarr", 16, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_gone_on_with_and_parts_make_the_same_bytes(scan: Voxels, tmp_path: pathlib.Path) -> None:
    def run(name: str, model: Any = lambda batch: batch, **more: Any) -> Any:
        kept = {"chunk": 8, "shard": 8, "model_id": "same"}
        return voxpatch.predict(model, scan, tmp_path / name, 16, 8, **kept, **more)

    def bytes_of(name: str) -> dict[str, bytes]:
        folder = tmp_path / name / "0"
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    run("whole.zarr")
    assert [run("parts.zarr", part=part, num_parts=3) is not None for part in (2, 0, 1)] == [False, False, True]
    left = iter(range(44))

    def stopping(batch: Voxels) -> Voxels:
        if next(left, None) is None:
            raise InterruptedError
        return batch

    with pytest.raises(InterruptedError):
        run("resumed.zarr", stopping, resume=True)
    again = []
    run("resumed.zarr", lambda batch: again.append(1) or batch, resume=True)
    assert bytes_of("whole.zarr") == bytes_of("parts.zarr") == bytes_of("resumed.zarr")
    assert len(again) < len(GridSampler(scan, 16, 8))


def test_a_mask_a_preset_and_flips(scan: Voxels, tmp_path: pathlib.Path) -> None:
    mask = np.zeros((15, 17, 19), np.uint8)
    mask[2, 3, 4] = 1
    calls: list[int] = []

    def model(batch: Voxels) -> Voxels:
        calls.append(len(batch))
        return batch

    out = voxpatch.predict(model, scan, tmp_path / "masked.npy", 16, 8, mask=mask, fill=-7.0)
    found = np.asarray(out)
    assert sum(calls) < len(GridSampler(scan, 16, 8)) and (found == -7).any() and np.isclose(found, scan).any()
    for preset in ("torchio", "monai", "nnunet"):
        out = voxpatch.predict(lambda b: b, scan, tmp_path / f"{preset}.npy", 16, 8, preset=preset, tta="flips")
        assert np.abs(np.asarray(out) - scan).max() < 1e-3
    with pytest.raises(ValueError, match="preset"):
        voxpatch.predict(model, scan, tmp_path / "x.npy", 16, 8, preset="napari")


def test_a_network_of_torch_predicts_on_its_device_without_gradients(scan: Voxels, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    network.train()
    out = voxpatch.predict(network, scan, tmp_path / "out.zarr", 16, 8, 2, overlap_mode="crop", reduce="argmax")
    assert network.training
    with torch.no_grad():
        whole = network.eval()(torch.from_numpy(scan[None]))[0].argmax(0).numpy()
    assert (np.asarray(out[0])[4:-4, 4:-4, 4:-4] == whole[4:-4, 4:-4, 4:-4]).mean() > 0.99
    sampler = GridSampler(scan, 16, 8)
    aggregator = GridAggregator(sampler, "hann")
    for batch in torch.utils.data.DataLoader(sampler, batch_size=4):
        aggregator.add_batch(batch["image"], batch["location"])
    tensor = aggregator.get_output_tensor()
    assert isinstance(tensor, torch.Tensor) and torch.allclose(tensor, torch.from_numpy(scan), atol=1e-3)
