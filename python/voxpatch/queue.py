"""The training queue: patches of many subjects, read ahead by threads, in a seeded order."""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union

from ._voxpatch import EpochLoader, SubjectList, _survey
from ._voxpatch import Epochs as Plan
from .augment import RandomAffine, RandomElastic
from .epochs import Epochs
from .errors import InvalidError
from .samplers import Sampler
from .sizes import count as _count
from .sizes import normalization, probability, three
from .sizes import size as _size
from .subject import Subject
from .work import Handed, Line, Pinning, Task, bfloat16, check_torch, is_bfloat16

if TYPE_CHECKING:
    import numpy as np  # whose import takes longer than all of this
    import numpy.typing as npt

    from .options import Array, DType, Normalize, OnError, QueueStats, Size, Uneven
    from .subject import Parts

#: A patch or a batch: arrays by the volumes' names, ``"location"``, and ``"subject"``.
Sample = dict[str, Any]
#: A function that changes a sample; it may also take an ``rng`` or a ``generator``.
Transform = Callable[..., Sample]
#: A subject, or a dictionary of its volumes and metadata.
SubjectLike = Union[Subject, Mapping[str, Any]]
#: The subjects of a queue.
Subjects = Union[Sequence[SubjectLike], "LazySubjects"]

#: One in this many bytes of the memory is for samples under way to and from a transform.
LINE_SHARE = 4

#: An array or a tensor.
Turned = TypeVar("Turned")

#: What a forked process inherits and must neither use nor free: locks in it may never open.
_inherited: list[Plan] = []


