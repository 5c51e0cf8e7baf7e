"""Prediction of a whole volume, blended onto the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Union

from ._voxpatch import Volume, _predict
from .calls import Call
from .errors import InvalidError
from .files import Path, storage_options
from .files import open as open_volume
from .inference import Padding, VolumeLike, as_volume, blending, output_place, warn_of_clipped
from .sizes import Size, count, size

#: Voxels, or a part of the patch from 0 up to 1.
_Overlap = Union[float, Sequence[float]]


def predict(
    model: Callable[..., Any],
    volume: VolumeLike,
    output: Path | Mapping[str, Path] | Sequence[Path] | None,
    patch_size: Size,
    overlap: _Overlap | None = None,
    *,
    batch_size: int = 1,
    blend: Any = None,
    reduce: Any = "mean",
    dtype: Any = None,
    halo: Size | Mapping[Any, Size] | None = None,
    scale: int | Mapping[Any, int] | None = None,
    labels: Sequence[int] | None = None,
    padding: Padding | None = None,
    margin: Size | None = None,
    placement: str | None = None,
    preset: str | None = None,
    mask: VolumeLike | None = None,
    tolerance: float = 0.1,
    same_grid: bool = False,
    vote: Sequence[float] | None = None,
    fill: float = 0.0,
    average_integers: bool = False,
    clip: bool = False,
    non_finite: str = "refuse",
    accumulator: str = "float32",
    normalize: str | tuple[float, float] | None = None,
    tta: str | None = None,
    memory: int = 1 << 30,
    threads: int | None = None,
    resume: bool = False,
    part: int | None = None,
    num_parts: int = 1,
    durability: str = "none",
    model_id: str | None = None,
    values: Any = None,
    progress: bool | Callable[[int, int], object] = False,
    device: Any = None,
    dry_run: bool = False,
    **storage: Any,
) -> Any:
    """Predicts every patch of a volume and writes the blended output; gives it opened, or as an array if
    ``output`` is None.

    A ``torch.nn.Module`` gets float32 tensors (B, C, Z, Y, X) on its device, in evaluation mode and
    without gradients; any other callable gets numpy arrays, or tensors on ``device`` if one is given.
    It is called on this thread only. Values are real ones: slope and intercept are applied, unless ``values`` is
    ``"stored"``. What comes back
    are predictions (B, K, Z, Y, X), arrays or tensors, of as many voxels as the patch, fewer (a rim is
    missing), or larger ones. It is called once with zeros to see which. Where their size could mean either,
    as 8 voxels for patches of 16, say ``halo`` or ``scale``, as in :class:`GridAggregator`.

    A model that gives several outputs, as a tuple or dictionary, needs as many paths: ``output`` is
    then a list, or a dictionary by their names; outputs that are not named are left out. ``blend``,
    ``reduce``, ``dtype``, ``halo`` and ``scale`` may be dictionaries too.

    ``overlap`` is in voxels (whole numbers) or parts of the patch (a float below 1).
    ``blend`` (``"hann"`` if nothing is said), ``reduce``, ``labels``, ``dtype``, ``fill``, ``non_finite``,
    ``average_integers``, ``clip`` and ``**storage`` are as in :class:`GridAggregator`; ``padding`` and ``placement`` as in
    :class:`GridSampler`; ``margin`` is what patches cover beyond each face instead of half the overlap. A number as ``padding`` is in
    the units of what the model gets, normalized ones if there is a ``normalize``.
    ``preset`` places and weighs patches as others do: ``"torchio"``, ``"monai"`` (``sliding_window_inference``
    with mode gaussian, overlap 0.25) or ``"nnunet"`` (half a patch, Gaussian).

    ``mask`` is a volume of the same space, of any resolution, its axes stored in any order and direction: patches
    without foreground are not predicted, or ``vote`` for these values. ``tolerance`` is how far, in voxels, its corners
    may lie from the volume's; with ``same_grid`` a mask that does not say where it lies, such as an array, matches by
    its shape. ``normalize`` is ``"zscore"``, or ``(low, high)``, which become 0 and 1.
    ``tta="flips"`` predicts each patch from all eight sides.

    ``memory`` bounds the bytes of all but the model; ``threads`` threads read and blend. The output is
    the same for any number of them. ``resume=True`` goes on where an earlier call with it was ended;
    ``part`` of ``num_parts`` writes what that part owns, in a process or on a machine of its own. Either
    refuses to continue with another model, which ``model_id`` identifies: it changes with everything that predictions
    depend on. Without it, a module is identified by its weights, and a function of a module by its name; a lambda, a
    function inside another and any other object must be given one. While parts are missing, None comes back.

    ``dry_run=True`` writes nothing and gives a dictionary of what the run would take: ``patches_predicted``;
    ``passes``, in how many of them outputs are written; ``peak_bytes``, which ``memory`` bounds; ``process_bytes``,
    the memory of the whole process with the model's share, measured on one batch; ``output_bytes`` of each
    output before compression; ``free_bytes`` on the disk; ``guessed_seconds``.

    ``progress=True`` shows a bar if tqdm is installed; a callable gets ``(done, total)``. Ctrl-C stops the
    run within a second.
    """
    stored = storage_options("predict", storage)
    opened = as_volume(volume, values)
    patch = size("patch_size", patch_size)
    settings = _placed(opened.shape[1:], patch, overlap, blend, padding, margin, placement, preset)
    mode = settings.pop("blend")
    call = Call(model, device)
    with call.ready(), _place(output) as places:
        outputs: list[dict[str, Any]] = []
        for place, (name, path) in enumerate(call.probe(opened.shape[0], patch, places).items()):
            rim, factor = output_place(patch, call.shapes[place], _of(halo, name, None), _of(scale, name, None))
            outputs.append(
                {
                    "name": str(name),
                    "path": path,
                    "channels": call.shapes[place][0],
                    "prediction": call.dtypes[place],
                    "halo": rim,
                    "scale": factor,
                    "blending": blending(
                        _of(mode, name, "hann"),
                        _of(reduce, name, "mean"),
                        _of(dtype, name, None),
                        labels if _of(reduce, name, "mean") == "argmax" else None,
                        accumulator,
                        vote,
                        non_finite,
                        fill,
                        average_integers,
                        clip,
                    ),
                    "storage": stored,
                }
            )
        settings.update(
            memory=count("memory", memory),
            threads=max(2, _cores()) if threads is None else max(1, count("threads", threads)),
            batch=count("batch_size", batch_size, least=1),
            normalize=_normalize(normalize),
            flips=_flips(tta),
            part=_part(resume, part, num_parts),
            durability=durability,
            model_id="",
            dry_run=bool(dry_run),
            tolerance=float(tolerance),
            same_grid=bool(same_grid),
        )
        if settings["part"] is not None:
            settings["model_id"] = call.identity() if model_id is None else model_id
        with _progress(progress) as tell:
            chosen = None if mask is None else as_volume(mask)
            done = _predict(call, opened, outputs, settings, chosen, tell)
        if dry_run:
            return done
        _log(opened, done)
        for stats in done["outputs"]:
            warn_of_clipped(stats, stacklevel=2)
        if not done["whole"]:
            return None
        found = {out["name"]: open_volume(out["path"]) for out in outputs}
        if isinstance(output, Mapping):
            return found
        volumes = list(found.values())
        if output is None:
            return volumes[0][...]
        return volumes[0] if isinstance(output, (str, os.PathLike)) else volumes


def _log(volume: Volume, done: dict[str, Any]) -> None:
    import logging  # whose import takes longer than that of this package

    logging.getLogger("voxpatch").info("%s predicted: %s", volume.path or "a volume in memory", done)


@contextmanager
def _place(output: Any) -> Iterator[Any]:
    """Where outputs go: a folder for a while if nobody says."""
    if output is not None:
        yield output
        return
    import tempfile  # and much with it

    with tempfile.TemporaryDirectory(prefix="voxpatch-") as folder:
        yield os.path.join(folder, "output.npy")


def _placed(
    volume: Sequence[int],
    patch: tuple[int, int, int],
    overlap: _Overlap | None,
    blend: Any,
    padding: Padding | None,
    margin: Size | None,
    placement: str | None,
    preset: str | None,
) -> dict[str, Any]:
    """Where patches lie, and how they are weighed."""
    fits = {"monai": 0.0, "nnunet": 0.0}
    if preset not in (None, "torchio", *fits):
        raise InvalidError(f"preset {preset!r}: it is 'torchio', 'monai' or 'nnunet'")
    if overlap is None:
        overlap = {"monai": 0.25, "nnunet": 0.5}.get(preset or "", 0)
    lengths = [_overlap(given, length) for given, length in zip(_three(overlap), patch)]
    if preset == "monai":
        lengths = [0 if p == n else length for length, p, n in zip(lengths, patch, volume)]
    if blend is None:
        blend = {"monai": "monai:0.125", "nnunet": "nnunet"}.get(preset or "", "hann")
    beyond = (0, 0, 0) if padding is None else tuple(length // 2 for length in lengths)
    margins = beyond if margin is None else size("margin", margin, least=0)
    if placement is None:
        placement = _even(volume, patch, margins, _three(overlap)) if preset == "nnunet" else "edge"
    return {
        "patch": patch,
        "overlap": tuple(lengths),
        "placement": placement,
        "padding": fits.get(preset or "") if padding is None else padding,
        "margin": margins,
        "blend": blend,
    }


def _even(volume: Sequence[int], patch: Sequence[int], margins: Sequence[int], overlaps: Sequence[float]) -> str:
    """As many patches as nnU-Net places: its step is a part of the patch, and need not be a whole number of voxels."""
    if not all(isinstance(overlap, float) for overlap in overlaps):
        return "even"
    rooms = [max(0, n + 2 * margin - p) for n, p, margin in zip(volume, patch, margins)]
    counts = [math.ceil(room / (p * (1 - overlap))) + 1 for room, p, overlap in zip(rooms, patch, overlaps)]
    return "even:" + ",".join(map(str, counts))


def _three(given: _Overlap) -> Sequence[float]:
    single = getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__")
    three: list[Any] = [given] * 3 if single else list(islice(iter(given), 4))  # type: ignore[arg-type]
    if len(three) != 3:
        raise InvalidError(f"overlap {given!r}: give one number, or three for z, y, x")
    return three


def _overlap(given: float, patch: int) -> int:
    """Voxels of an overlap that may be a part of the patch; the step is rounded down, as others do."""
    if hasattr(given, "__index__"):
        return count("overlap", given)
    try:
        given = float(given)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"overlap {given!r}: give voxels, or a part of the patch from 0 up to 1") from error
    if not 0 <= given < 1:
        raise InvalidError(f"overlap {given}: a part of the patch is from 0 up to 1; voxels are whole numbers")
    return patch - max(1, int(patch * (1 - given)))


def _of(setting: Any, name: Any, default: Any) -> Any:
    """The setting of an output."""
    return setting.get(name, default) if isinstance(setting, Mapping) else setting


def _normalize(given: str | tuple[float, float] | None) -> str:
    if given is None or isinstance(given, str):
        return given or "none"
    low, high = given
    return f"ct:{low},{high}"


def _flips(tta: str | None) -> bool:
    if tta not in (None, "flips"):
        raise InvalidError(f"tta {tta!r}: it is 'flips' or None")
    return tta is not None


def _part(resume: bool, part: int | None, num_parts: int) -> tuple[int, int] | None:
    parts = count("num_parts", num_parts, least=1, most=2**32 - 1)
    if part is None and parts != 1:
        raise InvalidError(f"num_parts {num_parts} without part: say which of them this one is, from 0 on")
    if part is None:
        return (0, 1) if resume else None
    return count("part", part, most=parts - 1), parts


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@contextmanager
def _progress(wanted: bool | Callable[[int, int], object]) -> Iterator[Callable[[int, int], object] | None]:
    if callable(wanted):
        yield wanted
        return
    tqdm = _tqdm() if wanted else None
    if tqdm is None:
        yield None
        return
    with tqdm(unit="patch") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
