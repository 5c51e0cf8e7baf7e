"""TorchIO 1.2's patch classes, with voxpatch's reading, drawing and blending behind them.

``import voxpatch.compat.torchio as vtio`` and write ``vtio.Queue`` where ``tio.Queue`` was: names, arguments,
return types and the order of axes (x, y, z) are TorchIO's, subjects and images are TorchIO's own. What is
different:

- Images that are files (.nii, .img, .nrrd, .mha, ... and Zarr, not .gz) are never loaded: a patch reads its box.
  Others are loaded as usual, and copied once.
- Random places come from the library, seeded by torch's generator (``torch.manual_seed``).
- :class:`Queue` reads ahead with threads if the dataset has no transform; with one, subjects are loaded and
  transformed as TorchIO does, and only drawing is ours.
- :class:`GridAggregator` may write to disk (``output=``), does not depend on the order of arrival, refuses
  patches that come twice or not at all, and averages integers as float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio

if not tio.__version__.startswith("1."):
    raise ImportError(f"torchio {tio.__version__} has other classes than 1.x: see voxpatch.compat.torchio2")

from torch.utils.data import get_worker_info
from torchio.data.image import Image
from torchio.data.sampler.sampler import RandomSampler as _RandomSampler

import voxpatch
from voxpatch._voxpatch import Epochs, Grid, SubjectList
from voxpatch.errors import InvalidError

from ._torchio import Source, reversed_axes, swapped, turned

#: Overlap modes of :class:`voxpatch.GridAggregator`.
_OVERLAP_MODES = ("crop", "average", "hann", "gaussian", "linear", "nnunet", "monai")

#: Padding modes that need no whole image.
_LAZY = ("constant", "edge", "reflect", "wrap")


class PatchSampler(tio.data.PatchSampler):
    """The base of samplers, as ``torchio.data.PatchSampler``: patches are read, not cut from loaded images."""

    def crop(self, subject: tio.Subject, index_ini: Any, patch_size: Any) -> tio.Subject:
        """Read a patch, as TorchIO crops it."""
        start = [int(n) for n in index_ini]
        return Source(subject).read([*start, *(a + int(b) for a, b in zip(start, patch_size))], 0.0)


class RandomSampler(PatchSampler, _RandomSampler):
    """The base of random samplers, as ``torchio.data.RandomSampler``."""

    def sampler_for(self, subject: tio.Subject) -> voxpatch.Sampler | None:
        """Return the sampler of ours that draws from this subject as this one does, if there is one."""
        return None

    def _generate_patches(self, subject: tio.Subject, num_patches: int | None = None) -> Iterator[tio.Subject]:
        sampler = self.sampler_for(subject)
        if sampler is None:
            return super()._generate_patches(subject, num_patches)
        return self._drawn(subject, sampler, num_patches)

    def _drawn(self, subject: tio.Subject, sampler: voxpatch.Sampler, count: int | None) -> Iterator[tio.Subject]:
        source = Source(subject)
        try:
            subjects = SubjectList.known([source.ours()._parts()], "")
            plan = Epochs(
                subjects, sampler._recipe(), 2**40 if count is None else count, _seed(), 1, (False, False), (0, 1, 1, "exact"), None
            )
            loader = plan.start(0, None, (0, 1), 0, 1, 1 << 30, False)
            while found := loader.sample():
                arrays, location, *_ = found
                yield source.patch(arrays, turned(location.tolist()))
        except InvalidError as error:
            if "has the weight -" in str(error):
                raise ValueError(f"Negative values in the probability map: {error}") from error
            raise RuntimeError(str(error)) from error


def _seed() -> int:
    return int(torch.randint(2**62, (1,)).item())


class UniformSampler(RandomSampler, tio.data.UniformSampler):
    """Patches from anywhere, as ``torchio.UniformSampler``."""

    def sampler_for(self, subject: tio.Subject) -> voxpatch.Sampler | None:
        """Return a uniform sampler of ours."""
        return voxpatch.UniformSampler(reversed_axes(self.patch_size))


class WeightedSampler(RandomSampler, tio.data.WeightedSampler):
    """Patches drawn by a map, as ``torchio.WeightedSampler``: the map is read once, in blocks, and not kept."""

    def sampler_for(self, subject: tio.Subject) -> voxpatch.Sampler | None:
        """Return a sampler of ours with the same map."""
        image = self.get_probability_map_image(subject)
        return voxpatch.WeightedSampler(reversed_axes(self.patch_size), _name_of(image, subject))


class LabelSampler(RandomSampler, tio.data.LabelSampler):
    """Patches drawn by label, as ``torchio.data.LabelSampler``: the map is read once, in blocks, and not kept."""

    def sampler_for(self, subject: tio.Subject) -> voxpatch.Sampler | None:
        """Return a sampler of ours with the same map, unless it has several channels and no probabilities."""
        image = self.get_probability_map_image(subject)
        shares = self.label_probabilities_dict
        if shares is None and image.shape[0] > 1:
            return None  # TorchIO takes the first channel for the map
        return voxpatch.LabelSampler(reversed_axes(self.patch_size), _name_of(image, subject), shares)


def _name_of(image: Image, subject: tio.Subject) -> str:
    return next(name for name, other in subject.get_images_dict(intensity_only=False).items() if other is image)


class GridSampler(PatchSampler, tio.data.GridSampler):
    """Patches of a grid, as ``torchio.GridSampler``: only patches that hang over are padded."""

    def __init__(
        self, subject: tio.Subject, patch_size: Any, patch_overlap: Any = (0, 0, 0), padding_mode: Any = None
    ) -> None:
        tio.data.PatchSampler.__init__(self, patch_size)
        self.patch_overlap = np.array(tio.utils.to_tuple(patch_overlap, length=3))
        self.padding_mode = padding_mode
        is_lazy = padding_mode is None or isinstance(padding_mode, (int, float)) or padding_mode in _LAZY
        self.subject = subject if is_lazy else self._pad(subject)
        #: Voxels that are padded when a patch is read, at each face, x, y, z.
        self.border = self.patch_overlap // 2 if is_lazy and padding_mode is not None else np.zeros(3, int)
        self._source: Source | None = None
        shape = np.array(self.subject.spatial_shape) + 2 * self.border
        sizes = [tuple(int(n) for n in three) for three in (shape, self.patch_size, self.patch_overlap)]
        self._parse_sizes(*sizes)
        self.locations = self._get_patches_locations(*sizes)

    def __getitem__(self, index: int) -> tio.Subject:
        return self._read(self.locations[index])

    def _read(self, location: np.ndarray[Any, Any]) -> tio.Subject:
        if self._source is None:
            self._source = Source(self.subject)
        inside = location - np.tile(self.border, 2)
        return self._source.read(inside.tolist(), self.padding_mode if self.border.any() else "edge", self.border)

    def _generate_patches(self, subject: tio.Subject, num_patches: int | None = None) -> Iterator[tio.Subject]:
        if num_patches is not None:
            raise ValueError("GridSampler does not support limiting the number of patches")
        sampler = self
        if subject is not self.subject:
            sampler = GridSampler(subject, tuple(self.patch_size.tolist()), self.patch_overlap, self.padding_mode)
        return sampler._all()

    def _all(self) -> Iterator[tio.Subject]:
        for location in self.locations:
            yield self._read(location)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}


class GridAggregator(tio.data.GridAggregator):
    """The blended output, as ``torchio.GridAggregator``.

    ``output=`` and further options are those of :class:`voxpatch.GridAggregator`, and ``overlap_mode`` may be any `blend` that
    it has.
    """

    def __init__(
        self, sampler: tio.data.GridSampler, overlap_mode: str = "crop", downsampling_factor: int = 1, **options: Any
    ) -> None:
        if isinstance(overlap_mode, str) and overlap_mode.partition(":")[0] not in _OVERLAP_MODES:
            raise InvalidError(f"Overlap mode {overlap_mode!r}: it is one of {', '.join(_OVERLAP_MODES)}")
        self.overlap_mode = overlap_mode
        self._factor = downsampling_factor
        self._options = options
        self.volume_padded = sampler.padding_mode is not None
        self.patch_size, self.patch_overlap = sampler.patch_size, sampler.patch_overlap
        border = self.patch_overlap // 2 if self.volume_padded else np.zeros(3, int)
        padded_now = getattr(sampler, "border", np.zeros(3, int))
        shape = np.array(sampler.subject.spatial_shape) + 2 * padded_now - 2 * border
        self.spatial_shape = tuple(int(n) for n in shape)
        self._border = border
        self._places = _Places(sampler, self.spatial_shape, border)
        self._ours: voxpatch.GridAggregator | None = None
        self._type = torch.float32

    def add_batch(self, batch_tensor: torch.Tensor, locations: torch.Tensor) -> None:
        """Add a batch of predictions, as TorchIO calls it."""
        target = tuple(int(n) // self._factor for n in self.patch_size)
        if tuple(batch_tensor.shape[-3:]) != target:
            raise RuntimeError(
                f"The shape of the input batch, {tuple(batch_tensor.shape[-3:])}, does not match the shape of the "
                f"target location, which is {target}"
            )
        batch = voxpatch.inference.as_array(batch_tensor)
        if self._ours is None:
            self._type = batch_tensor.dtype
            options = dict(self._options)
            # TorchIO sums whole numbers in float32, and Hann windows of anything.
            if self.overlap_mode == "hann" or (self.overlap_mode != "crop" and not batch_tensor.is_floating_point()):
                options.setdefault("dtype", "float32")
                options.setdefault("average_integers", True)  # as TorchIO does
            self._ours = voxpatch.GridAggregator(
                self._places, self.overlap_mode, scale=self._factor, **options  # type: ignore[arg-type]
            )
        places = voxpatch.inference.as_array(locations) - np.tile(self._border, 2)
        self._ours.add_batch(np.swapaxes(batch, -1, -3), np.array([turned(at) for at in places.tolist()]))

    def get_output_tensor(self) -> torch.Tensor:
        """Return the output as a tensor in TorchIO's order of axes."""
        if self._ours is None:
            raise RuntimeError("No batch was added: nothing is known of the output")
        tensor = torch.from_numpy(swapped(self._ours.get_output_tensor()))
        if tensor.dtype == torch.int64:
            message = "Medical image frameworks such as ITK do not support int64. Casting to int32..."
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            tensor = tensor.type(torch.int32)
        return tensor

    def finish(self) -> Any:
        """Return the opened :class:`voxpatch.Volume` at ``output``."""
        if self._ours is None:
            raise RuntimeError("No batch was added: nothing is known of the output")
        return self._ours.finish()


