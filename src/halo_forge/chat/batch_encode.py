"""Many conversations at once, with exactly the ids, weights, notes and refusals of `ChatEncoder.encode` one by one.

A row of a known kind (skeleton.py) is rendered by joining strings and encoded together with all others; where its
turns are follows from the lengths of its contents in bytes (byte_tokens.py). Whatever does not come out exactly as
the skeleton says goes to `encode`: a token across a border, a special token in content, text that is normalised.

    proven     a kind is used only where the template was traced and a battery of hard contents came out equal
    watched    the first rows of each kind and then every 256th also go through `encode`; a difference switches the kind
               off, encodes the whole batch anew by `encode`, and is told in `warnings`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from halo_forge.chat.batch_rows import EncodedRows, KindRows, encode_groups, ranges
from halo_forge.chat.byte_tokens import ByteTokens, learn_byte_tokens
from halo_forge.chat.records import Conversation, Example, Medium, TextPart
from halo_forge.chat.skeleton import (
    DOCUMENT,
    THINKING,
    Kind,
    Skeleton,
    conversation_of,
    hard_contents,
    learn_skeleton,
)
from halo_forge.errors import RowError

if TYPE_CHECKING:
    from halo_forge.chat.example import ChatEncoder, Encoded
    from halo_forge.chat.known import KnownTokenizer

ROWS_TO_LEARN = 64
"""A kind is learnt once this many of its rows were met: learning costs about as much as encoding them."""
ROWS_WATCHED_FIRST = 32
WATCH_EVERY = 1000
_INFINITE = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Examples end to end, in the order of the conversations; a refused one has no tokens.

    ids           int32 [N]
    loss_weights  float32 [N]
    starts        int64 [num_rows + 1]
    problems      row -> why it was refused         notes  row -> what `Encoded.notes` would hold, where not empty
    media         row -> the media of its example, where it has any
    num_fast, num_slow  rows (refused ones too) by the way they took
    warnings      what went otherwise than it should have, in words; the results are right all the same
    """

    ids: np.ndarray
    loss_weights: np.ndarray
    starts: np.ndarray
    problems: dict[int, RowError]
    notes: dict[int, tuple[str, ...]]
    num_fast: int
    num_slow: int
    warnings: tuple[str, ...] = ()
    media: dict[int, tuple[Medium, ...]] = field(default_factory=dict)

    def example(self, row: int, conversation_id: str) -> Example | None:
        """The example of a row; None for a refused one."""
        if row in self.problems:
            return None
        place = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return Example(
            input_ids=self.ids[place], loss_weights=self.loss_weights[place], conversation_id=conversation_id,
            media=self.media.get(row, ()),
        )  # fmt: skip


@dataclass(slots=True)
class _Kind:
    """What is known of a kind: `skeleton` once it is proven, `refusal` where it cannot be used."""

    num_met: int = 0
    num_watched: int = 0
    skeleton: Skeleton | None = None
    refusal: str | None = None


@dataclass(slots=True)
class FastPath:
    """What has been learnt for one tokenizer. `tokens` is a reason where it is not byte-level."""

    tokens: ByteTokens | str
    kinds: dict[Kind, _Kind] = field(default_factory=dict)

    @property
    def refusals(self) -> dict[Kind, str]:
        """Why rows of a kind are encoded one by one."""
        return {kind: known.refusal for kind, known in self.kinds.items() if known.refusal is not None}


def fast_path(known: KnownTokenizer) -> FastPath:
    if known.fast is None:
        known.fast = FastPath(learn_byte_tokens(known.encoder))
    path: FastPath = known.fast
    return path


