"""Does a training row repeat a benchmark item, or a held-out row? Words are compared blind to case, white space,
composition and punctuation ("words" below: runs of letters and digits).

    exact     the row's prompt, or prompt and answer, has the words of the item: its prompt, prompt and answer, or
              prompt and choices (lettered or not). A prompt of fewer than MIN_PROMPT_WORDS words, or one that several
              items of its benchmark share ("Which of the following is true?"), counts only with answer or choices.
    near      the item's prompt (8 words or more) stands in the row, at any place, word by word; or the row has, in
              order and within one passage, at least NEAR_COVERAGE of the words of the item's prompt or of the whole
              item (prompt with choices or answer), of 13 words or more.
    ngram_13  row and item share a run of 13 words or more.
    ngram_8   row and item share a run of 8 to 12 words.

exact and near say that the item is in the row; n-grams say that some of its words are. An 8-gram that stands in more
than COMMON_GRAM_ITEMS items of all benchmarks together is a phrase, one with fewer than MIN_RUN_LETTER_WORDS words of
letters is arithmetic ("5 x 20 100 5 20 100"); they say nothing, and runs made of nothing else are not reported. Every
row gets its strongest hit; among equals the largest overlap (near) or the longest run, then the first item.

The index is built once and sent to the workers; there one batch is hashed at once (word_grams) and looked up in a bit
table, which passes over nearly all n-grams. Whatever is left is compared word by word: no hit stands on a hash.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from halo_forge.artifacts import ContaminationHit, ContaminationReport
from halo_forge.data.overlap.benchmark_items import Benchmark
from halo_forge.data.overlap.gram_index import GramIndex, gram_index
from halo_forge.data.overlap.plain_text import SYSTEM_END, plain
from halo_forge.data.overlap.word_grams import Words, word_tuples, words_of
from halo_forge.errors import DataError

HitKind = Literal["exact", "near", "ngram_13", "ngram_8"]
KINDS: tuple[HitKind, ...] = ("exact", "near", "ngram_13", "ngram_8")
MIN_PROMPT_WORDS = ANCHOR_WORDS = 5
RUN_WORDS, LONG_RUN_WORDS = 8, 13
NEAR_MIN_WORDS = 13
NEAR_COVERAGE = 0.8
MIN_RUN_LETTER_WORDS = 5
MIN_ANCHORS = 2
MIN_ANCHOR_SHARE = 0.12
"""An item is compared with a row that shares so many, and such a share, of the 5-grams of its prompt."""
COMMON_ANCHOR_ITEMS = 8
COMMON_GRAM_ITEMS = 10
MAX_CANDIDATES = 8
"""Items compared word by word with one row: those with the most shared 5-grams."""
MAX_ROWS = 2**12
"""Rows looked at at once, whatever the size of the batch."""
MAX_ITEMS = 2**24 - 1
NOT_WORD = re.compile(r"[^\w\x00-\x7f]")
_ASCII_WORD = bytes(byte if chr(byte).isalnum() or byte >= 0x80 or byte == 0 else 0x20 for byte in range(256))


@dataclass(frozen=True, slots=True)
class Hit:
    """overlap  exact: 1; near: share of the item's words that stand in the row in order; ngram_n: share of the item's
    different n-grams that stand in the row.  excerpt: the longest run of words that both have, as compared."""

    kind: HitKind
    benchmark: str
    item: str
    overlap: float
    excerpt: str


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """Words of one item, separated by single spaces."""

    benchmark: str
    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...]

    @property
    def whole(self) -> str:
        """Prompt and choices, or prompt and answer where there are no choices."""
        return " ".join(text for text in (self.prompt, *(self.choices or (self.answer,))) if text)

    def forms(self) -> Iterator[str]:
        """What an exact copy may look like; the prompt alone comes first."""
        yield self.prompt
        if self.answer:
            yield f"{self.prompt} {self.answer}"
        if self.choices:
            yield " ".join((self.prompt, *self.choices))
            lettered = (f"{chr(ord('a') + place)} {choice}" for place, choice in enumerate(self.choices[:26]))
            yield " ".join((self.prompt, *lettered))


def words_in(texts: Sequence[str]) -> list[bytes]:
    """Every text with everything but letters and digits replaced by spaces, as UTF-8."""
    joined = "\0".join([text if text.isascii() else NOT_WORD.sub(" ", text) for text in texts])
    return joined.encode().translate(_ASCII_WORD).split(b"\0")


def words_text(text: str) -> str:
    """The words of a text as written, separated by single spaces."""
    return " ".join(words_in([plain(text).replace("\0", " ")])[0].decode().split())


@dataclass(frozen=True, slots=True)
class BenchmarkIndex:
    """Picklable; about 50 bytes per word of the benchmarks.

    benchmarks      (name, sha256, number of items)
    form_keys       uint64 [F] sorted, keys of exact forms; form_items int32 [F]
    anchors, runs   5-grams (without those in more than COMMON_ANCHOR_ITEMS items) and 8-grams of the items
    min_anchors     int32 [items]: shared anchors from which on an item is compared
    num_left_out    8-grams left out: in more than COMMON_GRAM_ITEMS items, or arithmetic
    """

    benchmarks: tuple[tuple[str, str, int], ...]
    items: tuple[IndexedItem, ...]
    form_keys: np.ndarray
    form_items: np.ndarray
    anchors: GramIndex
    runs: GramIndex
    min_anchors: np.ndarray
    num_left_out: int

    @classmethod
    def build(cls, benchmarks: Sequence[Benchmark]) -> BenchmarkIndex:
        """Raises DataError for more than MAX_ITEMS items."""
        items = tuple(item for benchmark in benchmarks for item in _indexed(benchmark))
        if len(items) > MAX_ITEMS:
            raise DataError(f"{len(items)} benchmark items are too many", expected=f"at most {MAX_ITEMS}")
        form_keys, form_items = _exact_forms(items)
        words = words_of([item.whole.encode() for item in items])
        told = np.array([word.isalpha() and len(word) > 1 for item in items for word in item.whole.split()], bool)
        runs = gram_index(words, RUN_WORDS, COMMON_GRAM_ITEMS, _has_enough(told, RUN_WORDS, MIN_RUN_LETTER_WORDS))
        anchors = gram_index(words, ANCHOR_WORDS, COMMON_ANCHOR_ITEMS)
        return cls(
            benchmarks=tuple((benchmark.name, benchmark.sha256, len(benchmark.items)) for benchmark in benchmarks),
            items=items,
            form_keys=form_keys,
            form_items=form_items,
            anchors=anchors,
            runs=runs,
            min_anchors=_min_anchors(items, anchors),
            num_left_out=runs.num_left_out,
        )

    def check(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Hit | None]:
        """The strongest hit of every row of a batch, from plain prompts (`plain_turns`) and answers."""
        hits: list[Hit | None] = []
        for start in range(0, len(prompts), MAX_ROWS):
            hits += self._check(prompts[start : start + MAX_ROWS], answers[start : start + MAX_ROWS])
        return hits

    def _check(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Hit | None]:
        hits: list[Hit | None] = [None] * len(prompts)
        if not self.items:
            return hits
        texts = _row_texts(prompts, answers)
        segments = words_of(texts)
        rows = Words(segments.keys, segments.offsets[::3], segments.sums, segments.inverses)
        self._find_exact(segments, texts, hits)
        self._find_near(rows, texts, hits)
        self._find_runs(rows, texts, hits)
        return hits

    def _find_exact(self, segments: Words, texts: Sequence[bytes], hits: list[Hit | None]) -> None:
        starts, ends = segments.offsets[1:-1:3], segments.offsets[3::3]
        prompt_ends = segments.offsets[2::3]
        for keys in (segments.span_keys(starts, prompt_ends), segments.span_keys(starts, ends)):
            places = np.minimum(np.searchsorted(self.form_keys, keys), max(len(self.form_keys) - 1, 0))
            if not len(self.form_keys):
                return
            for row in np.flatnonzero(self.form_keys[places] == keys).tolist():
                if hits[row] is None:
                    prompt, whole = _spaced(texts[3 * row + 1]), _spaced(b" ".join(texts[3 * row + 1 : 3 * row + 3]))
                    hits[row] = self._exact_hit(int(places[row]), keys[row], {prompt, whole})

    def _exact_hit(self, place: int, key: np.uint64, row_forms: set[str]) -> Hit | None:
        while place < len(self.form_keys) and self.form_keys[place] == key:
            item = self.items[self.form_items[place]]
            form = next((form for form in item.forms() if form in row_forms), None)
            if form is not None:
                return Hit("exact", item.benchmark, item.id, 1.0, form)
            place += 1
        return None

    def _find_near(self, rows: Words, texts: Sequence[bytes], hits: list[Hit | None]) -> None:
        found = self.anchors.find(rows)
        if not len(found.rows):
            return
        pairs = found.rows << 24 | found.items
        # a gram of the item that the row repeats counts once
        once = np.unique(pairs << 20 | np.minimum(found.item_places, 2**20 - 1)) >> 20
        candidates, counts = np.unique(once, return_counts=True)
        enough = counts >= self.min_anchors[candidates & MAX_ITEMS]
        candidates, counts = candidates[enough], counts[enough]
        order = np.lexsort((-counts, candidates >> 24))
        num_seen: Counter[int] = Counter()
        for pair in candidates[order].tolist():
            row, number = pair >> 24, pair & MAX_ITEMS
            earlier = hits[row]
            num_seen[row] += 1
            if num_seen[row] > MAX_CANDIDATES or (earlier is not None and earlier.kind == "exact"):
                continue
            shifts = Counter((found.row_places - found.item_places)[pairs == pair].tolist())
            hit = _near_hit(self.items[number], _row_words(texts, row), shifts.most_common(1)[0][0])
            if hit is not None and (earlier is None or hit.overlap > earlier.overlap):
                hits[row] = hit

    def _find_runs(self, rows: Words, texts: Sequence[bytes], hits: list[Hit | None]) -> None:
        found = self.runs.find(rows)
        shifts = found.row_places - found.item_places
        first = np.ones(len(shifts), bool)  # of a run of n-grams; the run is measured from there
        first[1:] = (
            (np.diff(found.rows) != 0) | (np.diff(found.items) != 0)
            | (np.diff(shifts) != 0) | (np.diff(found.row_places) != 1)
        )  # fmt: skip
        best: dict[int, tuple[int, int, str]] = {}
        for at in np.flatnonzero(first).tolist():
            row, number = int(found.rows[at]), int(found.items[at])
            if hits[row] is not None:
                continue
            item_words = self.items[number].whole.split()
            run = _shared_run(item_words, _row_words(texts, row), int(found.item_places[at]), int(found.row_places[at]))
            if row not in best or len(run) > best[row][0]:
                best[row] = (len(run), number, " ".join(run))
        for row, (length, number, excerpt) in best.items():
            if length >= RUN_WORDS:
                hits[row] = _run_hit(self.items[number], _row_words(texts, row), length, excerpt)


def contamination_reports(
    benchmarks: Sequence[Benchmark],
    hits: Sequence[tuple[str, int, Hit]],
    redacted: Callable[[str], str],
    num_examples: int = 5,
) -> tuple[ContaminationReport, ...]:
    """One report per benchmark from (file, line, hit), with the first rows of the strongest kinds as examples. A row
    counts under its strongest hit only. `redacted` makes excerpts fit to be shown."""
    reports = []
    for benchmark in benchmarks:
        own = [(file, line, hit) for file, line, hit in hits if hit.benchmark == benchmark.name]
        counts = Counter(hit.kind for _, _, hit in own)
        own.sort(key=lambda place: KINDS.index(place[2].kind))
        examples = tuple(
            ContaminationHit(
                file=file, line=line, item=hit.item, kind=hit.kind, overlap=hit.overlap, excerpt=redacted(hit.excerpt)
            )
            for file, line, hit in own[:num_examples]
        )
        reports.append(
            ContaminationReport(
                benchmark=benchmark.name, items=len(benchmark.items), sha256=benchmark.sha256,
                exact=counts["exact"], near=counts["near"], ngram_13=counts["ngram_13"], ngram_8=counts["ngram_8"],
                examples=examples,
            )
        )  # fmt: skip
    return tuple(reports)


def _indexed(benchmark: Benchmark) -> Iterator[IndexedItem]:
    for item in benchmark.items:
        choices = tuple(filter(None, map(words_text, item.others)))
        yield IndexedItem(benchmark.name, item.id, words_text(item.prompt), words_text(item.answer), choices)


def _has_enough(flags: np.ndarray, n: int, least: int) -> np.ndarray:
    """bool [W]: whether `least` of the n flags from here on are set (fewer than n at the end count as they are)."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    ends = np.minimum(np.arange(len(flags)) + n, len(flags))
    enough: np.ndarray = sums[ends] - sums[:-1] >= least
    return enough


