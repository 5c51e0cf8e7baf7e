"""Subjects: named volumes on one grid, with whatever else is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._voxpatch import Volume
from .errors import InvalidError, UnknownNameError
from .files import absolute
from .files import open as open_volume
from .work import is_bfloat16

if TYPE_CHECKING:
    from .options import DType, Interpolation, Padding, Values, VolumeLike

    #: An image as the compiled half takes it: name, volume or path, padding, type, values, normalization, interpolation.
    Part = tuple[str, Volume | str, Padding, DType | None, Values, str, str | None]
    #: A subject as the compiled half takes it: its name, its images, and (tolerance, same_grid, grid).
    Parts = tuple[str, list[Part], tuple[float, bool, str | None]]

#: A string that ends like this is the path of a volume.
VOLUME_NAMES = (
    ".zarr", ".npy", ".nii", ".nii.gz", ".hdr", ".img", ".mhd", ".mha", ".nrrd", ".nhdr", ".raw", ".dcm", ".tif", ".tiff",
    ".mgh", ".mgz", ".ozx", ".zip", ".npz", ".h5", ".hdf5", ".ims", ".n5", ".b2nd",
)  # fmt: skip

#: A string that ends like this is the path of a file that is not read, or a slip of the pen: no metadata.
FILE_NAMES = (
    ".gz", ".bz2", ".xz", ".zst", ".tar", ".7z", ".dicom", ".ima", ".btf", ".png",
    ".jpg", ".jpeg", ".bmp", ".hdf", ".vtk", ".vti",
    ".mnc", ".czi", ".nd2", ".lif", ".mat", ".bin", ".dat", ".pt", ".pth", ".csv", ".json", ".txt", ".xml",
)  # fmt: skip

#: Files that make a folder a Zarr array or group.
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_path(key: str, text: str) -> bool:
    """Return whether a string is the path of a volume: by its end, because it leads into a Zarr store, because it is
    an address, or because something is there. One that looks like a path to nothing is an error."""
    plain = text.rstrip("/").lower()
    if plain.endswith(VOLUME_NAMES) or ".zarr/" in plain or "://" in plain or ".h5:" in plain:
        return True
    # A word may happen to be the name of a folder next to the script: it is a volume if the folder is one.
    is_word = "/" not in text and os.sep not in text and "." not in text
    if os.path.isdir(text) and is_word:
        return any(os.path.exists(os.path.join(text, name)) for name in ZARR_FILES)
    if not text or "\0" in text or len(text) > 4096 or "\n" in text:
        return False
    if os.path.exists(text):
        return True
    above = os.path.dirname(text)
    starts = text.startswith(("/", "./", "../", "~/"))
    if starts or plain.endswith(FILE_NAMES) or (above and os.path.isdir(above)):
        raise InvalidError(
            f"{key}={text!r} looks like a path, but nothing is there; if it is not one, give it in metadata={{{key!r}: ...}}"
        )
    return False


def _named(parameter: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a dictionary by name that was given, if any."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidError(f"{parameter} is a {type(given).__name__}: give a dictionary by name")
    return given or {}


def is_volume(key: str, value: object) -> bool:
    """Return whether a value of a subject is one of its volumes: a :class:`Volume`, a path object, a string that
    is a path, or an array with three or four axes."""
    if isinstance(value, (Volume, os.PathLike)):
        return True
    if isinstance(value, str):
        return is_path(key, value)
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) in (3, 4)


class Subject(Mapping[str, Any]):
    """One scan with what belongs to it: a second modality, labels, weights, and metadata.

    Volumes are keywords, given as a :class:`Volume`, as a path, or as an array (z, y, x) or (c, z, y, x), which is
    copied: ``Subject(ct="scan.zarr", label="label.nii", age=63)``. Any other keyword is metadata, and comes back with every
    patch. Nothing is opened until it is needed. ``subject["ct"]`` is the open volume, ``subject["age"]`` the metadata.

    All volumes cover the same part of the world, and patches are cut from all of them at the same places of the first
    one's grid: flipped and permuted axes are turned, coarser voxels spread, anything else is an error. With `grid`, all
    are resampled to the grid of one of them while they are read, and may have any spacing, directions and extent.

    Parameters
    ----------
    name : str, optional
        Name of the subject in errors and in saved states of a queue, which are loaded for subjects of the same names
        wherever their files are. The first path if not given.
    images : dict of str to Volume, path or array, optional
        Volumes by name, for names that are no keywords and strings that are not recognized as paths.
    metadata : dict, optional
        Metadata by name, for names that are no keywords and strings that look like paths.
    padding : float, {"constant", "edge", "reflect", "wrap"} or dict, default 0
        What lies beyond the faces of each volume: a number in the values that patches have (-1000 is air of a CT), a way
        to continue the voxels inside, or a dictionary of these by the volumes' names.
    tolerance : float, default 0.1
        How far, in voxels, the corners of two volumes may lie apart.
    same_grid : bool, default False
        Match volumes by shape where one of them, such as a ``.npy`` file or an array, does not say where it lies.
        Without it, only volumes that all do not say it match.
    grid : str, optional
        Name of the volume to whose grid the others are resampled: ``grid="ct"`` brings a PET to the voxels of the CT. Beyond
        its faces a volume has its `padding`, or 0 if that is a number and the volume is normalized.
    interpolation : {"nearest", "linear", "cubic", "label-linear"} or dict, optional
        How values between voxels are computed, with `grid`, or a dictionary of these by the volumes' names; "linear" for
        floats. Integers may be labels, so it must be given for them.
    values : {"real", "stored"}, dtype or dict, optional
        Values of the volumes, as in :func:`open`, or a dictionary of these by the volumes' names.
    **given : Volume, path, array or any
        Volumes and metadata. A string is a path if it ends like a volume's name, leads into a Zarr store
        (``"c.zarr/volumes/label"``), or if something is there; one that looks like a path to nothing is an error. An array
        is a volume if it has three or four axes.

    Raises
    ------
    ValueError
        If there is no volume, or a string looks like a path to nothing.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> np.save("ct.npy", np.zeros((8, 9, 10), np.int16))
    >>> subject = voxpatch.Subject(ct="ct.npy", label=np.zeros((8, 9, 10), np.uint8), age=63)
    >>> subject["ct"].shape, subject["age"]
    ((1, 8, 9, 10), 63)
    >>> explicit = voxpatch.Subject(images={"ct": "ct.npy"}, metadata={"report": "see scan.nii"})
    >>> list(explicit)
    ['ct', 'report']
    """

    #: The volumes by name, those that are open and the paths of others.
    volumes: dict[str, Volume | str]
    #: The metadata by name.
    metadata: dict[str, Any]

    def __init__(
        self,
        *,
        name: str | None = None,
        images: Mapping[str, VolumeLike] | None = None,
        metadata: Mapping[str, Any] | None = None,
        padding: Padding | Mapping[str, Padding] = 0.0,
        tolerance: float = 0.1,
        same_grid: bool = False,
        grid: str | None = None,
        interpolation: Interpolation | Mapping[str, Interpolation] | None = None,
        values: Values | Mapping[str, Values] | None = None,
        **given: Any,
    ) -> None:
        self.volumes = {}
        self._values = values
        images, metadata = _named("images", images), _named("metadata", metadata)
        twice = [key for key in (*given, *images) if key in metadata] + [key for key in given if key in images]
        if twice:
            raise InvalidError(f"a subject has {twice[0]!r} twice")
        self.metadata = dict(metadata)
        for key, value in given.items():
            if is_volume(key, value):
                self._add(key, value)
            else:
                self.metadata[key] = value
        for key, value in images.items():
            self._add(key, value)
        if not self.volumes:
            raise InvalidError("a subject has at least one volume: a Volume, a path, or an array with three or four axes")
        if name is not None:
            self.metadata["name"] = name
        #: The name in errors and saved states.
        self.name: str = str(self.metadata.get("name", self._first_path()))
        self._padding = padding
        #: How volumes are matched with the first.
        self.tolerance = float(tolerance)
        self.same_grid = bool(same_grid)
        if grid is not None and grid not in self.volumes:
            raise UnknownNameError(f"grid {grid!r}: {self.name} has no such volume, but {', '.join(self.volumes)}")
        #: The volume to whose grid the others are resampled, if any.
        self.grid: str | None = grid
        self._interpolation = interpolation

    def _add(self, key: str, value: Any) -> None:
        """Take a value as a volume."""
        if isinstance(value, Volume):
            values = self._values_of(key)
            self.volumes[key] = value if values is None else value.astype(values)
        elif isinstance(value, (str, os.PathLike)):
            self.volumes[key] = absolute(value)
        elif hasattr(value, "__array__") and getattr(value, "ndim", 0) in (3, 4):
            self.volumes[key] = Volume.from_array(value)
        else:
            raise InvalidError(
                f"{key} is not a volume but a {type(value).__name__}: give a Volume, a path, or an array with three or four axes"
            )

    def _first_path(self) -> str:
        first = next(iter(self.volumes.values()))
        path = first.path if isinstance(first, Volume) else first
        return str(path) if path is not None else "memory"

    def _values_of(self, key: str) -> Values | None:
        return self._values.get(key) if isinstance(self._values, Mapping) else self._values

    def _parts(
        self,
        dtype: DType | Mapping[str, DType] | None = None,
        normalize: Mapping[str, str] | str = "none",
    ) -> Parts:
        """Return the name, the images with their padding, type, values and normalization, and how they are matched."""
        if isinstance(normalize, str):
            if normalize != "none" and len(self.volumes) > 1:
                raise InvalidError(
                    f"normalize for {', '.join(self.volumes)} of {self.name}: say for which of them, in a dictionary by name"
                )
            normalize = dict.fromkeys(self.volumes, normalize)
        types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(self.volumes, dtype)
        padding = self._padding
        by_name = padding if isinstance(padding, Mapping) else {}
        default = 0.0 if isinstance(padding, Mapping) else padding
        images: list[Part] = []
        for key, value in self.volumes.items():
            values = self._values_of(key)
            cast = types.get(key)
            images.append(
                (
                    key,
                    value,
                    by_name.get(key, default),
                    "bfloat16" if is_bfloat16(cast) else cast,
                    "real" if values is None else values,
                    normalize.get(key, "none"),
                    self._interpolation_of(key),
                )
            )
        return self.name, images, (self.tolerance, self.same_grid, self.grid)

    def on_grid(self, key: str) -> Volume:
        """Return a volume on the grid of the patches.

        Parameters
        ----------
        key : str
            Name of the volume.

        Returns
        -------
        Volume
            The volume on the first one's grid, or on that of `grid`.

        Examples
        --------
        >>> import numpy as np, voxpatch
        >>> ct = voxpatch.Volume.from_array(np.zeros((8, 8, 8), np.int16), affine=np.diag([1, 1, 1, 1]))
        >>> pet = voxpatch.Volume.from_array(np.zeros((4, 4, 4), np.float32), affine=np.diag([3, 3, 3, 1]))
        >>> voxpatch.Subject(pet=pet, ct=ct, grid="ct").on_grid("pet").shape
        (1, 8, 8, 8)
        """
        first = self.grid if self.grid is not None else next(iter(self.volumes))
        volume: Volume = self[key]
        if key == first:
            return volume
        padding = self._padding.get(key, 0.0) if isinstance(self._padding, Mapping) else self._padding
        return volume.on_grid_of(
            self[first],
            tolerance=self.tolerance,
            same_grid=self.same_grid,
            resample=self.grid is not None,
            interpolation=self._interpolation_of(key),
            outside=padding,
        )

    def _interpolation_of(self, key: str) -> Interpolation | None:
        how = self._interpolation
        return how.get(key) if isinstance(how, Mapping) else how

    def __getitem__(self, key: str) -> Any:
        if key in self.volumes:
            value = self.volumes[key]
            if isinstance(value, str):
                values = self._values_of(key)
                value = self.volumes[key] = open_volume(value, values="real" if values is None else values)
            return value
        if key in self.metadata:
            return self.metadata[key]
        raise UnknownNameError(f"{self.name} has no {key!r}: it has {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        yield from self.volumes
        yield from self.metadata

    def __len__(self) -> int:
        return len(self.volumes) + len(self.metadata)

    def __repr__(self) -> str:
        return f"Subject({', '.join(f'{key}={value!r}' for key, value in {**self.volumes, **self.metadata}.items())})"
