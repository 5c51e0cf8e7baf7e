#!/usr/bin/env python3
"""Random patches per second from an object store with a latency, compared with TensorStore and with zarr-python over obstore.

A generated int16 volume in chunks of 64^3, blosc-lz4, with and without shards of 256^3, is served by `store_server.py` as S3.
That server is faster than `moto`, which would be the limit. All sides may make `--at-once` requests at once (32, which is
what voxpatch has), and keep `--memory` MiB of chunks: `Queue` for waiting patches and chunks, TensorStore for its cache.
zarr-python keeps none.

Each side is a process of its own, from opening to the last patch; the sides alternate, and the table has the medians.
Voxels of every patch are compared by their sum. The columns:

- *requests*, *bytes*: of a patch. *ideal*: the bytes of the chunks that the patches touch, each patch by itself;
- *index*: the most requests for the index of one shard;
- *at once*: the mean number of requests that wait for their answer;
- *latency allows*: patches per second with 32 requests in each latency, and the requests of a patch as counted;
- *of it*: the rate, of what the latency allows.

    pip install tensorstore zarr obstore
    python scripts/bench_stores.py [--latency 30,100] [--size 640] [--patch 96] [--count 200] [--rounds 3] [--memory 128]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

import numpy as np
from store_server import served

CHUNK, SHARD = 64, 256
SIDES = ("voxpatch", "tensorstore", "zarr-python")


def make(folder: pathlib.Path, size: int) -> None:
    """Write a smooth volume with noise, with and without shards."""
    import voxpatch

    random = np.random.default_rng(0)
    waves = [np.sin(np.arange(size) / length) * 300 for length in (20, 31, 17)]
    volume = np.empty((size, size, size), np.int16)
    for z in range(size):
        page = waves[0][z] + waves[1][:, None] + waves[2][None, :]
        volume[z] = (page + random.integers(-20, 21, size=page.shape)).astype(np.int16)
    np.save(folder / "volume.npy", volume)
    for name, shard in (("chunks.zarr", None), ("shards.zarr", SHARD)):
        voxpatch.write(folder / "served/bucket" / name, volume, chunk=CHUNK, shard=shard, codec="blosc-lz4")


def sizes(folder: pathlib.Path, name: str, size: int) -> np.ndarray:
    """Return the bytes of each chunk of the volume."""
    counts = (-(-size // CHUNK),) * 3
    found = np.zeros(counts, np.int64)
    if name == "chunks.zarr":
        for index in itertools.product(*map(range, counts)):
            found[index] = (folder / "served/bucket" / name / "0/c" / "/".join(map(str, index))).stat().st_size
        return found
    per = SHARD // CHUNK
    for shard in itertools.product(*(range(-(-n // per)) for n in counts)):
        content = (folder / "served/bucket" / name / "0/c" / "/".join(map(str, shard))).read_bytes()
        entries = np.frombuffer(content[-(per**3 * 16 + 4) : -4], np.uint64).reshape(per, per, per, 2)
        for inner in itertools.product(range(per), repeat=3):
            index = tuple(s * per + n for s, n in zip(shard, inner, strict=True))
            if all(n < count for n, count in zip(index, counts, strict=True)):
                found[index] = entries[inner][1]
    return found


def places(size: int, patch: int, count: int, seed: int) -> list[list[int]]:
    """Draw the first voxels of patches."""
    return np.random.default_rng(seed).integers(0, size - patch + 1, (count, 3)).tolist()


def voxpatch_side(given: argparse.Namespace) -> list[list[int]]:
    """Take patches from a queue, and return their first voxels and sums."""
    import voxpatch

    options = {"key": "me", "secret": "hush", "region": "us-east-1", "endpoint_url": given.url}
    volume = voxpatch.open(f"s3://bucket/{given.name}", storage_options=options)
    queue = voxpatch.Queue(
        [voxpatch.Subject(ct=volume)], voxpatch.UniformSampler(given.patch), given.count, seed=given.seed, threads=2,
        memory=given.memory << 20,
    )  # fmt: skip
    return [[*map(int, sample["location"][:3]), int(sample["ct"].sum(dtype=np.int64))] for sample in queue]


def tensorstore_side(given: argparse.Namespace) -> list[list[int]]:
    """Read patches with TensorStore, as many ahead as fit."""
    import tensorstore

    context = {
        "cache_pool": {"total_bytes_limit": given.memory << 20},
        "s3_request_concurrency": {"limit": given.at_once},
        "data_copy_concurrency": {"limit": 2},
    }
    store = {
        "driver": "s3", "bucket": "bucket", "path": f"{given.name}/0/", "endpoint": given.url, "aws_region": "us-east-1",
        "aws_credentials": {"type": "anonymous"},
    }  # fmt: skip
    spec = {"driver": "zarr3", "kvstore": store, "recheck_cached_data": "open", "recheck_cached_metadata": "open"}
    array = tensorstore.open(spec, context=tensorstore.Context(context), read=True).result()
    return ahead(given, lambda place: array[place].read())


def zarr_side(given: argparse.Namespace) -> list[list[int]]:
    """Read patches with zarr-python from obstore, on threads."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore.store
    import zarr
    from zarr.storage import ObjectStore

    zarr.config.set({"async.concurrency": given.at_once, "threading.max_workers": 2})
    store = obstore.store.S3Store(
        "bucket", prefix=f"{given.name}/0", endpoint=given.url, region="us-east-1", skip_signature=True,
        virtual_hosted_style_request=False, client_options={"allow_http": True},
    )  # fmt: skip
    array = zarr.open_array(ObjectStore(store, read_only=True), mode="r")
    # Chunks of patches are requested by threads: about as many patches at once as fill the requests.
    with ThreadPoolExecutor(max(given.at_once // 8, 1)) as pool:
        return ahead(given, lambda place: pool.submit(lambda: array[place]))


def ahead(given: argparse.Namespace, read: Any) -> list[list[int]]:
    """Read patches in order, with others ahead."""
    found = []
    waiting: collections.deque[tuple[list[int], Any]] = collections.deque()
    todo = iter(places(given.size, given.patch, given.count, given.seed))
    while True:
        for start in itertools.islice(todo, 16 - len(waiting)):
            waiting.append((start, read(tuple(slice(n, n + given.patch) for n in start))))
        if not waiting:
            return found
        start, future = waiting.popleft()
        found.append([*start, int(np.asarray(future.result()).sum(dtype=np.int64))])


def side(given: argparse.Namespace) -> None:
    """Run one side, and print its patches and seconds."""
    run = {"voxpatch": voxpatch_side, "tensorstore": tensorstore_side, "zarr-python": zarr_side}[given.side]
    began = time.monotonic()
    found = run(given)
    print(json.dumps({"seconds": time.monotonic() - began, "patches": found}))


def counts(url: str) -> dict[str, Any]:
    """Return what was asked of a server since the last time."""
    with urllib.request.urlopen(f"{url}/.counts") as answer:
        return dict(json.load(answer))


def measured(given: argparse.Namespace, url: str, name: str, who: str, seed: int, volume: np.ndarray, bytes_of: np.ndarray) -> dict[str, float]:
    """Run a side in a process, check its voxels, and return its figures."""
    words = [sys.executable, __file__, "--side", who, "--url", url, "--name", name, "--seed", str(seed)]
    for own in ("size", "patch", "count", "memory", "at_once"):
        words += [f"--{own.replace('_', '-')}", str(getattr(given, own))]
    counts(url)
    done = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    asked = counts(url)
    patches, ideal = done["patches"], 0
    assert len(patches) == given.count
    for *start, total in patches:
        place = tuple(slice(n, n + given.patch) for n in start)
        assert int(volume[place].sum(dtype=np.int64)) == total, f"wrong voxels of {who} at {start}"
        chunks = tuple(slice(n // CHUNK, (n + given.patch - 1) // CHUNK + 1) for n in start)
        ideal += int(bytes_of[chunks].sum())
    return {
        "rate": len(patches) / done["seconds"],
        "requests": asked["requests"] / len(patches),
        "bytes": asked["bytes"] / len(patches) / 2**20,
        "ideal": asked["bytes"] / ideal,
        "index": asked["most_per_index"],
        "at once": asked["mean_at_once"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="30,100", help="milliseconds")
    for name, number in {"size": 640, "patch": 96, "count": 200, "rounds": 3, "memory": 128, "at-once": 32, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--sides", default=",".join(SIDES))
    for name in ("side", "url", "name"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side(given)
        return
    print("| volume | latency | side | patches/s | requests | MiB | of the ideal | index | at once | latency allows | of it |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        (folder / "served/bucket").mkdir(parents=True)
        make(folder, given.size)
        volume = np.load(folder / "volume.npy", mmap_mode="r")
        for latency in map(float, given.latency.split(",")):
            with served(folder / "served", latency) as url:
                for name in ("chunks.zarr", "shards.zarr"):
                    bytes_of = sizes(folder, name, given.size)
                    found: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
                    for seed in range(given.rounds):
                        for who in given.sides.split(","):
                            found[who].append(measured(given, url, name, who, seed, volume, bytes_of))
                    for who, rounds in found.items():
                        row = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
                        bound = given.at_once / (latency / 1000) / row["requests"]
                        print(
                            f"| {name} | {latency:.0f} ms | {who} | {row['rate']:.1f} | {row['requests']:.1f} | {row['bytes']:.2f} | "
                            f"{row['ideal']:.2f} | {row['index']:.0f} | {row['at once']:.1f} | {bound:.0f} | {row['rate'] / bound:.0%} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
