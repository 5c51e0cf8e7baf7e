"""The queue as torch knows it; imported only where torch is imported already."""

from __future__ import annotations

from torch.utils.data import IterableDataset

from .queue import Queue, Sample


class TorchQueue(Queue, IterableDataset[Sample]):
    """A :class:`~voxpatch.Queue` that torch's DataLoader takes."""