def _min_anchors(items: Sequence[IndexedItem], anchors: GramIndex) -> np.ndarray:
    """int32 [items]: MIN_ANCHORS or MIN_ANCHOR_SHARE of the prompt's 5-grams, but no more than the index has of it: of
    "Which of the following is an example of a virtue?" only the end is not a phrase."""
    lengths = np.array([_num_words(item.prompt) or _num_words(item.whole) for item in items], np.int64)
    num_grams = np.maximum(lengths - ANCHOR_WORDS + 1, 0)
    of_prompt = anchors.places < num_grams[anchors.items]
    num_indexed = np.bincount(anchors.items[of_prompt], minlength=len(items))
    wanted = np.maximum(np.ceil(MIN_ANCHOR_SHARE * num_grams), MIN_ANCHORS)
    return np.maximum(np.minimum(wanted, num_indexed), 1).astype(np.int32)


def _exact_forms(items: Sequence[IndexedItem]) -> tuple[np.ndarray, np.ndarray]:
    """(sorted keys of all forms that count as exact, the item of each)."""
    shared = Counter((item.benchmark, item.prompt) for item in items if item.choices)
    texts: list[bytes] = []
    numbers: list[int] = []
    for number, item in enumerate(items):
        for form in item.forms():
            alone = form == item.prompt
            if not form or (alone and _num_words(form) < MIN_PROMPT_WORDS and (item.answer or item.choices)):
                continue
            if alone and shared[item.benchmark, item.prompt] > 1:
                continue
            texts.append(form.encode())
            numbers.append(number)
    words = words_of(texts)
    keys = words.span_keys(words.offsets[:-1], words.offsets[1:])
    order = np.argsort(keys, kind="stable")
    return keys[order], np.array(numbers, np.int32)[order]


