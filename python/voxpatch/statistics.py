"""Statistics of volumes, in one pass over each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._voxpatch import Volume, _stats
from .errors import InvalidError
from .sizes import count

if TYPE_CHECKING:
    from .options import Path, VolumeLike


def stats(
    volumes: VolumeLike | Sequence[VolumeLike],
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    *,
    ignore_label: int | None = None,
    percentiles: Sequence[float] = (0.5, 5, 25, 50, 75, 95, 99.5),
    threads: int | None = None,
    results: Path | None = None,
) -> dict[str, Any]:
    """Measure volumes: range, mean, deviation and percentiles of all voxels, of those that are not 0, and of each label.

    Each volume is read once, in pieces, and small ones side by side. The result does not depend on the number of threads.

    Parameters
    ----------
    volumes : Volume, path, array, or a sequence of these
        The volumes.
    labels : Volume, path, array, or a sequence of these, optional
        A label map for each volume, of the same extent.
    ignore_label : int, optional
        Label whose voxels do not count.
    percentiles : sequence of float, optional
        Percentiles from 0 to 100, interpolated as by ``numpy.percentile``: exact for types of 8 and 16 bits, for others within
        ``percentile_error`` of their value.
    threads : int, optional
        Number of threads; all cores if not given.
    results : path, optional
        Folder in which the result of each volume is kept. A volume whose files have the same paths, sizes and times as then is
        not measured again, so that an interrupted call resumes with the next volume.

    Returns
    -------
    dict
        ``"all"``, the statistics of all voxels of all volumes, and ``"volumes"``, a list of those of each. Both have
        ``"channels"``, a list with ``count``, ``not_finite``, ``minimum``, ``maximum``, ``mean``, ``std``, ``percentiles`` by
        their number as text, and the same for ``nonzero``, ``foreground`` and each of ``labels``; and ``"labels"``, the
        ``voxels`` and the ``box`` of each label. A volume has a ``nonzero_box`` too. Boxes are the first voxel along z, y, x and
        one past the last.

    Raises
    ------
    ValueError
        If there is not one label map for each volume, or a label is not a whole number.

    See Also
    --------
    NnunetCt : A normalization with such numbers.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    >>> found = voxpatch.stats(scan, labels=(scan > 20).astype(np.uint8), percentiles=[50])
    >>> channel = found["all"]["channels"][0]
    >>> channel["mean"], channel["percentiles"], channel["foreground"]["mean"]
    (13.0, {'50': 13.0}, 23.5)
    >>> found["volumes"][0]["labels"]["1"]
    {'voxels': 6, 'box': [2, 1, 0, 3, 3, 3]}
    """
    given, named = _listed(volumes), None if labels is None else _listed(labels)
    if not given:
        raise InvalidError("volumes: give at least one")
    if named is not None and len(named) != len(given):
        raise InvalidError(f"{len(named)} labels for {len(given)} volumes: give one for each")
    if not all(0 <= percent <= 100 for percent in percentiles):
        raise InvalidError(f"percentiles {percentiles!r}: give numbers from 0 to 100")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = cores if threads is None else count("threads", threads, least=1)
    folder = None if results is None else os.fspath(results)
    found = _stats(given, named, ignore_label, [float(one) for one in percentiles], number, folder)
    answer: dict[str, Any] = json.loads(found)
    return answer


def _listed(given: Any) -> list[Any]:
    """Return volumes and paths as the compiled half takes them."""
    single = isinstance(given, (Volume, str, os.PathLike)) or hasattr(given, "__array__")

    def one(volume: Any) -> Any:
        if isinstance(volume, Volume):
            return volume
        return os.fspath(volume) if isinstance(volume, (str, os.PathLike)) else Volume.from_array(volume)

    return [one(volume) for volume in ([given] if single else given)]
