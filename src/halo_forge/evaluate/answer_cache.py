"""Work that is kept: each answer and each likelihood as soon as it is known, so that nothing is computed twice.

One append-only JSONL file per (weights, decoding, code). A line is {"key", "token_ids", "stopped"} or
{"key", "nll_sum"}, with "kl_sum" for a general text; the key is a hash of everything the result depends on beside what
the file is named after. A torn line, as a power cut leaves it, is skipped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from halo_forge.chat.records import Example
from halo_forge.models.forward import language_model
from halo_forge.models.generate import Prompt
from halo_forge.runs import library_versions, sha256_bytes, sha256_file, sha256_json

VALUES_PER_TENSOR = 1024
DECISIVE_LIBRARIES = ("torch", "transformers", "peft")
DECISIVE_FILES = (
    "models/generate.py", "models/kv_cache.py", "models/forward.py", "evaluate/heldout.py", "evaluate/answer_cache.py",
    "evaluate/retention.py",
)  # fmt: skip
"""Files whose change makes kept results worthless."""


ADAPTER_MARKS = ("lora_", "bottleneck_adapter", "trainable_tokens_delta", ".modules_to_save.")
"""Parts of the names of weights that are switched off when the base answers."""
WRAPPERS = (".base_layer", ".original_module", ".token_adapter")
"""Parts that adapters put into the names of the base's own weights."""


class AnswerCache:
    """Results of one model. Opened once per evaluation, by the holder of the run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = _read_results(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held until close()
        if is_torn:
            self._file.write("\n")

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def answer(self, key: str) -> tuple[list[int], bool] | None:
        """(token ids without the stop token, stopped)."""
        result = self._results.get(key)
        return None if result is None or "token_ids" not in result else (result["token_ids"], result["stopped"])

    def nll_sum(self, key: str) -> float | None:
        result = self._results.get(key)
        return None if result is None or "nll_sum" not in result else float(result["nll_sum"])

    def retention(self, key: str) -> tuple[float, float] | None:
        """(nll sum, KL sum) of a general text."""
        result = self._results.get(key)
        return None if result is None or "kl_sum" not in result else (float(result["nll_sum"]), float(result["kl_sum"]))

    def keep(self, key: str, **result: Any) -> None:
        self._results[key] = result
        self._file.write(json.dumps({"key": key, **result}) + "\n")
        self._file.flush()


def _read_results(path: Path) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return results
    for line in path.read_bytes().splitlines():
        try:
            result = json.loads(line)
            results[result.pop("key")] = result
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return results


def prompt_key(prompt: Prompt) -> str:
    return sha256_json([list(prompt.token_ids), sorted(prompt.stop_token_ids)])


def example_key(example: Example) -> str:
    return sha256_bytes(example.input_ids.tobytes() + (example.loss_weights > 0).tobytes())


def cache_name(model: torch.nn.Module, settings: dict[str, Any], *, adapters: bool) -> str:
    """File name for the results of this model: weights, settings, and the code and libraries that compute them."""
    here = Path(__file__).parents[1]
    versions = library_versions()
    return sha256_json(
        {
            "weights": weights_fingerprint(model, adapters=adapters),
            "settings": settings,
            "libraries": {name: versions.get(name) for name in DECISIVE_LIBRARIES},
            "code": {name: sha256_file(here / name) for name in DECISIVE_FILES},
        }
    )[:32] + ".jsonl"  # fmt: skip


def weights_fingerprint(model: torch.nn.Module, *, adapters: bool) -> str:
    """Hash over the name, shape, type and some thousand evenly spaced values of every parameter.

    Not a proof against forgery, which record hashes are for; it tells models apart however they were named, in a
    fraction of a second. adapters False leaves the weights of every kind of adapter out: the model as it is with its
    adapter off, which is the same as the model that never had one.
    """
    digest = hashlib.sha256(str(language_model(model).config.model_type).encode())
    for name, parameter in sorted(language_model(model).named_parameters(), key=lambda named: named[0]):
        if not adapters and any(mark in name for mark in ADAPTER_MARKS):
            continue
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // VALUES_PER_TENSOR)]
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()
