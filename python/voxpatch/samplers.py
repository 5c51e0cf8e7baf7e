"""Samplers: where training patches lie.

A sampler is a recipe; a :class:`~voxpatch.Queue` draws by it, of every subject. Draws are a function
of the queue's seed, the epoch and their number, so they are the same for any number of threads,
workers and ranks. Sizes are voxels along z, y, x: one number for all three, or three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidError
from .sizes import Size, count, size

if TYPE_CHECKING:
    from .subject import Subject

class Sampler:
    """What all samplers have in common."""

    #: Voxels of a patch along z, y, x.
    patch_size: tuple[int, int, int]

    def _recipe(self) -> dict[str, Any]:
        raise NotImplementedError

    def __call__(self, subject: Subject, num_patches: int | None = None, *, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Patches of one subject, ``num_patches`` or without end, in the order in which they are drawn.

        A :class:`~voxpatch.Queue` is the better way to many patches: it reads ahead.
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
    """Patches from anywhere, each place as likely as the next.

    ``border`` says what becomes of patches that do not fit around their centre: they are not drawn
    (``"drop"``), moved inside (``"shift"``), or hang over and are padded (``"pad"``).
    """

    def __init__(self, patch_size: Size, *, border: str = "drop") -> None:
        self.patch_size = size("patch_size", patch_size)
        self.border = border

    def _recipe(self) -> dict[str, Any]:
        return {"kind": "uniform", "patch_size": self.patch_size, "border": self.border}


class WeightedSampler(Sampler):
    """Patches whose centres are drawn by a map of weights, one value for each voxel.

    ``weight_name`` is the name of that volume in each subject; its values need not add up to
    anything. It is read once for each subject, block by block, and never held in memory. ``empty``
    says what becomes of a subject whose weights are all 0: ``"error"``, ``"skip"``, or
    ``"uniform"``, which draws from anywhere.
    """

    def __init__(self, patch_size: Size, weight_name: str, *, border: str = "drop", empty: str = "error") -> None:
        self.patch_size = size("patch_size", patch_size)
        self.weight_name = weight_name
        self.border = border
        self.empty = empty

    def _recipe(self) -> dict[str, Any]:
        return {
            "kind": "weighted",
            "patch_size": self.patch_size,
            "weight_name": self.weight_name,
            "border": self.border,
            "empty": self.empty,
        }


class LabelSampler(Sampler):
    """Patches whose centres are drawn by label: first a label by its share, then one of its voxels,
    each as likely as the next.

    ``label_name`` is the name of the label map in each subject. ``label_weights`` gives the
    shares, ``{label: share}``; they need not add up to 1. Without them any voxel but 0 is as likely as
    any other. Labels that a subject has not are left out there, and the others' shares grow. A map
    with several channels has a channel for each label, counted from 0. ``empty`` is as in
    :class:`WeightedSampler`.
    """

    def __init__(
        self,
        patch_size: Size,
        label_name: str,
        label_weights: Mapping[int, float] | None = None,
        *,
        border: str = "drop",
        empty: str = "error",
    ) -> None:
        self.patch_size = size("patch_size", patch_size)
        self.label_name = label_name
        self.label_weights = None if label_weights is None else dict(label_weights)
        self.border = border
        self.empty = empty

    def _recipe(self) -> dict[str, Any]:
        return {
            "kind": "label",
            "patch_size": self.patch_size,
            "label_name": self.label_name,
            "label_weights": self.label_weights,
            "border": self.border,
            "empty": self.empty,
        }


class MixtureSampler(Sampler):
    """Several samplers in given shares: ``MixtureSampler([(1, uniform), (2, by_label)])``.

    With ``batch_size`` the shares are exact in each such batch of draws, rounded to the nearest; give
    the queue the same ``batch_size`` and ``keep_batches=True``, and each of its batches has them.
    """

    def __init__(self, samplers: Sequence[tuple[float, Sampler]], *, batch_size: int | None = None) -> None:
        self.samplers = [(float(share), sampler) for share, sampler in samplers]
        if not self.samplers:
            raise InvalidError("a mixture has one sampler at least")
        sizes = {sampler.patch_size for _, sampler in self.samplers}
        if len(sizes) > 1:
            raise InvalidError(f"the samplers of a mixture have one patch size, not {sorted(sizes)}")
        self.patch_size = sizes.pop()
        self.batch_size = batch_size

    def _recipe(self) -> dict[str, Any]:
        return {
            "kind": "mixture",
            "samplers": [(share, sampler._recipe()) for share, sampler in self.samplers],
            "batch_size": self.batch_size,
        }
