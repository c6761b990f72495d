"""Is a model directory safe to open, and whole? Answered from JSON and safetensors headers, before a library reads it.

A model from elsewhere is hostile until shown otherwise: only safetensors weights are opened (a pickle runs code when it
is read), and a configuration that asks for code of its own is refused, whatever else it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from halo_forge.errors import ModelNotFound

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AUDIO_LANGUAGE_MODELS = ("qwen2_audio",)
"""Of the many kinds in transformers' mapping of multimodal models, those that domains/audio opens."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
CONFIG_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json",
    "preprocessor_config.json", ADAPTER_CONFIG,
)  # fmt: skip
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
MAX_CONFIG_BYTES = 32 * 2**20  # chat templates and id maps live here; the largest real ones stay under 2 MB

CODE_KEYS = {
    "auto_map": "it names Python files of the repository to be run",
    "trust_remote_code": "it asks to run code of the repository",
    "_attn_implementation_internal": "through this key a configuration made transformers run Hub code (CVE-2026-4372)",
    "_experts_implementation_internal": "it belongs to transformers' inner state and selects code to run",
}
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_model_directory(directory: Path, *, weights: bool = True) -> None:
    """Raise ModelNotFound unless `directory` holds a model that can be opened without running any of its code.

    weights  False asks only for what a tokenizer needs: no forbidden key, and a tokenizer or a model configuration
    """
    if weights and not (directory / "config.json").is_file():
        raise _no_model_here(directory)
    for name in CONFIG_FILES:
        for folder in (directory, directory / "tokenizer"):
            if (folder / name).is_file():
                refuse_code_keys(folder / name)
    if weights:
        check_weight_files(directory)


def _no_model_here(directory: Path) -> ModelNotFound:
    if (directory / ADAPTER_CONFIG).is_file():
        base = read_json_object(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
        return ModelNotFound(
            "this directory holds an adapter, not a model",
            where=str(directory),
            expected="a directory with config.json and model.safetensors",
            fix=f"give the model it was trained on: {base}" if base else "give the model it was trained on",
        )
    nested = [child.name for child in sorted(directory.iterdir()) if (child / "config.json").is_file()]
    return ModelNotFound(
        "no config.json in this directory",
        where=str(directory),
        expected="a model directory: config.json, model.safetensors, tokenizer.json",
        fix=f"one level down there is one: {directory / nested[0]}" if nested else None,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; anything else is a ModelNotFound that names the file."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelNotFound(
                f"larger than {MAX_CONFIG_BYTES // 2**20} MB", where=str(path), expected="a JSON object"
            )
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelNotFound(f"this is not JSON: {error}", where=str(path), expected="a JSON object") from None
    except OSError as error:
        raise ModelNotFound(f"cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelNotFound(f"a JSON {type(value).__name__}", where=str(path), expected="a JSON object")
    return value


def refuse_code_keys(path: Path) -> None:
    """Raise ModelNotFound where a configuration file asks for code to be run, at any depth."""
    for trail, key, value in _walk(read_json_object(path)):
        reason = CODE_KEYS.get(key)
        # A kernel is named like a Hub repository, an attention of transformers' own never is.
        if key in KERNEL_KEYS and any("/" in str(name) for name in _leaves(value)):
            reason = "it names a repository to take kernels from"
        if reason:
            raise ModelNotFound(
                f"refused: the key `{trail}` is not allowed, because {reason}",
                where=str(path),
                expected="a model of an architecture that transformers has built in",
                fix=f"if it has, copy the model and remove `{trail}` from {path.name}; halo-forge never runs such code",
            )


def _walk(value: Any, trail: str = "") -> Iterator[tuple[str, str, Any]]:
    pending = [(trail, value)]
    while pending:
        where, node = pending.pop()
        if isinstance(node, dict):
            for key, child in node.items():
                path = f"{where}.{key}" if where else key
                yield path, key, child
                pending.append((path, child))
        elif isinstance(node, list):
            pending.extend((f"{where}[{index}]", child) for index, child in enumerate(node))


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, dict | list):
        yield value
    for _, _, child in _walk({"": value}):
        if not isinstance(child, dict | list):
            yield child


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model; raises ModelNotFound when there are none or one is missing."""
    if (directory / INDEX_FILE).is_file():
        index = directory / INDEX_FILE
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelNotFound("the index lists no weights", where=str(index), expected="a `weight_map` object")
        shards = sorted(set(map(str, weight_map.values())))
        outside = [name for name in shards if Path(name).name != name or name in ("", ".", "..")]
        if outside:
            raise ModelNotFound(
                f"refused: the index points outside its directory ({outside[0]})", where=str(index),
                expected="names of files beside the index",
            )  # fmt: skip
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise ModelNotFound(
                f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing[:3])}",
                where=str(directory),
                fix="copy or download the model again",
            )
        return [directory / name for name in shards]
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelNotFound(
            f"refused: the weights are only here as {pickles[0]}, a format that can run code when it is read",
            where=str(directory),
            expected=SINGLE_FILE,
            fix="take a safetensors revision of the model, or convert it on a machine that holds nothing of value",
        )
    raise ModelNotFound("no weights in this directory", where=str(directory), expected=SINGLE_FILE)


def check_weight_files(directory: Path) -> None:
    """Read the header of every weight file: a truncated, empty or foreign one raises ModelNotFound that names it."""
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                empty = not list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelNotFound(
                _damage(path, str(error)), where=str(path), fix="copy or download the model again"
            ) from None
        if empty:
            raise ModelNotFound("this file holds no tensors", where=str(path), fix="copy or download the model again")


def _damage(path: Path, reason: str) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not the weights: `git lfs pull` brings them"
    return f"damaged weights ({reason})"


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in TOKENIZER_FILES)
