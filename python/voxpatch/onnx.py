"""Networks from ONNX files, run by the package ``onnxruntime`` that is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import DeniedError, FileError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from .options import Array, Path

#: The numpy types of the inputs that a network may have.
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}

#: Of each message of an ONNX file (protobuf), the fields that lead to weights in other files, and their messages.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
#: Bytes that are hashed at once.
_BLOCK = 1 << 24


class OnnxModel:
    """A network from an ONNX file: a function of batches (B, C, Z, Y, X) that gives its outputs by name."""

    def __init__(self, path: Path, device: object = None) -> None:
        self.path = os.fspath(path)
        _check_readable(self.path)
        try:
            import onnxruntime
        except ImportError as error:
            raise InvalidError(
                f"{self.path} needs the package onnxruntime, which is not installed: pip install onnxruntime "
                "(onnxruntime-gpu for CUDA)"
            ) from error
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(self.path, providers=providers)
        except Exception as error:  # of classes that onnxruntime does not export
            raise InvalidError(f"{self.path}: onnxruntime cannot load the network: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(repr(one.name) for one in inputs)
            raise InvalidError(f"{self.path}: a network has one input, not {len(inputs)}: {names}")
        self._input = inputs[0].name
        axes = inputs[0].shape
        if len(axes) != 5:
            raise InvalidError(f"{self.path}: the input {self._input!r} has {len(axes)} axes, not B, C, Z, Y, X: {axes}")
        if inputs[0].type not in _TYPES:
            raise InvalidError(
                f"{self.path}: the input {self._input!r} takes {inputs[0].type}, not float32, float16 or float64"
            )
        self._dtype = _TYPES[inputs[0].type]
        #: The batch that the file fixes, if it does.
        self._batch: int | None = axes[0] if isinstance(axes[0], int) else None
        self._names: list[str] = [one.name for one in self._session.get_outputs()]

    def __call__(self, batch: Array) -> dict[str, Array]:
        """Run the network on a batch, in parts of the size that the file fixes, if it does."""
        import numpy as np

        values = np.ascontiguousarray(batch, self._dtype)
        size = self._batch or len(values)
        parts = [self._run(values[start : start + size], size) for start in range(0, len(values), size)]
        return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(self._names)}

    def _run(self, values: Array, size: int) -> list[Array]:
        import numpy as np

        count = len(values)
        if count < size:
            values = np.concatenate([values, np.zeros((size - count, *values.shape[1:]), values.dtype)])
        try:
            outputs = self._session.run(None, {self._input: values})
        except Exception as error:  # of classes that onnxruntime does not export
            raise InvalidError(f"{self.path}: the network cannot run on a batch of shape {values.shape}: {error}") from error
        return [_whole(self.path, name, output, size)[:count] for name, output in zip(self._names, outputs)]

    def identity(self) -> str:
        """Identify the network by the bytes of its file and of the files of its weights."""
        import hashlib

        digest = hashlib.sha256()
        _hash(digest, self.path)
        folder = os.path.dirname(self.path)
        with open(self.path, "rb") as file:
            names = weight_files(file.read())
        for name in names:
            digest.update(name.encode())
            _hash(digest, os.path.join(folder, name))
        return f"onnx {digest.hexdigest()}"

    def __repr__(self) -> str:
        return f"<voxpatch.onnx.OnnxModel {self.path!r}>"


def weight_files(content: bytes) -> list[str]:
    """Return the names, relative to the folder of an ONNX file, of the other files in which it has weights."""
    found = set()
    left: list[tuple[str, memoryview[int]]] = [("model", memoryview(content))]
    while left:
        message, data = left.pop()
        if message == "entry":
            texts = {number: bytes(value).decode(errors="replace") for number, value in _fields(data)}
            if texts.get(1) == "location" and 2 in texts:
                found.add(texts[2])
            continue
        inner = _FIELDS[message]
        left.extend((inner[number], value) for number, value in _fields(data) if number in inner)
    return sorted(found)


def _fields(data: memoryview[int]) -> Iterator[tuple[int, memoryview[int]]]:
    """Yield the fields of a message that have a length, as number and bytes, up to one that is not well-formed."""
    lengths = {1: 8, 5: 4}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in lengths:
            length = lengths[kind]
        else:
            return
        if at + length > len(data):
            return
        if kind == 2:
            yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview[int], at: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends; the end of the data if it does not end."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    return 0, len(data)


def _whole(path: str, name: str, output: Any, size: int) -> Array:
    """Return an output (B, C, Z, Y, X) that has predictions for all patches; an argmax may lack the axis of channels."""
    shape: tuple[int, ...] = getattr(output, "shape", ())
    if len(shape) not in (4, 5) or shape[0] != size:
        raise InvalidError(f"{path}: the output {name!r} has the shape {shape} for {size} patches, not B, C, Z, Y, X")
    array: Array = output if len(shape) == 5 else output[:, None]
    return array


def _hash(digest: Any, path: str) -> None:
    _check_readable(path)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def _check_readable(path: str) -> None:
    """Raise the error of the package if a file cannot be opened."""
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        kind = {FileNotFoundError: NotFoundError, PermissionError: DeniedError}.get(type(error), FileError)
        raise kind(error.errno, error.strerror, path) from None


def _providers(device: object, available: list[str]) -> list[Any]:
    """Return onnxruntime's providers for a device: the CPU's if none is given."""
    text = "cpu" if device is None else str(device)
    kind, _, number = text.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind not in ("cuda", "gpu") or not (number.isdigit() or not number):
        raise InvalidError(f"device {text!r}: onnxruntime takes 'cpu', 'cuda' or 'cuda:N'")
    if "CUDAExecutionProvider" not in available:
        raise InvalidError(
            f"device {text!r}: the installed onnxruntime has no CUDA ({', '.join(available)}): pip install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
