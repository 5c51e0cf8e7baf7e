"""Volumes in an object store: S3 as `moto` has it, on this machine."""

from __future__ import annotations

import multiprocessing
import pathlib
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("waitress")

SERVER = """
import sys, waitress
from moto.server import DomainDispatcherApplication, create_backend_app
waitress.serve(DomainDispatcherApplication(create_backend_app), host="127.0.0.1", port=int(sys.argv[1]), threads=16)
"""

SECRET = "hush-hush"


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    """The storage options of a running store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL) as server:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield {"key": "me", "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1"}
        server.terminate()


@pytest.fixture(scope="module")
def bucket(options: dict[str, str], files: dict[str, pathlib.Path]) -> str:
    """The address of a bucket with all files."""
    client = boto3.client(
        "s3", endpoint_url=options["endpoint_url"], aws_access_key_id="me", aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="scans")
    for name, path in files.items():
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            inside = file.relative_to(path).as_posix()
            key = f"in/{name}" if inside == "." else f"in/{name}/{inside}"
            client.put_object(Bucket="scans", Key=key, Body=file.read_bytes())
    return "s3://scans/in"


def test_all_formats_have_the_voxels_of_their_files(
    options: dict[str, str], bucket: str, files: dict[str, pathlib.Path], voxels: Voxels
) -> None:
    for name in files:
        volume = voxpatch.open(f"{bucket}/{name}", storage_options=options)
        assert np.array_equal(volume[...], voxels), name
        assert np.array_equal(volume[1, 3:20, ::3, 40], voxels[1, 3:20, ::3, 40]), name


def test_secrets_are_pickled_and_not_printed(options: dict[str, str], bucket: str, voxels: Voxels) -> None:
    volume = voxpatch.open(f"{bucket}/c.zarr", storage_options=options)
    assert SECRET not in repr(volume) + str(volume.path)
    assert np.array_equal(pickle.loads(pickle.dumps(volume))[...], voxels)
    with pytest.raises(Exception) as error:
        voxpatch.open(f"{bucket}/missing.zarr", storage_options=options)
    assert SECRET not in str(error.value) and "s3://scans/in/missing.zarr" in str(error.value)
    with pytest.raises(Exception, match="sekret"):
        voxpatch.open(f"{bucket}/c.zarr", storage_options={**options, "sekret": SECRET})


def test_outputs_in_stores_are_refused_with_the_reason(bucket: str, voxels: Voxels) -> None:
    with pytest.raises(Exception, match="file systems only"):
        voxpatch.write(f"{bucket}/out.zarr", voxels)


def test_a_queue_over_a_store_gives_the_patches_of_files(
    options: dict[str, str], bucket: str, files: dict[str, pathlib.Path]
) -> None:
    def patches(volume: voxpatch.Volume) -> list[Voxels]:
        subject = voxpatch.Subject(ct=volume)
        queue = voxpatch.Queue([subject], voxpatch.UniformSampler(8), samples_per_subject=40, seed=3, threads=2)
        return [np.asarray(sample["ct"]) for sample in queue]

    for name in ("c.zarr", "c.npy"):
        remote = patches(voxpatch.open(f"{bucket}/{name}", storage_options=options))
        local = patches(voxpatch.open(files[name]))
        assert len(remote) == 40 and all(np.array_equal(*both) for both in zip(remote, local, strict=True))


def _total(volume: voxpatch.Volume, results: Any) -> None:
    results.put(int(volume[...].astype(np.int64).sum()))


def test_a_forked_process_reads_with_connections_of_its_own(options: dict[str, str], bucket: str, voxels: Voxels) -> None:
    context = multiprocessing.get_context("fork")
    volume = voxpatch.open(f"{bucket}/c.zarr", storage_options=options)
    total = int(volume[...].astype(np.int64).sum())
    assert total == int(voxels.astype(np.int64).sum())
    for _ in range(3):
        results = context.Queue()
        children = [context.Process(target=_total, args=(volume, results)) for _ in range(2)]
        for child in children:
            child.start()
        assert [results.get(timeout=60) for _ in children] == [total] * 2
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert int(volume[0].astype(np.int64).sum()) == int(voxels[0].astype(np.int64).sum())


def test_a_loader_with_workers_reads_from_a_store(options: dict[str, str], bucket: str, voxels: Voxels) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    sampler = voxpatch.GridSampler(voxpatch.open(f"{bucket}/c.zarr", storage_options=options), patch_size=16, overlap=0)
    # Before the workers are forked, this process has connections and a runtime.
    assert np.array_equal(sampler[0]["image"], voxels[:, :16, :16, :16])
    expected = [np.asarray(sample["image"]) for sample in sampler]
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(sampler, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=120)
        found = [np.asarray(sample["image"]) for sample in loader]
        assert len(found) == len(expected) and all(map(np.array_equal, found, expected)), context


def test_jobs_leave_secrets_out_of_json(options: dict[str, str], bucket: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plus(batch: Any) -> Any:
        return batch + np.float32(1)

    volume = voxpatch.open(f"{bucket}/c.zarr", storage_options=options)
    job = voxpatch.plan_predict(
        volume, tmp_path / "out.zarr", 16, 8, model=plus, model_id="plus", chunk=8, shard=8
    )
    text = job.to_json()
    assert SECRET not in text and options["endpoint_url"] in text
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    tasks = voxpatch.Job.from_json(text).tasks(2)
    done = [tasks[0].run(plus), pickle.loads(pickle.dumps(tasks[1])).run(plus)]
    assert [task["whole"] for task in done] == [False, True]
