"""Prediction by many processes or machines: a job, its tasks, and the publication of what they wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import _voxpatch
from ._voxpatch import Volume, _predict
from .calls import CallsInTurn, Outputs, calls, check_outputs
from .errors import InvalidError
from .files import absolute
from .inference import as_volume, warn_of_clipped
from .prediction import described, predict, shown_progress, written
from .sizes import count, size

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import DType, JobStatus, Overlap, Path, Settings, Size, TaskDone, VolumeLike
    from .prediction import Model, PredictOptions

#: What JSON has, or what it is made of.
Json = Any

#: Options of a run that its tasks have, and not the plan.
_OF_TASKS = ("blend_on", "device", "device_memory", "devices", "progress", "resume")

#: Options of stores that are no secrets, and that tasks need to find a volume.
_OPEN_OPTIONS = {
    "account_name", "allow_http", "anon", "anonymous", "azure_storage_account_name", "bucket", "endpoint", "endpoint_url",
    "aws_endpoint", "aws_endpoint_url", "aws_region", "region", "region_name",
}  # fmt: skip


class Job:
    """A planned prediction that many processes write together; :func:`plan_predict` makes it.

    It can be pickled, and written as JSON. It holds no model: each task gets it when it runs.

    Parameters
    ----------
    volume : Volume
        The volume to predict.
    mask : Volume, optional
        The mask of the patches to predict.
    output : str, list or dict
        Absolute paths of the outputs.
    outputs : list of dict
        The outputs, as the compiled half takes them.
    settings : dict
        The settings, as the compiled half takes them.
    has_own_id : bool
        Whether `model_id` was given, and is not that of the model's weights.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> voxpatch.write("scan.zarr", np.zeros((20, 24, 28), np.float32), chunk=8, shard=8).shape
    (1, 20, 24, 28)
    >>> job = voxpatch.plan_predict("scan.zarr", "out.zarr", 12, channels=1, model_id="double", chunk=4, shard=8)
    >>> job.status()["published"], voxpatch.Job.from_json(job.to_json()).model_id
    (False, 'double')
    """

    def __init__(
        self,
        volume: Volume,
        mask: Volume | None,
        output: Outputs,
        outputs: list[Settings],
        settings: Settings,
        has_own_id: bool,
    ) -> None:
        #: Absolute paths of the outputs.
        self.output = output
        self._volume = volume
        self._mask = mask
        self._outputs = outputs
        self._settings = settings
        self._has_own_id = has_own_id

    @property
    def model_id(self) -> str:
        """Identifier of the model that all tasks must have."""
        return str(self._settings["model_id"])

    def tasks(self, number: int) -> list[Task]:
        """Split the job into tasks that share nothing, those with most patches first.

        Parameters
        ----------
        number : int
            The most tasks: better some more than there are workers. There are fewer if the outputs have fewer layers of
            shards. All tasks of an output must come from the same number.

        Returns
        -------
        list of Task
            The tasks. Each owns whole shards of the outputs.
        """
        parts = count("number", number, least=1, most=2**32 - 1)
        return [Task(self, parts, **task) for task in self._do("tasks", count=parts)["tasks"]]

    def status(self) -> JobStatus:
        """Return the progress of all tasks, as it is noted next to the outputs.

        Returns
        -------
        dict
            ``published``, whether the outputs have their names; ``complete``, whether all chunks are there; ``parts``, the
            number of parts, or None before one has begun; ``begun``, the number of each part that has begun, its finished
            chunks and all of them; ``chunks_done`` and ``chunks`` of all outputs.
        """
        return self._do("status")  # type: ignore[return-value]

    def commit(self) -> Any:
        """Give complete outputs their names, if the last task has not done so.

        Several processes may do this at once.

        Returns
        -------
        Volume, list of Volume or dict of Volume
            The outputs, opened, in the form of their paths.

        Raises
        ------
        VoxpatchError
            If tasks are missing; it names their parts.
        """
        self._do("commit")
        return written(self.output, self._outputs)

    def _do(self, work: str, **changes: Any) -> Settings:
        """Do what needs no model."""
        settings = {**self._settings, "work": work, **changes}
        return _predict(_no_model, self._volume, self._outputs, settings, self._mask, None)

    def _check(self, call: Any) -> None:
        """Refuse a model that predicts something else than the one of the plan."""
        call.probe(self._volume.shape[0], self._settings["patch"], self.output)
        for out, shape, dtype in zip(self._outputs, call.shapes, call.dtypes):
            lengths = tuple((n - 2 * rim) // out["scale"] for n, rim in zip(self._settings["patch"], out["halo"]))
            planned = (out["channels"], *lengths), out["prediction"]
            if (tuple(shape), str(dtype)) != planned:
                raise InvalidError(
                    f"output {out['name']}: the model gives {str(dtype)} predictions of shape {tuple(shape)} for a patch, "
                    f"and the job was planned for {planned[1]} of {planned[0]}: plan it with this model"
                )
        if not self._has_own_id and (found := call.identity()) != self.model_id:
            raise InvalidError(f"the model is {found}, and the job was planned for {self.model_id}: plan it with this model")

    def to_json(self) -> str:
        """Write the job as JSON.

        Secrets of object stores are left out: tasks take them from their environment.

        Returns
        -------
        str
            The text, for :meth:`from_json`.

        Raises
        ------
        ValueError
            If a volume is an array in memory, which can only be pickled.
        """
        return json.dumps(self._plain(), allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read a job from JSON.

        Parameters
        ----------
        text : str
            What :meth:`to_json` returned.

        Returns
        -------
        Job
            The job.
        """
        return cls._of(_loaded(text, "job"))

    def _plain(self) -> Settings:
        return {
            "voxpatch": "job",
            "version": _voxpatch.__version__,
            "volume": _plain(self._volume),
            "mask": _plain(self._mask),
            "output": _named(self.output),
            "outputs": _plain(self._outputs),
            "settings": _plain(self._settings),
            "has_own_id": self._has_own_id,
        }

    @classmethod
    def _of(cls, found: Settings) -> Job:
        output = found["output"]
        return cls(
            _back(found["volume"]),
            _back(found["mask"]),
            dict(output["names"]) if isinstance(output, dict) else output,
            list(_back(found["outputs"])),
            _back(found["settings"]),
            found["has_own_id"],
        )

    def __repr__(self) -> str:
        paths = ", ".join(os.fspath(out["path"]) for out in self._outputs)
        return f"<voxpatch.Job: {self._volume.path or 'an array'} to {paths}>"


