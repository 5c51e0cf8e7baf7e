"""The training queue: patches of many subjects, read ahead by threads, in a seeded order."""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from ._voxpatch import EpochLoader, SubjectList, _survey
from ._voxpatch import Epochs as Plan
from .epochs import Epochs
from .errors import InvalidError
from .samplers import Sampler
from .sizes import count as _count
from .subject import Subject

if TYPE_CHECKING:
    import numpy as np  # whose import takes longer than all of this
    import numpy.typing as npt

    from .options import Array, DType, OnError, QueueStats, Uneven
    from .subject import Parts

#: A patch or a batch: arrays by the volumes' names, ``"location"``, and ``"subject"``.
Sample = dict[str, Any]
#: A function that changes a sample.
Transform = Callable[[Sample], Sample]
#: A subject, or a dictionary of its volumes and metadata.
SubjectLike = Union[Subject, Mapping[str, Any]]
#: The subjects of a queue.
Subjects = Union[Sequence[SubjectLike], "LazySubjects"]

#: What a forked process inherits and must neither use nor free: locks in it may never open.
_inherited: list[Plan] = []


class LazySubjects:
    """Subjects that are created on demand, for lists that are too long to create up front.

    Parameters
    ----------
    count : int
        Number of subjects.
    make : callable
        Makes the subject of a number from 0. It is called on the thread that iterates.
    key : str, default ""
        Text that changes with the subjects: a saved state with another key is refused.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> def make(index):
    ...     return voxpatch.Subject(ct=np.full((8, 8, 8), index), name=f"case {index}")
    >>> queue = voxpatch.Queue(voxpatch.LazySubjects(10**6, make), voxpatch.UniformSampler(4), 1)
    >>> next(iter(queue))["ct"].shape
    (1, 4, 4, 4)
    """

    def __init__(self, count: int, make: Callable[[int], SubjectLike], *, key: str = "") -> None:
        self.count = _count("count", count, most=sys.maxsize)
        self.make = make
        self.key = key

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SubjectLike:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(index)


