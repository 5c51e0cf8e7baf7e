"""TorchIO's classes beside ours, on files and tensors. scripts/peer_tests.py runs TorchIO's own tests."""

from __future__ import annotations

import collections
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voxpatch

torch = pytest.importorskip("torch", reason="torch is not installed")
tio = pytest.importorskip("torchio", reason="torchio is not installed")
if not tio.__version__.startswith("1."):
    pytest.skip(f"torchio {tio.__version__} has other classes than 1.x", allow_module_level=True)

from voxpatch.compat import torchio as ours  # noqa: E402

SHAPE = (20, 17, 23)  # x, y, z


@pytest.fixture(scope="module", params=["nii", "nrrd", "mha", "nii.gz", "memory"])
def subject(request: Any, tmp_path_factory: Any) -> Any:
    """A scan with an oblique affine and labels, as files of a kind or in memory."""
    random = np.random.default_rng(5)
    affine = np.array([[-0.8, 0.1, 0, 5], [0.1, 1.2, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0] * [0.8, 1.2, 2.5]
    ct = tio.ScalarImage(tensor=torch.from_numpy(random.integers(-900, 900, (1, *SHAPE)).astype(np.int16)), affine=affine)
    label = tio.LabelMap(tensor=torch.from_numpy((random.random((1, *SHAPE)) > 0.8).astype(np.uint8)), affine=affine)
    if request.param == "memory":
        return tio.Subject(ct=ct, label=label, age=63)
    folder = tmp_path_factory.mktemp("torchio")
    for name, image in (("ct", ct), ("label", label)):
        image.save(folder / f"{name}.{request.param}")
    return tio.Subject(
        ct=tio.ScalarImage(folder / f"ct.{request.param}"), label=tio.LabelMap(folder / f"label.{request.param}"), age=63
    )


def is_file(subject: Any) -> bool:
    return subject.ct.path is not None and not str(subject.ct.path).endswith(".gz")


def same(one: Any, other: Any) -> None:
    """Two patches in all that TorchIO users see."""
    assert set(one) == set(other)
    assert torch.equal(one["location"], other["location"]) and one["age"] == other["age"]
    for name in ("ct", "label"):
        assert type(one[name]) is type(other[name]) and one[name].type == other[name].type
        assert torch.equal(one[name].data, other[name].data) and one[name].data.dtype == other[name].data.dtype
        assert one[name].path == other[name].path
        np.testing.assert_allclose(one[name].affine, other[name].affine, atol=1e-5)


@pytest.mark.parametrize("padding", [None, "edge", "reflect", 7, "constant", "mean"])
def test_grid_patches_are_torchio_s(subject: Any, padding: Any) -> None:
    theirs = tio.GridSampler(copy.deepcopy(subject), (8, 9, 10), (4, 2, 6), padding)
    untouched = copy.deepcopy(subject)
    grid = ours.GridSampler(untouched, (8, 9, 10), (4, 2, 6), padding)
    np.testing.assert_array_equal(grid.locations, theirs.locations)
    for index in range(len(theirs)):
        same(grid[index], theirs[index])
    for one, other in zip(grid(), theirs):
        same(one, other)
    if is_file(subject) and padding != "mean":
        assert not untouched.ct._loaded, "nothing is loaded"
    same(pickle.loads(pickle.dumps(grid))[1], theirs[1])


@pytest.mark.parametrize("mode", ["crop", "average", "hann"])
@pytest.mark.parametrize("padding", [None, "reflect"])
@pytest.mark.parametrize("workers", [0, 2])
def test_aggregates_are_torchio_s(mode: str, padding: Any, workers: int) -> None:
    tensor = torch.from_numpy(np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32))
    subject = tio.Subject(ct=tio.ScalarImage(tensor=tensor))
    # Steps divide what is left of each axis: elsewhere TorchIO's crop depends on the order of arrival.
    sizes = ((8, 5, 11), (4, 2, 8), padding) if padding is None else ((8, 7, 11), (4, 2, 8), padding)
    theirs = tio.GridSampler(subject, *sizes)
    grid = ours.GridSampler(subject, *sizes)
    first, second = tio.GridAggregator(theirs, mode), ours.GridAggregator(grid, mode)
    mixed = ours.GridAggregator(theirs, mode)
    for batch in tio.SubjectsLoader(grid, batch_size=3, num_workers=workers):
        made = torch.cat([batch["ct"][tio.DATA], batch["ct"][tio.DATA].cumsum(2)], 1)
        for aggregator in (first, second, mixed):
            aggregator.add_batch(made, batch[tio.LOCATION])
    expected = first.get_output_tensor()
    for aggregator in (second, mixed):
        found = aggregator.get_output_tensor()
        assert found.dtype == expected.dtype and found.shape == expected.shape and found.is_contiguous()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_output_on_disk_has_the_image_s_place(tmp_path: Path) -> None:
    affine = np.diag([0.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = [3, 4, 5]
    subject = tio.Subject(ct=tio.ScalarImage(tensor=torch.rand(1, *SHAPE), affine=affine))
    for padding in (None, "edge"):
        for sampler in (ours.GridSampler, tio.GridSampler):
            grid = sampler(subject, 8, 4, padding)
            aggregator = ours.GridAggregator(grid, "hann", output=tmp_path / f"{sampler.__module__}{padding}.nii")
            for batch in tio.SubjectsLoader(grid, batch_size=4):
                aggregator.add_batch(batch["ct"][tio.DATA], batch[tio.LOCATION])
            path = aggregator.finish().path
            again = tio.ScalarImage(path)
            torch.testing.assert_close(again.data, subject.ct.data)
            np.testing.assert_allclose(again.affine, affine, atol=1e-6)


def test_random_patches_are_patches_of_the_subject(subject: Any) -> None:
    untouched = copy.deepcopy(subject)
    samplers = [
        ours.UniformSampler((4, 5, 6)),
        ours.WeightedSampler((4, 5, 6), "label"),
        ours.LabelSampler((4, 5, 6), "label"),
        ours.LabelSampler((4, 5, 6), label_probabilities={0: 1, 1: 3}),
    ]
    whole = copy.deepcopy(subject)
    whole.load()
    for sampler in samplers:
        torch.manual_seed(3)
        patches = list(sampler(untouched, num_patches=12))
        torch.manual_seed(3)
        again = [patch["location"].tolist() for patch in sampler(untouched, 12)]
        assert again == [patch["location"].tolist() for patch in patches] and len(patches) == 12
        assert len({tuple(place) for place in again}) > 6
        for patch in patches:
            start = patch["location"][:3].tolist()
            same(patch, tio.data.PatchSampler((4, 5, 6)).extract_patch(whole, start))
            if sampler in samplers[1:3]:
                assert patch["label"].data[0, 2, 2, 3] == 1
    if is_file(subject):
        assert not untouched.ct._loaded and not untouched.label._loaded


def test_label_shares_are_torchio_s() -> None:
    labels = torch.from_numpy(np.random.default_rng(2).choice(4, (1, 12, 12, 12), p=[0.9, 0.06, 0.03, 0.01]))
    subject = tio.Subject(label=tio.LabelMap(tensor=labels))
    shares = {0: 1, 1: 1, 2: 2}
    torch.manual_seed(0)
    found = collections.Counter(
        int(patch["label"].data[0, 1, 2, 1]) for patch in ours.LabelSampler((3, 4, 3), "label", shares)(subject, 1500)
    )
    for label, share in shares.items():
        assert abs(found[label] / 1500 - share / 4) < 0.05
    assert set(found) == {0, 1, 2}


def queue(subjects: Any, **options: Any) -> Any:
    dataset = tio.SubjectsDataset(subjects, transform=options.pop("transform", None))
    return ours.Queue(dataset, 10, options.pop("samples", 3), ours.UniformSampler(6), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_queue_gives_every_patch_of_an_epoch_once(subject: Any, workers: int) -> None:
    counts = [3, 3, 7, 3]
    subjects = [
        tio.Subject({**copy.deepcopy(subject), "age": age, "num_samples": count}) for age, count in enumerate(counts)
    ]
    made = queue(subjects, num_workers=workers, seed=1)
    assert len(made) == sum(counts)
    orders = []
    for _ in range(2):
        batches = list(tio.SubjectsLoader(made, batch_size=4))
        ages = torch.cat([torch.as_tensor(batch["age"]) for batch in batches]).tolist()
        assert collections.Counter(ages) == {0: 3, 1: 3, 2: 7, 3: 3}
        assert batches[0]["ct"][tio.DATA].shape == (4, 1, 6, 6, 6)
        orders.append(ages)
    assert orders[0] != orders[1], "epochs differ"
    if is_file(subject):
        assert not any(one.ct._loaded for one in subjects)
    again = [int(made[n]["age"]) for made in [queue(subjects, seed=1)] for n in range(16)]
    assert again == orders[0], "and follow from the seed, whatever the threads"


def test_transforms_are_applied_to_subjects_as_torchio_does(subject: Any) -> None:
    made = queue([subject] * 2, transform=tio.RescaleIntensity((0, 1)), samples=2)
    values = [made[n]["ct"].data for n in range(len(made))]
    assert len(values) == 4 and all(0 <= value.min() and value.max() <= 1 for value in values)


def test_a_subject_sampler_chooses_subjects(subject: Any) -> None:
    subjects = [tio.Subject({**copy.deepcopy(subject), "age": age}) for age in range(3)]
    made = queue(subjects, subject_sampler=[2, 0], shuffle_subjects=False, shuffle_patches=False)
    assert [made[n]["age"] for n in range(len(made))] == [2, 2, 2, 0, 0, 0]


def test_worker_processes_are_refused(subject: Any) -> None:
    with pytest.raises(RuntimeError, match="should be 0"):
        next(iter(tio.SubjectsLoader(queue([subject]), batch_size=2, num_workers=1)))
