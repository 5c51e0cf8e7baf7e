"""Sizes and counts, checked in the forms in which users give them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import index
from typing import Any, Union

from .errors import InvalidError

#: One number for z, y, x alike, or three.
Size = Union[int, Sequence[int]]

#: The largest number that the compiled half takes.
LARGEST = 2**63 - 1


def count(name: str, given: Any, least: int = 0, most: int = LARGEST) -> int:
    """A whole number from ``least`` up to ``most``, of an int, a numpy integer or an array without axes."""
    try:
        number = index(given)
    except TypeError as error:
        raise InvalidError(f"{name} {given!r}: give a whole number") from error
    if not least <= number <= most:
        raise InvalidError(f"{name} {given!r}: give a whole number from {least} to {most}")
    return number


def size(name: str, given: Size, least: int = 1) -> tuple[int, int, int]:
    """Voxels along z, y, x of one number or three, in any form: lists, arrays, tensors, ``torch.Size``."""
    # An array has an __index__, too, but only one number is an index.
    single = getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__")
    try:
        lengths = (index(given),) * 3 if single else tuple(index(n) for n in islice(iter(given), 4))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{name} {given!r}: give a whole number, or three for z, y, x") from error
    if len(lengths) != 3 or not all(least <= length <= LARGEST for length in lengths):
        raise InvalidError(f"{name} {given!r}: give a whole number from {least} to {LARGEST}, or three for z, y, x")
    return lengths
