"""Volumes in Google Cloud Storage and Azure Blob Storage, as a server on this machine answers for them."""

from __future__ import annotations

import base64
import json
import pathlib
import pickle
from typing import Any

import cloud_server
import numpy as np
import pytest
import voxpatch

Voxels = np.ndarray[Any, Any]

SECRET = "hush-hush"


def place(kind: str, server: cloud_server.Cloud) -> tuple[str, dict[str, str]]:
    """Return the address of a folder in a store, and the options for it."""
    if kind == "az":
        key = base64.b64encode(SECRET.encode()).decode()
        return "az://box/in", {"account_name": "me", "account_key": key, "endpoint": f"{server.url}/me", "retry_timeout": "5"}
    account = {"gcs_base_url": server.url, "disable_oauth": True, "client_email": "me", "private_key": SECRET, "private_key_id": SECRET}
    return "gs://box/in", {"service_account_key": json.dumps(account), "retry_timeout": "5"}


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_volume_is_written_read_and_replaced(kind: str, tmp_path: pathlib.Path, voxels: Voxels) -> None:
    with cloud_server.cloud(kind, "/me/box" if kind == "az" else "/box") as server:
        folder, options = place(kind, server)
        address = f"{folder}/scan 1.zarr"
        how: dict[str, Any] = {"chunk": 8, "shard": 16, "pyramid": "mean"}
        voxpatch.write(tmp_path / "scan 1.zarr", voxels, **how)
        voxpatch.write(address, voxels, storage_options=options, **how)
        expected = {file.relative_to(tmp_path / "scan 1.zarr").as_posix(): file.read_bytes() for file in (tmp_path / "scan 1.zarr").rglob("*") if file.is_file()}
        assert {key.removeprefix("in/scan 1.zarr/"): content for key, (content, _) in server.objects.items()} == expected
        puts = {request.path: request.headers for request in server.requests if request.method == "PUT" and request.status == 201}
        creates = {name.rsplit("/", 1)[1] for name, sent in puts.items() if "*" in sent.get("if-none-match", "") or "x-goog-if-generation-match" in sent}
        # Documents and the claim are put on the condition that they do not exist; shards have names of their own.
        assert creates == {"zarr.json", ".voxpatch.unfinished"}
        if kind == "az":
            assert all(request.headers["authorization"].startswith("SharedKey me:") for request in server.requests)

        server.requests.clear()
        volume = voxpatch.open(address, storage_options=options)
        assert np.array_equal(volume[...], voxels)
        assert SECRET not in repr(volume) + str(volume.path)
        assert np.array_equal(pickle.loads(pickle.dumps(volume))[1, 3:20, ::3, 5], voxels[1, 3:20, ::3, 5])
        shards = [request for request in server.requests if "/c/" in request.path]
        # Only Azure is asked for the length of a shard before the index at its end.
        asked = {request.method for request in shards}
        assert asked == ({"GET", "HEAD"} if kind == "az" else {"GET"})
        assert all(request.status == 206 for request in shards if request.method == "GET")

        with pytest.raises(FileExistsError):
            voxpatch.write(address, voxels, storage_options=options, **how)
        voxpatch.write(address, voxels + 1, storage_options=options, overwrite=True, **how)
        assert np.array_equal(voxpatch.open(address, storage_options=options)[...], voxels + 1)
        with pytest.raises(voxpatch.errors.InvalidError, match="changed while it was in use"):
            volume[...]


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_refusal_names_the_object_and_no_secret(kind: str, voxels: Voxels) -> None:
    with cloud_server.cloud(kind, "/me/box" if kind == "az" else "/box") as server:
        folder, options = place(kind, server)
        address = f"{folder}/scan.zarr"
        voxpatch.write(address, voxels, storage_options=options, chunk=16, shard=None)
        volume = voxpatch.open(address, storage_options=options)
        secrets = [SECRET, base64.b64encode(SECRET.encode()).decode(), "SharedKey"]
        server.refuses = "/c/"
        with pytest.raises(OSError, match="403") as error:
            volume[...]
        assert "scan.zarr/0/c/" in str(error.value) and not any(secret in str(error.value) for secret in secrets)
        server.refuses = "scan"
        with pytest.raises(OSError, match="403") as error:
            voxpatch.write(f"{folder}/scan2.zarr", voxels, storage_options=options)
        assert "scan2.zarr" in str(error.value) and not any(secret in str(error.value) for secret in secrets)
        wrong = {**options, **({"account_key": "no base64: " + SECRET} if kind == "az" else {"service_account_key": "{" + SECRET})}
        with pytest.raises((OSError, ValueError)) as error:
            voxpatch.open(address, storage_options=wrong)
        assert not any(secret in str(error.value) for secret in secrets)