def encode_batch(encoder: ChatEncoder, conversations: Sequence[Conversation]) -> EncodedBatch:
    """See the module. Raises DataError as `encode` does, for the first row that it is raised for."""
    path = fast_path(encoder.known) if encoder.fast and isinstance(encoder.train_on, str) else None
    if path is None or isinstance(path.tokens, str):
        return _assemble(encoder, conversations, None, {})
    groups = _group(encoder, conversations)
    ready = {
        kind: rows
        for kind, rows in groups.items()
        if _is_ready(encoder, path, kind, len(rows.places), conversations[rows.places[0]])
    }
    encoded = encode_groups(encoder, path, ready, conversations)
    seen, warnings = _watch(encoder, path, ready, encoded, conversations)
    if warnings:
        return _assemble(encoder, conversations, None, {}, warnings)
    return _assemble(encoder, conversations, encoded, seen)


# ------------------------------------------------------------------------------------------------ rows and kinds


def _group(encoder: ChatEncoder, conversations: Sequence[Conversation]) -> dict[Kind, KindRows]:
    """The rows that may be of a known kind."""
    groups: dict[str, KindRows | None] = {}
    prepare = None if encoder.reasoning == "keep" else encoder.prepared
    # A weight that mutes a turn under "all" may leave nothing to train; `encode` decides.
    lowest = 1e-30 if encoder.train_on == "all" else 0.0
    for row, conversation in enumerate(conversations):
        if conversation.tools or not 0 < conversation.weight < _INFINITE:
            continue
        if prepare is not None:
            prepared = prepare(conversation)
            if isinstance(prepared, RowError):
                continue
            conversation = prepared
        name = ""
        contents: list[str] = []
        overrides: dict[int, float] | None = None
        for index, message in enumerate(conversation.messages):
            parts, role = message.parts, message.role
            if len(parts) != 1 or type(parts[0]) is not TextPart or message.name is not None:
                break
            text = parts[0].text
            if not text or message.call_id is not None:
                break
            if message.reasoning is not None:
                if not message.reasoning or role != "assistant":
                    break
                name += THINKING
                contents.append(message.reasoning)
            if message.weight is not None:
                if not lowest <= message.weight < _INFINITE:
                    break
                overrides = overrides or {}
                overrides[index] = message.weight
            name += role + "/"
            contents.append(text)
        else:
            if name not in groups:
                groups[name] = _kind_rows(name, encoder.train_on == "all")
            group = groups[name]
            if group is not None:
                for index, weight in (overrides or {}).items():
                    group.overrides[len(group.places), index] = weight
                group.places.append(row)
                group.contents += contents
    return {group.kind: group for group in groups.values() if group is not None and group.places}


def _kind_rows(name: str, trains_all: bool) -> KindRows | None:
    """An empty group for a kind, or None for one that only `encode` deals with."""
    kind = tuple(name.split("/")[:-1])
    answers = any(role.endswith("assistant") for role in kind)
    usable = answers or kind == DOCUMENT or (trains_all and bool(kind))
    if not usable or "tool" in kind or ("document" in kind and kind != DOCUMENT):
        return None
    return KindRows(kind)


def _is_ready(encoder: ChatEncoder, path: FastPath, kind: Kind, num_rows: int, first: Conversation) -> bool:
    """Whether the kind's skeleton can be used; learns it where enough rows were met."""
    known = path.kinds.setdefault(kind, _Kind())
    known.num_met += num_rows
    if known.skeleton is None and known.refusal is None and known.num_met >= ROWS_TO_LEARN:
        assert isinstance(path.tokens, ByteTokens)
        learnt = learn_skeleton(encoder.known, kind, path.tokens)
        if isinstance(learnt, str):
            known.refusal = learnt
        else:
            known.refusal = _trial(encoder, path.tokens, learnt)
            known.skeleton = learnt if known.refusal is None else None
    elif known.skeleton is not None and known.skeleton.clock:
        # A template that writes the date renders otherwise tomorrow.
        assert isinstance(path.tokens, ByteTokens)
        again = learn_skeleton(encoder.known, kind, path.tokens)
        if isinstance(again, str):
            known.skeleton, known.refusal = None, again
        else:
            known.skeleton = again
    return known.skeleton is not None


