#!/usr/bin/env python3
"""Time and memory of resampling a whole volume to half the spacing, next to SciPy, PyTorch and SimpleITK.

    python scripts/bench_resample.py --size 400 --command target/release/voxpatch

Every tool reads the same stored volume (int16, chunks of 64^3) and interpolates linearly to twice the voxels along each
axis. Each runs in a process of its own, and the tools alternate. voxpatch reads and writes Zarr; the others have the whole
volume in memory before the clock of the column `resampling` starts, and keep the result there. The column `process` is the
whole process, with imports and reading. The anonymous memory is sampled every 10 ms. The values are compared first: SimpleITK
and PyTorch may differ from voxpatch by one, because they round differently.

    pip install zarr scipy torch SimpleITK
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHUNK = 64
TOOLS = ("voxpatch", "torch", "simpleitk", "scipy")


def make(path: Path, size: int) -> None:
    """Write a smooth volume with noise of a few values, block by block."""
    import numpy as np
    import zarr

    group = zarr.create_group(path)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * 3}]}
                ],
            }
        ],
    }
    array = group.create_array("0", shape=(size,) * 3, chunks=(CHUNK,) * 3, dtype="int16")
    rng = np.random.default_rng(0)
    waves = [np.sin(np.arange(size) / length) * 300 for length in (20, 31, 17)]
    for z in range(0, size, CHUNK):
        block = waves[0][z : z + CHUNK, None, None] + waves[1][None, :, None] + waves[2][None, None, :]
        array[z : z + CHUNK] = (block + rng.integers(-2, 3, size=block.shape)).astype("int16")


def resampled(tool: str, volume: Any) -> Any:
    """Resample a volume by a library in memory."""
    import numpy as np

    if tool == "torch":
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        values = torch.from_numpy(volume)[None, None].float()
        done = torch.nn.functional.interpolate(values, scale_factor=2, mode="trilinear")
        return done.round_().short()[0, 0].numpy()
    if tool == "simpleitk":
        import SimpleITK

        image = SimpleITK.GetImageFromArray(volume)
        grid = [2 * n for n in image.GetSize()]
        directions = [1, 0, 0, 0, 1, 0, 0, 0, 1]
        done = SimpleITK.Resample(
            image, grid, SimpleITK.Transform(), SimpleITK.sitkLinear, [-0.25] * 3, [0.5] * 3, directions, 0.0, image.GetPixelID()
        )
        return SimpleITK.GetArrayFromImage(done)
    import scipy.ndimage

    return scipy.ndimage.zoom(volume, 2, order=1, mode="nearest", grid_mode=True, output=np.int16)


def work(tool: str, path: Path) -> None:
    """Resample the volume by a library, and print the time."""
    import importlib

    import zarr

    importlib.import_module({"simpleitk": "SimpleITK", "scipy": "scipy.ndimage"}.get(tool, tool))
    volume = zarr.open_array(path / "0", mode="r")[:]
    start = time.perf_counter()
    resampled(tool, volume)
    print(json.dumps({"compute": time.perf_counter() - start}))


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    return found[0] if found else 0


def measure(command: list[str]) -> tuple[float, float, int]:
    """Return the seconds of resampling alone and of the whole process, and its peak of anonymous memory."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as out:
        with subprocess.Popen(command, stdout=out) as process:
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                time.sleep(0.01)
            seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{command} failed with {process.returncode}")
        out.seek(0)
        found = json.loads(out.read())
    return found.get("compute", seconds), seconds, peak


def compare(options: argparse.Namespace, folder: str) -> None:
    """Check that the tools compute the same values, on a small volume."""
    import numpy as np
    import zarr

    source, out = Path(folder, "small.zarr"), Path(folder, "small-out.zarr")
    make(source, 40)
    subprocess.run([*ours(options, source, out)], check=True, stdout=subprocess.DEVNULL)
    own = zarr.open_array(out / "0", mode="r")[:].astype(int)
    volume = zarr.open_array(source / "0", mode="r")[:]
    for tool in options.tools.split(","):
        if tool != "voxpatch":
            other = resampled(tool, volume).astype(int)
            apart = np.abs(other - own).max()
            print(f"{tool}: differs by {apart} at most", flush=True)
            if other.shape != own.shape or apart > 1:
                raise SystemExit(f"{tool} computes something else")
    shutil.rmtree(out)


def ours(options: argparse.Namespace, source: Path, out: Path) -> list[str]:
    """Return the command of voxpatch."""
    words = ["convert", source, out, "--spacing", "0.5", "--outside", "edge", "--memory", options.memory, "--overwrite", "--json"]
    return [options.command, *map(str, words)]


def main() -> None:
    """Measure the tools in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=400, help="voxels along each axis")
    parser.add_argument("--memory", default="256MiB", help="memory of voxpatch")
    parser.add_argument("--command", default="voxpatch", help="the command of voxpatch")
    parser.add_argument("--tools", default=",".join(TOOLS), help="tools to measure")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="folder for the volume and the output")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], Path(options.work[1]))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder, "source.zarr"), Path(folder, "out.zarr")
        compare(options, folder)
        make(source, options.size)
        print("| round | tool | resampling, s | process, s | anonymous memory, MiB |\n|---|---|---|---|---|")
        for n in range(options.rounds):
            for tool in options.tools.split(","):
                command = [sys.executable, __file__, "--work", tool, str(source)]
                if tool == "voxpatch":
                    command = ours(options, source, out)
                compute, seconds, peak = measure(command)
                shutil.rmtree(out, ignore_errors=True)
                print(f"| {n + 1} | {tool} | {compute:.2f} | {seconds:.2f} | {peak / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