#: The metadata of this many lazy subjects is kept, next to that of subjects with patches that wait.
_METADATA = 4096


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
        Bytes that waiting patches and decoded chunks may take together. Chunks stay in memory between epochs. Gaps between
        them may take a seventh more.
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
        Changes each sample: a function of the sample that returns it or another dictionary. One with a parameter ``rng``
        gets a ``numpy.random.Generator`` of its own for each sample, one with a parameter ``generator`` a
        ``torch.Generator``, see the notes.
    transform_threads : int, default 1
        Threads that call `transform`. With 1, calls do not overlap each other, but they overlap with the caller's work. With
        more, several calls run at once, so the transform must be safe for that. With 0 the caller's own thread calls.
    flip : float or (float, float, float), default 0.0
        Probability of a flip along z, y, x: one for all three, or three. All images of a sample get the same.
    permute : float, default 0.0
        Probability of a random order of the axes.
    rotate : float, default 0.0
        Probability of a random rotation by multiples of 90 degrees, which never mirrors.
    crop : int or (int, int, int), optional
        Voxels of a random part of each drawn patch, which is delivered instead.
    affine : RandomAffine, optional
        Random rotations, scales, shears and translations, through which patches are read.
    elastic : RandomElastic, optional
        Random deformations, through which patches are read.
    normalize : {"zscore", "zscore:nonzero"}, (float, float), Percentile, MeanStd, NnunetCt, Within, list or dict, optional
        Normalization, as that of :func:`predict`, of the only image, or of those of a dictionary: ``{"ct": (-1000, 400)}``.
        They are then float32, unless `dtype` says otherwise. The mask of a :class:`Within` may be the name of another volume
        of the subject.
    pin_memory : bool, default False
        Deliver torch tensors in page-locked memory, which are copied to a GPU faster, and in the background with
        ``tensor.to(device, non_blocking=True)``. Without a CUDA device it warns, and tensors are in ordinary memory.
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
        Convert all images to a type, or those of a dictionary: ``{"ct": "float32"}``. Images of ``"bfloat16"``, which numpy
        does not have, are torch tensors. A value that the type cannot hold is an error.
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

    The native options run on the reading threads: first `crop`, then `affine` and `elastic`, `normalize`, `dtype`, `flip`,
    `permute`, `rotate`, then a `transform`. With `flip`, `permute` or `rotate`, samples have an ``"orientation"``, int64
    (3,): the axis of the volume, 1 for z, 2 for y, 3 for x, that each axis of the patch runs along, negative where it runs
    backwards. :func:`turn_back` undoes it. ``"location"`` is the region in the volume.

    With `affine` or `elastic`, each image is interpolated once, as the subject's `interpolation` says, which integers need
    because they may be labels. Only the box that the patch needs is read, and what is beyond the volume is its `padding`. A
    volume that :func:`open` or `grid` resamples is interpolated twice. Values keep the volume's type: integers are rounded
    before they are normalized or cast. Samples have an ``"affine"``, float64 (4, 4): the matrix from voxel indices (x, y, z, 1)
    of the patch to mm in RAS+, with flips and new orders of the axes. With `elastic` they have a ``"displacement"``, float64
    (n, n, n, 3), the displacements of the control points along z, y, x in voxels of the patch: voxel v shows the place of the
    ``"affine"`` at v + d(v), d the spline that :class:`RandomElastic` describes. ``"location"`` is the region before the map.

    Random numbers are a function of (`seed`, epoch, n), n the place of the sample in the epoch: a transform's ``rng`` is
    ``numpy.random.default_rng([seed, epoch, n])``, and its ``generator`` is seeded by the first ``integers(2**63)`` of that.
    So a transform that takes its random numbers from there gives the same samples for any number of threads and workers, and
    after resuming. Threads help transforms that release the interpreter, as most of numpy and torch does; of a transform in
    pure Python, which does not, only a DataLoader's processes run several at once, at the price of a copy of each batch.

    An error in a transform is raised in the place of its sample, with a note that has the sample's place, the epoch, the
    subject and the location. Samples under way to and from a transform, and page-locked copies, take up to a quarter of
    `memory`.

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
        transform_threads: int = 1,
        flip: float | Sequence[float] = 0.0,
        permute: float = 0.0,
        rotate: float = 0.0,
        crop: Size | None = None,
        affine: RandomAffine | None = None,
        elastic: RandomElastic | None = None,
        normalize: Normalize | Mapping[str, Normalize] | None = None,
        pin_memory: bool = False,
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
        self.transform_threads = _count("transform_threads", transform_threads)
        self.flip = _probabilities("flip", flip)
        self.permute = probability("permute", permute)
        self.rotate = probability("rotate", rotate)
        self.crop = None if crop is None else _size("crop", crop)
        if self.crop is not None and any(own > whole for own, whole in zip(self.crop, sampler.patch_size)):
            raise InvalidError(f"crop {crop!r}: the sampler's patch_size is {sampler.patch_size}; give a smaller crop")
        self.affine, self.elastic = affine, elastic
        for name, given, kind in (("affine", affine, RandomAffine), ("elastic", elastic, RandomElastic)):
            if given is not None and not isinstance(given, kind):
                raise InvalidError(f"{name} is a {type(given).__name__}: give a voxpatch.{kind.__name__}")
        self.normalize = normalize
        self.pin_memory = bool(pin_memory)
        self.batch_size = None if batch_size is None else _count("batch_size", batch_size, least=1)
        self.keep_batches = keep_batches
        self.on_error = on_error
        self.uneven = uneven
        self.dtype = dtype
        types = dtype.values() if isinstance(dtype, Mapping) else [dtype]
        if pin_memory:
            check_torch("pin_memory")
        if any(is_bfloat16(one) for one in types):
            check_torch("dtype bfloat16")
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
        self._metadata: dict[int, Sample] = {}
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
        for option, given in (("dtype", self.dtype), ("normalize", self.normalize)):
            unknown = sorted(set(given) - set(self._order)) if isinstance(given, Mapping) else []
            if unknown and all_of_them:
                raise InvalidError(f"{option} for {', '.join(unknown)}: the subjects have {', '.join(self._order)}")
        if self._cohort is None:
            self._cohort = _survey(parts, _cores(), self.same_images)
        names = Counter(subject.name for subject in all_of_them)
        known_by = [_identity(subject, names[subject.name] == 1) for subject in all_of_them]
        return SubjectList.known(parts, repr([self._cohort, known_by]))

    def _make(self, index: int) -> Parts:
        subject = _subject(self.subjects[index])
        self._metadata.pop(index, None)
        self._metadata[index] = _metadata(index, subject)
        # Only subjects with patches that wait are needed, but a list may have millions.
        if len(self._metadata) > 2 * self.max_length + _METADATA:
            del self._metadata[next(iter(self._metadata))]
        return self._parts(subject)

    def _parts(self, subject: Subject) -> Parts:
        """Return a subject as the compiled half opens it, its images in the order of the first subject's."""
        name, images, matching = subject._parts(self.dtype, _normalizations(self.normalize))
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
        if self.pin_memory and worker is not None:
            raise InvalidError("pin_memory in a worker process of a DataLoader: give pin_memory to the DataLoader instead")
        has_line = self.transform is not None or self.pin_memory
        line_memory = self.memory // LINE_SHARE if has_line and self.transform_threads else 0
        loader = plan.start(
            epoch,
            state,
            turn,
            threads,
            self.max_length,
            max(1, self.memory - line_memory),
            skip,
            contiguous,
            same_images=self.same_images,
            stay_in_epoch=worker is not None,
            augment=(
                (self.flip, self.permute, self.rotate, self.crop),
                None if self.affine is None else self.affine._parts(),
                None if self.elastic is None else self.elastic._parts(),
            ),
        )
        self._turns = turn[1]
        self._state = loader.state()
        line = Line(self.transform_threads, self.batch_size or 1, line_memory) if has_line else None
        iterator = _Iterator(self, loader, epoch, line, inline=threads == 0)
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
            ``delivered`` and ``left_out`` patches, with ``reasons``; ``slow`` images, which should be converted first:
            their chunks are far larger than a patch along some axis; ``waited_seconds``; ``chunks`` that were decoded,
            ``bytes`` that were read, and ``copies`` of chunks into patches; ``subjects_per_batch``, the mean number of
            different subjects in a batch, or in 8 samples in a row; patches ``ready`` and ``in_progress``.

        Raises
        ------
        ValueError
            If no epoch was begun.
        """
        current = None if self._current is None else self._current()
        if current is not None:
            self._stats = current.stats()
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

    def __init__(self, queue: Queue, loader: EpochLoader, epoch: int, line: Line | None, *, inline: bool) -> None:
        # No reference to itself: its threads end with the last reference of others.
        self._queue = queue
        self._loader = loader
        self._line = line
        self._inline = inline
        transform = queue.transform
        self._each = _unchanged if transform is None else Handed(transform, queue.seed, epoch)
        self._pin = Pinning() if queue.pin_memory else None
        types = queue.dtype
        #: Images that are tensors of bfloat16; all of them if it is True.
        self._bfloat16: bool | set[str] = (
            {name for name, dtype in types.items() if is_bfloat16(dtype)} if isinstance(types, Mapping) else is_bfloat16(types)
        )
        self._turned = max(*queue.flip, queue.permute, queue.rotate) > 0
        self._mapped = queue.affine is not None or queue.elastic is not None

    def __next__(self) -> Sample:
        queue = self._queue
        queue._untouched = None
        if self._line is not None:
            return self._worked(self._line)
        found = self._sample(True) if queue.batch_size is None else self._batch(True)
        queue._state = self._loader.state()
        if not found:
            self.close()  # from now on the loader has nothing more
            raise StopIteration
        return found[0] if isinstance(found, tuple) else found

    def _worked(self, line: Line) -> Sample:
        """Return the next item that went through the line."""
        task = line.next(self._begun, self._inline)
        if task is None:
            if not line.closed:
                self._queue._state = self._loader.state()
                self.close()
            raise StopIteration
        if task.error is not None:
            raise task.error
        self._queue._state = task.state
        assert task.result is not None
        return task.result

    def _begun(self, wait: bool) -> Task | None:
        """Take the loader's next item, and start its work."""
        queue, line, pin = self._queue, self._line, self._pin
        assert line is not None
        try:
            given, collated = self._given(wait)
        except Exception as error:
            return Task.failed(error)
        if given is None:
            return None
        count = len(given) if collated or queue.batch_size is None else len(given[0][0]["location"])
        task = Task(self._loader.state(), count)
        each: Callable[[Sample, int], Sample] = self._each if collated or queue.batch_size is None else _unchanged

        def join(samples: list[Sample]) -> Sample:
            item = collate(samples) if collated else samples[0]
            return item if pin is None else pin(item)

        task.start(line.pool, given, each, join)
        return task

    def _given(self, wait: bool) -> tuple[list[tuple[Sample, int]] | None, bool]:
        """Return the samples of the loader's next item and their places, if any, and whether `collate` should join them."""
        queue = self._queue
        if queue.batch_size is None:
            sample = self._sample(wait)
            return ([sample] if sample else None), False
        if queue.transform is None:
            batch = self._batch(wait)
            return ([(batch, 0)] if batch else None), False
        found = self._loader.samples(wait)
        if found is None or found is False:
            return None, True
        return [self._named(*sample) for sample in found], True

    def _sample(self, wait: bool) -> tuple[Sample, int] | None:
        found = self._loader.sample(wait)
        return self._named(*found) if found else None

    def _batch(self, wait: bool) -> Sample | None:
        found = self._loader.batch(wait)
        if not found:
            return None
        batch, location, subjects, orientation, affine, displacement = found
        names = [self._queue._metadata[index] for index in subjects]
        return self._completed(batch, location, names, orientation, affine, displacement)

    def _named(
        self,
        sample: Sample,
        location: npt.NDArray[np.int64],
        subject: int,
        orientation: npt.NDArray[np.int64],
        affine: npt.NDArray[np.float64],
        displacement: npt.NDArray[np.float64] | None,
        place: int,
    ) -> tuple[Sample, int]:
        metadata = self._queue._metadata[subject]
        return self._completed(sample, location, metadata, orientation, affine, displacement), place

    def _completed(
        self,
        item: Sample,
        location: npt.NDArray[np.int64],
        subject: object,
        orientation: npt.NDArray[np.int64],
        affine: npt.NDArray[np.float64],
        displacement: npt.NDArray[np.float64] | None,
    ) -> Sample:
        if self._bfloat16:
            names = list(item) if self._bfloat16 is True else self._bfloat16
            item.update({name: bfloat16(item[name]) for name in names if name in item})
        item["location"] = location
        if self._turned:
            item["orientation"] = orientation
        if self._mapped:
            item["affine"] = affine
        if displacement is not None:
            item["displacement"] = displacement
        item["subject"] = subject
        return item

    def stats(self) -> QueueStats:
        """Return the statistics, in which what is under way was not delivered yet."""
        stats = self._loader.stats()
        stats["delivered"] -= 0 if self._line is None else sum(task.count for task in self._line.tasks)
        return stats

    def close(self) -> None:
        """End the threads that read ahead."""
        stats = self.stats()
        if self._line is not None:
            self._line.close()
        self._loader.close()
        self._queue._stats = stats

    def __del__(self) -> None:
        if hasattr(self, "_turned"):
            self._queue._stats = self.stats()
            if self._line is not None:
                self._line.close()


