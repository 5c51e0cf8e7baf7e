"""Predictions blended on the device where they are: only reduced values of final blocks come down."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .calls import Call, CallsInTurn, Tensor, is_out_of_memory
from .errors import InvalidError
from .inference import is_tensor

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._voxpatch import Frontier, Ticket
    from .options import Array, BlendOn

#: A block and a patch: the patch's place, the first common voxel in the block and in the patch, and their shape.
Part = tuple["tuple[int, int, int]", "tuple[int, int, int]", "tuple[int, int, int]", "tuple[int, int, int]"]
#: The model, the first patch of a part of a batch, its inputs and its predictions.
Piece = tuple[Call, int, Tensor, "list[Tensor]"]
#: The normalization of a channel: the lowest and the highest value, those that become 0 and 1 more, and whether 0 stays 0.
Scale = tuple[float, float, float, float, bool]
#: A final block: its output, its number, and its values.
Final = tuple[int, int, "Array | None"]

#: The flips of a patch along z, y, x, in the order of the compiled half.
_SIDES = list(itertools.product((False, True), repeat=3))
#: Types whose values all have a float32, or round to the nearest one as in the compiled half.
_BLENDED = ("bool", "uint8", "int8", "int16", "float16", "bfloat16", "float32", "float64")
#: Calls after which their blocks must have come down.
_LATE = 2


class DeviceMemoryError(InvalidError, MemoryError):
    """The device has no memory for the sums."""


def refusal(call: Call | CallsInTurn, crop: Sequence[bool]) -> str | None:
    """Return why predictions cannot be blended on their device, or None. `crop` says which outputs are not summed."""
    for name, value, is_crop in zip(call.wanted or (), call.probed, crop):
        if not is_tensor(value):
            return f"output {name!r} of the model is a {type(value).__name__}, not a tensor on a device: give a torch module, or device="
        dtype = str(value.dtype).removeprefix("torch.")
        if not is_crop and dtype not in _BLENDED:
            return f"output {name!r} of the model has the type {dtype}, which the device cannot add up as the host does"
    return None


class DeviceCall:
    """A model that blends its predictions on their device, as the compiled half plans it."""

    def __init__(self, calls: Call | CallsInTurn, *, flips: bool) -> None:
        import torch

        self.torch: Tensor = torch
        self.calls = calls
        self.flips = flips
        #: The device of the sums: that of the model's predictions.
        self.device = calls.probed[0].device
        #: Sides of a patch that are predicted at once.
        self.sides = len(_SIDES)
        #: The most bytes of sums and temporary values so far.
        self.peak_bytes = 0
        #: Bytes that were sent to the device, and that came back.
        self.bytes_up = self.bytes_down = 0
        self._held = 0
        self._outputs: list[_Output] = []
        self._scales: list[Scale] = []
        #: Patches whose predictions are made on the threads of several devices, in order; None where they are skipped.
        self._early: deque[tuple[list[int], Future[list[Piece]] | None]] = deque()
        #: Blocks that are on their way down, and predictions that are checked, in order.
        self._late: deque[tuple[Tensor, list[tuple[int, int, Tensor]], Callable[[], None] | None]] = deque()
        is_cuda = self.device.type == "cuda"
        self._down = torch.cuda.Stream(self.device) if is_cuda else None

    def __call__(self, batch: Array, locations: Tensor) -> list[tuple[Array, bool]]:
        """Return the predictions of a batch, for a trial."""
        return self.calls(batch, locations)

    def deal(self, ticket: Ticket, batch: Array) -> None:
        """Let the next device predict a batch, for a trial."""
        assert isinstance(self.calls, CallsInTurn)
        self.calls.deal(ticket, batch)

    def begin(self, frontiers: list[Frontier], scales: list[Scale]) -> None:
        """Start a pass with the unfinished blocks of each output, and the normalization of each channel, if there is one."""
        self._scales = scales
        self._held = 0
        self._early.clear()
        self._late.clear()
        self._outputs = [_Output(self, number, frontier) for number, frontier in enumerate(frontiers)]

    def blend(self, patches: list[int], batch: Array | None) -> list[Final]:
        """Predict and add patches, or skip them without a batch. Return blocks that came down."""
        self.bytes_up += 0 if batch is None else batch.nbytes
        with self._in_memory():
            if isinstance(self.calls, CallsInTurn):
                future = None if batch is None else self.calls.submit(functools.partial(self._all_pieces, batch=batch))
                self._early.append((patches, future))
                while len(self._early) > len(self.calls.calls):
                    self._blend_next()
            elif batch is None:
                self._skip(patches)
            else:
                # One piece after the other, whose predictions are dropped before the next ones are made.
                for first, inputs, found in self._pieces(self.calls, batch):
                    self._blend(self.calls, patches[first : first + len(inputs)], inputs, found)
                    del inputs, found
        return list(self._arrived(_LATE))

    def end(self) -> list[Final]:
        """End a pass, and return all blocks that did not come down yet."""
        with self._in_memory():
            while self._early:
                self._blend_next()
        done = list(self._arrived(0))
        self._outputs = []
        return done

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        """Say what to do where the device has no memory for what the block does."""
        try:
            with self.torch.no_grad():
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"{self.device} has no memory for a patch and the sums of unfinished voxels ({error}): take smaller patches, "
                "set device_memory, or blend on the host"
            ) from error

    def _predicted(self, call: Call, inputs: Tensor) -> list[Tensor]:
        return self._mean_of_flips(call, inputs) if self.flips else call.predicted(inputs)

    def _pieces(self, call: Call, batch: Array) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        return call.pieces(batch, lambda piece: self._normalized(call.sent(piece)), functools.partial(self._predicted, call))

    def _all_pieces(self, call: Call, batch: Array) -> list[Piece]:
        return [(call, *piece) for piece in self._pieces(call, batch)]

    def _normalized(self, inputs: Tensor) -> Tensor:
        """Normalize inputs in place, in float64 as the compiled half does."""
        for channel, (low, high, zero, unit, keeps_zero) in enumerate(self._scales):
            values = inputs[:, channel]
            scaled = values.double().clamp_(low, high).sub_(zero).div_(unit)
            values.copy_(self.torch.where(values == 0, values, scaled) if keeps_zero else scaled)
        return inputs

    def _blend_next(self) -> None:
        """Wait for the earliest predictions of another thread, and add them."""
        patches, future = self._early.popleft()
        if future is None:
            self._skip(patches)
            return
        for call, first, inputs, found in future.result():
            self._blend(call, patches[first : first + len(inputs)], inputs, found)

    def _skip(self, patches: list[int]) -> None:
        blocks: list[tuple[int, int, Tensor]] = []
        for patch in patches:
            for output in self._outputs:
                blocks += output.skip(patch)
        self._send_down(blocks, None)

    def _blend(self, call: Call, patches: list[int], inputs: Tensor, found: list[Tensor]) -> None:
        """Add the predictions of some patches to the blocks of all outputs."""
        blocks: list[tuple[int, int, Tensor]] = []
        checks: list[tuple[_Output, int, int, Tensor]] = []
        moved = [value.to(self.device, non_blocking=True) for value in found]
        for place, patch in enumerate(patches):
            for output, values in zip(self._outputs, moved):
                prediction = values[place]
                fine = output.is_finite(prediction)
                if fine is not None and output.refuses:
                    checks.append((output, patch, place, fine))
                votes = fine is None or output.refuses or bool(fine)
                blocks += output.add(patch, prediction if votes else None)
        if not checks:
            self._send_down(blocks, None)
            return
        if self._down is None:
            for output, patch, place, fine in checks:
                if not bool(fine):
                    output.refuse(patch, moved[output.number][place])
            self._send_down(blocks, None)
            return
        flags = self.torch.stack([fine for *_, fine in checks])

        def check() -> None:
            if not bool(flags.all()):
                self._refuse(call, flags, checks, inputs)

        self._send_down(blocks, check)

    def _refuse(self, call: Call, flags: Tensor, checks: list[tuple[_Output, int, int, Tensor]], inputs: Tensor) -> None:
        """Predict a batch again to find the value that is refused."""
        output, patch, place, _ = checks[int((~flags).nonzero()[0])]
        with self.torch.no_grad():
            found = self._predicted(call, inputs)
        output.refuse(patch, found[output.number].to(self.device)[place])

    def _mean_of_flips(self, call: Call, inputs: Tensor) -> list[Tensor]:
        """Return the means of the predictions from all eight sides, as many at once as memory allows."""
        sums: list[Tensor] = []
        first = 0
        while first < len(_SIDES):
            sides = [[axis + 2 for axis in range(3) if side[axis]] for side in _SIDES[first : first + self.sides]]
            turned = self.torch.cat([inputs.flip(axes) if axes else inputs for axes in sides])
            try:
                found = call.predicted(turned)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.sides == 1 or len(inputs) > 1:
                    raise
                found = None
            if found is None:
                # The error and its tensors are gone here.
                self.sides = (self.sides + 1) // 2
                call.free()
                continue
            for place, values in enumerate(found):
                for side, axes in zip(values.split(len(inputs)), sides):
                    back = (side.flip(axes) if axes else side).float()
                    if place == len(sums):
                        sums.append(back.clone())
                    else:
                        sums[place] += back
            first += len(sides)
        return [total / len(_SIDES) for total in sums]

    def grow(self, length: int, temporary: int = 0) -> None:
        """Count bytes of sums that are kept, and of values that are dropped at once."""
        self._held += length
        self.peak_bytes = max(self.peak_bytes, self._held + temporary)

    def _send_down(self, blocks: list[tuple[int, int, Tensor]], check: Callable[[], None] | None) -> None:
        """Copy final blocks to the host, without waiting where the device can."""
        torch = self.torch
        if not blocks and check is None:
            return
        if self._down is None:
            self._late.append((None, [(out, block, value if value is None else value.cpu()) for out, block, value in blocks], check))
            return
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        here: list[tuple[int, int, Tensor]] = []
        with torch.cuda.stream(self._down):
            for output, block, value in blocks:
                if value is not None:
                    pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                    pinned.copy_(value, non_blocking=True)
                    value.record_stream(self._down)
                    value = pinned
                here.append((output, block, value))
            event = torch.cuda.Event()
            event.record(self._down)
        self._late.append((event, here, check))

    def _arrived(self, most: int) -> Iterator[Final]:
        """Yield the blocks that came down; wait until at most this many calls are late."""
        while self._late:
            event, blocks, check = self._late[0]
            if event is not None and not event.query():
                if len(self._late) <= most:
                    return
                event.synchronize()
            self._late.popleft()
            if check is not None:
                check()
            for output, block, value in blocks:
                array = None if value is None else value.numpy()
                self.bytes_down += 0 if array is None else array.nbytes
                yield output, block, array


class Place(NamedTuple):
    """Where a run keeps its sums."""

    #: What the compiled half calls.
    call: Call | CallsInTurn | DeviceCall
    #: "host", "device" or "auto".
    word: BlendOn
    #: Bytes of the device that sums may take; None for any number.
    memory: int | None
    #: Whether the error counts if the device has no memory, and no other place is tried.
    is_last: bool

    @property
    def prepare_on(self) -> str:
        """Where inputs are converted and normalized: where they are sent to, if it computes in float64 as the host does."""
        if not isinstance(self.call, DeviceCall):
            return "host"
        device = self.call.calls.device
        # A model without a device takes arrays.
        return "host" if device is None or self.call.torch.device(device).type == "mps" else "device"


def places_of_sums(
    call: Call | CallsInTurn, blend_on: BlendOn, memory: int | None, *, flips: bool, resumed: bool, crop: Sequence[bool], batch: int
) -> Iterator[Place]:
    """Yield where sums may be kept, the next one to be tried if the device has no memory."""
    if blend_on not in ("auto", "device", "host"):
        raise InvalidError(f"blend_on {blend_on!r}: it is 'auto', 'device' or 'host'")
    if blend_on == "host":
        yield Place(call, "host", None, True)
        return
    reason = refusal(call, crop)
    if blend_on == "device" and reason is not None:
        raise InvalidError(f"blend_on 'device': {reason}, or blend on the host")
    # A run that is resumed must blend as it began, on any machine.
    if reason is not None or (blend_on == "auto" and (resumed or not _is_fast(call.probed[0].device.type))):
        yield Place(call, "host", None, True)
        return
    device = DeviceCall(call, flips=flips)
    if memory is None:
        memory = free_bytes(call, device.device, batch * (len(_SIDES) if flips else 1))
    yield Place(device, blend_on, memory, blend_on == "device")
    call.free()
    yield Place(device, blend_on, max(1, device.peak_bytes // 2), False)
    call.free()
    yield Place(call, "host", None, True)


def _is_fast(kind: str) -> bool:
    """Return whether devices of this kind blend faster than the host, or save it copies."""
    return kind != "cpu"


def free_bytes(call: Call | CallsInTurn, device: Tensor, patches: int) -> int | None:
    """Return the bytes of a device that are free next to the model and a batch of patches; None if that is unknown."""
    import torch

    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    elif device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
    else:
        return None
    # Some of it is lost between tensors.
    return max(0, int(0.9 * (free - patches * (call.patch_bytes or 0))))


class _Output:
    """The sums of the unfinished blocks of one output."""

    def __init__(self, owner: DeviceCall, number: int, frontier: Frontier) -> None:
        self.owner = owner
        self.torch = torch = owner.torch
        self.number = number
        self.frontier = frontier
        options = frontier.options()
        self.reduce: str = options["reduce"]
        self.numbers: list[float] = options["numbers"]
        self.dtype: str = options["dtype"]
        self.keeps = options["non_finite"] == "keep"
        self.refuses = options["non_finite"] == "refuse"
        self.too_large: float = options["too_large"]
        self.sums_dtype = getattr(torch, options["accumulator"])
        labels = options["labels"]
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64, device=owner.device)
        most = frontier.channels - 1 if labels is None else max(labels, default=0)
        self.class_dtype = next(
            dtype for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64) if most <= torch.iinfo(dtype).max
        )
        vote = options["vote"]
        self.vote = None if vote is None else torch.tensor(vote, dtype=torch.float32, device=owner.device).view(-1, 1, 1, 1)
        given = frontier.weights()
        self.factors: list[Tensor] | None = None
        self.window: Tensor = None
        if given is not None:
            here = [torch.from_numpy(rows).to(owner.device) for rows in given]
            if len(here) == 3:
                self.factors = here
            else:
                self.window = here[0].view(frontier.patch)
        self.is_crop = given is None
        #: Sums of unfinished blocks, by number.
        self.sums: dict[int, Tensor] = {}

    def is_finite(self, prediction: Tensor) -> Tensor:
        """Return whether all values are finite and small enough, on the device; None if none can be otherwise."""
        if self.keeps:
            return None
        if not prediction.is_floating_point():
            if prediction.dtype == self.torch.bool or self.torch.iinfo(prediction.dtype).max < self.too_large:
                return None
        # Without values between, and NaN wins.
        least, most = self.torch.aminmax(prediction)
        return (most < self.too_large) & (least > -self.too_large)

    def _is_fine(self, prediction: Tensor) -> Tensor:
        if prediction.dtype == self.torch.bfloat16:
            prediction = prediction.float()
        return prediction.abs() < self.too_large

    def refuse(self, patch: int, prediction: Tensor) -> None:
        """Raise the error of a prediction that is not finite."""
        bad = ~self._is_fine(prediction)
        places = bad.nonzero()
        if len(places) == 0:  # predicted again it is finite
            self.frontier.refuse(patch, (0, 0, 0, 0), float("nan"))
            return
        at = places[0].tolist()
        self.frontier.refuse(patch, (at[0], at[1], at[2], at[3]), float(prediction[tuple(at)]))

    def skip(self, patch: int) -> list[tuple[int, int, Tensor]]:
        """Skip a patch. Return the blocks that became final."""
        _, steps = self.frontier.add(patch, "skipped")
        return self._steps(steps, self.vote)

    def add(self, patch: int, prediction: Tensor | None) -> list[tuple[int, int, Tensor]]:
        """Add the prediction of a patch, or leave it out. Return the blocks that became final."""
        _, steps = self.frontier.add(patch, "left-out" if prediction is None else "predicted")
        return self._steps(steps, prediction)

    def _steps(self, steps: Sequence[Tensor], prediction: Tensor | None) -> list[tuple[int, int, Tensor]]:
        done: list[tuple[int, int, Tensor]] = []
        for block, shape, part, votes, is_fresh, is_final, has_values, parts in steps:
            if votes:
                assert prediction is not None
                self._add(block, shape, part, is_fresh, prediction)
            if is_final:
                done.append((self.number, block, self._end(block, parts) if has_values else None))
        return done

    def _weights(self, part: Part) -> Tensor:
        """Return the weights (z, y, x) of some voxels of a patch."""
        place, _, first, lengths = part
        _, z, y, x = _box(first, lengths)
        if self.factors is None:
            return self.window[z, y, x]
        along_z, along_y, along_x = (rows[place[axis]] for axis, rows in enumerate(self.factors))
        return (along_z[z, None] * along_y[None, y])[:, :, None] * along_x[x]

    def _add(self, block: int, shape: tuple[int, int, int], part: Part, is_fresh: bool, prediction: Tensor) -> None:
        """Add the weighted voxels of a patch to a block."""
        torch = self.torch
        _, to, first, lengths = part
        source = prediction
        if prediction.shape[1:] != (1, 1, 1) or tuple(self.frontier.patch) == (1, 1, 1):
            source = prediction[_box(first, lengths)]
        channels = self.frontier.channels
        if self.is_crop:
            self.sums[block] = source.expand(channels, *lengths).contiguous()
            self.owner.grow(_bytes(self.sums[block]))
            return
        weights = self._weights(part)
        wide = source.float()
        is_half = self.sums_dtype != torch.float32
        temporary = _bytes(weights) + (_bytes(wide) if wide.dtype != source.dtype else 0)
        if is_fresh and tuple(lengths) == tuple(shape) and not is_half:
            self.sums[block] = wide * weights
            self.owner.grow(_bytes(self.sums[block]), temporary)
            return
        if is_fresh:
            self.sums[block] = torch.zeros((channels, *shape), dtype=self.sums_dtype, device=self.owner.device)
            self.owner.grow(_bytes(self.sums[block]))
        here = self.sums[block][_box(to, lengths)]
        if is_half:
            summed = here.float() + wide * weights
            # Rounding may bring a sum slightly above the largest number.
            largest = torch.finfo(self.sums_dtype).max
            near = summed.abs() <= min(largest * 1.06, torch.finfo(torch.float32).max)
            here.copy_(torch.where(near, summed.clamp(-largest, largest), summed))
            temporary += 4 * _bytes(summed)
        else:
            here.addcmul_(wide, weights)
        self.owner.grow(0, temporary)

    def _end(self, block: int, parts: list[Part] | None) -> Tensor:
        """Return the reduced values of a final block."""
        torch = self.torch
        values = self.sums.pop(block)
        held = _bytes(values)
        if not self.is_crop:
            values = values.float()
            if parts is not None:
                sums = torch.zeros(values.shape[1:], dtype=torch.float32, device=values.device)
                for part in parts:
                    _, to, _, lengths = part
                    sums[_box(to, lengths)[1:]] += self._weights(part)
                values /= torch.where(sums > 0, sums, torch.ones_like(sums))
            if not self.keeps:
                # Rounding may bring a mean of finite values above the largest of them.
                most = 65504.0 if self.too_large == 65520.0 else torch.finfo(torch.float32).max
                values.clamp_(-most, most)
        reduced = self._reduced(values).contiguous()
        self.owner.grow(0, _bytes(reduced))
        self.owner.grow(-held)
        return reduced

    def _reduced(self, values: Tensor) -> Tensor:
        """Return the values that come down: of the output's type where it is small, of a type that holds them otherwise."""
        torch = self.torch
        if self.reduce == "argmax":
            classes = self._argmax(values)
            return (classes if self.labels is None else self.labels[classes]).to(self.class_dtype)
        if self.reduce == "threshold":
            exact = values if values.dtype == torch.float32 else values.double()
            return (exact >= self.numbers[0]).to(torch.uint8)
        if self.reduce == "mean":
            if self.dtype == "float16" and not self.keeps and values.dtype == torch.float32:
                return values.half()
            return values.float() if values.dtype == torch.bfloat16 else values
        values = values.float()
        if self.reduce == "quantize":
            low, high = (torch.tensor(number, dtype=torch.float32) for number in self.numbers)
            step = torch.tensor(255.0, dtype=torch.float32) / (high - low)
            values = ((values - float(low)) * float(step)).clamp(0.0, 255.0)
            return values.round().to(torch.uint8) if self.dtype == "uint8" and not self.keeps else values
        values = torch.softmax(values, 0) if self.reduce == "softmax" else torch.sigmoid(values)
        return values.half() if self.dtype == "float16" else values

    def _argmax(self, values: Tensor) -> Tensor:
        """Return the first of the channels with the largest value; NaN never wins."""
        torch = self.torch
        if not self.keeps or not values.is_floating_point():
            return values.float().argmax(0, keepdim=True) if values.dtype == torch.bool else values.argmax(0, keepdim=True)
        best, classes = values[0], torch.zeros(values.shape[1:], dtype=torch.int64, device=values.device)
        for channel in range(1, len(values)):
            value = values[channel]
            wins = (value > best) | (best.isnan() & ~value.isnan())
            best = torch.where(wins, value, best)
            classes = torch.where(wins, channel, classes)
        return classes[None]


def _box(start: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a box (z, y, x) of all channels."""
    return (slice(None), *(slice(first, first + length) for first, length in zip(start, lengths)))


def _bytes(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
