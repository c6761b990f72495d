"""What is done to every row by itself, batch after batch, in any number of processes.

    raw lines -> Row -> Conversation -> inspected and mended -> fingerprints -> benchmark overlap -> tokens and weights

A batch in, a `Part` out: a table with a row an input row (parts.py). Nothing here looks at another batch; what needs
all rows (duplicates, splits, the mix) is decided afterwards from the parts' columns (decisions.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from halo_forge.chat.records import Conversation, MediaKind, Medium
from halo_forge.config.schema import DataSection, RowAction, RowFormat
from halo_forge.data.conversion.formats import Converted, convert
from halo_forge.data.conversion.identity import conversation_id
from halo_forge.data.files.rows import Row
from halo_forge.data.overlap.benchmark_items import HOLDOUT
from halo_forge.data.overlap.plain_text import plain_turns
from halo_forge.data.reasons import DROPPING, REASONS
from halo_forge.data.rules.answer_convention import CONTRADICTIONS, settle_answers, with_instruction
from halo_forge.data.rules.calls import call_traits
from halo_forge.data.rules.consistency import style_features
from halo_forge.data.rules.quality import Inspector
from halo_forge.data.rules.quality_rules import RULE
from halo_forge.data.split import row_label
from halo_forge.errors import RowError
from halo_forge.media.store import has_media, media_parts, settle_media

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from halo_forge.data.overlap.contamination import BenchmarkIndex, Hit
    from halo_forge.domains.media import Encoder, Media

ENCODER_FLAGS = frozenset({"merged_boundary"})
"""Notes of the encoder that change nothing about what is said; its others (text left out, cut, respelled) do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """What a worker must know of a batch's source. `is_settled`: the data stage wrote these rows, and whoever names
    them says so (format `prepared`): no rule, policy of rows or benchmark looks at them again."""

    label: str
    format: RowFormat
    mixed: bool = False  # rows of another format are read as what they are
    name: str | None = None
    loss_weight: float = 1.0
    can_be_trained: bool = True

    @property
    def is_settled(self) -> bool:
        return self.format == "prepared" and not self.mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """Everything that rows are worked on with; picklable. Without a tokenizer rows are checked, not encoded; without
    media (eyes or ears of the model) rows with an image or audio are refused, but for checked rows of speech."""

    data: DataSection
    actions: Mapping[str, RowAction]
    benchmarks: BenchmarkIndex | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    media: Media | None = None


@dataclass(slots=True, kw_only=True)
class Draft:
    """One row on its way. `problem` set means that it is left out; `found` holds raw excerpts by code."""

    source: int
    line: int
    row: Row
    problem: RowError | None = None
    conversation: Conversation | None = None
    prompt_key: str = ""
    fixes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    found: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    stratum: str | None = None
    prompt: str = ""
    answer: str = ""
    hit: Hit | None = None
    language: str = ""
    style: int = 0
    calls: int = 0
    ids: np.ndarray | None = None
    weights: np.ndarray | None = None
    media: tuple[Medium, ...] = ()