def _unchanged(sample: Sample, place: int) -> Sample:
    return sample


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


def _metadata(index: int, subject: Subject) -> Sample:
    return {**subject.metadata, "name": subject.name, "index": index}


def _counts(given: int | Sequence[int]) -> int | list[int]:
    """Return the samples of each subject: one number for all, or a list."""
    if isinstance(given, int) or getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__"):
        return _count("samples_per_subject", given)
    if not hasattr(given, "__len__"):
        raise InvalidError(f"samples_per_subject {given!r}: give a whole number, or a list with one for each subject")
    return [_count("samples_per_subject", one) for one in given]


def _probabilities(name: str, given: float | Sequence[float]) -> tuple[float, float, float]:
    z, y, x = (probability(name, one) for one in three(name, given))
    return z, y, x


def _normalizations(given: Normalize | Mapping[str, Normalize] | None) -> dict[str, str] | str:
    """Return the normalization of the only image, or those of a dictionary."""
    if isinstance(given, Mapping):
        return {name: normalization(one) for name, one in given.items()}
    return normalization(given)


def turn_back(array: Turned, orientation: Sequence[int] | Array) -> Turned:
    """Turn a patch, or what a network made of it, to the axes of the volume.

    Parameters
    ----------
    array : array or tensor (..., Z, Y, X)
        The patch; of a batch, its first axis is that of the samples.
    orientation : int (3,) or (B, 3)
        The ``"orientation"`` of the sample, or of the batch.

    Returns
    -------
    array or tensor
        For a sample a view of the patch, for a batch a copy.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.arange(8**3).reshape(8, 8, 8)
    >>> queue = voxpatch.Queue([{"ct": scan}], voxpatch.UniformSampler(4), 1, flip=0.5, rotate=1.0)
    >>> sample = next(iter(queue))
    >>> z, y, x = sample["location"][:3]
    >>> bool((voxpatch.turn_back(sample["ct"], sample["orientation"])[0] == scan[z:z+4, y:y+4, x:x+4]).all())
    True
    """
    given: Any = array
    if getattr(orientation, "ndim", 1) == 2:
        turned = [turn_back(one, own) for one, own in zip(given, orientation)]
        if hasattr(given, "permute"):
            return sys.modules["torch"].stack(turned)  # type: ignore[no-any-return]
        import numpy as np

        return np.stack(turned)  # type: ignore[return-value]
    axes = [int(axis) for axis in orientation]
    if sorted(abs(axis) for axis in axes) != [1, 2, 3] or given.ndim < 3:
        raise InvalidError(f"orientation {axes} of {given.ndim} axes: give that of the sample, and its patch (..., Z, Y, X)")
    before = given.ndim - 3
    backwards = (Ellipsis, *(slice(None, None, -1 if axis < 0 else 1) for axis in axes))
    order = [*range(before), *(before + [abs(axis) for axis in axes].index(axis) for axis in (1, 2, 3))]
    if hasattr(given, "permute"):
        turned = given.flip([before + at for at, axis in enumerate(axes) if axis < 0])
        return turned.permute(order)  # type: ignore[no-any-return]
    return given[backwards].transpose(order)  # type: ignore[no-any-return]


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
