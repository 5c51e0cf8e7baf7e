"""Files with changed bytes: each must be a volume or an error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import voxpatch

#: Voxels that are read at most.
MOST = 1 << 20


def check_damage(path: Path, rng: np.random.Generator, count: int, allowed: str | None = None) -> dict[str, int]:
    """Change bytes of the file `count` times, open and read it, and return how often each outcome was.

    Every fifth file is cut off as well. An error must not be a panic, except one that names `allowed`: a decoder whose
    panics are caught.
    """
    whole = bytearray(path.read_bytes())
    outcomes = {"opened": 0, "refused": 0}
    for n in range(count):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), int(rng.integers(1, 6))):
            damaged[at] = rng.integers(0, 256)
        if n % 5 == 0:
            del damaged[int(rng.integers(0, len(whole))) :]
        path.write_bytes(damaged)
        try:
            volume = voxpatch.open(path)
            # Changed lengths may promise more voxels than memory has.
            volume[...] if math.prod(volume.shape) <= MOST else volume[:1, :1, :1, :1]
            outcomes["opened"] += 1
        except (ValueError, OSError, MemoryError) as error:
            text = str(error)
            assert "panicked" not in text or (allowed is not None and allowed in text), error
            outcomes["refused"] += 1
    path.write_bytes(whole)
    return outcomes


def total(outcomes: list[dict[str, int]]) -> dict[str, int]:
    """Add up outcomes."""
    return {kind: sum(one[kind] for one in outcomes) for kind in ("opened", "refused")}
