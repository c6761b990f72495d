"""Many conversations at once, with exactly the ids, weights, notes and refusals of `ChatEncoder.encode` one by one.

A row of a known kind (skeleton.py) is rendered by joining strings and encoded together with all others; where its
turns are follows from the lengths of its contents in bytes (byte_tokens.py). Whatever does not come out exactly as
the skeleton says goes to `encode`: a token across a border, a special token in content, text that is normalised.

    proven     a kind is used only where the template was traced and a battery of hard contents came out equal
    watched    the first rows of each kind and then every 256th also go through `encode`; a difference switches the kind
               off, encodes the whole batch anew by `encode`, and is told in `warnings`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from halo_forge.chat.byte_tokens import ByteTokens, learn_byte_tokens
from halo_forge.chat.records import Conversation, TextPart
from halo_forge.chat.skeleton import (
    DOCUMENT,
    THINKING,
    Kind,
    Skeleton,
    conversation_of,
    hard_contents,
    learn_skeleton,
    place_offsets,
)
from halo_forge.errors import RowError

if TYPE_CHECKING:
    from halo_forge.chat.example import ChatEncoder, Encoded
    from halo_forge.chat.known import KnownTokenizer

ROWS_TO_LEARN = 64
"""A kind is learnt once this many of its rows were met: learning costs about as much as encoding them."""
ROWS_WATCHED_FIRST = 32
WATCH_EVERY = 256
_INFINITE = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Examples end to end, in the order of the conversations; a refused one has no tokens.

    ids           int32 [N]
    loss_weights  float32 [N]
    starts        int64 [num_rows + 1]
    problems      row -> why it was refused         notes  row -> what `Encoded.notes` would hold, where not empty
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


@dataclass(slots=True)
class _Rows:
    """Rows of one kind: their places in the batch and their contents, row after row.

    overrides  (number of the row in here, message) -> the message's own weight"""

    kind: Kind
    places: list[int] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    overrides: dict[tuple[int, int], float] = field(default_factory=dict)


@dataclass(slots=True)
class _Encoded:
    """Rows that came out as their skeleton says: flat arrays, row numbers in `rows` ascending."""

    rows: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray


def fast_path(known: KnownTokenizer) -> FastPath:
    if known.fast is None:
        known.fast = FastPath(learn_byte_tokens(known.encoder))
    path: FastPath = known.fast
    return path


def encode_batch(encoder: ChatEncoder, conversations: Sequence[Conversation]) -> EncodedBatch:
    """See the module. Raises DataError as `encode` does, for the first row that it is raised for."""
    path = fast_path(encoder.known) if encoder.fast else None
    if path is None or isinstance(path.tokens, str):
        return _assemble(encoder, conversations, None, {})
    groups = _group(encoder, conversations)
    ready = {
        kind: rows
        for kind, rows in groups.items()
        if _is_ready(encoder, path, kind, len(rows.places), conversations[rows.places[0]])
    }
    encoded = _encode_groups(encoder, path, ready, conversations)
    seen, warnings = _watch(encoder, path, ready, encoded, conversations)
    if warnings:
        return _assemble(encoder, conversations, None, {}, warnings)
    return _assemble(encoder, conversations, encoded, seen)


# ------------------------------------------------------------------------------------------------ rows and kinds


def _group(encoder: ChatEncoder, conversations: Sequence[Conversation]) -> dict[Kind, _Rows]:
    """The rows that may be of a known kind."""
    groups: dict[str, _Rows | None] = {}
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


def _kind_rows(name: str, trains_all: bool) -> _Rows | None:
    """An empty group for a kind, or None for one that only `encode` deals with."""
    kind = tuple(name.split("/")[:-1])
    answers = any(role.endswith("assistant") for role in kind)
    usable = answers or kind == DOCUMENT or (trains_all and bool(kind))
    if not usable or "tool" in kind or ("document" in kind and kind != DOCUMENT):
        return None
    return _Rows(kind)


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
    encoded = _encode_groups(reference, path, groups, trials)
    starts = np.concatenate(([0], np.cumsum(encoded.lengths)))
    for number, row in enumerate(encoded.rows.tolist()):
        place = slice(int(starts[number]), int(starts[number + 1]))
        if _differs(reference, trials[row], encoded.ids[place], encoded.weights[place], skeleton.notes):
            return "its rendering depends on the wording of a content"
    return None


# ------------------------------------------------------------------------------------------------ encoding


