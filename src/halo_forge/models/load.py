"""Tokenizer and weights into memory, from any name `resolve_model` understands. Silent: what a library would print
about a load (missing weights, foreign keys, a slow tokenizer) is an error or a note here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from halo_forge.errors import ModelNotFound, OutOfMemory
from halo_forge.models import inspection
from halo_forge.models.quantised import keep_weights_as_loaded, nf4_config
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.resolve import resolve_model
from halo_forge.runs import Notify, silent

__all__ = ["load_model", "load_tokenizer", "resolve_model"]


def load_tokenizer(name: str, revision: str | None = None, *, notify: Notify = silent) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or of a trained `final_model/`. Downloads no weights.

    Raises ModelNotFound when there is none, when it has no offsets (a "slow" one: the loss mask is made from them), or
    when it makes ids that the model has no embedding for.
    """
    directory = resolve_model(name, revision, weights=False, notify=notify)
    source = directory
    if not inspection.has_tokenizer(directory) and inspection.has_tokenizer(directory / "tokenizer"):
        source = directory / "tokenizer"
    if not inspection.has_tokenizer(source):
        raise ModelNotFound(
            "no tokenizer in this directory", where=str(directory), expected="tokenizer.json and tokenizer_config.json",
            fix="copy the tokenizer files of the model there",
        )  # fmt: skip
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the file is a stranger's: tokenizers raises bare Exception, transformers anything
        raise ModelNotFound(
            f"the tokenizer cannot be read: {_first_line(error)}", where=str(source), fix="copy or download it again"
        ) from None
    if not tokenizer.is_fast:
        raise ModelNotFound(
            f"{type(tokenizer).__name__} gives no character offsets, and the loss mask is made from them",
            where=str(source),
            expected="a tokenizer.json",
        )
    _check_vocabulary(tokenizer, directory)
    return tokenizer


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    if not (directory / "config.json").is_file():
        return
    config = inspection.read_json_object(directory / "config.json")
    text = config.get("text_config")
    num_embeddings = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(num_embeddings, int) and highest >= num_embeddings:
        raise ModelNotFound(
            f"the tokenizer makes ids up to {highest}, the model has embeddings for {num_embeddings}",
            where=str(directory),
            expected="the tokenizer that belongs to the model",
        )


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    attn_implementation: str = "eager",
    in_4_bits: bool = False,
    notify: Notify = silent,
) -> PreTrainedModel:
    """A causal language model, one that also sees, or one that hears, with its weights in `dtype` on `device`, in eval
    mode.

    attn_implementation  a name registered in transformers' attention interface
    in_4_bits            linear layers (but the output) as nf4, through bitsandbytes; all other weights in `dtype`
    Raises ModelNotFound when weights are missing, of another shape or not finite; OutOfMemory when they do not fit.
    """
    directory = resolve_model(name, revision, notify=notify)
    device = torch.device(device)
    placement: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    if in_4_bits:
        placement["quantization_config"] = nf4_config(dtype)
    try:
        with quiet_transformers():
            loaded: Any = model_class(directory).from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported instead of raised without a name: `_check_report` raises
                output_loading_info=True,
                **placement,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemory(
            f"the weights of {name} do not fit into the memory of {device}",
            expected=f"about {_num_bytes(directory, dtype) / 1e9:.1f} GB for the weights alone",
            fix="take a smaller model, or training.bf16: true",
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelNotFound(f"the model cannot be loaded: {_first_line(error)}", where=str(directory)) from None
    model: PreTrainedModel = loaded[0]  # in eval mode, as from_pretrained leaves it
    _check_report(loaded[1], directory, notify)
    _check_finite(model, directory)
    if device.type == "cpu" and dtype == _stored_dtype(directory):
        own_weights(model)
    keep_weights_as_loaded(model)
    return model


def own_weights(model: PreTrainedModel) -> None:
    """Copy weights that are pages of the mapped file, as those are that keep the file's type. Such a file takes memory
    in full for as long as one weight lies in it, also for those that were replaced; and where another program shortens
    it, the process dies."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def model_class(directory: Path) -> Any:
    """The class of transformers that loads a directory's model: by what its configuration says it reads.

    Raises ModelNotFound for one that is not understood or is of another kind."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    )

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(
            f"config.json is not understood: {_first_line(error)}", where=str(directory / "config.json"),
            expected="an architecture that the installed transformers has built in", fix="pip install -U transformers",
        ) from None  # fmt: skip
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return AutoModelForSpeechSeq2Seq
    if config.model_type in inspection.AUDIO_LANGUAGE_MODELS:
        return AutoModelForMultimodalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config"):
        return AutoModelForImageTextToText
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelNotFound(
            f"`{config.model_type}` is not a causal language model", where=str(directory / "config.json"),
            expected="a model that continues text (AutoModelForCausalLM), also one that sees or hears",
        )  # fmt: skip
    return AutoModelForCausalLM


def _check_report(report: dict[str, Any], directory: Path, notify: Notify) -> None:
    missing = sorted(map(str, report.get("missing_keys", ())))
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    unexpected = sorted(map(str, report.get("unexpected_keys", ())))
    if missing or mismatched:
        kind, names = ("missing", missing) if missing else ("of another shape than config.json says", mismatched)
        raise ModelNotFound(
            f"{len(names)} weights are {kind}: {', '.join(names[:3])}",
            where=str(directory),
            expected="every weight of the architecture (a missing one would start out random)",
            fix="copy or download the model again",
        )
    if unexpected:
        notify("note", {"text": f"{len(unexpected)} weights are not used by this architecture: {unexpected[0]}, ..."})


def _check_finite(model: PreTrainedModel, directory: Path) -> None:
    """One pass over the weights (memory speed): a NaN here would surface as a lost run much later."""
    for name, parameter in model.named_parameters():
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelNotFound(
                f"the weight {name} holds values that are not finite", where=str(directory),
                fix="copy or download the model again",
            )  # fmt: skip


def _stored_dtype(directory: Path) -> torch.dtype | None:
    with safe_open(inspection.weight_files(directory)[0], framework="pt") as file:
        name = next(iter(file.keys()), None)
        return file.get_tensor(name).dtype if name is not None else None


def _num_bytes(directory: Path, dtype: torch.dtype) -> int:
    stored = sum(path.stat().st_size for path in inspection.weight_files(directory))
    config_dtype = inspection.read_json_object(directory / "config.json").get("dtype", "bfloat16")
    stored_itemsize = 4 if config_dtype == "float32" else 2
    return stored * dtype.itemsize // stored_itemsize


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
