"""What goes wrong, as exceptions that Python code catches anyway.

Every class is a :class:`VoxpatchError` and a built-in one: `except OSError` catches files that
cannot be read, `except ValueError` settings and contents that make no sense, `except KeyError`
names that nobody has.
"""


class VoxpatchError(Exception):
    """Anything that goes wrong in this package."""


class FileError(VoxpatchError, OSError):
    """A file or folder cannot be read or written, is damaged, or is locked."""


class NotFoundError(FileError, FileNotFoundError):
    """There is nothing at the path."""


class DeniedError(FileError, PermissionError):
    """The path may not be read or written."""


class ExistsError(FileError, FileExistsError):
    """The output is there already."""


class InvalidError(VoxpatchError, ValueError):
    """A setting, a header or a state makes no sense, or does not fit the rest."""


class BoundsError(InvalidError, IndexError):
    """A region or a channel lies outside the volume."""


class UnknownNameError(VoxpatchError, KeyError):
    """A subject has no volume of this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError shows a repr


class PanicError(VoxpatchError, RuntimeError):
    """A bug: the compiled code stopped where it should not. Please report it."""


class StoppedError(VoxpatchError, RuntimeError):
    """Work was stopped on request."""
