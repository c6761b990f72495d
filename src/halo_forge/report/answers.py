"""Which answers the page shows side by side, and what each won or lost. Failures come first: they teach more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from halo_forge.report.read_run import AnsweredItem, Flip, GivenAnswer
from halo_forge.report.visible import Clipped, Difference, clip, difference
from halo_forge.report.wording import item_score, label_of

Mark = Literal["lost", "both wrong", "won", "both right", "equal"]

# The first of these that was scored decides what "right" means: the strictest reading of the answer's meaning.
DECISIVE_METRICS = (
    "json_match", "numeric_match", "class_accuracy", "exact_match", "schema_valid", "json_valid", "token_f1",
)  # fmt: skip
MOST_SHOWN: dict[Mark, int] = {"lost": 6, "both wrong": 6, "won": 6, "both right": 2, "equal": 2}
FIRST_SHOWN = 5
MOST_LINKED = 20
"""Items won, and items lost, of one metric whose answers stand on the page."""
PROMPT_CHARS = 700
ANSWER_CHARS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    text: Difference
    num_hidden: int
    num_tokens: int
    stopped: bool
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownItem:
    number: int  # 1-based place among all answered items
    mark: Mark
    prompt: Clipped
    reference: Clipped
    base: ShownAnswer
    tuned: ShownAnswer
    images: tuple[str, ...] = ()  # small copies, as data: addresses
    media: tuple[str, ...] = ()  # where what was seen or heard lies


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """`counts` covers all items, `shown` only some."""

    metric: str
    begins: str  # what all prompts begin and end with (mostly the chat template's work), told once
    ends: str
    counts: dict[Mark, int]
    shown: tuple[ShownItem, ...]  # failures first; the page opens with the first FIRST_SHOWN
    num_items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlippedMetric:
    """Items of one yes/no metric that changed: how many, and the numbers of those that are shown."""

    label: str
    num_won: int
    num_lost: int
    won: tuple[int, ...]
    lost: tuple[int, ...]


def flipped(items: Sequence[AnsweredItem], flips: Sequence[Flip]) -> tuple[FlippedMetric, ...]:
    """In the order of the file. A flip of an answer that could not be read is counted and has no number."""
    metrics = []
    for name in dict.fromkeys(flip.metric for flip in flips):
        numbers: dict[bool, list[int]] = {True: [], False: []}
        totals: Counter[bool] = Counter()
        for flip in flips:
            if flip.metric == name:
                totals[flip.won] += 1
                if 1 <= flip.line <= len(items) and items[flip.line - 1].id == flip.id:
                    numbers[flip.won].append(flip.line)
        won, lost = (tuple(numbers[side][:MOST_LINKED]) for side in (True, False))
        metrics.append(
            FlippedMetric(label=label_of(name), num_won=totals[True], num_lost=totals[False], won=won, lost=lost)
        )
    return tuple(metrics)


def side_by_side(items: Sequence[AnsweredItem], flips: Sequence[FlippedMetric] = ()) -> SideBySide | None:
    """Some items of each mark, and all that a flip links to."""
    if not items:
        return None
    metric = decisive_metric(items)
    marks = [mark_of(item, metric) for item in items]
    begins, ends = common_frame([item.prompt for item in items])
    shown: list[ShownItem] = []
    for wanted, most in MOST_SHOWN.items():
        chosen = [index for index, mark in enumerate(marks) if mark == wanted][:most]
        shown.extend(_shown_item(index + 1, marks[index], items[index], (begins, ends)) for index in chosen)
    linked = {number for metric in flips for number in (*metric.won, *metric.lost)} - {item.number for item in shown}
    shown.extend(_shown_item(number, marks[number - 1], items[number - 1], (begins, ends)) for number in sorted(linked))
    shown.sort(key=lambda item: list(MOST_SHOWN).index(item.mark))
    counts = Counter(marks)
    return SideBySide(
        metric=label_of(metric) if metric else "",
        begins=begins,
        ends=ends,
        counts={mark: counts[mark] for mark in MOST_SHOWN if counts[mark]},
        shown=tuple(shown),
        num_items=len(items),
    )


def decisive_metric(items: Sequence[AnsweredItem]) -> str | None:
    scored = {name for item in items for name in item.tuned.scores}
    return next((name for name in DECISIVE_METRICS if name in scored), None)


def mark_of(item: AnsweredItem, metric: str | None) -> Mark:
    base = item.base.scores.get(metric) if metric else None
    tuned = item.tuned.scores.get(metric) if metric else None
    if base is None or tuned is None:
        return "equal"
    if tuned != base:
        return "won" if tuned > base else "lost"
    return "both right" if tuned >= 1 else "both wrong" if tuned <= 0 else "equal"


def common_frame(prompts: Sequence[str]) -> tuple[str, str]:
    """The whole lines that all prompts begin with and that all end with; both empty for a single prompt."""
    if len(prompts) < 2:
        return "", ""
    begins = common_beginning(prompts)
    begins = begins[: begins.rfind("\n") + 1]
    rests = [prompt[len(begins) :] for prompt in prompts]
    ends = common_beginning([rest[::-1] for rest in rests])[::-1]
    return begins, ends[ends.find("\n") + 1 :] if "\n" in ends else ""


def common_beginning(texts: Sequence[str]) -> str:
    """The first and the last in order differ earlier than any two others."""
    first, last = min(texts), max(texts)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _shown_item(number: int, mark: Mark, item: AnsweredItem, frame: tuple[str, str]) -> ShownItem:
    return ShownItem(
        number=number,
        mark=mark,
        prompt=clip(item.prompt.removeprefix(frame[0]).removesuffix(frame[1]), PROMPT_CHARS),
        reference=clip(item.reference, ANSWER_CHARS),
        base=_shown_answer(item.base, None),
        tuned=_shown_answer(item.tuned, item.reference),
        images=_images(item),
        media=tuple(f"{medium.kind} {medium.path}" for medium in item.media),
    )


def _images(item: AnsweredItem) -> tuple[str, ...]:
    if not item.media:
        return ()
    from halo_forge.media.images import thumbnails

    return tuple(thumbnails(item.media))


def _shown_answer(answer: GivenAnswer, reference: str | None) -> ShownAnswer:
    clipped = clip(answer.text, ANSWER_CHARS)
    is_whole = not clipped.num_hidden and reference is not None
    return ShownAnswer(
        text=difference(answer.text, reference or "") if is_whole else Difference(clipped.text, "", ""),
        num_hidden=clipped.num_hidden,
        num_tokens=answer.num_tokens,
        stopped=answer.stopped,
        scores=tuple(
            (label_of(name), item_score(name, score))
            for name, score in answer.scores.items()
            if name not in ("stop_rate", "answer_length")
        ),
    )