class Task:
    """A task of a :class:`Job`: some shards of the outputs, with every patch that touches them.

    It can be pickled, and written as JSON.

    Parameters
    ----------
    job : Job
        Its job.
    parts : int
        Number of parts.
    part : int
        Number of the part that it writes, from 0.
    patches : int
        Patches that it predicts.
    repeated_patches : int
        Those that an earlier part predicts too, because they touch both.
    input_bytes : int
        Bytes of the volume that it reads, before compression.
    regions : list of list of int
        For each output, what it owns: the first voxel along z, y, x and one past the last.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> voxpatch.write("scan.zarr", np.zeros((20, 24, 28), np.float32), chunk=8, shard=8).shape
    (1, 20, 24, 28)
    >>> job = voxpatch.plan_predict("scan.zarr", "out.zarr", 12, channels=1, model_id="double", chunk=4, shard=8)
    >>> [(task.part, task.patches, task.repeated_patches) for task in job.tasks(2)]
    [(1, 18, 9), (0, 18, 0)]
    """

    def __init__(
        self, job: Job, parts: int, part: int, patches: int, repeated_patches: int, input_bytes: int, regions: Sequence[Sequence[int]]
    ) -> None:
        self.job = job
        self.part = part
        self.parts = parts
        self.patches = patches
        self.repeated_patches = repeated_patches
        self.input_bytes = input_bytes
        self.regions = [[int(n) for n in region] for region in regions]

    def run(
        self,
        model: Model,
        *,
        device: object = None,
        devices: Sequence[object] | None = None,
        memory: int | None = None,
        threads: int | None = None,
        progress: bool | Callable[[int, int], object] = False,
    ) -> TaskDone:
        """Predict the task's patches and write its shards; the last task also publishes the outputs.

        It may be run again, or twice at once: the second run waits for the first one, and does what is missing if that
        was killed. In an object store nothing waits: both write the same bytes.

        Parameters
        ----------
        model : torch.nn.Module, callable, str or path-like
            The model, as in :func:`predict`; the same for all tasks.
        device : torch.device or str, optional
            Device of the model, as in :func:`predict`.
        devices : sequence of torch.device or str, optional
            Devices that share the batches, as in :func:`predict`.
        memory : int, optional
            Bytes that everything except the model may take; as planned if not given.
        threads : int, optional
            Threads that read and blend; as planned if not given.
        progress : bool or callable, default False
            As in :func:`predict`.

        Returns
        -------
        dict
            ``part`` and ``parts``; ``patches`` that were predicted, which are 0 if all was there; ``whole``, whether the
            outputs are published.

        Raises
        ------
        ValueError
            If the model is not the one that the job was planned for.
        """
        job = self.job
        settings = {**job._settings, "work": "run", "part": (self.part, self.parts), "repeats": True}
        if memory is not None:
            settings["memory"] = count("memory", memory)
        if threads is not None:
            settings["threads"] = count("threads", threads, least=1)
        call = calls(model, device, devices)
        with call.ready():
            job._check(call)
            settings["devices"] = len(call.calls) if isinstance(call, CallsInTurn) else 1
            with shown_progress(progress) as tell:
                done = _predict(call, job._volume, job._outputs, settings, job._mask, tell)
        for stats in done["outputs"]:
            warn_of_clipped(stats, stacklevel=2)
        return {"part": self.part, "parts": self.parts, "patches": done["patches"], "whole": done["whole"]}

    def to_json(self) -> str:
        """Write the task as JSON, with its job.

        Returns
        -------
        str
            The text, for :meth:`from_json`.
        """
        own = {key: value for key, value in self.__dict__.items() if key != "job"}
        return json.dumps({"voxpatch": "task", "job": self.job._plain(), "task": own}, allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read a task from JSON.

        Parameters
        ----------
        text : str
            What :meth:`to_json` returned.

        Returns
        -------
        Task
            The task.
        """
        found = _loaded(text, "task")
        return cls(Job._of(found["job"]), **found["task"])

    def __repr__(self) -> str:
        return f"<voxpatch.Task: part {self.part} of {self.parts}, {self.patches} patches of {self.job!r}>"


def plan_predict(
    volume: VolumeLike,
    output: Path | Sequence[Path] | Mapping[Any, Path],
    patch_size: Size,
    overlap: Overlap | None = None,
    *,
    model: Model | None = None,
    channels: int | None = None,
    prediction: DType = "float32",
    **options: Unpack[PredictOptions],
) -> Job:
    """Plan a prediction that many processes or machines write together; nothing is written yet.

    Workers must see the same files under the same paths, such as on a shared file system, or the same object store. Nothing
    else connects them: any engine that runs functions or commands will do.

    Parameters
    ----------
    volume : Volume, str, path-like or array
        The volume to predict, as in :func:`predict`.
    output : str, path-like, sequence or dict
        Path of the output, or paths of several, as in :func:`predict`. They must be Zarr.
    patch_size : int or (int, int, int)
        Voxels of a patch along z, y, x.
    overlap : int, float or three of them, optional
        What neighbors share along z, y, x, as in :func:`predict`.
    model : torch.nn.Module, callable, str or path-like, optional
        The model, which is called once to see its outputs.
    channels : int, optional
        Channels of the predictions, for a plan without the model: one output, with `halo` and `scale` as given, and a
        `model_id`.
    prediction : dtype, default "float32"
        Type of the predictions, for a plan without the model.
    **options : PredictOptions
        Everything else that :func:`predict` takes, except what tasks have of their own: `device` and `devices`, `progress`,
        `blend_on`, `device_memory` and `resume`.

    Returns
    -------
    Job
        The job. A normalization that measures the volume has been measured.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.random.default_rng(0).normal(size=(20, 24, 28)).astype(np.float32)
    >>> voxpatch.write("scan.zarr", scan, chunk=8, shard=8).shape
    (1, 20, 24, 28)
    >>> def double(batch):
    ...     return 2 * batch
    >>> job = voxpatch.plan_predict("scan.zarr", "doubled.zarr", patch_size=12, model=double, chunk=4, shard=8)
    >>> tasks = job.tasks(3)
    >>> [task.run(double)["whole"] for task in tasks]
    [False, False, True]
    >>> np.allclose(job.commit()[0], 2 * scan, atol=1e-5)
    True
    """
    given: Settings = dict(options)
    if wrong := [name for name in _OF_TASKS if name in given]:
        raise InvalidError(f"{wrong[0]}: not part of a plan; tasks have it when they run")
    check_outputs(output)
    opened = as_volume(volume, given.pop("values", None))
    mask = given.pop("mask", None)
    chosen = None if mask is None else as_volume(mask)
    model_id = given.pop("model_id", None)
    places = _absolute(output)
    call: Any
    if model is None:
        if channels is None or model_id is None:
            raise InvalidError("without the model, a plan needs its channels= and a model_id=")
        if not isinstance(places, str):
            raise InvalidError("without the model, a plan has one output: give its path")
        call = _Described(channels, prediction, given.get("halo"), given.get("scale"))
    else:
        if channels is not None:
            raise InvalidError("channels: the model says how many it has; give one of them")
        call = calls(model, None, None)
    with call.ready():
        usual = {name: value for name, value in _defaults().items() if name in described.__annotations__}
        outputs, settings = described(call, opened, places, patch_size, overlap, **{**usual, **given})
        for out in outputs:
            out["prediction"] = str(out["prediction"])
        settings["model_id"] = call.identity() if model_id is None else str(model_id)
    job = Job(opened, chosen, places, outputs, settings, model_id is not None)
    settings["measured"] = job._do("measure")["measured"]
    return job


class _Described:
    """A model of which only the predictions are known."""

    def __init__(self, channels: int, prediction: DType, halo: Any, scale: Any) -> None:
        import numpy as np

        self._channels = count("channels", channels, least=1)
        self._rim = size("halo", 0 if halo is None else halo, least=0)
        self._scale = 1 if scale is None else count("scale", scale, least=1)
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes = [np.dtype(prediction)]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Do nothing."""
        yield

    def probe(self, channels: int, patch: tuple[int, int, int], output: str) -> dict[int, str]:
        """Return the path of the output, and note the shape of predictions."""
        lengths = [(n - 2 * rim) // self._scale for n, rim in zip(patch, self._rim)]
        self.shapes = [(self._channels, *lengths)]
        return {0: output}


def _defaults() -> Settings:
    """Return the defaults of the options of :func:`predict`."""
    return dict(predict.__kwdefaults__ or {})


def _no_model(batch: object, locations: object) -> None:
    raise InvalidError("this part of a job has no model")


def _absolute(output: Json) -> Json:
    """Return the paths of outputs in the form in which they were given, absolute."""
    if isinstance(output, Mapping):
        return {name: absolute(path) for name, path in output.items()}
    if isinstance(output, (str, os.PathLike)):
        return absolute(output)
    return [absolute(path) for path in output]


def _named(output: Json) -> Json:
    """Return paths for JSON, whose objects have no numbers as names."""
    return {"names": list(output.items())} if isinstance(output, Mapping) else output


def _loaded(text: str, kind: str) -> Settings:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidError(f"this is not a {kind}: {error}") from error
    if not isinstance(found, dict) or found.get("voxpatch") != kind:
        raise InvalidError(f"this is not a {kind} of voxpatch: give what its to_json() returned")
    return found


def _public(options: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the options of a store that are no secrets."""
    return [one for one in options if one[0] in _OPEN_OPTIONS]


def _plain(value: Json) -> Json:
    """Return a value as JSON has it."""
    if isinstance(value, Volume):
        rebuild, arguments = value.__reduce__()
        if rebuild.__name__ == "_reopen":
            place, affine, opening, *others = arguments
            if not isinstance(place, (str, os.PathLike)):
                raise InvalidError(f"{value!r} is an array in memory: pickle the job, or write the array to a file first")
            path = os.fspath(place)
            if "://" in path and path.rstrip("/") != value.path:
                raise InvalidError(f"the address {value.path} has secrets: pickle the job, or give them as storage_options")
            *opening, storage, cache_dir, cache_bytes = opening
            arguments = (absolute(path), affine, (*opening, _public(storage), cache_dir, cache_bytes), *others)
        return {"volume": rebuild.__name__, "arguments": [_plain(one) for one in arguments]}
    if getattr(value, "ndim", 0) and hasattr(value, "__array__"):
        import numpy as np

        array = np.asarray(value)
        return {"array": array.tolist(), "dtype": str(array.dtype)}
    if isinstance(value, dict):
        return {key: _plain(_public(one) if key == "storage_options" else one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type) or hasattr(value, "newbyteorder"):
        import numpy as np

        return str(np.dtype(value))
    return value.item() if hasattr(value, "item") else value


def _back(value: Json) -> Json:
    """Return a value from JSON, with tuples in place of lists."""
    if isinstance(value, list):
        return tuple(_back(one) for one in value)
    if not isinstance(value, dict):
        return value
    if "arguments" in value:
        if value["volume"] not in ("_reopen", "_on_grid"):
            raise InvalidError(f"{value['volume']!r} does not open a volume")
        return getattr(_voxpatch, value["volume"])(*map(_back, value["arguments"]))
    if set(value) == {"array", "dtype"}:
        import numpy as np

        return np.array(value["array"], value["dtype"])
    return {key: _back(one) for key, one in value.items()}
