"""The upload through huggingface_hub's own code, against a local stand-in that speaks the Hub's HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halo_forge.errors import DataError, UsageError
from halo_forge.publish import publish
from halo_forge.publish.push import push
from halo_forge.runs import sha256_file


class StandIn:
    """What one repository of the Hub received."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.headers: list[dict[str, str]] = []
        self.commit: dict[str, Any] = {}
        self.refuse = 0
        self.url = ""


def handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.headers.append(dict(self.headers))
            if hub.refuse:
                self.answer({"error": "no"}, hub.refuse)
            elif self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                self.answer({"url": f"{hub.url}/me/tiny", "id": "me/tiny"})
            elif self.path == "/api/validate-yaml":
                self.answer({"warnings": [], "errors": []})
            elif self.path.startswith("/api/models/me/tiny/preupload/"):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            elif self.path == "/me/tiny.git/info/lfs/objects/batch":
                objects = [
                    one | {"actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            elif self.path.startswith("/api/models/me/tiny/commit/"):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "header":
                        hub.commit = value
                    elif line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.objects[value["oid"]]
                self.answer({"commitUrl": f"{hub.url}/me/tiny/commit/c0ffee", "commitOid": "c0ffee"})
            elif self.path.startswith("/api/models/me/tiny/tag/"):
                hub.tags[json.loads(body)["tag"]] = self.path.rsplit("/", 1)[1]
                self.answer({})
            else:
                self.answer({"error": self.path}, 404)

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.rsplit("/", 1)[1]
            assert hashlib.sha256(data).hexdigest() == oid
            hub.objects[oid] = data
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"error": self.path}, 404)

        def answer(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub() -> Iterator[StandIn]:
    received = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(received))
    received.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def registry(builder: ModuleType, tmp_path: Path) -> Path:
    publish(*builder.build_run(tmp_path / "run", registry=tmp_path / "registry").records)
    return tmp_path / "registry"


def pushed(registry: Path, url: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables,
    }  # fmt: skip
    command = [sys.executable, "-m", "halo_forge.cli.main", "models", "push", "run", "me/tiny", *words]
    return subprocess.run(
        [*command, "--registry", str(registry)], env=environment, capture_output=True, text=True, check=False
    )


def test_what_arrives_is_the_version_byte_for_byte(registry: Path, hub: StandIn) -> None:
    answer = pushed(registry, hub.url)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"{hub.url}/me/tiny/commit/c0ffee"
    version = registry / "run" / "v1"
    assert {"adapter_model.safetensors", "README.md", "manifest.json", "gate.json", "tokenizer_config.json"} <= set(
        hub.files
    )
    for name, data in hub.files.items():
        assert hashlib.sha256(data).hexdigest() == sha256_file(version / name), name
    assert list(hub.objects) == [sha256_file(version / "adapter_model.safetensors")]
    assert "model-index:" in hub.files["README.md"].decode()
    assert hub.created[0]["visibility"] == "private"
    assert hub.commit["summary"] == "run v1"
    assert "Quality gate: PASS" in hub.commit["description"]
    assert hub.tags == {"v1": "c0ffee"}
    assert all(headers.get("authorization", headers.get("Authorization")) for headers in hub.headers)
    assert "hf_secret" not in answer.stdout + answer.stderr


def test_records_that_name_the_machine_stay_here_unless_asked_for(registry: Path, hub: StandIn) -> None:
    assert pushed(registry, hub.url).returncode == 0
    held_back = {"config.resolved.yaml", "environment.json", "data/manifest.json", "eval/report.json"}
    assert not held_back & set(hub.files)
    assert pushed(registry, hub.url, "--with-records", "--public").returncode == 0
    assert held_back <= set(hub.files)
    assert hub.created[-1]["visibility"] == "public"


def test_a_refusal_and_a_hub_that_is_not_there_are_told(registry: Path, hub: StandIn) -> None:
    hub.refuse = 403
    refused = pushed(registry, hub.url)
    assert refused.returncode == 1
    assert "the Hub refused it" in refused.stderr
    assert "hf auth login" in refused.stderr
    offline = pushed(registry, hub.url, HF_HUB_OFFLINE="1")
    assert (offline.returncode, "the Hub is switched off here" in offline.stderr) == (2, True)
    nowhere = pushed(registry, "http://127.0.0.1:9")
    assert nowhere.returncode == 1, nowhere.stderr
    assert "the Hub cannot be reached" in nowhere.stderr
    assert all("Traceback" not in answer.stderr for answer in (refused, offline, nowhere))


def test_a_dry_run_and_a_damaged_version_send_nothing(registry: Path) -> None:
    planned = push(registry, "run", None, "me/tiny", dry_run=True)
    assert planned.commit is None
    assert "adapter_model.safetensors" in planned.files
    (registry / "run" / "v1" / "gate.json").unlink()
    with pytest.raises(DataError, match="is not what was published"):
        push(registry, "run", None, "me/tiny")
    for bad in ("a/b/c", "-x", "a b", "../x"):
        with pytest.raises(UsageError, match="cannot be a repository"):
            push(registry, "run", None, bad)
