"""Models: find, load, adapt and save them.

    resolve.py     a name becomes a local directory            hub.py        the Hub and its cache
    inspection.py  is this directory safe and complete         embedded.py   the default that needs no Hub
    load.py        tokenizer and weights into memory           adapters.py   LoRA and its kinds on top
    save.py        final_model/ that anybody can load          precision.py  device, bf16 or fp32, platform rules
    bottleneck.py  bottleneck adapters behind each layer       quantised.py  a base in 4 bits
    partial.py     some of the model's own weights             new_tokens.py tokens and rows that the base has not
    generate.py    answers, batched (kv_cache.py, sampling.py, shared_prefix.py: what prompts begin with is read once)
    forward.py     a model called with padded rows

`resolve`, `hub` and `inspection` import neither torch nor transformers, so that a wrong name fails in a moment; the
names below load their module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# public name -> the module here that defines it
_PUBLIC = {
    "resolve_model": "resolve",
    "load_model": "load",
    "load_tokenizer": "load",
    "tokenizer_of": "new_tokens",
    "add_lora": "adapters",
    "base_model_view": "adapters",
    "linear_module_names": "adapters",
    "load_trainable_state": "adapters",
    "trainable_state": "adapters",
    "attach_adapter": "save",
    "load_trained": "save",
    "merge_adapter": "save",
    "save_final": "save",
    "weights_sha256": "save",
    "apply_platform_settings": "precision",
    "choose_device": "precision",
    "choose_precision": "precision",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'halo_forge.models' has no attribute {name!r}")
    return getattr(import_module(f"halo_forge.models.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
