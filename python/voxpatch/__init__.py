"""Patches out of huge 3-D volumes, without loading the volume.

Axes are c, z, y, x everywhere: channels, then planes, rows and columns, x fastest.
"""

from ._voxpatch import Volume, open
from .errors import VoxpatchError

__version__ = "0.1.0"

__all__ = ["Volume", "VoxpatchError", "open"]
