"""Known leaks of real benchmark items are found, clean rows are not, and every kind means what it says."""

from __future__ import annotations

import json
import pickle
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart
from halo_forge.data.overlap.benchmark_items import Benchmark, BenchmarkItem, load_benchmarks
from halo_forge.data.overlap.contamination import BenchmarkIndex, Hit, contamination_reports
from halo_forge.data.overlap.plain_text import plain, plain_turns

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
TREE = SHARED / "benchmarks"
needs_tree = pytest.mark.skipif(not TREE.is_dir(), reason="no benchmark tree beside the repository")
needs_gsm8k = pytest.mark.skipif(not (SHARED / "gsm8k_train.jsonl").is_file(), reason="no gsm8k_train.jsonl")

TRUE = "Which of the following is true?"
OWN = Benchmark(
    name="own",
    sha256="0" * 64,
    items=(
        BenchmarkItem(
            id="ferry",
            prompt="A ferry carries 42 passengers and 7 bicycles across the strait every 35 minutes. How many "
            "passengers does it carry in one working day of nine hours?",
            answer="It crosses 15 times, so it carries 630 passengers.",
        ),
        BenchmarkItem(
            id="bone",
            prompt="Which bone is the smallest?",
            answer="The stapes",
            others=("The stapes", "The femur", "The ulna", "The patella"),
        ),
        BenchmarkItem(id="true-1", prompt=TRUE, answer="Ice floats", others=("Ice floats", "Iron floats")),
        BenchmarkItem(id="true-2", prompt=TRUE, answer="Salt dissolves", others=("Salt dissolves", "Sand dissolves")),
        BenchmarkItem(id="greeting", prompt="Say hello", answer="Bonjour à tous"),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def own() -> BenchmarkIndex:
    return BenchmarkIndex.build([OWN])


def hit_of(index: BenchmarkIndex, prompt: str, answer: str = "", system: str = "") -> Hit | None:
    turns = [("system", system), ("user", prompt), ("assistant", answer)]
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns if text)  # type: ignore[arg-type]
    conversation = Conversation(id="row", messages=messages, source=SourceRef(path="rows.jsonl", line=1))
    plain_prompt, plain_answer = plain_turns(conversation)
    return index.check([plain_prompt], [plain_answer])[0]


def kind_of(index: BenchmarkIndex, prompt: str, answer: str = "", system: str = "") -> str | None:
    hit = hit_of(index, prompt, answer, system)
    return hit.kind if hit else None


FERRY = OWN.items[0].prompt


@pytest.mark.parametrize(
    "written",
    [
        FERRY,
        FERRY.upper(),
        FERRY.replace(" ", "\n\t "),
        FERRY.replace(".", " --").replace("?", "!!"),
        "\u200b".join(FERRY.partition("ferry")),
    ],
    ids=["as is", "case", "white space", "punctuation", "invisible characters"],
)
def test_prompt_written_in_another_way_is_exact(own: BenchmarkIndex, written: str) -> None:
    hit = hit_of(own, written, "42.", system="You are a patient tutor.")
    assert hit is not None
    assert (hit.kind, hit.benchmark, hit.item, hit.overlap) == ("exact", "own", "ferry", 1.0)


def test_composition_does_not_hide_an_item(own: BenchmarkIndex) -> None:
    assert kind_of(own, "say hello", unicodedata.normalize("NFD", "bonjour à tous")) == "exact"
    assert kind_of(own, "say hello", "good day") is None  # two words are no evidence by themselves


def test_short_and_shared_prompts_need_their_choices(own: BenchmarkIndex) -> None:
    assert kind_of(own, "Which bone is the smallest?") == "exact"  # five words, and only one item has them
    assert kind_of(own, "Which of the following is true?", "Water is wet") is None
    assert hit_of(own, "Which of the following is true?", "Salt dissolves").item == "true-2"  # type: ignore[union-attr]
    assert kind_of(own, "Which of the following is true?\nA. Ice floats\nB. Iron floats") == "exact"
    assert kind_of(own, "Which of the following is true?\nIce floats\nIron floats", "the first") == "exact"


def test_item_inside_a_longer_row_is_near(own: BenchmarkIndex) -> None:
    before = "Here is a task from last week that I could not solve, please help me with it. " * 20
    hit = hit_of(own, before + FERRY + " Explain every step and give the answer in bold.")
    assert hit is not None
    assert (hit.kind, hit.overlap) == ("near", 1.0)
    assert kind_of(own, "Write a quiz.", "Sure! 1. " + FERRY + " 2. What is the capital of Peru?") == "near"


def test_edited_item_is_near_and_its_half_is_not(own: BenchmarkIndex) -> None:
    edited = FERRY.replace("42 passengers", "42 people").replace("working day of nine", "day of nine")
    hit = hit_of(own, edited)
    assert hit is not None
    assert hit.kind == "near"
    assert 0.8 <= hit.overlap < 1
    assert "7 bicycles across the strait every 35 minutes how many passengers" in hit.excerpt
    words = FERRY.split()
    assert kind_of(own, " ".join(words[: len(words) // 2])) == "ngram_13"


def test_same_words_in_another_order_or_far_apart_are_no_copy(own: BenchmarkIndex) -> None:
    words = plain(FERRY).split()
    random.Random(3).shuffle(words)
    assert kind_of(own, " ".join(words)) is None
    spread = " ".join(f"{word} {'lorem ipsum dolor sit amet ' * 3}" for word in plain(FERRY).split())
    assert kind_of(own, spread) is None
    words = plain(FERRY).split()
    half_spread = " ".join(words[:11]) + "".join(f" {word} {'lorem ipsum dolor ' * 3}" for word in words[11:])
    assert kind_of(own, half_spread) == "ngram_8"  # compared with the item, whose words it has, but over ten passages


def test_runs_of_words_are_told_by_length(own: BenchmarkIndex) -> None:
    words = FERRY.split()
    assert kind_of(own, "They say: " + " ".join(words[2:9]) + " often") is None  # 7 words
    hit = hit_of(own, "They say: " + " ".join(words[2:10]) + " often")
    assert hit is not None
    assert (hit.kind, hit.excerpt) == ("ngram_8", "carries 42 passengers and 7 bicycles across the")
    assert kind_of(own, "They say: " + " ".join(words[2:14]) + " often") == "ngram_8"  # 12 words
    thirteen = hit_of(own, "They say: " + " ".join(words[2:15]) + " often")
    assert thirteen is not None
    assert thirteen.kind == "ngram_13"
    num_words = len(OWN.items[0].prompt.split()) + len(OWN.items[0].answer.split())
    assert thirteen.overlap == pytest.approx(1 / (num_words - 12))


def test_phrases_of_many_items_and_arithmetic_say_nothing() -> None:
    phrase = "what is the total number of apples in the basket"
    items = [BenchmarkItem(id=str(n), prompt=f"item {n} asks {phrase} of farmer {n}", answer="") for n in range(12)]
    items.append(
        BenchmarkItem(id="sum", prompt="one sum that nobody else has", answer="5 x 20 = 100 5 x 20 = 100 and 3")
    )
    index = BenchmarkIndex.build([Benchmark(name="phrases", sha256="", items=tuple(items))])
    assert index.num_left_out > 0
    assert kind_of(index, f"Tell me {phrase} please") is None
    assert kind_of(index, "Is 5 x 20 = 100? 5 x 20 = 100 and 3, I think.") is None
    told = Benchmark(
        name="told",
        sha256="",
        items=(BenchmarkItem(id="1", prompt="7 x 8 = 56 so the farmer sells all of them", answer=""),),
    )
    hit = hit_of(BenchmarkIndex.build([told]), "I say 7 x 8 = 56 so the farmer sells all of it")
    assert hit is not None
    assert hit.excerpt == "7 x 8 56 so the farmer sells all of"  # the run goes on into the arithmetic
    few = BenchmarkIndex.build([Benchmark(name="phrases", sha256="", items=tuple(items[:3]))])
    assert kind_of(few, f"Tell me {phrase} please") == "ngram_8"


def test_shared_instructions_do_not_hide_or_make_an_exact_hit(own: BenchmarkIndex) -> None:
    assert kind_of(own, "Good morning!", "Good morning.", system=FERRY) == "near"
    assert kind_of(own, FERRY, "", system="Answer briefly.") == "exact"


def test_characters_of_other_scripts_are_words() -> None:
    item = BenchmarkItem(id="zh", prompt="小明有十二个苹果,他给了妹妹五个,又买了三个,现在他有多少个苹果?", answer="10")
    index = BenchmarkIndex.build([Benchmark(name="zh", sha256="", items=(item,))])
    assert kind_of(index, item.prompt.replace(",", "、")) == "exact"
    assert kind_of(index, "请回答下面的问题。" + item.prompt.replace("妹妹", "弟弟")) == "near"
    assert kind_of(index, "小红昨天去了图书馆,借了两本书。") is None


def test_batches_empty_rows_and_odd_bytes(own: BenchmarkIndex) -> None:
    assert own.check([], []) == []
    prompts = ["", "nul \0 inside", plain(FERRY), "", plain(FERRY) + " \0"]
    kinds = [hit.kind if hit else None for hit in own.check(prompts, [""] * 5)]
    assert kinds == [None, None, "exact", None, "exact"]
    many = own.check([plain(FERRY)] * 5000 + ["nothing"], ["x"] * 5001)
    assert Counter(hit.kind if hit else None for hit in many) == {"exact": 5000, None: 1}
    assert BenchmarkIndex.build([]).check(["a"], ["b"]) == [None]


def test_index_survives_pickling(own: BenchmarkIndex) -> None:
    again = pickle.loads(pickle.dumps(own))
    assert hit_of(again, FERRY) == hit_of(own, FERRY)


def test_reports_count_every_row_once_under_its_kind(own: BenchmarkIndex) -> None:
    other = Benchmark(name="other", sha256="1", items=())
    hits = [
        ("b.jsonl", 9, Hit("ngram_8", "own", "ferry", 0.1, "a b")),
        ("a.jsonl", 3, Hit("near", "own", "ferry", 0.9, "mail me@x.org")),
        ("a.jsonl", 4, Hit("exact", "own", "bone", 1.0, "c")),
    ]
    first, second = contamination_reports([OWN, other], hits, lambda text: text.replace("me@x.org", "[redacted]"), 2)
    assert (first.exact, first.near, first.ngram_13, first.ngram_8, first.items) == (1, 1, 0, 1, 5)
    assert [(example.line, example.excerpt) for example in first.examples] == [(4, "c"), (3, "mail [redacted]")]
    assert (second.benchmark, second.exact, second.examples) == ("other", 0, ())


# ------------------------------------------------------------------------------------------------ real items


@pytest.fixture(scope="module")
def real() -> tuple[tuple[Benchmark, ...], BenchmarkIndex]:
    benchmarks = load_benchmarks(["gsm8k", "mmlu", "humaneval"], TREE)
    return benchmarks, BenchmarkIndex.build(benchmarks)


def sampled_items(
    benchmarks: tuple[Benchmark, ...], count: int, seed: int, least: int
) -> list[tuple[str, BenchmarkItem]]:
    rng = random.Random(seed)
    found: list[tuple[str, BenchmarkItem]] = []
    while len(found) < count:
        benchmark = benchmarks[len(found) % len(benchmarks)]
        item = rng.choice(benchmark.items)
        if len(item.prompt.split()) >= least:
            found.append((benchmark.name, item))
    return found


def rewritten(item: BenchmarkItem, rule: int) -> tuple[str, str]:
    """(prompt, answer) of a row that repeats the item exactly, but for what the comparison is blind to."""
    prompt, answer = item.prompt, item.answer or "It is so."
    if rule == 0:
        return prompt, answer
    if rule == 1:
        return prompt.upper(), answer.title()
    if rule == 2:
        return "\n ".join(prompt.split(" ")), answer
    if rule == 3:
        return unicodedata.normalize("NFD", prompt), unicodedata.normalize("NFD", answer)
    if rule == 4:
        return prompt.replace(", ", " - ").replace(". ", " ").rstrip("?.").replace("'", "’").replace('"', "“"), answer
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", item.others, strict=False))
    return prompt + choices, "The answer is B."


@needs_tree
def test_two_hundred_exact_leaks_are_all_found(real: tuple[tuple[Benchmark, ...], BenchmarkIndex]) -> None:
    benchmarks, index = real
    missed = []
    for number, (name, item) in enumerate(sampled_items(benchmarks, 200, seed=1, least=8)):
        prompt, answer = rewritten(item, number % 6)
        hit = hit_of(index, prompt, answer)
        if hit is None or hit.kind != "exact" or hit.benchmark != name:
            missed.append((number % 6, name, item.id, hit))
    assert missed == []


def edited(words: list[str], rng: random.Random) -> str:
    """One word in fifteen replaced, left out or added, at least one."""
    words = list(words)
    for _ in range(max(1, len(words) // 15)):
        at = rng.randrange(len(words))
        change = rng.randrange(3)
        if change == 0:
            words[at] = "zebra"
        elif change == 1:
            del words[at]
        else:
            words.insert(at, "really")
    return " ".join(words)


@needs_tree
@needs_gsm8k
def test_embedded_and_edited_leaks_are_found(real: tuple[tuple[Benchmark, ...], BenchmarkIndex]) -> None:
    benchmarks, index = real
    rng = random.Random(2)
    with open(SHARED / "gsm8k_train.jsonl", encoding="utf-8") as lines:
        other = [json.loads(line)["question"] for _, line in zip(range(50), lines, strict=False)]
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for number, (_, item) in enumerate(sampled_items(benchmarks, 200, seed=2, least=13)):
        rule = ("embedded", "edited", "edited and embedded", "with choices, edited")[number % 4]
        text = item.prompt
        if rule == "with choices, edited":
            text += "".join(f"\n{letter}) {choice}" for letter, choice in zip("ABCD", item.others, strict=False))
        if "edited" in rule:
            text = edited(text.split(), rng)
        if "embedded" in rule:
            text = f"{rng.choice(other)} Next one: {text} {rng.choice(other)}"
        total[rule] += 1
        found[rule] += kind_of(index, text, "I do not know.") in ("exact", "near")
    assert found["embedded"] == total["embedded"] == 50
    assert found.total() >= 0.95 * total.total(), (found, total)


@needs_tree
@needs_gsm8k
def test_clean_rows_are_left_alone(real: tuple[tuple[Benchmark, ...], BenchmarkIndex]) -> None:
    _, index = real
    with open(SHARED / "gsm8k_train.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kinds: Counter[str] = Counter()
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        hits = index.check([plain(row["question"]) for row in batch], [plain(row["answer"]) for row in batch])
        kinds.update(hit.kind for hit in hits if hit)
    assert kinds["exact"] + kinds["near"] <= 0.005 * len(rows), kinds
    assert kinds.total() <= 0.06 * len(rows), kinds


@needs_tree
def test_benchmarks_are_clean_of_each_other() -> None:
    rows = load_benchmarks(["hellaswag", "ifeval", "truthfulqa"], TREE)
    index = BenchmarkIndex.build(load_benchmarks(["gsm8k", "humaneval", "mmlu"], TREE))
    items = [item for benchmark in rows for item in benchmark.items]
    hits = index.check([plain(item.prompt) for item in items], [plain(item.answer) for item in items])
    failing = [
        (item.prompt, hit) for item, hit in zip(items, hits, strict=True) if hit and hit.kind in ("exact", "near")
    ]
    assert len(failing) <= 0.005 * len(items), failing
