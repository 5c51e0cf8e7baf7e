"""A model as the compiled half calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Union

from .errors import InvalidError
from .inference import as_array, is_tensor
from .onnx import OnnxModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .options import Array, Path

#: Paths by the names of outputs: words for a model that gives a dictionary, numbers for one that gives a tuple.
Paths = Mapping[Any, "Path"]
#: Where outputs go: one path, one for each, or a dictionary of those that are wanted.
Outputs = Union["Path", Paths, Sequence["Path"]]


class Call:
    """A model that gets arrays and gives a list of them, one for each wanted output."""

    def __init__(self, model: Callable[..., Any] | Path, device: object) -> None:
        self.torch = sys.modules.get("torch")
        #: The model; a module has more attributes than a function.
        self.model: Any = model
        if isinstance(model, (str, os.PathLike)):
            self.model, device = OnnxModel(model, device), None
        elif not callable(model):
            raise InvalidError(f"model {model!r}: give a function, a torch.nn.Module, or the path of an ONNX file")
        self.is_module = self.torch is not None and isinstance(self.model, self.torch.nn.Module)
        if device is None and self.is_module:
            first = next(iter([*self.model.parameters(), *self.model.buffers()]), None)
            device = "cpu" if first is None else first.device
        if device is not None and self.torch is None:
            import torch

            self.torch = torch
        self.device = device
        #: The outputs that are wanted; None for all.
        self.wanted: list[Any] | None = None
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[np.dtype[Any]] = []

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Keep a module in evaluation mode inside the block."""
        training = self.is_module and self.model.training
        if training:
            self.model.eval()
        try:
            yield
        finally:
            if training:
                self.model.train()

    def outputs(self, batch: Array) -> dict[Any, Any]:
        """Return all outputs for a batch, by name or number."""
        if self.device is None:
            given = self.model(batch)
        else:
            assert self.torch is not None
            with self.torch.no_grad():
                given = self.model(self._sent(self.torch.from_numpy(batch)))
        if isinstance(given, Mapping):
            return dict(given)
        return dict(enumerate(given if isinstance(given, (list, tuple)) else [given]))

    def _sent(self, tensor: Any) -> Any:
        """Return a tensor on the device."""
        if self.torch.device(self.device).type != "cuda":  # type: ignore[union-attr]
            return tensor.to(self.device)
        # By way of memory that the GPU reaches, which torch keeps for the next one.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def probe(self, channels: int, patch: tuple[int, int, int], output: Outputs) -> dict[Any, Path]:
        """Call the model once to see its outputs, and return the paths of those that are wanted."""
        import numpy as np

        try:
            batch = np.zeros((1, channels, *patch), np.float32)
        except (MemoryError, ValueError) as error:
            raise InvalidError(f"patch_size {patch}: a patch of {channels} channels does not fit into memory") from error
        found = self.outputs(batch)
        if isinstance(output, Mapping):
            paths: dict[Any, Path] = dict(output)
        elif isinstance(output, (str, os.PathLike)):
            paths = dict.fromkeys(found, output)
        else:
            paths = dict(zip(found, output))
            if len(output) != len(found):
                paths = {}
        if not paths or len({os.fspath(path) for path in paths.values()}) < len(paths) or not set(paths) <= set(found):
            raise InvalidError(
                f"output: the model gives {len(found)} outputs, {', '.join(map(repr, found))}: give a path for each, as a "
                "list, or as a dictionary of those that are wanted"
            )
        self.wanted = list(paths)
        for name in paths:
            array = as_array(found[name])
            if array.ndim != 5 or len(array) != 1:
                raise InvalidError(
                    f"for a batch of shape (1, {channels}, {', '.join(map(str, patch))}) the model gives one of "
                    f"{array.shape}: predictions have the axes B, C, Z, Y, X"
                )
            self.shapes.append(array.shape[1:])
            self.dtypes.append(array.dtype)
        return paths

    def __call__(self, batch: Array, locations: npt.NDArray[np.int64]) -> list[tuple[Array, bool]]:
        """Return the wanted outputs, each with whether it is a copy that nothing else holds."""
        found = self.outputs(batch)
        wanted = [found[name] for name in self.wanted or found]
        arrays = [as_array(value) for value in wanted]
        for array, shape in zip(arrays, self.shapes):
            if array.shape != (len(batch), *shape):
                raise InvalidError(
                    f"the model gives predictions of shape {array.shape} for {len(batch)} patches, {shape} each "
                    "when it was first called"
                )
        # What was on a GPU came here as a copy.
        return [(array, is_tensor(value) and value.is_cuda) for array, value in zip(arrays, wanted)]

    def identity(self) -> str:
        """Identify the model: a module by its weights, a network by its files, a function of a module by its name."""
        if isinstance(self.model, OnnxModel):
            return self.model.identity()
        if not self.is_module:
            module, name = (getattr(self.model, key, None) for key in ("__module__", "__qualname__"))
            # A method of an object depends on that object.
            is_bound = not isinstance(getattr(self.model, "__self__", sys), ModuleType)
            if module is None or name is None or "<" in name or is_bound:
                raise InvalidError(
                    f"{self.model!r} has no name of its own, so a run of it cannot be resumed or split into parts: "
                    "give it one with model_id=, which changes with all that its predictions depend on"
                )
            return f"{module}.{name}"
        import hashlib

        digest = hashlib.sha256()
        state = self.model.state_dict()
        for key, value in state.items():
            digest.update(key.encode())
            digest.update(as_array(value).tobytes())
        return f"{type(self.model).__qualname__} {digest.hexdigest()}"


def check_outputs(output: object) -> None:
    """Refuse what is not a path, a list of paths or a dictionary of paths."""
    if isinstance(output, (str, os.PathLike)):
        return
    if isinstance(output, Mapping):
        paths = [(f"output[{name!r}]", path) for name, path in output.items()]
    elif isinstance(output, Sequence):
        paths = [(f"output[{place}]", path) for place, path in enumerate(output)]
    else:
        raise InvalidError(
            f"output is a {type(output).__name__}: give a path, None for an array, or a path for each output as a list or dictionary"
        )
    if not paths:
        raise InvalidError("output is empty: give a path for each output that is wanted")
    for name, path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidError(
                f"{name} is {path!r}: give a path for each output that is wanted, in a dictionary for those only "
                "(output=None gives an array, of a model with one output)"
            )
