"""Volumes that are used together, stored on other axes, in part, or without saying where they lie."""

from __future__ import annotations

import itertools
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import voxpatch

nibabel = pytest.importorskip("nibabel")

#: All 48: an order of axes and the direction of each.
CODES = [
    np.array(list(zip(order, flips)), float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product([1, -1], repeat=3)
]
SHAPE = (8, 6, 4)  # x, y, z
AFFINE = np.array([[-0.7, 0.04, 0.1, 30.0], [0.03, -0.8, 0.2, 40.0], [0.02, 0.05, 2.5, -50.0], [0, 0, 0, 1]])


def image() -> Any:
    return np.arange(8 * 6 * 4, dtype=np.int16).reshape(SHAPE)


def label() -> Any:
    """Foreground in one corner, unlike along all axes, each voxel with a value of its own."""
    values = np.zeros(SHAPE, np.int16)
    values[4:8, 1:3, 0:1] = 1 + np.arange(8).reshape(4, 2, 1)
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An image and a label map in every orientation, turned by nibabel."""
    place = tmp_path_factory.mktemp("grids")
    for n, code in enumerate(CODES):
        for name, values in (("image", image()), ("label", label())):
            turned = nibabel.Nifti1Image(values, AFFINE).as_reoriented(code)
            nibabel.save(turned, place / f"{name}{n}.nii")
    return place


def expected(values: Any, n: int) -> Any:
    """What is stored in orientation ``n``, with axes z, y, x."""
    turned = nibabel.Nifti1Image(values, AFFINE).as_reoriented(CODES[n])
    return np.asarray(turned.dataobj).T


def test_there_are_48_orientations(folder: pathlib.Path) -> None:
    seen = {expected(image(), n).tobytes() + str(expected(image(), n).shape).encode() for n in range(48)}
    assert len(seen) == 48


def test_every_label_comes_with_every_image_in_its_place(folder: pathlib.Path) -> None:
    labels = [voxpatch.open(folder / f"label{n}.nii") for n in range(48)]
    for a in range(48):
        scan = voxpatch.open(folder / f"image{a}.nii")
        wanted = expected(image(), a), expected(label(), a)
        for b in range(48):
            subject = voxpatch.Subject(ct=scan, label=labels[b])
            grid = voxpatch.GridSampler(subject, patch_size=scan.shape[1:])
            patch = grid[0]
            np.testing.assert_array_equal(patch["ct"][0], wanted[0])
            np.testing.assert_array_equal(patch["label"][0], wanted[1], err_msg=f"image {a}, label {b}")


@pytest.mark.parametrize("a", [0, 13, 29, 47])
def test_queues_and_masks_turn_as_well(folder: pathlib.Path, a: int, tmp_path: pathlib.Path) -> None:
    scan = folder / f"image{a}.nii"
    wanted = dict(zip(expected(image(), a).ravel().tolist(), expected(label(), a).ravel().tolist()))
    values = expected(image(), a)
    for b in range(48):
        subject = voxpatch.Subject(ct=scan, label=folder / f"label{b}.nii")
        queue = voxpatch.Queue([subject], voxpatch.LabelSampler(1, "label"), samples_per_subject=6)
        for sample in queue:
            at = sample["ct"].ravel().tolist()
            assert [wanted[value] for value in at] == sample["label"].ravel().tolist()
            assert sample["label"].item() > 0
        out = voxpatch.predict(
            lambda batch: batch, scan, None, 1, 0, mask=folder / f"label{b}.nii", fill=-1, blend="average"
        )
        np.testing.assert_array_equal(out[0], np.where(expected(label(), a) > 0, values, -1))


def test_volumes_on_another_s_grid_survive_pickling_and_workers(folder: pathlib.Path) -> None:
    scan = voxpatch.open(folder / "image5.nii")
    turned = voxpatch.open(folder / "label40.nii").on_grid_of(scan)
    for again in (turned, pickle.loads(pickle.dumps(turned)), turned.astype("int32")):
        np.testing.assert_array_equal(again[0], expected(label(), 5))
        np.testing.assert_allclose(again.affine, scan.affine)
    coarse = voxpatch.Volume.from_array(np.arange(24).reshape(2, 3, 4), affine=AFFINE @ half())
    fine = voxpatch.open(folder / "image0.nii")
    spread = coarse.on_grid_of(fine)
    np.testing.assert_array_equal(spread[0], np.arange(24).reshape(2, 3, 4).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    grid = voxpatch.GridSampler(voxpatch.Subject(ct=scan, label=folder / "label40.nii"), patch_size=2)
    for n, patch in enumerate(pickle.loads(pickle.dumps(grid))):
        np.testing.assert_array_equal(patch["label"], grid[n]["label"])


def half() -> Any:
    """Voxels twice as long, whose first covers the first two."""
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = 0.5
    return matrix


def users(scan: Any, other: Any, **matching: Any) -> list[Any]:
    """Everything that takes two volumes together."""
    return [
        lambda: voxpatch.GridSampler(voxpatch.Subject(ct=scan, label=other, **matching), patch_size=2),
        lambda: list(
            voxpatch.Queue(
                [voxpatch.Subject(ct=scan, label=other, **matching)], voxpatch.UniformSampler(2), samples_per_subject=1
            )
        ),
        lambda: voxpatch.predict(lambda batch: batch, scan, None, 2, 0, mask=other, **matching),
        lambda: voxpatch.inference.as_volume(other).on_grid_of(voxpatch.inference.as_volume(scan), **matching),
    ]


def test_what_lies_elsewhere_is_refused_with_the_numbers(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    scan = folder / "image0.nii"

    def stored(affine: Any, values: Any = None) -> pathlib.Path:
        path = tmp_path / f"other{len(list(tmp_path.iterdir()))}.nii"
        nibabel.save(nibabel.Nifti1Image(label() if values is None else values, affine), path)
        return path

    def moved(by: float) -> Any:
        affine = AFFINE.copy()
        affine[2, 3] += by
        return affine

    for affine, problem in [
        (moved(500), "198.732 voxels along z, 0.1 allowed"),
        (moved(1.25), "0.49.* voxels along z"),
        (AFFINE @ np.diag([3, 3, 3, 1]), "spacing"),
    ]:
        for use in users(scan, stored(affine)):
            with pytest.raises(ValueError, match=problem):
                use()
    for use in users(scan, stored(AFFINE, label()[:4])):
        with pytest.raises(ValueError, match="extent"):
            use()
    # Rounding of 0.002 mm, and more where that is allowed.
    for use in [*users(scan, stored(moved(0.002))), *users(scan, stored(moved(0.5)), tolerance=0.3)]:
        use()
    for use in users(scan, stored(moved(0.002)), tolerance=1e-5):
        with pytest.raises(ValueError, match="1e-5|0.00001"):
            use()


def test_arrays_match_by_shape_only_where_that_is_said(folder: pathlib.Path) -> None:
    scan, array = folder / "image0.nii", label().T.copy()
    for use in users(scan, array):
        with pytest.raises(ValueError, match="has no geometry.*same_grid=True"):
            use()
    for use in [*users(scan, array, same_grid=True), *users(image().T.copy(), array)]:
        use()
    for use in users(scan, label().copy(), same_grid=True):
        with pytest.raises(ValueError, match="shape"):
            use()


def test_a_box_is_what_a_slice_of_the_whole_is(folder: pathlib.Path) -> None:
    path = folder / "image7.nii"
    whole = voxpatch.open(path)
    z, y, x = whole.shape[1:]
    box = (slice(1, None), (0, y - 1), slice(-2, None))
    part = voxpatch.open(path, box=box)
    np.testing.assert_array_equal(part[...], whole[:, 1:, : y - 1, x - 2 :])
    place = np.eye(4)
    place[:3, 3] = x - 2, 0, 1
    np.testing.assert_allclose(part.affine, whole.affine @ place)
    for again in (pickle.loads(pickle.dumps(part)), part.astype("float64")):
        np.testing.assert_array_equal(again[...], part[...])
        np.testing.assert_array_equal(again.affine, part.affine)
    out = voxpatch.predict(lambda batch: batch, part, None, 2, 0)
    np.testing.assert_array_equal(out, part[...])
    for wrong in (1, (1, 2), ((0, z + 1), slice(None), slice(None)), (slice(2, 2), 0, 0), "abcd"):
        with pytest.raises(ValueError, match="box"):
            voxpatch.open(path, box=wrong)


def test_a_prediction_has_the_unit_of_its_scan(tmp_path: pathlib.Path) -> None:
    import json

    affine = np.diag([500.0, 500.0, 2000.0, 1.0])
    scan = nibabel.Nifti1Image(image(), affine)
    scan.header.set_xyzt_units("micron")
    nibabel.save(scan, tmp_path / "scan.nii")
    grid = voxpatch.GridSampler(tmp_path / "scan.nii", patch_size=2)
    aggregator = voxpatch.GridAggregator(grid, "crop", output=tmp_path / "added.zarr")
    for patch in grid:
        aggregator.add_batch(patch["image"][None], patch["location"][None])
    aggregator.finish()
    voxpatch.predict(lambda batch: batch, tmp_path / "scan.nii", tmp_path / "predicted.zarr", 2, 0)
    for name in ("added", "predicted"):
        document = json.loads((tmp_path / f"{name}.zarr" / "zarr.json").read_text())
        found = document["attributes"]["ome"]["multiscales"][0]
        assert {axis["unit"] for axis in found["axes"] if axis["type"] == "space"} == {"micrometer"}
        scale = found["datasets"][0]["coordinateTransformations"][0]["scale"]
        np.testing.assert_allclose(scale[-3:], [2000.0, 500.0, 500.0])


def test_a_patch_that_does_not_fit_says_what_helps() -> None:
    scan = np.zeros((4, 5, 6), np.uint8)
    queue = voxpatch.Queue([voxpatch.Subject(ct=scan)], voxpatch.UniformSampler(5), samples_per_subject=1)
    for use in (lambda: list(queue), lambda: voxpatch.GridSampler(scan, 5), lambda: voxpatch.predict(abs, scan, None, 5)):
        with pytest.raises(ValueError, match=r"padding="):
            use()
