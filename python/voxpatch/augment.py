"""Random maps through which a queue reads its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from .errors import InvalidError
from .sizes import probability, size, three

#: A range of random numbers: a number for -number to number, a pair (first, last) for all axes, or three pairs for z, y, x.
Range = Union[float, Sequence[float], Sequence[Sequence[float]]]

Pair = tuple[float, float]
Pairs = tuple[Pair, Pair, Pair]


@dataclass(frozen=True)
class RandomAffine:
    """A random affine map about the center of each patch: the content is scaled, sheared, rotated and moved.

    Lengths are mm, so that a rotation is one whatever the spacing. The axes are those of the volume. Each range is uniform: a
    number ``n`` stands for -n to n, a pair for all three axes, three pairs for z, y, x.

    Parameters
    ----------
    scales : float, (float, float) or three pairs, default 0.1
        Factors along z, y, x; a number ``n`` stands for 1 - n to 1 + n. At 2 the content is twice as large.
    degrees : float, (float, float) or three pairs, default 10.0
        Angles of the rotations about z, y, x, of which that about x comes first.
    shears : float, (float, float) or three pairs, default 0.0
        Moves along z in proportion to y, along z in proportion to x, and along y in proportion to x.
    translation : float, (float, float) or three pairs, default 0.0
        Moves along z, y, x in mm.
    isotropic : bool, default False
        Scale all axes by the factor along z.
    p : float, default 1.0
        Probability that a patch is changed.
    p_rotation : float, default 1.0
        Probability of the rotation of a patch that is changed.
    p_scaling : float, default 1.0
        Probability of the scaling of a patch that is changed.

    Raises
    ------
    ValueError
        If a range is not one, or a probability is not from 0 to 1.

    See Also
    --------
    RandomElastic : A smooth deformation.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.random.default_rng(0).random((32, 32, 32), np.float32)
    >>> affine = voxpatch.RandomAffine(scales=(0.7, 1.4), degrees=((-30, 30), 0, 0), isotropic=True, p_scaling=0.2)
    >>> queue = voxpatch.Queue([voxpatch.Subject(ct=scan)], voxpatch.UniformSampler(16), 2, affine=affine)
    >>> [(sample["ct"].shape, sample["affine"].shape) for sample in queue]
    [((1, 16, 16, 16), (4, 4)), ((1, 16, 16, 16), (4, 4))]
    """

    scales: Range = 0.1
    degrees: Range = 10.0
    shears: Range = 0.0
    translation: Range = 0.0
    isotropic: bool = False
    p: float = 1.0
    p_rotation: float = 1.0
    p_scaling: float = 1.0

    def __post_init__(self) -> None:
        self._parts()

    def _parts(self) -> tuple[Pairs, Pairs, Pairs, Pairs, bool, tuple[float, float, float]]:
        """Return the ranges and probabilities as the compiled half takes them."""
        scales = _ranges("scales", self.scales, around=1.0)
        if any(low <= 0 for low, _ in scales):
            raise InvalidError(f"scales {self.scales!r}: factors are above 0")
        return (
            scales,
            _ranges("degrees", self.degrees),
            _ranges("shears", self.shears),
            _ranges("translation", self.translation),
            bool(self.isotropic),
            (
                probability("p", self.p),
                probability("p_rotation", self.p_rotation),
                probability("p_scaling", self.p_scaling),
            ),
        )


@dataclass(frozen=True)
class RandomElastic:
    """A random smooth deformation of each patch: a cubic B-spline whose control points are displaced independently.

    Control points cover the patch. Space does not fold if displacements are below 0.4 of the distance between control points.

    Parameters
    ----------
    num_control_points : int or (int, int, int), default 7
        Control points along z, y, x, from 4 to 64.
    max_displacement : float or (float, float, float), default 7.5
        Largest displacement of a control point along z, y, x in mm.
    p : float, default 1.0
        Probability that a patch is deformed.

    Raises
    ------
    ValueError
        If numbers are beyond their limits.

    See Also
    --------
    RandomAffine : Rotation, scale, shear and translation.

    Notes
    -----
    Along an axis of L voxels with n control points, voxel v is at u = v (n - 3) / (L - 1) of the spline. With
    c = min(floor(u), n - 4) and t = u - c, control points c to c + 3 have the weights (1 - t)³/6, (3t³ - 6t² + 4)/6,
    (-3t³ + 3t² + 3t + 1)/6 and t³/6.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> scan = np.random.default_rng(0).random((32, 32, 32), np.float32)
    >>> elastic = voxpatch.RandomElastic(num_control_points=5, max_displacement=2)
    >>> queue = voxpatch.Queue([voxpatch.Subject(ct=scan)], voxpatch.UniformSampler(16), 1, elastic=elastic)
    >>> next(iter(queue))["displacement"].shape
    (5, 5, 5, 3)
    """

    num_control_points: int | Sequence[int] = 7
    max_displacement: float | Sequence[float] = 7.5
    p: float = 1.0

    def __post_init__(self) -> None:
        self._parts()

    def _parts(self) -> tuple[tuple[int, int, int], tuple[float, ...], float]:
        """Return the settings as the compiled half takes them."""
        points = size("num_control_points", self.num_control_points, least=4)
        if max(points) > 64:
            raise InvalidError(f"num_control_points {self.num_control_points!r}: an axis has from 4 to 64")
        try:
            largest = tuple(float(one) for one in three("max_displacement", self.max_displacement))
        except (TypeError, ValueError) as error:
            raise InvalidError(f"max_displacement {self.max_displacement!r}: give mm, or three for z, y, x") from error
        if not all(0 <= one < float("inf") for one in largest):
            raise InvalidError(f"max_displacement {self.max_displacement!r}: give mm from 0 on")
        return points, largest, probability("p", self.p)


def _ranges(name: str, given: Range, around: float = 0.0) -> Pairs:
    """Return the range of each axis."""

    def pair(one: object) -> Pair:
        if isinstance(one, (int, float)) or getattr(one, "ndim", None) == 0:
            half = float(one)  # type: ignore[arg-type]
            return around - half, around + half
        low, high = (float(n) for n in one)  # type: ignore[attr-defined]
        return low, high

    try:
        axes = list(given)  # type: ignore[arg-type]
    except TypeError:
        axes = []
    try:
        z, y, x = (pair(one) for one in (axes if len(axes) == 3 else [given] * 3))
    except (TypeError, ValueError) as error:
        raise InvalidError(f"{name} {given!r}: give a number, a pair (first, last), or three of these for z, y, x") from error
    if not all(low <= high and high - low < float("inf") for low, high in (z, y, x)):
        raise InvalidError(f"{name} {given!r}: give the lower number of a pair first")
    return z, y, x
