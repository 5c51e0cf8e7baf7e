"""MONAI's network and words, our reading and blending: a UNet over a scan on disk, with MONAI's result beside it.

    python examples/monai_network.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import made
import torch
import voxpatch
from monai.inferers import PatchInferer, SlidingWindowSplitter, sliding_window_inference
from monai.networks.nets import UNet
from voxpatch.compat import monai as compat

ROI = (32, 32, 32)


def main(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    net = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1).eval()
    ct = made.scan(folder, 5)["ct"]

    # From disk to disk; memory holds what is not final only.
    output = folder / "logits.zarr"
    ours = compat.sliding_window_inference(ct, ROI, 2, net, overlap=0.5, mode="gaussian", output=output)

    # In memory, as MONAI does it.
    inputs = torch.from_numpy(ct[...]).float()[None]
    with torch.no_grad():
        theirs = sliding_window_inference(inputs, ROI, 2, net, overlap=0.5, mode="gaussian")[0]
    gap = (torch.from_numpy(ours[...]) - theirs).abs().max().item()
    print(f"{ours}: differs from MONAI's by {gap:.2g} at most")

    # Or MONAI's own loop, merging into our aggregator.
    inferer = PatchInferer(
        SlidingWindowSplitter(ROI, overlap=0.5),
        compat.VoxpatchMerger,
        patch_size=ROI,
        overlap=0.5,
        output=folder / "labels.zarr",
        options={"reduce": "argmax"},
    )
    with torch.no_grad():
        labels: voxpatch.Volume = inferer(inputs, net)
    print(labels)
    return {"gap": gap, "labels": labels, "logits": ours, "scale": theirs.abs().max().item()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
