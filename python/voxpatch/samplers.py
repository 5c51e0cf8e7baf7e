"""Samplers: where training patches lie.

A sampler is a recipe; a :class:`~voxpatch.Queue` draws by it, of every subject. Draws are a function of the queue's
seed, the epoch and their number, so they are the same for any number of threads, workers and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidError
from .sizes import count, size

if TYPE_CHECKING:
    from .options import Border, Empty, Settings, Size
    from .queue import Sample
    from .subject import Subject


class Sampler:
    """The base class of samplers: a call draws patches of one subject.

    See Also
    --------
    UniformSampler : Patches from anywhere.
    WeightedSampler : Patches around voxels drawn by a map of weights.
    LabelSampler : Patches around voxels drawn by their label.
    MixtureSampler : Several samplers with given weights.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> sampler = voxpatch.UniformSampler(patch_size=4)
    >>> isinstance(sampler, voxpatch.Sampler)
    True
    >>> subject = voxpatch.Subject(ct=np.zeros((8, 8, 8), np.float32))
    >>> [patch["ct"].shape for patch in sampler(subject, 2)]
    [(1, 4, 4, 4), (1, 4, 4, 4)]
    """

    #: Voxels of a patch along z, y, x.
    patch_size: tuple[int, int, int]

    def _recipe(self) -> Settings:
        raise NotImplementedError

    def __call__(self, subject: Subject, num_patches: int | None = None, *, seed: int = 0) -> Iterator[Sample]:
        """Draw patches of one subject, in the order in which they are drawn.

        A :class:`~voxpatch.Queue` is faster for many patches: it reads ahead.

        Parameters
        ----------
        subject : Subject
            The subject to draw from.
        num_patches : int, optional
            Number of patches; endless if not given.
        seed : int, default 0
            Random seed.

        Returns
        -------
        iterator of dict
            The patches, as a :class:`~voxpatch.Queue` gives them.
        """
        from .queue import Queue

        patches = 2**40 if num_patches is None else count("num_patches", num_patches)
        return iter(
            Queue([subject], self, patches, threads=0, max_length=1, seed=seed, shuffle_patches=False, rank=0, world_size=1)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sampler) and type(self) is type(other) and self._recipe() == other._recipe()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        own = ", ".join(f"{key}={value!r}" for key, value in self._recipe().items() if key != "kind")
        return f"{type(self).__name__}({own})"


class UniformSampler(Sampler):
    """Patches from anywhere, all places equally likely.

    Parameters
    ----------
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    border : {"drop", "shift", "pad"}, default "drop"
        What to do with patches that do not fit around their center: do not draw them, move them inside, or let them
        hang over, padded as the subject says.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> queue = voxpatch.Queue([voxpatch.Subject(ct=np.zeros((8, 8, 8)))], voxpatch.UniformSampler(4), 6)
    >>> len(queue)
    6
    """

    def __init__(self, patch_size: Size, *, border: Border = "drop") -> None:
        self.patch_size = size("patch_size", patch_size)
        self.border = border

    def _recipe(self) -> Settings:
        return {"kind": "uniform", "patch_size": self.patch_size, "border": self.border}


class WeightedSampler(Sampler):
    """Patches around voxels that are drawn by a map of weights.

    The map has one value for each voxel. It is read once for each subject, block by block, and never held in memory.

    Parameters
    ----------
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    weight_name : str
        Name of the map in each subject. Its values need not add up to 1; voxels of weight 0 are never drawn.
    border : {"drop", "shift", "pad"}, default "drop"
        What to do with patches that do not fit around their center, as in :class:`UniformSampler`.
    empty : {"error", "skip", "uniform"}, default "error"
        What to do with a subject whose weights are all 0: raise an error, leave it out, or draw from anywhere.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> weights = np.zeros((8, 8, 8), np.float32)
    >>> weights[4, 4, 4] = 1
    >>> subject = voxpatch.Subject(ct=np.zeros((8, 8, 8)), weights=weights)
    >>> next(voxpatch.WeightedSampler(4, "weights")(subject))["location"].tolist()
    [2, 2, 2, 6, 6, 6]
    """

    def __init__(
        self, patch_size: Size, weight_name: str, *, border: Border = "drop", empty: Empty = "error"
    ) -> None:
        self.patch_size = size("patch_size", patch_size)
        self.weight_name = weight_name
        self.border = border
        self.empty = empty

    def _recipe(self) -> Settings:
        return {
            "kind": "weighted",
            "patch_size": self.patch_size,
            "weight_name": self.weight_name,
            "border": self.border,
            "empty": self.empty,
        }


class LabelSampler(Sampler):
    """Patches around voxels that are drawn by label: first a label by its weight, then one of its voxels.

    All voxels of a label are equally likely. The map is read once for each subject, block by block, and never held in
    memory. A map with several channels has one for each label, counted from 0.

    Parameters
    ----------
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    label_name : str
        Name of the label map in each subject.
    label_weights : dict of int or float to float, optional
        Weight of each label; the weights need not add up to 1. Labels that a subject does not have are left out there.
        Without weights, all voxels except those of label 0 are equally likely.
    border : {"drop", "shift", "pad"}, default "drop"
        What to do with patches that do not fit around their center, as in :class:`UniformSampler`.
    empty : {"error", "skip", "uniform"}, default "error"
        What to do with a subject that has none of the labels: raise an error, leave it out, or draw from anywhere.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> labels = np.zeros((8, 8, 8), np.uint8)
    >>> labels[4, 4, 4] = 3
    >>> subject = voxpatch.Subject(ct=np.zeros((8, 8, 8)), label=labels)
    >>> next(voxpatch.LabelSampler(4, "label", {3: 1})(subject))["location"].tolist()
    [2, 2, 2, 6, 6, 6]
    """

    def __init__(
        self,
        patch_size: Size,
        label_name: str,
        label_weights: Mapping[int, float] | Mapping[float, float] | None = None,
        *,
        border: Border = "drop",
        empty: Empty = "error",
    ) -> None:
        self.patch_size = size("patch_size", patch_size)
        self.label_name = label_name
        self.label_weights = None if label_weights is None else dict(label_weights)
        self.border = border
        self.empty = empty

    def _recipe(self) -> Settings:
        return {
            "kind": "label",
            "patch_size": self.patch_size,
            "label_name": self.label_name,
            "label_weights": self.label_weights,
            "border": self.border,
            "empty": self.empty,
        }


class MixtureSampler(Sampler):
    """Several samplers with given weights.

    Parameters
    ----------
    samplers : sequence of (float, Sampler)
        Weights and samplers, which have one patch size. The weights need not add up to 1.
    batch_size : int, optional
        Make the numbers of draws exact in each batch of this size, rounded to the nearest. Give the queue the same
        `batch_size` and ``keep_batches=True``, and each of its batches has them.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> subject = voxpatch.Subject(ct=np.zeros((8, 8, 8)), label=np.ones((8, 8, 8), np.uint8))
    >>> uniform, by_label = voxpatch.UniformSampler(4), voxpatch.LabelSampler(4, "label")
    >>> mixture = voxpatch.MixtureSampler([(1, uniform), (2, by_label)], batch_size=3)
    >>> queue = voxpatch.Queue([subject], mixture, samples_per_subject=6, batch_size=3, keep_batches=True)
    >>> len(list(queue))
    2
    """

    def __init__(self, samplers: Sequence[tuple[float, Sampler]], *, batch_size: int | None = None) -> None:
        self.samplers = [(float(weight), sampler) for weight, sampler in samplers]
        if not self.samplers:
            raise InvalidError("samplers: a mixture has at least one")
        sizes = {sampler.patch_size for _, sampler in self.samplers}
        if len(sizes) > 1:
            raise InvalidError(f"samplers: those of a mixture have one patch_size, not {sorted(sizes)}")
        self.patch_size = sizes.pop()
        self.batch_size = batch_size

    def _recipe(self) -> Settings:
        return {
            "kind": "mixture",
            "samplers": [(weight, sampler._recipe()) for weight, sampler in self.samplers],
            "batch_size": self.batch_size,
        }
