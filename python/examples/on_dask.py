"""Predicts one output by the workers of a Dask cluster; tasks of lost workers run again. Needs `pip install distributed`.

    python python/examples/on_dask.py SCAN OUTPUT.zarr [tcp://scheduler:8786]
"""

import functools
import sys

import numpy as np
import voxpatch
from distributed import Client, LocalCluster, as_completed


def model(batch):
    """Stand for a network: any function of an array (B, C, Z, Y, X), or a torch module."""
    return np.tanh(batch / 100)


def run(model, task):
    """Run a task in a worker."""
    return task.run(model)["patches"]


def main(scan, output, scheduler=None, model=model):
    """Predict the scan on a cluster, or on one of two processes, and return the output."""
    job = voxpatch.plan_predict(scan, output, patch_size=32, model=model, chunk=16, shard=32)
    cluster = None if scheduler else LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with Client(scheduler or cluster) as client:
        workers = len(client.scheduler_info()["workers"])
        tasks = client.map(functools.partial(run, model), job.tasks(4 * workers), pure=False, retries=3)
        for task in as_completed(tasks):
            print(f"{task.result()} patches: {job.status()['chunks_done']} chunks done", flush=True)
    if cluster:
        cluster.close()
    return job.commit()


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
