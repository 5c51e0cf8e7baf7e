"""MONAI's words for prediction: a ``Merger`` that holds what is not final only, and a call shaped like
``sliding_window_inference`` that reads and writes volumes on disk.

MONAI's spatial axes are taken as they come: first, second and third are our z, y and x.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Merger
from monai.inferers import sliding_window_inference as _monai

import voxpatch
from voxpatch._voxpatch import Grid
from voxpatch.errors import InvalidError
from voxpatch.inference import as_array
from voxpatch.options import Blend
from voxpatch.sizes import size

#: Our names of torch's padding modes.
_PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def sliding_window_inference(
    inputs: torch.Tensor | voxpatch.Volume | str | os.PathLike[str],
    roi_size: Sequence[int] | int,
    sw_batch_size: int,
    predictor: Callable[..., Any],
    overlap: Sequence[float] | float = 0.25,
    mode: str = "constant",
    sigma_scale: Sequence[float] | float = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    roi_weight_map: torch.Tensor | None = None,
    process_fn: Callable[..., Any] | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    output: str | os.PathLike[str] | None = None,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Predict as ``monai.inferers.sliding_window_inference`` does, for a tensor or a volume on disk.

    Parameters
    ----------
    inputs : torch.Tensor, voxpatch.Volume or path
        A tensor (B, C, D, H, W), or a volume.
    roi_size, sw_batch_size, predictor, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress, \
    roi_weight_map, *args, **kwargs
        As in MONAI, in the same order.
    process_fn, with_coord
        As in MONAI, for tensors only: weights that depend on the prediction, and windows that are passed with
        their coordinates, need all sums in memory, so MONAI's own function runs.
    buffer_steps, buffer_dim
        As in MONAI; checked, and without effect: sums are held only where they are not final.
    output : path, optional
        Write the blended output of one item (B = 1) here.
    options : dict, optional
        Further arguments of :func:`voxpatch.predict`, such as ``reduce``, ``memory`` or ``resume``.

    Returns
    -------
    torch.Tensor or voxpatch.Volume
        A tensor (B, K, D, H, W) on ``device``, or the opened volume at ``output``.

    Notes
    -----
    MONAI's own function also runs for tensors that are not 5-D and for tensors that require a gradient: a gradient
    needs every window in memory.
    """
    if buffer_steps is not None and buffer_steps > 0 and not -3 <= buffer_dim <= 3:
        raise InvalidError(f"buffer_dim={buffer_dim}: it is from -3 to 3")
    if isinstance(inputs, torch.Tensor) and output is None and not options:
        gradient = inputs.requires_grad and torch.is_grad_enabled()
        if process_fn or with_coord or gradient or inputs.ndim != 5 or "condition" in kwargs:
            given = (overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress, roi_weight_map)
            more = (process_fn, buffer_steps, buffer_dim, with_coord, *args)
            return _monai(inputs, roi_size, sw_batch_size, predictor, *given, *more, **kwargs)
    for name, value in (("process_fn", process_fn), ("with_coord", with_coord), ("condition", kwargs.get("condition") is not None)):
        if value:
            raise InvalidError(f"{name}: only for tensors in memory, without output= and options=")
    device = device or (inputs.device if isinstance(inputs, torch.Tensor) else "cpu")
    if isinstance(inputs, torch.Tensor):
        if inputs.ndim != 5:
            raise InvalidError(f"a tensor of shape {tuple(inputs.shape)}: volumes in batches have five axes")
        volumes = [voxpatch.Volume.from_array(as_array(item)) for item in inputs]
    else:
        volumes = [voxpatch.inference.as_volume(inputs)]
    if output is not None and len(volumes) != 1:
        raise InvalidError(f"{len(volumes)} items into one output: predict them one by one")
    if sw_device is None and not isinstance(predictor, torch.nn.Module):
        sw_device = device
    if mode not in ("constant", "gaussian"):
        raise InvalidError(f"mode {mode!r}: it is 'constant' or 'gaussian'")
    scales = set(sigma_scale) if isinstance(sigma_scale, Sequence) else {sigma_scale}
    blend: Any = "average"
    if mode == "gaussian" and len(scales) == 1:
        blend = f"monai:{float(scales.pop())}"
    elif mode == "gaussian" and roi_weight_map is None:
        raise InvalidError(f"sigma_scale={sigma_scale}: one for all axes, or give roi_weight_map")
    if roi_weight_map is not None:
        blend = as_array(roi_weight_map).reshape(roi_weight_map.shape[-3:])
    call = predictor
    if args or kwargs:
        call = lambda window: predictor(window, *args, **kwargs)  # noqa: E731
        sw_device = sw_device or device
    found = []
    for volume in volumes:
        roi = [int(n) for n in ([roi_size] * 3 if isinstance(roi_size, int) else roi_size)]
        roi = [given if given > 0 else length for given, length in zip(roi, volume.shape[1:])]
        settings: dict[str, Any] = {
            "batch_size": sw_batch_size,
            "blend": blend,
            "padding": _PADDING.get(padding_mode, cval),
            "margin": 0,
            "preset": "monai",
            "device": sw_device,
            "progress": progress,
            # A smaller output is a coarser one there, never one without its rim; integers are averaged.
            "halo": 0,
            "average_integers": True,
            **(options or {}),
        }
        parts = [float(part) for part in (overlap if isinstance(overlap, Sequence) else [overlap] * 3)]
        if output is not None:
            return voxpatch.predict(call, volume, output, roi, parts, **settings)
        found.append(torch.from_numpy(voxpatch.predict(call, volume, None, roi, parts, **settings)))
    return torch.stack(found).to(device)


