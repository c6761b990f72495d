"""The figures of prepared rows: counted from the files, held against a plain recount."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.artifacts import (
    ContaminationReport,
    DuplicateReport,
    Finding,
    PreparedData,
    SourceReport,
    SplitReport,
)
from halo_forge.chat import (
    Conversation,
    Example,
    Message,
    SourceRef,
    TextPart,
    ToolCall,
    write_conversations,
    write_examples,
)
from halo_forge.data.stats import _percentiles, _turns_and_source, data_stats
from halo_forge.errors import DataError
from halo_forge.runs import provenance, write_artifact

# What a line of the file holds to tell turns and sources; put into contents to mislead a reader that does not parse.
BAIT = '{"role": "user", "parts": [{"type": "call"}]}, "source": {"path": "b", "line": 1}}\n"tools": [], "slices": '


def conversation(
    number: int, path: str, num_turns: int, *, with_call: bool = False, system: bool = False
) -> Conversation:
    messages = [Message(role="system", parts=(TextPart(text=BAIT),))] if system else []
    for turn in range(num_turns):
        call = ToolCall(name="find", arguments={"role": "user", "parts": [BAIT], "source": {"path": "x", "line": 1}})
        is_answer = turn % 2 == 1
        parts = (TextPart(text=f"{number} {BAIT}"), *((call,) if with_call and is_answer else ()))
        messages.append(Message(role="assistant" if is_answer else "user", parts=parts))
    return Conversation(
        id=f"{number:064x}", messages=tuple(messages), source=SourceRef(path=path, line=number + 1),
        slices={"topic": BAIT} if number % 5 == 0 else {},
        tools=({"name": "find", "parameters": {"role": "user", "parts": [1]}},) if with_call and number % 2 else (),
    )  # fmt: skip


def example(number: int, length: int, num_supervised: int) -> Example:
    weights = np.zeros(length, np.float32)
    weights[length - num_supervised :] = 1
    return Example(input_ids=np.arange(length, dtype=np.int32), loss_weights=weights, conversation_id=f"{number:064x}")


def benchmark(name: str, items: int, exact: int = 0, ngram_8: int = 0) -> ContaminationReport:
    return ContaminationReport(
        benchmark=name, items=items, sha256="0" * 64, exact=exact, near=0, ngram_13=0, ngram_8=ngram_8
    )


class Built:
    """A prepared run of 60 rows from two files, and what they were made of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "data").mkdir(parents=True)
        numbers = np.random.default_rng(5)
        self.rows: dict[str, list[tuple[str, int, int, int]]] = {}  # split -> (source, turns, length, supervised)
        splits = {}
        number = 0
        for name, count in (("train", 41), ("validation", 0), ("holdout", 19)):
            conversations, examples = [], []
            self.rows[name] = []
            for _ in range(count):
                source = ("a.jsonl", 'b "q" \\ ü.jsonl')[int(numbers.integers(2))]
                turns, length = int(numbers.integers(1, 4)) * 2, int(numbers.integers(10, 300))
                supervised = int(numbers.integers(1, length - 1))
                conversations.append(
                    conversation(number, source, turns, with_call=number % 3 == 0, system=number % 4 == 0)
                )
                examples.append(example(number, length, supervised))
                self.rows[name].append((source, turns, length, supervised))
                number += 1
            files = f"data/{name}.conversations.jsonl", f"data/{name}.examples.arrow"
            splits[name] = SplitReport(
                rows=count, tokens=sum(row[2] for row in self.rows[name]),
                supervised_tokens=sum(row[3] for row in self.rows[name]),
                sha256=write_conversations(path / files[0], conversations),
                examples_sha256=write_examples(path / files[1], examples), conversations=files[0], examples=files[1],
            )  # fmt: skip
        sources = tuple(
            SourceReport(path=name, sha256="0" * 64, format="messages", read=35, kept=30, fixed=2, dropped=5)
            for name in ("a.jsonl", 'b "q" \\ ü.jsonl')
        )
        self.prepared = PreparedData(
            provenance=provenance("0" * 64, {}), sources=sources, reasons={"bad_json": 10}, splits=splits,
            ledger="data/ledger.jsonl", model_name="m", template_sha256="0" * 64, tokenizer_sha256="0" * 64,
            max_seq_length=512, languages={"de": 3, "en": 57},
            findings=(
                Finding(code="bad_json", meaning="not JSON", kind="damage", action="skip", rows=10),
                Finding(code="refusal", meaning="declines", kind="quality", action="keep", rows=12),
            ),
            duplicates=DuplicateReport(
                exact=4, near=2, semantic=0, across_sources=1, near_threshold=0.85, semantic_threshold=None
            ),
            contamination=(benchmark("gsm8k", 1319, exact=1, ngram_8=3), benchmark("holdout", 19)),
            advice="41 training rows: few",
        )  # fmt: skip
        self.save(self.prepared)

    def save(self, prepared: PreparedData) -> None:
        write_artifact(self.path / "data/manifest.json", prepared)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path / "run")


