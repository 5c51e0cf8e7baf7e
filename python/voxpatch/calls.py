"""A model as the compiled half calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import InvalidError
from .files import Path
from .inference import as_array, is_tensor

if TYPE_CHECKING:
    import numpy as np


class Call:
    """A model that gets arrays and gives a list of them, one for each wanted output."""

    def __init__(self, model: Callable[..., Any], device: Any) -> None:
        self.model = model
        self.torch = sys.modules.get("torch")
        self.is_module = self.torch is not None and isinstance(model, self.torch.nn.Module)
        if device is None and self.is_module:
            first = next(iter([*model.parameters(), *model.buffers()]), None)  # type: ignore[attr-defined]
            device = "cpu" if first is None else first.device
        if device is not None and self.torch is None:
            import torch

            self.torch = torch
        self.device = device
        #: Which outputs are wanted; all if not said.
        self.wanted: list[Any] | None = None
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[np.dtype[Any]] = []

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A module is in evaluation mode meanwhile."""
        training = self.is_module and self.model.training  # type: ignore[attr-defined]
        if training:
            self.model.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if training:
                self.model.train()  # type: ignore[attr-defined]

    def outputs(self, batch: np.ndarray[Any, Any]) -> dict[Any, Any]:
        """All outputs for a batch, by name or number."""
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
        """A tensor on the device."""
        if self.torch.device(self.device).type != "cuda":  # type: ignore[union-attr]
            return tensor.to(self.device)
        # By way of memory that the GPU reaches, which torch keeps for the next one.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def probe(self, channels: int, patch: tuple[int, int, int], output: Any) -> dict[Any, Path]:
        """Sees what comes out, and says which of it goes where."""
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
                f"the model gives {len(found)} outputs, {', '.join(map(repr, found))}: give a path for each, as a "
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

    def __call__(self, batch: np.ndarray[Any, Any], locations: np.ndarray[Any, Any]) -> list[tuple[Any, bool]]:
        """Arrays, and whether nobody else has them."""
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
        """Identifies the model: a module by its weights, a function of a module by its name."""
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
        state = self.model.state_dict()  # type: ignore[attr-defined]
        for key, value in state.items():
            digest.update(key.encode())
            digest.update(as_array(value).tobytes())
        return f"{type(self.model).__qualname__} {digest.hexdigest()}"