class VoxpatchMerger(Merger):
    """A ``Merger`` for ``PatchInferer`` that holds only what is not final.

    Every write chunk of the output is written once, when it is final; the weights take no memory. Patches that a filter
    left out do not vote.

    Parameters
    ----------
    merged_shape, cropped_shape, device
        As in MONAI.
    patch_size : int or sequence of int
        Voxels of the predictions of a patch.
    overlap : float, int or sequence, default 0
        The splitter's overlap: a fraction of the patch (float) or voxels (int).
    blend, options
        As in :class:`voxpatch.GridAggregator`; `options` is a dictionary of its keywords.
    output : path, optional
        Write the output here, with the items of a batch as channels, one after the other.

    Examples
    --------
    >>> import torch, voxpatch
    >>> from monai.inferers import PatchInferer, SlidingWindowSplitter
    >>> from voxpatch.compat.monai import VoxpatchMerger
    >>> splitter = SlidingWindowSplitter(8, 0.5)
    >>> inferer = PatchInferer(splitter, VoxpatchMerger, patch_size=8, overlap=0.5)
    >>> inferer(torch.zeros(1, 1, 16, 16, 16), lambda patch: patch).shape
    torch.Size([1, 1, 16, 16, 16])
    """

    def __init__(
        self,
        merged_shape: Sequence[int],
        cropped_shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        *,
        patch_size: Sequence[int] | int,
        overlap: Sequence[float] | float = 0.0,
        blend: Blend = "average",
        output: str | os.PathLike[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(merged_shape=merged_shape, cropped_shape=cropped_shape, device=device or "cpu")
        self.patch_size = size("patch_size", patch_size)
        parts = overlap if isinstance(overlap, Sequence) else [overlap] * 3
        lengths = [_voxels(part, length) for part, length in zip(parts, self.patch_size)]
        shape = [int(n) for n in self.cropped_shape[-3:]]
        # Patches start at multiples of the step and hang over the far faces, as MONAI's splitter pads there.
        self.grid = Grid(shape, self.patch_size, lengths, "padded", (0, 0, 0), False)
        self.output = output
        options = {"average_integers": True, **(options or {})}  # as MONAI does
        self._aggregator = voxpatch.GridAggregator(self, blend, output, scale=1, **options)

    def first_volume(self) -> None:
        """Return None: nothing is known of spacing and affine."""
        return None

    def aggregate(self, values: torch.Tensor, location: Sequence[int]) -> None:
        """Add the predictions of a patch at a location, as MONAI calls it."""
        if self.is_finalized:
            raise ValueError("`VoxpatchMerger` is already finalized. Please instantiate a new object to aggregate.")
        array = as_array(values)
        start = np.asarray(location, np.int64)
        place = np.concatenate([start, start + self.patch_size])
        self._aggregator.add_batch(array.reshape(1, -1, *array.shape[-3:]), place[None])

    def finalize(self) -> Any:
        """Return a tensor (B, K, D, H, W), or the opened :class:`voxpatch.Volume` at ``output``."""
        self.is_finalized = True
        found = self._aggregator.finish(partial=True)
        if self.output is not None:
            return found
        return torch.from_numpy(found).reshape(self.cropped_shape[0], -1, *found.shape[-3:]).to(self.device)


def _voxels(overlap: float, patch: int) -> int:
    """The splitter's overlap in voxels: it rounds the step."""
    return patch - round(patch * (1 - overlap)) if isinstance(overlap, float) else int(overlap)
