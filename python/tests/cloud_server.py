"""A store on this machine with the requests of Google Cloud Storage or Azure Blob Storage that a volume takes."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import urllib.parse
import xml.sax.saxutils
from collections.abc import Iterator
from typing import Any, NamedTuple

DATE = "Sun, 01 Nov 2026 00:00:00 GMT"


class Request(NamedTuple):
    """A request that was answered."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int


class Cloud(http.server.ThreadingHTTPServer):
    """Objects by key, below the path `root` of the server. `kind` is "gs" or "az"."""

    daemon_threads = True
    #: Connections that may wait: with fewer, those that come at once are tried again after a second or more.
    request_queue_size = 128

    def __init__(self, kind: str, root: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind = kind
        self.root = root
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.requests: list[Request] = []
        self.refuses = ""
        self.lock = threading.Lock()
        self.number = 0

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, request: Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        method, path, query, headers, _ = request
        key = path.removeprefix(self.root).strip("/")
        if self.refuses and self.refuses in path:
            return 403, {}, f"<Error><Code>Denied</Code><Message>{headers}</Message></Error>".encode()
        if method == "PUT":
            is_new = headers.get("if-none-match") == "*" or headers.get("x-goog-if-generation-match") == "0"
            if is_new and key in self.objects:
                return (412, {}, b"") if self.kind == "gs" else (409, {}, b"<Error><Code>BlobAlreadyExists</Code></Error>")
            self.number += 1
            self.objects[key] = (body, self.number)
            return 201, self.about(key), b""
        if method == "POST" and query.get("comp") == "batch":
            return self.batch(headers, body)
        if method == "GET" and ("list-type" in query or query.get("comp") == "list"):
            return 200, {"Content-Type": "application/xml"}, self.listed(query).encode()
        if key not in self.objects:
            return 404, {}, b""
        if method == "DELETE":
            del self.objects[key]
            return 204, {}, b""
        content = self.objects[key][0]
        if "range" not in headers:
            return 200, self.about(key), content
        first, last = headers["range"].removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1) if first and last else len(content)
        return 206, {**self.about(key), "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end]

    def about(self, key: str) -> dict[str, str]:
        """Return the headers of an object."""
        return {"ETag": f'"{self.objects[key][1]}"', "Last-Modified": DATE, "x-goog-generation": str(self.objects[key][1])}

    def batch(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Remove the objects that a batch names."""
        parts = re.findall(rb"Content-ID: (\d+).*?DELETE ([^ ]*) HTTP", body, re.DOTALL | re.IGNORECASE)
        answers = []
        for number, path in parts:
            found = self.objects.pop(urllib.parse.unquote(path.decode()).split(f"/{self.root.rsplit('/', 1)[1]}/", 1)[1], None)
            status = "202 Accepted" if found else "404 Not Found"
            answers.append(f"--b\r\nContent-Type: application/http\r\nContent-ID: {number.decode()}\r\n\r\nHTTP/1.1 {status}\r\nx-ms-version: 1\r\n\r\n\r\n")
        return 202, {"Content-Type": "multipart/mixed; boundary=b"}, ("".join(answers) + "--b--\r\n").encode()

    def listed(self, query: dict[str, str]) -> str:
        """Return a list of objects, and of folders if a delimiter is given."""
        prefix, divided = query.get("prefix", ""), query.get("delimiter")
        names = sorted(key for key in self.objects if key.startswith(prefix))
        folders = sorted({prefix + name.removeprefix(prefix).split("/")[0] + "/" for name in names if divided and "/" in name.removeprefix(prefix)})
        names = [name for name in names if not (divided and "/" in name.removeprefix(prefix))]
        text = xml.sax.saxutils.escape
        if self.kind == "gs":
            some = "".join(
                f"<Contents><Key>{text(name)}</Key><Size>{len(self.objects[name][0])}</Size>"
                f'<LastModified>2026-11-01T00:00:00Z</LastModified><ETag>"{self.objects[name][1]}"</ETag></Contents>'
                for name in names
            )
            return f"<ListBucketResult>{some}{''.join(f'<CommonPrefixes><Prefix>{text(one)}</Prefix></CommonPrefixes>' for one in folders)}</ListBucketResult>"
        some = "".join(
            f"<Blob><Name>{text(name)}</Name><Properties><Last-Modified>{DATE}</Last-Modified>"
            f"<Content-Length>{len(self.objects[name][0])}</Content-Length><Content-Type>x/y</Content-Type>"
            f'<Etag>"{self.objects[name][1]}"</Etag></Properties></Blob>'
            for name in names
        )
        some += "".join(f"<BlobPrefix><Name>{text(one)}</Name></BlobPrefix>" for one in folders)
        return f"<EnumerationResults><Blobs>{some}</Blobs><NextMarker/></EnumerationResults>"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Cloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def once(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = Request(self.command, urllib.parse.unquote(url.path), query, headers, 0)
        with self.server.lock:
            status, answered, content = self.server.answer(request, body)
            self.server.requests.append(request._replace(status=status))
        self.send_response(status)
        for name, value in answered.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = once  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def cloud(kind: str, root: str) -> Iterator[Cloud]:
    """Run a store."""
    with Cloud(kind, root) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
