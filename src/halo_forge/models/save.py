"""final_model/: what a run leaves behind, loadable by plain transformers and peft without halo-forge.

    adapter:  adapter_config.json  adapter_model.safetensors      full:  config.json  model.safetensors
              (bottlenecks: bottleneck_config.json  bottleneck.safetensors, which load_trained alone reads)
    both:     generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja  tokenizer/ (the same)

Written beside its place, read back and compared tensor by tensor, and only then moved there.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.errors import CheckpointError, ModelNotFound, TrainingError, UsageError
from halo_forge.models import inspection
from halo_forge.models.bottleneck import (
    BOTTLENECK_CONFIG,
    BOTTLENECK_WEIGHTS,
    attach_bottlenecks,
    has_bottlenecks,
    save_bottlenecks,
)
from halo_forge.models.load import load_model
from halo_forge.models.new_tokens import add_rows
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.resolve import resolve_model
from halo_forge.models.weights import storage_errors
from halo_forge.runs import Notify, fsync_directory, sha256_tree, silent, write_json

Model = PreTrainedModel | PeftModel


def save_final(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    base_name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    stop_token_ids: Sequence[int] = (),
) -> Path:
    """Write the adapter of a peft model, or the whole of any other, with its tokenizer; returns `directory`.

    base_name, revision  the model that was trained on, as the configuration names it. The adapter keeps a Hub id with
                         its commit, or an absolute path, so that plain peft finds it.
    dtype                of a full model's weights; default: that of the base model's files
    stop_token_ids       what ends an answer, beside the end tokens of the base model and the tokenizer
    A directory that is already there is replaced in one step. Raises TrainingError when what was written does not read
    back the same.
    """
    directory = Path(directory)
    base = resolve_model(base_name, revision)
    with _staged(directory) as staging:
        if isinstance(model, PeftModel):
            written = _write_adapter(model, staging, base)
        elif has_bottlenecks(model):
            written = save_bottlenecks(model, staging, base_reference(base))
        else:
            written = _write_model(model, staging, base, dtype or stored_dtype(base))
        _write_tokenizer(tokenizer, staging)
        write_json(staging / "generation_config.json", _generation_config(base, tokenizer, stop_token_ids))
        _verify(staging, written, tokenizer)
    return directory


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `directory` when the block ends without an error."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    replaced = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    for left_over in (staging, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    staging.mkdir()
    try:
        with storage_errors(staging):
            yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            else:
                fsync_directory(path)
        fsync_directory(staging)
        if directory.exists():
            os.replace(directory, replaced)
        os.replace(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_directory(directory.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_adapter(model: PeftModel, directory: Path, base: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        plain = tensor.detach().to("cpu").contiguous()
        # Tied modules trained whole are one storage: peft reads both names, safetensors writes no storage twice.
        tensors[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    save_file(tensors, directory / inspection.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config: PeftConfig = deepcopy(model.peft_config[model.active_adapter])
    config.base_model_name_or_path, config.revision = base_reference(base)
    config.inference_mode = True
    config.save_pretrained(str(directory))
    # peft writes the set of target names in the order of this process's hash seed.
    path = directory / inspection.ADAPTER_CONFIG
    values = inspection.read_json_object(path)
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    write_json(path, values)
    return tensors


def base_reference(directory: Path) -> tuple[str, str | None]:
    """How another program finds this model: (Hub id, commit) for a directory of the Hub cache, else (path, None)."""
    cache = Path(constants.HF_HUB_CACHE).resolve()
    if directory.parent.name == "snapshots" and directory.resolve().is_relative_to(cache):
        repository = directory.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return repository, directory.name
    return str(directory.resolve()), None


def stored_dtype(directory: Path) -> torch.dtype:
    """The type most of a model's weights are stored in."""
    counts: dict[torch.dtype, int] = {}
    for path in inspection.weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.float32)
                counts[dtype] = counts.get(dtype, 0) + int(torch.Size(part.get_shape()).numel())
    return max(counts, key=lambda dtype: counts[dtype])