def test_every_figure_is_that_of_a_plain_recount(built: Built) -> None:
    stats = data_stats(built.path)
    assert (stats.read, stats.kept, stats.fixed, stats.dropped) == (70, 60, 4, 10)
    for name, rows in built.rows.items():
        part = stats.splits[name]
        assert (part.rows, part.tokens) == (len(rows), sum(row[2] for row in rows))
        assert part.supervised_tokens == sum(row[3] for row in rows)
    everything = [row for rows in built.rows.values() for row in rows]
    assert set(stats.sources) == {row[0] for row in everything}
    for name, part in stats.sources.items():
        rows = [row for row in everything if row[0] == name]
        lengths, turns = sorted(row[2] for row in rows), sorted(row[1] for row in rows)
        assert part.rows == len(rows)
        assert part.tokens == sum(lengths)
        assert part.supervised_share == pytest.approx(sum(row[3] for row in rows) / sum(lengths))
        assert (part.length_tokens["min"], part.length_tokens["max"]) == (lengths[0], lengths[-1])
        assert part.length_tokens["p50"] == lengths[(len(lengths) + 1) // 2 - 1]
        assert (part.turns["min"], part.turns["max"]) == (turns[0], turns[-1])
    assert sum(part.rows for part in stats.sources.values()) == stats.kept
    assert stats.languages == {"en": 57, "de": 3}
    assert [finding.code for finding in stats.findings] == ["refusal", "bad_json"]


def test_percentiles_are_values_that_stand_in_the_data() -> None:
    found = _percentiles(np.array([100, 1, 1000, 10]))
    assert found == {"min": 1, "p5": 1, "p50": 10, "p95": 1000, "p99": 1000, "max": 1000}
    assert _percentiles(np.array([7])) == dict.fromkeys(("min", "p5", "p50", "p95", "p99", "max"), 7)


def test_an_empty_split_has_no_percentiles_and_no_share(built: Built) -> None:
    part = data_stats(built.path).splits["validation"]
    assert (part.rows, part.tokens, part.length_tokens, part.turns, part.supervised_share) == (0, 0, {}, {}, None)


def test_the_dictionary_is_json_and_the_words_fit_a_terminal(built: Built) -> None:
    stats = data_stats(built.path)
    again = json.loads(json.dumps(stats.to_dict()))
    assert again["splits"]["train"]["rows"] == 41
    assert again["splits"]["validation"]["supervised_share"] is None
    assert again["duplicates"]["near_threshold"] == 0.85
    assert again["contamination"][0]["exact"] == 1
    lines = stats.words().splitlines()
    assert lines[:2] == ["70 rows read: 60 kept (4 of them mended), 10 left out", "41 training rows: few"]
    assert any(line.startswith("train") and " 41 " in line for line in lines)
    assert any(line.startswith("validation") and line.split()[1:4] == ["0", "0", "-"] for line in lines)
    assert any("a.jsonl" in line for line in lines)
    assert "languages  en 57, de 3" in lines
    assert "copies     4 exact, 2 near (Jaccard from 0.85); 1 across sources" in lines
    assert "benchmark  gsm8k (1,319 items): exact 1, 8-gram 3" in lines
    assert "benchmark  holdout (19 items): no row repeats it" in lines
    assert "finding    12 refusal (quality): kept" in lines
    assert max(map(len, lines)) <= 100


def test_paths_and_codes_cannot_drive_the_terminal(built: Built) -> None:
    hostile = "\x1b[2J\u202e\nfake line"
    finding = built.prepared.findings[0].model_copy(update={"code": hostile})
    built.save(built.prepared.model_copy(update={"findings": (finding,), "advice": hostile, "languages": {hostile: 1}}))
    words = data_stats(built.path).words()
    assert "\x1b" not in words
    assert "\u202e" not in words
    assert not any(line.startswith("fake line") for line in words.splitlines())


def test_records_without_the_optional_fields_have_figures_too(built: Built) -> None:
    content = json.loads((built.path / "data/manifest.json").read_text())
    for name in ("findings", "duplicates", "contamination", "languages", "advice"):
        del content[name]
    (built.path / "data/manifest.json").write_text(json.dumps(content))
    stats = data_stats(built.path)
    assert stats.duplicates is None
    assert [(found.code, found.rows) for found in stats.findings] == [("bad_json", 10)]
    assert "copies" not in stats.words()
    assert "benchmark" not in stats.words()


def test_nothing_prepared_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no PreparedData here") as caught:
        data_stats(tmp_path)
    assert caught.value.fix


def test_files_that_do_not_belong_to_the_record_are_refused(built: Built) -> None:
    path = built.path / "data/holdout.conversations.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="19 examples, 18 conversations and 19 rows") as caught:
        data_stats(built.path)
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(DataError, match="the conversations cannot be read"):
        data_stats(built.path)


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"\xff\n", b'{"messages": 3, "source": {"path": "x"}}\n'])
def test_a_line_that_is_no_conversation_is_named(built: Built, line: bytes) -> None:
    path = built.path / "data/train.conversations.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DataError, match="not a conversation record") as caught:
        data_stats(built.path)
    assert caught.value.where == f"{path}:42"


