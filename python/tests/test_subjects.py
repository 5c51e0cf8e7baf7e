"""What of a subject is a volume and what metadata, and sizes in any form."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import voxpatch
from voxpatch import Queue, Subject, UniformSampler

VOXELS = np.arange(8**3, dtype=np.int16).reshape(8, 8, 8)


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    """A Zarr store of two arrays, volumes/raw and volumes/label."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "c.zarr"), mode="w", zarr_format=2)
    for name, value in (("raw", 77), ("label", 1)):
        group.create_array(f"volumes/{name}", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")[...] = value
    return tmp_path / "c.zarr"


def test_a_string_that_leads_into_a_store_is_a_volume(store: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    for label in ("c.zarr/volumes/label", "c.zarr/volumes/label/", str(store / "volumes" / "label"), "./c.zarr/volumes/label"):
        subject = Subject(raw=voxpatch.open("c.zarr/volumes/raw"), label=label, site="Ulm")
        assert set(subject.volumes) == {"raw", "label"} and subject.metadata == {"site": "Ulm"}
        batch = next(iter(Queue([subject], UniformSampler(4), 2, batch_size=2)))
        assert np.all(batch["label"] == 1) and np.all(batch["raw"] == 77)
    with pytest.raises(ValueError, match="volumes/label, volumes/raw"):
        Subject(raw="c.zarr")["raw"]


def test_a_string_is_a_volume_where_something_is_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", VOXELS)
    os.rename("scan.npy", "scan")
    os.mkdir("M")
    subject = Subject(ct="scan", sex="M", other=VOXELS)
    assert set(subject.volumes) == {"ct", "other"} and subject["sex"] == "M"
    assert np.array_equal(subject["ct"][0], VOXELS)


@pytest.mark.parametrize("text", ["dose.png", "dose.ni.gz", "a/b.hdf", "/gone/scan", "./scan", "../scan", "here/scan"])
def test_what_looks_like_a_path_to_nothing_is_an_error(text: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("here")
    with pytest.raises(ValueError, match="looks like a path.*metadata="):
        Subject(ct=VOXELS, dose=text)
    assert Subject(ct=VOXELS, metadata={"dose": text})["dose"] == text


@pytest.mark.parametrize("text", ["Ulm", "N/A", "2026/11/28", "T1w/FLAIR", "Dr. House", "v1.2", "", "two\nlines", "x" * 9999])
def test_other_strings_are_metadata(text: str) -> None:
    assert Subject(ct=VOXELS, note=text).metadata == {"note": text}


def test_addresses_are_volumes() -> None:
    subject = Subject(ct="s3://bucket/scan.zarr", other=VOXELS, note="file://gone/scan.zarr")
    assert set(subject.volumes) == {"ct", "other", "note"} and not subject.metadata


def test_images_and_metadata_can_be_told_apart(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", VOXELS)
    path = str(tmp_path / "a.npy")
    subject = Subject(images={"ct": path, "pet": VOXELS}, metadata={"path": path, "affine": np.zeros((4, 4, 4))}, age=63)
    assert set(subject.volumes) == {"ct", "pet"} and set(subject.metadata) == {"path", "affine", "age"}
    assert subject["path"] == path and subject.name == path
    again = pickle.loads(pickle.dumps(subject))
    assert np.array_equal(again["ct"][0], VOXELS)
    with pytest.raises(ValueError, match="ct is not a volume but a int"):
        Subject(images={"ct": 3})
    for wrong in ({"images": path}, {"ct": path, "metadata": "Ulm"}):
        with pytest.raises(ValueError, match="give a dictionary by name"):
            Subject(**wrong)
    for twice in ({"age": 1}, {"ct": 1}):
        with pytest.raises(ValueError, match="twice"):
            Subject(images={"ct": path}, metadata=twice, age=2)


def sizes() -> list[Any]:
    """A patch of 4 in every form in which Python users have it."""
    found: list[Any] = [4, (4, 4, 4), [4, 4, 4], np.array([4, 4, 4]), np.int64(4), np.uint8(4), np.array(4), (np.int32(4),) * 3]
    try:
        import torch
    except ImportError:
        return found
    return [*found, torch.Size([4, 4, 4]), torch.tensor([4, 4, 4]), torch.tensor(4)]


@pytest.mark.parametrize("size", sizes(), ids=repr)
def test_sizes_come_in_any_form(size: Any, tmp_path: pathlib.Path) -> None:
    assert UniformSampler(size).patch_size == (4, 4, 4)
    grid = voxpatch.GridSampler(VOXELS, size, np.array([2, 2, 2]))
    assert grid[0]["image"].shape == (1, 4, 4, 4)
    done = voxpatch.predict(lambda batch: batch, VOXELS, None, size, np.array([2, 2, 2]))
    assert np.allclose(np.asarray(done)[0], VOXELS)
    voxpatch.write(tmp_path / "a.zarr", VOXELS, chunk=size, shard=None)
    assert voxpatch.open(tmp_path / "a.zarr").shape == (1, 8, 8, 8)


@pytest.mark.parametrize("size", [3.7, (4, 4), [4] * 4, np.array([4.0, 4, 4]), "444", None, np.array([]), {}, (0, 4, 4)], ids=repr)
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="patch_size"):
        UniformSampler(size)


@pytest.mark.parametrize("overlap", [0.5, np.float32(0.5), np.float64(0.5), 2, np.int64(2), np.array([0.5, 0.5, 0.5]), (2, 2, 2)], ids=repr)
def test_overlaps_of_numpy_are_numbers(overlap: Any) -> None:
    seen: list[int] = []

    def model(batch: Any) -> Any:
        seen.append(len(batch))
        return batch

    voxpatch.predict(model, VOXELS, None, 4, overlap)
    assert sum(seen) in (27, 28), "patches of 4 with overlap 2, and the one that is tried first"
