"""The picture of a volume in a notebook: its facts and the three middle slices."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ._voxpatch import Volume

#: Pixels along the longer side of a slice.
_SIDE = 192
#: Slices of more voxels than this are not read for a picture.
_LARGEST = 1 << 26


def of_volume(volume: Volume) -> str:
    """Return a table of facts next to the slices through the middle of the first channel."""
    channels, depth, height, width = volume.shape
    spacing = " x ".join(f"{length:g}" for length in volume.spacing)
    chunks = "any box" if volume.chunks is None else " x ".join(map(str, volume.chunks))
    facts = {
        "path": volume.path or "in memory",
        "format": volume.format,
        "shape (c, z, y, x)": f"{channels} x {depth} x {height} x {width}",
        "type": str(volume.dtype),
        "chunks (c, z, y, x)": chunks,
        "spacing (z, y, x)": f"{spacing} mm",
    }
    rows = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
    middle: dict[str, tuple[int | slice, ...]] = {
        "z": (0, depth // 2),
        "y": (0, slice(None), height // 2),
        "x": (0, slice(None), slice(None), width // 2),
    }
    sizes = {"z": height * width, "y": depth * width, "x": depth * height}
    pictures = ""
    if min(volume.shape) > 0 and max(sizes.values()) <= _LARGEST:
        for axis, index in middle.items():
            data = base64.b64encode(png(gray(volume[index]))).decode()
            pictures += f'<td><img alt="the middle slice along {axis}" src="data:image/png;base64,{data}"></td>'
    return f"<table><tr><td><table>{rows}</table></td>{pictures}</tr></table>"


def gray(plane: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return a plane as 8-bit gray values, 1 % of the darkest and brightest voxels cut off, every n-th voxel."""
    step = max(1, -(-max(plane.shape) // _SIDE))
    values = plane[::step, ::step].astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a gray PNG of (rows, columns) 8-bit values."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = pixels.shape
    lines = np.zeros((rows, columns + 1), np.uint8)
    lines[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    data = zlib.compress(lines.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
