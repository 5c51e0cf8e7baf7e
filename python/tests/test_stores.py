"""Volumes in an object store: S3 as `moto` has it, on this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import faulty_store
import killed
import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("waitress")

SECRET = "hush-hush"


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    """The storage options of a running store."""
    with faulty_store.store() as port:
        yield {"key": "me", "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1"}


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


@pytest.fixture
def client(options: dict[str, str]) -> Any:
    """A client of the store with an empty bucket `out`."""
    client = boto3.client(
        "s3", endpoint_url=options["endpoint_url"], aws_access_key_id="me", aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="out")
    for key in objects(client):
        client.delete_object(Bucket="out", Key=key)
    return client


def objects(client: Any, prefix: str = "") -> dict[str, bytes]:
    """Return the objects of the bucket `out`, by what follows the prefix."""
    listed = client.list_objects_v2(Bucket="out", Prefix=prefix).get("Contents", [])
    return {one["Key"][len(prefix) :]: client.get_object(Bucket="out", Key=one["Key"])["Body"].read() for one in listed}


def local_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Return the files below a folder, by name."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def two(batch: Any) -> Any:
    """A model of two channels."""
    batch = np.asarray(batch, np.float32)[:, :1]
    return np.concatenate([batch, 150 - batch], axis=1)


def test_outputs_have_the_bytes_of_local_ones(
    options: dict[str, str], bucket: str, client: Any, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    for n, how in enumerate([{"chunk": 8, "shard": 16, "pyramid": "mean"}, {"zarr": 2, "chunk": 16}, {"shard": None, "codec": "gzip"}]):
        name = f"copy{n}.zarr"
        voxpatch.convert(files["c.zarr"], tmp_path / name, **how)
        expected = local_files(tmp_path / name)
        copy = voxpatch.convert(files["c.zarr"], f"s3://out/a/{name}", storage_options=options, **how)
        assert objects(client, f"a/{name}/") == expected
        assert np.array_equal(copy[...], voxpatch.open(files["c.zarr"])[...])
        voxpatch.convert(f"{bucket}/c.zarr", f"s3://out/b/{name}", storage_options=options, **how)
        assert objects(client, f"b/{name}/") == expected


def test_predictions_have_the_bytes_of_local_ones(
    options: dict[str, str], bucket: str, client: Any, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    how: Any = {"overlap": 8, "reduce": "argmax", "pyramid": "mode", "chunk": 8, "shard": 16, "batch_size": 2}
    voxpatch.predict(two, files["c.zarr"], tmp_path / "labels.zarr", 16, **how)
    scan = voxpatch.open(f"{bucket}/c.zarr", storage_options=options)
    labels = voxpatch.predict(two, scan, "s3://out/labels.zarr", 16, storage_options=options, **how)
    assert isinstance(labels, voxpatch.Volume)
    assert objects(client, "labels.zarr/") == local_files(tmp_path / "labels.zarr")
    assert np.array_equal(labels[...], voxpatch.open(tmp_path / "labels.zarr")[...])
    # Through an aggregator.
    stored: Any = {"reduce": "argmax", "pyramid": "mode", "chunk": 8, "shard": 16}
    sampler = voxpatch.GridSampler(scan, patch_size=16, overlap=8)
    for output, more in [(tmp_path / "sums.zarr", {}), ("s3://out/sums.zarr", {"storage_options": options})]:
        aggregator = voxpatch.GridAggregator(sampler, output=output, **stored, **more)
        for sample in sampler:
            aggregator.add_batch(two(sample["image"][None]), sample["location"][None])
        aggregator.finish()
    assert objects(client, "sums.zarr/") == local_files(tmp_path / "sums.zarr")


KILLED = """
import json, os, signal, sys
import numpy as np
import voxpatch

batches = 0
def model(batch):
    global batches
    batches += 1
    if batches == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return np.asarray(batch, np.float32)