def _encode_groups(
    encoder: ChatEncoder, path: FastPath, groups: dict[Kind, _Rows], conversations: Sequence[Conversation]
) -> _Encoded:
    tokens = path.tokens
    assert isinstance(tokens, ByteTokens)
    texts: list[str] = []
    rows: list[int] = []
    jobs = []
    for kind, group in groups.items():
        skeleton = path.kinds[kind].skeleton
        assert skeleton is not None
        kept, sizes = _render_rows(skeleton, group, tokens, texts)
        jobs.append((skeleton, group, kept, sizes, len(rows)))
        rows += [group.places[number] for number in kept]
    ids, starts = tokens.encode(texts)
    begins = np.zeros(len(ids) + 1, dtype=np.int64)  # byte offset of each token in all texts end to end
    np.cumsum(tokens.byte_lengths[ids], out=begins[1:])
    specials = np.flatnonzero(tokens.is_structural[ids])
    weights = np.full(len(ids), float(encoder.train_on == "all"), dtype=np.float32)
    good = np.zeros(len(rows), dtype=bool)
    for skeleton, group, kept, sizes, first in jobs:
        _fill_group(
            encoder,
            skeleton,
            group,
            kept,
            sizes,
            slice(first, first + len(kept)),
            _Stream(ids, starts, begins, specials, weights, good),
            conversations,
        )
    return _in_row_order(np.array(rows, dtype=np.int64), ids, weights, starts, good)


