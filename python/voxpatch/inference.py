"""Prediction: patches that cover a volume, and blending their predictions into another one."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from . import _voxpatch
from ._voxpatch import Blender, Grid, Volume
from ._voxpatch import open as open_volume
from .errors import InvalidError
from .subject import Subject

if TYPE_CHECKING:
    import numpy as np  # whose import takes longer than all of this

Size = Union[int, Sequence[int]]
#: How Python libraries call what stands beyond a volume's faces.
PADDINGS = {"edge": "edge", "replicate": "edge", "reflect": "reflect", "circular": "wrap", "wrap": "wrap"}


def _padding(mode: float | str | None) -> float | str | None:
    if mode is None or isinstance(mode, (int, float)):
        return mode
    if mode in ("constant", "zeros"):
        return 0.0
    if mode not in PADDINGS:
        raise InvalidError(f"padding_mode {mode!r}: it is a number, 'constant' or one of {', '.join(sorted(PADDINGS))}")
    return PADDINGS[mode]


class GridSampler:
    """Patches that cover a volume, with an overlap: a sequence, and so a map-style dataset.

    ``subject`` is a :class:`Subject`, a :class:`Volume`, a path or an array. Each item is ``{"ct": array
    (C, Z, Y, X), ..., "location": int64 (6,)}``, with the name ``"image"`` for a volume that has none; a
    location is the first voxel along z, y, x and one past the last. A torch ``DataLoader`` makes batches
    of them, with any number of workers.

    ``patch_overlap`` are the voxels that neighbours share. ``padding_mode`` pads the volume by half the overlap at each
    face (a number, ``"edge"``, ``"reflect"`` or ``"wrap"``); locations may then be negative, and
    :class:`GridAggregator` crops what hangs over. ``placement`` says where patches start: ``"edge"`` (the
    last is moved to the edge), ``"even"`` or ``"padded"`` (the last hangs over).
    """

    def __init__(
        self,
        subject: Subject | Mapping[str, Any] | Volume | str | os.PathLike[str] | np.ndarray[Any, Any],
        patch_size: Size,
        patch_overlap: Size = 0,
        padding_mode: float | str | None = None,
        *,
        placement: str = "edge",
    ) -> None:
        if isinstance(subject, Subject):
            self.subject = subject
        elif isinstance(subject, Mapping):
            self.subject = Subject(**subject)
        else:
            volume = open_volume(subject) if isinstance(subject, (str, os.PathLike)) else subject
            self.subject = Subject(image=volume)
        self.patch_size = _three(patch_size)
        self.patch_overlap = _three(patch_overlap)
        self.padding_mode = padding_mode
        self.placement = placement
        self._grid: Grid | None = None
        self._locations: np.ndarray[Any, Any] | None = None

    @property
    def grid(self) -> Grid:
        """Where the patches lie."""
        if self._grid is None:
            self._grid = Grid(
                self._volume().shape[1:],
                self.patch_size,
                self.patch_overlap,
                self.placement,
                _padding(self.padding_mode),
            )
        return self._grid

    def _volume(self) -> Volume:
        return self.subject[next(iter(self.subject.volumes))]  # type: ignore[no-any-return]

    @property
    def locations(self) -> np.ndarray[Any, Any]:
        """First voxel along z, y, x and one past the last of each patch: int64 (n, 6)."""
        if self._locations is None:
            self._locations = self.grid.locations()
        return self._locations

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index}: there are {len(self)}")
        index %= len(self)
        found: dict[str, Any] = {
            name: self.grid.read(self.subject[name], index) for name in self.subject.volumes
        }
        found["location"] = self.locations[index].copy()
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _grid_sampler, (self.subject, self.patch_size, self.patch_overlap, self.padding_mode, self.placement)

    def __repr__(self) -> str:
        return f"<voxpatch.GridSampler of {len(self)} patches {self.patch_size}, overlap {self.patch_overlap}>"


def _grid_sampler(subject: Subject, size: Any, overlap: Any, padding: Any, placement: str) -> GridSampler:
    return GridSampler(subject, size, overlap, padding, placement=placement)


class GridAggregator:
    """Blends predictions of a :class:`GridSampler`'s patches into a volume, which is written while they come.

    Patches may come in any order, each once. What is not final is held in memory, which is little if they come
    in the sampler's order. ``output`` is a path (Zarr, or ``.npy``, ``.nii``, ``.nrrd``, ``.mhd``), or None for a temporary
    one that goes with this object; ``options`` say how it is stored, as in :func:`voxpatch.write`.

    ``overlap_mode``: ``"crop"`` (each voxel from the patch in which it lies deepest), ``"average"``,
    ``"hann"``, ``"gaussian"``, ``"linear"``, ``"nnunet"``, ``"monai"``, or an array of weights of the patch's shape.
    ``reduce``: ``"mean"``, ``"softmax"``, ``"sigmoid"``, ``"argmax"``, ``"threshold:VALUE"``,
    ``"quantise:LOW,HIGH"``, or the label of each class.
    """

    def __init__(
        self,
        sampler: GridSampler,
        overlap_mode: Any = "crop",
        output: str | os.PathLike[str] | None = None,
        reduce: str | Sequence[int] = "mean",
        *,
        accumulator: str = "float32",
        non_finite: str = "refuse",
        fill: float = 0.0,
        **options: Any,
    ) -> None:
        self.sampler = sampler
        self.overlap_mode = overlap_mode
        self.reduce = reduce
        self._options = options
        self._settings: dict[str, Any] = {"accumulator": accumulator, "non_finite": non_finite, "fill": fill}
        self._blender: Blender | None = None
        self._output = output
        self._temporary: str | None = None
        self._torch = False
        self._done: dict[str, Any] | None = None
        self._volume: Volume | None = None

    def _path(self) -> str:
        if self._output is not None:
            return os.fspath(self._output)
        import shutil
        import tempfile

        self._temporary = tempfile.mkdtemp(prefix="voxpatch-")
        weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        return os.path.join(self._temporary, "output.zarr")

    def add_batch(self, batch: Any, locations: Any) -> None:
        """Adds predictions (b, c, z, y, x), an array or a tensor on any device, of the patches at ``locations`` (b, 6)."""
        import numpy as np

        self._torch |= _is_tensor(batch)
        predictions = _array(batch)
        if predictions.ndim != 5:
            raise InvalidError(f"a batch of shape {predictions.shape}: it has axes b, c, z, y, x")
        starts = np.atleast_2d(_array(locations))[:, :3].tolist()
        grid = self.sampler.grid
        indices = [grid.index(start) for start in starts]
        if self._blender is None:
            if self._volume is not None:
                raise InvalidError("the output is finished: make another aggregator for another pass")
            self._blender = Blender(
                grid,
                self.sampler._volume(),
                predictions.shape[1],
                predictions.dtype,
                self.overlap_mode,
                self.reduce,
                self._path(),
                options=self._options or None,
                **self._settings,
            )
        self._blender.add(indices, predictions)

    def finish(self) -> Volume:
        """Finishes the output, once every patch is in, and opens it."""
        if self._volume is None:
            if self._blender is None:
                raise InvalidError("no patch was added")
            self._done, self._volume = self._blender.finish()
            self._blender = None
        return self._volume

    def get_output_tensor(self) -> Any:
        """The whole output in memory, (c, z, y, x): a tensor if tensors were added, an array otherwise."""
        import numpy as np

        found = np.asarray(self.finish())
        return sys.modules["torch"].from_numpy(found) if self._torch else found

    @property
    def stats(self) -> dict[str, Any]:
        """What was done, once it is finished: patches, chunks written, voxels that no patch covers, bytes held."""
        return dict(self._done or {})


def predict(
    model: Callable[[Any], Any],
    volume: Volume | str | os.PathLike[str] | np.ndarray[Any, Any],
    output: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    patch_size: Size,
    patch_overlap: Size = 0,
    batch_size: int = 1,
    *,
    overlap_mode: Any = "hann",
    reduce: str | Sequence[int] = "mean",
    padding_mode: float | str | None = None,
    placement: str = "edge",
    preset: str | None = None,
    mask: Volume | str | os.PathLike[str] | np.ndarray[Any, Any] | None = None,
    memory: int = 512 << 20,
    num_workers: int | None = None,
    normalize: str = "none",
    tta: str | None = None,
    resume: bool = False,
    part: int | None = None,
    num_parts: int = 1,
    durable: bool = False,
    model_id: str | None = None,
    device: Any = None,
    accumulator: str = "float32",
    non_finite: str = "refuse",
    fill: float = 0.0,
    progress: bool | Callable[[int, int], None] = False,
    **options: Any,
) -> Any:
    """Predicts all of a volume, patch by patch, into a volume on disk, and opens it.

    ``model`` gets a batch (b, c, z, y, x) of float32, real values (slope and intercept applied), and gives one (b, k, z, y,
    x), or a tuple of several, each with an ``output`` of its own. A ``torch.nn.Module`` gets tensors on its own
    device (or on ``device``), without gradients and in evaluation mode; anything else gets tensors if ``device`` is
    given, arrays otherwise. Predictions may have other channels and types, be a half or a quarter as
    fine, or lack some voxels at each face. The model is called on this thread; reading, blending and
    writing go on meanwhile, within ``memory`` bytes.

    ``preset`` places and weighs patches as ``"torchio"``, ``"monai"`` or ``"nnunet"`` do. ``mask`` is a volume of
    any resolution: patches without foreground are left out. ``normalize`` is ``"zscore"`` or ``"ct:LOW,HIGH"``;
    ``tta="flips"`` averages over the eight mirror images. ``options`` say how the output is stored, as in
    :func:`voxpatch.write`; the rest is as in :class:`GridSampler` and :class:`GridAggregator`.

    With ``resume`` a run that was stopped or killed is gone on with where it was, to the same bytes; another
    model is refused by its ``model_id`` (for a module its weights' hash if nothing is said). With ``part`` of
    ``num_parts`` (from 0) only that part's chunks are written; the last of them to end puts the output together, and None
    comes back from the others. ``progress`` is True for a bar (by tqdm, if it is there), or is called
    with the patches done and in all.
    """
    source = _volume(volume)
    paths = [output] if isinstance(output, (str, os.PathLike)) else list(output)
    size, overlap = _three(patch_size), _three(patch_overlap)
    padding = _padding(padding_mode)
    margin = [length // 2 for length in overlap]
    if preset is not None:
        if preset not in ("torchio", "monai", "nnunet"):
            raise InvalidError(f"preset {preset!r}: it is 'torchio', 'monai' or 'nnunet'")
        if preset != "torchio":
            padding, margin = 0.0 if padding is None else padding, [0, 0, 0]
            overlap_mode = preset if overlap_mode == "hann" else overlap_mode
            placement = "even" if preset == "nnunet" else "edge"
        if preset == "monai":
            overlap = [0 if p == n else o for o, p, n in zip(overlap, size, source.shape[1:], strict=True)]
    if tta not in (None, "flips"):
        raise InvalidError(f"tta {tta!r}: it is 'flips'")
    if part is not None and not 0 <= part < num_parts:
        raise InvalidError(f"part {part}: there are {num_parts}, counted from 0")
    called = _called(model, device)
    settings = {
        "patch_size": size,
        "patch_overlap": overlap,
        "placement": placement,
        "padding": padding,
        "margin": margin,
        "memory": memory,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "overlap_mode": overlap_mode,
        "reduce": reduce,
        "part": None if part is None else (part, num_parts),
        "resume": resume,
        "accumulator": accumulator,
        "non_finite": non_finite,
        "fill": fill,
        "normalize": normalize,
        "flips": tta == "flips",
        "durable": durable,
    }
    with _bar(progress) as bar:
        done = _voxpatch.predict(
            called,
            source,
            _outputs(called, source.shape[0], size, len(paths)),
            paths,
            settings,
            model_id=_identity(model) if model_id is None else model_id,
            progress=bar,
            mask=None if mask is None else _volume(mask),
            storage=options or None,
        )
    if not done["whole"]:
        return None
    volumes = [open_volume(path) for path in paths]
    return volumes[0] if isinstance(output, (str, os.PathLike)) else volumes


def _volume(given: Any) -> Volume:
    if isinstance(given, Volume):
        return given
    if isinstance(given, (str, os.PathLike)):
        return open_volume(given)
    return Volume.from_array(given)


def _three(size: Size) -> list[int]:
    three = [size] * 3 if isinstance(size, int) else [int(length) for length in size]
    if len(three) != 3:
        raise InvalidError(f"{size}: give one whole number, or three for z, y, x")
    return three


def _is_tensor(given: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def _array(given: Any) -> np.ndarray[Any, Any]:
    if _is_tensor(given):
        given = given.detach().cpu()
        if given.dtype == sys.modules["torch"].bfloat16:
            given = given.float()
        return given.numpy()  # type: ignore[no-any-return]
    import numpy as np

    return np.asarray(given)


def _called(model: Callable[[Any], Any], device: Any) -> Callable[[Any], list[np.ndarray[Any, Any]]]:
    """The model as a function of an array that gives a list of arrays."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(model, torch.nn.Module)
    if not callable(model):
        raise InvalidError(f"{model!r} is no model: give a function or a torch.nn.Module")

    def arrays(found: Any) -> list[np.ndarray[Any, Any]]:
        several = found if isinstance(found, (tuple, list)) else (found,)
        return [_array(one) for one in several]

    if torch is None or not (is_module or device is not None):
        return lambda batch: arrays(model(batch))
    if device is None:
        first = next(model.parameters(), None)  # type: ignore[attr-defined]
        device = "cpu" if first is None else first.device

    def call(batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        was_training = is_module and model.training  # type: ignore[attr-defined]
        if was_training:
            model.eval()  # type: ignore[attr-defined]
        try:
            with torch.no_grad():
                return arrays(model(torch.from_numpy(batch).to(device)))
        finally:
            if was_training:
                model.train()  # type: ignore[attr-defined]

    return call


def _outputs(
    called: Callable[[Any], list[np.ndarray[Any, Any]]], channels: int, size: list[int], count: int
) -> list[tuple[int, Any, list[int], int]]:
    """What comes out of the model, found out by a patch of zeros."""
    import numpy as np

    found = called(np.zeros((1, channels, *size), np.float32))
    if len(found) != count:
        raise InvalidError(f"the model gives {len(found)} outputs, and there are {count} paths")
    outputs = []
    for one in found:
        if one.ndim != 5 or one.shape[0] != 1:
            raise InvalidError(f"a prediction of shape {one.shape} for a batch of one: it has axes b, c, z, y, x")
        halo, scale = _geometry(size, list(one.shape[2:]))
        outputs.append((one.shape[1], one.dtype, halo, scale))
    return outputs


def _geometry(size: list[int], out: list[int]) -> tuple[list[int], int]:
    """What a prediction lacks at each face, and how much coarser it is."""
    for scale in (2**power for power in range(1, 11)):
        if [length * scale for length in out] == size:
            return [0, 0, 0], scale
    lacking = [length - left for length, left in zip(size, out, strict=True)]
    if any(lack < 0 or lack % 2 for lack in lacking):
        raise InvalidError(
            f"a prediction of {out} voxels for a patch of {size}: it is as large, a half or a quarter as large, or "
            "lacks the same number of voxels at both faces"
        )
    return [lack // 2 for lack in lacking], 1


def _identity(model: Any) -> str:
    """What tells a model from others, for a run that is gone on with."""
    import hashlib

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        digest = hashlib.sha256(repr(model).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            digest.update(_array(value).tobytes())
        return f"module {digest.hexdigest()}"
    kind = model if hasattr(model, "__qualname__") else type(model)
    return f"{kind.__module__}.{kind.__qualname__}"


class _Bar:
    """A bar on the terminal, by tqdm if it is there."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="patch")

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _Silent:
    """What is told to a function, or to nobody."""

    def __init__(self, told: Callable[[int, int], None] | None) -> None:
        self._told = told

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self._told

    def __exit__(self, *_: object) -> None:
        pass


def _bar(progress: bool | Callable[[int, int], None]) -> Any:
    if progress is True:
        try:
            return _Bar()
        except ImportError:
            return _Silent(None)
    return _Silent(None if progress is False else progress)
