"""An S3 store on this machine, as `moto` has it, and a proxy in front of it that breaks answers at random."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import voxpatch

SERVER = """
import sys, waitress
from moto.server import DomainDispatcherApplication, create_backend_app
waitress.serve(DomainDispatcherApplication(create_backend_app), host="127.0.0.1", port=int(sys.argv[1]), threads=16)
"""

#: What goes wrong with an answer.
FAULTS = ("503", "500", "409", "reset", "lost", "stall", "short", "cut", "tag", "shifted")

#: What a stalled answer waits for at most.
STALL = 1.0


@contextlib.contextmanager
def store() -> Iterator[int]:
    """Run a store, and yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL) as server:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        try:
            yield port
        finally:
            server.terminate()


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy in front of the store at a port, which breaks the share `often` of its answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.store = port
        self.port = int(self.server_address[1])
        self.often = 0.0
        self.counts: Counter[str] = Counter()
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, method: str) -> str | None:
        """Choose what goes wrong with an answer."""
        with self.lock:
            if self.random.random() >= self.often:
                return None
            fault = self.random.choice(FAULTS)
            if fault in ("tag", "cut", "shifted") and method != "GET":
                fault = "lost"
            if fault == "409" and method != "PUT":
                fault = "500"
            self.counts[f"{method} {fault}"] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections end in the middle on purpose."""


class _Connection(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        while self.once():
            pass

    def once(self) -> bool:
        """Answer one request; False at the end of the connection."""
        first = self.rfile.readline().decode().split()
        if len(first) < 3:
            return False
        headers: dict[str, str] = {}
        while line := self.rfile.readline().decode().strip():
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        fault = self.server.fault(first[0])
        if fault == "reset":
            return False
        if fault in ("503", "500", "409"):
            self.answer(int(fault), [("Content-Type", "application/xml")], b"<Error><Code>Fault</Code></Error>", first[0])
            return True
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.store)
        headers.pop("connection", None)
        upstream.request(first[0], first[1], body, headers)
        found = upstream.getresponse()
        content = found.read()
        named = [(name, value) for name, value in found.getheaders() if name.lower() not in ("content-length", "connection", "transfer-encoding")]
        length = found.getheader("content-length") if first[0] == "HEAD" else None
        upstream.close()
        if fault == "lost":
            return False
        if fault == "stall":
            time.sleep(STALL)
            return False
        if fault == "short":
            self.answer(found.status, named, content, first[0], length, cut=len(content) // 2)
            return False
        if fault == "cut":
            content = content[: len(content) // 2]
        if fault == "tag":
            named = [(name, '"another"' if name.lower() == "etag" else value) for name, value in named]
        if fault == "shifted":
            named = [(name, value.replace("bytes ", "bytes 1") if name.lower() == "content-range" else value) for name, value in named]
        self.answer(found.status, named, content, first[0], length)
        return True

    def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, method: str, length: str | None = None, cut: int | None = None
    ) -> None:
        """Write an answer, or the first bytes of its body."""
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers), f"Content-Length: {length or len(body)}"]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode())
        if method != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])


def campaign(port: int, client: Any, faults: int, folder: Any, seed: int = 0) -> dict[str, Any]:
    """Read and write through a proxy until so many answers were broken, and return what came of it.

    `client` is a client of boto3 at the store itself. Every read and every write has its voxels, or a clear error.
    """
    chance = random.Random(seed)
    proxy = Proxy(port, seed)
    options = {
        "key": "me", "secret": "hush", "endpoint_url": f"http://127.0.0.1:{proxy.port}", "region": "us-east-1",
        "stall_timeout": 0.4, "retry_timeout": 6,
    }  # fmt: skip
    plain = {**options, "endpoint_url": f"http://127.0.0.1:{port}", "stall_timeout": 30, "retry_timeout": 120}
    client.create_bucket(Bucket="faults")
    voxels = np.random.default_rng(seed).integers(-900, 900, (1, 24, 40, 32)).astype(np.int16)
    sources = {"sharded.zarr": {"chunk": 8, "shard": 16}, "chunked.zarr": {"chunk": 16, "shard": None}, "old.zarr": {"zarr": 2, "chunk": 16}}
    expected: dict[str, dict[str, bytes]] = {}
    for name, how in sources.items():
        written = folder / name / "out.zarr"
        written.parent.mkdir()
        voxpatch.write(written, voxels, pyramid="mean", **how)
        expected[name] = {file.relative_to(written).as_posix(): file.read_bytes() for file in written.rglob("*") if file.is_file()}
        for inside, content in expected[name].items():
            client.put_object(Bucket="faults", Key=f"in/{name}/{inside}", Body=content)
    done: Counter[str] = Counter()
    slowest = 0.0
    while proxy.counts.total() < faults:
        name = chance.choice(list(sources))
        proxy.often = chance.choice([0.05, 0.2, 0.4])
        began = time.monotonic()
        writes = chance.random() < 0.5
        try:
            if writes:
                voxpatch.write("s3://faults/out.zarr", voxels, pyramid="mean", storage_options=options, overwrite=True, **sources[name])
            else:
                volume = voxpatch.open(f"s3://faults/in/{name}", storage_options=options)
                for _ in range(4):
                    part = tuple(slice(start := chance.randrange(n), chance.randrange(start, n) + 1) for n in voxels.shape[1:])
                    assert np.array_equal(volume[(slice(None), *part)], voxels[(slice(None), *part)]), f"wrong voxels of {name} {part}"
            kind = "right"
        except (OSError, ValueError) as error:
            assert "127.0.0.1" in str(error) or "s3://faults" in str(error), error
            kind = "refused"
        slowest = max(slowest, time.monotonic() - began)
        done[f"{'writes' if writes else 'reads'} {kind}"] += 1
        if writes:
            proxy.often = 0.0
            _check_output(client, kind, expected[name], plain, voxels)
    proxy.shutdown()
    proxy.server_close()
    return {"faults": proxy.counts.total(), "kinds": dict(proxy.counts), **done, "slowest_seconds": round(slowest, 1)}


def _check_output(client: Any, kind: str, expected: dict[str, bytes], options: Any, voxels: Any) -> None:
    """Check the objects of an output, and that it can be read if it looks finished."""
    listed = client.list_objects_v2(Bucket="faults", Prefix="out.zarr/").get("Contents", [])
    names = {one["Key"].removeprefix("out.zarr/") for one in listed}
    if kind == "right":
        assert names - {".voxpatch.unfinished"} == set(expected)
        for name, content in expected.items():
            assert client.get_object(Bucket="faults", Key=f"out.zarr/{name}")["Body"].read() == content, name
    elif "zarr.json" in names or ".zgroup" in names:
        # Either the output of before, which was not touched, or this one: it failed only when it was opened again.
        assert np.array_equal(voxpatch.open("s3://faults/out.zarr", storage_options=options)[...], voxels)
