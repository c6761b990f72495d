"""A Whisper model in CTranslate2's binary form as a transformers model directory. numpy and struct; no ctranslate2.

The file is one sequence, little-endian: uint32 version (6), the specification's name, uint32 revision, uint32 number of
variables; each variable a name, uint8 rank, uint32 dimensions, uint8 type, uint32 bytes, data; then uint32 aliases as
pairs of names. A name is uint16 length, bytes, the last of which is NUL. Linear layers stand as [out, in] like torch's;
query, key and value of self-attention are one matrix, key and value of cross-attention are one.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from halo_forge.errors import ModelNotFound
from halo_forge.models.inspection import read_json_object

if TYPE_CHECKING:
    import torch

BINARY_VERSION = 6
TYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
MAX_NAME_BYTES, MAX_VARIABLES = 512, 10_000
NUM_TIMESTAMPS = 1501
"""Whisper's tokens for 0.00 to 30.00 seconds in steps of 0.02; they are the last ids of its vocabulary."""
ACTIVATIONS = {0: "relu", 1: "gelu_new", 2: "silu", 3: "gelu"}
LAYER_NORMS = {"gamma": "weight", "beta": "bias"}


def read_variables(parts: Sequence[Path]) -> tuple[str, dict[str, np.ndarray]]:
    """(name of the specification, variables) of a file, or of one that was cut into `parts`.

    Raises ModelNotFound for what is not such a file, is cut short, or holds quantised types that this does not read."""
    where = str(parts[0])
    data = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    try:
        version = _number(data, "I")
        if version != BINARY_VERSION:
            raise ModelNotFound(
                f"version {version} of CTranslate2's format", where=where, expected=f"version {BINARY_VERSION}"
            )
        specification = _name(data)
        _number(data, "I")
        variables = dict(_variable(data) for _ in range(_bounded(_number(data, "I"), MAX_VARIABLES)))
        for _ in range(_bounded(_number(data, "I"), MAX_VARIABLES)):
            alias, target = _name(data), _name(data)
            variables[alias] = variables[target]
    except (struct.error, ValueError, KeyError) as error:
        raise ModelNotFound(
            f"this is not a whole CTranslate2 model: {error}", where=where, fix="install its package again"
        ) from None
    return specification, variables


def _number(data: BinaryIO, kind: str) -> int:
    size = struct.calcsize(kind)
    return int(struct.unpack(f"<{kind}", data.read(size))[0])


def _bounded(number: int, limit: int) -> int:
    if number > limit:
        raise ValueError(f"{number} where at most {limit} can stand")
    return number


def _name(data: BinaryIO) -> str:
    length = _bounded(_number(data, "H"), MAX_NAME_BYTES)
    return data.read(length).rstrip(b"\0").decode("ascii")


def _variable(data: BinaryIO) -> tuple[str, np.ndarray]:
    name = _name(data)
    shape = [_number(data, "I") for _ in range(_bounded(_number(data, "B"), 8))]
    kind = _number(data, "B")
    if kind not in TYPES:
        raise ValueError(f"{name} has type {kind}, which is not read here")
    length = _number(data, "I")
    held = data.read(length)
    if len(held) != length or length != np.dtype(TYPES[kind]).itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{name} is cut short or not of its shape")
    return name, np.frombuffer(held, dtype=TYPES[kind]).reshape(shape)


def convert_whisper(parts: Sequence[Path], settings: Path, directory: Path) -> None:
    """Write the model in `parts`, with config.json and tokenizer.json of the folder `settings`, into `directory`:
    config.json, model.safetensors, generation_config.json, tokenizer files and preprocessor_config.json."""
    from safetensors.torch import save_file

    specification, variables = read_variables(parts)
    if specification != "WhisperSpec":
        raise ModelNotFound(f"the file holds a {specification}", where=str(parts[0]), expected="a Whisper model")
    tokenizer = read_json_object(settings / "tokenizer.json")
    special = {token["content"]: int(token["id"]) for token in tokenizer["added_tokens"]}
    config = _model_config(variables, special)
    save_file(whisper_weights(variables, config), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    said = read_json_object(settings / "config.json")
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", _generation_config(config, special, said))
    _write_json(directory / "tokenizer.json", _with_timestamps(tokenizer, special, config["vocab_size"]))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(special))
    _write_json(directory / "preprocessor_config.json", _feature_config(config["num_mel_bins"]))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_config(variables: dict[str, np.ndarray], special: dict[str, int]) -> dict[str, Any]:
    vocab_size, width = variables["decoder/embeddings/weight"].shape
    blocks = {tuple(name.split("/")[:2]) for name in variables if "/layer_" in name}
    layers = {
        side: sum(of == side and block != "layer_norm" for of, block in blocks) for side in ("encoder", "decoder")
    }
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float32",
        "is_encoder_decoder": True,
        "vocab_size": vocab_size,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "encoder_ffn_dim": variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        "decoder_ffn_dim": variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        "num_hidden_layers": layers["encoder"],
        "max_source_positions": variables["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": variables["decoder/position_encodings/encodings"].shape[0],
        "activation_function": ACTIVATIONS[int(variables["decoder/activation"])],
        "scale_embedding": bool(variables["decoder/scale_embeddings"]),
        "tie_word_embeddings": True,
        "use_cache": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|endoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "decoder_start_token_id": special["<|startoftranscript|>"],
    }


