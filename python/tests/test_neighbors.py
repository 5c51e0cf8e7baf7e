"""FreeSurfer volumes and NIfTI colors, written by nibabel, against nibabel."""

from __future__ import annotations

import numpy as np
import pytest

import voxpatch

nibabel = pytest.importorskip("nibabel", reason="nibabel writes the files")


def test_freesurfer_volumes_are_those_of_nibabel(tmp_path):
    rng = np.random.default_rng(1)
    affine = np.array([[-0.5, 0.1, 0.0, 11.0], [0.0, 0.2, 1.5, -22.0], [0.1, -1.0, 0.0, 33.0], [0, 0, 0, 1]])
    for n, (dtype, shape) in enumerate(
        (dtype, shape)
        for dtype in ("uint8", "int16", "int32", "float32")
        for shape in ((7, 6, 5), (8, 3, 4, 3))
    ):
        array = rng.integers(0, 100, shape).astype(dtype)
        for end in ("mgh", "mgz"):
            path = tmp_path / f"{n}.{end}"
            image = nibabel.freesurfer.MGHImage(array, affine)
            nibabel.save(image, path)
            volume = voxpatch.open(path)
            full = array.reshape(shape + (1,) * (4 - len(shape)))
            assert np.array_equal(volume[...], full.transpose(3, 2, 1, 0)), (dtype, shape, end)
            read = nibabel.load(path)
            assert np.allclose(volume.affine, read.affine, atol=1e-5), (dtype, shape, end)
            assert np.allclose(volume.spacing, read.header.get_zooms()[:3][::-1], atol=1e-6)


def test_colors_of_nifti_are_channels(tmp_path):
    colors = np.random.default_rng(1).integers(0, 255, (5, 6, 7, 3), dtype=np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    for end in ("nii", "nii.gz"):
        path = tmp_path / f"a.{end}"
        array = np.ascontiguousarray(colors).view(kind)[..., 0]
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)
        volume = voxpatch.open(path)
        assert np.array_equal(volume[...], colors.transpose(3, 2, 1, 0)), end
        assert volume.spacing == (3.0, 2.0, 1.0)
        assert volume.time_points is None