class _Places:
    """A TorchIO grid as our aggregator sees it, z, y, x."""

    def __init__(self, sampler: tio.data.GridSampler, shape: Sequence[int], border: np.ndarray[Any, Any]) -> None:
        self.patch_size = reversed_axes(sampler.patch_size)
        self.grid = Grid(
            reversed_axes(shape), self.patch_size, reversed_axes(sampler.patch_overlap), "edge", reversed_axes(border), False
        )
        image = sampler.subject.get_first_image()
        affine = np.array(image.affine)
        inner = border - getattr(sampler, "border", np.zeros(3, int))
        affine[:3, 3] += affine[:3, :3] @ inner
        self._like = voxpatch.Volume.from_array(np.zeros((1, 1, 1), np.uint8), affine=affine)

    def first_volume(self) -> voxpatch.Volume:
        return self._like


class Queue(tio.data.Queue):
    """The queue, as ``torchio.Queue``: ``num_workers`` threads read ahead if the dataset has no transform.

    Its places and its order follow from ``seed``, or from torch's generator.
    """

    def __init__(
        self,
        subjects_dataset: tio.SubjectsDataset,
        max_length: int,
        samples_per_volume: int,
        sampler: tio.data.PatchSampler,
        subject_sampler: Any = None,
        num_workers: int = 0,
        shuffle_subjects: bool = True,
        shuffle_patches: bool = True,
        start_background: bool = True,
        verbose: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        subjects = subjects_dataset.dry_iter()
        #: What draws ahead from files; None where subjects are transformed first.
        self._drawer: voxpatch.Sampler | None = None
        if getattr(subjects_dataset, "_transform", None) is None and isinstance(sampler, RandomSampler):
            self._drawer = sampler.sampler_for(subjects[0])
        super().__init__(
            subjects_dataset,
            max_length,
            samples_per_volume,
            sampler,
            subject_sampler,
            num_workers,
            shuffle_subjects,
            shuffle_patches,
            start_background and self._drawer is None,
            verbose,
        )
        self._seed = seed
        self._rounds = 0
        self._sources: dict[int, Source] = {}
        self._stream: Iterator[dict[str, Any]] | None = None

    def __getitem__(self, index: int) -> tio.Subject:
        if self._drawer is None:
            return super().__getitem__(index)
        if get_worker_info() is not None:
            raise RuntimeError(
                "The number of workers for the data loader used to pop patches from the queue should be 0: the "
                "queue's own threads read ahead"
            )
        sample = None if self._stream is None else next(self._stream, None)
        if sample is None:
            self._stream = self._start(self._drawer)
            sample = next(self._stream)
        source = self._source(sample.pop("subject")["index"])
        location = turned(sample.pop("location").tolist())
        return source.patch(sample, location)

    def _start(self, sampler: voxpatch.Sampler) -> Iterator[dict[str, Any]]:
        subjects = self.subjects_dataset.dry_iter()
        order = range(len(subjects)) if self.subject_sampler is None else [int(n) for n in self.subject_sampler]
        self._order = list(order)
        seed = _seed() if self._seed is None else self._seed
        queue = voxpatch.Queue(
            voxpatch.LazySubjects(len(self._order), lambda place: self._source(place).ours()),
            sampler,
            [self._get_subject_num_samples(subjects[number]) for number in self._order],
            max_length=self.max_length,
            threads=self.num_workers,
            shuffle_subjects=self.shuffle_subjects,
            shuffle_patches=self.shuffle_patches,
            shuffle_window=self.max_length,
            seed=seed,
            rank=0,
            world_size=1,
            same_images=False,  # as TorchIO
        )
        queue.set_epoch(self._rounds)
        self._rounds += 1
        return iter(queue)

    def _source(self, place: int) -> Source:
        number = self._order[place]
        if number not in self._sources:
            if len(self._sources) > 64:
                self._sources.pop(next(iter(self._sources)))
            self._sources[number] = Source(self.subjects_dataset.dry_iter()[number])
        return self._sources[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}, "_stream": None}


def patch_torchio() -> None:
    """Put these classes in place of TorchIO's, for scripts that must not be changed."""
    ours = (PatchSampler, RandomSampler, UniformSampler, WeightedSampler, LabelSampler, GridSampler, GridAggregator, Queue)
    modules = (tio, tio.data, tio.data.sampler, tio.data.inference, tio.inference)
    for made in ours:
        for module in modules:
            if hasattr(module, made.__name__):
                setattr(module, made.__name__, made)
