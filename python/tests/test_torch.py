"""With torch: a queue in a DataLoader. scripts/fork_matrix.py tries every way to start its workers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch import Queue, Subject, UniformSampler

torch = pytest.importorskip("torch", reason="torch is not installed")
Loader = torch.utils.data.DataLoader


def rows(items: Any) -> list[list[int]]:
    found = []
    for item in items:
        for subject, location in zip(item["subject"], item["location"].tolist(), strict=True):
            found.append([subject["index"], *location])
    return found


def test_a_queue_is_torch_s_and_its_arrays_become_tensors_without_a_copy(subjects: list[Subject]) -> None:
    queue = Queue(subjects, UniformSampler(8), 4, batch_size=4)
    assert isinstance(queue, torch.utils.data.IterableDataset) and isinstance(queue, Queue)
    batch = next(iter(queue))
    tensor = torch.from_numpy(batch["ct"])
    tensor[0, 0, 0, 0, 0] = 7
    assert batch["ct"][0, 0, 0, 0, 0] == 7 and tensor.is_contiguous()
    loaded = next(iter(Loader(queue, batch_size=None)))
    assert isinstance(loaded["ct"], torch.Tensor) and loaded["ct"].shape == (4, 1, 8, 8, 8)
    assert loaded["location"].dtype == torch.int64 and loaded["subject"][0]["age"] in (60, 61, 62)


@pytest.mark.parametrize("first", ["torch", "queue"])
def test_a_queue_is_the_same_whether_torch_was_imported_before_or_after(first: str) -> None:
    program = """
    import sys, numpy as np, voxpatch
    if sys.argv[1] == "torch": import torch
    queue = voxpatch.Queue([voxpatch.Subject(ct=np.zeros((8, 8, 8)))], voxpatch.UniformSampler(4), 5, batch_size=2)
    assert ("torch" in sys.modules) == (sys.argv[1] == "torch")
    import pickle, torch
    from torch.utils.data import DataLoader, IterableDataset
    for own in (queue, pickle.loads(pickle.dumps(queue))):
        assert type(own) is voxpatch.Queue and isinstance(own, voxpatch.Queue) and isinstance(own, IterableDataset)
        assert [len(batch["ct"]) for batch in DataLoader(own, batch_size=None)] == [2, 2, 1]
    class Own(voxpatch.Queue): pass
    own = Own(queue.subjects, queue.sampler, 3)
    assert isinstance(own, IterableDataset) and type(own) is own.__class__ is Own
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), first], check=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_the_queue_s_batches_epoch_by_epoch(subjects: list[Subject], num_workers: int) -> None:
    plain = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    expected = [rows(plain) for _ in range(3)]
    queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    loader = Loader(queue, batch_size=None, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None)
    assert len(loader) == len(queue) == 11
    assert [rows(loader) for _ in range(2)] == expected[:2]
    queue.set_epoch(0)
    assert rows(loader) == expected[0]
    queue.set_epoch(2)
    assert rows(loader) == expected[2]


