"""Prediction of a whole volume, blended onto the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, overload

from ._voxpatch import Volume, _predict
from .calls import CallsInTurn, Outputs, calls, check_outputs
from .device import DeviceMemoryError, places_of_sums
from .errors import InvalidError
from .files import open as open_volume
from .files import storage_options
from .inference import as_volume, blending, output_place, warn_of_clipped
from .options import StorageOptions
from .sizes import count, normalization, overlap_voxels, size, three

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import (
        Accumulator,
        Array,
        Blend,
        BlendOn,
        DType,
        Durability,
        NonFinite,
        Normalize,
        OutputGrid,
        Overlap,
        Padding,
        Path,
        Placement,
        PredictPlan,
        Preset,
        Reduce,
        Settings,
        Size,
        Tta,
        Values,
        VolumeLike,
    )

    #: A setting of all outputs, or a dictionary of the outputs' own.
    T = TypeVar("T")
    Each = Union[T, Mapping[Any, T]]

    class PredictOptions(StorageOptions, total=False):
        """The keywords of :func:`predict` on which the type of its result does not depend."""

        batch_size: int
        blend: Each[Blend] | None
        blend_on: BlendOn
        device_memory: int | None
        reduce: Each[Reduce]
        dtype: Each[DType] | None
        halo: Each[Size] | None
        scale: Each[int] | None
        labels: Sequence[int] | None
        padding: Padding | None
        margin: Size | None
        placement: Placement | None
        preset: Preset | None
        mask: VolumeLike | None
        tolerance: float
        same_grid: bool
        vote: Sequence[float] | None
        fill: float
        average_integers: bool
        clip: bool
        non_finite: NonFinite
        accumulator: Accumulator
        output_grid: OutputGrid | None
        normalize: Normalize | None
        tta: Tta | None
        memory: int
        threads: int | None
        resume: bool
        durability: Durability
        model_id: str | None
        values: Values | None
        progress: bool | Callable[[int, int], object]
        device: object
        devices: Sequence[object] | None


Model = Union[Callable[..., Any], str, "os.PathLike[str]"]
Name = TypeVar("Name")

# fmt: off
@overload
def predict(
    model: Model, volume: VolumeLike, output: None, patch_size: Size, overlap: Overlap | None = None, *,
    part: None = None, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> Array: ...
@overload
def predict(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
    model: Model, volume: VolumeLike, output: Path, patch_size: Size, overlap: Overlap | None = None, *,
    part: None = None, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> Volume: ...
@overload
def predict(
    model: Model, volume: VolumeLike, output: Mapping[Name, Path], patch_size: Size, overlap: Overlap | None = None, *,
    part: None = None, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> dict[Name, Volume]: ...
@overload
def predict(
    model: Model, volume: VolumeLike, output: Sequence[Path], patch_size: Size, overlap: Overlap | None = None, *,
    part: None = None, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> list[Volume]: ...
@overload
def predict(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
    model: Model, volume: VolumeLike, output: Path, patch_size: Size, overlap: Overlap | None = None, *,
    part: int, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> Volume | None: ...
@overload
def predict(
    model: Model, volume: VolumeLike, output: Mapping[Name, Path], patch_size: Size, overlap: Overlap | None = None, *,
    part: int, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> dict[Name, Volume] | None: ...
@overload
def predict(
    model: Model, volume: VolumeLike, output: Sequence[Path], patch_size: Size, overlap: Overlap | None = None, *,
    part: int, num_parts: int = 1, dry_run: Literal[False] = False, **options: Unpack[PredictOptions],
) -> list[Volume] | None: ...
@overload
def predict(
    model: Model, volume: VolumeLike, output: Outputs | None, patch_size: Size, overlap: Overlap | None = None, *,
    part: int | None = None, num_parts: int = 1, dry_run: Literal[True], **options: Unpack[PredictOptions],
) -> PredictPlan: ...
# fmt: on
def predict(
    model: Model,
    volume: VolumeLike,
    output: Outputs | None,
    patch_size: Size,
    overlap: Overlap | None = None,
    *,
    batch_size: int = 1,
    blend: Each[Blend] | None = None,
    reduce: Each[Reduce] = "mean",
    dtype: Each[DType] | None = None,
    halo: Each[Size] | None = None,
    scale: Each[int] | None = None,
    labels: Sequence[int] | None = None,
    padding: Padding | None = None,
    margin: Size | None = None,
    placement: Placement | None = None,
    preset: Preset | None = None,
    mask: VolumeLike | None = None,
    tolerance: float = 0.1,
    same_grid: bool = False,
    vote: Sequence[float] | None = None,
    fill: float = 0.0,
    average_integers: bool = False,
    clip: bool = False,
    non_finite: NonFinite = "refuse",
    accumulator: Accumulator = "float32",
    output_grid: OutputGrid | None = None,
    blend_on: BlendOn = "auto",
    device_memory: int | None = None,
    normalize: Normalize | None = None,
    tta: Tta | None = None,
    memory: int = 256 << 20,
    threads: int | None = None,
    resume: bool = False,
    part: int | None = None,
    num_parts: int = 1,
    durability: Durability = "none",
    model_id: str | None = None,
    values: Values | None = None,
    progress: bool | Callable[[int, int], object] = False,
    device: object = None,
    devices: Sequence[object] | None = None,
    dry_run: bool = False,
    **storage: Unpack[StorageOptions],
) -> Array | Volume | dict[Any, Volume] | list[Volume] | PredictPlan | None:
    """Predict a volume patch by patch, and blend the predictions on disk.

    The model is called on this thread only; patches are read, blended and written by threads without the interpreter's
    lock. The output is the same for any number of threads. Ctrl-C stops the run within a second.

    Parameters
    ----------
    model : torch.nn.Module, callable, str or path-like
        A module gets float32 tensors (B, C, Z, Y, X) on its device, in evaluation mode and without gradients. Any other
        callable gets numpy arrays, or tensors if `device` is given. The path of an ONNX file is run by the package
        onnxruntime. Predictions are arrays or tensors (B, K, Z, Y, X) of as many voxels as the patch, fewer (a rim is
        missing), or larger ones; several outputs are a tuple or a dictionary. The model is called once with zeros first.
    volume : Volume, str, path-like or array
        The volume to predict, with axes c, z, y, x. The model gets real values: slope and intercept are applied.
    output : str, path-like, sequence, dict or None
        Path of the output; one for each output of the model; or a dictionary of paths for those that are wanted, by name
        (of a model that gives a dictionary, or of ONNX outputs) or number (of one that gives a tuple). None gives an
        array.
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    overlap : int, float or three of them, optional
        What neighbors share along z, y, x: voxels (int), or a fraction of the patch from 0 up to 1 (float). Half the patch
        if neither it nor a `preset` says otherwise.
    batch_size : int, default 1
        Patches that the model gets at once.
    blend : {"average", "hann", "gaussian", "linear", "nnunet", "crop"}, Gaussian, array or dict, optional
        Weights of overlapping predictions, as in :class:`GridAggregator`; "hann" if neither it nor a `preset` says
        otherwise. Here and below, a dictionary has the outputs' own settings by name.
    reduce : {"mean", "softmax", "sigmoid", "argmax"}, Threshold, Quantize or dict, default "mean"
        Reduction of the blended channels.
    dtype : dtype or dict, optional
        Type of the output; that of the reduced predictions if not given.
    halo : int, (int, int, int) or dict, optional
        Voxels that predictions lack at each face along z, y, x. It follows from their size, unless that can be read in
        two ways, as 8 voxels for patches of 16.
    scale : int or dict, optional
        Voxels of the volume along one voxel of the predictions. It follows from their size, as `halo` does.
    labels : sequence of int, optional
        Output values of the classes of ``reduce="argmax"``.
    padding : float or {"constant", "edge", "reflect", "wrap"}, optional
        Let patches cover `margin` beyond each face too. A number is the value there, in the units of what the model gets:
        normalized ones if there is a `normalize`.
    margin : int or (int, int, int), optional
        Voxels along z, y, x that patches cover beyond each face; half the overlap if there is a `padding`.
    placement : {"edge", "even", "padded"}, optional
        Where patches start, as in :class:`GridSampler`; "edge" if neither it nor a `preset` says otherwise.
    preset : {"torchio", "monai", "nnunet"}, optional
        Place and weigh patches as another tool: "monai" as ``sliding_window_inference`` with mode gaussian and overlap
        0.25, "nnunet" with half a patch and Gaussian weights.
    mask : Volume, path or array, optional
        A volume of the same space, of any resolution and orientation: patches without foreground are not predicted.
    tolerance : float, default 0.1
        How far, in voxels, the corners of the mask may lie from the volume's.
    same_grid : bool, default False
        Match the mask by its shape where it does not say where it lies, such as an array.
    vote : sequence of float, optional
        Values, one for each channel, to blend for patches outside the mask. Without it, these patches are left out.
    fill : float, default 0
        Output value where no patch votes; the output's type must hold it.
    average_integers : bool, default False
        Whether integer predictions are quantities that may be averaged, and not class numbers.
    clip : bool, default False
        Write values beyond the range of the output's type as its nearest value, with a warning that counts them.
        Otherwise they are an error.
    non_finite : {"refuse", "leave-out", "keep"}, default "refuse"
        What to do with patches that have NaN, infinity, or values that the output or the sums cannot hold.
    accumulator : {"float32", "float16", "bfloat16"}, default "float32"
        Type of the weighted sums.
    output_grid : {"model", "source"}, optional
        Grid of the output for a volume that was opened with a `spacing`, `orientation` or `like`: that of the volume, which
        the model gets, or that of its file. Blended predictions are resampled to it linearly, a block at a time, and reduced
        there, so labels are never resampled. "source" if not given, but "model" for a `box` of the volume.
    blend_on : {"auto", "device", "host"}, default "auto"
        Where predictions are blended. "device" keeps the weighted sums of unfinished voxels where the model leaves its
        predictions, such as on a GPU, and only reduced values come down; what it cannot do is an error that says why.
        "auto" blends on a GPU if the plan fits its free memory, in several passes if need be, and in the memory of the
        host otherwise, on CPUs, for runs that can be resumed or have parts, and for an output on another grid.
    device_memory : int, optional
        Bytes of the device that blending may take; what the model leaves free if not given.
    normalize : {"zscore", "zscore:nonzero"}, (float, float), Percentile, MeanStd, NnunetCt, Within or list, optional
        Normalize what the model gets: z-scores of each channel of the volume, or of its voxels that are not 0; the values
        that become 0 and 1; or :class:`Percentile`, :class:`MeanStd` or :class:`NnunetCt`. A list has one for each channel.
        :class:`Within` measures only voxels of a mask.
    tta : {"flips"}, optional
        Predict each patch from all eight sides, and take the mean.
    memory : int, default 268435456
        Bytes that everything except the model may take.
    threads : int, optional
        Threads that read and blend; one for each core, and at least two, if not given.
    resume : bool, default False
        Resume an interrupted run that had it, and keep partial output if this one is interrupted.
    part : int, optional
        Number of the part, from 0, that this call writes; other processes or machines write the others. It can be resumed.
    num_parts : int, default 1
        Number of parts.
    durability : {"none", "chunk"}, default "none"
        What finished chunks of a run that can be resumed survive: a killed process, or a power failure too.
    model_id : str, optional
        Identifier of the model, for runs that can be resumed: it must change with everything that predictions depend on.
        A module is identified by its weights, an ONNX file by its bytes and those of its weights, and a function of a
        module by its name; anything else needs it.
    values : {"real", "stored"} or dtype, optional
        Values of the volume, as in :func:`open`.
    progress : bool or callable, default False
        True shows a bar if tqdm is installed; a callable gets ``(done, total)``.
    device : torch.device or str, optional
        Device of the tensors that a callable gets, or on which onnxruntime runs a network: "cpu", "cuda" or "cuda:N".
    devices : sequence of torch.device or str, optional
        Devices that share the batches in turn, such as ``["cuda:0", "cuda:1"]``: each has a copy of the module or network,
        and a thread on which it is called. Predictions blended on a device go to the first one. A callable is the same for
        all, and gets tensors on each device.
    dry_run : bool, default False
        Write nothing, and return what the run would need.
    **storage : StorageOptions
        How outputs are stored: ``zarr``, ``chunk``, ``shard``, ``codec``, ``clevel``, ``pyramid``, ``levels``,
        ``overwrite`` and ``storage_options``, as in :func:`write`.

    Returns
    -------
    Volume, list of Volume, dict of Volume, numpy.ndarray or None
        The written volumes, opened, in the form of `output`; an array (K, Z, Y, X) for None. While parts are missing, None.
        With ``dry_run=True`` a dictionary: ``patches`` and ``patches_predicted``; ``passes``, in which outputs are
        written; ``blend_on``, "device" or "host"; ``device_bytes`` that blending takes on the device, without the model and
        its predictions; ``peak_bytes``, which `memory` bounds; ``model_bytes`` and ``process_bytes``, the memory of the model and
        of the whole process, measured on one batch; ``output_bytes`` of each output before compression; ``free_bytes`` on
        the disk; ``estimated_seconds``.

    Raises
    ------
    ValueError
        If options, the model's predictions and the volume do not fit each other, or `memory` is too small.
    FileExistsError
        If something is at `output`, and ``overwrite`` is not True.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.random.default_rng(0).normal(size=(20, 24, 28)).astype(np.float32)
    >>> voxpatch.write("scan.zarr", scan, spacing=(2, 1, 1), chunk=8, shard=16).shape
    (1, 20, 24, 28)
    >>> def double(batch):
    ...     return 2 * batch
    >>> doubled = voxpatch.predict(double, "scan.zarr", "doubled.zarr", patch_size=12, batch_size=4)
    >>> np.allclose(doubled[0], 2 * scan, atol=1e-5)
    True
    """
    if output is not None:
        check_outputs(output)
    elif resume or part is not None:
        raise InvalidError("output=None gives an array, which cannot be resumed or written in parts: give a path")
    opened = as_volume(volume, values)
    call = calls(model, device, devices)
    with call.ready(), _place(output) as places:
        outputs, settings = described(
            call,
            opened,
            places,
            patch_size,
            overlap,
            batch_size=batch_size,
            blend=blend,
            reduce=reduce,
            dtype=dtype,
            halo=halo,
            scale=scale,
            labels=labels,
            padding=padding,
            margin=margin,
            placement=placement,
            preset=preset,
            tolerance=tolerance,
            same_grid=same_grid,
            vote=vote,
            fill=fill,
            average_integers=average_integers,
            clip=clip,
            non_finite=non_finite,
            accumulator=accumulator,
            output_grid=output_grid,
            normalize=normalize,
            tta=tta,
            memory=memory,
            threads=threads,
            durability=durability,
            **storage,
        )
        settings.update(
            devices=len(call.calls) if isinstance(call, CallsInTurn) else 1,
            part=_part(resume, part, num_parts),
            work="dry-run" if dry_run else "run",
        )
        if settings["part"] is not None:
            settings["model_id"] = call.identity() if model_id is None else model_id
        with shown_progress(progress) as tell:
            chosen = None if mask is None else as_volume(mask)
            done: Settings = {}
            places_to_blend = places_of_sums(
                call,
                blend_on,
                None if device_memory is None else count("device_memory", device_memory),
                flips=settings["flips"],
                resumed=settings["part"] is not None,
                crop=[str(output["blending"]["blend"]) == "crop" for output in outputs],
                batch=settings["batch"],
            )
            for sums in places_to_blend:
                settings.update(blend_on=sums.word, device_memory=sums.memory, prepare_on=sums.prepare_on)
                try:
                    done = _predict(sums.call, opened, outputs, settings, chosen, tell)
                    break
                except (DeviceMemoryError, InvalidError):
                    # The host can also do what the device cannot, such as writing on another grid.
                    if sums.is_last:
                        raise
        if dry_run:
            return cast("PredictPlan", done)
        _log(opened, done)
        for stats in done["outputs"]:
            warn_of_clipped(stats, stacklevel=2)
        if not done["whole"]:
            return None
        if output is None:
            return open_volume(outputs[0]["path"])[...]
        return written(output, outputs)


def written(output: Outputs, outputs: Sequence[Settings]) -> Volume | dict[Any, Volume] | list[Volume]:
    """Open the outputs, in the form in which their paths were given."""
    found = {
        out["name"]: open_volume(out["path"], storage_options=dict(out["storage"].get("storage_options", ()))) for out in outputs
    }
    if isinstance(output, Mapping):
        return {name: found[str(name)] for name in output}
    volumes = list(found.values())
    return volumes[0] if isinstance(output, (str, os.PathLike)) else volumes


def described(
    call: Any,
    opened: Volume,
    places: Outputs,
    patch_size: Size,
    overlap: Overlap | None,
    *,
    batch_size: int,
    blend: Each[Blend] | None,
    reduce: Each[Reduce],
    dtype: Each[DType] | None,
    halo: Each[Size] | None,
    scale: Each[int] | None,
    labels: Sequence[int] | None,
    padding: Padding | None,
    margin: Size | None,
    placement: Placement | None,
    preset: Preset | None,
    tolerance: float,
    same_grid: bool,
    vote: Sequence[float] | None,
    fill: float,
    average_integers: bool,
    clip: bool,
    non_finite: NonFinite,
    accumulator: Accumulator,
    output_grid: OutputGrid | None,
    normalize: Normalize | None,
    tta: Tta | None,
    memory: int,
    threads: int | None,
    durability: Durability,
    **storage: Unpack[StorageOptions],
) -> tuple[list[Settings], Settings]:
    """Return the outputs and the settings of a whole run, as the compiled half takes them; ``call`` knows its outputs."""
    stored = storage_options("predict", storage)
    patch = size("patch_size", patch_size)
    settings = _placed(opened.shape[1:], patch, overlap, blend, padding, margin, placement, preset)
    weights = settings.pop("blend")
    outputs: list[Settings] = []
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
                    _of(weights, name, "hann"),
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
        devices=1,
        normalize=normalization(normalize),
        flips=_flips(tta),
        part=None,
        durability=durability,
        model_id="",
        work="run",
        count=1,
        repeats=False,
        measured=None,
        blend_on="host",
        device_memory=None,
        prepare_on="host",
        tolerance=float(tolerance),
        same_grid=bool(same_grid),
        output_grid=output_grid,
    )
    return outputs, settings


def _log(volume: Volume, done: Settings) -> None:
    import logging  # whose import takes longer than that of this package

    logging.getLogger("voxpatch").info("%s predicted: %s", volume.path or "a volume in memory", done)


@contextmanager
def _place(output: Outputs | None) -> Iterator[Outputs]:
    """Yield where outputs go: into a temporary folder if nothing was given."""
    if output is not None:
        yield output
        return
    import tempfile  # and much with it

    with tempfile.TemporaryDirectory(prefix="voxpatch-") as folder:
        yield os.path.join(folder, "output.npy")


def _placed(
    volume: Sequence[int],
    patch: tuple[int, int, int],
    overlap: Overlap | None,
    blend: Each[Blend] | None,
    padding: Padding | None,
    margin: Size | None,
    placement: str | None,
    preset: Preset | None,
) -> Settings:
    """Return where patches lie, and how they are weighed."""
    fits = {"monai": 0.0, "nnunet": 0.0}
    if preset not in (None, "torchio", *fits):
        raise InvalidError(f"preset {preset!r}: it is 'torchio', 'monai' or 'nnunet'")
    if overlap is None:
        overlap = {"monai": 0.25}.get(preset or "", 0.5)
    lengths = overlap_voxels(overlap, patch)
    if preset == "monai":
        z, y, x = (0 if p == n else length for length, p, n in zip(lengths, patch, volume))
        lengths = (z, y, x)
    beyond = (0, 0, 0) if padding is None else tuple(length // 2 for length in lengths)
    margins = beyond if margin is None else size("margin", margin, least=0)
    if placement is None:
        placement = _even(volume, patch, margins, three("overlap", overlap)) if preset == "nnunet" else "edge"
    return {
        "patch": patch,
        "overlap": lengths,
        "placement": placement,
        "padding": fits.get(preset or "") if padding is None else padding,
        "margin": margins,
        "blend": {"monai": "monai:0.125", "nnunet": "nnunet"}.get(preset or "", "hann") if blend is None else blend,
    }


def _even(volume: Sequence[int], patch: Sequence[int], margins: Sequence[int], overlaps: Sequence[float]) -> str:
    """Return the placement of nnU-Net, whose step is a fraction of the patch that need not be a whole number of voxels."""
    if not all(isinstance(overlap, float) for overlap in overlaps):
        return "even"
    rooms = [max(0, n + 2 * margin - p) for n, p, margin in zip(volume, patch, margins)]
    counts = [math.ceil(room / (p * (1 - overlap))) + 1 for room, p, overlap in zip(rooms, patch, overlaps)]
    return "even:" + ",".join(map(str, counts))


def _of(setting: Any, name: Any, default: Any) -> Any:
    """Return the setting of an output."""
    return setting.get(name, default) if isinstance(setting, Mapping) else setting


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
def shown_progress(wanted: bool | Callable[[int, int], object]) -> Iterator[Callable[[int, int], object] | None]:
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
