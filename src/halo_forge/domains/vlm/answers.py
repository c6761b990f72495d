"""Greedy answers to questions about images.

Axes: B rows of the batch, L columns of a prefill.

Prompts with images are read with the images' features among their embeddings; from there on an answer is tokens like
any other, so the batches of models/generate.py go on with it. Families that count positions along the axes of an image,
or whose image tokens see each other, are answered one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from halo_forge.domains.vlm.eyes import Eyes
from halo_forge.domains.vlm.forward import embedded, grid_positions
from halo_forge.models.forward import language_model, padded_attention
from halo_forge.models.generate import Generation, Prompt, generate, prompts_read_by


def answer_batched(
    model: torch.nn.Module, prompts: Sequence[Prompt], eyes: Eyes, *, max_new_tokens: int, batch_size: int, **how: Any
) -> list[Generation]:
    """As models.generate.generate; a prefill reads the images of its prompts."""
    inner: Any = language_model(model)

    def prefill(
        indices: Sequence[int], input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Logits [B, V] behind the last of the columns [B, L]; padding stands to the left."""
        media = eyes.inputs([medium for index in indices for medium in prompts[index].media])
        media = {name: tensor.to(input_ids.device) for name, tensor in media.items()}
        output = inner.get_decoder()(
            inputs_embeds=embedded(inner, input_ids, media, eyes.placeholder_ids), attention_mask=mask,
            position_ids=positions, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        return inner.get_output_embeddings()(output.last_hidden_state[:, -1])  # type: ignore[no-any-return]

    with prompts_read_by(prefill):
        return generate(model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, **how)


@torch.no_grad()
def answer_alone(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    eyes: Eyes,
    *,
    decode: Callable[[list[int]], str],
    max_new_tokens: int,
    batch_size: int,
    on_finished: Callable[[int, Generation], None] | None,
    check: Callable[[], None],
) -> list[Generation]:
    """One prompt after the other, by the model's own forward pass."""
    del batch_size
    inner = language_model(model)
    answers = []
    with padded_attention(inner):
        for index, prompt in enumerate(prompts):
            token_ids, stopped = _answer(inner, prompt, eyes, max_new_tokens, check)
            answers.append(Generation(tuple(token_ids), decode(token_ids), stopped))
            if on_finished is not None:
                on_finished(index, answers[-1])
    return answers


def _answer(
    model: Any, prompt: Prompt, eyes: Eyes, max_new_tokens: int, check: Callable[[], None]
) -> tuple[list[int], bool]:
    device = model.device
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    budget = max_new_tokens if longest is None else max(0, min(max_new_tokens, longest - len(prompt.token_ids)))
    ids = torch.tensor([prompt.token_ids], device=device)
    media = {name: tensor.to(device) for name, tensor in eyes.inputs(prompt.media).items()}
    kinds = torch.isin(ids, torch.tensor(sorted(eyes.placeholder_ids), device=device)).long()
    cache = DynamicCache(config=model.config)
    offset, more = 0, {}
    if eyes.family.grids:
        more["position_ids"], offset = grid_positions(model, ids, kinds, media.get("image_grid_thw"))
    elif media:
        more["token_type_ids"] = kinds
    found: list[int] = []
    for _ in range(budget):
        check()
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **media, **more).logits
        token_id = int(logits[0, -1].argmax())
        if token_id in prompt.stop_token_ids:
            return found, True
        found.append(token_id)
        place = torch.tensor([[len(prompt.token_ids) + len(found) - 1 + offset]], device=device)
        ids, media = torch.tensor([[token_id]], device=device), {}
        more = {"position_ids": place.expand(3, 1, 1) if eyes.family.grids else place}
    return found, False
