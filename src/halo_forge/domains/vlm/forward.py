"""Tokens and images -> vocabulary logits, for one row of packed documents or for padded prompts.

Axes: B rows, N tokens of a row, U positions that predict, D width, V vocabulary.

The vision tower is transformers' own, run once for all images of a row. Its features take the placeholders' places
among the embeddings, and the language model goes on from there: through the written-out layers of models/fast where
they cover it and agree with it, else through transformers' own layers with document attention. The attention of the
tower is left as it is: an image sees all of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from halo_forge.domains.media import MediaBatch
from halo_forge.domains.vlm.families import Family
from halo_forge.errors import TrainingError
from halo_forge.models.fast.decoder import FastDecoder, NotCovered
from halo_forge.models.forward import bare

PROBE_TOKENS = (11, 6)
DOCUMENT_ATTENTION = "halo_forge_document"


def embedded(
    model: Any, input_ids: torch.Tensor, media: Mapping[str, torch.Tensor], placeholder_ids: frozenset[int]
) -> torch.Tensor:
    """Embeddings [B, N, D] of tokens [B, N] with the features of the images in their placeholders' places, in order.

    Raises TrainingError where there are more placeholders than features, or fewer."""
    words: torch.Tensor = model.get_input_embeddings()(input_ids)
    if not media:
        return words
    found = model.get_image_features(**media, return_dict=True).pooler_output
    parts = [found] if isinstance(found, torch.Tensor) else list(found)
    features = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).to(words.dtype)
    is_image = torch.isin(input_ids, torch.tensor(sorted(placeholder_ids), device=input_ids.device))
    if int(is_image.sum()) != len(features):
        raise TrainingError(
            f"{int(is_image.sum())} image tokens stand in a batch, and its images give {len(features)}",
            fix="prepare the rows again (--fresh): they were prepared with another processor or size of images",
        )
    return words.masked_scatter(is_image[..., None], features)


def positions_of(model: Any, family: Family, batch: MediaBatch, placeholder_ids: frozenset[int]) -> torch.Tensor:
    """position_ids [1, N], or [3, 1, N] for a family that counts along the axes of each image's grid, from 0 in each
    document."""
    if not family.grids:
        return batch.position_ids
    is_image = torch.isin(batch.input_ids, torch.tensor(sorted(placeholder_ids), device=batch.input_ids.device))
    grids, taken, placed = batch.media.get("image_grid_thw"), 0, []
    merged = model.config.vision_config.spatial_merge_size**2
    starts = [0]
    for length in batch.document_lengths:
        place = slice(starts[-1], starts[-1] + length)
        starts.append(place.stop)
        ids, kinds = batch.input_ids[:, place], is_image[:, place].int()
        own = None
        if grids is not None:
            first, left = taken, int(kinds.sum())
            while left > 0:
                left -= int(grids[taken].prod()) // merged
                taken += 1
            own = grids[first:taken]
        placed.append(grid_positions(model, ids, kinds, own)[0])
    return torch.cat(placed, 2)


def grid_positions(
    model: Any, ids: torch.Tensor, kinds: torch.Tensor, grids: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    """(positions [3, 1, T] of one document, how far its next position lies from its length). Images side by side with
    no token between would be one group to transformers; the templates of such families write tokens around each."""
    if grids is None or not len(grids):
        return torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1), 0
    places, deltas = model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
    return places, int(deltas[0, 0])


@contextmanager
def text_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The language model alone attends by `name` inside; the tower as before."""
    text = model.get_decoder()
    before = text.config._attn_implementation
    if before == name:
        yield
        return
    text.set_attn_implementation(name)
    try:
        yield
    finally:
        text.set_attn_implementation(before)


@dataclass(slots=True)
class Forward:
    """How one loaded model computes its logits. `fast` is None where the written-out layers do not serve: `why`.

    seen   versions of the trained weights that `fast` has its working copies of"""

    family: Family
    placeholder_ids: frozenset[int]
    fast: FastDecoder | None = None
    why: str = ""
    seen: tuple[int, ...] = ()

    @staticmethod
    def of(
        model: torch.nn.Module, family: Family, placeholder_ids: frozenset[int], use_fast: bool, half: bool
    ) -> Forward:
        """`half`: products are to be computed in bfloat16."""
        forward = Forward(family, placeholder_ids)
        if not family.packs:
            forward.why = "the tokens of an image see each other both ways"
        elif not use_fast:
            forward.why = "training.fast_layers is off"
        else:
            try:
                forward.fast = _agreeing(model, half)
                forward.why = "" if forward.fast else "the written-out layers give other numbers here"
            except NotCovered as reason:
                forward.why = str(reason)
        return forward

    def logits(self, model: torch.nn.Module, batch: MediaBatch) -> torch.Tensor:
        """[U, V] at `batch.positions`."""
        causal = bare(model)
        if not self.family.packs:
            return self._alone(causal, batch)
        places = positions_of(causal, self.family, batch, self.placeholder_ids)
        embeddings = embedded(causal, batch.input_ids, batch.media, self.placeholder_ids)
        if self.fast is not None:
            return self._fast_logits(self.fast, batch, places, embeddings)
        with text_attention(causal, DOCUMENT_ATTENTION):
            hidden = causal.get_decoder()(
                inputs_embeds=embeddings, position_ids=places, packed_row=batch.row(), use_cache=False
            ).last_hidden_state[0]
        return causal.get_output_embeddings()(hidden[batch.positions])  # type: ignore[no-any-return]

    def _fast_logits(
        self, fast: FastDecoder, batch: MediaBatch, places: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):  # every product names its own type
            self._refresh()
            with_adapters = not any(
                getattr(layer, "disable_adapters", False) for part in fast.projections() for layer in part.layers
            )
            places = places[0] if places.ndim == 2 else places[:, 0]
            hidden = fast.hidden(
                batch.input_ids[0], places, batch.row(), batch.positions, with_adapters, embeddings=embeddings[0]
            )
            return fast.head(hidden, fast.head.drawn(len(hidden), with_adapters), with_adapters)

    def _alone(self, causal: Any, batch: MediaBatch) -> torch.Tensor:
        """By the model's own forward pass, for one document."""
        if len(batch.document_lengths) != 1:
            raise TrainingError("this family cannot keep packed documents apart", fix="training.packing: false")
        kinds = torch.isin(batch.input_ids, torch.tensor(sorted(self.placeholder_ids), device=batch.input_ids.device))
        found = causal(
            input_ids=batch.input_ids, token_type_ids=kinds.long(), **batch.media, logits_to_keep=batch.positions,
            use_cache=False,
        )  # fmt: skip
        return found.logits[0]  # type: ignore[no-any-return]

    def _refresh(self) -> None:
        """The working copies follow the weights: a weight that was changed in place has another version."""
        assert self.fast is not None
        masters = [weight for projection in self.fast.projections() for weight in projection.masters]
        versions = tuple(weight._version for weight in masters)
        if versions != self.seen:
            self.fast.refresh()
            self.seen = versions


def _agreeing(model: torch.nn.Module, half: bool) -> FastDecoder | None:
    causal = bare(model)
    device = next(causal.parameters()).device
    decoder = FastDecoder.of(model, torch.bfloat16 if half else torch.float32)  # type: ignore[arg-type]
    size = causal.get_input_embeddings().num_embeddings
    documents = [torch.arange(3, 3 + count, device=device) * 37 % size for count in PROBE_TOKENS]
    text = causal.get_decoder()
    with text_attention(causal, "sdpa" if text._supports_sdpa else "eager"):
        return decoder if decoder.agrees(model, documents) else None  # type: ignore[arg-type]
