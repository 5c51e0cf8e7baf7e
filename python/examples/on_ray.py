"""Predicts one output by the workers of a Ray cluster; tasks of lost workers run again. Needs `pip install ray`.

    python python/examples/on_ray.py SCAN OUTPUT.zarr [auto]
"""

import sys

import numpy as np
import ray
import voxpatch


def model(batch):
    """Stand for a network: any function of an array (B, C, Z, Y, X), or a torch module."""
    return np.tanh(batch / 100)


@ray.remote(max_retries=3)  # with num_gpus=1 on machines with GPUs
def run(model, task):
    """Run a task in a worker."""
    return task.run(model)["patches"]


def main(scan, output, address=None, model=model, workers=2):
    """Predict the scan on a cluster, or on one of this machine, and return the output."""
    job = voxpatch.plan_predict(scan, output, patch_size=32, model=model, chunk=16, shard=32)
    ray.init(address, **({} if address else {"num_cpus": workers, "include_dashboard": False}))
    left = [run.remote(model, task) for task in job.tasks(4 * workers)]
    while left:
        (done,), left = ray.wait(left)
        print(f"{ray.get(done)} patches: {job.status()['chunks_done']} chunks done", flush=True)
    ray.shutdown()
    return job.commit()


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
