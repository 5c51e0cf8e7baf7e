"""TorchIO 1's subjects as volumes, and patches of them as TorchIO makes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
import torchio as tio
from torchio.data.image import Image
from torchio.data.io import read_image

import voxpatch
from voxpatch._voxpatch import _read_box
from voxpatch.errors import VoxpatchError

LOCATION = "location"
#: Types that torch's tensors had no use for when TorchIO chose.
_WIDER = {"uint16": np.int32, "uint32": np.int64}


Three = Union[Sequence[int], "np.ndarray[Any, Any]"]


def reversed_axes(values: Three) -> tuple[int, int, int]:
    """x, y, z of z, y, x and back."""
    a, b, c = (int(value) for value in values)
    return c, b, a


def turned(location: Sequence[int]) -> list[int]:
    """A location with its axes in the other order."""
    return [*reversed_axes(location[:3]), *reversed_axes(location[3:])]


def swapped(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array with its last three axes in the other order, contiguous."""
    return np.ascontiguousarray(np.swapaxes(array, -1, -3))


def volume_of(image: Image) -> voxpatch.Volume:
    """The image as a volume (c, z, y, x): its file if that can be read box by box, else a copy of its tensor."""
    path = image.path
    lazy = not image._loaded and image.reader is read_image and isinstance(path, Path)
    if lazy and not str(path).endswith(".gz"):
        try:
            volume = voxpatch.open(path)
            if volume.rescale is not None:
                volume = volume.astype("float32")  # as TorchIO has them
        except (VoxpatchError, OSError):
            pass  # TorchIO may still know how
        else:
            channels, *axes = volume.shape
            if (channels, *reversed_axes(axes)) == tuple(image.shape):
                return volume
    return voxpatch.Volume.from_array(swapped(image.data.numpy()), affine=image.affine)


class Source:
    """A TorchIO subject, and its images as volumes."""

    def __init__(self, subject: tio.Subject) -> None:
        self.subject = subject
        self.images: dict[str, Image] = subject.get_images_dict(intensity_only=False)
        self.volumes = {name: volume_of(image) for name, image in self.images.items()}
        self.affines = {name: np.asarray(image.affine) for name, image in self.images.items()}
        first, *others = self.volumes
        for name in others:
            affines = self.affines[first], self.affines[name]
            if self.volumes[name].shape[1:] != self.volumes[first].shape[1:] or not np.array_equal(*affines):
                # Patches of both are then cut on the first one's grid.
                self.volumes[name] = self.volumes[name].on_grid_of(self.volumes[first])
                self.affines[name] = self.affines[first]

    def ours(self) -> voxpatch.Subject:
        """The same for our samplers, which know names of images as keywords."""
        return voxpatch.Subject(**{**self.volumes, "name": "subject"})  # type: ignore[arg-type]

    def read(self, location: Sequence[int], padding: Any, shift: Three = (0, 0, 0)) -> tio.Subject:
        """The patch at a location x, y, z, which says that it lies ``shift`` further on."""
        corners = tuple(turned(location))
        arrays = {name: _read_box(volume, corners, padding) for name, volume in self.volumes.items()}
        return self.patch(arrays, location, shift)

    def patch(
        self, arrays: dict[str, np.ndarray[Any, Any]], location: Sequence[int], shift: Three = (0, 0, 0)
    ) -> tio.Subject:
        """A patch as TorchIO makes it."""
        start = np.asarray(location[:3])
        items: dict[str, Any] = {}
        for name, value in self.subject.items():
            if name not in self.images:
                items[name] = copy.deepcopy(value)
                continue
            array = arrays[name]
            tensor = torch.from_numpy(swapped(array.astype(_WIDER.get(array.dtype.name, array.dtype), copy=False)))
            affine = self.affines[name].copy()
            affine[:3, 3] += affine[:3, :3] @ start
            image = self.images[name]
            items[name] = type(image)(tensor=tensor, affine=affine, type=image.type, path=image.path)
        made = tio.Subject(items)
        made.applied_transforms = list(self.subject.applied_transforms)
        made[LOCATION] = torch.as_tensor([int(at) + int(by) for at, by in zip(location, [*shift, *shift])])
        made.update_attributes()
        return made
