"""A hub on this machine: enough of its protocol for the real huggingface_hub library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from tests.fake_hub import commit_of, listing


class HubServer(ThreadingHTTPServer):
    """Serves folders by ``organization/model``.

    Attributes
    ----------
    requests : list of (str, str, str, str)
        Method, path, Range and Authorization of each request.
    cut : dict of str to int
        How many bytes of a file are sent before the connection breaks, once.
    token : str, optional
        What files are given out for.
    """

    daemon_threads = True

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders
        self.requests: list[tuple[str, str, str, str]] = []
        self.cut: dict[str, int] = {}
        self.token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        given = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        self.server.requests.append((self.command, path, *given))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            self._file(found[1], found[2], found[3], has_body)
        else:
            self._refuse(404, "EntryNotFound")

    def _info(self, name: str, revision: str | None) -> None:
        if name not in self.server.folders:
            self._refuse(404, "RepoNotFound")
            return
        folder = self.server.folders[name]
        if revision not in (None, "main", commit_of(folder)):
            self._refuse(404, "RevisionNotFound")
            return
        info = {"id": name, "sha": commit_of(folder), "siblings": listing(folder)}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, commit: str, file: str, has_body: bool) -> None:
        folder = self.server.folders.get(name)
        entries = {entry["rfilename"]: entry for entry in listing(folder)} if folder else {}
        if folder is None or file not in entries or commit != commit_of(folder):
            self._refuse(404, "EntryNotFound")
            return
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._refuse(403, "GatedRepo")
            return
        data, entry = (folder / file).read_bytes(), entries[file]
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self._send(
            status, data, headers, has_body, self.server.cut.pop(file, None) if has_body else None
        )

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        has_body: bool = True,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if has_body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


@contextmanager
def hub_server(folders: dict[str, Path]) -> Iterator[HubServer]:
    """Run a server while the block lasts."""
    with HubServer(folders) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
