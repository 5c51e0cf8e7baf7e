#!/usr/bin/env python3
"""Compares `voxpatch infer` with TorchIO, MONAI and nnU-Net: places of patches, weights, padding.

    peers.py --voxpatch target/release/voxpatch

The model blurs each patch by itself, so its prediction of a voxel depends on the position of the patch. Each peer
blends the same model's predictions of patches that it places itself; nnU-Net's own starts and weights are blended here
in double precision. Only installed peers are compared:

    pip install torchio==1.2.1 monai nibabel scipy
    pip install --no-deps nnunetv2 acvl-utils

One line per check; exit 1 if any failed.
"""

import argparse
import importlib.util
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (75, 48, 61)
SIGMA = 1.5
TOLERANCE = 2e-5


def blurred(patch):
    """Returns the prediction of the built-in model `gaussian:1.5` for a patch, over its last three axes."""
    sigma = (0,) * (patch.ndim - 3) + (SIGMA,) * 3
    return gaussian_filter(patch.astype(np.float64), sigma, mode="nearest", truncate=4).astype(np.float32)


class Ours:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.runs = binary, folder, 0

    def infer(self, volume, patch, overlap, *flags):
        self.runs += 1
        source, target = (self.folder / f"{self.runs}.{kind}.npy" for kind in ("in", "out"))
        np.save(source, volume)
        size = [",".join(map(str, axes)) for axes in (patch, overlap)]
        command = [self.binary, "infer", source, target, "--patch-size", size[0], "--overlap", size[1],
                   "--model", f"gaussian:{SIGMA}", *flags]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        return np.load(target)


def torchio_cases(ours, volume):
    import torch
    import torchio

    pad = {"reflect": "reflect", "edge": "edge", "wrap": "wrap", "constant:0": "constant"}
    for patch, overlap, mode, padding in itertools.product(
        [(24, 16, 20), (40, 48, 24)], [(8, 4, 6), (12, 8, 10)], ["crop", "average", "hann"], [None, *pad]
    ):
        subject = torchio.Subject(ct=torchio.ScalarImage(tensor=torch.from_numpy(volume[None])))
        sampler = torchio.GridSampler(subject, patch, overlap, padding_mode=pad.get(padding))
        aggregator = torchio.GridAggregator(sampler, overlap_mode=mode)
        for item in sampler:
            prediction = torch.from_numpy(blurred(item["ct"][torchio.DATA].numpy()))
            aggregator.add_batch(prediction[None], item[torchio.LOCATION][None])
        theirs = aggregator.get_output_tensor().numpy()[0]
        flags = ["--preset", "torchio", "--blend", mode] + (["--padding", padding] if padding else [])
        mine = ours.infer(volume, patch, overlap, *flags)
        # Between the last two patches, TorchIO's crop keeps the one that was added last.
        regular = mode != "crop" or all((n + (o if padding else 0) - p) % (p - o) == 0
                                        for n, p, o in zip(SHAPE, patch, overlap))
        if regular:
            yield f"torchio {mode}, patch {patch}, overlap {overlap}, padding {padding}", mine, theirs


def monai_cases(ours, volume):
    import torch
    from monai.inferers import sliding_window_inference

    def predictor(windows):
        return torch.from_numpy(blurred(windows.numpy()))

    for patch, overlap, mode in itertools.product([(24, 16, 20), (75, 48, 24)], [0.25, 0.3, 0.5], ["constant", "gaussian"]):
        for shape in [SHAPE, (20, 48, 13)]:
            part = volume[tuple(slice(n) for n in shape)]
            theirs = sliding_window_inference(
                torch.from_numpy(part[None, None]), patch, 1, predictor, overlap=overlap, mode=mode
            ).numpy()[0, 0]
            step = [p if p == max(n, p) else max(int(p * (1 - overlap)), 1) for p, n in zip(patch, shape)]
            voxels = [p - s for p, s in zip(patch, step)]
            blend = ["--blend", "average"] if mode == "constant" else []
            mine = ours.infer(part, patch, voxels, "--preset", "monai", *blend)
            yield f"monai {mode}, patch {patch}, overlap {overlap}, volume {shape}", mine, theirs


def nnunet_cases(ours, volume):
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    for patch, step in itertools.product([(24, 16, 20), (32, 48, 28)], [0.5, 0.75]):
        starts = compute_steps_for_sliding_window(SHAPE, patch, step)
        weights = compute_gaussian(patch, dtype=torch.float64, device=torch.device("cpu")).numpy()
        sums, total = np.zeros(SHAPE), np.zeros(SHAPE)
        for at in itertools.product(*starts):
            box = tuple(slice(a, a + p) for a, p in zip(at, patch))
            sums[box] += weights * blurred(volume[box])
            total[box] += weights
        overlap = [p - int(p * step) for p in patch]
        mine = ours.infer(volume, patch, overlap, "--preset", "nnunet")
        yield f"nnunet, patch {patch}, step {step}", mine, sums / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxpatch", type=Path, default=Path("target/release/voxpatch"))
    arguments = parser.parse_args()
    volume = np.random.default_rng(7).normal(size=SHAPE).astype(np.float32)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(arguments.voxpatch, Path(folder))
        for package, cases in [("torchio", torchio_cases), ("monai", monai_cases), ("nnunetv2", nnunet_cases)]:
            if importlib.util.find_spec(package) is None:
                print(f"skip {package}: not installed")
                continue
            count = 0
            for name, mine, theirs in cases(ours, volume):
                count += 1
                off = np.abs(mine - theirs).max() if mine.shape == theirs.shape else np.inf
                ok = off <= TOLERANCE
                failed += not ok
                print(f"{'ok  ' if ok else 'FAIL'} {name}: off by {off:.2g}", flush=True)
            print(f"{package}: {count} compared")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