@given(
    text=st.text(max_size=80),
    path=st.text(min_size=1, max_size=30),
    num_turns=st.integers(1, 6),
    has_call=st.booleans(),
)
def test_a_line_is_read_the_same_with_and_without_parsing(
    tmp_path_factory: pytest.TempPathFactory, text: str, path: str, num_turns: int, has_call: bool
) -> None:
    call = ToolCall(name=text, arguments={"role": "user", "parts": [text]})
    parts = (TextPart(text=text + BAIT), *((call,) if has_call else ()))
    messages = tuple(Message(role="assistant" if turn % 2 else "user", parts=parts) for turn in range(num_turns))
    file = tmp_path_factory.mktemp("line") / "one.jsonl"
    row = Conversation(id="0", messages=messages, source=SourceRef(path=path, line=3), slices={text: BAIT})
    write_conversations(file, [row])
    line = file.read_bytes()
    parsed = json.loads(line)
    turns, source = _turns_and_source(line, "here")
    assert turns == num_turns == len(parsed["messages"])
    assert json.loads(source) == parsed["source"]["path"]


def test_a_hundred_thousand_rows_take_a_second(built: Built) -> None:
    line = (built.path / "data/train.conversations.jsonl").read_bytes().splitlines(keepends=True)[1]
    path = built.path / "data/train.conversations.jsonl"
    path.write_bytes(line * 100_000)
    write_examples(built.path / "data/train.examples.arrow", [example(0, 12, 4)] * 100_000)
    train = built.prepared.splits["train"].model_copy(update={"rows": 100_000})
    built.save(built.prepared.model_copy(update={"splits": {**built.prepared.splits, "train": train}}))
    began = time.process_time()
    stats = data_stats(built.path)
    assert time.process_time() - began < 10  # about 0.5 s where nothing else runs
    assert stats.splits["train"].tokens == 1_200_000


def test_figures_need_no_torch(built: Built) -> None:
    code = (
        "import sys; from pathlib import Path; from halo_forge.data.stats import data_stats;"
        "data_stats(Path(sys.argv[1])).words();"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(built.path)], check=True, timeout=60)
