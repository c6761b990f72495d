"""Geometry of the data section's charts: where all rows went, languages, lengths. Percent across, pixels down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halo_forge.report.wording import compact, count, share

MIN_SEGMENT_PERCENT = 0.35  # a single row among a million still has a visible mark
MAX_BARS = 24
MAX_LANGUAGES = 7
HISTOGRAM_HEIGHT = 130


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a bar that is 100 % wide. `tone` is a class of the style sheet."""

    tone: str
    label: str
    rows: int
    percent: str
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """All rows as one bar, and those that were left out once more as a bar of their own, drawn as wide as the first.
    `zoom` is the path that joins the two, in a stretched box 1000 wide; empty where nothing was left out."""

    rows: tuple[Segment, ...]
    left_out: tuple[Segment, ...]
    zoom: str
    words: str


@dataclass(frozen=True, slots=True)
class LengthBar:
    x: float
    width: float
    y: float
    height: float
    label: str
    count_label: str
    words: str
    is_spare: bool  # its labels give way on narrow screens


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    height: int
    bars: tuple[LengthBar, ...]
    words: str


def flow_chart(kept: int, mended: int, num_left_out: int, left_out: Sequence[tuple[str, str, int]]) -> Flow | None:
    """kept  rows kept as they are; left_out  (tone, label, rows) in the order of the second bar, which is left away
    where it would say nothing new."""
    total = kept + mended + num_left_out
    if total < 1 or min(kept, mended, num_left_out) < 0:
        return None
    parts = [
        ("kept", "kept as they are", kept),
        ("fixed", "mended and kept", mended),
        ("out", "left out", num_left_out),
    ]
    first = bar_segments(parts)
    second = bar_segments(left_out) if [tone for tone, _, _ in left_out] != ["out"] else ()
    zoom = ""
    if second:
        start, end = first[-1].x * 10, (first[-1].x + first[-1].width) * 10
        zoom = f"M{start:g} 0C{start:g} 20 0 8 0 28L1000 28C1000 8 {end:g} 20 {end:g} 0Z"
    words = f"{count(total)} rows read: " + ", ".join(f"{count(part.rows)} {part.label}" for part in first)
    if second:
        words += ". Of those left out: " + ", ".join(f"{count(part.rows)} {part.label}" for part in second)
    return Flow(rows=first, left_out=second, zoom=zoom, words=words + ".")


def bar_segments(parts: Sequence[tuple[str, str, int]]) -> tuple[Segment, ...]:
    """(tone, label, rows) as shares of their sum. A part too small to be seen takes what it lacks from the others."""
    present = [part for part in parts if part[2] > 0]
    total = sum(rows for _, _, rows in present)
    widths = [max(100 * rows / total, MIN_SEGMENT_PERCENT) for _, _, rows in present]
    scale = 100 / (sum(widths) or 1)
    segments, x = [], 0.0
    for (tone, label, rows), width in zip(present, widths, strict=True):
        segments.append(Segment(tone, label, rows, small_share(rows, total), round(x, 2), round(width * scale, 2)))
        x += width * scale
    return tuple(segments)


def small_share(part: int, total: int) -> str:
    """A share that is neither rounded down to nothing nor up to everything."""
    if part <= 0 or total <= 0:
        return "0 %"
    if part < total and part / total > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if part / total < 0.001 else share(part / total)


def language_bar(languages: Mapping[str, int]) -> tuple[Segment, ...]:
    """The most frequent languages; the others together come last, rows without a verdict after them."""
    known = sorted(
        ((code, rows) for code, rows in languages.items() if code != "unknown" and rows > 0),
        key=lambda item: (-item[1], item[0]),
    )
    parts = [(f"l{place}", LANGUAGES.get(code, code), rows) for place, (code, rows) in enumerate(known[:MAX_LANGUAGES])]
    rest = known[MAX_LANGUAGES:]
    parts.append(("other", f"{len(rest)} others", sum(rows for _, rows in rest)))
    parts.append(("unknown", "not told", languages.get("unknown", 0)))
    return bar_segments(parts)


def length_histogram(length_counts: Mapping[str, int]) -> Histogram | None:
    """Rows per range of tokens. Keys are `64-127`, or `2048` and `2048+`; what has no number is passed over."""
    found = []
    for key, rows in length_counts.items():
        number = re.match(r"\d{1,9}", key)
        if number and rows >= 0:
            found.append((int(number[0]), key, rows))
    found.sort()
    if len(found) > MAX_BARS:
        rest = found[MAX_BARS - 1 :]
        found = [*found[: MAX_BARS - 1], (rest[0][0], f"{rest[0][0]}+", sum(rows for _, _, rows in rest))]
    total, most = sum(rows for _, _, rows in found), max((rows for _, _, rows in found), default=0)
    if not most:
        return None
    step = 100 / max(len(found), 4)  # one range alone would fill the chart with one block
    bars = []
    for place, (low, key, rows) in enumerate(found):
        height = max(HISTOGRAM_HEIGHT * rows / most, 1.5) if rows else 0.0
        bars.append(
            LengthBar(
                x=round(place * step + step * 0.06, 2),
                width=round(step * 0.88, 2),
                y=round(HISTOGRAM_HEIGHT - height, 1),
                height=round(height, 1),
                label=f"{low:,}",
                count_label=compact(rows),
                words=f"{key.replace('-', ' to ')} tokens: {count(rows)} rows, {small_share(rows, total)}",
                is_spare=len(found) > 6 and place % 2 == 1,
            )
        )
    peak = max(found, key=lambda item: item[2])
    words = f"Rows by length. Most, {count(peak[2])} of {count(total)}, have {peak[1].replace('-', ' to ')} tokens."
    return Histogram(height=HISTOGRAM_HEIGHT, bars=tuple(bars), words=words)


LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "la": "Latin", "lt": "Lithuanian", "lv": "Latvian",
    "ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "ta": "Tamil",
    "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
