"""Work on samples between the loader and the consumer, on threads: transforms, batches, and page-locked copies.

The consumer's thread takes samples of the loader in order, hands them to the threads, and delivers the results in the same
order. Each result keeps the loader's position after it, so a saved state does not depend on how many samples are under way.
"""

from __future__ import annotations

import atexit
import inspect
import os
import queue as queues
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .options import Array

    Sample = dict[str, Any]
    Transform = Callable[..., Sample]
    #: A sample, and its place in the epoch.
    Placed = tuple[Sample, int]

#: Live pools, whose threads end before the interpreter does.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Threads that run jobs in the order in which they were submitted; without threads, `submit` runs them.

    They are daemons, so that Ctrl-C need not wait for a transform; the interpreter stops them at its exit.
    """

    def __init__(self, threads: int) -> None:
        self.size = threads
        self._process = os.getpid()
        self._jobs: queues.SimpleQueue[Callable[[], None]] = queues.SimpleQueue()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job on a thread."""
        if self.size == 0:
            job()
            return
        while len(self._threads) < self.size:
            name = f"voxpatch-transform-{len(self._threads)}"
            thread = threading.Thread(target=_run, args=(self._jobs, self._closed), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
            _pools.add(self)
        self._jobs.put(job)

    def close(self) -> None:
        """End the threads, each after the job that it is running."""
        if self._process != os.getpid():
            return  # a forked process has no threads, and a lock may have been taken when it was forked
        self._closed.set()
        for _ in self._threads:
            self._jobs.put(_nothing)

    def join(self, deadline: float) -> None:
        """Wait until a time of the monotonic clock for the threads to end."""
        for thread in self._threads if self._process == os.getpid() else ():
            thread.join(max(0.0, deadline - time.monotonic()))


def _nothing() -> None:
    """Wake a thread."""


def _run(jobs: queues.SimpleQueue[Callable[[], None]], closed: threading.Event) -> None:
    # No reference to the pool: its threads end with the iterator that has it.
    while not closed.is_set():
        job = jobs.get()
        if not closed.is_set():
            job()
        del job


@atexit.register
def _end_pools() -> None:
    pools = list(_pools)
    for pool in pools:
        pool.close()
    deadline = time.monotonic() + 1.0
    for pool in pools:
        pool.join(deadline)


class Task:
    """One item on its way to the consumer: a sample, or the samples of a batch."""

    def __init__(self, state: str | None, count: int) -> None:
        #: The loader's position after the item; None for an error, which leaves it as it is.
        self.state = state
        #: The samples of the item.
        self.count = count
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.result: Sample | None = None
        self._lock = threading.Lock()
        self._nbytes = 0

    @classmethod
    def failed(cls, error: BaseException) -> Task:
        """Return the task of an item that the loader could not read."""
        task = cls(None, 0)
        task.error = error
        task.done.set()
        return task

    @property
    def nbytes(self) -> int:
        """The bytes of what is under way."""
        return self._nbytes

    def start(
        self,
        pool: Pool,
        given: Sequence[Placed],
        each: Callable[[Sample, int], Sample],
        join: Callable[[list[Sample]], Sample],
    ) -> None:
        """Run `each` on every sample, and then `join` on all, on the pool's threads."""
        self._nbytes = sum(_bytes(sample) for sample, _ in given)
        waiting: list[Placed | None] = list(given)
        made: list[Sample | BaseException | None] = [None] * len(waiting)
        left = [len(waiting)]

        def run(at: int) -> None:
            placed, waiting[at] = waiting[at], None
            assert placed is not None
            sample, place = placed
            del placed
            before = _bytes(sample)
            try:
                made[at] = each(sample, place)
            except BaseException as error:  # delivered in the place of the item
                made[at] = error
            del sample
            after = made[at]
            with self._lock:
                self._nbytes += (_bytes(after) if isinstance(after, dict) else 0) - before
                left[0] -= 1
                is_last = left[0] == 0
            if is_last:
                self._finish(made, join)

        if not waiting:
            pool.submit(lambda: self._finish(made, join))
        for at in range(len(waiting)):
            pool.submit(lambda at=at: run(at))  # type: ignore[misc]

    def _finish(
        self, made: list[Sample | BaseException | None], join: Callable[[list[Sample]], Sample]
    ) -> None:
        try:
            for one in made:
                if isinstance(one, BaseException):
                    raise one
            self.result = join([one for one in made if isinstance(one, dict)])
            self._nbytes = _bytes(self.result)
        except BaseException as error:
            self.error = error
        made.clear()
        self.done.set()


def _bytes(sample: Sample) -> int:
    return sum(int(getattr(value, "nbytes", 0)) for value in sample.values())


class Line:
    """The tasks under way, in order."""

    def __init__(self, threads: int, batch: int, memory: int) -> None:
        self.pool = Pool(threads)
        self.tasks: deque[Task] = deque()
        #: Nothing more comes of the loader.
        self.ended = False
        self.closed = False
        self._process = os.getpid()
        #: Samples and bytes that may be under way; one item always may.
        self._samples = 2 * threads + batch if threads else 0
        self._memory = memory
        #: Bytes of the largest item that was done; until there is one, a single item is under way.
        self._largest: int | None = None

    def has_room(self) -> bool:
        """Return whether one more item may begin."""
        if self.ended or not self.tasks:
            return not self.ended
        # Items that are not done, and the next one, may become as large as the largest so far.
        finished = [task.nbytes for task in self.tasks if task.done.is_set()]
        if finished:
            self._largest = max(self._largest or 0, *finished)
        if self._largest is None or sum(task.count for task in self.tasks) >= self._samples:
            return False
        unfinished = len(self.tasks) - len(finished)
        return sum(finished) + (unfinished + 1) * self._largest <= self._memory

    def next(self, fetch: Callable[[bool], Task | None], inline: bool) -> Task | None:
        """Return the next task when it is done; None at the end.

        `fetch` takes the loader's next item and starts its task; with False it returns None if none is ready. With True, None
        is the end. With `inline` the loader reads only when it is asked to wait.
        """
        if self._process != os.getpid():
            raise RuntimeError("this iterator was started in another process: iterate over the queue anew")
        self._fill(fetch)
        if not self.tasks:
            return None
        first = self.tasks[0]
        while inline and not first.done.is_set() and self.has_room():
            task = fetch(True)
            if task is None:
                self.ended = True
                break
            self.tasks.append(task)
            if task.count == 0:
                break
        first.done.wait()
        # The threads have work while the consumer has this item.
        self._fill(fetch)
        return self.tasks.popleft()

    def _fill(self, fetch: Callable[[bool], Task | None]) -> None:
        """Begin as many items as there is room for and are ready; wait for one if none is under way."""
        while self.has_room():
            wait = not self.tasks
            task = fetch(wait)
            if task is not None:
                self.tasks.append(task)
            elif wait:
                self.ended = True
            if task is None or task.count == 0:
                break

    def close(self) -> None:
        """Drop what is under way, and end the threads."""
        self.closed = True
        self.pool.close()
        self.tasks.clear()
        self.ended = True


class Handed:
    """The random generators that a transform takes, by its parameters ``rng`` and ``generator``."""

    def __init__(self, transform: Transform, seed: int, epoch: int) -> None:
        self._transform = transform
        self._seed, self._epoch = seed, epoch
        wanted = _generators(transform)
        self._rng, self._generator = "rng" in wanted, "generator" in wanted

    def __call__(self, sample: Sample, place: int) -> Sample:
        generators: dict[str, object] = {}
        if self._rng:
            generators["rng"] = numpy_generator(self._seed, self._epoch, place)
        if self._generator:
            generators["generator"] = torch_generator(self._seed, self._epoch, place)
        # A transform may change the dictionary.
        subject, location = sample.get("subject"), sample.get("location")
        try:
            return self._transform(sample, **generators)
        except Exception as error:
            name = subject.get("name") if isinstance(subject, Mapping) else None
            corner = None if location is None else location[:3].tolist()
            note = f"in the transform of sample {place} of epoch {self._epoch}: subject {name!r}, location {corner}"
            vars(error)["__notes__"] = [*getattr(error, "__notes__", []), note]
            raise


def _generators(transform: Transform) -> set[str]:
    """Return the generators that a transform takes; one that was bound, as by ``functools.partial``, stays."""
    try:
        parameters = inspect.signature(transform).parameters
    except (TypeError, ValueError):
        return set()
    names = ("rng", "generator")
    free = (inspect.Parameter.empty, None)
    return {
        name
        for name in names
        if name in parameters
        and parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and any(parameters[name].default is one for one in free)
    }


def numpy_generator(seed: int, epoch: int, place: int) -> np.random.Generator:
    """Return numpy's generator of one sample."""
    import numpy as np

    return np.random.default_rng([seed, epoch, place])


def torch_generator(seed: int, epoch: int, place: int) -> torch.Generator:
    """Return torch's generator of one sample, seeded by the first number of numpy's."""
    import torch

    first = int(numpy_generator(seed, epoch, place).integers(2**63))
    return torch.Generator().manual_seed(first)


class Pinning:
    """Copies into page-locked memory, as tensors; without CUDA, tensors in ordinary memory and a warning.

    The memory is torch's: its allocator locks the pages of a block once, and reuses a block when its tensor is gone and the
    copies from it that were issued on any stream have finished.
    """

    def __init__(self) -> None:
        import torch

        self._device: int | None = None
        if torch.cuda.is_available():
            self._device = torch.cuda.current_device()
        else:
            warnings.warn("pin_memory=True, but there is no CUDA device: tensors are not page-locked", stacklevel=4)

    def __call__(self, item: Sample) -> Sample:
        """Replace the arrays and tensors of an item."""
        for key, value in item.items():
            if _is_array(value) or _is_tensor(value):
                item[key] = self._pinned(value)
        return item

    def _pinned(self, value: Array | torch.Tensor) -> torch.Tensor:
        import numpy as np
        import torch

        given = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        if self._device is None or given.device.type != "cpu" or given.is_pinned():
            return given
        # A thread of its own begins with the first device, on which it must not open a context.
        torch.cuda.set_device(self._device)
        pinned = torch.empty(given.shape, dtype=given.dtype, pin_memory=True)
        return pinned.copy_(given)


def _is_array(value: object) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    return hasattr(value, "__array_interface__") and kind in "biufc"


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def bfloat16(bits: Array) -> torch.Tensor:
    """Return the tensor of an array that holds the bits of bfloat16."""
    import torch

    return torch.from_numpy(bits.view("int16")).view(torch.bfloat16)


def is_bfloat16(dtype: object) -> bool:
    """Return whether a type is bfloat16, by its name or as torch or ml_dtypes has it."""
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2] == "bfloat16"


def check_torch(option: str) -> None:
    """Refuse an option that needs torch where it is not installed."""
    from importlib.util import find_spec

    if "torch" not in sys.modules and find_spec("torch") is None:
        raise InvalidError(f"{option} gives torch tensors, but torch is not installed")
