#!/usr/bin/env python3
"""Read and write through a proxy that breaks answers of an S3 store at random: 10 000 of them, or as many as are asked for.

Each read has its voxels and each written output its bytes, or there is a clear error; nothing hangs. Needs the packages
of scripts/requirements.txt. The short form is a test (python/tests/test_stores.py).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "python" / "tests"))

import boto3
import faulty_store


def main() -> None:
    """Print what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with faulty_store.store() as port, tempfile.TemporaryDirectory() as folder:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="me",
            aws_secret_access_key="hush",
            region_name="us-east-1",
        )
        done = faulty_store.campaign(port, client, given.faults, pathlib.Path(folder), given.seed)
    print(json.dumps({**done, "seconds": round(time.monotonic() - began)}, indent=2))


if __name__ == "__main__":
    main()