def test_workers_that_live_on_hear_of_set_epoch(subjects: list[Subject]) -> None:
    plain = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    expected = [rows(plain) for _ in range(3)]
    queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    loader = Loader(queue, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    assert [rows(loader) for _ in range(3)] == expected
    queue.set_epoch(1)
    assert rows(loader) == expected[1]
    assert rows(loader) == expected[2]


def test_samples_are_collated_by_torch(subjects: list[Subject]) -> None:
    queue = Queue(subjects, UniformSampler(8), 4)
    expected = sorted(sample["location"].tolist() for sample in queue)
    queue.set_epoch(0)
    loader = Loader(queue, batch_size=4, num_workers=2, multiprocessing_context="fork")
    found = list(loader)
    assert sorted(location for batch in found for location in batch["location"].tolist()) == expected
    assert found[0]["ct"].shape[1:] == (1, 8, 8, 8) and len(loader) == 3


def test_a_state_loads_into_worker_processes(subjects: list[Subject]) -> None:
    queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    expected = rows(queue)
    queue.set_epoch(0)
    iterator = iter(queue)
    for _ in range(3):
        next(iterator)
    state = queue.state_dict()
    resumed = Queue(subjects, UniformSampler(8), 7, batch_size=2)
    resumed.load_state_dict(state)
    loader = Loader(resumed, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert rows(loader) == expected[6:]
    assert len(rows(loader)) == len(expected), "only the first round goes on from the state"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdata_saves_and_restores_queues(subjects: list[Subject], num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make() -> Any:
        queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
        context = "fork" if num_workers else None
        return stateful.StatefulDataLoader(queue, batch_size=None, num_workers=num_workers, multiprocessing_context=context)

    expected = rows(make())
    for taken in (0, 1, 4, 7):
        loader = make()
        iterator = iter(loader)
        first = [row for _ in range(taken) for row in rows([next(iterator)])]
        state = loader.state_dict()
        del iterator
        resumed = make()
        resumed.load_state_dict(state)
        assert first + rows(resumed) == expected, taken


@pytest.mark.parametrize("ended", [False, True])
def test_torchdata_goes_on_with_the_next_epoch(subjects: list[Subject], ended: bool) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make() -> Any:
        return stateful.StatefulDataLoader(Queue(subjects, UniformSampler(8), 7, batch_size=2), batch_size=None)

    whole = make()
    epochs = [rows(whole) for _ in range(3)]
    loader = make()
    iterator = iter(loader)
    for _ in range(11):
        next(iterator)
    if ended:
        assert next(iterator, None) is None
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert [rows(resumed), rows(resumed)] == epochs[1:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_torchdata_with_workers_goes_on_after_an_epoch(subjects: list[Subject], num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make() -> Any:
        queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
        return stateful.StatefulDataLoader(queue, batch_size=None, num_workers=num_workers, multiprocessing_context="fork")

    whole = make()
    epochs = [rows(whole) for _ in range(3)]
    loader = make()
    assert rows(loader) == epochs[0]
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert [rows(resumed), rows(resumed)] == epochs[1:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_torchdata_with_workers_saved_after_the_last_batch_has_nothing_left(
    subjects: list[Subject], num_workers: int
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make() -> Any:
        queue = Queue(subjects, UniformSampler(8), 7, batch_size=2)
        return stateful.StatefulDataLoader(queue, batch_size=None, num_workers=num_workers, multiprocessing_context="fork")

    whole = make()
    epochs = [rows(whole) for _ in range(2)]
    loader = make()
    iterator = iter(loader)
    taken = []
    while len(taken) < len(epochs[0]):
        taken += rows([next(iterator)])
    assert taken == epochs[0]
    # The loader was not asked for a batch beyond the last: the rest of the epoch is empty, then comes the next.
    state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert [rows(resumed), rows(resumed)] == [[], epochs[1]]


def test_ranks_that_wait_for_each_other_never_wait_in_vain(subjects: list[Subject]) -> None:
    for world_size in (2, 4, 5):
        for workers in (0, 2):
            counts = set()
            for rank in range(world_size):
                queue = Queue(subjects, UniformSampler(8), 7, rank=rank, world_size=world_size)
                context = "fork" if workers else None
                loader = Loader(queue, batch_size=2, num_workers=workers, multiprocessing_context=context)
                counts.add(tuple(len(batch["location"]) for batch in loader))
            assert len(counts) == 1, (world_size, workers, counts)


def test_a_queue_has_no_items_to_pick(subjects: list[Subject]) -> None:
    queue: Any = Queue(subjects, UniformSampler(8), 1)
    with pytest.raises(TypeError, match="iterate over it"):
        queue[0]


def test_a_transform_may_give_tensors(subjects: list[Subject]) -> None:
    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        return {"ct": torch.from_numpy(sample["ct"]) * 2, "name": sample["subject"]["name"]}

    batch = next(iter(Queue(subjects, UniformSampler(8), 4, batch_size=3, transform=transform)))
    assert batch["ct"].shape == (3, 1, 8, 8, 8) and isinstance(batch["ct"], torch.Tensor) and len(batch["name"]) == 3
    assert np.isfinite(batch["ct"].numpy()).all() and voxpatch.Queue is Queue
