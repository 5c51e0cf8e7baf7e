"""Blending on the device of a network: tensors on the CPU stand in for those on a GPU."""

from __future__ import annotations

import gc
import os
import random
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voxpatch
from conftest import faulty, needs_faulty
from voxpatch import device

torch = pytest.importorskip("torch", reason="torch is not installed")

#: Configurations of the matrix, in groups that run one by one.
GROUPS, EACH = 15, 20


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A network of a few operations that do not depend on the batch, with a halo, a scale and any channels and type."""

    def __init__(self, channels: int = 3, halo: tuple[int, ...] = (0, 0, 0), scale: int = 1, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.channels, self.halo, self.scale, self.dtype = channels, halo, scale, dtype
        #: Patches and type of each call.
        self.calls: list[tuple[int, Any]] = []

    def forward(self, x: Any) -> Any:
        self.calls.append((len(x), x.dtype))
        inner = tuple(slice(h, n - h, self.scale) for h, n in zip(self.halo, x.shape[2:]))
        x = x[(slice(None), slice(None), *inner)].mean(1, keepdim=True)
        # It depends on the place in the patch, so that weights matter.
        ramp = torch.linspace(-0.5, 0.5, x.shape[-1])
        k = torch.arange(self.channels)[:, None, None, None]
        return (x * (1 - k / 8) + (k % 3) * ramp + k / 16).to(self.dtype)


def predicted(place: str, net: Any, scan: Any, patch: Any, overlap: Any, output: Any = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return voxpatch.predict(net, scan, output, patch, overlap, blend_on=place, **options)  # type: ignore[call-overload]


def or_raised(place: str, *given: Any, **options: Any) -> Any:
    try:
        return predicted(place, *given, **options)
    except voxpatch.VoxpatchError as error:
        return error


def noise(*shape: int, seed: int = 3) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Configuration:
    """A random configuration, and a network for it."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.patch = tuple(pick.choice([8, 12, 16, 20]) for _ in range(3))
        self.overlap = tuple(pick.choice([0, 2, p // 2, p - 4]) for p in self.patch)
        shape = tuple(p + pick.randrange(0, 30) for p in self.patch)
        kind = pick.choice(["float32", "int16", "uint8", "float32"])
        channels = pick.choice([1, 1, 2])
        scan = self.rng.normal(size=(channels, *shape)) * (1 if kind == "float32" else 50)
        self.scan = scan.clip(0, 255).astype(kind) if kind == "uint8" else scan.astype(kind)
        halo = pick.choice([(0, 0, 0), (0, 0, 0), (2, 2, 2), (1, 2, 0)])
        scale = pick.choice([1, 1, 1, 2]) if halo == (0, 0, 0) else 1
        self.classes = pick.choice([1, 2, 5])
        dtype = pick.choice([torch.float32, torch.float32, torch.float16, torch.float64, torch.bfloat16])
        self.net = Net(self.classes, halo, scale, dtype)
        if halo != (0, 0, 0):
            self.overlap = tuple(max(o, 2 * h) for o, h in zip(self.overlap, halo))
        blend = pick.choice(["average", "hann", "gaussian", "linear", "nnunet", "crop", voxpatch.Gaussian(0.3), "window"])
        if isinstance(blend, str) and blend == "window":
            inner = [(p - 2 * h) // scale for p, h in zip(self.patch, halo)]
            blend = self.rng.uniform(0.1, 1, size=inner).astype(np.float32)
        self.options: dict[str, Any] = {
            "blend": blend,
            "reduce": pick.choice(["mean", "mean", "softmax", "sigmoid", "argmax", "argmax",
                                   voxpatch.Threshold(0.25), voxpatch.Quantize(-1, 1.5)]),
            "batch_size": pick.choice([1, 2, 3]),
            "halo": halo,
            "scale": scale,
            "threads": 2,
            "non_finite": pick.choice(["refuse", "leave-out", "keep"]),
            "accumulator": pick.choice(["float32", "float32", "float32", "float16", "bfloat16"]),
            "fill": pick.choice([0, 1]),
        }
        if self.options["reduce"] == "argmax" and pick.random() < 0.5:
            self.options["labels"] = [3 * k % 250 + pick.choice([0, 300]) for k in range(self.classes)]
        if pick.random() < 0.3:
            self.options["dtype"] = pick.choice(["float32", "float16", "int16", "uint16"])
            self.options["clip"] = True
        if pick.random() < 0.3:
            self.options["padding"] = pick.choice(["edge", "reflect", 0.5])
        if pick.random() < 0.2:
            self.options["placement"] = pick.choice(["even", "padded"]) if scale == 1 else "padded"
        if pick.random() < 0.2:
            self.options["normalize"] = pick.choice(["zscore", (-1.0, 2.0)])
        if pick.random() < 0.2:
            self.options["tta"] = "flips"
        if pick.random() < 0.4:
            mask = np.zeros(shape, np.uint8)
            mask[tuple(slice(n // 3, n // 3 + 3) for n in shape)] = 1
            self.options.update(mask=mask, same_grid=True)
            if pick.random() < 0.5:
                self.options["vote"] = [float(k) for k in range(self.classes)]

    def run(self, place: str, **options: Any) -> Any:
        return or_raised(place, self.net, self.scan, self.patch, self.overlap, **{**self.options, **options})


def tolerance(one: Configuration) -> float:
    """Return how far values on the device may differ: a little of float32, or of the type of the sums or of the output."""
    # As many roundings as a voxel has patches, and a factor for reductions that are steep where values are large.
    steep = {"mean": 1.0, "argmax": 1.0}.get(str(one.options["reduce"]), max(1.0, float(abs(one.scan).max())))
    if isinstance(one.options["reduce"], voxpatch.Quantize):
        steep = 255.0
    is_half = one.net.dtype == torch.float16 or one.options.get("dtype") == "float16"
    sums = {"float32": 1e-6, "float16": 2**-9, "bfloat16": 2**-6}[one.options["accumulator"]]
    return steep * (sums + (2**-10 if is_half and "dtype" not in one.options else 0)) + (2**-10 if is_half else 0)


@pytest.mark.parametrize("group", range(GROUPS))
def test_any_configuration_gives_what_the_host_gives(group: int) -> None:
    compared = ties = voxels = 0
    for seed in range(group * EACH, (group + 1) * EACH):
        one = Configuration(seed)
        host, found = one.run("host"), one.run("device")
        told = (seed, one.options, one.net.dtype, one.patch, one.overlap, one.scan.shape)
        if isinstance(host, Exception):
            assert isinstance(found, Exception), told
            continue
        if isinstance(found, Exception):
            # What the device cannot do it says, and the host does it.
            assert "outside of memory" in str(found), (told, found)
            continue
        compared += 1
        voxels += found[0].size
        assert (found.dtype, found.shape) == (host.dtype, host.shape), told
        if one.options["reduce"] == "argmax" or isinstance(one.options["reduce"], voxpatch.Threshold):
            differ = host != found
            if differ.any():
                blended = one.run("host", reduce="mean", labels=None, dtype="float32", clip=True)
                if one.options["reduce"] == "argmax":
                    best = np.sort(blended, axis=0)
                    close = (best[-1] - best[-2])[None] < 4 * tolerance(one) * (1 + abs(best[-1]))
                else:
                    close = abs(blended - 0.25) < 4 * tolerance(one)
                assert not (differ & ~close).any(), told
                ties += int(differ.sum())
        elif np.issubdtype(host.dtype, np.integer):
            assert abs(host.astype(int) - found).max() <= 1 + 2 * tolerance(one), told
        else:
            scale = np.maximum(1, abs(host.astype(np.float64)))
            worst = np.nanmax(abs(host.astype(np.float64) - found) / scale)
            assert worst <= tolerance(one), (worst, told)
    assert compared >= EACH // 2
    assert ties <= voxels / 100, (ties, voxels)


@pytest.mark.parametrize("reduce", ["mean", "argmax", "softmax"])
def test_any_batch_size_and_number_of_passes_gives_the_same_bytes(tmp_path: Path, reduce: str) -> None:
    net, scan = Net(4, dtype=torch.float16), noise(48, 56, 40)
    storage = {"chunk": 8, "shard": 16}
    one = predicted("device", net, scan, 16, 8, tmp_path / "one.zarr", reduce=reduce, **storage)
    plan = predicted("device", net, scan, 16, 8, tmp_path / "x.zarr", reduce=reduce, dry_run=True, **storage)
    assert (plan["blend_on"], plan["passes"]) == ("device", 1)
    memory, passes = plan["device_bytes"], set()
    for n, batch in enumerate([1, 2, 3, 7, 1, 1, 1]):
        memory = memory if n < 4 else memory * 4 // 5
        options = {"batch_size": batch, "device_memory": None if n < 4 else memory, "reduce": reduce, **storage}
        plan = predicted("device", net, scan, 16, 8, tmp_path / "x.zarr", dry_run=True, **options)
        passes.add(plan["passes"])
        assert n < 4 or plan["device_bytes"] <= memory
        out = predicted("device", net, scan, 16, 8, tmp_path / f"{n}.zarr", **options)
        np.testing.assert_array_equal(out[...], one[...])
    assert len(passes) >= 3, passes
    # With less still, the device says what it needs, and the host is taken.
    with pytest.raises(ValueError, match="too few for the model to blend"):
        predicted("device", net, scan, 16, 8, tmp_path / "x.zarr", device_memory=1000, reduce=reduce, **storage)


class Short(Net):
    """A network that runs out of memory at some calls, and wherever a batch is too large."""

    def __init__(self, at: set[int], most: int, error: type[Exception]) -> None:
        super().__init__(2)
        self.at, self.most, self.error, self.count = at, most, error, 0

    def forward(self, x: Any) -> Any:
        self.count += 1
        if self.count in self.at or len(x) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("place", ["device", "host"])
def test_a_network_without_memory_gets_half_the_batch_and_goes_on(place: str, error: type[Exception]) -> None:
    scan = noise(40, 40, 40)
    expected = predicted(place, Net(2), scan, 16, 8, batch_size=8)
    for at, most in [({2}, 9), ({2, 5, 11}, 9), (set(), 3), (set(), 1), ({3, 7}, 4)]:
        net = Short(at, most, error)
        found = predicted(place, net, scan, 16, 8, batch_size=8)
        np.testing.assert_array_equal(found, expected)
        # A batch that failed once is not tried again at that size.
        failed = net.count - len(net.calls)
        assert 1 <= failed <= 4, (at, most, failed)
    for options in [{}, {"tta": "flips"}]:
        with pytest.raises((RuntimeError, MemoryError), match="out of memory"):
            predicted(place, Short({2, *range(4, 99)}, 9, error), scan, 16, 8, batch_size=2, **options)


def test_flips_are_predicted_at_once_and_in_parts_without_memory() -> None:
    scan = noise(24, 24, 24)
    expected = predicted("host", Net(2), scan, 16, 8, tta="flips")
    net = Net(2)
    found = predicted("device", net, scan, 16, 8, batch_size=2, tta="flips")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {count for count, _ in net.calls[1:]} == {16}
    short = Short(set(), 3, torch.OutOfMemoryError)
    np.testing.assert_array_equal(predicted("device", short, scan, 16, 8, batch_size=2, tta="flips"), found)
    assert {count for count, _ in short.calls[1:]} == {2}


class LiveTensors(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
    """Counts the bytes of all tensors that are alive, and of those of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()
        self.paused = False
        #: The network's predictions.
        self.ignored = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and not self.paused:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.known or size == 0 or key == self.ignored:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.fixture
def device_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that blend on a device, as they are made."""
    calls: list[Any] = []
    made = device.DeviceCall.__init__

    def noted(self: Any, *given: Any, **options: Any) -> None:
        made(self, *given, **options)
        calls.append(self)

    monkeypatch.setattr(device.DeviceCall, "__init__", noted)
    return calls


def test_many_classes_take_what_was_told(device_calls: list[Any]) -> None:
    classes, shape, patch = 117, (80, 64, 64), 32
    mode = LiveTensors()

    class Many(Net):
        def forward(self, x: Any) -> Any:
            # The network's own tensors do not count.
            mode.paused = True
            values = super().forward(x)
            mode.ignored, mode.paused = values.untyped_storage().data_ptr(), False
            return values

    net, scan = Many(classes, dtype=torch.float16), noise(*shape)
    plan = predicted("device", net, scan, patch, patch // 2, reduce="argmax", dry_run=True)
    # The voxels that are not final, slowest axis first: the largest (P - G) N N + G ((P - G) N + G P) over gaps of starts.
    gaps = [{patch // 2, (n - patch) % (patch // 2) or patch // 2} for n in shape]
    row = max((patch - g) * shape[2] + g * patch for g in gaps[1])
    formula = 4 * classes * max((patch - g) * shape[1] * shape[2] + g * row for g in gaps[0])
    with mode:
        labels = predicted("device", net, scan, patch, patch // 2, reduce="argmax")
    assert labels.dtype == np.uint8 and len(np.unique(labels)) > 1
    gc.collect()
    one = device_calls[-1]
    assert one.peak_bytes <= plan["device_bytes"] <= 1.25 * formula, (one.peak_bytes, plan["device_bytes"], formula)
    assert 0.8 * formula <= mode.most <= plan["device_bytes"], (mode.most, plan["device_bytes"], formula)
    # One byte a voxel comes down, in place of predictions.
    assert one.bytes_down == labels.size
    host = predicted("host", Net(classes, dtype=torch.float16), scan, patch, patch // 2, reduce="argmax")
    assert (host != labels).mean() < 1e-4


class Twice(Net):
    def forward(self, x: Any) -> Any:
        logits = super().forward(x)
        return {"classes": logits, "edge": logits[:, :1, ::2, ::2, ::2].half()}


def test_several_outputs_with_settings_of_their_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "blend": {"classes": "crop", "edge": "gaussian"},
        "reduce": {"classes": "argmax", "edge": voxpatch.Threshold(0.1)},
        "scale": {"edge": 2},
        "batch_size": 3,
    }
    found = {}
    for place in ["host", "device"]:
        paths = {name: tmp_path / f"{place}-{name}.zarr" for name in ["edge", "classes"]}
        found[place] = predicted(place, Twice(3), noise(40, 44, 36), 16, 8, paths, **options)
    for name in ["edge", "classes"]:
        np.testing.assert_array_equal(found["device"][name][...], found["host"][name][...])


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16", "uint16"])
def test_stored_types_go_up_as_they_are(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    blend = device.DeviceCall.blend

    def noted(self: Any, patches: Any, batch: Any) -> Any:
        sent.append(batch.dtype)
        return blend(self, patches, batch)

    monkeypatch.setattr(device.DeviceCall, "blend", noted)
    scan = (100 * abs(noise(30, 30, 30))).clip(0, 255).astype(dtype)
    net = Net(2)
    found = predicted("device", net, scan, 16, 8, padding="reflect", placement="padded")
    np.testing.assert_allclose(found, predicted("host", net, scan, 16, 8, padding="reflect", placement="padded"), rtol=1e-6, atol=1e-6)
    assert {kind for _, kind in net.calls} == {torch.float32}
    assert set(sent) == {np.dtype(dtype)}


class Noted(Net):
    """A network that notes its inputs."""

    def __init__(self) -> None:
        super().__init__(2)
        self.inputs: list[bytes] = []

    def forward(self, x: Any) -> Any:
        self.inputs += [patch.numpy().tobytes() for patch in x]
        return super().forward(x)


NORMALIZED = ["zscore", "zscore:nonzero", "window:-40,90", "percentile:1,99", "mean-std:20,7;3,50", "nnunet-ct:-50,80,11,30"]


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16", "uint16", "float32"])
def test_the_device_normalizes_to_the_bits_of_the_host(dtype: str, normalize: str) -> None:
    scan = (60 * noise(2, 26, 30, 28)).clip(-300 if np.dtype(dtype).kind != "u" else 0, 300)
    scan[:, :9] = 0
    scan = scan.astype(dtype)
    if dtype == "uint16":
        scan[:, 20:] += 40_000  # above what int16 holds
    nets = {place: Noted() for place in ["device", "host"]}
    options: dict[str, Any] = {"normalize": normalize, "padding": "reflect", "placement": "padded", "batch_size": 3}
    found = {place: predicted(place, net, scan, 16, 8, **options) for place, net in nets.items()}
    np.testing.assert_allclose(found["device"], found["host"], rtol=1e-6, atol=1e-6)
    # The first is the trial.
    device_inputs, host_inputs = (sorted(nets[place].inputs[1:]) for place in ["device", "host"])
    assert device_inputs == host_inputs


@pytest.mark.parametrize("normalize", [None, "zscore"])
def test_a_function_of_arrays_that_gives_tensors_gets_float32(normalize: str | None) -> None:
    scan = (60 * noise(24, 24, 24)).astype(np.int16)
    types = set()

    def double(batch: Any) -> Any:
        types.add(batch.dtype)
        return torch.from_numpy(2 * batch)

    found = {place: predicted(place, double, scan, 16, 8, normalize=normalize) for place in ["device", "host"]}
    np.testing.assert_allclose(found["device"], found["host"], rtol=1e-6, atol=1e-6)
    assert types == {np.dtype(np.float32)}


def test_a_batch_that_is_sent_again_is_normalized_once() -> None:
    scan = (60 * noise(24, 24, 24)).astype(np.int16)
    expected = predicted("device", Net(2), scan, 16, 8, batch_size=4, normalize="zscore")
    short = Short(set(), 1, torch.OutOfMemoryError)
    found = predicted("device", short, scan, 16, 8, batch_size=4, normalize="zscore")
    np.testing.assert_array_equal(found, expected)
    assert {count for count, _ in short.calls[1:]} == {1}


class Kernels(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
    """Counts the operations of torch that are a kernel or a copy on a GPU: all but views and those of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)
        self.count += not is_view and not self.paused
        return func(*args, **(kwargs or {}))


#: Options, and the most operations that a patch then takes; docs/performance.md says which.
COUNTED: list[tuple[dict[str, Any], float]] = [
    ({"reduce": "argmax"}, 45),
    ({"reduce": "argmax", "normalize": "zscore"}, 48),
    ({"reduce": "mean"}, 43),
    ({"reduce": "softmax", "accumulator": "float16"}, 106),
]


@pytest.mark.parametrize(("options", "most"), COUNTED)
def test_what_a_gpu_does_for_a_patch_is_counted(options: dict[str, Any], most: float, device_calls: list[Any]) -> None:
    mode = Kernels()

    class Quiet(Net):
        def forward(self, x: Any) -> Any:
            mode.paused = True
            try:
                return super().forward(x)
            finally:
                mode.paused = False

    scan = (100 * noise(96, 64, 64)).astype(np.int16)
    with mode:
        found = predicted("device", Quiet(4, dtype=torch.float16), scan, 32, 16, batch_size=2, **options)
    patches = 5 * 3 * 3
    assert 0.8 * most <= mode.count / patches <= most, mode.count / patches
    # Two bytes for each voxel of a patch go up, and what is written comes down.
    assert device_calls[-1].bytes_up == 2 * patches * 32**3
    assert device_calls[-1].bytes_down == found.nbytes


class Broken(Net):
    """A network whose predictions are not finite at one patch."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__(2)
        self.at, self.value, self.patches = at, value, 0

    def forward(self, x: Any) -> Any:
        values = super().forward(x)
        for place in range(len(x)):
            if self.patches == self.at:
                values[place, 1, 2, 3, 4] = self.value
            self.patches += 1
        return values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_treated_as_on_the_host(value: float) -> None:
    scan = noise(40, 36, 40)
    for policy in ["refuse", "leave-out", "keep"]:
        host, found = (
            or_raised(place, Broken(14, value), scan, 16, 8, batch_size=3, threads=1, non_finite=policy)
            for place in ["host", "device"]
        )
        if policy == "refuse":
            assert isinstance(host, ValueError) and isinstance(found, ValueError)
            assert str(found) == str(host), (host, found)
        else:
            np.testing.assert_allclose(found, host, rtol=1e-6, atol=1e-6)


def test_a_run_is_resumed_and_parts_make_one_output(tmp_path: Path) -> None:
    net, scan = Net(3), noise(70, 40, 40)
    options: dict[str, Any] = {"reduce": "argmax", "chunk": 8, "shard": 16, "batch_size": 2, "model_id": "a"}
    whole = predicted("device", net, scan, 16, 8, tmp_path / "whole.zarr", **options)[...]
    for n in range(3):
        done = predicted("device", net, scan, 16, 8, tmp_path / "parts.zarr", part=n, num_parts=3, **options)
    np.testing.assert_array_equal(done[...], whole)

    class Stopped(Exception):
        pass

    def stop(at: int) -> Any:
        def tell(done: int, total: int) -> None:
            if done >= at:
                raise Stopped

        return tell

    for at in [30, 60]:
        with pytest.raises(Stopped):
            predicted("device", net, scan, 16, 8, tmp_path / "again.zarr", resume=True, progress=stop(at), **options)
    # The host would give other last bits.
    with pytest.raises(voxpatch.VoxpatchError, match="different settings"):
        predicted("host", net, scan, 16, 8, tmp_path / "again.zarr", resume=True, **options)
    net.calls.clear()
    done = predicted("device", net, scan, 16, 8, tmp_path / "again.zarr", resume=True, **options)
    np.testing.assert_array_equal(done[...], whole)
    assert sum(count for count, _ in net.calls) < 160


def test_what_a_network_raises_ends_the_run(tmp_path: Path) -> None:
    class Failing(Net):
        def forward(self, x: Any) -> Any:
            if len(self.calls) == 9:
                raise KeyboardInterrupt
            return super().forward(x)

    for options in [{}, {"devices": ["cpu", "cpu"]}]:
        with pytest.raises(KeyboardInterrupt):
            predicted("device", Failing(2), noise(60, 60, 60), 16, 8, tmp_path / "o.zarr", **options)
        assert os.listdir(tmp_path) == []


def test_what_the_device_cannot_do_it_says() -> None:
    scan = noise(20, 20, 20)
    mask = np.zeros(scan.shape, np.uint8)
    mask[:4] = 1
    masked = {"mask": mask, "same_grid": True}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (lambda batch: 2 * batch, {}, "a ndarray, not a tensor"),
        (Net(2, dtype=torch.int32), {"reduce": "argmax"}, "type int32"),
        (Net(2), {"blend": "crop", **masked}, "neighbors"),
        (Net(2), {"blend": voxpatch.Gaussian(0.01), **masked}, "logarithms"),
    ]
    for net, options, why in cases:
        with pytest.raises(ValueError, match=why):
            predicted("device", net, scan, 16, 8, **options)
        np.testing.assert_array_equal(predicted("auto", net, scan, 16, 8, **options), predicted("host", net, scan, 16, 8, **options))
    with pytest.raises(ValueError, match="blend_on 'gpu'"):
        predicted("gpu", Net(2), scan, 16, 8)


def test_auto_falls_back_to_passes_and_then_to_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scan, log = noise(60, 60, 60), []
    expected = predicted("host", Net(3), scan, 16, 8)
    # As if the tensors were on a GPU.
    monkeypatch.setattr(device, "_is_fast", lambda kind: True)
    real = device._Output._add

    def run(room: int, **options: Any) -> Any:
        """Predict on a device with so many bytes for sums."""
        made: list[device.DeviceCall] = []

        def add(self: Any, *given: Any) -> None:
            if self.owner not in made:
                made.append(self.owner)
            if self.owner._held > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            real(self, *given)

        monkeypatch.setattr(device._Output, "_add", add)
        return predicted("auto", Net(3), scan, 16, 8, tmp_path / "o.zarr", chunk=8, shard=16, overwrite=True, **options)

    plan = predicted("auto", Net(3), scan, 16, 8, tmp_path / "x.zarr", chunk=8, shard=16, dry_run=True)
    assert plan["blend_on"] == "device"
    for room in [plan["device_bytes"], plan["device_bytes"] * 2 // 3, 1000]:
        caplog_text = run(room)
        np.testing.assert_allclose(caplog_text[...], expected, atol=1e-6)
    assert log == []
    # Too little for any pass: the plan says so before anything is predicted.
    plan = predicted("auto", Net(3), scan, 16, 8, tmp_path / "x.zarr", device_memory=1000, dry_run=True)
    assert (plan["blend_on"], plan["device_bytes"]) == ("host", None)


class Threaded(Net):
    """Notes on which threads its copies are called."""

    seen: set[tuple[int, int]] = set()

    def forward(self, x: Any) -> Any:
        Threaded.seen.add((id(self), threading.get_ident()))
        return super().forward(x)


@pytest.mark.parametrize("place", ["host", "device"])
def test_several_devices_share_the_batches(place: str) -> None:
    scan = noise(50, 40, 40)
    for options in [{}, {"reduce": "argmax"}, {"tta": "flips"}, {"non_finite": "leave-out", "batch_size": 3}]:
        expected = predicted(place, Net(3), scan, 16, 8, **options)
        Threaded.seen.clear()
        found = predicted(place, Threaded(3), scan, 16, 8, devices=["cpu", "cpu"], **options)
        np.testing.assert_array_equal(found, expected)
        # Each copy on a thread of its own; the first is called once before.
        threads = {thread for _, thread in Threaded.seen}
        assert len({copy for copy, _ in Threaded.seen}) == 2 and len(threads) == 3
    with pytest.raises(ValueError, match="give a list"):
        predicted(place, Net(3), scan, 16, 8, devices="cuda")
    with pytest.raises(ValueError, match="give one of them"):
        predicted(place, Net(3), scan, 16, 8, device="cpu", devices=["cpu"])


@pytest.mark.parametrize("place", ["host", "device"])
def test_what_a_copy_raises_is_raised(place: str) -> None:
    class Failing(Net):
        def forward(self, x: Any) -> Any:
            if len(self.calls) == 5:
                raise ZeroDivisionError("by hand")
            return super().forward(x)

    with pytest.raises(ZeroDivisionError, match="by hand"):
        predicted(place, Failing(2), noise(60, 60, 60), 16, 8, devices=["cpu", "cpu"])


@needs_faulty
def test_a_patch_that_cannot_be_read_ends_the_run() -> None:
    for options in [{}, {"devices": ["cpu", "cpu"]}]:
        with pytest.raises(voxpatch.errors.PanicError):
            predicted("device", Net(2), faulty((40, 40, 40), panics=True), 8, 4, threads=4, **options)
