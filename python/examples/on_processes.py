"""Predicts one output by a pool of processes of this machine.

    python python/examples/on_processes.py SCAN OUTPUT.zarr
"""

import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import voxpatch


def model(batch):
    """Stand for a network: any function of an array (B, C, Z, Y, X), or a torch module."""
    return np.tanh(batch / 100)


def run(model, task):
    """Run a task in a worker."""
    return task.run(model)["patches"]


def main(scan, output, model=model, workers=2):
    """Predict the scan, and return the output."""
    job = voxpatch.plan_predict(scan, output, patch_size=32, model=model, chunk=16, shard=32)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for patches in pool.map(functools.partial(run, model), job.tasks(4 * workers)):
            print(f"{patches} patches: {job.status()['chunks_done']} chunks done", flush=True)
    return job.commit()


if __name__ == "__main__":
    print(main(*sys.argv[1:3]))