def whisper_weights(variables: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights under transformers' names, float32. Every variable that holds weights is used, or KeyError says which
    was looked for; `proj_out` is the embedding, which the configuration ties."""
    weights = {
        "model.decoder.embed_tokens.weight": variables["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": variables["decoder/position_encodings/encodings"],
        "model.encoder.embed_positions.weight": variables["encoder/position_encodings/encodings"],
    }
    for number in (1, 2):
        for kind in ("weight", "bias"):
            weights[f"model.encoder.conv{number}.{kind}"] = variables[f"encoder/conv{number}/{kind}"]
    for side in ("encoder", "decoder"):
        _add_norm(weights, f"model.{side}.layer_norm", variables, f"{side}/layer_norm")
        for layer in range(config[f"{side}_layers"]):
            here, there = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            _add_self_attention(weights, there, variables, here)
            if side == "decoder":
                _add_cross_attention(weights, there, variables, here)
            _add_norm(weights, f"{there}.final_layer_norm", variables, f"{here}/ffn/layer_norm")
            for number, name in enumerate(("fc1", "fc2")):
                _add_linear(weights, [f"{there}.{name}"], variables, f"{here}/ffn/linear_{number}")
    return {name: _tensor(values) for name, values in weights.items()}


def _tensor(values: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(values, dtype=np.float32))


def _add_self_attention(weights: dict[str, Any], there: str, variables: dict[str, np.ndarray], here: str) -> None:
    _add_norm(weights, f"{there}.self_attn_layer_norm", variables, f"{here}/self_attention/layer_norm")
    three = [f"{there}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    _add_linear(weights, three, variables, f"{here}/self_attention/linear_0")
    _add_linear(weights, [f"{there}.self_attn.out_proj"], variables, f"{here}/self_attention/linear_1")


def _add_cross_attention(weights: dict[str, Any], there: str, variables: dict[str, np.ndarray], here: str) -> None:
    _add_norm(weights, f"{there}.encoder_attn_layer_norm", variables, f"{here}/attention/layer_norm")
    for number, names in enumerate((("q_proj",), ("k_proj", "v_proj"), ("out_proj",))):
        targets = [f"{there}.encoder_attn.{name}" for name in names]
        _add_linear(weights, targets, variables, f"{here}/attention/linear_{number}")


def _add_norm(weights: dict[str, Any], target: str, variables: dict[str, np.ndarray], source: str) -> None:
    for theirs, ours in LAYER_NORMS.items():
        weights[f"{target}.{ours}"] = variables[f"{source}/{theirs}"]


def _add_linear(weights: dict[str, Any], targets: list[str], variables: dict[str, np.ndarray], source: str) -> None:
    """Split what stands fused, in the order of `targets`. Whisper's keys have no bias; the fused one holds zeros."""
    for kind in ("weight", "bias"):
        pieces = np.split(variables[f"{source}/{kind}"], len(targets))
        for target, piece in zip(targets, pieces, strict=True):
            if kind == "bias" and target.endswith(".k_proj"):
                if piece.any():
                    raise ModelNotFound(f"{source} has a bias on its keys, which Whisper's layers do not have")
                continue
            weights[f"{target}.{kind}"] = piece


def _generation_config(config: dict[str, Any], special: dict[str, int], said: dict[str, Any]) -> dict[str, Any]:
    """What `model.generate` of transformers reads; multilingual models name their languages and tasks."""
    found = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "decoder_start_token_id": config["decoder_start_token_id"],
        "max_length": config["max_target_positions"],
        "max_initial_timestamp_index": 50 if is_multilingual(config["vocab_size"]) else 1,
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "prev_sot_token_id": special["<|startofprev|>"],
        "return_timestamps": False,
        "is_multilingual": is_multilingual(config["vocab_size"]),
        "alignment_heads": said["alignment_heads"],
        "suppress_tokens": said["suppress_ids"],
        "begin_suppress_tokens": said["suppress_ids_begin"],
    }
    if found["is_multilingual"]:
        found["lang_to_id"] = {token: number for token, number in special.items() if number in set(said["lang_ids"])}
        found["task_to_id"] = {task: special[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return found


def is_multilingual(vocab_size: int) -> bool:
    """English-only models have one token less (51864)."""
    return vocab_size >= 51865


def _with_timestamps(tokenizer: dict[str, Any], special: dict[str, int], vocab_size: int) -> dict[str, Any]:
    """The tokenizer with the tokens of times by name, as transformers' own copies have them; older files leave the
    last 1,501 ids of the vocabulary without one."""
    first = vocab_size - NUM_TIMESTAMPS
    if first != special["<|notimestamps|>"] + 1:
        raise ModelNotFound(f"the tokenizer does not belong to a vocabulary of {vocab_size} tokens")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    named = [{"id": first + n, "content": f"<|{n * 0.02:.2f}|>", **plain} for n in range(NUM_TIMESTAMPS)]
    have = {token["content"] for token in tokenizer["added_tokens"]}
    return {
        **tokenizer, "added_tokens": [*tokenizer["added_tokens"], *(t for t in named if t["content"] not in have)],
    }  # fmt: skip


def _tokenizer_config(special: dict[str, int]) -> dict[str, Any]:
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end,
        "additional_special_tokens": [token for token in special if token != end],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "errors": "replace",
    }  # fmt: skip


def _feature_config(num_mel_bins: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": num_mel_bins,
        "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400,
        "padding_value": 0.0, "padding_side": "right", "return_attention_mask": False,
    }  # fmt: skip
