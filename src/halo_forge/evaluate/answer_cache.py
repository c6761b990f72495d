"""Work that is kept: each answer and each likelihood as soon as it is known, so that nothing is computed twice.

One append-only JSONL file per (weights, decoding, code). A line is {"key", "token_ids", "stopped"} or
{"key", "nll_sum"}, with "kl_sum" for a general text; the key is a hash of everything the result depends on beside what
the file is named after. The base's files lie in a directory that all runs share, so several processes may write to one
at the same time: each result is one write to the end of the file, between line breaks of its own, so that neither
another writer nor the torn line of a killed one or a power cut can damage it. What is torn is skipped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from halo_forge.chat.records import Example
from halo_forge.domains import domain_that_reads
from halo_forge.models.forward import language_model
from halo_forge.models.generate import Prompt
from halo_forge.runs import cache_directory, library_versions, sha256_bytes, sha256_file, sha256_json

VALUES_PER_TENSOR = 1024
DECISIVE_LIBRARIES = ("torch", "transformers", "peft")
DECISIVE_FILES = (
    "models/generate.py", "models/kv_cache.py", "models/forward.py", "evaluate/heldout.py",
    "evaluate/answer_cache.py", "evaluate/retention.py", "models/fast/generation.py", "models/fast/scoring.py",
    "models/fast/decoder.py", "models/fast/attention.py", "models/sampling.py", "models/shared_prefix.py",
    "evaluate/bench/own_model.py", "domains/documents.py", "domains/vlm/answers.py", "domains/vlm/eyes.py",
    "domains/vlm/forward.py", "domains/audio/attention.py", "domains/audio/decoding.py",
    "domains/audio/features.py", "domains/audio/listener.py", "domains/audio/whisper.py", "media/images.py",
    "media/sounds.py",
)  # fmt: skip
"""Files whose change makes kept results worthless."""


ADAPTER_MARKS = ("lora_", "bottleneck_adapter", "trainable_tokens_delta", ".modules_to_save.")
"""Parts of the names of weights that are switched off when the base answers."""
WRAPPERS = (".base_layer", ".original_module", ".token_adapter")
"""Parts that adapters put into the names of the base's own weights."""


MAX_SHARED_MODELS = 24
"""Base models, each with one decoding and code, whose results stay; the one used longest ago goes first."""


def shared_directory(otherwise: Path) -> Path:
    """Where all runs keep what base models said: $HALO_FORGE_EVALUATIONS, or `evaluations` in the cache. `otherwise`
    where that cannot be written."""
    named = os.environ.get("HALO_FORGE_EVALUATIONS")
    directory = Path(named).expanduser() if named else cache_directory() / "evaluations"
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # permissions do not tell of a read-only disk
            return directory
    return otherwise


def forget_oldest(directory: Path, used: Iterable[Path]) -> None:
    """Leave the MAX_SHARED_MODELS files that were used last, `used` among them. Another process may do the same."""
    for path in used:
        with suppress(OSError):
            os.utime(path)
    ages = []
    for path in directory.glob("*.jsonl"):
        with suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[MAX_SHARED_MODELS:]:
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)


class AnswerCache:
    """Results of one model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = _read_results(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: each result is one write, and the system puts it at the end whoever else writes.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - held until close()

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

    def likelihood(self, key: str) -> tuple[float, bool] | None:
        """(log-likelihood in nats, was it greedy) of a continuation."""
        result = self._results.get(key)
        return None if result is None or "is_greedy" not in result else (result["log_likelihood"], result["is_greedy"])

    def keep(self, key: str, **result: Any) -> None:
        self._results[key] = result
        line = f"\n{json.dumps({'key': key, **result})}\n".encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


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
    seen = [medium.sha256 for medium in prompt.media]
    return sha256_json([list(prompt.token_ids), sorted(prompt.stop_token_ids), *([seen] if seen else [])])


def example_key(example: Example) -> str:
    seen = "".join(medium.sha256 for medium in example.media).encode()
    return sha256_bytes(example.input_ids.tobytes() + (example.loss_weights > 0).tobytes() + seen)


def cache_name(model: torch.nn.Module, settings: dict[str, Any], *, adapters: bool) -> str:
    """File name for the results of this model: weights, settings, and the code and libraries that compute them."""
    here = Path(__file__).parents[1]
    versions = library_versions()
    return sha256_json(
        {
            "weights": weights_fingerprint(model, adapters=adapters),
            "settings": settings,
            "libraries": {name: versions.get(name) for name in DECISIVE_LIBRARIES},
            "code": {name: sha256_file(here / name) for name in DECISIVE_FILES} | _code_of_package(model),
        }
    )[:32] + ".jsonl"  # fmt: skip


def _code_of_package(model: torch.nn.Module) -> dict[str, str]:
    """The module that opens this type of model, where an installed package's domain does and none of ours."""
    domain = domain_that_reads(str(language_model(model).config.model_type))
    module = domain.opens.partition(":")[0] if domain is not None else ""
    if not module or module.split(".")[0] == "halo_forge":
        return {}
    found = find_spec(module)
    return {module: sha256_file(Path(found.origin))} if found is not None and found.origin else {}


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
