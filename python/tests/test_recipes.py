"""The recipes for many workers write what one process writes, also when a worker is killed."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voxpatch

MARKER = "VOXPATCH_TEST_MARKER"


def fatal(batch: Any) -> Any:
    """Stand for a model, whose first call in a worker ends the worker."""
    marker = os.environ.get(MARKER)
    if marker and multiprocessing.parent_process() is not None and not os.path.exists(marker):
        Path(marker).touch()
        os._exit(9)
    return np.tanh(batch / 100)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    yield importlib.import_module
    for name in ("on_processes", "on_dask", "on_ray"):
        sys.modules.pop(name, None)


@pytest.fixture
def scan(tmp_path: Path) -> str:
    voxels = np.random.default_rng(3).normal(0, 100, size=(150, 40, 40)).astype(np.float32)
    voxpatch.write(tmp_path / "scan.zarr", voxels, chunk=16, shard=32)
    return str(tmp_path / "scan.zarr")


def check(scan: str, found: voxpatch.Volume, tmp_path: Path) -> None:
    one = voxpatch.predict(fatal, scan, tmp_path / "one.zarr", 32, chunk=16, shard=32)
    assert np.array_equal(found[...], one[...])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_pool_of_processes(example: Any, scan: str, tmp_path: Path) -> None:
    recipe = example("on_processes")
    check(scan, recipe.main(scan, tmp_path / "out.zarr"), tmp_path)


def test_a_cluster_of_dask_that_loses_a_worker(
    example: Any, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setenv(MARKER, str(tmp_path / "killed"))
    found = example("on_dask").main(scan, tmp_path / "out.zarr", model=fatal)
    assert (tmp_path / "killed").exists()
    check(scan, found, tmp_path)


def test_a_cluster_of_ray(scan: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    script = Path(__file__).parents[1] / "examples" / "on_ray.py"
    # As a script, whose functions workers get with the tasks.
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, script, scan, tmp_path / "out.zarr"], env={**os.environ, "PYTHONPATH": paths}, timeout=240, check=False
    )
    assert done.returncode == 0
    check(scan, voxpatch.open(tmp_path / "out.zarr"), tmp_path)


RAY = """
import os, pathlib, sys

import numpy as np
import on_ray

driver, marker = os.getpid(), pathlib.Path(sys.argv[1])

def fatal(batch):
    if os.getpid() != driver and not marker.exists():
        marker.touch()
        os._exit(9)
    return np.tanh(batch / 100)

on_ray.main(sys.argv[2], sys.argv[3], model=fatal)
"""


@pytest.mark.parametrize("cluster", ["dask", "ray"])
def test_a_cluster_over_a_store_that_loses_a_worker(
    cluster: str, example: Any, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the store connects the workers."""
    for name in ("distributed" if cluster == "dask" else "ray", "boto3", "moto.server", "waitress"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import boto3
    import faulty_store

    killed = tmp_path / "killed"
    monkeypatch.setenv(MARKER, str(killed))
    with faulty_store.store() as port:
        url = f"http://127.0.0.1:{port}"
        for name, value in {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "hush", "ENDPOINT_URL": url, "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id="me", aws_secret_access_key="hush", region_name="us-east-1")
        client.create_bucket(Bucket="scans")
        for file in Path(scan).rglob("*"):
            if file.is_file():
                client.put_object(Bucket="scans", Key=f"scan.zarr/{file.relative_to(scan).as_posix()}", Body=file.read_bytes())
        if cluster == "dask":
            example("on_dask").main("s3://scans/scan.zarr", "s3://scans/out.zarr", model=fatal)
        else:
            paths = os.pathsep.join([str(Path(__file__).parents[1] / "examples"), *(path for path in sys.path if path)])
            command = [sys.executable, "-c", RAY, killed, "s3://scans/scan.zarr", "s3://scans/out.zarr"]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, timeout=240, check=True)
        assert killed.exists()
        voxpatch.predict(fatal, scan, tmp_path / "out.zarr", 32, chunk=16, shard=32)
        expected = {file.relative_to(tmp_path / "out.zarr").as_posix(): file.read_bytes() for file in (tmp_path / "out.zarr").rglob("*") if file.is_file()}
        listed = client.list_objects_v2(Bucket="scans", Prefix="out.zarr/")["Contents"]
        found = {one["Key"].removeprefix("out.zarr/"): client.get_object(Bucket="scans", Key=one["Key"])["Body"].read() for one in listed}
        assert found == expected


def test_ranks_of_mpi(scan: str, tmp_path: Path) -> None:
    launcher = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if launcher is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py or mpiexec is not installed")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [launcher, "-n", "2", sys.executable, Path(__file__).parents[1] / "examples" / "on_mpi.py", scan, tmp_path / "out.zarr"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, timeout=240, check=False)
    assert done.returncode == 0
    check(scan, voxpatch.open(tmp_path / "out.zarr"), tmp_path)


def test_recipes_are_short() -> None:
    root = Path(__file__).parents[2]
    recipes = [*(root / "python/examples").glob("on_*.py"), root / "examples/slurm_array.sh", root / "examples/kubernetes_job.yaml"]
    assert len(recipes) == 6
    for recipe in recipes:
        assert len(recipe.read_text().splitlines()) <= 40, recipe.name