def _row_texts(prompts: Sequence[str], answers: Sequence[str]) -> list[bytes]:
    """Three texts a row: instructions, prompt, answer."""
    parts: list[str] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        instructions, _, prompt = prompt.rpartition(SYSTEM_END)
        parts += (instructions, prompt, answer)
    texts = words_in(parts)
    if len(texts) != len(parts):  # a NUL in some text
        texts = words_in([part.replace("\0", " ") for part in parts])
    return texts


def _num_words(text: str) -> int:
    return text.count(" ") + 1 if text else 0


def _spaced(text: bytes) -> str:
    return " ".join(text.decode().split())


def _row_words(texts: Sequence[bytes], row: int) -> list[str]:
    return b" ".join(texts[3 * row : 3 * row + 3]).decode().split()


def _near_hit(item: IndexedItem, row_words: list[str], shift: int) -> Hit | None:
    """`shift` is where in the row the item would begin, judged by the words they share."""
    prompt = item.prompt.split()
    whole = item.whole.split()
    best = 0.0
    if len(prompt) >= RUN_WORDS and f" {item.prompt} " in f" {' '.join(row_words)} ":
        return Hit("near", item.benchmark, item.id, 1.0, item.prompt)
    for words in (prompt, whole):
        if len(words) >= NEAR_MIN_WORDS:
            slack = 4 + len(words) // 5
            passage = row_words[max(0, shift - slack) : shift + len(words) + slack]
            most = sum(map(set(passage).__contains__, words))  # a quick bound: no more can be common in order
            if most >= NEAR_COVERAGE * len(words):
                best = max(best, _num_common_in_order(words, passage) / len(words))
    if best < NEAR_COVERAGE:
        return None
    return Hit("near", item.benchmark, item.id, best, _longest_run(whole, row_words))


