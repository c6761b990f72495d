"""Noise on the embeddings while training (NEFTune, Jain et al. 2024): answers get longer and less memorised."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from halo_forge.train.batches import Batch
from halo_forge.train.loss import Objective


def with_noise(objective: Objective, model: PreTrainedModel | PeftModel, alpha: float) -> Objective:
    """The objective with U(-1, 1) * alpha / sqrt(T * D) added to the embeddings of each document of T tokens, width D.

    Only where a gradient is asked for. transformers scales by the padded length of its batch; here T is the document's
    own, which is what the paper's formula says of a row without padding.
    """
    lengths: list[tuple[int, ...]] = []

    def add_noise(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        if not lengths:
            return None
        counts = torch.tensor(lengths[-1])
        # Repeated where the counts are known: a GPU would be waited for to learn their sum.
        scale = (alpha / (counts * output.shape[-1]).sqrt()).repeat_interleave(counts)
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * scale[:, None].to(output.device, output.dtype, non_blocking=True)

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.get_input_embeddings().register_forward_hook(add_noise)  # type: ignore[no-untyped-call]

    def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.is_grad_enabled():
            return objective.nll(batch, weights)
        lengths.append(batch.document_lengths)
        try:
            return objective.nll(batch, weights)
        finally:
            lengths.pop()

    return Objective(nll, objective.refresh)
