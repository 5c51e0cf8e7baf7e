"""Changes of samples: native ones, a transform on threads, and page-locked memory."""

from __future__ import annotations

import functools
import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import voxpatch
from conftest import key
from voxpatch import Queue, Subject, UniformSampler
from voxpatch.work import Line, numpy_generator, torch_generator

Sample = dict[str, Any]


def scan_of(random: np.random.Generator, dtype: str, channels: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return random.integers(0, 100, (channels, *shape)).astype(dtype)


def normalized(scan: Any, setting: Any) -> Any:
    """The real values that a network gets, in f64."""
    wide = scan.astype(np.float64)
    if setting is None:
        return wide
    if setting == "zscore":
        axes = (1, 2, 3)
        deviation = wide.std(axes, keepdims=True)
        return (wide - wide.mean(axes, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    low, high = setting
    return (np.clip(wide, low, high) - low) / (high - low)


def turned(patch: Any, orientation: Any) -> Any:
    """The voxels of a patch at new axes, by numpy."""
    order = [abs(int(axis)) - 1 for axis in orientation]
    out = patch.transpose(0, *(axis + 1 for axis in order))
    return np.flip(out, [1 + at for at, axis in enumerate(orientation) if axis < 0])


@pytest.mark.parametrize("number", range(24))
def test_native_changes_are_those_of_numpy(number: int) -> None:
    random = np.random.default_rng(number)
    shape = tuple(random.integers(9, 16, 3).tolist())
    patch = tuple(random.choice([4, 5, 6], 3).tolist()) if number % 3 else (5, 5, 5)
    ct = scan_of(random, str(random.choice(["uint8", "int16", "float32", "float64", "int32"])), 1 + number % 2, shape)
    label = scan_of(random, str(random.choice(["uint8", "int64", "uint16"])), 1, shape)
    setting: Any = [None, "zscore", (20.0, 70.0)][int(random.integers(3))]
    types = ["float16", "float32", "float64"] if setting == "zscore" else ["float16", "float32", "uint8", "float64"]
    dtype = str(random.choice(types))
    crop = tuple(max(1, n - 1) for n in patch) if number % 4 == 1 else None
    queue = Queue(
        [Subject(ct=ct, label=label, padding={"ct": 0.0, "label": "edge"})],
        UniformSampler(patch, border="pad"),  # type: ignore[arg-type]
        12,
        seed=number,
        threads=number % 3,
        normalize={"ct": setting},
        dtype={"ct": dtype},
        flip=(0.5, 0.2, 1.0),
        permute=0.5,
        rotate=0.7,
        crop=crop,  # type: ignore[arg-type]
        batch_size=[None, 5][number % 2],
    )
    wide = normalized(ct, setting)
    pads = [(0, 0), (8, 8), (8, 8), (8, 8)]
    sources = {"ct": np.pad(wide, pads), "label": np.pad(label, pads, mode="edge")}
    seen = set()
    for item in queue:
        samples = [item] if queue.batch_size is None else [
            {name: item[name][n] for name in ("ct", "label", "location", "orientation")} for n in range(len(item["ct"]))
        ]
        for sample in samples:
            z, y, x, z1, y1, x1 = (sample["location"] + 8).tolist()
            assert (z1 - z, y1 - y, x1 - x) == (crop or patch)
            for name, source in sources.items():
                expected = turned(source[:, z:z1, y:y1, x:x1], sample["orientation"])
                if name == "ct" and dtype == "uint8":
                    expected = np.rint(expected)
                assert sample[name].dtype == (dtype if name == "ct" else label.dtype)
                near = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-6}.get(str(sample[name].dtype), 0)
                assert np.allclose(sample[name].astype(np.float64), expected, rtol=near, atol=near)
                back = voxpatch.turn_back(sample[name], sample["orientation"])
                assert np.array_equal(turned(back, sample["orientation"]), sample[name])
            seen.add(tuple(sample["orientation"].tolist()))
    assert len(seen) > 1


def everything(queue: Any) -> list[tuple[Any, ...]]:
    """All that the items of a queue hold, as bytes."""
    found = []
    for item in queue:
        own = {name: np.asarray(value).tobytes() for name, value in sorted(item.items()) if name != "subject"}
        found.append(tuple(own.items()))
    return found


SMALL = [{"ct": np.random.default_rng(n).integers(0, 99, (12, 13, 14)).astype(np.int16)} for n in range(3)]


def noisy(sample: Sample, rng: np.random.Generator) -> Sample:
    if rng.random() < 0.3:
        time.sleep(0.001)
    sample["ct"] = sample["ct"] + rng.normal(size=sample["ct"].shape)
    sample["n"] = int(rng.integers(1000))
    return sample


@pytest.mark.parametrize("batch_size", [None, 4])
def test_samples_do_not_depend_on_threads_or_where_an_epoch_resumes(batch_size: int | None) -> None:
    def queue(transform_threads: int, threads: int = 1) -> Queue:
        return Queue(
            SMALL, UniformSampler(6), 5, seed=3, batch_size=batch_size, threads=threads, transform=noisy,
            transform_threads=transform_threads, flip=0.5, rotate=0.5,
        )  # fmt: skip

    expected = everything(queue(0))
    assert len(set(expected)) == len(expected) == len(queue(0))
    for transform_threads, threads in itertools.product((0, 1, 4), (0, 2)):
        own = queue(transform_threads, threads)
        assert everything(own) == expected
        assert own.stats()["delivered"] == 15
        assert everything(own) != expected, "the next epoch has other numbers"
    for taken in range(len(expected) + 1):
        left = queue(4)
        iterator = iter(left)
        for _ in range(taken):
            next(iterator)
        assert left.stats()["delivered"] == min(15, taken * (batch_size or 1))
        state = left.state_dict()
        rest = queue(taken % 3)
        rest.load_state_dict(state)
        iterator.close()  # type: ignore[attr-defined]
        if taken < len(expected):
            assert everything(rest) == expected[taken:]
        else:
            assert rest.epoch == 1


@pytest.mark.parametrize("transform_threads", [0, 2])
def test_samples_do_not_depend_on_a_data_loader_s_workers(transform_threads: int) -> None:
    torch = pytest.importorskip("torch")
    settings: dict[str, Any] = {"batch_size": 4, "transform": noisy, "flip": 0.5, "transform_threads": transform_threads}
    queue = Queue(SMALL, UniformSampler(6), 5, seed=3, **settings)
    plain = [everything(queue) for _ in range(2)]
    for num_workers in (0, 2):
        context = "fork" if num_workers else None
        own = Queue(SMALL, UniformSampler(6), 5, seed=3, **settings)
        loader = torch.utils.data.DataLoader(
            own, batch_size=None, num_workers=num_workers, multiprocessing_context=context
        )
        assert [everything(loader) for _ in range(2)] == plain


def test_generators_are_those_of_the_seed_the_epoch_and_the_place() -> None:
    def drawn(sample: Sample, *, rng: np.random.Generator) -> Sample:
        return {"first": rng.integers(1 << 60)}

    queue = Queue(SMALL, UniformSampler(6), 4, seed=2**64 - 1, transform=drawn)
    for epoch in range(2):
        found = [int(sample["first"]) for sample in queue]
        assert found == [int(np.random.default_rng([2**64 - 1, epoch, n]).integers(1 << 60)) for n in range(12)]
    taken = Queue(SMALL, UniformSampler(6), 4, seed=1, rank=1, world_size=2, transform=drawn)
    assert int(next(iter(taken))["first"]) == int(numpy_generator(1, 0, 1).integers(1 << 60))


def test_a_transform_may_take_torch_s_generator() -> None:
    torch = pytest.importorskip("torch")

    class Noise:
        def __call__(self, sample: Sample, generator: Any = None) -> Sample:
            return {"noise": torch.rand(3, generator=generator)}

    for transform_threads in (0, 3):
        queue = Queue(SMALL, UniformSampler(6), 2, transform=Noise(), transform_threads=transform_threads)
        for n, sample in enumerate(queue):
            assert torch.equal(sample["noise"], torch.rand(3, generator=torch_generator(0, 0, n)))


def test_a_generator_that_was_bound_stays_and_others_are_handed_by_name_only() -> None:
    own = np.random.default_rng(5)

    def drawn(sample: Sample, rng: Any = None, other: int = 1) -> Sample:
        return {"rng": rng}

    def taken(*, sample: Any = None, **more: Any) -> Sample:
        raise AssertionError

    bound = Queue(SMALL, UniformSampler(6), 1, transform=functools.partial(drawn, rng=own))
    assert all(sample["rng"] is own for sample in bound)
    assert all(isinstance(sample["rng"], np.random.Generator) for sample in Queue(SMALL, UniformSampler(6), 1, transform=drawn))
    assert [list(sample) for sample in Queue(SMALL[:1], UniformSampler(6), 1, transform=lambda sample, **more: dict(more))] == [[]]
    assert list(next(iter(Queue(SMALL, UniformSampler(6), 1, transform=dict)))) == ["ct", "location", "subject"]


@pytest.mark.parametrize("transform_threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_error_comes_in_its_place_with_the_sample_s_number(transform_threads: int, batch_size: int | None) -> None:
    plain = [key(sample) for sample in Queue(SMALL, UniformSampler(6), 4)]

    def broken(sample: Sample, rng: Any) -> Sample:
        if key(sample) == plain[5]:
            raise ZeroDivisionError("by nought")
        time.sleep(float(rng.random()) / 500)
        return sample

    queue = Queue(SMALL, UniformSampler(6), 4, transform=broken, transform_threads=transform_threads, batch_size=batch_size)
    found: list[Any] = []
    iterator = iter(queue)
    while True:
        try:
            found.append(next(iterator))
        except ZeroDivisionError as error:
            notes = error.__notes__
            assert len(notes) == 1 and "sample 5 of epoch 0" in notes[0] and "location [" in notes[0]
            found.append(None)
        except StopIteration:
            break
    at = 5 // (batch_size or 1)
    assert [n for n, item in enumerate(found) if item is None] == [at] and len(found) == 12 // (batch_size or 1)
    if batch_size is None:
        assert [item and key(item) for item in found] == [*plain[:5], None, *plain[6:]]


def test_ctrl_c_ends_a_wait_for_a_transform_and_nothing_is_lost() -> None:
    program = """
    import time, numpy as np, voxpatch
    def slow(sample):
        time.sleep(0.5)
        return sample
    queue = voxpatch.Queue([{"ct": np.zeros((8, 8, 8), np.int16)}], voxpatch.UniformSampler(4), 3, transform=slow)
    iterator = iter(queue)
    print("begun", flush=True)
    try:
        next(iterator)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    print(len(list(iterator)), flush=True)
    def endless(sample):
        time.sleep(1000)
    queue = voxpatch.Queue([{"ct": np.zeros((8, 8, 8), np.int16)}], voxpatch.UniformSampler(4), 9, transform=endless)
    print("again", flush=True)
    next(iter(queue))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert [process.stdout.readline() for _ in range(3)] == ["stopped\n", "3\n", "again\n"]
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and time.monotonic() - began < 20
    assert process.returncode == -signal.SIGINT


def test_what_waits_counts_towards_the_memory() -> None:
    scan = np.zeros((40, 40, 40), np.int16)
    sample = 32**3 * 2
    memory = 48 * sample

    def widened(given: Sample) -> Sample:
        return {"ct": given["ct"].astype(np.float64)}

    for transform_threads in (1, 8):
        queue = Queue(
            [{"ct": scan}], UniformSampler(32), 60, memory=memory, transform=widened, transform_threads=transform_threads
        )
        iterator = iter(queue)
        line = iterator._line  # type: ignore[attr-defined]
        next(iterator)
        for _ in range(20):
            next(iterator)
            time.sleep(0.002)
            # A quarter of the memory: three results, each four times as large as the sample that was read.
            assert len(line.tasks) <= 2 and sum(task.nbytes for task in line.tasks) <= memory // 4 - 4 * sample
        assert len(list(iterator)) == 39


def test_a_line_takes_one_item_however_large_and_stops_at_the_end() -> None:
    line = Line(2, 1, 0)
    assert line.has_room()
    assert line.next(lambda wait: None, False) is None and line.ended and not line.has_room()


def test_threads_end_with_the_iterator() -> None:
    others = set(threading.enumerate())  # Those of earlier tests may end meanwhile.

    def threads() -> list[str]:
        new = set(threading.enumerate()) - others
        return [thread.name for thread in new if thread.name.startswith("voxpatch-transform")]

    for end in ("close", "drop", "exhaust"):
        queue = Queue(SMALL, UniformSampler(6), 4, transform=dict, transform_threads=3)
        iterator = iter(queue)
        next(iterator)
        assert len(threads()) == 3
        if end == "close":
            iterator.close()  # type: ignore[attr-defined]
            assert list(iterator) == []
        elif end == "exhaust":
            list(iterator)
        del iterator
        deadline = time.monotonic() + 10
        while threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not threads(), end


def test_a_forked_process_refuses_an_iterator_with_threads_and_ends() -> None:
    program = """
    import os, sys, numpy as np, voxpatch
    queue = voxpatch.Queue([{"ct": np.zeros((8, 8, 8), np.int16)}], voxpatch.UniformSampler(4), 50, transform=dict)
    iterator = iter(queue)
    next(iterator)
    child = os.fork()
    if child == 0:
        try:
            next(iterator)
        except RuntimeError as error:
            assert "another process" in str(error)
            del iterator
            print(len(list(queue)), flush=True)
            sys.exit()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    print(status, len(list(iterator)), flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["50", "0", "49"]


def test_bfloat16_is_torch_s() -> None:
    torch = pytest.importorskip("torch")
    scan = np.random.default_rng(1).normal(size=(9, 9, 9))
    settings: Any = [("bfloat16", None), (torch.bfloat16, None), ({"ct": "bfloat16"}, 3)]
    for dtype, batch_size in settings:
        queue = Queue([Subject(ct=scan, padding=0.3)], UniformSampler(6, border="pad"), 6, dtype=dtype, batch_size=batch_size, flip=1.0)
        padded = np.pad(scan, 6, constant_values=0.3)
        for item in queue:
            samples = [(item["ct"], item["location"])] if batch_size is None else zip(item["ct"], item["location"])
            for ct, location in samples:
                z, y, x, z1, y1, x1 = (location + 6).tolist()
                expected = torch.from_numpy(np.flip(padded[z:z1, y:y1, x:x1]).copy()).to(torch.float32)
                assert ct.dtype == torch.bfloat16 and torch.equal(ct[0], expected.to(torch.bfloat16))
    labels = {"ct": scan, "label": np.zeros((9, 9, 9), np.uint8)}
    sample = next(iter(Queue([labels], UniformSampler(6), 1, dtype={"ct": "bfloat16"}, transform=dict)))
    assert sample["ct"].dtype == torch.bfloat16 and sample["label"].dtype == np.uint8


def test_what_a_type_cannot_hold_is_refused() -> None:
    scan = np.full((6, 6, 6), 7.0)
    scan[3, 2, 1] = 1e39
    for dtype in ("float16", "uint8", *(["bfloat16"] if "torch" in sys.modules else [])):
        with pytest.raises(ValueError, match=rf"voxel \[3, 2, 1\].*{dtype}"):
            list(Queue([{"ct": scan}], UniformSampler(6), 1, dtype=dtype))
    with pytest.raises(ValueError, match=r"normalized.*uint8"):
        list(Queue([{"ct": np.arange(216.0).reshape(6, 6, 6)}], UniformSampler(6), 1, dtype="uint8", normalize="zscore"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip": 1.5}, "flip"),
        ({"flip": (0, 1)}, "flip"),
        ({"permute": -0.1}, "permute"),
        ({"rotate": float("nan")}, "rotate"),
        ({"rotate": "often"}, "rotate"),
        ({"crop": 0}, "crop"),
        ({"crop": (4, 5, 4)}, "give a smaller crop"),
        ({"normalize": {"ct": "minmax"}}, "zscore"),
        ({"normalize": {"ct": (3, 1)}}, "lower first"),
        ({"normalize": "zscore"}, "dictionary by name"),
        ({"normalize": {"pet": "zscore"}}, "normalize for pet"),
        ({"transform_threads": -1}, "transform_threads"),
    ],
)
def test_settings_that_are_wrong_are_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    scan = np.zeros((8, 8, 8), np.int16)
    with pytest.raises(ValueError, match=message):
        Queue([{"ct": scan, "label": scan}], UniformSampler(4), 1, **wrong)


def test_training_and_prediction_normalize_alike(tmp_path: Any) -> None:
    scan = np.random.default_rng(3).normal(50, 20, (10, 11, 12)).astype(np.float32)
    for setting in ("zscore", (10.0, 60.0)):
        predicted = voxpatch.predict(lambda batch: batch, scan, None, (10, 11, 12), overlap=0, normalize=setting)  # type: ignore[arg-type]
        trained = next(iter(Queue([{"ct": scan}], UniformSampler((10, 11, 12)), 1, normalize=setting)))["ct"]  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(predicted).reshape(trained.shape), trained)


def test_turn_back_takes_tensors_and_batches_and_refuses_what_does_not_fit() -> None:
    torch = pytest.importorskip("torch")
    queue = Queue(SMALL, UniformSampler(6), 4, flip=0.5, permute=0.5, batch_size=6)
    plain = Queue(SMALL, UniformSampler(6), 4, batch_size=6)
    for batch, before in zip(queue, plain, strict=True):
        assert np.array_equal(voxpatch.turn_back(batch["ct"], batch["orientation"]), before["ct"])
        tensor = voxpatch.turn_back(torch.from_numpy(batch["ct"]), torch.from_numpy(batch["orientation"]))
        assert np.array_equal(tensor.numpy(), before["ct"])
    for wrong in ([1, 1, 2], [0, 1, 2], [1, 2]):
        with pytest.raises(ValueError, match="orientation"):
            voxpatch.turn_back(np.zeros((4, 4, 4)), wrong)


class Pinned:
    """Stands in for CUDA: counts the page-locked tensors that torch is asked for, and those that are alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, torch: Any) -> None:
        self.made: list[tuple[int, ...]] = []
        self.most = 0
        self.devices: set[int] = set()
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        empty = torch.empty

        def stub(shape: Any, *, dtype: Any, pin_memory: bool = False) -> Any:
            tensor = empty(shape, dtype=dtype)
            if pin_memory:
                with self._lock:
                    self.made.append(tuple(shape))
                    self._alive.add(tensor)
                    self.most = max(self.most, len(self._alive))
            return tensor

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "set_device", self.devices.add)
        monkeypatch.setattr(torch, "empty", stub)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: self.has(tensor))

    def has(self, tensor: Any) -> bool:
        with self._lock:
            return tensor.data_ptr() in [own.data_ptr() for own in self._alive]


@pytest.mark.parametrize("transform", [None, dict])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_pinned_items_are_tensors_in_page_locked_memory_that_is_given_back(
    monkeypatch: pytest.MonkeyPatch, transform: Any, batch_size: int | None
) -> None:
    torch = pytest.importorskip("torch")
    expected = list(Queue(SMALL, UniformSampler(6), 8, batch_size=batch_size))
    stub = Pinned(monkeypatch, torch)
    queue = Queue(
        SMALL, UniformSampler(6), 8, batch_size=batch_size, pin_memory=True, transform=transform, transform_threads=2
    )
    count = 0
    for item, plain in zip(queue, expected, strict=True):
        for name in ("ct", "location"):
            assert isinstance(item[name], torch.Tensor) and item[name].is_pinned()
            assert np.array_equal(item[name].numpy(), plain[name]) and item[name].numpy().dtype == plain[name].dtype
        assert item["subject"] == plain["subject"]
        count += 1
    del item
    assert len(stub.made) == 2 * count and stub.devices == {3}
    # Of the two tensors of an item: those of the consumer, and of the items under way, of 2 * 2 + a batch samples.
    assert stub.most <= 2 * (2 + (4 + (batch_size or 1)) // (batch_size or 1))
    assert len(set(stub.made)) <= 4, "torch's allocator reuses memory of one size"


def test_a_pinned_tensor_is_never_written_again_while_the_consumer_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    expected = list(Queue(SMALL, UniformSampler(6), 8, batch_size=4))
    Pinned(monkeypatch, torch)
    kept = list(Queue(SMALL, UniformSampler(6), 8, batch_size=4, pin_memory=True))
    assert len({item["ct"].data_ptr() for item in kept}) == len(kept)
    for item, plain in zip(kept, expected, strict=True):
        assert np.array_equal(item["ct"].numpy(), plain["ct"])


def test_without_cuda_pin_memory_warns_and_gives_tensors() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    queue = Queue(SMALL, UniformSampler(6), 2, batch_size=3, pin_memory=True)
    with pytest.warns(UserWarning, match="no CUDA device"):
        batches = list(queue)
    expected = list(Queue(SMALL, UniformSampler(6), 2, batch_size=3))
    for batch, plain in zip(batches, expected, strict=True):
        assert isinstance(batch["ct"], torch.Tensor) and not batch["ct"].is_pinned()
        assert np.array_equal(batch["ct"].numpy(), plain["ct"])


def test_workers_leave_pinning_to_the_data_loader() -> None:
    torch = pytest.importorskip("torch")
    queue = Queue(SMALL, UniformSampler(6), 2, batch_size=3, pin_memory=True)
    loader = torch.utils.data.DataLoader(queue, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ValueError, match="give pin_memory to the DataLoader"):
        list(loader)