_SAFETENSORS_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def _write_model(model: PreTrainedModel, directory: Path, base: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    converted: dict[int, torch.Tensor] = {}

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        # Tied weights are one storage; they must stay one, or the file would hold them twice.
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        key = tensor.data_ptr()
        return converted.setdefault(key, tensor.detach().to(dtype))

    state = {name: convert(tensor) for name, tensor in model.state_dict().items()}
    with quiet_transformers():
        model.save_pretrained(directory, state_dict=dict(state))  # it empties what it is given
    config = inspection.read_json_object(directory / "config.json")
    config["dtype"] = str(dtype).removeprefix("torch.")
    # Training switches the key-value cache off; whoever generates with the saved model wants what its base had.
    config["use_cache"] = inspection.read_json_object(base / "config.json").get("use_cache", True)
    write_json(directory / "config.json", config)
    return state


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    # Padding and truncation are left in a tokenizer by its last call and would be saved with it.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    with quiet_transformers():
        tokenizer.save_pretrained(directory)
        tokenizer.save_pretrained(directory / "tokenizer")


def _generation_config(base: Path, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int]) -> dict[str, Any]:
    """The base model's own generation settings, with every token that ends an answer."""
    path = base / "generation_config.json"
    settings = inspection.read_json_object(path) if path.is_file() else {}
    settings = {name: value for name, value in settings.items() if name not in ("_from_model_config",)}
    known = settings.get("eos_token_id")
    ends = [*stop_token_ids, tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    unique = list(dict.fromkeys(int(token) for token in ends if token is not None))
    if unique:
        settings["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    if settings.get("pad_token_id") is None and tokenizer.pad_token_id is not None:
        settings["pad_token_id"] = tokenizer.pad_token_id
    return settings


def _verify(directory: Path, written: Mapping[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> None:
    """Read everything back. An empty adapter file (transformers #41416) or a lost weight is found here."""
    adapters = [directory / name for name in (inspection.ADAPTER_WEIGHTS, BOTTLENECK_WEIGHTS)]
    files = [path for path in adapters if path.is_file()] or inspection.weight_files(directory)
    found = 0
    by_ending: dict[str, list[str]] = defaultdict(list)
    for name in written:
        by_ending[_ending(name)].append(name)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found += 1
                own = _own_name(name, by_ending)
                if own is None or not torch.equal(file.get_tensor(name), written[own].cpu()):
                    raise _not_the_same(path, f"{name} does not read back as it was written")
    unique = len({tensor.data_ptr() for tensor in written.values()})
    if not found or found < unique:
        raise _not_the_same(directory, f"{found} of {unique} weights were written")
    with quiet_transformers():
        again = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    probe = "Check: 12 ünïcode\n\n\tdef f(x): return {'a': [1, 2.5]}  " + "".join(tokenizer.all_special_tokens)
    if (
        again.get_vocab() != tokenizer.get_vocab()
        or again.chat_template != tokenizer.chat_template
        or again(probe)["input_ids"] != tokenizer(probe)["input_ids"]
    ):
        raise _not_the_same(directory, "the tokenizer does not read back as it was")


def _own_name(name: str, by_ending: Mapping[str, Sequence[str]]) -> str | None:
    """The weight in memory that a file calls so. transformers writes some families under older names: what is
    `model.language_model.layers.0...` in memory is `language_model.model.layers.0...` in a LLaVA's file."""
    candidates = by_ending.get(_ending(name), ())
    if name in candidates:
        return name
    parts = name.split(".")[::-1]

    def likeness(other: str) -> tuple[int, int]:
        """The longer the common ending the likelier; then, the more parts both have: a tower has layers, too."""
        others = other.split(".")[::-1]
        pairs = zip(parts, others, strict=False)
        return next((count for count, (a, b) in enumerate(pairs) if a != b), len(parts)), len({*parts} & {*others})

    return max(candidates, key=likeness, default=None)


def _ending(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _not_the_same(where: Path, what: str) -> TrainingError:
    return TrainingError(
        f"the finished model was not saved faithfully: {what}", where=str(where),
        expected="files that read back bit for bit", fix="check the disk, then run the same command: it resumes",
    )  # fmt: skip


def load_trained(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    attn_implementation: str = "eager",
    notify: Notify = silent,
) -> Model:
    """The model of a `final_model/`, in eval mode: base and adapter (not merged), or the full model.

    Raises ModelNotFound when the base model of an adapter is not there, CheckpointError when the adapter does not fit.
    """
    directory = Path(directory)
    config_name = next((n for n in (inspection.ADAPTER_CONFIG, BOTTLENECK_CONFIG) if (directory / n).is_file()), None)
    if config_name is None:
        return load_model(
            str(directory), dtype=dtype, device=device, attn_implementation=attn_implementation, notify=notify
        )
    name, revision = _base_of(directory / config_name)
    base = load_model(
        name, revision=revision, dtype=dtype, device=device, attn_implementation=attn_implementation, notify=notify
    )
    return attach_bottlenecks(base, directory) if config_name == BOTTLENECK_CONFIG else attach_adapter(base, directory)


def _base_of(path: Path) -> tuple[str, str | None]:
    inspection.refuse_code_keys(path)
    config = inspection.read_json_object(path)
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelNotFound(
            "the adapter does not say which model it belongs to", where=str(path),
            expected="base_model_name_or_path",
        )  # fmt: skip
    return name, config.get("revision")


def attach_adapter(base: PreTrainedModel, directory: Path) -> PeftModel:
    """Put a saved adapter on `base` (frozen, eval mode); new tokens that it trained get their rows in `base` first.
    Raises CheckpointError if it does not fit or is not whole."""
    path = Path(directory) / inspection.ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"no {path.name} here", where=str(directory), expected="a saved adapter in safetensors")
    add_rows(base, _token_ids(Path(directory)))
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error, below
            model = PeftModel.from_pretrained(base, str(directory), is_trainable=False, torch_device=str(base.device))
    except Exception as error:  # peft and safetensors raise many kinds for a file that is not what it should be
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the adapter does not fit its model: {reason}", where=str(path)) from None
    wanted = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    if stored != wanted:
        lost = sorted(set(wanted) - set(stored))
        raise CheckpointError(
            f"the adapter file holds {len(stored)} of the {len(wanted)} weights its configuration asks for",
            where=str(path),
            expected=f"also {lost[0]}" if lost else "no others",
        )
    return model.eval()


def _token_ids(directory: Path) -> list[int]:
    """Rows of the embeddings that an adapter was given for new tokens."""
    indices = inspection.read_json_object(directory / inspection.ADAPTER_CONFIG).get("trainable_token_indices")
    rows = next(iter(indices.values()), []) if isinstance(indices, dict) else indices or []
    return [int(row) for row in rows]


def merge_adapter(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """`base` with the adapter of `directory` folded into its weights.

    Computed in float32, because folding into bfloat16 weights rounds small updates away (peft #2321); raises
    ValueError when `base` is not loaded in float32. An adapter that was trained over 4 bits is folded into the
    unquantised base, and answers then as it does over that one.
    Raises UsageError for bottleneck adapters, which no weights of the base can stand for.
    """
    if (Path(directory) / BOTTLENECK_CONFIG).is_file():
        raise UsageError(
            "bottleneck adapters cannot be merged: their non-linearity has no place in the base model's weights",
            where=str(directory),
            fix="load base and adapter together with halo_forge.models.load_trained, or train with method lora",
        )
    if base.dtype != torch.float32:
        raise ValueError(f"merge into a float32 base, not {base.dtype}")
    merged: PreTrainedModel = attach_adapter(base, directory).merge_and_unload(safe_merge=True)
    return merged.eval()


def weights_sha256(directory: Path) -> str:
    """One hash over name and content of every safetensors file of a `final_model/`, adapter or full."""
    return sha256_tree(Path(directory), [path.name for path in Path(directory).glob("*.safetensors")])


def read_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json of a model directory, or {}."""
    path = Path(directory) / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
