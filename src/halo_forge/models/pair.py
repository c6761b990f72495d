"""The base model and the tuned one, to be asked the same questions: from the files that a run left, not from memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from halo_forge.artifacts import Method
from halo_forge.models.adapters import base_model_view
from halo_forge.models.bottleneck import attach_bottlenecks
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_model
from halo_forge.models.new_tokens import add_rows
from halo_forge.models.quantised import to_compute_type
from halo_forge.models.save import attach_adapter
from halo_forge.runs import Notify, silent


class ModelPair:
    """One of the two at a time, in eval mode, in the run's compute type on its device.

    An adapter is one model with the adapter off and on; two full models are loaded one after the other, so that never
    both are in memory. After qlora both are in 4 bits, as they were trained. `new_token_ids`: rows that the base is
    given for new tokens, untrained.
    """

    def __init__(
        self,
        base_name: str,
        revision: str | None,
        final_model: Path,
        method: Method,
        compute: Compute,
        notify: Notify = silent,
        new_token_ids: Sequence[int] = (),
    ) -> None:
        self.base_name, self.revision, self.final_model = base_name, revision, final_model
        self.method, self.compute, self.notify = method, compute, notify
        self.new_token_ids = new_token_ids
        self._adapted: PreTrainedModel | PeftModel | None = None

    @contextmanager
    def base(self) -> Iterator[PreTrainedModel | PeftModel]:
        if self.method != "full":
            adapted = self._with_adapter()
            with base_model_view(adapted):
                yield adapted
            return
        yield from self._loaded(self.base_name, self.revision)

    @contextmanager
    def tuned(self) -> Iterator[PreTrainedModel | PeftModel]:
        if self.method != "full":
            yield self._with_adapter()
            return
        yield from self._loaded(str(self.final_model), None)

    def close(self) -> None:
        self._adapted = None
        gc.collect()

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.compute.precision == "bfloat16" else torch.float32

    def _with_adapter(self) -> PreTrainedModel | PeftModel:
        if self._adapted is None:
            model = self._load(self.base_name, self.revision)
            attach = attach_bottlenecks if self.method == "adapter" else attach_adapter
            adapted = attach(model, self.final_model)
            to_compute_type(adapted, self.dtype)
            self._adapted = adapted.eval()
        return self._adapted

    def _loaded(self, name: str, revision: str | None) -> Iterator[PreTrainedModel]:
        model = self._load(name, revision)
        if name == self.base_name:
            add_rows(model, self.new_token_ids)
        try:
            yield model
        finally:
            del model
            gc.collect()

    def _load(self, name: str, revision: str | None) -> PreTrainedModel:
        return load_model(
            name,
            dtype=self.dtype,
            device=self.compute.device,
            revision=revision,
            attn_implementation="sdpa",
            in_4_bits=self.method == "qlora",
            notify=self.notify,
        )
