"""A data set hub of one data set on 127.0.0.1: as much of the Hugging Face hub's protocol as the library `datasets` asks for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "owner/set"
REVISIONS = {"main": "0" * 40, "v2": "2" * 40}


class Hub(ThreadingHTTPServer):
    """Serves the folders root/main, root/v2; counts in `sent` the bytes of each file, "main/a.parquet", that were asked for.

    broken: the connection breaks off wherever this is part of a file's path.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        self.root, self.sent, self.broken = root, {}, None
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        if found := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/([^/]+))?", path):
            name = self._revision(found[1] or "main")
            self._answer({"id": NAME, "_id": "1", "sha": REVISIONS[name], "private": False, "tags": []} if name else None)
        elif found := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)/?(.*)", path):
            inside = [e for e in self._entries(found[1]) if PurePosixPath(found[2]) in PurePosixPath(e["path"]).parents]
            direct = [e for e in inside if PurePosixPath(e["path"]).parent == PurePosixPath(found[2])]
            self._answer(inside if query.get("recursive") == ["true"] else direct)
        elif found := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.*)", path):
            self._file(found[1], found[2])
        else:
            self._answer(None)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        found = re.fullmatch(rf"/api/datasets/{NAME}/paths-info/(.+)", unquote(urlsplit(self.path).path))
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._answer([e for e in self._entries(found[1]) if e["path"] in paths])

    def _revision(self, text: str) -> str | None:
        return next((name for name, sha in REVISIONS.items() if text in (name, sha) and (self.server.root / name).exists()), None)

    def _entries(self, revision: str) -> list[dict]:
        folder = self.server.root / self._revision(revision)
        return [
            {"type": "directory" if p.is_dir() else "file", "path": p.relative_to(folder).as_posix(), "oid": "1" * 40, "size": p.stat().st_size}
            for p in sorted(folder.rglob("*"))
        ]

    def _file(self, revision: str, path: str) -> None:
        name = self._revision(revision)
        file = self.server.root / (name or "none") / path
        if not file.is_file():
            return self._answer(None, "EntryNotFound" if name else "RevisionNotFound")
        if self.server.broken and self.server.broken in path and self.command == "GET":
            self.close_connection = True
            return None
        whole = content = file.read_bytes()
        headers = {"X-Repo-Commit": REVISIONS[name], "ETag": f'"{hashlib.sha1(whole).hexdigest()}"', "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(part[1])
            content = whole[first : int(part[2]) + 1 if part[2] else None]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{len(whole)}"
        self._send(206 if part else 200, content, headers)
        if self.command == "GET":
            self.server.sent[f"{name}/{path}"] = self.server.sent.get(f"{name}/{path}", 0) + len(content)
        return None

    def _answer(self, found: object, error: str = "RepoNotFound") -> None:
        headers = {"Content-Type": "application/json"} | ({"X-Error-Code": error} if found is None else {})
        self._send(404 if found is None else 200, json.dumps(found).encode(), headers)

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass
