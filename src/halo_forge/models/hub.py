"""The Hugging Face Hub and its cache on this machine. Every request to the network starts here.

What is in the cache is used without asking the Hub. What is not is fetched after a connection attempt of at most
CONNECT_TIMEOUT_S, so that a machine without a network says so in under a second instead of retrying for minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from halo_forge.errors import ModelNotFound
from halo_forge.models import inspection
from halo_forge.runs import Notify, silent

CONNECT_TIMEOUT_S = 0.8
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.md", "LICENSE*"]
NOT_THE_MODEL = ["*/*"]  # copies in other formats live in subfolders (original/, onnx/, coreml/, ...)


def is_offline() -> bool:
    """True when HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says so, now or when huggingface_hub was imported."""
    from huggingface_hub import constants

    said = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return constants.HF_HUB_OFFLINE or any(value in {"1", "ON", "YES", "TRUE"} for value in said)


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def unreachable_reason(timeout_s: float = CONNECT_TIMEOUT_S) -> str | None:
    """Why the Hub cannot be reached, or None when a connection to it (or to the proxy on the way) opens in time."""
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    host = endpoint.hostname or ""
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = address.hostname or host, address.port or 80
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(f"no connection to {host}: {error.strerror or error}")

    # Name resolution knows no timeout, so it runs beside us and is left behind when it takes too long.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return outcome[0] if outcome else f"no connection to {host} within {timeout_s:g} s"


def cached_model_ids() -> list[str]:
    """Hub ids with a snapshot in the cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return sorted(path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*"))


def cached_snapshot(model_id: str, revision: str | None = None, *, weights: bool = True) -> Path | None:
    """The cached directory of a model, or None when it is absent or incomplete."""
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    if not weights:
        return directory if inspection.has_tokenizer(directory) else None
    try:
        inspection.weight_files(directory)
    except ModelNotFound:
        return None
    return directory if inspection.has_tokenizer(directory) else None


def fetch_snapshot(model_id: str, revision: str | None, *, weights: bool, notify: Notify = silent) -> Path:
    """Download a model into the cache and return its directory.

    The small files come first and are inspected, so that a model we would refuse costs no gigabytes.
    Raises ModelNotFound: offline, unreachable, unknown, gated, no safetensors, disk too small.
    """
    if is_offline():
        raise _not_here(model_id, "the Hub is switched off (HF_HUB_OFFLINE=1)")
    reason = unreachable_reason()
    if reason:
        raise _not_here(model_id, reason)
    from huggingface_hub import snapshot_download

    from halo_forge.models.quiet import quiet_hub

    try:
        with quiet_hub():
            directory = Path(
                snapshot_download(
                    model_id, revision=revision, allow_patterns=SMALL_FILES, ignore_patterns=NOT_THE_MODEL
                )
            )
            inspection.check_model_directory(directory, weights=False)
            if weights:
                names = _weight_names(directory)
                plan = snapshot_download(model_id, revision=revision, allow_patterns=names, dry_run=True)
                num_bytes = sum(file.file_size or 0 for file in plan if file.will_download)
                _check_download(model_id, num_files=len(plan), num_bytes=num_bytes, directory=directory)
                notify("note", {"text": f"downloading {model_id}: {num_bytes / 1e6:,.0f} MB"})
                snapshot_download(model_id, revision=revision, allow_patterns=names)
    except ModelNotFound:
        raise
    except Exception as error:  # of the Hub's client, the HTTP library below it, or the disk: all end the same way
        raise _hub_refusal(model_id, revision, error) from None
    return directory


def _weight_names(directory: Path) -> list[str]:
    """The files transformers would load; a repository may hold the same weights in other cuts beside them."""
    index = directory / inspection.INDEX_FILE
    if not index.is_file():
        return [inspection.SINGLE_FILE]
    weight_map = inspection.read_json_object(index).get("weight_map")
    return sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []


def _check_download(model_id: str, *, num_files: int, num_bytes: int, directory: Path) -> None:
    if not num_files:
        raise ModelNotFound(
            f"refused: {model_id} has no safetensors weights",
            where=_page(model_id),
            expected="safetensors; the pickle formats can run code when they are read",
            fix="take a model, or a revision of this one, with safetensors files",
        )
    free_bytes = shutil.disk_usage(directory).free
    if num_bytes > free_bytes:
        raise ModelNotFound(
            f"{model_id} needs {num_bytes / 1e9:.1f} GB and {free_bytes / 1e9:.1f} GB are free",
            where=str(directory),
            fix="free some space, or point HF_HOME to a larger disk",
        )


def _page(model_id: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model_id}"


def _not_here(model_id: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"the model {model_id} is not on this machine, and {reason}",
        expected="a local directory, a model in the Hub cache, or `smollm2-135m-instruct`",
        fix=f"with a network: hf download {model_id}",
    )


def _hub_refusal(model_id: str, revision: str | None, error: Exception) -> ModelNotFound:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = _page(model_id)
    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"{model_id} is gated: its owner wants you to accept terms first", where=where,
            fix=f"accept them at {where}, then `hf auth login` (or set HF_TOKEN)",
        )  # fmt: skip
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{model_id} has no revision `{revision}`", where=where)
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"the Hub knows no model {model_id}", where=where, expected="an id like owner/name",
            fix="check the spelling; for a private model `hf auth login` (or set HF_TOKEN)",
        )  # fmt: skip
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _not_here(model_id, f"the download failed ({first_line})")
