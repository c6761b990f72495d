"""Answers for many prompts, greedy or sampled: sorted by length, left-padded, rows refilled as they finish.

Axes: B rows of the batch, C columns (tokens of the longest live row), L columns of a prefill.

Without a Sampling every row takes its most likely token at each step (argmax of the raw logits; no temperature, no
repetition penalty, whatever generation_config.json says). In float32 the tokens equal
`model.generate(do_sample=False)` of each prompt by itself. In bfloat16 two tokens can tie within rounding, and then
the batch a prompt shares can decide between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from halo_forge.chat.records import Medium
from halo_forge.models.fast.generation import by_transformers, decoding_step
from halo_forge.models.forward import keep_going, language_model, padded_attention
from halo_forge.models.kv_cache import SlotLayer, slot_cache
from halo_forge.models.sampling import Sampling, sample_tokens
from halo_forge.models.shared_prefix import Forward, SharedPrefix, close_gaps, find_shared, lay_before

Prefill = Callable[[Sequence[int], torch.Tensor, torch.Tensor, torch.Tensor, Cache], torch.Tensor]
"""(prompts' numbers [B], ids [B, L], mask, positions, cache) -> logits [B, vocabulary] behind the last column."""
_PREFILL: ContextVar[Prefill | None] = ContextVar("prefill", default=None)
MIN_FAST_STEPS = 24
"""Fewer steps do not pay for packing the weights (the time of about eight)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids are what the model reads (never empty); any of stop_token_ids ends the answer, and so does any of
    stop_texts as soon as it stands in the answer's text (the answer keeps it and what its last token brings along).
    media: what else it reads; such prompts are answered by the model's domain (domains/media.py), not here."""

    token_ids: tuple[int, ...]
    stop_token_ids: frozenset[int]
    stop_texts: tuple[str, ...] = ()
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """token_ids are without the stop token; stopped is False when max_new_tokens (or the model's longest context)
    cut the answer; text is the decoded token_ids, a stop text among them included."""

    token_ids: tuple[int, ...]
    text: str
    stopped: bool


@contextmanager
def prompts_read_by(prefill: Prefill) -> Iterator[None]:
    """Inside, `generate` reads prompts in another way than as tokens alone: with the images that stand in them."""
    token = _PREFILL.set(prefill)
    try:
        yield
    finally:
        _PREFILL.reset(token)


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    *,
    decode: Callable[[list[int]], str],
    max_new_tokens: int,
    batch_size: int,
    on_finished: Callable[[int, Generation], None] | None = None,
    check: Callable[[], None] = keep_going,
    sampling: Sampling | None = None,
) -> list[Generation]:
    """One Generation per prompt, in the prompts' order. With `sampling`, prompt i draws by sampling.keys[i].

    On a CPU, steps are computed by models/fast/generation.py where it covers the model and there is enough to answer;
    inside `own_steps()` by the model's own forward pass.
    on_finished(index, generation) is called as each answer is complete, in order of completion. check is called
    before every step and raises Interrupted to stop; what on_finished was given by then is complete.
    """
    if not all(prompt.token_ids for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    inner = language_model(model)
    longest = _longest(inner)
    finished: dict[int, Generation] = {}

    def finish(index: int, token_ids: list[int], stopped: bool) -> None:
        finished[index] = Generation(tuple(token_ids), decode(token_ids), stopped)
        if on_finished is not None:
            on_finished(index, finished[index])

    budgets = [
        max_new_tokens if longest is None else max(0, min(max_new_tokens, longest - len(prompt.token_ids)))
        for prompt in prompts
    ]
    # Longest first: rows that come later always fit into the columns of those before, and memory peaks at once.
    queue = deque(sorted(range(len(prompts)), key=lambda index: -len(prompts[index].token_ids)))
    for index in [index for index in queue if not budgets[index]]:
        queue.remove(index)
        finish(index, [], False)
    with torch.no_grad(), padded_attention(inner):
        pays = queue and sum(budgets) >= MIN_FAST_STEPS * min(batch_size, len(prompts))
        forward = (decoding_step(inner) if pays else None) or partial(by_transformers, inner)
        prefix = None
        if queue and _PREFILL.get() is None:
            prefix = find_shared([prompts[index].token_ids for index in queue], None, forward, inner)
        while queue:
            decoding = _Decoding(inner, prompts, budgets, finish, decode, forward, sampling, prefix)
            decoding.run(queue, batch_size, check)
    return [finished[index] for index in range(len(prompts))]


@dataclass(slots=True)
class _Row:
    """One slot of the batch. index None: the slot is free. span: columns of its own, prompt and answer."""

    index: int | None
    span: int
    token_ids: list[int]


class _Decoding:
    """A batch while it decodes. Tensors: mask bool [B, C], next_ids and positions int64 [B] of the token to be fed."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        budgets: Sequence[int],
        finish: Callable[[int, list[int], bool], None],
        decode: Callable[[list[int]], str],
        forward: Forward,
        sampling: Sampling | None,
        prefix: SharedPrefix | None,
    ) -> None:
        self.model, self.prompts, self.budgets, self.finish = model, prompts, budgets, finish
        self.decode, self.forward, self.prefix = decode, forward, prefix
        longest = _longest(model)
        self.last_position = None if longest is None else longest - 1
        self.rows: list[_Row] = []
        self.sampling = sampling
        self.draws: dict[int, np.random.Generator] = {}

    def run(self, queue: deque[int], batch_size: int, check: Callable[[], None]) -> None:
        """Answer prompts of the queue until no row is live; returns with a non-empty queue only when all rows
        finished at once, or the model's cache cannot take new rows."""
        check()
        taken = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
        self.cache, self.mask, self.next_ids, self.positions = self._prefill(taken)
        self.slots = _slot_layers(self.cache)
        self.rows = [_Row(index, len(self.prompts[index].token_ids), []) for index in taken]
        self._take_tokens(range(len(self.rows)))
        while any(row.index is not None for row in self.rows):
            check()
            if self.slots:
                self._use_free_rows(queue)
            if any(row.index is not None for row in self.rows):
                self._step()

    def _prefill(self, indices: Sequence[int]) -> tuple[Cache, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read prompts, left-padded to C columns: (cache, mask [B, C], first tokens [B], their positions [B])."""
        device, prefill = self.model.device, _PREFILL.get()
        prompts = [self.prompts[index].token_ids for index in indices]
        prefix = find_shared(prompts, self.prefix, self.forward, self.model) if prefill is None else None
        num_shared = 0 if prefix is None else len(prefix.token_ids)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        num_columns = int(lengths.max())
        columns = torch.arange(num_columns)
        mask = columns >= num_columns - lengths[:, None]
        positions = (mask.cumsum(1) - 1).clamp_(min=0)[:, num_shared:]
        input_ids = torch.zeros((len(indices), num_columns - num_shared), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            input_ids[row, num_columns - len(prompt) :] = torch.tensor(prompt[num_shared:])
        cache = slot_cache(self.model.config) or DynamicCache(config=self.model.config)
        read = self.forward if prefill is None else partial(prefill, indices)
        seen = mask
        if prefix is not None:  # it lies at the left until the rest is read, which is padded behind it
            lay_before(_slot_layers(cache), prefix, len(indices))
            seen = (columns < num_shared) | (columns >= num_columns - lengths[:, None] + num_shared)
        logits = read(input_ids.to(device), seen.to(device), positions.to(device), cache)
        if prefix is not None:
            close_gaps(_slot_layers(cache), num_shared, (num_columns - lengths).tolist())
        if self.sampling is not None:
            self.draws.update({index: self.sampling.draws(index) for index in indices})
        return cache, mask.to(device), self._choose(logits, indices), lengths.to(device)

    def _choose(self, logits: torch.Tensor, indices: Sequence[int | None]) -> torch.Tensor:
        """The next token of each row, int64 [B], from logits [B, V]; rows without a prompt draw nothing."""
        if self.sampling is None:
            return logits.argmax(-1)
        uniform = [0.0 if index is None else float(self.draws[index].random()) for index in indices]
        return sample_tokens(logits, uniform, self.sampling.temperature, self.sampling.top_p)

    def _step(self) -> None:
        """Feed every row its last token and take the next one."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.rows), 1))], dim=1)
        if self.last_position is not None:
            # Rows that are done are fed along until their slot is used again; a learned position table has an end.
            self.positions.clamp_(max=self.last_position)
        logits = self.forward(self.next_ids[:, None], self.mask, self.positions[:, None], self.cache)
        self.next_ids = self._choose(logits, [row.index for row in self.rows])
        self.positions = self.positions + 1
        for row in self.rows:
            row.span += 1
        self._take_tokens(range(len(self.rows)))

    def _take_tokens(self, rows: Sequence[int]) -> None:
        """Give each live row its next token; a stop token or the last of its budget frees the row."""
        next_ids = self.next_ids.tolist()
        for row in rows:
            state = self.rows[row]
            if state.index is None:
                continue
            stopped = next_ids[row] in self.prompts[state.index].stop_token_ids
            if not stopped:
                state.token_ids.append(next_ids[row])
                stopped = _ends_in_stop_text(self.prompts[state.index], state.token_ids, self.decode)
            if stopped or len(state.token_ids) == self.budgets[state.index]:
                self.finish(state.index, state.token_ids, stopped)
                state.index = None

    def _use_free_rows(self, queue: deque[int]) -> None:
        """Put waiting prompts into free rows; with none waiting, go on with fewer rows."""
        while queue and any(row.index is not None for row in self.rows):
            free = [number for number, row in enumerate(self.rows) if row.index is None]
            # A prefill for one row costs nearly as much as for a few: wait until an eighth of the batch is free.
            if len(free) < max(1, len(self.rows) // 8):
                return
            taken = [queue.popleft() for _ in range(min(len(free), len(queue)))]
            self._refill(free[: len(taken)], taken)
        live = [number for number, row in enumerate(self.rows) if row.index is not None]
        if live and len(live) <= 3 * len(self.rows) // 4:
            self._keep(live)

    def _refill(self, rows: list[int], indices: list[int]) -> None:
        cache, mask, next_ids, positions = self._prefill(indices)
        for layer, prefilled in zip(self.slots, _slot_layers(cache), strict=True):
            layer.replace_rows(rows, prefilled)
        at = torch.tensor(rows, device=self.mask.device)
        self.mask[at] = False
        self.mask[at, self.mask.shape[1] - mask.shape[1] :] = mask
        self.next_ids[at], self.positions[at] = next_ids, positions
        for row, index in zip(rows, indices, strict=True):
            self.rows[row] = _Row(index, len(self.prompts[index].token_ids), [])
        self._drop_unused_columns()
        self._take_tokens(rows)

    def _keep(self, live: list[int]) -> None:
        at = torch.tensor(live, device=self.mask.device)
        for layer in self.slots:
            layer.keep_rows(at)
        self.mask, self.next_ids, self.positions = self.mask[at], self.next_ids[at], self.positions[at]
        self.rows = [self.rows[row] for row in live]
        self._drop_unused_columns()

    def _drop_unused_columns(self) -> None:
        unused = self.mask.shape[1] - max(row.span for row in self.rows if row.index is not None)
        if unused:
            self.mask = self.mask[:, unused:]
            for layer in self.slots:
                layer.drop_leading(unused)


def _longest(model: PreTrainedModel) -> int | None:
    """Tokens of the longest context that the model has positions for; None where nothing says so."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


def _ends_in_stop_text(prompt: Prompt, token_ids: list[int], decode: Callable[[list[int]], str]) -> bool:
    """Whether the newest token completed one of the prompt's stop texts. Every token has a byte at least, so the text
    stands in that many of the last tokens."""
    if not prompt.stop_texts:
        return False
    tail = decode(token_ids[-max(len(text.encode()) for text in prompt.stop_texts) - 1 :])
    return any(text in tail for text in prompt.stop_texts)


def _slot_layers(cache: Cache) -> list[SlotLayer]:
    """The layers whose rows can be replaced: all of a cache or none (see `slot_cache`)."""
    return [layer for layer in cache.layers if isinstance(layer, SlotLayer)]
