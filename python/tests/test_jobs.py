"""Predictions by many processes: tasks in any order, twice, at once, and killed, give the bytes of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import pickle
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import killed
import numpy as np
import pytest
import voxpatch

OPTIONS: dict[str, Any] = {"patch_size": 12, "overlap": 6, "chunk": 4, "shard": 8, "threads": 2}


def double(batch: Any) -> Any:
    return 2 * batch


def half(batch: Any) -> Any:
    return batch / 2


def pair(batch: Any) -> Any:
    return {"double": 2 * batch, "sign": (batch > 0).astype(np.float32)}


def run(task: voxpatch.Task) -> Any:
    return task.run(double)


@pytest.fixture
def scan(tmp_path: pathlib.Path) -> str:
    voxels = np.random.default_rng(7).normal(size=(50, 22, 26)).astype(np.float32)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, voxels, chunk=8, shard=16)
    return str(path)


def plan(scan: str, output: Any, **options: Any) -> voxpatch.Job:
    return voxpatch.plan_predict(scan, output, **{"model": double, **OPTIONS, **options})


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of an output, without the group's metadata, which has its name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path != folder / "zarr.json"}


@pytest.fixture
def expected(scan: str, tmp_path: pathlib.Path) -> dict[str, bytes]:
    voxpatch.predict(double, scan, tmp_path / "one.zarr", **OPTIONS)
    return files(tmp_path / "one.zarr")


def test_tasks_are_written_as_json_and_pickled(scan: str, tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    job = plan(scan, tmp_path / "out.zarr")
    again = voxpatch.Job.from_json(job.to_json())
    assert again.to_json() == job.to_json() and json.loads(job.to_json())["voxpatch"] == "job"
    tasks = again.tasks(4)
    assert len(tasks) == 4 and [task.patches for task in tasks] == sorted((task.patches for task in tasks), reverse=True)
    assert sum(task.patches - task.repeated_patches for task in tasks) == len(
        voxpatch.GridSampler(scan, OPTIONS["patch_size"], OPTIONS["overlap"])
    )
    owned = sorted(region for task in tasks for region in task.regions)
    assert owned[0][0] == 0 and owned[-1][3] == 50 and all(a[3] == b[0] for a, b in zip(owned, owned[1:]))
    assert all(0 < task.input_bytes <= 50 * 22 * 26 * 4 for task in tasks)
    assert job.status() == {"published": False, "complete": False, "parts": None, "begun": [], "chunks_done": 0, "chunks": 84}
    with pytest.raises(voxpatch.VoxpatchError, match="no part has been started"):
        job.commit()
    done = pickle.loads(pickle.dumps(tasks[0])).run(double)
    assert done == {"part": tasks[0].part, "parts": 4, "patches": tasks[0].patches, "whole": False}
    assert job.status()["begun"] == [(tasks[0].part, *2 * job.status()["begun"][0][1:2])]
    with pytest.raises(voxpatch.VoxpatchError, match="run parts .* of 4"):
        job.commit()
    whole = [voxpatch.Task.from_json(task.to_json()).run(double)["whole"] for task in tasks[1:]]
    assert whole == [False, False, True]
    assert job.commit().shape == (1, 50, 22, 26) and job.status()["published"]
    assert files(tmp_path / "out.zarr") == expected
    assert tasks[2].run(double) == {"part": tasks[2].part, "parts": 4, "patches": 0, "whole": True}


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules_with_killed_workers_end_with_the_bytes_of_one_process(
    scan: str, tmp_path: pathlib.Path, expected: dict[str, bytes], seed: int
) -> None:
    draw = random.Random(seed)
    job = plan(scan, tmp_path / "out.zarr")
    tasks = job.tasks(draw.choice([1, 2, 4, 9]))
    context = multiprocessing.get_context("spawn")
    victims = [
        context.Process(target=killed.run, args=(task, double, draw.randrange(1, task.patches)))
        for task in draw.choices(tasks, k=2)
    ]
    for victim in victims:
        victim.start()
    todo = 2 * tasks
    draw.shuffle(todo)
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        done = [future.result() for future in [pool.submit(run, task) for task in todo]]
    for victim in victims:
        victim.join(60)
        assert victim.exitcode in (0, -signal.SIGKILL)
    assert len(done) == len(todo) and job.status()["complete"]
    assert job.commit().shape == (1, 50, 22, 26)
    assert files(tmp_path / "out.zarr") == expected
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_several_outputs_and_a_mask_are_those_of_one_process(scan: str, tmp_path: pathlib.Path) -> None:
    mask = np.zeros((50, 22, 26), np.uint8)
    mask[10:40, 5:15, 5:20] = 1
    voxpatch.write(tmp_path / "mask.npy", mask)
    options = {
        **OPTIONS, "normalize": "zscore", "mask": tmp_path / "mask.npy", "same_grid": True, "reduce": {"sign": "sigmoid"},
        "blend": np.linspace(1, 2, 12**3).reshape(12, 12, 12).astype(np.float32), "padding": "edge",
    }  # fmt: skip
    paths = {name: tmp_path / f"{name}-one.zarr" for name in ("double", "sign")}
    voxpatch.predict(pair, scan, paths, **options)
    outputs = {name: tmp_path / f"{name}.zarr" for name in ("double", "sign")}
    job = voxpatch.plan_predict(scan, outputs, model=pair, **options)
    for text in [task.to_json() for task in job.tasks(3)]:
        voxpatch.Task.from_json(text).run(pair)
    volumes = voxpatch.Job.from_json(job.to_json()).commit()
    assert isinstance(volumes, dict) and list(volumes) == ["double", "sign"]
    for name in outputs:
        assert files(outputs[name]) == files(paths[name]), name


def test_a_plan_without_the_model_knows_its_outputs(scan: str, tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    job = voxpatch.plan_predict(scan, tmp_path / "out.zarr", channels=1, model_id="double", **OPTIONS)
    assert job.model_id == "double"
    for task in job.tasks(2):
        task.run(double)
    job.commit()
    assert files(tmp_path / "out.zarr") == expected
    for wrong in ({}, {"channels": 1}, {"model_id": "it"}, {"model": double, "channels": 1}):
        with pytest.raises(ValueError, match="channels"):
            voxpatch.plan_predict(scan, tmp_path / "no.zarr", **OPTIONS, **wrong)


def test_what_a_job_cannot_do_is_refused(scan: str, tmp_path: pathlib.Path) -> None:
    job = plan(scan, tmp_path / "out.zarr")
    task = job.tasks(2)[0]
    with pytest.raises(ValueError, match="planned for .*double"):
        task.run(half)
    with pytest.raises(ValueError, match="of shape"):
        task.run(lambda batch: np.concatenate([batch, batch], 1))
    with pytest.raises(ValueError, match="Zarr"):
        plan(scan, tmp_path / "out.npy").tasks(2)
    for option in ("resume", "progress", "device", "devices", "blend_on", "device_memory"):
        with pytest.raises(ValueError, match=option):
            plan(scan, tmp_path / "out.zarr", **{option: None})
    with pytest.raises(TypeError, match="unexpected"):
        plan(scan, tmp_path / "out.zarr", dry_run=True)
    with pytest.raises(ValueError, match="number"):
        job.tasks(0)
    for text in ("", "[]", "{}", task.to_json()):
        with pytest.raises(ValueError, match="not a job"):
            voxpatch.Job.from_json(text)
    in_memory = voxpatch.plan_predict(np.zeros((20, 20, 20), np.float32), tmp_path / "m.zarr", model=double, **OPTIONS)
    with pytest.raises(ValueError, match="in memory"):
        in_memory.to_json()
    for task in pickle.loads(pickle.dumps(in_memory)).tasks(2):
        task.run(double)
    assert not in_memory.commit()[...].any()
    assert not (tmp_path / "out.zarr").exists()
