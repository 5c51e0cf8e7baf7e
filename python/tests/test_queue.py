"""Queues: the patches of an epoch, their order, batches, resume, ranks and workers."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import pickle
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import voxpatch
from conftest import key, patch_of
from voxpatch import LabelSampler, MixtureSampler, Queue, Subject, UniformSampler, WeightedSampler

Subjects = list[Subject]


def epoch(queue: Queue) -> list[tuple[Any, ...]]:
    return [key(sample) for sample in queue]


def rows(queue: Queue) -> list[list[int]]:
    """Subject and place of every patch of the batches of an epoch."""
    found = []
    for batch in queue:
        for one, location in zip(batch["subject"], batch["location"], strict=True):
            found.append([one["index"], *location.tolist()])
    return found


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_epoch_has_what_is_planned_cut_as_numpy_does(subjects: Subjects, threads: int) -> None:
    queue = Queue(subjects, UniformSampler((8, 9, 10)), [5, 0, 12], threads=threads, max_length=6)
    counts: Counter[int] = Counter()
    for sample in queue:
        subject = subjects[sample["subject"]["index"]]
        counts[sample["subject"]["index"]] += 1
        assert sample["subject"]["age"] == subject["age"]
        assert sample["location"].dtype == np.int64 and sample["location"].shape == (6,)
        for name in ("ct", "label"):
            array = sample[name]
            assert array.shape == (1, 8, 9, 10)
            assert np.array_equal(array, patch_of(subject, name, sample["location"]))
            assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    assert counts == {0: 5, 2: 12} and len(queue) == 17
    stats = queue.stats()
    assert stats["delivered"] == 17 and stats["left_out"] == 0 and stats["waited_seconds"] >= 0


def test_the_sequence_is_the_same_for_any_number_of_threads(subjects: Subjects) -> None:
    expected = epoch(Queue(subjects, UniformSampler(8), 9, threads=0, max_length=7))
    for threads in (1, 4):
        queue = Queue(subjects, UniformSampler(8), samples_per_subject=9, threads=threads, max_length=7)
        assert epoch(queue) == expected
        assert epoch(queue) != expected, "the next epoch is another one"
        queue.set_epoch(0)
        assert queue.epoch == 0 and epoch(queue) == expected
    assert epoch(Queue(subjects, UniformSampler(8), 9, seed=1)) != expected
    ordered = Queue(subjects, UniformSampler(8), 2, shuffle_subjects=False, shuffle_patches=False)
    assert [sample["subject"]["index"] for sample in ordered] == [0, 0, 1, 1, 2, 2]


def test_an_epoch_that_is_left_early_does_not_change_the_next(subjects: Subjects) -> None:
    plain = Queue(subjects, UniformSampler(8), 5, max_length=4)
    first, second = epoch(plain), epoch(plain)
    for taken in range(0, 15, 4):
        queue = Queue(subjects, UniformSampler(8), 5, max_length=4)
        iterator = iter(queue)
        assert [key(next(iterator)) for _ in range(taken)] == first[:taken]
        np.random.seed(1)  # nobody else's random numbers matter
        assert len(queue) == 15
        assert epoch(queue) == second


def test_batches_are_the_samples_in_their_order(subjects: Subjects) -> None:
    same = [Subject(ct=subject.volumes["ct"], label=subject.volumes["label"], age=subject["age"]) for subject in subjects]
    single = list(Queue(same, UniformSampler(8), 7, max_length=21))
    queue = Queue(same, UniformSampler(8), 7, max_length=21, batch_size=4)
    batches = list(queue)
    assert len(queue) == len(batches) == 6 and [len(batch["ct"]) for batch in batches] == [4, 4, 4, 4, 4, 1]
    for name in ("ct", "label", "location"):
        assert np.array_equal(np.concatenate([batch[name] for batch in batches]), np.stack([s[name] for s in single]))
    assert batches[0]["ct"].shape == (4, 1, 8, 8, 8) and batches[0]["location"].shape == (4, 6)
    assert [one for batch in batches for one in batch["subject"]] == [sample["subject"] for sample in single]
    assert all(batch["ct"].flags.writeable and batch["ct"].flags.c_contiguous for batch in batches)


def test_batches_hold_what_lies_at_their_places(subjects: Subjects, tmp_path: pathlib.Path) -> None:
    broken = Subject(ct=tmp_path / "gone.npy", label=tmp_path / "gone.zarr")
    everyone = [subjects[0], broken, *subjects[1:]]

    def checked(queue: Queue) -> list[tuple[Any, ...]]:
        found = []
        for batch in list(queue):  # all at once, so that no buffer is used again
            count = len(batch["location"])
            assert all(len(batch[name]) == count for name in ("ct", "label") if count)
            for n in range(count):
                index, location = batch["subject"][n]["index"], batch["location"][n]
                for name in ("ct", "label"):
                    assert np.array_equal(batch[name][n], patch_of(everyone[index], name, location)), (n, name)
                found.append((index, *location.tolist()))
        return found

    plain = Queue(everyone, UniformSampler(8), 7, on_error="skip")
    expected = [(sample["subject"]["index"], *sample["location"].tolist()) for sample in plain]
    assert len(expected) == 21
    chosen = random.Random(1)
    for _ in range(25):
        size, world = chosen.choice([2, 3, 4, 5, 30]), chosen.choice([1, 1, 2, 3])

        def queue(rank: int) -> Queue:
            return Queue(
                everyone,
                UniformSampler(8),
                7,
                batch_size=size,
                rank=rank,
                world_size=world,
                threads=chosen.randrange(4),
                on_error="skip",
            )

        found = [checked(queue(rank)) for rank in range(world)]
        assert sorted(sum(found, [])) == sorted(expected), (size, world)
        assert world > 1 or found == [expected]
        # The same, resumed in the middle.
        begun, resumed = queue(0), queue(0)
        iterator = iter(begun)
        taken = sum(len(next(iterator)["location"]) for _ in range(chosen.randrange(len(begun))))
        resumed.load_state_dict(begun.state_dict())
        assert checked(resumed) == found[0][taken:], (size, world)


def test_an_error_in_a_batch_leaves_the_others_of_it(subjects: Subjects, tmp_path: pathlib.Path) -> None:
    broken = Subject(ct=tmp_path / "gone.npy", label=tmp_path / "gone.zarr")
    errors, found = 0, []
    iterator = iter(Queue([*subjects, broken], UniformSampler(8), 2, batch_size=8, threads=2))
    while True:
        try:
            batch = next(iterator)
        except FileNotFoundError:
            errors += 1
        except StopIteration:
            break
        else:
            found += [
                np.array_equal(batch["ct"][n], patch_of(subjects[one["index"]], "ct", batch["location"][n]))
                for n, one in enumerate(batch["subject"])
            ]
    assert errors == 2 and found == [True] * 6


def test_a_state_goes_on_at_any_patch_with_other_threads(subjects: Subjects) -> None:
    for batch_size in (None, 4):
        def make(threads: int) -> Queue:
            return Queue(subjects, UniformSampler(8), 5, threads=threads, max_length=6, batch_size=batch_size)

        def told(queue: Queue) -> list[list[list[int]]]:
            return [item["location"].tolist() for item in queue]

        whole = make(2)
        first, second = told(whole), told(whole)
        for taken in range(len(first)):
            queue = make(0)
            iterator = iter(queue)
            for _ in range(taken):
                next(iterator)
            state = queue.state_dict()
            assert pickle.loads(pickle.dumps(state)) == state and state["epoch"] == 0
            resumed = make(3)
            resumed.load_state_dict(state)
            assert resumed.epoch == 0 and resumed.state_dict() == state
            if taken % 2:
                resumed.set_epoch(0)  # as a training loop does that counts epochs
            assert told(resumed) == first[taken:], taken
            assert told(resumed) == second
        resumed = make(1)
        resumed.load_state_dict(state)
        resumed.set_epoch(1)
        assert told(resumed) == second, "a different epoch is not resumed"


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_state_at_the_end_of_an_epoch_resumes_with_the_next(
    subjects: Subjects, batch_size: int | None, world_size: int, ended: bool
) -> None:
    def make(rank: int = 0) -> Queue:
        return Queue(subjects, UniformSampler(8), 5, batch_size=batch_size, rank=rank, world_size=world_size)

    def told(queue: Queue) -> list[Any]:
        return [item["location"].tolist() for item in queue]

    for rank in range(world_size):
        whole = make(rank)
        epochs = [told(whole) for _ in range(3)]
        queue = make(rank)
        iterator = iter(queue)
        for _ in range(len(queue)):
            next(iterator)
        if ended:
            assert next(iterator, None) is None
        state = queue.state_dict()
        assert state["epoch"] == queue.epoch == 1
        resumed = make(rank)
        resumed.load_state_dict(state)
        assert resumed.epoch == 1 and resumed.state_dict() == state
        assert told(resumed) == epochs[1] and told(resumed) == epochs[2]
        again = make(rank)
        again.load_state_dict(state)
        assert told(pickle.loads(pickle.dumps(again))) == epochs[1]
        old = {**state, "epoch": 0, "loader": state["loader"].replace("epoch=1 position=0", "epoch=0 position=15")}
        for asked in (None, 0, 2):
            resumed.load_state_dict(old)  # as earlier versions saved it
            if asked is not None:
                resumed.set_epoch(asked)
            assert told(resumed) == epochs[1 if asked is None else asked], "an epoch that is asked for is whole"


@pytest.mark.parametrize("threads", [0, 2])
def test_iterators_that_ended_stay_so(subjects: Subjects, threads: int) -> None:
    settings: list[dict[str, Any]] = [{}, {"batch_size": 2}, {"batch_size": 2, "transform": dict}, {"transform": dict}]
    for options in settings:
        queue = Queue(subjects, UniformSampler(8), 2, threads=threads, **options)
        exhausted, closed = iter(queue), iter(queue)
        assert len(list(exhausted)) == len(queue)
        next(closed)
        closed.close()  # type: ignore[attr-defined]
        state = queue.state_dict()
        for iterator in (exhausted, closed):
            for _ in range(3):
                with pytest.raises(StopIteration):
                    next(iterator)
            assert list(iterator) == [] and next(iterator, "default") == "default"
        assert queue.state_dict() == state and queue.stats()["delivered"] > 0
    few = UniformSampler(8)(subjects[0], 2)
    assert len(list(few)) == 2 and list(few) == [] and next(few, None) is None
    empty = iter(Queue(subjects, UniformSampler(8), 0, threads=threads))
    assert [next(empty, None) for _ in range(3)] == [None] * 3
    grid = iter(voxpatch.GridSampler(subjects[0], 16))
    assert len(list(grid)) > 1 and list(grid) == [] and next(grid, None) is None


def test_subjects_with_names_may_move(subjects: Subjects, tmp_path: pathlib.Path) -> None:
    import shutil

    def make(folder: pathlib.Path, names: list[str | None], **options: Any) -> Queue:
        made = []
        for n, name in enumerate(names):
            folder.mkdir(exist_ok=True)
            for image in ("ct", "label"):
                source = pathlib.Path(str(subjects[n][image].path))
                target = folder / source.name
                if not target.exists():
                    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
            made.append(Subject(ct=folder / f"ct{n}.npy", label=folder / f"label{n}.zarr", name=name))
        return Queue(made, UniformSampler(8), 5, **options)

    def resumed(first: Queue, second: Queue) -> bool:
        iterator = iter(first)
        next(iterator)
        second.load_state_dict(first.state_dict())
        try:
            return [key(s)[:7] for s in second] == [key(s)[:7] for s in iterator]
        except ValueError as error:
            assert "resume with" in str(error)
            return False

    a, b, names = tmp_path / "a", tmp_path / "b", ["p0", "p1", "p2"]
    assert resumed(make(a, names), make(b, names))
    assert resumed(make(a, [None] * 3), make(a, [None] * 3)) and not resumed(make(a, [None] * 3), make(b, [None] * 3))
    assert not resumed(make(a, names), make(b, ["p0", "p2", "p1"])), "another order"
    assert not resumed(make(a, names), make(a, names, dtype="float64")), "other types"
    assert not resumed(make(a, ["p", "p", "q"]), make(b, ["p", "p", "q"])), "one name for two tells nothing"
    np.save(b / "ct1.npy", np.zeros((30, 34, 38), np.float32))
    voxpatch.write(b / "label1.zarr", np.zeros((30, 34, 38), np.uint8), overwrite=True)
    assert not resumed(make(a, names), make(b, names)), "another shape"


def test_cohorts_that_do_not_fit_are_refused_when_the_queue_is_made(tmp_path: pathlib.Path) -> None:
    shape = (12, 12, 12)

    def saved(name: str, dtype: str, channels: int = 1) -> pathlib.Path:
        path = tmp_path / f"{name}.npy"
        np.save(path, np.full((channels, *shape), 7, dtype))
        return path

    fine = [Subject(ct=saved(f"ct{n}", "int16"), label=saved(f"l{n}", "uint8")) for n in range(4)]
    odd = {
        "of int16.*of float32": Subject(ct=saved("real", "float32"), label=saved("l", "uint8")),
        "with 1 channel of.*with 2 channels of": Subject(ct=saved("two", "int16", 2), label=saved("l", "uint8")),
        "no image called label": Subject(ct=saved("only", "int16")),
        "no image called t2": Subject(ct=saved("x", "int16"), label=saved("l", "uint8"), t2=saved("t2", "int16")),
    }
    draw: Any = dict(sampler=UniformSampler(4), samples_per_subject=3)
    gone = Subject(ct=tmp_path / "gone.npy", label=tmp_path / "gone.npy")
    for problem, subject in odd.items():
        name = pathlib.Path(str(subject.volumes["ct"])).name
        for place in range(5):
            cohort: list[Any] = [*fine[:place], subject, *fine[place:], gone]
            for options in ({}, {"batch_size": 4}, {"on_error": "skip"}, {"batch_size": 3, "keep_batches": True}):
                with pytest.raises(ValueError, match="do not fit into one batch") as found:
                    Queue(cohort, **draw, **options)
                text = str(found.value)
                assert (name in text or "t2.npy" in text) and "dtype=" in text and "--" not in text, text
                assert place == 0 or re.search(problem, text), text
        cohort = [*fine, subject]
        found_shapes = {s["ct"].dtype.name for s in Queue(cohort, **draw, same_images=False)}
        assert "int16" in found_shapes
        lazy = voxpatch.LazySubjects(len(cohort), cohort.__getitem__)
        errors = []
        for on_error in ("fail", "skip"):
            iterator = iter(Queue(lazy, **draw, on_error=on_error, shuffle_subjects=False))
            while True:
                try:
                    if next(iterator, None) is None:
                        break
                except ValueError as error:
                    errors.append(str(error))
        assert len(errors) == 6 and all("do not fit into one batch" in text for text in errors), "never skipped"
    # A type for all of them, or for some.
    mixed = [*fine, odd["of int16.*of float32"]]
    for given in ("float32", np.float32, np.dtype("float32"), {"ct": "float32"}):
        for batch in Queue(mixed, **draw, batch_size=5, dtype=given):
            assert batch["ct"].dtype == np.float32 and (batch["ct"] == 7).all()
            assert batch["label"].dtype == (np.uint8 if isinstance(given, dict) else np.float32)
    with pytest.raises(ValueError, match="dtype for cd: the subjects have ct, label"):
        Queue(mixed, **draw, dtype={"cd": "float32"})
    with pytest.raises((ValueError, TypeError)):
        Queue(mixed, **draw, dtype="complex64")
    # Images in another order are the same images.
    turned = Subject(label=saved("l", "uint8"), ct=saved("y", "int16"))
    assert sum(len(batch["ct"]) for batch in Queue([*fine, turned], **draw, batch_size=4)) == 15
    # What a transform makes alike is alike, and what it does not is said.
    cast = Queue(mixed, **draw, batch_size=4, transform=lambda s: {"ct": s["ct"].astype("f4"), "subject": s["subject"]})
    assert all(batch["ct"].dtype == np.float32 for batch in cast)
    with pytest.raises(ValueError, match="do not fit into one batch: 'ct' of the first"):
        list(Queue(mixed, **draw, batch_size=4, transform=dict))


def test_a_state_of_other_settings_is_refused(subjects: Subjects) -> None:
    queue = Queue(subjects, UniformSampler(8), 5)
    iterator = iter(queue)
    next(iterator)
    state = queue.state_dict()
    for other in (
        Queue(subjects, UniformSampler(8), 6),
        Queue(subjects, UniformSampler(8), 5, seed=3),
        Queue(subjects[::-1], UniformSampler(8), 5),
    ):
        other.load_state_dict(state)
        with pytest.raises(ValueError, match="resume with the settings"):
            next(iter(other))
    for wrong in ({**state, "version": 2}, {**state, "loader": "x"}, {**state, "turns": 2}):
        with pytest.raises(ValueError):
            queue.load_state_dict(wrong)


def test_ranks_share_an_epoch(subjects: Subjects) -> None:
    expected = sorted(epoch(Queue(subjects, UniformSampler(8), 7)))
    for world_size in (2, 3):
        for uneven in ("repeat", "drop", "exact"):
            parts = [
                Queue(subjects, UniformSampler(8), 7, rank=rank, world_size=world_size, uneven=uneven)
                for rank in range(world_size)
            ]
            found = [epoch(part) for part in parts]
            counts = [len(own) for own in found]
            assert [len(part) for part in parts] == counts
            together = sorted(sum(found, []))
            assert uneven == "exact" or len(set(counts)) == 1, "as torch's DistributedSampler has it"
            if uneven == "drop":
                assert len(together) == 21 // world_size * world_size and set(together) <= set(expected)
            else:
                assert sorted(set(together)) == expected and len(together) - 21 < world_size
                assert uneven == "repeat" or together == expected
        batched = [
            Queue(subjects, UniformSampler(8), 7, rank=rank, world_size=world_size, batch_size=2) for rank in range(world_size)
        ]
        assert len({len(part) for part in batched}) == 1
        assert len({len(list(part)) for part in batched}) == 1, "equally many batches"
    few = [Queue(subjects[:1], UniformSampler(8), 3, rank=rank, world_size=5) for rank in range(5)]
    assert [len(list(queue)) for queue in few] == [1] * 5, "some come twice"
    with pytest.raises(ValueError, match='uneven "pad"'):
        Queue(subjects, UniformSampler(8), 7, uneven="pad")
    for rank, world_size in ((2, 2), (-1, 2), (0, None), (0, 0)):
        with pytest.raises(ValueError, match="rank|world_size"):
            Queue(subjects, UniformSampler(8), 7, rank=rank, world_size=world_size)


def test_labels_are_drawn_by_their_shares(subjects: Subjects) -> None:
    queue = Queue(subjects, LabelSampler(9, "label", {0: 1, 1: 1, 2: 2, 7: 5}), 200)
    centers: Counter[int] = Counter()
    for sample in queue:
        centers[int(sample["label"][0, 4, 4, 4])] += 1
    assert sum(centers.values()) == 600 and set(centers) == {0, 1, 2}
    for label, share in ((0, 0.25), (1, 0.25), (2, 0.5)):
        assert abs(centers[label] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5
    foreground = Queue(subjects, LabelSampler((9, 9, 9), label_name="label"), 50)
    assert all(sample["label"][0, 4, 4, 4] > 0 for sample in foreground)


def test_weights_and_mixtures(tmp_path: pathlib.Path) -> None:
    weights = np.zeros((20, 21, 22), np.float32)
    weights[10, 11, 12] = 1
    scan = np.random.default_rng(0).random((20, 21, 22), np.float32)
    subject = Subject(ct=scan, weights=weights)
    by_weight = WeightedSampler((4, 5, 6), weight_name="weights")
    for sample in Queue([subject], by_weight, 5):
        assert sample["location"].tolist() == [8, 9, 9, 12, 14, 15]
    mixture = MixtureSampler([(1, UniformSampler((4, 5, 6))), (3, by_weight)], batch_size=8)
    for batch in Queue([subject], mixture, 40, batch_size=8, keep_batches=True):
        assert sum(location == [8, 9, 9, 12, 14, 15] for location in batch["location"].tolist()) >= 6
    with pytest.raises(ValueError, match="one patch_size"):
        MixtureSampler([(1, UniformSampler(4)), (1, UniformSampler(5))])
    empty = Subject(ct=scan, weights=np.zeros_like(weights))
    with pytest.raises(ValueError, match="every weight is 0"):
        list(Queue([empty], by_weight, 5))
    skipping = WeightedSampler((4, 5, 6), "weights", empty="skip")
    queue = Queue([empty, subject], skipping, 5)
    assert len(list(queue)) == 5 and queue.stats()["left_out"] == 5 and "left out" in queue.stats()["reasons"][0]
    one_hot = np.stack([weights == 0, weights == 1]).astype(np.uint8)
    for sample in Queue([Subject(ct=scan, label=one_hot)], LabelSampler((4, 5, 6), "label"), 5):
        assert sample["location"].tolist() == [8, 9, 9, 12, 14, 15]


def test_patches_that_hang_over_are_padded(tmp_path: pathlib.Path) -> None:
    scan = np.random.default_rng(0).random((6, 7, 8), np.float32)
    for padding, mode in ((5.0, {"constant_values": 5.0}), ("edge", {"mode": "edge"}), ("reflect", {"mode": "reflect"})):
        padded = np.pad(scan, 5, **{"mode": "constant", **mode})  # type: ignore[call-overload]
        queue = Queue([Subject(ct=scan, padding=padding)], UniformSampler(6, border="pad"), 30)
        for sample in queue:
            z, y, x, z1, y1, x1 = (sample["location"] + 5).tolist()
            assert np.array_equal(sample["ct"][0], padded[z:z1, y:y1, x:x1]), padding


def test_without_threads_of_its_own_a_transform_runs_on_the_caller_s(subjects: Subjects) -> None:
    import threading

    seen = set()

    def flipped(sample: dict[str, Any]) -> dict[str, Any]:
        seen.add(threading.get_ident())
        return {"ct": sample["ct"][..., ::-1], "n": 3, "location": sample["location"]}

    plain = list(Queue(subjects, UniformSampler(8), 3))
    for batch_size in (None, 4):
        queue = Queue(
            subjects, UniformSampler(8), 3, transform=flipped, transform_threads=0, batch_size=batch_size, threads=2
        )
        found = [item["ct"].reshape(-1, 1, 8, 8, 8) for item in queue]
        assert np.array_equal(np.concatenate(found), np.stack([sample["ct"][..., ::-1] for sample in plain]))
    assert seen == {threading.get_ident()}
    broken = Queue(subjects, UniformSampler(8), 3, transform=lambda sample: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(broken))


@pytest.mark.parametrize("threads", [0, 2])
def test_lazy_subjects_are_made_when_they_are_needed(subjects: Subjects, threads: int) -> None:
    import threading

    made = []

    def make(index: int) -> Subject:
        made.append((index, threading.get_ident()))
        if index == 5:
            raise RuntimeError("no such patient")
        return subjects[index % 3]

    lazy = voxpatch.LazySubjects(5, make)
    queue = Queue(lazy, UniformSampler(8), [3, 0, 3, 3, 0], threads=threads)
    found = Counter(sample["subject"]["index"] for sample in queue)
    assert found == {0: 3, 2: 3, 3: 3}
    assert {index for index, _ in made} == {0, 2, 3} and {thread for _, thread in made} == {threading.get_ident()}
    broken = Queue(voxpatch.LazySubjects(6, make), UniformSampler(8), 3, threads=threads)
    with pytest.raises(RuntimeError, match="no such patient"):
        list(broken)


def test_a_subject_that_is_broken_is_named_or_left_out(subjects: Subjects, tmp_path: pathlib.Path) -> None:
    broken = Subject(ct=tmp_path / "gone.npy", label=tmp_path / "gone.zarr", name="patient 4")
    with pytest.raises(FileNotFoundError, match="subject 3 .*gone.npy"):
        list(Queue([*subjects, broken], UniformSampler(8), 3))
    queue = Queue([*subjects, broken], UniformSampler(8), 3, on_error="skip")
    assert len(list(queue)) == 9
    assert queue.stats()["left_out"] == 3 and "gone.npy" in queue.stats()["reasons"][0]
    with pytest.raises(ValueError, match="does not fit"):
        list(Queue(subjects, UniformSampler(50), 3))
    with pytest.raises(ValueError, match="the subject has ct, label"):
        list(Queue(subjects, LabelSampler(8, "lable"), 3))
    other = Subject(ct=np.zeros((20, 20, 20), np.int16), label=np.zeros((20, 20, 20), np.uint8))
    with pytest.raises(ValueError, match="the first gives"):
        list(Queue([*subjects, other], UniformSampler(8), 3, batch_size=12))


def test_subjects_know_volumes_from_metadata(tmp_path: pathlib.Path, subjects: Subjects) -> None:
    subject = Subject(ct=str(tmp_path / "a.nii.gz"), site="Ulm", affine=np.eye(4), ages=[1, 2])
    assert list(subject.volumes) == ["ct"] and set(subject.metadata) == {"site", "affine", "ages"}
    assert subject["site"] == "Ulm" and "site" in subject and len(subject) == 4
    with pytest.raises(KeyError, match="has no 'mr': it has ct, site"):
        subject["mr"]
    with pytest.raises(ValueError, match="at least one volume"):
        Subject(site="Ulm")
    again = pickle.loads(pickle.dumps(subjects[0]))
    assert again["age"] == 60 and np.array_equal(again["ct"][:], subjects[0]["ct"][:])
    with pytest.raises(ValueError, match="grid"):
        list(Queue([Subject(a=np.zeros((8, 8, 8)), b=np.zeros((8, 8, 9)))], UniformSampler(4), 1))


def test_samplers_give_patches_of_one_subject(subjects: Subjects) -> None:
    sampler = UniformSampler((8, 9, 10))
    found = list(sampler(subjects[0], 4))
    assert len(found) == 4 and found[0]["ct"].shape == (1, 8, 9, 10)
    endless = sampler(subjects[0])
    assert [key(next(endless)) for _ in range(4)] == [key(sample) for sample in found]
    again = pickle.loads(pickle.dumps(sampler))
    assert again == sampler and again != UniformSampler(8)
    for size in (0, (1, 2), "a", (1, 2, -3)):
        with pytest.raises(ValueError, match="patch_size"):
            UniformSampler(size)  # type: ignore[arg-type]


def test_a_pickled_queue_gives_the_same(subjects: Subjects) -> None:
    queue = Queue(subjects, UniformSampler(8), 5, batch_size=2)
    rows(queue)
    again = pickle.loads(pickle.dumps(queue))
    assert again.epoch == 1 and len(again) == len(queue) and type(again) is type(queue)
    assert rows(again) == rows(queue)


def share(queue: Queue, results: Any) -> None:
    results.put((os.getpid(), queue.epoch, rows(queue)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("warm", [True, False])
def test_other_processes_give_the_same_epoch(subjects: Subjects, method: str, warm: bool) -> None:
    expected = rows(Queue(subjects, UniformSampler(8), 5, batch_size=2, max_length=4))
    queue = Queue(subjects, UniformSampler(8), 5, batch_size=2, threads=2, max_length=4)
    held = []
    if warm:
        iterator = iter(queue)
        held = [iterator, next(iterator)]
        queue.set_epoch(0)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=share, args=(queue, results))
    process.start()
    pid, number, found = results.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0 and pid == process.pid
    assert number == 0 and found == expected
    assert queue.epoch == 1, "the count of epochs is shared with the other process"
    del held


@pytest.mark.parametrize("sampler", ["label", "weighted"])
@pytest.mark.parametrize("kept", ["files", "arrays"])
def test_maps_that_change_between_epochs_are_drawn_by_as_they_are_now(
    tmp_path: pathlib.Path, sampler: str, kept: str
) -> None:
    length, now = 70, 0  # More than are kept open.

    def where(index: int) -> int:
        return (3 * index + 5 * now) % 16

    def make(index: int) -> Subject:
        label = np.zeros((1, 1, 16), np.uint8)
        label[..., where(index)] = 1
        if kept == "arrays":
            return Subject(ct=label.astype(np.int16), label=label)
        path = tmp_path / f"{index}.npy"
        np.save(path, label)
        return Subject(ct=label.astype(np.int16), label=path)

    draw = LabelSampler(1, "label") if sampler == "label" else WeightedSampler(1, "label")
    queue = Queue(voxpatch.LazySubjects(length, make), draw, 2, threads=2, shuffle_subjects=False, shuffle_window=2)
    for now in range(3):
        found = [(sample["subject"]["index"], int(sample["location"][2])) for sample in queue]
        assert len(found) == 2 * length
        wrong = [(index, x) for index, x in found if x != where(index)]
        assert not wrong


def test_patches_of_all_subjects_are_mixed_unless_a_window_is_chosen() -> None:
    subjects = [Subject(ct=np.full((8, 8, 8), n, np.uint8), name=str(n)) for n in range(4)]

    def mixed(**options: Any) -> float:
        queue = Queue(subjects, UniformSampler(4), 256, **options)
        found = [sample["subject"]["index"] for sample in queue]
        assert sorted(found) == sorted(4 * [0, 1, 2, 3] * 64)
        size = queue.batch_size or 8
        batches = [len(set(found[at : at + size])) for at in range(0, len(found), size)]
        assert queue.stats()["subjects_per_batch"] == pytest.approx(np.mean(batches))
        return float(np.mean(batches))

    assert 3.4 < mixed() < 3.8
    assert 3.4 < mixed(shuffle_window=1024) < 3.8
    assert 1.5 < mixed(shuffle_window=300) < 2.1
    assert mixed(shuffle_window=1) == 1
    with pytest.raises(ValueError, match="shuffle_window"):
        Queue(subjects, UniformSampler(4), 1, shuffle_window=0)


def test_a_state_is_of_the_channels_and_values_that_were_chosen(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "four.npy"
    np.save(path, np.arange(4 * 16**3, dtype=np.int16).reshape(4, 16, 16, 16))

    def queue(**how: Any) -> Queue:
        volume = voxpatch.open(path, **how)
        return Queue([Subject(ct=volume, name="a")], UniformSampler(8), 6)

    choices: list[dict[str, Any]] = [{"channels": 0}, {"channels": 1}, {"channels": (0, 2)}, {"channels": 0, "values": "stored"}]
    for choice in choices:
        first = queue(**choice)
        next(iter(first))
        state = first.state_dict()
        for other in choices:
            second = queue(**other)
            second.load_state_dict(state)
            if other == choice:
                assert len(list(second)) == 5
            else:
                with pytest.raises(ValueError):
                    list(second)


def test_slow_volumes_are_named_in_the_statistics(tmp_path):
    """A patch of 32^3 touches 32 planes of 512 x 512."""
    path = tmp_path / "a.zarr"
    voxpatch.write(path, np.zeros((64, 512, 512), "u1"), chunk=(1, 512, 512), shard=None)
    for size, is_slow in [(32, True), ((1, 512, 512), False)]:
        queue = voxpatch.Queue([voxpatch.Subject(ct=path)], voxpatch.UniformSampler(size), samples_per_subject=2, seed=1)
        assert len(list(queue)) == 2
        slow = queue.stats()["slow"]
        assert len(slow) == is_slow
        if is_slow:
            assert slow[0].startswith(str(path)) and "convert it first for 14.5 times fewer" in slow[0], slow
