"""Subjects: named volumes on one grid, with whatever else is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ._voxpatch import Volume, open as open_volume
from .errors import InvalidError, UnknownNameError

#: A string that ends like this is a path; any other string is metadata.
VOLUME_NAMES = (
    ".zarr", ".npy", ".nii", ".nii.gz", ".hdr", ".img", ".mhd", ".mha", ".nrrd", ".nhdr", ".raw",
)  # fmt: skip


def is_volume(value: object) -> bool:
    """Whether a value of a subject is one of its volumes: a :class:`Volume`, a path object, a string
    that ends like a volume's name, or an array with three or four axes."""
    if isinstance(value, (Volume, os.PathLike)):
        return True
    if isinstance(value, str):
        return value.rstrip("/").lower().endswith(VOLUME_NAMES)
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) in (3, 4)


class Subject(Mapping[str, Any]):
    """One scan with what belongs to it: a second modality, labels, weights, and metadata.

    ``Subject(ct="scan.zarr", label="label.nii", age=63)``: volumes are given as :class:`Volume`, as a
    path, or as an array (z, y, x) or (c, z, y, x), which is copied. All of them have one shape,
    spacing and affine; patches are cut from all of them at the same places. Nothing is opened
    until it is needed. Everything else is metadata, and comes back with every patch.

    ``name`` is the name that errors use, the first path if it is not given. A queue's state is loaded
    for subjects of the same names, wherever their files are. ``padding`` says what
    stands beyond the faces of each volume: a number (0 if nothing is said), ``"edge"``,
    ``"reflect"`` or ``"wrap"``, or a dictionary of these by the volumes' names.

    ``subject["ct"]`` is the open volume, ``subject["age"]`` the metadata.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        padding: float | str | Mapping[str, float | str] = 0.0,
        **values: Any,
    ) -> None:
        self.volumes: dict[str, Volume | str] = {}
        self.metadata: dict[str, Any] = {}
        for key, value in values.items():
            if not is_volume(value):
                self.metadata[key] = value
            elif isinstance(value, Volume):
                self.volumes[key] = value
            elif isinstance(value, (str, os.PathLike)):
                self.volumes[key] = os.path.abspath(os.fspath(value))
            else:
                self.volumes[key] = Volume.from_array(value)
        if not self.volumes:
            raise InvalidError(
                "a subject has one volume at least: a Volume, a path, or an array with three or four axes"
            )
        if name is not None:
            self.metadata["name"] = name
        self.name: str = str(self.metadata.get("name", self._first_path()))
        self._padding = padding

    def _first_path(self) -> str:
        first = next(iter(self.volumes.values()))
        path = first.path if isinstance(first, Volume) else first
        return str(path) if path is not None else "memory"

    def _parts(self, dtype: Any = None) -> tuple[str, list[tuple[str, Volume | str, float | str, Any]]]:
        """The name, and each image with its padding and the type that it is converted to, if any."""
        types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(self.volumes, dtype)
        padding = self._padding
        by_name = padding if isinstance(padding, Mapping) else {}
        default = 0.0 if isinstance(padding, Mapping) else padding
        images = [(key, value, by_name.get(key, default), types.get(key)) for key, value in self.volumes.items()]
        return self.name, images

    def __getitem__(self, key: str) -> Any:
        if key in self.volumes:
            value = self.volumes[key]
            if isinstance(value, str):
                value = self.volumes[key] = open_volume(value)
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