def _trial(encoder: ChatEncoder, tokens: ByteTokens, skeleton: Skeleton) -> str | None:
    """The battery of hard contents both ways; what differs, or None."""
    reference = encoder.reference()
    trials = [conversation_of(skeleton.kind, contents) for contents in hard_contents(skeleton)]
    path = FastPath(tokens, {skeleton.kind: _Kind(skeleton=skeleton)})
    groups = _group(reference, trials)
    encoded = encode_groups(reference, path, groups, trials)
    starts = np.concatenate(([0], np.cumsum(encoded.lengths)))
    for number, row in enumerate(encoded.rows.tolist()):
        place = slice(int(starts[number]), int(starts[number + 1]))
        if _differs(reference, trials[row], encoded.ids[place], encoded.weights[place], skeleton.notes):
            return "its rendering depends on the wording of a content"
    return None


# ------------------------------------------------------------------------------------------------ encoding


# ------------------------------------------------------------------------------------------------ watching, joining


def _watch(
    encoder: ChatEncoder,
    path: FastPath,
    groups: dict[Kind, KindRows],
    encoded: EncodedRows,
    conversations: Sequence[Conversation],
) -> tuple[dict[int, tuple[str, ...]], tuple[str, ...]]:
    """(notes of rows by the skeletons of their kinds, warnings about kinds that failed and are off now)."""
    reference = encoder.reference()
    starts = np.concatenate(([0], np.cumsum(encoded.lengths)))
    where = {row: number for number, row in enumerate(encoded.rows.tolist())}
    notes: dict[int, tuple[str, ...]] = {}
    warnings = []
    for kind, group in groups.items():
        known = path.kinds[kind]
        assert known.skeleton is not None
        for row in group.places:
            number = where.get(row)
            if number is None:
                continue
            if known.skeleton.notes:
                notes[row] = known.skeleton.notes
            known.num_watched += 1
            if known.num_watched > ROWS_WATCHED_FIRST and known.num_watched % WATCH_EVERY:
                continue
            place = slice(int(starts[number]), int(starts[number + 1]))
            ids, weights = encoded.ids[place], encoded.weights[place]
            if _differs(reference, conversations[row], ids, weights, known.skeleton.notes):
                source = conversations[row].source
                known.skeleton, known.refusal = None, "a row came out otherwise than by the template itself"
                warnings.append(
                    f"fast encoding of {'/'.join(kind)} rows differs from the template at {source.path}:{source.line}; "
                    "they are encoded one by one from here on, and this batch was encoded anew"
                )
                break
    return notes, tuple(warnings)


def _differs(
    reference: ChatEncoder, conversation: Conversation, ids: np.ndarray, weights: np.ndarray, notes: tuple[str, ...]
) -> bool:
    try:
        wanted: Encoded = reference.encode(conversation)
    except RowError:
        return True
    return (
        not np.array_equal(wanted.example.input_ids, ids)
        or not np.array_equal(wanted.example.loss_weights, weights)
        or wanted.notes != notes
    )


