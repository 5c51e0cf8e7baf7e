"""A model as the compiled half calls it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Union

from .errors import InvalidError
from .inference import as_array, is_tensor
from .onnx import OnnxModel

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from ._voxpatch import Ticket
    from .options import Array, Path

#: A tensor, a module, or another thing of torch, which is optional and is not imported for its types.
Tensor = Any
#: Paths by the names of outputs: words for a model that gives a dictionary, numbers for one that gives a tuple.
Paths = Mapping[Tensor, "Path"]
#: Where outputs go: one path, one for each, or a dictionary of those that are wanted.
Outputs = Union["Path", Paths, Sequence["Path"]]


class Call:
    """A model that gets arrays and gives a list of them, one for each wanted output."""

    def __init__(self, model: Callable[..., Tensor] | Path, device: object) -> None:
        self.torch = sys.modules.get("torch")
        #: The model; a module has more attributes than a function.
        self.model: Tensor = model
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
        self.wanted: list[Tensor] | None = None
        self.shapes: list[tuple[int, ...]] = []
        #: Predictions of zeros, where the model left them.
        self.probed: list[Tensor] = []
        #: Bytes of a GPU that a patch takes, measured on the first; None elsewhere.
        self.patch_bytes: int | None = None
        #: Patches that the model gets at once, after it ran out of memory; None for all.
        self.most: int | None = None
        self.dtypes: list[np.dtype[Tensor]] = []

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

    def outputs(self, inputs: Tensor) -> dict[Tensor, Tensor]:
        """Return all outputs for a batch where the model takes it, by name or number."""
        if self.device is None:
            given = self.model(inputs)
        else:
            assert self.torch is not None
            with self.torch.no_grad():
                given = self.model(inputs)
        if isinstance(given, Mapping):
            return dict(given)
        return dict(enumerate(given if isinstance(given, (list, tuple)) else [given]))

    def predicted(self, inputs: Tensor) -> list[Tensor]:
        """Return the wanted outputs for a batch where the model takes it."""
        import numpy as np

        found = self.outputs(inputs)
        wanted = [found[name] for name in self.wanted or found]
        for value, shape in zip(wanted, self.shapes):
            if tuple(np.shape(value)) != (len(inputs), *shape):
                raise InvalidError(
                    f"the model gives predictions of shape {tuple(np.shape(value))} for {len(inputs)} patches, {shape} each "
                    "when it was first called"
                )
        return wanted

    def sent(self, batch: Array) -> Tensor:
        """Return a batch where the model takes it: an array, or a float32 tensor on the device."""
        if self.device is None:
            return batch
        assert self.torch is not None
        # Torch has few operations for this type.
        is_unsigned = batch.dtype == "uint16"
        tensor = self.torch.from_numpy(batch.view("int16") if is_unsigned else batch)
        if self.torch.device(self.device).type == "cuda":
            # By way of memory that the GPU reaches, which torch keeps for the next one.
            tensor = tensor.pin_memory()
        sent = tensor.to(self.device, non_blocking=True).float()
        return self.torch.where(sent < 0, sent + 65536, sent) if is_unsigned else sent

    def pieces(
        self, batch: Array, send: Callable[[Array], Tensor], predict: Callable[[Tensor], list[Tensor]]
    ) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """Yield the predictions of a batch, in halves once the model has no memory for more: the first patch, inputs, outputs."""
        first = 0
        while first < len(batch):
            piece = batch[first : first + (self.most or len(batch))]
            inputs = found = None
            try:
                inputs = send(piece)
                found = predict(inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(piece) == 1:
                    raise
            if found is not None:
                yield first, inputs, found
                first += len(piece)
                continue
            # The error and the tensors that it refers to are gone here.
            self.most = max(1, len(piece) // 2)
            self.free()

    def free(self) -> None:
        """Give memory that torch keeps back to the device."""
        if self.torch is not None and self.torch.cuda.is_available():
            self.torch.cuda.empty_cache()

    def _measured(self, batch: Array) -> dict[Tensor, Tensor]:
        """Return all outputs for a batch of one, and note the memory of a GPU that this takes."""
        is_cuda = self.device is not None and self.torch is not None and self.torch.device(self.device).type == "cuda"
        if not is_cuda:
            return self.outputs(self.sent(batch))
        assert self.torch is not None
        self.torch.cuda.reset_peak_memory_stats(self.device)
        before = self.torch.cuda.memory_allocated(self.device)
        found = self.outputs(self.sent(batch))
        self.patch_bytes = self.torch.cuda.max_memory_allocated(self.device) - before
        return found

    def probe(self, channels: int, patch: tuple[int, int, int], output: Outputs) -> dict[Tensor, Path]:
        """Call the model once to see its outputs, and return the paths of those that are wanted."""
        import numpy as np

        try:
            batch = np.zeros((1, channels, *patch), np.float32)
        except (MemoryError, ValueError) as error:
            raise InvalidError(f"patch_size {patch}: a patch of {channels} channels does not fit into memory") from error
        found = self._measured(batch)
        if isinstance(output, Mapping):
            paths: dict[Tensor, Path] = dict(output)
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
            self.probed.append(found[name])
            self.shapes.append(array.shape[1:])
            self.dtypes.append(array.dtype)
        return paths

    def __call__(self, batch: Array, locations: npt.NDArray[np.int64] | None = None) -> list[tuple[Array, bool]]:
        """Return the wanted outputs, each with whether it is a copy that nothing else holds."""
        import numpy as np

        whole: list[list[tuple[Array, bool]]] = []
        for _, _, found in self.pieces(batch, self.sent, self.predicted):
            # What was on a GPU came here as a copy.
            piece = [(as_array(value), is_tensor(value) and value.is_cuda) for value in found]
            if len(piece[0][0]) < len(batch):
                # The model may overwrite its output in the next call.
                piece = [(array if ours else array.copy(), True) for array, ours in piece]
            whole.append(piece)
        if len(whole) == 1:
            return whole[0]
        return [(np.concatenate([array for array, _ in pieces]), True) for pieces in zip(*whole)]

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


class CallsInTurn:
    """Copies of a model on several devices, each with a thread of its own, which get the batches in turn."""

    def __init__(self, model: Callable[..., Tensor] | Path, devices: Sequence[object]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        torch = sys.modules.get("torch")
        models = [model] * len(devices)
        if torch is not None and isinstance(model, torch.nn.Module):
            models = [_copy_on(model, torch.device(device), place) for place, device in enumerate(devices)]
        self.calls = [Call(model, device) for model, device in zip(models, devices)]
        self._threads = [ThreadPoolExecutor(1, f"voxpatch-device-{place}") for place in range(len(devices))]
        self._turn = 0

    @property
    def wanted(self) -> list[Tensor] | None:
        """The outputs that are wanted."""
        return self.calls[0].wanted

    @property
    def probed(self) -> list[Tensor]:
        """Predictions of zeros, where the first copy left them."""
        return self.calls[0].probed

    @property
    def device(self) -> object:
        """The device of the first copy."""
        return self.calls[0].device

    @property
    def patch_bytes(self) -> int | None:
        """Bytes of a GPU that a patch takes."""
        return self.calls[0].patch_bytes

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of predictions."""
        return self.calls[0].shapes

    @property
    def dtypes(self) -> list[np.dtype[Tensor]]:
        """Types of predictions."""
        return self.calls[0].dtypes

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Keep modules in evaluation mode inside the block, and end the threads with it."""
        with ExitStack() as stack:
            for call in self.calls:
                stack.enter_context(call.ready())
            try:
                yield
            finally:
                for thread in self._threads:
                    thread.shutdown(wait=False, cancel_futures=True)

    def probe(self, channels: int, patch: tuple[int, int, int], output: Outputs) -> dict[Tensor, Path]:
        """Call the first copy once to see its outputs, and return the paths of those that are wanted."""
        paths = self.calls[0].probe(channels, patch, output)
        for call in self.calls[1:]:
            call.wanted, call.shapes, call.dtypes = self.wanted, self.shapes, self.dtypes
        return paths

    def submit(self, work: Callable[[Call], Tensor]) -> Future[Tensor]:
        """Let the next copy do something on its thread."""
        place = self._turn % len(self.calls)
        self._turn += 1
        return self._threads[place].submit(work, self.calls[place])

    def deal(self, ticket: Ticket, batch: Array) -> None:
        """Let the next copy answer a ticket of the compiled half."""

        def answer(call: Call) -> None:
            try:
                ticket.answer(call(batch))
            except BaseException as error:  # raised where predict was called
                ticket.fail(error)

        self.submit(answer)

    def __call__(self, batch: Array, locations: Tensor) -> list[tuple[Array, bool]]:
        """Return the wanted outputs of the first copy, each with whether it is a copy that nothing else holds."""
        return self.calls[0](batch, locations)

    def identity(self) -> str:
        """Identify the model."""
        return self.calls[0].identity()

    def free(self) -> None:
        """Give memory that torch keeps back to the devices."""
        self.calls[0].free()


def _copy_on(module: Tensor, device: Tensor, place: int) -> Tensor:
    """Return a module on a device: itself for the first one if it is there, or a copy."""
    tensors = [*module.parameters(), *module.buffers()]
    if place == 0 and all(tensor.device == device for tensor in tensors):
        return module
    return copy.deepcopy(module).to(device)


def calls(model: Callable[..., Tensor] | Path, device: object, devices: Sequence[object] | None) -> Call | CallsInTurn:
    """Return a model on a device, or copies of it on several."""
    if devices is None:
        return Call(model, device)
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence) or len(devices) == 0:
        raise InvalidError(f"devices {devices!r}: give a list, such as ['cuda:0', 'cuda:1']")
    if device is not None:
        raise InvalidError(f"device {device!r} and devices {list(devices)!r}: give one of them")
    return CallsInTurn(model, devices)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short, of a device or of the host."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


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
