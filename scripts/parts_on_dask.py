#!/usr/bin/env python3
"""Runs the parts of one `voxpatch infer` as tasks of a Dask cluster; a part whose worker dies is run again.

    scripts/parts_on_dask.py --parts 8 -- voxpatch infer scan.zarr out.zarr --patch-size 128 --overlap 64
    scripts/parts_on_dask.py --parts 8 --scheduler tcp://host:8786 -- voxpatch infer ...
    scripts/parts_on_dask.py --parts 8 --kill-one -- voxpatch infer ...

Without a scheduler a cluster of two processes is started here. All workers must see the same folders. Parts resume at
the point where their worker was lost, so retries cost little; --kill-one demonstrates this by killing a worker in the
middle of its part. Job arrays (Slurm: `--part $SLURM_ARRAY_TASK_ID/N`) only need the command itself.

Needs `pip install distributed`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time


def run_part(command, part, parts, kill_once):
    """Runs one part. On request, kills its own worker once while the part is running."""
    child = subprocess.Popen([*command, "--part", f"{part}/{parts}"], stdout=subprocess.DEVNULL)
    if kill_once and not os.path.exists(kill_once):
        with open(kill_once, "w"):
            pass
        time.sleep(0.5)
        child.kill()
        os.kill(os.getpid(), signal.SIGKILL)
    if child.wait() != 0:
        raise RuntimeError(f"part {part} of {parts} ended with {child.returncode}")
    return part


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--scheduler")
    parser.add_argument("--kill-one", action="store_true")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    from distributed import Client, LocalCluster, as_completed

    cluster = None
    if not arguments.scheduler:
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    marker = f"/tmp/voxpatch-killed-{os.getpid()}" if arguments.kill_one else None
    with Client(arguments.scheduler or cluster) as client:
        tasks = [
            client.submit(run_part, arguments.command, part, arguments.parts, marker if part == 0 else None,
                          retries=3, pure=False)
            for part in range(arguments.parts)
        ]
        for task in as_completed(tasks):
            print(f"part {task.result()} of {arguments.parts} done", flush=True)
    if marker:
        print("a worker was killed" if os.path.exists(marker) else "no worker was killed")
        os.path.exists(marker) and os.remove(marker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
