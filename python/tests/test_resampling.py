"""Volumes on another grid, compared with SimpleITK, SciPy, torch and nibabel, each where it is installed."""

from __future__ import annotations

import itertools
import os
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]

#: From RAS+ to LPS+.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def smooth(shape: tuple[int, int, int], seed: int) -> Voxels:
    """Random values that change from voxel to voxel, as float32."""
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def affine_of(random: np.random.Generator, oblique: bool) -> Voxels:
    """A random affine: any order and direction of the axes, any spacing; rotated if oblique."""
    affine = np.eye(4)
    order = random.permutation(3)
    affine[:3, :3] = np.eye(3)[order] * random.choice([-1, 1], 3) * random.uniform(0.5, 3, 3)
    if oblique:
        angles = random.uniform(-0.6, 0.6, 3)
        for a, angle in enumerate(angles):
            turn = np.eye(3)
            b, c = (a + 1) % 3, (a + 2) % 3
            turn[b, b] = turn[c, c] = np.cos(angle)
            turn[b, c], turn[c, b] = -np.sin(angle), np.sin(angle)
            affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = random.uniform(-80, 80, 3)
    return affine


def written(folder: pathlib.Path, voxels: Voxels, affine: Voxels, name: str = "scan.nii") -> pathlib.Path:
    path = folder / name
    voxpatch.write(path, voxels, affine=affine, overwrite=True)
    return path


def grid_over(random: np.random.Generator, volume: voxpatch.Volume, oblique: bool) -> voxpatch.Volume:
    """A grid of about the same extent with other spacing and axes, as a volume of zeros."""
    shape = np.array(volume.shape[:0:-1])
    affine = affine_of(random, oblique)
    sizes = tuple(int(n) for n in random.integers(4, 14, 3))
    middle = volume.affine @ [*((shape - 1) / 2), 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(sizes[::-1]) - 1) / 2) + random.uniform(-2, 2, 3)
    return voxpatch.Volume.from_array(np.zeros(sizes, np.uint8), affine=affine)


def places(volume: voxpatch.Volume, grid: voxpatch.Volume) -> Voxels:
    """The positions (z, y, x) in a volume's voxels of the voxels of a grid."""
    indices = np.indices(grid.shape[1:]).reshape(3, -1)[::-1]
    world = grid.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    return (np.linalg.inv(volume.affine) @ world)[2::-1].reshape(3, *grid.shape[1:])


def inside(positions: Voxels, shape: tuple[int, ...], margin: float = 0.0) -> Any:
    """Whether positions are at least `margin` voxels from the outer faces."""
    lengths = np.array(shape).reshape(3, 1, 1, 1)
    return ((positions > -0.5 + margin) & (positions < lengths - 0.5 - margin)).all(0)