def _assemble(
    encoder: ChatEncoder,
    conversations: Sequence[Conversation],
    encoded: EncodedRows | None,
    fast_notes: dict[int, tuple[str, ...]],
    warnings: tuple[str, ...] = (),
) -> EncodedBatch:
    """Joins the fast rows, cut to length, with all others encoded one by one."""
    problems: dict[int, RowError] = {}
    notes = dict(fast_notes)
    empty = np.zeros(0, dtype=np.int64)
    if encoded is None:
        encoded = EncodedRows(empty, np.zeros(0, np.int32), np.zeros(0, np.float32), empty)
    encoded, num_fast = _cut(encoder, encoded, problems, notes)
    is_slow = np.ones(len(conversations), dtype=bool)
    is_slow[encoded.rows] = False
    is_slow[list(problems)] = False
    slow: dict[int, Encoded] = {}
    for row in np.flatnonzero(is_slow).tolist():
        try:
            slow[row] = encoder.encode(conversations[row])
        except RowError as error:
            problems[row] = error
            continue
        notes.pop(row, None)
        if slow[row].notes:
            notes[row] = slow[row].notes
    lengths = np.zeros(len(conversations), dtype=np.int64)
    lengths[encoded.rows] = encoded.lengths
    for row, one in slow.items():
        lengths[row] = len(one.example.input_ids)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    ids, weights = encoded.ids, encoded.weights
    if slow:
        ids, weights = np.empty(int(starts[-1]), np.int32), np.empty(int(starts[-1]), np.float32)
        taken = ranges(starts[encoded.rows], encoded.lengths)
        ids[taken], weights[taken] = encoded.ids, encoded.weights
        for row, one in slow.items():
            ids[starts[row] : starts[row + 1]] = one.example.input_ids
            weights[starts[row] : starts[row + 1]] = one.example.loss_weights
    return EncodedBatch(
        ids=ids,
        loss_weights=weights,
        starts=starts,
        problems=dict(sorted(problems.items())),
        notes=dict(sorted((row, told) for row, told in notes.items() if row not in problems)),
        num_fast=num_fast,
        num_slow=len(conversations) - num_fast,
        warnings=warnings,
    )


def encode_one_by_one(encode: Callable[[Conversation], Encoded], conversations: Sequence[Conversation]) -> EncodedBatch:
    """The batch that `encode` gives row after row; a refused row is in `problems`."""
    problems: dict[int, RowError] = {}
    made: dict[int, Encoded] = {}
    for row, conversation in enumerate(conversations):
        try:
            made[row] = encode(conversation)
        except RowError as error:
            problems[row] = error
    ids, weights = ([getattr(one.example, name) for one in made.values()] for name in ("input_ids", "loss_weights"))
    lengths = [len(made[row].example.input_ids) if row in made else 0 for row in range(len(conversations))]
    return EncodedBatch(
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        loss_weights=np.concatenate([np.zeros(0, np.float32), *weights]),
        starts=np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))),
        problems=problems,
        notes={row: one.notes for row, one in made.items() if one.notes},
        num_fast=0,
        num_slow=len(conversations),
        media={row: one.example.media for row, one in made.items() if one.example.media},
    )


def _cut(
    encoder: ChatEncoder, encoded: EncodedRows, problems: dict[int, RowError], notes: dict[int, tuple[str, ...]]
) -> tuple[EncodedRows, int]:
    """Over-long rows by the encoder's policy: refused, cut at the end, or left to `encode`, which raises."""
    limit = encoder.max_seq_length
    long = encoded.lengths > limit
    if not long.any():
        return encoded, len(encoded.rows)
    firsts = np.cumsum(encoded.lengths) - encoded.lengths
    kept = ~long
    if encoder.overlong == "truncate":
        kept = np.ones(len(long), dtype=bool)
        for number in np.flatnonzero(long).tolist():
            row, first = int(encoded.rows[number]), int(firsts[number])
            if (encoded.weights[first : first + limit] > 0).any():
                notes[row] = (*notes.get(row, ()), "truncated")
            else:
                kept[number] = False
                problems[row] = RowError(
                    "no_supervised_tokens_after_truncation",
                    f"{encoded.lengths[number]} tokens, limit {limit}: nothing that is trained stands before the cut",
                )
    elif encoder.overlong == "drop":
        for number in np.flatnonzero(long).tolist():
            problems[int(encoded.rows[number])] = RowError(
                "too_long", f"{encoded.lengths[number]} tokens, limit {limit}"
            )
    lengths = np.minimum(encoded.lengths, limit)[kept]
    taken = ranges(firsts[kept], lengths)
    cut = EncodedRows(encoded.rows[kept], encoded.ids[taken], encoded.weights[taken], lengths)
    return cut, len(cut.rows) + len(problems)
