#!/usr/bin/env python3
"""A server of the files in a folder, as `http://` and as S3 paths (`/BUCKET/KEY`), with a latency. Standard library only.

It answers GET and HEAD, with ranges and entity tags, and looks at no credentials. Each answer waits for `--latency`
milliseconds; any number of requests wait at once. `GET /.counts` returns what was asked for since the last time, as JSON:
requests and bytes of chunks and shards, requests for each index, and the mean and the most requests at once.

    python scripts/store_server.py FOLDER PORT [--latency 30]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import pathlib
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

#: Bytes below which the end of an object is counted as the index of a shard.
INDEX = 64 << 10


class Files:
    """The files of a folder in memory, and what was asked for."""

    def __init__(self, folder: pathlib.Path, latency: float) -> None:
        self.latency = latency
        self.content = {
            f"/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        self.tags = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in self.content.items()}
        self.flying = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was asked for."""
        self.requests = self.bytes = self.documents = self.most = 0
        self.busy = self.since = 0.0
        self.changed = time.monotonic()
        self.indexes: Counter[str] = Counter()

    def fly(self, step: int) -> None:
        """Count a request that begins or ends."""
        now = time.monotonic()
        if self.flying:
            self.busy += now - self.changed
            self.since += self.flying * (now - self.changed)
        self.changed = now
        self.flying += step
        self.most = max(self.most, self.flying)

    def counts(self) -> bytes:
        """Return what was asked for, and forget it."""
        found = {
            "requests": self.requests,
            "bytes": self.bytes,
            "documents": self.documents,
            "indexes": sum(self.indexes.values()),
            "most_per_index": max(self.indexes.values(), default=0),
            "shards": len(self.indexes),
            "mean_at_once": round(self.since / self.busy, 1) if self.busy else 0.0,
            "most_at_once": self.most,
        }
        self.reset()
        return json.dumps(found).encode()

    def answer(self, method: str, name: str, ranged: str | None) -> tuple[str, list[str], bytes]:
        """Return the status, the headers and the body of an answer."""
        content = self.content.get(name)
        if content is None:
            return "404 Not Found", ["Content-Type: application/xml"], b"<Error><Code>NoSuchKey</Code></Error>"
        headers = [
            f'ETag: "{self.tags[name]}"', "Accept-Ranges: bytes", "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
            "Content-Type: application/octet-stream",
        ]  # fmt: skip
        status, body = "200 OK", content
        if ranged and ranged.startswith("bytes="):
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(len(content) - int(last), 0)
            end = min(int(last) + 1, len(content)) if first and last else len(content)
            if start >= end:
                return "416 Range Not Satisfiable", [f"Content-Range: bytes */{len(content)}"], b""
            status, body = "206 Partial Content", content[start:end]
            headers.append(f"Content-Range: bytes {start}-{end - 1}/{len(content)}")
        if method == "GET":
            self.count(name, len(body), status.startswith("206") and len(body) < INDEX and body[-1:] == content[-1:] and end == len(content))
        return status, headers, body

    def count(self, name: str, length: int, is_index: bool) -> None:
        """Count an answer: a document, the index of a shard, or voxels."""
        if name.rsplit("/", 1)[-1].startswith((".z", "zarr.json")):
            self.documents += 1
            return
        self.requests += 1
        self.bytes += length
        if is_index:
            self.indexes[name] += 1


class Connection(asyncio.Protocol):
    """A connection, whose requests are answered one after the other."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.buffer = b""
        self.waiting: list[tuple[str, str, str | None]] = []
        self.is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Take the requests that are complete."""
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            self.waiting.append((method, unquote(target.partition("?")[0]), headers.get("range")))
        self.next()

    def next(self) -> None:
        """Begin to answer, unless there is an answer to come."""
        if not self.waiting or self.is_answering:
            return
        self.is_answering = True
        request = self.waiting.pop(0)
        if request[1] == "/.counts":
            self.write(request[0], "200 OK", [], self.files.counts())
            return
        self.files.fly(1)
        asyncio.get_running_loop().call_later(self.files.latency, self.respond, request)

    def respond(self, request: tuple[str, str, str | None]) -> None:
        """Answer a request whose time has come."""
        self.files.fly(-1)
        self.write(request[0], *self.files.answer(*request))

    def write(self, method: str, status: str, headers: list[str], body: bytes) -> None:
        """Write an answer."""
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
        self.transport.write("\r\n".join(lines).encode() + (b"" if method == "HEAD" else body))
        self.is_answering = False
        self.next()


async def serve(folder: pathlib.Path, port: int, latency: float) -> None:
    """Serve a folder until the process ends."""
    files = Files(folder, latency)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(files), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


@contextlib.contextmanager
def served(folder: pathlib.Path, latency: float) -> Iterator[str]:
    """Serve a folder by a process of its own, and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, __file__, folder, str(port), "--latency", str(latency)]) as server:
        try:
            while True:
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, "the server has ended"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=30.0, help="milliseconds")
    given = parser.parse_args()
    asyncio.run(serve(given.folder, given.port, given.latency / 1000))


if __name__ == "__main__":
    main()
