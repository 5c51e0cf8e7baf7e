"""The engine ``"voxpatch"`` of xarray: ``xarray.open_dataset("scan.nii.gz", engine="voxpatch")``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from xarray import Dataset, Variable
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ._voxpatch import Volume
from .arrays import block_shape
from .files import open as open_volume


class _Lazy(BackendArray):
    """A volume whose voxels xarray reads when it needs them."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.shape = volume.shape
        self.dtype = volume.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> Any:
        # Slices that step backwards, and empty ones, as numpy has them.
        places = [np.arange(length)[one] for one, length in zip(key, self.shape)]
        if any(place.size == 0 for place in places):
            return np.empty([place.size for place in places if place.ndim], self.dtype)
        box = tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)
        found = np.asarray(self.volume[box])
        inside = [place - place.min() for place in places]
        return found[np.ix_(*(np.atleast_1d(one) for one in inside))].reshape([p.size for p in places if p.ndim])


class VoxpatchBackend(BackendEntrypoint):
    """A backend of xarray that opens a volume as the variable ``"image"`` (c, z, y, x)."""

    description = "Open 3-D volumes (OME-Zarr, NIfTI, DICOM, TIFF, NRRD, MetaImage, npy) with voxpatch"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "options")

    def open_dataset(
        self,
        filename_or_obj: str | os.PathLike[str] | Volume,
        *,
        drop_variables: str | Iterable[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Dataset:
        """Open a volume.

        Parameters
        ----------
        filename_or_obj : str, path-like or Volume
            The volume, by its path or address, or opened.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        options : dict, optional
            Options of :func:`voxpatch.open`.

        Returns
        -------
        xarray.Dataset
            ``"image"`` (c, z, y, x), with coordinates in mm along the volume's own axes, and ``affine`` (4, 4, by voxel
            indices x, y, z to mm in RAS+) and ``spacing`` among its attributes.
        """
        volume = filename_or_obj if isinstance(filename_or_obj, Volume) else open_volume(filename_or_obj, **options or {})
        attributes = {"affine": volume.affine.tolist(), "spacing": list(volume.spacing)}
        image = Variable(("c", "z", "y", "x"), indexing.LazilyIndexedArray(_Lazy(volume)), attributes)
        stored = volume.shards or block_shape(volume)
        image.encoding["preferred_chunks"] = {axis: min(pair) for axis, *pair in zip("czyx", stored, volume.shape)}
        coordinates = {
            axis: Variable((axis,), np.arange(length) * step, {"units": "mm"})
            for axis, length, step in zip("zyx", volume.shape[1:], volume.spacing)
        }
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        everything = {"image": image, **coordinates}
        kept = {name: variable for name, variable in everything.items() if name not in dropped}
        return Dataset({name: kept[name] for name in kept if name == "image"}, {n: v for n, v in kept.items() if n != "image"})

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Return whether a file is a volume by its name; Zarr folders are left to xarray's own engine."""
        ends = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".ome.zarr")
        return isinstance(filename_or_obj, (str, os.PathLike)) and os.fspath(filename_or_obj).lower().endswith(ends)