def cases(oblique: bool, folder: pathlib.Path) -> Any:
    """60 volumes and grids."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        shape = tuple(int(n) for n in random.integers(5, 14, 3))
        voxels = smooth(shape, seed)  # type: ignore[arg-type]
        path = written(folder, voxels, affine_of(random, oblique and seed % 2 == 0))
        yield voxels, path, grid_over(random, voxpatch.open(path), oblique)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_values_are_those_of_simpleitk(interpolation: Any, oblique: bool, tmp_path: pathlib.Path) -> None:
    """Within 1e-4 of the deviation (linear) and 1e-3 (B-spline, whose prefilter there ends after 1e-10 in f32)."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    kinds = {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}
    compared = 0
    for voxels, path, grid in cases(oblique, tmp_path):
        volume = voxpatch.open(path)

        def image(of: voxpatch.Volume, values: Voxels) -> Any:
            made = sitk.GetImageFromArray(values)
            affine = LPS @ of.affine
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            made.SetSpacing([float(n) for n in spacing])
            made.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
            made.SetOrigin(affine[:3, 3].tolist())
            return made

        reference = image(grid, np.zeros(grid.shape[1:], np.float32))
        wanted = sitk.Resample(image(volume, voxels), reference, sitk.Transform(), kinds[interpolation], -7.0)
        found = voxpatch.open(path, like=grid, interpolation=interpolation, outside=-7.0)[0]
        at = places(volume, grid)
        # At the faces, and for the nearest voxel halfway, rounding decides.
        sure = inside(at, voxels.shape, 1e-3) | ~inside(at, voxels.shape, -1e-3)
        if interpolation == "nearest":
            sure &= (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(0)
        tolerance = {"nearest": 0.0, "linear": 1e-2, "cubic": 1e-1}[interpolation]
        np.testing.assert_allclose(found[sure], sitk.GetArrayFromImage(wanted)[sure], rtol=0, atol=tolerance)
        compared += int(np.count_nonzero(sure & inside(at, voxels.shape)))
    assert compared > 5000


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("cubic", 3)])
def test_values_are_those_of_scipy(interpolation: Any, order: int, oblique: bool, tmp_path: pathlib.Path) -> None:
    """Within 1e-5 of the largest value: voxels are float32."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    for voxels, path, grid in cases(oblique, tmp_path):
        at = places(voxpatch.open(path), grid)
        # The cubic spline is mirrored at the outermost centers, the linear interpolation continues them.
        mode = "mirror" if order == 3 else "nearest"
        wanted = ndimage.map_coordinates(voxels.astype(np.float64), at, order=order, mode=mode)
        found = voxpatch.open(path, like=grid, interpolation=interpolation)[0]
        within = inside(at, voxels.shape, 1e-3)
        np.testing.assert_allclose(found[within], wanted[within], rtol=0, atol=1e-5 * np.abs(voxels).max())
        beyond = ~inside(at, voxels.shape, -1e-3)
        assert not found[beyond].any()
        if order == 1:
            found = voxpatch.open(path, like=grid, outside="edge")[0]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(voxels).max())


@pytest.mark.parametrize("oblique", [False, True])
def test_values_are_those_of_torch(oblique: bool, tmp_path: pathlib.Path) -> None:
    """Within 1e-5 of the largest value."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for voxels, path, grid in cases(oblique, tmp_path):
        at = places(voxpatch.open(path), grid)
        lengths = np.array(voxels.shape).reshape(3, 1, 1, 1)
        unit = np.moveaxis(((at + 0.5) * 2 / lengths - 1)[::-1], 0, -1)[None]
        wanted = torch.nn.functional.grid_sample(
            torch.from_numpy(voxels.astype(np.float64))[None, None],
            torch.from_numpy(np.ascontiguousarray(unit)),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        found = voxpatch.open(path, like=grid, outside="edge")[0]
        np.testing.assert_allclose(found, wanted[0, 0].numpy(), rtol=0, atol=1e-5 * np.abs(voxels).max())


def test_the_canonical_orientation_is_that_of_nibabel(tmp_path: pathlib.Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    for seed in range(40):
        random = np.random.default_rng(seed)
        voxels = random.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
        path = written(tmp_path, voxels, affine_of(random, seed % 2 == 0))
        wanted = nibabel.as_closest_canonical(nibabel.load(path))
        found = voxpatch.open(path, orientation="RAS", interpolation="cubic")
        np.testing.assert_array_equal(found[0], np.asarray(wanted.dataobj).T)
        np.testing.assert_allclose(found.affine, wanted.affine, rtol=0, atol=1e-4)
        code = nibabel.aff2axcodes(found.affine)
        assert code == ("R", "A", "S")


@pytest.mark.parametrize("dtype", [bool, "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_whole_steps_copy_any_type(dtype: Any, tmp_path: pathlib.Path) -> None:
    """Every second voxel, flipped and permuted, bit for bit, whatever the interpolation."""
    random = np.random.default_rng(5)
    voxels = np.frombuffer(random.bytes(8 * 9 * 10 * 11), np.uint8)[: 9 * 10 * 11 * np.dtype(dtype).itemsize]
    voxels = voxels & 1 if dtype is bool else voxels
    voxels = voxels.view(dtype).reshape(9, 10, 11)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, voxels, affine=np.diag([0.5, 0.75, 2.0, 1.0]), chunk=4, shard=8)
    grid = np.zeros((5, 4, 5), np.uint8)  # z, y, x from every second x, y, z
    affine = np.array([[0, 0, 1.0, 0.5], [0, -1.5, 0, 6.0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    like = voxpatch.Volume.from_array(grid, affine=affine)
    wanted = voxels[0:9:2, 8:1:-2, 1:10:2].transpose(2, 1, 0)
    for interpolation in ("nearest", "linear", "cubic", "label-linear"):
        found = voxpatch.open(path, like=like, interpolation=interpolation)[0]  # type: ignore[arg-type]
        assert found.tobytes() == np.ascontiguousarray(wanted).tobytes(), interpolation


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_every_voxel_says_where_it_came_from(interpolation: Any, tmp_path: pathlib.Path) -> None:
    """A ramp whose values are coordinates in the world: right on any grid, away from the faces."""
    random = np.random.default_rng(11)
    affine = affine_of(random, True)
    shape = (40, 41, 42)
    indices = np.indices(shape).reshape(3, -1)[::-1]
    world = (affine @ np.vstack([indices, np.ones(indices.shape[1])]))[:3]
    path = written(tmp_path, world.reshape(3, *shape), affine, "ramp.nii")
    volume = voxpatch.open(path)
    for seed in range(10):
        grid = grid_over(np.random.default_rng(seed), volume, seed % 2 == 0)
        found = voxpatch.open(path, like=grid, interpolation=interpolation)[:]
        at = np.indices(grid.shape[1:]).reshape(3, -1)[::-1]
        wanted = (grid.affine @ np.vstack([at, np.ones(at.shape[1])]))[:3].reshape(found.shape)
        # The mirrored spline bends near the faces, which decays by 0.27 with each voxel.
        near = inside(places(volume, grid), shape, 14 if interpolation == "cubic" else 0.5)
        assert near.any()
        np.testing.assert_allclose(found[:, near], wanted[:, near], rtol=0, atol=1e-4)


def test_patches_of_a_queue_are_those_of_the_whole(tmp_path: pathlib.Path) -> None:
    voxels = np.random.default_rng(3).normal(0, 100, (30, 40, 50)).astype(np.float32)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, voxels, spacing=(2.0, 0.8, 0.8), chunk=16, shard=32)
    labels = tmp_path / "label.nii"
    voxpatch.write(labels, (voxels > 100).astype(np.uint8), spacing=(2.0, 0.8, 0.8))
    for options in ({"spacing": 1.0}, {"spacing": (1.5, 1.0, 1.7), "orientation": "LPS"}):
        scan = voxpatch.open(path, interpolation="cubic", **options)  # type: ignore[arg-type]
        label = voxpatch.open(labels, like=scan, interpolation="label-linear")
        assert label.shape == scan.shape
        whole = {"ct": scan[:], "label": label[:]}
        queue = voxpatch.Queue([voxpatch.Subject(ct=scan, label=label)], voxpatch.LabelSampler(9, "label"), 20)
        count = 0
        for sample in queue:
            z, y, x, z1, y1, x1 = sample["location"].tolist()
            for name, all_of_it in whole.items():
                np.testing.assert_array_equal(sample[name], all_of_it[:, z:z1, y:y1, x:x1])
            count += 1
        assert count == 20


def test_resampled_volumes_are_pickled_and_cropped(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, smooth((9, 10, 11), 4), np.diag([1, 1.2, 2, 1]))
    grid = voxpatch.Volume.from_array(np.zeros((5, 6, 7)), affine=np.diag([1.5, 1.5, 3, 1]))
    for options in itertools.chain(
        ({"spacing": (2, 1, 1.5), "interpolation": i} for i in ("nearest", "linear", "cubic")),
        ({"like": grid, "outside": o, "antialias": True} for o in (-1000, "edge", "reflect", "wrap")),
        ({"orientation": "PIR"},),
    ):
        volume = voxpatch.open(path, **options)  # type: ignore[arg-type]
        again = pickle.loads(pickle.dumps(volume))
        np.testing.assert_array_equal(again[:], volume[:])
        part = voxpatch.open(path, box=[(1, 3), (0, 2), (2, 4)], **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(part[:], volume[:, 1:3, 0:2, 2:4])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(part))[:], part[:])


def test_wrong_grids_say_so(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, smooth((4, 5, 6), 1), np.eye(4))
    np.save(tmp_path / "plain.npy", np.zeros((4, 5, 6)))
    for options in (
        {"spacing": 0},
        {"spacing": (1, 2)},
        {"spacing": "fine"},
        {"spacing": float("nan")},
        {"orientation": "RAR"},
        {"orientation": "canonical"},
        {"spacing": 1, "interpolation": "bspline"},
        {"spacing": 2, "interpolation": "nearest", "antialias": True},
        {"spacing": 2, "outside": "mirror"},
        {"like": tmp_path / "plain.npy"},
    ):
        with pytest.raises(ValueError):
            voxpatch.open(path, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not state the spacing"):
        voxpatch.open(tmp_path / "plain.npy", spacing=1)


def ramp(shape: tuple[int, int, int], affine: Voxels) -> Voxels:
    """Where each voxel is: x, y and z in mm, as channels."""
    voxel = np.stack([i.astype(np.float64) for i in reversed(np.indices(shape))])
    world: Voxels = np.einsum("rc,czyx->rzyx", affine[:3, :3], voxel) + affine[:3, 3].reshape(3, 1, 1, 1)
    return world


def test_images_of_a_subject_are_resampled_to_the_grid_of_one(tmp_path: pathlib.Path) -> None:
    """A PET of another spacing, orientation and extent, and labels of 2 mm, at the voxels of a CT: each voxel of a ramp
    says where it came from, in the queue and in the grid sampler."""
    ct = np.array([[-0.7, 0, 0, 20], [0, 0.7, 0, -11], [0, 0, 1.1, 5], [0, 0, 0, 1]])
    pet = np.array([[0, 0, 2.5, -40], [0, -2.5, 0, 40], [3, 0, 0, -30], [0, 0, 0, 1]], float)
    label = np.array([[2, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -30], [0, 0, 0, 1]], float)
    box = (18, 20, 22)
    images = {
        "pet": voxpatch.Volume.from_array(ramp((40, 40, 40), pet).astype(np.float32), affine=pet),
        "ct": voxpatch.Volume.from_array(ramp(box, ct).astype(np.float32), affine=ct),
        "label": voxpatch.Volume.from_array((ramp((40, 40, 40), label)[0] > 13).astype(np.uint8), affine=label),
    }
    how = {"label": "label-linear"}
    subject = voxpatch.Subject(images=images, grid="ct", interpolation=how)  # type: ignore[arg-type]
    queue = voxpatch.Queue([subject], voxpatch.UniformSampler(7), 20, seed=3)
    count = 0
    for sample in (*queue, *voxpatch.GridSampler(subject, 7, overlap=0)):
        here = np.asarray(sample["ct"])
        np.testing.assert_allclose(sample["pet"], here, atol=1e-3)
        is_near = abs(here[0] - 13) < 1e-3
        np.testing.assert_array_equal((here[0] > 13)[~is_near], np.asarray(sample["label"])[0][~is_near] == 1)
        count += 1
    assert count > 40
    matched = pickle.loads(pickle.dumps(subject.on_grid("label")))
    np.testing.assert_array_equal(matched[:], subject.on_grid("label")[:])
    with pytest.raises(ValueError, match="label-linear"):
        next(iter(voxpatch.Queue([voxpatch.Subject(images=images, grid="ct")], voxpatch.UniformSampler(7), 20)))
    with pytest.raises(ValueError, match="label-linear"):
        voxpatch.Subject(images=images, grid="ct").on_grid("label")
    with pytest.raises(KeyError, match="pet, ct, label"):
        voxpatch.Subject(images=images, grid="mr")
    with pytest.raises(ValueError, match="extent|cover|position|spacing"):
        voxpatch.Subject(images=images).on_grid("ct")


def test_predictions_of_a_resampled_volume_have_the_grid_of_its_file(tmp_path: pathlib.Path) -> None:
    """A smooth phantom predicted by the identity at 1.5 mm, written at 0.66 x 0.66 x 0.3 mm: the error of two linear
    interpolations is at most the second derivative times h**2 / 8 along each axis, for both steps."""
    shape = (120, 60, 70)
    affine = np.array([[-0.66, 0, 0, 23], [0, 0.66, 0, -20], [0, 0, 0.3, 4], [0, 0, 0, 1]])
    at = ramp(shape, affine)
    waves = np.array([18.0, 22.0, 15.0])
    phantom = sum(np.sin(2 * np.pi * at[n] / wave) for n, wave in enumerate(waves)).astype(np.float32)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, phantom, affine=affine, chunk=16)
    for name, options in {"linear": {}, "cubic": {"interpolation": "cubic"}}.items():
        scan = voxpatch.open(path, spacing=1.5, orientation="RAS", **options)
        out = voxpatch.predict(lambda batch: batch, scan, tmp_path / f"{name}.zarr", patch_size=16, chunk=16)
        assert out.shape == (1, *shape)
        np.testing.assert_allclose(out.affine, affine, atol=1e-6)
        second = (2 * np.pi / waves) ** 2
        there = 0.0 if name == "cubic" else (second * np.array([0.66, 0.66, 0.3]) ** 2 / 8).sum()
        back = (second * 1.5**2 / 8).sum()
        inner = (slice(8, -8), slice(4, -4), slice(4, -4))
        error = np.abs(out[0] - phantom)[inner].max()
        assert 0.2 * back < error < there + back + 1e-3, (name, error, there, back)
        labels = voxpatch.predict(
            lambda batch: np.concatenate([batch, -batch], 1), scan, tmp_path / f"{name}-labels.zarr", patch_size=16,
            reduce="argmax", chunk=16, threads=3, batch_size=2,
        )  # fmt: skip
        np.testing.assert_array_equal(labels[0], (out[0] < 0).astype(np.uint8))
    plan = voxpatch.predict(lambda batch: batch, scan, tmp_path / "plan.zarr", patch_size=16, dry_run=True)
    assert plan["output_bytes"] == [4 * phantom.size]
    on_model = voxpatch.predict(lambda batch: batch, scan, None, patch_size=16, output_grid="model")
    assert on_model.shape == scan.shape
    boxed = voxpatch.open(path, spacing=1.5, box=[(0, 16), (0, 16), (0, 16)])
    assert voxpatch.predict(lambda batch: batch, boxed, None, patch_size=16).shape == (1, 16, 16, 16)
    with pytest.raises(ValueError, match="box"):
        voxpatch.predict(lambda batch: batch, boxed, None, patch_size=16, output_grid="source")
    with pytest.raises(ValueError, match="output_grid"):
        voxpatch.predict(lambda batch: batch, scan, None, patch_size=16, output_grid="scan")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="crop"):
        voxpatch.predict(lambda batch: batch, scan, tmp_path / "no.zarr", patch_size=16, blend="crop")
    assert not (tmp_path / "no.zarr").exists()


def test_predictions_on_an_oblique_grid_are_written_on_that_of_the_file(tmp_path: pathlib.Path) -> None:
    """A linear phantom comes back exactly from an oblique grid, for any memory, parts and resuming; voxels beyond the grid have
    the fill value."""
    shape = (30, 26, 34)
    affine = np.array([[-0.7, 0, 0, 12], [0, 0.8, 0.1, -9], [0, 0, 1.1, -15], [0, 0, 0, 1]])
    phantom = (ramp(shape, affine) * np.array([1.0, -0.6, 0.4])[:, None, None, None]).sum(0).astype(np.float32)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, phantom, affine=affine, chunk=8)
    random = np.random.default_rng(8)
    turned = affine_of(random, oblique=True)
    turned[:3, :3] /= np.linalg.norm(turned[:3, :3], axis=0)
    turned[0, :3] += [0, 0.1, 0]
    for length, covers in ((60, True), (24, False)):
        middle = affine @ [*((np.array(shape[::-1]) - 1) / 2), 1]
        turned[:3, 3] = middle[:3] - turned[:3, :3] @ np.full(3, (length - 1) / 2)
        like = voxpatch.Volume.from_array(np.zeros((length,) * 3, np.uint8), affine=turned)
        scan = voxpatch.open(path, like=like, outside="edge")
        whole = voxpatch.predict(lambda batch: batch, scan, None, patch_size=16, fill=-999)
        assert whole.shape == (1, *shape)
        far = whole[0] == -999
        assert far.any() != covers
        # Near the faces of the scan, voxels of the model's grid continue its outermost voxel.
        inner = np.zeros(shape, bool)
        inner[4:-4, 4:-4, 4:-4] = True
        if not covers:
            at = places(like, voxpatch.open(path))
            beyond = ((at < -1) | (at > length)).any(0).reshape(shape)
            np.testing.assert_array_equal(far, beyond)
            inner &= ((at > 1) & (at < length - 2)).all(0).reshape(shape)
        assert inner.sum() > 1000
        assert np.abs(whole[0] - phantom)[inner].max() < 1e-3
        for n, options in enumerate([{"threads": 1}, {"memory": 14 << 20, "threads": 2}, {"resume": True, "model_id": "same"}]):
            out = tmp_path / f"{length}-{n}.zarr"
            found = voxpatch.predict(
                lambda batch: batch, scan, out, patch_size=16, fill=-999, chunk=8, **options  # type: ignore[call-overload]
            )
            np.testing.assert_array_equal(found[:], whole)


def test_linear_resampling_is_that_of_nnunet(tmp_path: pathlib.Path) -> None:
    """nnU-Net's ``resample_data_or_seg_to_shape`` of order 1: as a whole, and with the slices of anisotropic scans by the
    nearest neighbor (separate z). Its own function where nnunetv2 can be imported, and its formula otherwise."""
    ndimage = pytest.importorskip("scipy.ndimage")
    try:
        from nnunetv2.preprocessing.resampling.default_resampling import (  # type: ignore[import-not-found]
            resample_data_or_seg_to_shape as theirs,
        )
    except ImportError:
        theirs = None

    def formula(data: Voxels, shape: Voxels, orders: tuple[int, int, int]) -> Voxels:
        """One axis after the other: voxel i of n is at (i + 1/2) N / n - 1/2."""
        for axis, order in enumerate(orders):
            lengths = list(data.shape)
            scale = lengths[axis] / shape[axis]
            lengths[axis] = shape[axis]
            at = np.indices(lengths).astype(float)
            at[axis] = scale * (at[axis] + 0.5) - 0.5
            data = ndimage.map_coordinates(data, at, order=order, mode="nearest")
        return data

    random = np.random.default_rng(9)
    for case in range(24):
        spacing = random.choice([0.7, 1.0, 1.6, 2.0], 3)
        separate = bool(case % 2)
        if separate:
            spacing[0] = 4.0 * spacing[1:].max()
        shape = random.integers(12, 25, 3)
        data = smooth(tuple(shape), case)
        # A whole number of new voxels, so that nnU-Net's grid and ours have the same faces.
        new_shape = random.integers(9, 40, 3)
        new_spacing = spacing * shape / new_shape
        if separate:
            new_shape[0] = shape[0] * random.choice([2, 3])
            new_spacing[0] = spacing[0] * shape[0] / new_shape[0]
        expected = formula(data.astype(float), new_shape, (0 if separate else 1, 1, 1))
        if theirs is not None:
            ours = theirs(
                data[None].astype(float), new_shape, spacing, new_spacing, order=1, order_z=0, force_separate_z=separate
            )[0]
            np.testing.assert_allclose(ours, expected, atol=1e-3)
        affine = np.diag([*spacing[::-1], 1.0])
        volume = voxpatch.open(written(tmp_path, data, affine), like=grid_of(new_shape, new_spacing, spacing), outside="edge")
        if separate:
            # Nearest along z, and then linear in the slices: positions between two slices are exact halves nowhere.
            slices = voxpatch.open(
                written(tmp_path, data, affine),
                like=grid_of([new_shape[0], *shape[1:]], [new_spacing[0], *spacing[1:]], spacing),
                interpolation="nearest",
            )
            whole = voxpatch.Volume.from_array(slices[0], affine=slices.affine)
            volume = whole.on_grid_of(
                grid_of(new_shape, new_spacing, spacing), resample=True, interpolation="linear", outside="edge"
            )
        np.testing.assert_allclose(volume[0], expected, atol=2e-3, err_msg=str((case, spacing, new_spacing)))


def grid_of(shape: Any, spacing: Any, old: Any) -> voxpatch.Volume:
    """A grid whose outer faces are those of a volume of spacing `old` at the origin, as nnU-Net resizes arrays."""
    affine = np.diag([*np.asarray(spacing)[::-1], 1.0])
    affine[:3, 3] = (np.asarray(spacing)[::-1] - np.asarray(old)[::-1]) / 2
    return voxpatch.Volume.from_array(np.zeros(tuple(int(n) for n in shape), np.float32), affine=affine)


@pytest.mark.skipif("VOXPATCH_TEST_DATA" not in os.environ, reason="needs VOXPATCH_TEST_DATA")
def test_labels_of_a_real_scan_are_those_of_simpleitk(tmp_path: pathlib.Path) -> None:
    """Probabilities of tissues of a CT at 1.5 mm and in RAS, written on the grid of the scan: the labels agree with the
    path through SimpleITK, which resamples the scan and every class as a whole, in 99.9 % of the voxels."""
    sitk = pytest.importorskip("SimpleITK")
    path = pathlib.Path(os.environ["VOXPATCH_TEST_DATA"]) / "ct_lung_mha" / "3DCT_lung_baseline_small.mha"
    centers = np.array([-900.0, -600.0, -100.0, 40.0, 300.0], np.float32).reshape(-1, 1, 1, 1)

    def tissues(batch: Voxels) -> Voxels:
        """Logits of five tissues: the nearer the value, the larger."""
        return np.stack([-abs(one - centers) / 100 for one in batch[:, 0]])

    scan = voxpatch.open(path, spacing=1.5, orientation="RAS", outside="edge", values="float32")
    labels = voxpatch.predict(tissues, scan, tmp_path / "labels.nii", patch_size=32, reduce="argmax")
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    model = voxpatch.open(path, spacing=1.5, orientation="RAS")
    to_grid = sitk.ResampleImageFilter()
    affine = LPS @ model.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_grid.SetOutputSpacing(spacing.tolist())
    to_grid.SetOutputOrigin(affine[:3, 3].tolist())
    to_grid.SetOutputDirection((affine[:3, :3] / spacing).ravel().tolist())
    to_grid.SetSize([int(n) for n in model.shape[:0:-1]])
    to_grid.SetInterpolator(sitk.sitkLinear)
    to_grid.SetUseNearestNeighborExtrapolator(True)
    coarse = to_grid.Execute(image)
    logits = tissues(sitk.GetArrayFromImage(coarse)[None, None])[0]
    back = sitk.ResampleImageFilter()
    back.SetReferenceImage(image)
    back.SetInterpolator(sitk.sitkLinear)
    back.SetUseNearestNeighborExtrapolator(True)
    classes = []
    for one in logits:
        channel = sitk.GetImageFromArray(one)
        channel.CopyInformation(coarse)
        classes.append(sitk.GetArrayFromImage(back.Execute(channel)))
    expected = np.argmax(np.stack(classes), axis=0)
    agreement = (labels[0] == expected).mean()
    assert agreement >= 0.999, agreement
    assert len(np.unique(expected)) == len(centers)
