"""Sizes, counts and other settings, checked in the forms in which users give them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import index
from typing import TYPE_CHECKING, Any

from .errors import InvalidError
from .options import MeanStd, NnunetCt, Percentile, Within

if TYPE_CHECKING:
    from .options import Normalize, Overlap, Size

#: The largest number that the compiled half takes.
LARGEST = 2**63 - 1


def count(name: str, given: Any, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number from ``least`` up to ``most``, given as an int, a numpy integer or an array without axes."""
    try:
        number = index(given)
    except TypeError as error:
        raise InvalidError(f"{name} {given!r}: give a whole number") from error
    if not least <= number <= most:
        raise InvalidError(f"{name} {given!r}: give a whole number from {least} to {most}")
    return number


def size(name: str, given: Size, least: int = 1) -> tuple[int, int, int]:
    """Return voxels along z, y, x, given as one number or three in any form: lists, arrays, tensors, ``torch.Size``."""
    # An array has an __index__, too, but only one number is an index.
    single = getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__")
    try:
        lengths = (index(given),) * 3 if single else tuple(index(n) for n in islice(iter(given), 4))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{name} {given!r}: give a whole number, or three for z, y, x") from error
    if len(lengths) != 3 or not all(least <= length <= LARGEST for length in lengths):
        raise InvalidError(f"{name} {given!r}: give a whole number from {least} to {LARGEST}, or three for z, y, x")
    return lengths


def three(name: str, given: Overlap) -> list[Any]:
    """Return one number for each of z, y, x, given as one for all or as three."""
    single = getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__")
    numbers: list[Any] = [given] * 3 if single else list(islice(iter(given), 4))  # type: ignore[arg-type]
    if len(numbers) != 3 or isinstance(given, (str, bytes)):
        raise InvalidError(f"{name} {given!r}: give one number, or three for z, y, x")
    return numbers


def probability(name: str, given: float) -> float:
    """Return a probability."""
    try:
        number = float(given)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{name} {given!r}: give a probability, from 0 to 1") from error
    if not 0 <= number <= 1:
        raise InvalidError(f"{name} {given!r}: give a probability, from 0 to 1")
    return number


def normalization(given: Normalize | None) -> str:
    """Return a normalization as the compiled half takes it."""
    if given is None:
        return "none"
    if isinstance(given, (str, Percentile, MeanStd, NnunetCt, Within)):
        return str(given)
    if isinstance(given, list) and given:
        return ";".join(normalization(one) for one in given) + (";" if len(given) == 1 else "")
    numbers: Any = given
    try:
        low, high = (float(one) for one in numbers)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"normalize {given!r}: give 'zscore', 'zscore:nonzero', the two values that become 0 and 1, Percentile, MeanStd, NnunetCt, Within, or a list with one for each channel") from error
    return f"window:{low},{high}"


def overlap_voxels(given: Overlap, patch: Sequence[int]) -> tuple[int, int, int]:
    """Return overlaps in voxels along z, y, x. Of a fraction of the patch the step is rounded down, as peers do."""

    def along(one: Any, length: int) -> int:
        if hasattr(one, "__index__"):
            return count("overlap", one)
        try:
            fraction = float(one)
        except (TypeError, ValueError) as error:
            raise InvalidError(f"overlap {one!r}: give voxels, or a fraction of the patch from 0 up to 1") from error
        if not 0 <= fraction < 1:
            raise InvalidError(f"overlap {one}: a fraction of the patch is from 0 up to 1; voxels are whole numbers")
        return length - max(1, int(length * (1 - fraction)))

    z, y, x = (along(one, length) for one, length in zip(three("overlap", given), patch))
    return z, y, x
