"""Predicts one output by the ranks of MPI.

    mpiexec -n 4 python python/examples/on_mpi.py SCAN OUTPUT.zarr
"""

import sys

import numpy as np
import voxpatch
from mpi4py import MPI


def model(batch):
    """Stand for a network: any function of an array (B, C, Z, Y, X), or a torch module."""
    return np.tanh(batch / 100)


def main(scan, output):
    """Predict the scan. The first rank plans and commits."""
    world = MPI.COMM_WORLD
    job = tasks = None
    if world.rank == 0:
        job = voxpatch.plan_predict(scan, output, patch_size=32, model=model, chunk=16, shard=32)
        tasks = job.tasks(4 * world.size)
    for task in world.bcast(tasks)[world.rank :: world.size]:
        task.run(model)
    world.barrier()
    return job.commit() if job is not None else None


if __name__ == "__main__":
    print(main(*sys.argv[1:3]))
