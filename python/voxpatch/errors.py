"""Errors, as exceptions that Python code catches anyway.

Every class is a :class:`VoxpatchError` and a built-in one: ``except OSError`` catches files that cannot be read, ``except
ValueError`` options and contents that make no sense, ``except KeyError`` unknown names.

Examples
--------
>>> import voxpatch
>>> try:
...     voxpatch.open("gone.nii")
... except FileNotFoundError as error:
...     print(isinstance(error, voxpatch.VoxpatchError), error.filename)
True gone.nii
"""


class VoxpatchError(Exception):
    """The base class of all errors of this package."""


class FileError(VoxpatchError, OSError):
    """A file or folder cannot be read or written, is damaged, or is locked."""


class NotFoundError(FileError, FileNotFoundError):
    """Nothing is at the path."""


class DeniedError(FileError, PermissionError):
    """Permission to read or write the path is missing."""


class ExistsError(FileError, FileExistsError):
    """The output exists already."""


class InvalidError(VoxpatchError, ValueError):
    """An option, a header or a state makes no sense, or does not fit the rest."""


class BoundsError(InvalidError, IndexError):
    """A region or a channel lies outside the volume."""


class UnknownNameError(VoxpatchError, KeyError):
    """A subject has no volume of this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError shows a repr


class PanicError(VoxpatchError, RuntimeError):
    """The compiled code failed where it should not: a bug. Please report it."""


class StoppedError(VoxpatchError, RuntimeError):
    """Work was stopped on request."""