def _render_rows(
    skeleton: Skeleton, group: _Rows, tokens: ByteTokens, texts: list[str]
) -> tuple[list[int], np.ndarray]:
    """Appends the renderings of rows that the skeleton holds for; (their numbers, bytes [rows, contents] of what they
    show in the order of the rendering)."""
    contents, stride = group.contents, skeleton.num_contents
    unfit = _unfit_contents(skeleton, contents)
    lengths = list(map(len, contents))
    for number, text in enumerate(contents):
        if not text.isascii() and number not in unfit:
            try:
                lengths[number] = len(text.encode())
            except UnicodeEncodeError:
                unfit.add(number)
    unfit_rows = {number // stride for number in unfit}
    pieces = [""] * (2 * len(skeleton.order) + 1)
    pieces[::2] = skeleton.literals
    kept = []
    is_plain = not tokens.normalises
    in_order = skeleton.order == tuple(range(stride))
    for number in range(len(group.places)):
        if number in unfit_rows:
            continue
        shown = contents[number * stride : (number + 1) * stride]
        pieces[1::2] = shown if in_order else [shown[place] for place in skeleton.order]
        text = "".join(pieces)
        if is_plain or tokens.is_normal(text):
            texts.append(text)
            kept.append(number)
    sizes = np.array(lengths, dtype=np.int64).reshape(-1, stride)
    return kept, sizes[kept][:, list(skeleton.order)]


def _unfit_contents(skeleton: Skeleton, contents: list[str]) -> set[int]:
    fits, always, trims = skeleton.fits, skeleton.kind == DOCUMENT, skeleton.trims
    unfit = set()
    for number, text in enumerate(contents):
        first = text[0]
        quick = first.isalnum() and first < "\U00020000" and not (trims and text[-1].isspace())
        if not (quick or always or fits(text)):
            unfit.add(number)
    if skeleton.words:
        everything = "\0".join(contents)
        for word in skeleton.words:
            if word in everything:
                unfit.update(number for number, text in enumerate(contents) if word in text)
    return unfit


@dataclass(slots=True)
class _Stream:
    """All texts of a batch as tokens: ids, where each text starts, the byte each token begins at, special tokens,
    weights to be filled, and whether a row came out well."""

    ids: np.ndarray
    starts: np.ndarray
    begins: np.ndarray
    specials: np.ndarray
    weights: np.ndarray
    good: np.ndarray


def _fill_group(
    encoder: ChatEncoder,
    skeleton: Skeleton,
    group: _Rows,
    kept: list[int],
    sizes: np.ndarray,
    texts: slice,
    stream: _Stream,
    conversations: Sequence[Conversation],
) -> None:
    """Checks the rows of a kind against its skeleton and writes the weights of those that agree."""
    if not kept:
        return
    firsts, ends = stream.starts[texts.start : texts.stop], stream.starts[texts.start + 1 : texts.stop + 1]
    base = stream.begins[firsts]
    content_ends = np.zeros((len(kept), len(skeleton.order) + 1), dtype=np.int64)
    np.cumsum(sizes, axis=1, out=content_ends[:, 1:])
    literal_bytes = sum(len(literal.encode()) for literal in skeleton.literals)
    good = stream.begins[ends] - base == content_ends[:, -1] + literal_bytes
    good &= _has_structure(skeleton, stream, firsts, ends, base, content_ends)
    own = np.array([conversations[group.places[number]].weight for number in kept], dtype=np.float32)
    wanted = _wanted_weights(encoder, skeleton, group, kept)
    if encoder.train_on != "all" and skeleton.kind != DOCUMENT:
        good &= ((wanted > 0) & (wanted * own[:, None] > 0)).any(axis=1)
    good &= (own > 0) & (ends - firsts > 1)
    edges = []
    for turn in skeleton.turns:
        both = place_offsets((turn.start, turn.end), content_ends) + base[:, None]
        found = np.searchsorted(stream.begins, both)
        good &= (stream.begins[np.minimum(found, len(stream.begins) - 1)] == both).all(axis=1)
        good &= (found[:, 0] > firsts) & (found[:, 1] > found[:, 0]) & (found[:, 1] <= ends)
        edges.append(found)
    stream.good[texts] = good
    if skeleton.kind == DOCUMENT:
        _fill(stream.weights, firsts[good], ends[good], np.ones(int(good.sum()), dtype=np.float32))
    for number, found in enumerate(edges):
        value = wanted[:, number]
        chosen = good & (~np.isnan(value) if encoder.train_on == "all" else value != 0)
        _fill(stream.weights, found[chosen, 0], found[chosen, 1], value[chosen])
    stream.weights[firsts[good]] = 0.0
    if (own != 1).any():
        odd = good & (own != 1)
        for first, end, weight in zip(firsts[odd].tolist(), ends[odd].tolist(), own[odd], strict=True):
            stream.weights[first:end] *= weight


def _has_structure(
    skeleton: Skeleton,
    stream: _Stream,
    firsts: np.ndarray,
    ends: np.ndarray,
    base: np.ndarray,
    content_ends: np.ndarray,
) -> np.ndarray:
    """bool [rows]: the special tokens are the skeleton's, at its places, and no others."""
    begin = np.searchsorted(stream.specials, firsts)
    count = len(skeleton.structural_ids)
    right = np.searchsorted(stream.specials, ends) - begin == count
    if not count or not right.any():
        return right
    places = stream.specials[begin[right][:, None] + np.arange(count)]
    agree = (stream.ids[places] == np.array(skeleton.structural_ids)).all(axis=1)
    offsets = place_offsets(skeleton.structural_places, content_ends[right]) + base[right][:, None]
    agree &= (stream.begins[places] == offsets).all(axis=1)
    right[right] = agree
    return right


def _wanted_weights(encoder: ChatEncoder, skeleton: Skeleton, group: _Rows, kept: list[int]) -> np.ndarray:
    """float32 [rows, turns]; with train_on "all", NaN where a turn has no weight of its own."""
    count = len(skeleton.turns)
    policy = np.ones(count, dtype=np.float32)
    if encoder.train_on == "last_assistant":
        policy[:-1] = 0.0
    if encoder.train_on == "all":
        policy[:] = np.nan
    wanted = np.tile(policy, (len(kept), 1))
    if group.overrides:
        column = {turn.message: number for number, turn in enumerate(skeleton.turns)}
        line = {number: place for place, number in enumerate(kept)}
        for (number, message), weight in group.overrides.items():
            if number in line and message in column:
                wanted[line[number], column[message]] = weight
    return wanted


def _fill(array: np.ndarray, firsts: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    """array[first:end] = value, for each of many ranges."""
    lengths = ends - firsts
    array[_ranges(firsts, lengths)] = np.repeat(values, lengths)


def _ranges(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of many ranges, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum()))


def _in_row_order(
    rows: np.ndarray, ids: np.ndarray, weights: np.ndarray, starts: np.ndarray, good: np.ndarray
) -> _Encoded:
    lengths = np.diff(starts)
    if good.all() and (np.diff(rows) > 0).all():
        return _Encoded(rows, ids, weights, lengths)
    chosen = np.flatnonzero(good)
    chosen = chosen[np.argsort(rows[chosen], kind="stable")]
    taken = _ranges(starts[:-1][chosen], lengths[chosen])
    return _Encoded(rows[chosen], ids[taken], weights[taken], lengths[chosen])


# ------------------------------------------------------------------------------------------------ watching, joining


def _watch(
    encoder: ChatEncoder,
    path: FastPath,
    groups: dict[Kind, _Rows],
    encoded: _Encoded,
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
    encoded: _Encoded | None,
    fast_notes: dict[int, tuple[str, ...]],
    warnings: tuple[str, ...] = (),
) -> EncodedBatch:
    """Joins the fast rows, cut to length, with all others encoded one by one."""
    problems: dict[int, RowError] = {}
    notes = dict(fast_notes)
    empty = np.zeros(0, dtype=np.int64)
    if encoded is None:
        encoded = _Encoded(empty, np.zeros(0, np.int32), np.zeros(0, np.float32), empty)
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
        taken = _ranges(starts[encoded.rows], encoded.lengths)
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


def _cut(
    encoder: ChatEncoder, encoded: _Encoded, problems: dict[int, RowError], notes: dict[int, tuple[str, ...]]
) -> tuple[_Encoded, int]:
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
    taken = _ranges(firsts[kept], lengths)
    cut = _Encoded(encoded.rows[kept], encoded.ids[taken], encoded.weights[taken], lengths)
    return cut, len(cut.rows) + len(problems)