class Queue:
    """Patches for training, an epoch for each iteration.

    Without `batch_size` each item is one sample, ``{"ct": array (C, Z, Y, X), ..., "location": int64 (6,), "subject":
    dict}``; with it a batch, ``{"ct": array (B, C, Z, Y, X), ..., "location": int64 (B, 6), "subject": list of dict}``. A
    location is the first voxel along z, y, x and one past the last; ``"subject"`` holds the metadata, with ``"name"`` and
    ``"index"``. Arrays own their memory; ``torch.from_numpy`` takes them as they are.

    The sequence is a function of `seed` and the epoch, the same for any number of threads and workers. Each iteration is the
    next epoch, unless :meth:`set_epoch` says which. An iterator that is exhausted or closed stays so.

    Parameters
    ----------
    subjects : sequence of Subject or dict, or LazySubjects
        The subjects; a dictionary makes one.
    sampler : Sampler
        The sampler that says where patches lie.
    samples_per_subject : int or sequence of int
        Patches of each subject in an epoch: a number, or one for each subject.
    max_length : int, default 300
        The most patches that wait.
    memory : int, default 268435456
        Bytes that waiting patches and decoded chunks may take together.
    threads : int, optional
        Threads that read ahead; one for each core if not given. With 0 the caller's own thread reads.
    shuffle_subjects, shuffle_patches : bool, default True
        Whether the order of subjects, and of patches within a window, is random.
    shuffle_window : int, optional
        Patches that are shuffled together. If not given, those of about 16 subjects, and at least 300: all patches of an
        epoch of up to 16 subjects. The whole epoch if it is as long as that; each subject is then in use from the first
        patch to the last, and chunks are reused less. See ``subjects_per_batch`` in :meth:`stats`.
    seed : int, default 0
        Random seed.
    rank, world_size : int, optional
        Rank of this process, and number of ranks; those of ``torch.distributed`` if not given. All ranks get equally many
        batches, or samples without `batch_size`.
    transform : callable, optional
        Changes each sample, on the caller's thread.
    batch_size : int, optional
        Samples of a batch.
    keep_batches : bool, default False
        Keep draws that belong together in one batch, see :class:`MixtureSampler`. `samples_per_subject` is then a multiple
        of `batch_size`.
    on_error : {"fail", "skip"}, default "fail"
        What to do with patches that cannot be read and subjects that cannot be opened: raise an error, or leave them out
        and keep the reasons in :meth:`stats`.
    uneven : {"repeat", "drop", "exact"}, default "repeat"
        What to do with patches that ranks cannot share evenly: repeat the first ones of the epoch, as torch's
        ``DistributedSampler`` does; leave out the last ones, as its ``drop_last``; or deliver each once, so that some ranks
        get one sample more.
    dtype : dtype or dict, optional
        Convert all images to a type, or those of a dictionary: ``{"ct": "float32"}``.
    same_images : bool, optional
        Refuse subjects with other images than the first, or with images of another type or number of channels, which do
        not fit into one batch. True if not given, unless there is a `transform`.

    Raises
    ------
    ValueError
        If options do not fit each other, or subjects are refused.

    Notes
    -----
    A torch ``DataLoader`` takes a queue as an iterable dataset. Use ``batch_size=None`` there if the queue makes batches, and
    leave its ``num_workers`` at 0: the queue's threads read in the same process, and nothing is copied between processes.
    Worker processes share the epoch; with `batch_size` here, batches even come in the same order.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> subjects = [voxpatch.Subject(ct=np.full((8, 8, 8), n, np.int16), age=60 + n) for n in range(3)]
    >>> queue = voxpatch.Queue(subjects, voxpatch.UniformSampler(4), samples_per_subject=5, batch_size=4, seed=1)
    >>> len(queue)
    4
    >>> for batch in queue:
    ...     print(batch["ct"].shape, batch["location"].shape, len(batch["subject"]))
    (4, 1, 4, 4, 4) (4, 6) 4
    (4, 1, 4, 4, 4) (4, 6) 4
    (4, 1, 4, 4, 4) (4, 6) 4
    (3, 1, 4, 4, 4) (3, 6) 3
    """

    def __init__(
        self,
        subjects: Subjects,
        sampler: Sampler,
        samples_per_subject: int | Sequence[int],
        *,
        max_length: int = 300,
        memory: int = 256 << 20,
        threads: int | None = None,
        shuffle_subjects: bool = True,
        shuffle_patches: bool = True,
        shuffle_window: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        transform: Transform | None = None,
        batch_size: int | None = None,
        keep_batches: bool = False,
        on_error: OnError = "fail",
        uneven: Uneven = "repeat",
        dtype: DType | Mapping[str, DType] | None = None,
        same_images: bool | None = None,
    ) -> None:
        if keep_batches and batch_size is None:
            raise InvalidError("keep_batches keeps batches together: give batch_size")
        if on_error not in ("fail", "skip"):
            raise InvalidError(f"on_error {on_error!r}: it is 'fail' or 'skip'")
        self.subjects = subjects
        self.sampler = sampler
        self.samples_per_subject = _counts(samples_per_subject)
        self.max_length = _count("max_length", max_length, least=1)
        self.memory = _count("memory", memory, least=1)
        self.threads = None if threads is None else _count("threads", threads)
        self.shuffle_subjects = shuffle_subjects
        self.shuffle_patches = shuffle_patches
        self.shuffle_window = None if shuffle_window is None else _count("shuffle_window", shuffle_window, least=1)
        self.seed = _count("seed", seed, most=2**64 - 1)
        self.rank, self.world_size = _ranks(rank, world_size)
        self.transform = transform
        self.batch_size = None if batch_size is None else _count("batch_size", batch_size, least=1)
        self.keep_batches = keep_batches
        self.on_error = on_error
        self.uneven = uneven
        self.dtype = dtype
        self.same_images = transform is None if same_images is None else bool(same_images)
        self._start()
        #: A number that differs between cohorts, found in the headers of all subjects.
        self._cohort: int | None = None
        self._length = self._opened().length()

    @property  # type: ignore[misc]
    def __class__(self) -> type[Queue]:
        # `isinstance(queue, IterableDataset)`, which a DataLoader asks, comes by here: whether torch was imported
        # before the queue was made or after makes no difference.
        _register()
        return type(self)

    def _start(self) -> None:
        """Set what belongs to this process alone."""
        self._epochs = Epochs()
        #: The process that made the plan, and the plan.
        self._plan: tuple[int, Plan] | None = None
        self._metadata: dict[int, dict[str, Any]] = {}
        #: The images of all subjects in the order in which they were first seen.
        self._order: dict[str, int] = {}
        self._current: weakref.ref[_Iterator] | None = None
        self._stats: QueueStats | None = None
        #: Where the running epoch is, or the last one was left, and whose turn it was.
        self._state: str | None = None
        self._turns = 1
        #: A state that a worker process was given, for its next iteration.
        self._own: tuple[int, str] | None = None
        #: Iterations that a worker process has begun.
        self._begun = 0
        #: The epoch and state of an iterator that resumed and of which nothing was taken.
        self._untouched: tuple[int, str] | None = None

    def _opened(self) -> Plan:
        """Return the plan, made anew in a forked process."""
        if self._plan is not None:
            process, plan = self._plan
            if process == os.getpid():
                return plan
            _inherited.append(plan)
        plan = Plan(
            self._list(),
            self.sampler._recipe(),
            self.samples_per_subject,
            self.seed,
            self.shuffle_window,
            (self.shuffle_subjects, self.shuffle_patches),
            (self.rank, self.world_size, self.batch_size or 1, self.uneven),
            self.batch_size if self.keep_batches else None,
        )
        self._plan = (os.getpid(), plan)
        return plan

    def _list(self) -> SubjectList:
        if isinstance(self.subjects, LazySubjects):
            return SubjectList.made(len(self.subjects), _Maker(weakref.ref(self)), self.subjects.key)
        all_of_them = [_subject(given) for given in self.subjects]
        self._metadata = {index: _metadata(index, subject) for index, subject in enumerate(all_of_them)}
        parts = [self._parts(subject) for subject in all_of_them]
        unknown = sorted(set(self.dtype) - set(self._order)) if isinstance(self.dtype, Mapping) else []
        if unknown and all_of_them:
            raise InvalidError(f"dtype for {', '.join(unknown)}: the subjects have {', '.join(self._order)}")
        if self._cohort is None:
            self._cohort = _survey(parts, _cores(), self.same_images)
        names = Counter(subject.name for subject in all_of_them)
        known_by = [_identity(subject, names[subject.name] == 1) for subject in all_of_them]
        return SubjectList.known(parts, repr([self._cohort, known_by]))

    def _make(self, index: int) -> Parts:
        subject = _subject(self.subjects[index])
        self._metadata[index] = _metadata(index, subject)
        return self._parts(subject)

    def _parts(self, subject: Subject) -> Parts:
        """Return a subject as the compiled half opens it, its images in the order of the first subject's."""
        name, images, matching = subject._parts(self.dtype)
        for image in images:
            self._order.setdefault(image[0], len(self._order))
        return name, sorted(images, key=lambda image: self._order[image[0]]), matching

    def __len__(self) -> int:
        """Return how many samples, or batches with `batch_size`, an epoch has for this rank."""
        patches, batches = self._length
        return patches if self.batch_size is None else batches

    def __iter__(self) -> Iterator[Sample]:
        plan = self._opened()
        worker = _worker()
        if worker is None:
            key, turn, cores = None, (0, 1), _cores()
        else:
            index, of, seed = worker
            key, turn, cores = f"{seed}:{self._begun}", (index, of), max(1, _cores() // of)
            self._begun += 1
        own, self._own = self._own, None
        if own is not None:
            turn = (0, turn[1])
        if worker is None and self._untouched is not None:
            # torchdata makes an iterator of the state first, and then another one if the epoch had ended.
            self._epochs.load(*self._untouched)
        epoch, state = self._epochs.claim(key, own)
        self._untouched = (epoch, state) if worker is None and state is not None else None
        threads = cores if self.threads is None else self.threads
        skip = self.on_error == "skip"
        contiguous = self.batch_size is not None and self.transform is None
        loader = plan.start(
            epoch,
            state,
            turn,
            threads,
            self.max_length,
            self.memory,
            skip,
            contiguous,
            same_images=self.same_images,
            stay_in_epoch=worker is not None,
        )
        self._turns = turn[1]
        self._state = loader.state()
        iterator = _Iterator(self, loader)
        self._current = weakref.ref(iterator)
        return iterator

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._epochs.next

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in a DataLoader's worker processes too.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0. A state that was loaded and is of this epoch stays.
        """
        number = _count("epoch", epoch)
        self._untouched = None
        self._epochs.set(number)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the running epoch, after the item that was delivered last.

        With several ranks, save it where all have taken equally many batches; the state of one is then that of all. In a
        DataLoader with worker processes each worker has a state of its own, which torchdata's ``StatefulDataLoader``
        gathers.

        Returns
        -------
        dict
            A few numbers and a short text, which ``torch.save`` and ``json`` take.
        """
        pending = self._own[1] if self._own is not None else self._epochs.resume
        state = pending if pending is not None else self._state
        if state is not None and _worker() is None and self._turns == 1:
            state = self._opened().settled(state)
        epoch = self.epoch if state is None else _epoch_of(state)
        return {"version": 1, "epoch": epoch, "loader": state, "turns": self._turns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume with the next iteration where a state was saved.

        Subjects, seed and plan must be the same; the numbers of threads and ranks may differ. A state that was saved after
        the last item of an epoch resumes with the next epoch. With worker processes, a ``StatefulDataLoader`` whose state
        was saved after the last batch, but before its loop had ended, first gives the rest of that epoch: an empty round.

        Subjects are the same if their names, images, shapes, channels and types are: give each :class:`Subject` a ``name``,
        and their files may have moved. Without a name their paths count.

        Parameters
        ----------
        state : dict
            What :meth:`state_dict` returned.

        Raises
        ------
        ValueError
            If the state is of other subjects, another seed or another plan.
        """
        if state.get("version") != 1:
            raise InvalidError(f"a state of version {state.get('version')!r}: 1 is known here")
        loader = state["loader"]
        if loader is None:
            self._epochs.set(int(state["epoch"]))
            return
        epoch = _epoch_of(loader)
        worker = _worker()
        turns = int(state.get("turns", 1))
        if turns != 1 and (worker is None or worker[1] != turns):
            raise InvalidError(
                f"the state was saved by one of {turns} worker processes: load it with as many of them"
            )
        self._untouched = None
        if worker is None:
            loader = self._opened().settled(loader)
            epoch = _epoch_of(loader)
        if worker is not None:
            self._own, self._turns = (epoch, loader), turns
        else:
            self._epochs.load(epoch, loader)

    def stats(self) -> QueueStats:
        """Return the statistics of the running epoch, or of the last one.

        Returns
        -------
        dict
            ``delivered`` and ``left_out`` patches, with ``reasons``; ``waited_seconds``; ``chunks`` that were decoded,
            ``bytes`` that were read, and ``copies`` of chunks into patches; ``subjects_per_batch``, the mean number of
            different subjects in a batch, or in 8 samples in a row; patches ``ready`` and ``in_progress``.

        Raises
        ------
        ValueError
            If no epoch was begun.
        """
        current = None if self._current is None else self._current()
        if current is not None:
            self._stats = current._loader.stats()
        if self._stats is None:
            raise InvalidError("no epoch was begun: iterate over the queue first")
        return self._stats

    def __getitem__(self, index: object) -> Sample:
        raise TypeError("a queue has no items to pick: iterate over it")

    def __reduce__(self) -> tuple[Any, ...]:
        own = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        return _rebuild, (type(self), own, self._epochs, self._length, self._cohort)

    def __repr__(self) -> str:
        return (
            f"<voxpatch.Queue of {len(self.subjects)} subjects, {self.sampler!r}, {len(self)} "
            f"{'samples' if self.batch_size is None else 'batches'} an epoch>"
        )


class _Iterator(Iterator[Sample]):
    """An iterator over one epoch."""

    def __init__(self, queue: Queue, loader: EpochLoader) -> None:
        # No reference to itself: its threads end with the last reference of others.
        self._queue = queue
        self._loader = loader

    def __next__(self) -> Sample:
        queue = self._queue
        queue._untouched = None
        if queue.batch_size is None:
            found = self._sample()
        elif queue.transform is None:
            found = self._batch()
        else:
            found = self._collated()
        queue._state = self._loader.state()
        if found is None:
            self.close()  # from now on the loader has nothing more
            raise StopIteration
        return found

    def _sample(self) -> Sample | None:
        found = self._loader.sample()
        return None if found is None else self._changed(*found)

    def _batch(self) -> Sample | None:
        found = self._loader.batch()
        if found is None:
            return None
        batch: Sample = found[0]
        batch["location"] = found[1]
        batch["subject"] = [self._queue._metadata[index] for index in found[2]]
        return batch

    def _collated(self) -> Sample | None:
        found = self._loader.samples()
        if found is None:
            return None
        return collate([self._changed(*sample) for sample in found])

    def _changed(self, sample: Sample, location: npt.NDArray[np.int64], subject: int) -> Sample:
        sample["location"] = location
        sample["subject"] = self._queue._metadata[subject]
        transform = self._queue.transform
        return sample if transform is None else transform(sample)

    def close(self) -> None:
        """End the threads that read ahead."""
        self._loader.close()
        self._queue._stats = self._loader.stats()

    def __del__(self) -> None:
        loader = getattr(self, "_loader", None)
        if loader is not None:
            self._queue._stats = loader.stats()


class _Maker:
    """A function that makes the subjects of a queue without keeping it alive."""

    def __init__(self, queue: weakref.ref[Queue]) -> None:
        self._queue = queue

    def __call__(self, index: int) -> Parts:
        queue = self._queue()
        if queue is None:
            raise InvalidError("the queue is gone")
        return queue._make(index)


def collate(samples: list[Sample]) -> Sample:
    """Return a batch of samples: arrays and tensors stacked, anything else in a list."""
    import numpy as np

    if not samples:
        return {"location": np.empty((0, 6), np.int64), "subject": []}
    batch: Sample = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, np.ndarray):
            batch[key] = np.stack(_alike(key, values, samples))
        elif "torch" in sys.modules and isinstance(first, sys.modules["torch"].Tensor):
            batch[key] = sys.modules["torch"].stack(values)
        else:
            batch[key] = values
    return batch


def _alike(key: str, values: list[Array], samples: list[Sample]) -> list[Array]:
    """Return arrays that have one shape and type; numpy would silently find a type for all."""
    described = [(getattr(value, "shape", None), str(getattr(value, "dtype", type(value)))) for value in values]
    for sample, other in zip(samples, described):
        if other != described[0]:
            first, second = (_name_of(own) for own in (samples[0], sample))
            raise InvalidError(
                f"{first} and {second} do not fit into one batch: {key!r} of the first is {described[0]}, of the "
                f"second {other}: have the transform make them alike"
            )
    return values


def _name_of(sample: Sample) -> str:
    subject = sample.get("subject")
    return str(subject["name"]) if isinstance(subject, Mapping) and "name" in subject else "a sample"


def _identity(subject: Subject, unique: bool) -> tuple[object, ...] | list[object]:
    """Identify a subject when a state is loaded: by its own name, or by the places of its volumes."""
    chosen = [
        (name, getattr(at, "_selection", None), str(getattr(at, "values", subject._values_of(name))))
        for name, at in subject.volumes.items()
    ]
    if unique and "name" in subject.metadata:
        return subject.name, chosen
    return [str(getattr(at, "path", at)) for at in subject.volumes.values()], chosen


def _subject(given: SubjectLike) -> Subject:
    if isinstance(given, Subject):
        return given
    if isinstance(given, Mapping):
        return Subject(**given)
    raise InvalidError(f"{given!r} is not a subject: give Subject(...) or a dictionary of its volumes")


def _metadata(index: int, subject: Subject) -> dict[str, Any]:
    return {**subject.metadata, "name": subject.name, "index": index}


def _counts(given: int | Sequence[int]) -> int | list[int]:
    """Return the samples of each subject: one number for all, or a list."""
    if isinstance(given, int) or getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__"):
        return _count("samples_per_subject", given)
    if not hasattr(given, "__len__"):
        raise InvalidError(f"samples_per_subject {given!r}: give a whole number, or a list with one for each subject")
    return [_count("samples_per_subject", one) for one in given]


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InvalidError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        ranks = _count("world_size", world_size, least=1)
        return _count("rank", rank, most=ranks - 1), ranks
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _worker() -> tuple[int, int, int] | None:
    """Return the number of this DataLoader worker, how many there are, and the seed of their round."""
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return None if info is None else (info.id, info.num_workers, info.seed - info.id)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _epoch_of(state: str) -> int:
    for word in state.split():
        if word.startswith("epoch="):
            return int(word.removeprefix("epoch="))
    raise InvalidError(f"{state!r} is not a state of a queue")


def _register() -> None:
    """Make queues iterable datasets for torch, once it is imported."""
    dataset = getattr(sys.modules.get("torch.utils.data"), "IterableDataset", None)
    if dataset is not None and not issubclass(Queue, dataset):
        dataset.register(Queue)


def _rebuild(
    cls: type[Queue], own: dict[str, Any], epochs: Epochs, length: tuple[int, int], cohort: int | None
) -> Queue:
    queue = object.__new__(cls)
    queue.__dict__.update(own)
    queue._start()
    queue._epochs = epochs
    queue._length = length
    queue._cohort = cohort
    return queue