class RowWorker:
    """Does the work order on batches of rows. One per process; keeps what is costly to learn (template, tokenizer)."""

    def __init__(self, order: WorkOrder) -> None:
        self.order = order
        self.inspector = Inspector(order.actions, order.data.languages)
        self.encoder: Encoder | None = None
        if order.media is not None:
            self.encoder = order.media.encoder(order.data)
        elif order.tokenizer is not None:
            from halo_forge.chat import ChatEncoder

            data = order.data
            self.encoder = ChatEncoder(
                order.tokenizer, max_seq_length=data.max_seq_length, train_on=data.train_on, overlong=data.overlong,
                reasoning=data.reasoning,
            )  # fmt: skip

    def work(self, rows: Sequence[tuple[int, Row]], sources: Sequence[RowSource]) -> list[Draft]:
        """A draft per row, in their order; a row comes with the number of its source."""
        drafts = [self._draft(row, number, sources[number]) for number, row in rows]
        said = [draft for draft in drafts if draft.problem is None]
        for draft in said:
            assert draft.conversation is not None
            draft.prompt, draft.answer = plain_turns(draft.conversation)
        if self.order.benchmarks is not None:
            trained = [draft for draft in said if draft.problem is None and _is_compared(sources[draft.source])]
            self._compare_with_benchmarks(trained)
        self._encode([draft for draft in said if draft.problem is None])
        for draft in said:
            self._apply_policy(draft)
        return drafts

    def _apply_policy(self, draft: Draft) -> None:
        """Leave a row out for what was mended or noticed, where data.policies says so."""
        if draft.problem is None:
            for code in (*draft.fixes, *draft.flags):
                if self.order.actions[code] in DROPPING:
                    draft.problem = RowError(code, REASONS[code].meaning)
                    return

    def _draft(self, row: Row, number: int, source: RowSource) -> Draft:
        draft = Draft(source=number, line=row.line, row=row, problem=row.problem)
        if row.problem is not None:
            return draft
        data = self.order.data
        try:
            media = self.order.media
            # Rows of speech that are checked without a model are meant for one that hears.
            reads = media is not None or (self.order.tokenizer is None and source.format == "speech")
            converted = convert(row, source.format, data.system_prompt, mixed=source.mixed, media=reads)
            if reads and has_media(converted.conversation):
                converted = _with_media(converted, row, media.kind if media is not None else None)
            draft.group, draft.stratum = (
                row_label(row.value or {}, name, source.label) if name else None
                for name in (data.split_by, data.stratify_by)
            )
        except RowError as problem:
            draft.problem = problem
            return draft
        except UnicodeEncodeError:  # from readers other than ours; ours refuse such rows
            draft.problem = RowError("lone_surrogate", "half of a surrogate pair is no character")
            return draft
        if source.is_settled:
            draft.conversation, draft.prompt_key = converted.conversation, converted.prompt_key
            draft.style = style_features(converted.conversation)
            draft.calls = call_traits(converted.conversation)
            return draft
        self._inspect(draft, converted)
        self._settle_answers(draft)
        if draft.conversation is not None and (source.name or source.loss_weight != 1.0):
            draft.conversation = _of_source(draft.conversation, source)
        return draft

    def _inspect(self, draft: Draft, converted: Converted) -> None:
        inspection = self.inspector.inspect(converted.conversation)
        draft.conversation, draft.prompt_key = inspection.conversation, converted.prompt_key
        if inspection.changed:
            draft.conversation = replace(inspection.conversation, id=conversation_id(inspection.conversation))
        draft.fixes = (*converted.fixes, *inspection.fixes)
        draft.flags = (*(flag for flag in converted.flags if flag not in RULE), *inspection.flags)
        draft.found, draft.language = dict(inspection.found), inspection.language or ""
        draft.style, draft.calls = style_features(inspection.conversation), call_traits(inspection.conversation)
        if inspection.problem_code:
            draft.problem = RowError(inspection.problem_code, RULE[inspection.problem_code].meaning)

    def _settle_answers(self, draft: Draft) -> None:
        """The final answer in the convention of data.final_answer, and the question that asks for it."""
        convention, before = self.order.data.final_answer, draft.conversation
        if convention == "keep" or before is None or draft.problem is not None or before.messages[0].role == "document":
            return
        settled = settle_answers(before, convention, self.order.actions)
        conversation = settled.conversation
        draft.fixes, draft.flags = (*draft.fixes, *settled.fixes), (*draft.flags, *settled.flags)
        draft.found |= settled.found
        if self.order.data.answer_instruction and CONTRADICTIONS.isdisjoint(settled.flags):
            conversation = with_instruction(conversation, convention)
        if conversation is not before:
            draft.conversation = replace(conversation, id=conversation_id(conversation))

    def _compare_with_benchmarks(self, drafts: list[Draft]) -> None:
        assert self.order.benchmarks is not None
        hits = self.order.benchmarks.check([d.prompt for d in drafts], [d.answer for d in drafts])
        for draft, hit in zip(drafts, hits, strict=True):
            if hit is None:
                continue
            draft.hit = hit
            code = _code_of(hit)
            draft.found[code] = hit.excerpt
            if self.order.actions[code] == "keep":
                draft.flags += (code,)
            else:
                draft.problem = RowError(code, f"{hit.kind.replace('_', ' ')} match with {hit.benchmark} {hit.item}")

    def _encode(self, drafts: list[Draft]) -> None:
        if self.encoder is None or not drafts:
            return
        batch = self.encoder.encode_batch([draft.conversation for draft in drafts if draft.conversation is not None])
        for at, draft in enumerate(drafts):
            if at in batch.problems:
                draft.problem = batch.problems[at]
                continue
            place = slice(int(batch.starts[at]), int(batch.starts[at + 1]))
            draft.ids, draft.weights = batch.ids[place], batch.loss_weights[place]
            draft.media = batch.media.get(at, ())
        for at, notes in batch.notes.items():
            drafts[at].flags += tuple(note for note in notes if note in ENCODER_FLAGS)
            drafts[at].fixes += tuple(note for note in notes if note not in ENCODER_FLAGS)


def _with_media(converted: Converted, row: Row, kind: MediaKind | None) -> Converted:
    """With every image or sound of the row found and named by its content: the same question about two pictures is two
    questions, and the same picture under two names is one. Raises RowError."""
    for part in media_parts(converted.conversation.messages):
        if kind is not None and part.kind != kind:
            raise RowError("media_unsupported", f"the row holds {part.kind}, and the model reads {kind}")
    settled = settle_media(converted.conversation, Path(row.path).parent)
    first_answer = next((at for at, turn in enumerate(settled.messages) if turn.role == "assistant"), None)
    asked = [converted.prompt_key, *(part.sha256 for part in media_parts(settled.messages[:first_answer]))]
    key = hashlib.sha256(" ".join(asked).encode()).hexdigest()
    return replace(converted, conversation=replace(settled, id=conversation_id(settled)), prompt_key=key)


def _is_compared(source: RowSource) -> bool:
    return source.can_be_trained and not source.is_settled


def _of_source(conversation: Conversation, source: RowSource) -> Conversation:
    slices = {**conversation.slices, "source": source.name} if source.name else conversation.slices
    return replace(conversation, slices=slices, weight=conversation.weight * source.loss_weight)


def _code_of(hit: Hit) -> str:
    if hit.kind not in ("exact", "near"):
        return "benchmark_overlap"
    return "in_holdout" if hit.benchmark == HOLDOUT else "contaminated"
