"""A small Hub of our own: serves model directories over HTTP with the few routes huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HUB_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """`models`: id -> directory; `gated`: ids answered with 403; `requests`: every path asked for."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.models, self.gated = models, gated
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for model_id, directory in self.server.models.items():
            if path.startswith((f"/api/models/{model_id}", f"/{model_id}/resolve/")):
                if model_id in self.server.gated:
                    return self.send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
                return self.answer_for(model_id, directory, path, with_body)
        return self.send(401, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

    def answer_for(self, model_id: str, directory: Path, path: str, with_body: bool) -> None:
        files = sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())
        rest = path.removeprefix(f"/api/models/{model_id}")
        if path.startswith(f"/{model_id}/resolve/"):
            revision, _, name = path.removeprefix(f"/{model_id}/resolve/").partition("/")
            if revision not in ("main", HUB_COMMIT):
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            if name not in files:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": HUB_COMMIT}, with_body)
            content = (directory / name).read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            return self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": HUB_COMMIT}, with_body)
        if "/revision/" in rest and rest.rpartition("/")[2] not in ("main", HUB_COMMIT):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        if rest.startswith("/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": (directory / name).stat().st_size,
                    "oid": hashlib.sha1((directory / name).read_bytes()).hexdigest(),
                }
                for name in files
            ]
            return self.send(200, json.dumps(entries).encode(), {"X-Repo-Commit": HUB_COMMIT}, with_body)
        info = {
            "id": model_id,
            "modelId": model_id,
            "sha": HUB_COMMIT,
            "siblings": [{"rfilename": name} for name in files],
            "tags": [],
            "downloads": 0,
            "private": False,
        }
        return self.send(200, json.dumps(info).encode(), {"X-Repo-Commit": HUB_COMMIT}, with_body)

    def send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serving(models: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[HubServer]:
    server = HubServer(models, gated)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def serving_hub() -> Callable[..., AbstractContextManager[HubServer]]:
    """serving_hub({id: directory}, gated=(id, ...)) -> context manager of a HubServer with `url` and `requests`."""
    return serving
