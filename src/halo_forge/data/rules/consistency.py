"""What only shows with many rows in view: the same prompt with different answers, and a style that is not one style.

Workers reduce each conversation to one 32-bit number (`style_features`); a million rows cost 4 MB here and a few sorts.

    bits  0-2  form of the last answer (FORMS)          bits 10-15  length of the last answer, 3 steps per doubling
    bits  3-5  how it ends (ENDINGS)                    bits 16-31  digest of the system prompt, 0 for none
    bits  6-7  case of its first letter (CASES)
    bits  8-9  shape of the conversation (SHAPES)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from halo_forge.chat.records import Conversation, Message, TextPart

FORMS = ("plain text", "markdown", "JSON", "a code block", "a list", "HTML or XML", "a tool call", "no text")
ENDINGS = (
    "a full stop",
    "no mark",
    "a question or exclamation mark",
    "a bracket or quote",
    "a colon or comma",
    "a digit",
)
CASES = ("a capital", "a small letter", "no letter")
SHAPES = ("one answer", "two answers", "three or more answers", "no user")

MIN_ROWS = 50
"""With fewer rows in a source nothing is said about its style."""
MAIN_FRAC, ODD_FRAC = 0.7, 0.3
"""A style is inconsistent when most rows (MAIN_FRAC) share it and at most ODD_FRAC, but more than a few, do not."""
MIN_ODD_FRAC = 0.002
NUM_EXAMPLES = 3
_FULL_STOPS, _QUERIES, _CLOSERS = ".。．…", "?!？！", "\"'”’»)]}>`）」』*_|"
_STEPS_PER_DOUBLING = 3


def style_features(conversation: Conversation) -> int:
    """The style of a conversation as an unsigned 32-bit number, equal in every process. About 3 us."""
    messages = conversation.messages
    system = 0
    num_answers = 0
    last: Message | None = None
    has_user = False
    for message in messages:
        role = message.role
        if role == "assistant":
            num_answers += 1
            last = message
        elif role == "user":
            has_user = True
        elif role == "system":
            system = zlib.crc32(message.text.encode("utf-8", "surrogatepass")) % 0xFFFF + 1
        elif role == "document":
            last = message
    shape = 3 if not has_user else min(num_answers, 3) - 1 if num_answers else 0
    if last is None:
        return 7 | shape << 8 | system << 16
    parts = last.parts
    text = (parts[0].text if len(parts) == 1 and type(parts[0]) is TextPart else last.text).strip()
    if not text:
        return (6 if last.tool_calls else 7) | 2 << 6 | shape << 8 | system << 16
    length = min(63, int(math.log2(len(text)) * _STEPS_PER_DOUBLING))
    return _form(text) | _ending(text[-1]) << 3 | _case(text) << 6 | shape << 8 | length << 10 | system << 16


def _form(text: str) -> int:
    first = text[0]
    if first in "{[" and text[-1] in "}]":
        return 2
    if first == "`" and text.startswith("```") and text.endswith("```"):
        return 3
    if first == "<" and text[-1] == ">":
        return 5
    if (text[1:2] == " " and first in "-*•") or (text[1:3] in (". ", ") ") and first.isdigit()):
        return 4
    return int("```" in text or "**" in text or "\n## " in text or "\n### " in text or "\n- " in text)


def _ending(last: str) -> int:
    if last in _FULL_STOPS:
        return 0
    if last in _QUERIES:
        return 2
    if last in _CLOSERS:
        return 3
    if last in ":,;：，；-":
        return 4
    return 5 if last.isdigit() else 1


def _case(text: str) -> int:
    first = text[0]
    if not first.isalpha():
        first = next((letter for letter in text[:20] if letter.isalpha()), "")
    return 0 if first.isupper() else 1 if first.islower() else 2


# ------------------------------------------------------------------------------------------- contradictions


def find_contradictions(
    prompt_keys: NDArray[np.uint64], answer_keys: NDArray[np.uint64], kept: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Rows with one prompt and different answers. Memory: about 40 bytes a row.

    prompt_keys, answer_keys  uint64 [num_rows, 2], hashes     kept  bool [num_rows], the rows to compare
    Returns one int64 array per such prompt: its first row, then every row that answers otherwise, in row order.
    Groups come in the order of their first rows.
    """
    rows = np.flatnonzero(kept)
    if len(rows) < 2:
        return []
    order = np.lexsort((prompt_keys[rows, 1], prompt_keys[rows, 0]))  # stable: rows of a group stay in row order
    rows = rows[order]
    prompts, answers = prompt_keys[rows], answer_keys[rows]
    is_new = np.ones(len(rows), np.bool_)
    is_new[1:] = (prompts[1:] != prompts[:-1]).any(axis=1)
    starts = np.flatnonzero(is_new)
    group = np.cumsum(is_new) - 1
    differs = (answers != answers[starts[group]]).any(axis=1)
    places = np.flatnonzero(differs)
    if not len(places):
        return []
    names, firsts = np.unique(group[places], return_index=True)
    found = [
        np.concatenate((rows[starts[name] : starts[name] + 1], rows[members]))
        for name, members in zip(names, np.split(places, firsts[1:]), strict=True)
    ]
    return sorted((members.astype(np.int64) for members in found), key=lambda members: int(members[0]))


