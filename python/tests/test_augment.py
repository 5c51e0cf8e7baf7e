"""Patches that are read through random maps, against scipy, TorchIO and torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import voxpatch
from voxpatch import Queue, RandomAffine, RandomElastic, Subject, UniformSampler, Volume

ndimage = pytest.importorskip("scipy.ndimage")

RANDOM = np.random.default_rng(7)
SHAPE = (40, 44, 48)
AFFINE = np.array([[0.05, -0.8, 0.1, -7], [0.7, 0.1, 0.05, 11], [0, 0.06, -1.9, 3], [0, 0, 0, 1]])
SCAN = ndimage.gaussian_filter(RANDOM.normal(0, 300, SHAPE), 1.5).astype(np.float32)
LABEL = (ndimage.gaussian_filter(RANDOM.normal(0, 1, SHAPE), 3) > 0).astype(np.uint8)
WILD = RandomAffine(
    scales=((0.7, 1.4), (0.8, 1.2), 0.1), degrees=(40, (-20, 30), 15), shears=0.15, translation=((-2, 1), 1, 0)
)
BENT = RandomElastic(num_control_points=(5, 6, 6), max_displacement=(3, 2, 2))


def splined(points: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """The displacement of each voxel, (3, z, y, x), by the formula of the documentation."""
    matrices = []
    for length, n in zip(patch, points.shape[:3]):
        matrix = np.zeros((length, n))
        for v in range(length):
            u = v * (n - 3) / max(length - 1, 1)
            c = min(int(u), n - 4)
            t = u - c
            weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
            matrix[v, c : c + 4] = np.array(weights) / 6
        matrices.append(matrix)
    return np.einsum("zk,yj,xi,kjia->azyx", *matrices, points)


def positions(sample: dict, patch: tuple[int, ...], affine: np.ndarray = AFFINE) -> np.ndarray:
    """Where each voxel of a patch is in the volume, (3, z, y, x), by what the sample says."""
    voxels = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in patch), indexing="ij"))
    if "displacement" in sample:
        voxels = voxels + splined(np.asarray(sample["displacement"]), patch)
    matrix = np.linalg.inv(affine) @ np.asarray(sample["affine"])
    moved = np.einsum("ij,jzyx->izyx", matrix[:3, :3], voxels[::-1]) + matrix[:3, 3, None, None, None]
    return moved[::-1]


def subject(padding: float | str = -1000.0, interpolation: str = "linear") -> Subject:
    return Subject(
        ct=Volume.from_array(SCAN, affine=AFFINE),
        label=Volume.from_array(LABEL, affine=AFFINE),
        padding={"ct": padding, "label": 0 if isinstance(padding, float) else padding},
        interpolation={"ct": interpolation, "label": "nearest"},
    )


OPTIONS = [
    {"affine": WILD},
    {"elastic": BENT},
    {"affine": WILD, "elastic": BENT},
    {"affine": WILD, "elastic": RandomElastic(5, 2.0), "flip": 0.5, "permute": 0.5, "rotate": 0.5},
    {"affine": RandomAffine(p=0.5), "elastic": RandomElastic(5, 2.0, p=0.5), "crop": (12, 13, 14)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("padding", "mode"), [(-1000.0, None), ("reflect", "mirror"), ("wrap", "grid-wrap"), ("edge", "nearest")])
@pytest.mark.parametrize(("interpolation", "order", "tolerance"), [("linear", 1, 2e-3), ("cubic", 3, 5e-3)])
def test_patches_are_those_of_map_coordinates(options, padding, mode, interpolation, order, tolerance):
    patch = tuple(options.get("crop", (16, 16, 16)))
    queue = Queue([subject(padding, interpolation)], UniformSampler(16, border="pad"), 5, seed=3, **options)
    for sample in queue:
        at = positions(sample, patch)
        upper = np.array(SHAPE)[:, None, None, None] - 0.5
        inside = ((at >= -0.5) & (at <= upper)).all(axis=0)
        edge = (np.abs(at + 0.5) < 1e-4).any(axis=0) | (np.abs(at - upper) < 1e-4).any(axis=0)
        clear = ~edge
        if mode is None:
            continued = "mirror" if order == 3 else "nearest"
            expected = ndimage.map_coordinates(SCAN.astype(float), at, order=order, mode=continued)
            expected[~inside] = padding
            labels = ndimage.map_coordinates(LABEL, at, order=0, mode="nearest")
            labels[~inside] = 0
        else:
            # scipy's prefilter of a continued edge is not that of an endless volume: only inside.
            if mode == "nearest" and order == 3:
                clear = clear & ((at > 12) & (at < upper - 12)).all(axis=0)
            expected = ndimage.map_coordinates(SCAN.astype(float), at, order=order, mode=mode)
            labels = ndimage.map_coordinates(LABEL, at, order=0, mode=mode)
        apart = np.abs(sample["ct"][0] - expected)[clear]
        assert apart.size == 0 or apart.max() < tolerance * 10
        tie = (np.abs(at - np.floor(at) - 0.5) < 1e-4).any(axis=0)
        assert (sample["label"][0] == labels)[clear & ~tie].all()


def test_rotation_scale_and_move_are_those_of_torchio():
    torchio = pytest.importorskip("torchio")
    torch = pytest.importorskip("torch")
    spacing = np.array([1.0, 1.0, 1.0])
    affine = np.diag([*spacing, 1.0])
    scan = SCAN[:40, :40, :40].copy()
    n = 40
    for degrees, scales, moved in [
        ((0, 0, 20), (1, 1, 1), (0, 0, 0)),
        ((15, 0, 0), (1, 1, 1), (0, 0, 0)),
        ((0, -25, 0), (1, 1, 1), (0, 0, 0)),
        ((0, 0, 0), (1.3, 0.8, 1.1), (0, 0, 0)),
        ((0, 0, 0), (1, 1, 1), (2.5, -1, 3)),
    ]:

        def fixed(values):
            return tuple((v, v) for v in values)

        own = RandomAffine(scales=fixed(scales), degrees=fixed(degrees), translation=fixed(moved))
        queue = Queue([Subject(ct=Volume.from_array(scan, affine=affine))], UniformSampler(n), 1, affine=own)
        found = next(iter(queue))["ct"][0]
        # TorchIO has x, y, z.
        image = torchio.ScalarImage(tensor=torch.from_numpy(scan.transpose(2, 1, 0)[None].copy()), affine=affine)
        transform = torchio.Affine(
            scales=scales[::-1], degrees=degrees[::-1], translation=moved[::-1], image_interpolation="linear", default_pad_value=0
        )
        theirs = np.asarray(transform(image).data)[0].transpose(2, 1, 0)
        middle = (slice(12, 28),) * 3
        assert np.abs(found[middle] - theirs[middle]).max() < 0.2, (degrees, scales, moved)


def test_a_map_is_undone_by_grid_sample():
    torch = pytest.importorskip("torch")
    sample = next(iter(Queue([subject()], UniformSampler(24), 1, seed=1, affine=WILD, elastic=BENT)))
    at = positions(sample, (24, 24, 24))
    grid = np.stack([2 * at[a] / (SHAPE[a] - 1) - 1 for a in (2, 1, 0)], axis=-1)
    theirs = torch.nn.functional.grid_sample(
        torch.from_numpy(SCAN)[None, None].double(), torch.from_numpy(grid)[None], align_corners=True, padding_mode="border"
    )[0, 0].numpy()
    inside = ((at >= 0) & (at <= np.array(SHAPE)[:, None, None, None] - 1)).all(axis=0)
    assert inside.sum() > 1000
    assert np.abs(sample["ct"][0] - theirs)[inside].max() < 1e-2


def test_ranges_of_nothing_change_nothing():
    plain = list(Queue([subject()], UniformSampler(16), 4, seed=2))
    still = RandomAffine(scales=0, degrees=0)
    for options in [
        {"affine": still},
        {"elastic": RandomElastic(max_displacement=0)},
        {"affine": RandomAffine(p=0), "elastic": RandomElastic(p=0)},
        {"affine": RandomAffine(p_rotation=0, p_scaling=0)},
    ]:
        for one, other in zip(plain, Queue([subject()], UniformSampler(16), 4, seed=2, **options), strict=True):
            assert (one["ct"] == other["ct"]).all() and (one["label"] == other["label"]).all()
            assert (one["location"] == other["location"]).all()
            start = np.linalg.inv(AFFINE) @ other["affine"]
            assert np.allclose(start[:3, 3], one["location"][2::-1]) and np.allclose(start[:3, :3], np.eye(3))
            assert not other.get("displacement", np.zeros(1)).any()


def test_batches_and_resumed_queues_have_the_same_maps():
    options = {"seed": 4, "affine": WILD, "elastic": BENT, "flip": 0.5}
    whole = list(Queue([subject()], UniformSampler(12), 8, **options))
    for threads in (0, 1, 4):
        batches = list(Queue([subject()], UniformSampler(12), 8, batch_size=3, threads=threads, **options))
        for key in ("ct", "label", "affine", "displacement", "location", "orientation"):
            assert (np.concatenate([batch[key] for batch in batches]) == np.stack([one[key] for one in whole])).all()
        assert batches[0]["affine"].shape == (3, 4, 4) and batches[0]["displacement"].shape == (3, 5, 6, 6, 3)
    for taken in range(8):
        queue = Queue([subject()], UniformSampler(12), 8, **options)
        list(itertools.islice(queue, taken))
        rest = Queue([subject()], UniformSampler(12), 8, **options)
        rest.load_state_dict(queue.state_dict())
        for one, other in zip(whole[taken:], rest, strict=True):
            assert (one["ct"] == other["ct"]).all() and (one["affine"] == other["affine"]).all()


def test_what_is_normalized_is_padded_in_normalized_values():
    own = Subject(ct=Volume.from_array(SCAN, affine=AFFINE), padding=7.0)
    far = RandomAffine(scales=0, degrees=0, translation=(30, 30))
    samples = list(Queue([own], UniformSampler(16, border="pad"), 6, affine=far, normalize="zscore", dtype="float16"))
    assert any((sample["ct"] == 7).any() for sample in samples)
    for sample in samples:
        at = positions(sample, (16, 16, 16))
        inside = ((at >= -0.5) & (at <= np.array(SHAPE)[:, None, None, None] - 0.5)).all(axis=0)
        expected = (ndimage.map_coordinates(SCAN.astype(float), at, order=1, mode="nearest") - SCAN.mean()) / SCAN.std()
        expected[~inside] = 7
        assert np.abs(sample["ct"][0].astype(float) - expected).max() < 0.02


def test_wrong_options_are_refused():
    for wrong in [
        {"scales": 1.0},
        {"scales": (0, 1)},
        {"degrees": (5, -5)},
        {"degrees": "x"},
        {"shears": (1, 2, 3, 4)},
        {"translation": float("nan")},
        {"p": 2},
        {"p_rotation": "often"},
    ]:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RandomAffine(**wrong)
    for wrong in [{"num_control_points": 3}, {"num_control_points": 65}, {"max_displacement": -1}, {"p": -1}]:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RandomElastic(**wrong)
    with pytest.raises(ValueError, match="RandomAffine"):
        Queue([subject()], UniformSampler(16), 1, affine=BENT)
    unknown = Subject(ct=np.zeros((20, 20, 20), np.int16))
    with pytest.raises(ValueError, match="interpolation"):
        next(iter(Queue([unknown], UniformSampler(16), 1, affine=WILD)))
    assert next(iter(Queue([unknown], UniformSampler(16), 1, affine=WILD, normalize=(-10, 10))))["ct"].dtype == np.float32
    assert voxpatch.RandomAffine(degrees=(3, 4, 5)) == voxpatch.RandomAffine(degrees=(3, 4, 5))
