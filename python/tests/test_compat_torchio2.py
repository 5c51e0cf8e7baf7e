"""TorchIO 2 reading through voxpatch; skipped where an older one is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import voxpatch

torch = pytest.importorskip("torch", reason="torch is not installed")
tio = pytest.importorskip("torchio", reason="torchio is not installed")
if tio.__version__.startswith(("0.", "1.")):
    pytest.skip(f"torchio {tio.__version__} has no backends: 2 has", allow_module_level=True)

from voxpatch.compat import torchio2  # noqa: E402


def test_an_image_is_read_box_by_box(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).integers(0, 60000, (2, 9, 10, 11)).astype(np.uint16)
    volume = voxpatch.write(tmp_path / "scan.zarr", voxels, chunk=4, shard=None, spacing=(2.0, 1.0, 0.5))
    torchio2.register()
    try:
        image = tio.ScalarImage(tmp_path / "scan.zarr")
        assert tuple(image.shape) == (2, 11, 10, 9) and isinstance(image.dataobj, torchio2.VoxpatchBackend)
        expected = torch.from_numpy(voxels.astype(np.int32).transpose(0, 3, 2, 1).copy())
        assert torch.equal(image.dataobj[1, 2:5, ..., -1], expected[1:, 2:5, :, -1:])
        assert torch.equal(image.data.to(torch.int32), expected)
        np.testing.assert_allclose(np.asarray(image.dataobj.affine), volume.affine)
        patch = next(iter(tio.UniformSampler(tio.Subject(ct=image), patch_size=4)))
        assert tuple(patch.ct.shape) == (2, 4, 4, 4)
    finally:
        torchio2.unregister()