# ----------------------------------------------------------------------------------------------------- style


def style_report(
    features: NDArray[np.uint32],
    sources: NDArray[np.integer],
    names: Sequence[str],
    place: Callable[[int], str],
    num_tokens: NDArray[np.integer] | None = None,
) -> tuple[str, ...]:
    """Short sentences on what is not uniform, source by source, with counts and places; empty where all is.

    features  uint32 [num_rows] of `style_features`    sources  [num_rows], index into `names`; below 0 is left out
    place     row -> "file:line"                       num_tokens  [num_rows], for the balance of lengths
    """
    sentences: list[str] = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(sources == number)
        if len(rows) < MIN_ROWS:
            continue
        said = [
            *_mixtures(features[rows], rows, place),
            *_system_prompts(features[rows], rows, place),
            *_lengths(features[rows], rows, place),
            *(_balance(num_tokens[rows], rows, place) if num_tokens is not None else ()),
        ]
        sentences += [f"{name}: {sentence}" for sentence in said]
    return tuple(sentences)


def _mixtures(features: NDArray[np.uint32], rows: NDArray[np.int64], place: Callable[[int], str]) -> Iterator[str]:
    aspects = (
        ("answers are", FORMS, features & 7),
        ("answers end with", ENDINGS, features >> 3 & 7),
        ("answers begin with", CASES, features >> 6 & 3),
    )  # how many turns a conversation has is content, not style
    for verb, labels, values in aspects:
        counts = np.bincount(values, minlength=len(labels))
        main = int(counts.argmax())
        if labels is CASES and main == 2:
            continue  # a script without capitals
        num_odd = len(rows) - int(counts[main])
        if not (len(rows) * MAIN_FRAC <= counts[main] and len(rows) * MIN_ODD_FRAC <= num_odd <= len(rows) * ODD_FRAC):
            if counts[main] < len(rows) * MAIN_FRAC:
                yield f"{verb} mixed: {_shares(counts, labels, len(rows))}"
            continue
        odd = [int(label) for label in np.argsort(-counts, kind="stable") if label != main and counts[label]][:3]
        told = "; ".join(f"{counts[label]} {labels[label]} ({_places(rows[values == label], place)})" for label in odd)
        yield f"{counts[main]} of {len(rows)} {verb} {labels[main]}, but {told}"


def _shares(counts: NDArray[np.int64], labels: Sequence[str], num_rows: int) -> str:
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    return ", ".join(f"{100 * counts[label] / num_rows:.0f} % {labels[label]}" for label in order[:4])


def _places(rows: NDArray[np.int64], place: Callable[[int], str]) -> str:
    shown = ", ".join(place(int(row)) for row in rows[:NUM_EXAMPLES])
    return f"{shown}, ..." if len(rows) > NUM_EXAMPLES else shown


def _system_prompts(
    features: NDArray[np.uint32], rows: NDArray[np.int64], place: Callable[[int], str]
) -> Iterator[str]:
    digests = features >> 16
    values, firsts, counts = np.unique(digests, return_index=True, return_counts=True)
    num_without = int(counts[values == 0].sum())
    num_different = int((values != 0).sum())
    if num_without and num_different:
        few_without = num_without * 2 <= len(rows)
        odd = rows[digests == 0] if few_without else rows[digests != 0]
        has, lack = ("no", "one") if few_without else ("a", "none")
        yield f"{len(odd)} of {len(rows)} have {has} system prompt ({_places(odd, place)}), the others have {lack}"
    if num_different > 1:
        at = rows[np.sort(firsts[values != 0])]
        yield f"{num_different} different system prompts ({_places(at, place)})"


def _lengths(features: NDArray[np.uint32], rows: NDArray[np.int64], place: Callable[[int], str]) -> Iterator[str]:
    """Answers more than sixteen times as long, or as short, as the median, and outside nine tenths of all."""
    steps = (features >> 10 & 63).astype(np.int64)
    low, middle, high = np.percentile(steps, (5, 50, 95))
    margin = _STEPS_PER_DOUBLING * math.log2(8)
    for kind, odd in (
        ("longer", steps > max(high, middle + margin) + _STEPS_PER_DOUBLING),
        ("shorter", steps < min(low, middle - margin) - _STEPS_PER_DOUBLING),
    ):
        if odd.any():
            typical = round(2 ** (middle / _STEPS_PER_DOUBLING))
            yield (
                f"{int(odd.sum())} of {len(rows)} answers are far {kind} than the usual {typical} characters "
                f"({_places(rows[odd], place)})"
            )


def _balance(tokens: NDArray[np.integer], rows: NDArray[np.int64], place: Callable[[int], str]) -> Iterator[str]:
    """Whether a few long rows hold most of what is trained."""
    order = np.argsort(-tokens, kind="stable")
    total = int(tokens.sum())
    if not total:
        return
    num_top = max(1, len(rows) // 20)
    share = int(tokens[order[:num_top]].sum()) / total
    if share >= 0.3:
        yield (
            f"the longest {num_top} of {len(rows)} rows hold {100 * share:.0f} % of the tokens "
            f"({_places(rows[order], place)})"
        )