voxpatch.predict(model, sys.argv[1], "s3://out/killed.zarr", 16, storage_options=json.loads(sys.argv[2]), chunk=8, shard=16)
"""


def test_a_killed_run_leaves_no_metadata_and_is_named(
    options: dict[str, str], client: Any, files: dict[str, pathlib.Path]
) -> None:
    arguments = [sys.executable, "-c", KILLED, str(files["c.zarr"]), json.dumps(options), "20"]
    assert subprocess.run(arguments, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    left = objects(client, "killed.zarr/")
    assert ".voxpatch.unfinished" in left and not any("zarr.json" in name for name in left)
    with pytest.raises(voxpatch.VoxpatchError, match="no such object"):
        voxpatch.open("s3://out/killed.zarr", storage_options=options)
    image = np.ones((4, 5, 6), np.int16)
    with pytest.raises(FileExistsError, match=r"unfinished output that a run began \d+ seconds ago.*overwrite=True"):
        voxpatch.write("s3://out/killed.zarr", image, storage_options=options)
    assert objects(client, "killed.zarr/") == left
    volume = voxpatch.write("s3://out/killed.zarr", image, storage_options=options, overwrite=True)
    assert np.array_equal(volume[0], image)
    assert sorted(objects(client, "killed.zarr/")) == ["0/c/0/0/0", "0/zarr.json", "zarr.json"]


PLANNED: dict[str, Any] = {
    "patch_size": 16, "overlap": 8, "chunk": 8, "shard": (8, 32, 32), "pyramid": "mean", "threads": 2,
}  # fmt: skip


def run_task(task: voxpatch.Task) -> Any:
    """Run a task."""
    return task.run(two)


@pytest.fixture
def planned(options: dict[str, str], files: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> tuple[voxpatch.Job, dict[str, bytes]]:
    """A job with an output in the bucket `out`, and the objects that it must have."""
    voxpatch.predict(two, files["c.zarr"], tmp_path / "tasks.zarr", model_id="two", **PLANNED)
    job = voxpatch.plan_predict(
        files["c.zarr"], "s3://out/tasks.zarr", model=two, model_id="two", storage_options=options, **PLANNED
    )
    return job, local_files(tmp_path / "tasks.zarr")


@pytest.mark.parametrize("seed", range(3))
def test_tasks_of_killed_workers_give_the_objects_of_one_process(
    client: Any, planned: tuple[voxpatch.Job, dict[str, bytes]], seed: int
) -> None:
    job, expected = planned
    draw = random.Random(seed)
    tasks = job.tasks(draw.choice([1, 2, 4]))
    context = multiprocessing.get_context("spawn")
    victims = [
        context.Process(target=killed.run, args=(task, two, draw.randrange(1, task.patches))) for task in draw.choices(tasks, k=2)
    ]
    for victim in victims:
        victim.start()
    todo = 2 * tasks
    draw.shuffle(todo)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        done = [future.result() for future in [pool.submit(run_task, task) for task in todo]]
        for victim in victims:
            victim.join(60)
            assert victim.exitcode in (0, -signal.SIGKILL)
        assert any(one["whole"] for one in done) and job.status()["published"]
        commits = [pool.submit(job.commit) for _ in range(2)]
        assert all(commit.result().shape == (2, *job._volume.shape[1:]) for commit in commits)
    found = objects(client, "tasks.zarr/")
    # A worker that is killed after the last task may leave its note.
    assert {name: bytes_ for name, bytes_ in found.items() if not name.startswith(".voxpatch.tasks/")} == expected
    late = tasks[0].run(two)
    assert late["patches"] == 0 and late["whole"]


def test_nothing_looks_finished_before_all_tasks_are(
    options: dict[str, str], client: Any, files: dict[str, pathlib.Path], planned: tuple[voxpatch.Job, dict[str, bytes]]
) -> None:
    job, expected = planned
    again = pickle.loads(pickle.dumps(job))
    tasks = job.tasks(3)
    assert SECRET not in tasks[0].to_json()
    with pytest.raises(voxpatch.VoxpatchError, match="no part has been started"):
        job.commit()
    assert objects(client) == {}
    chunks = [0]
    for n, task in enumerate(tasks):
        with pytest.raises(voxpatch.VoxpatchError, match="no such object"):
            voxpatch.open("s3://out/tasks.zarr", storage_options=options)
        assert task.run(two)["whole"] == (n == 2)
        chunks.append(again.status()["chunks_done"])
        if n == 0:
            other = voxpatch.plan_predict(
                files["c.zarr"], "s3://out/tasks.zarr", model=two, model_id="other", storage_options=options, overwrite=True, **PLANNED
            )
            with pytest.raises(voxpatch.VoxpatchError, match='model "two" and now "other"|model'):
                other.tasks(3)[1].run(two)
            with pytest.raises(voxpatch.VoxpatchError, match="parts"):
                job.tasks(2)[0].run(two)
            with pytest.raises(FileExistsError, match="unfinished output"):
                voxpatch.write("s3://out/tasks.zarr", np.ones((4, 5, 6), np.int16), storage_options=options)
            with pytest.raises(voxpatch.VoxpatchError, match="run parts"):
                job.commit()
    assert chunks == sorted(set(chunks)) and again.status()["complete"]
    assert objects(client, "tasks.zarr/") == expected
    # Over an old output, which another plan replaces.
    over = voxpatch.plan_predict(
        files["c.zarr"], "s3://out/tasks.zarr", model=two, model_id="other", storage_options=options, overwrite=True, **PLANNED
    )
    client.put_object(Bucket="out", Key="tasks.zarr/thesis.tex", Body=b"theirs")
    with pytest.raises(FileExistsError, match="not replaced"):
        over.tasks(2)[0].run(two)
    assert objects(client, "tasks.zarr/") == {**expected, "thesis.tex": b"theirs"}
    client.delete_object(Bucket="out", Key="tasks.zarr/thesis.tex")
    assert [task.run(two)["whole"] for task in over.tasks(2)] == [False, True]
    assert objects(client, "tasks.zarr/") == expected


RESUMED = """
import json, os, signal, sys
import numpy as np
import voxpatch

