"""The fast layers through torch's compiler: the parts between two attentions, one code for all layers.

Axes: N tokens of a row, D width.

Only the repeated layer is compiled, and only once: the token axis is marked dynamic, weights come in as arguments.
Attention stays outside (the kernels are compiled already), so that no change of documents compiles anything again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from halo_forge.models.fast.attention import document_blocks
from halo_forge.models.fast.decoder import EAGER, FastDecoder, Regions, after_attention, before_attention
from halo_forge.models.fast.head import Targets, one_target_each_to_gradient
from halo_forge.models.fast.kernels import rotated_heads
from halo_forge.models.fast.row import PackedRow


@cache
def compiled_regions() -> Regions:
    return Regions(
        before=_over_tokens(before_attention),
        after=_over_tokens(after_attention),
        rotated=_over_tokens(rotated_heads),
        row_gradient=_over_tokens(one_target_each_to_gradient),
    )


def _over_tokens(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function)

    def call(*arguments: Any) -> Any:
        for tensor in tree_leaves(arguments):
            if isinstance(tensor, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*arguments)

    return call


def compile_layers(decoder: FastDecoder, documents: Sequence[torch.Tensor], device: torch.device) -> str | None:
    """Let the decoder run compiled from now on. Where that fails, or gives another loss or gradient on `documents`
    (ids [T] each), it is left as it was, and the reason comes back."""
    dropouts = [projection.dropout for projection in decoder.projections()]
    try:
        for projection in decoder.projections():
            projection.dropout = 0.0
        expected = _loss_and_norm(decoder, documents, device)
        decoder.regions = compiled_regions()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, about its own insides
            found = _loss_and_norm(decoder, documents, device)
        tolerance = 0.02 if decoder.heads.dtype == torch.bfloat16 else 1e-4
        if any(abs(one - other) > tolerance * max(1.0, abs(other)) for one, other in zip(found, expected, strict=True)):
            decoder.regions = EAGER
            return f"loss and gradient norm are {found} and not {expected}"
        for projection, dropout in zip(decoder.projections(), dropouts, strict=True):
            projection.dropout = dropout
        if any(dropouts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _loss_and_norm(decoder, documents, device)  # what cannot be compiled shall fail here
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError, AssertionError) as error:
        decoder.regions = EAGER
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    finally:
        for projection, dropout in zip(decoder.projections(), dropouts, strict=True):
            projection.dropout = dropout
    return None


def _loss_and_norm(
    decoder: FastDecoder, documents: Sequence[torch.Tensor], device: torch.device
) -> tuple[float, float]:
    """(mean nll of every token but the first, norm of its gradient) of documents in one row."""
    decoder.refresh()
    lengths = [len(document) for document in documents]
    ids = torch.cat(list(documents)).to(device)
    places = torch.cat([torch.arange(length, device=device) for length in lengths])
    keep = torch.arange(len(ids) - 1, device=device)
    weights = torch.full((len(ids) - 1,), 1 / (len(ids) - 1), device=device)
    row = PackedRow.of_documents(lengths, document_blocks(lengths), device)
    trained = [p for projection in decoder.projections() for p in (*projection.masters, *projection.adapters)]
    trained = [parameter for parameter in trained if parameter.requires_grad]
    with torch.enable_grad():
        loss, _ = decoder.nll(ids, places, row, keep, Targets(keep, ids[1:], weights, one_each=True))
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return float(loss.detach()), float(norm)