def _num_common_in_order(words: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel: one addition of whole numbers per word of `others`."""
    masks: dict[str, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    every = (1 << len(words)) - 1
    open_places = every
    for word in others:
        matched = open_places & masks.get(word, 0)
        open_places = ((open_places + matched) | (open_places - matched)) & every
    return len(words) - open_places.bit_count()


def _longest_run(words: Sequence[str], others: Sequence[str]) -> str:
    """The longest run of words that stands in both."""
    lengths: dict[int, int] = {}
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word, []).append(place)
    length, end = 0, 0
    for word in others:
        following: dict[int, int] = {}
        for place in places.get(word, ()):
            following[place] = lengths.get(place - 1, 0) + 1
            if following[place] > length:
                length, end = following[place], place + 1
        lengths = following
    return " ".join(words[end - length : end])


def _shared_run(words: list[str], others: list[str], place: int, other_place: int) -> list[str]:
    """The run of equal words around one place; empty where not even RUN_WORDS are equal (only their keys were)."""
    if words[place : place + RUN_WORDS] != others[other_place : other_place + RUN_WORDS]:
        return []
    start, end, shift = place, place + RUN_WORDS, other_place - place
    while start and start + shift and words[start - 1] == others[start + shift - 1]:
        start -= 1
    while end < len(words) and end + shift < len(others) and words[end] == others[end + shift]:
        end += 1
    return words[start:end]


def _run_hit(item: IndexedItem, row_words: list[str], length: int, excerpt: str) -> Hit:
    kind: HitKind = "ngram_13" if length >= LONG_RUN_WORDS else "ngram_8"
    n = LONG_RUN_WORDS if kind == "ngram_13" else RUN_WORDS
    grams = word_tuples(item.whole.split(), n)
    return Hit(kind, item.benchmark, item.id, len(grams & word_tuples(row_words, n)) / len(grams), excerpt)