def killing(done, total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

def two(batch):
    batch = np.asarray(batch, np.float32)[:, :1]
    return np.concatenate([batch, 150 - batch], axis=1)

planned = json.loads(sys.argv[4])
voxpatch.predict(two, sys.argv[1], "s3://out/tasks.zarr", resume=True, model_id="two", progress=killing, storage_options=json.loads(sys.argv[2]), **planned)
"""


def test_runs_that_were_killed_or_interrupted_are_resumed(
    options: dict[str, str], client: Any, files: dict[str, pathlib.Path], planned: tuple[voxpatch.Job, dict[str, bytes]]
) -> None:
    job, expected = planned
    arguments = [sys.executable, "-c", RESUMED, str(files["c.zarr"]), json.dumps(options), "20", json.dumps(PLANNED)]
    assert subprocess.run(arguments, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    left = objects(client, "tasks.zarr/")
    assert ".voxpatch.unfinished" in left and not any("zarr.json" in name for name in left)
    how: Any = {"resume": True, "model_id": "two", "storage_options": options, **PLANNED}
    patches = job.tasks(1)[0].patches
    shards = [name for name in left if "0/c/" in name]
    for name in shards:
        client.delete_object(Bucket="out", Key=f"tasks.zarr/{name}")

    def interrupt(done: int, total: int) -> None:
        if done < total * 3 // 4:
            return
        # Other threads blend and put what is predicted.
        end = time.monotonic() + 60
        while time.monotonic() < end and not any("0/c/" in name for name in objects(client, "tasks.zarr/")):
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        voxpatch.predict(two, files["c.zarr"], "s3://out/tasks.zarr", progress=interrupt, **how)
    assert any(name.endswith("0-of-1.begun") for name in objects(client, "tasks.zarr/.voxpatch.tasks/"))
    batches = 0

    def counted(batch: Any) -> Any:
        nonlocal batches
        batches += 1
        return two(batch)

    voxpatch.predict(counted, files["c.zarr"], "s3://out/tasks.zarr", **how)
    assert 0 < batches < patches
    assert objects(client, "tasks.zarr/") == expected


def test_the_commands_for_tasks_write_into_a_store(
    options: dict[str, str], client: Any, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    root = pathlib.Path(__file__).parents[2]
    command = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "debug/voxpatch"
    if not command.exists():
        pytest.skip("the command is not built")
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip

    def run(*words: object) -> Any:
        done = subprocess.run([command, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
        assert SECRET not in done.stdout + done.stderr
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    words = [files["c.zarr"], "--patch-size", "16", "--model", "gaussian:1", "--chunk", "8", "--shard", "8,32,32", "--pyramid", "mean"]
    run("infer", words[0], tmp_path / "out.zarr", *words[1:], "--json")
    expected = local_files(tmp_path / "out.zarr")
    planned = run("plan", tmp_path / "job.json", "--tasks", "2", "--json", "--", words[0], "s3://out/out.zarr", *words[1:])
    assert planned["tasks"] == 2 and objects(client) == {}
    assert "no part has been started" in run("commit", tmp_path / "job.json")
    assert not run("run-task", tmp_path / "job.json", "1", "--json")["whole"]
    status = run("status", tmp_path / "job.json", "--json")
    assert status["tasks_done"] == 1 and status["tasks_left"] == [0] and not status["published"]
    assert "run parts" in run("commit", tmp_path / "job.json")
    assert run("run-task", tmp_path / "job.json", "0", "--json")["whole"]
    for _ in range(2):
        assert run("commit", tmp_path / "job.json", "--json")["out"] == "s3://out/out.zarr"
    assert run("status", tmp_path / "job.json", "--json")["published"]
    assert objects(client, "out.zarr/") == expected
    # Parts and a resumed run are the same, without a plan.
    for part in ("0/2", "1/2"):
        whole = run("infer", words[0], "s3://out/parts/out.zarr", *words[1:], "--part", part, "--json")["whole"]
    assert whole and objects(client, "parts/out.zarr/") == expected
    run("infer", words[0], "s3://out/resumed/out.zarr", *words[1:], "--resume", "--json")
    assert objects(client, "resumed/out.zarr/") == expected


def test_a_run_that_fails_leaves_nothing(options: dict[str, str], client: Any, files: dict[str, pathlib.Path]) -> None:
    def failing(batch: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        voxpatch.predict(failing, files["c.zarr"], "s3://out/failed.zarr", 16, storage_options=options, chunk=8, shard=16)
    assert objects(client) == {}


def test_only_zarr_is_replaced_in_a_store(options: dict[str, str], client: Any) -> None:
    image = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    path = "s3://out/results/a.zarr"
    voxpatch.write(path, image + 1, storage_options=options)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        voxpatch.write(path, image, storage_options=options)
    client.put_object(Bucket="out", Key="results/a.zarr2", Body=b"theirs")
    client.put_object(Bucket="out", Key="results/b.zarr", Body=b"theirs")
    assert np.array_equal(voxpatch.write(path, image, storage_options=options, overwrite=True)[0], image)
    assert objects(client)["results/a.zarr2"] == b"theirs"
    client.put_object(Bucket="out", Key="results/a.zarr/thesis.tex", Body=b"theirs")
    before = objects(client)
    for taken in (path, "s3://out/results", "s3://out/results/b.zarr"):
        with pytest.raises(FileExistsError, match="not replaced"):
            voxpatch.write(taken, image, storage_options=options, overwrite=True)
    assert objects(client) == before


def test_what_stores_cannot_have_is_refused(options: dict[str, str], client: Any, files: dict[str, pathlib.Path]) -> None:
    image = np.ones((4, 5, 6), np.int16)
    for path, why in [
        ("s3://out/a.nii", "only Zarr"),
        ("http://127.0.0.1:9/a.zarr", "web servers"),
        (f"s3://me:{SECRET}@out/a.zarr", "storage options"),
    ]:
        with pytest.raises(ValueError, match=why) as error:
            voxpatch.write(path, image)
        assert SECRET not in str(error.value)
    voxpatch.write("s3://out/in.zarr", image, storage_options=options)
    for same in ("s3a://out/in.zarr", "s3://out/in.zarr/0/copy"):
        with pytest.raises(OSError, match=r"in\.zarr"):
            voxpatch.convert("s3://out/in.zarr", same, storage_options=options, overwrite=True)
    with pytest.raises(OSError, match="NoSuchBucket") as missing:
        voxpatch.write("s3://nobucket/a.zarr", image, storage_options=options)
    assert SECRET not in str(missing.value)
    assert sorted(objects(client)) == ["in.zarr/0/c/0/0/0", "in.zarr/0/zarr.json", "in.zarr/zarr.json"]


def test_a_cache_keeps_what_is_read_and_unpacked(
    options: dict[str, str], bucket: str, files: dict[str, pathlib.Path], voxels: Voxels, tmp_path: pathlib.Path
) -> None:
    cache = tmp_path / "cache"
    packed = tmp_path / "a.nii.gz"
    voxpatch.convert(files["c.nii"], packed)
    before = 0
    for _ in range(2):
        for path in (f"{bucket}/c.zarr", packed):
            volume = voxpatch.open(path, storage_options=options, cache_dir=cache, cache_bytes=1 << 30)
            volume = pickle.loads(pickle.dumps(volume))
            assert np.array_equal(volume[1, 10:12], voxels[1, 10:12]) and np.array_equal(volume[...], voxels)
        entries = sum(file.is_file() for file in cache.rglob("*"))
        assert before in (0, entries) and entries > 5
        before = entries


def test_faults_are_repeated_or_errors_and_never_voxels(options: dict[str, str], client: Any, tmp_path: pathlib.Path) -> None:
    port = int(options["endpoint_url"].rpartition(":")[2])
    done = faulty_store.campaign(port, client, 200, tmp_path)
    assert done["reads right"] + done["writes right"] > 0 and done["slowest_seconds"] < 120, done


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


def test_no_way_to_start_workers_hangs_with_a_store() -> None:
    """Two cases of `scripts/fork_matrix.py`: the parent has read, and its workers are forked."""
    pytest.importorskip("torch", reason="torch is not installed")
    script = pathlib.Path(__file__).parents[2] / "scripts/fork_matrix.py"
    paths = os.pathsep.join(path for path in sys.path if path)
    words = ["--short", "--kinds", "remote", "--methods", "fork", "--workers", "2", "--parents", "warm"]
    done = subprocess.run([sys.executable, script, *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("| ok |") == 2, done.stdout + done.stderr


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
