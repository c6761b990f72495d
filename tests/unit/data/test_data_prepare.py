"""The data stage end to end with a real tokenizer: files, manifest, reuse, conflict, tampering, policies."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halo_forge.artifacts import PreparedData
from halo_forge.chat import read_conversations, read_examples
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import check, load_prepared, prepare
from halo_forge.errors import DataError, ExitCode, RunConflict
from halo_forge.runs import RunDirectory, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GSM8K = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k_train.jsonl"


def write_rows(path: Path, numbers: Iterator[int] | range, answer: str = "four") -> str:
    rows = [{"question": f"How many apples has Ada after day {n}?", "answer": f"{answer} {n}"} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


def config(train_file: str | list[str], **data: Any) -> Config:
    return Config(data=DataSection(train_file=train_file, **data))


def ledger(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.file("data/ledger.jsonl").read_text().splitlines()]


def test_everything_is_written_and_agrees(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", range(200)))
    with open(path, "a") as file:
        file.write('{"question": "How many apples has Ada after day 3?", "answer": "four 3"}\n')
        file.write('{"question": "How many\\u0000 pears?", "answer": "five"}\n{"question": "x", "answer": ""}\n')
    events: list[tuple[str, Mapping[str, Any]]] = []
    prepared = prepare(config(str(path)), run, tiny_tokenizer, lambda *event: events.append(event))

    source = prepared.sources[0]
    assert (source.read, source.kept, source.fixed, source.dropped) == (203, 201, 1, 2)
    assert (source.format, source.sha256) == ("question_answer", sha256_file(path))
    assert prepared.reasons == {"duplicate": 1, "empty_content": 1, "nul_removed": 1}
    lines = ledger(run)
    assert [line["line"] for line in lines] == list(range(1, 204))
    assert Counter(line["action"] for line in lines) == {"kept": 200, "fixed": 1, "dropped": 2}
    assert lines[200]["reason"] == f"the same conversation as {path}:4"
    splits = Counter(line["split"] for line in lines)
    ids: dict[str, list[str]] = {}
    for name, report in prepared.splits.items():
        conversations = read_conversations(run.file(report.conversations))
        examples = read_examples(run.file(report.examples))
        ids[name] = [conversation.id for conversation in conversations]
        assert report.rows == len(conversations) == len(examples) == splits[name] > 0
        assert [examples[at].conversation_id for at in range(len(examples))] == ids[name]
        assert report.tokens == sum(len(examples[at].input_ids) for at in range(len(examples)))
        assert report.supervised_tokens == sum(examples[at].num_supervised_tokens for at in range(len(examples)))
        assert report.sha256 == sha256_file(run.file(report.conversations))
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 201
    assert stat.S_IMODE(os.stat(run.file("data/holdout.conversations.jsonl")).st_mode) == 0o444
    lengths = prepared.token_lengths
    assert lengths["min"] <= lengths["p50"] <= lengths["p95"] <= lengths["max"]
    assert any("enough for style or format" in note for note in prepared.notes)
    assert any("question_answer rows" in note for note in prepared.notes)
    assert [fields["read"] for event, fields in events if event == "data.source"] == [203]
    assert load_prepared(run) == prepared


def test_same_inputs_give_the_same_bytes_and_are_reused(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", range(60))
    first = prepare(config(path), run, tiny_tokenizer)
    with RunDirectory.open(tmp_path / "other") as other:
        second = prepare(config(path), other, tiny_tokenizer)
        assert second.splits == first.splits
        assert second.provenance.inputs == first.provenance.inputs
    before = run.file("data/manifest.json").stat().st_mtime_ns
    notes: list[str] = []
    again = prepare(config(path), run, tiny_tokenizer, lambda event, fields: notes.append(str(fields.get("text"))))
    assert again == first
    assert any("already prepared" in note for note in notes)
    assert run.file("data/manifest.json").stat().st_mtime_ns == before


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"max_seq_length": 512}, "data.max_seq_length"),
    "share": ({"holdout_split": 0.2}, "data.holdout_split"),
    "system": ({"system_prompt": "Be brief."}, "data.system_prompt"),
    "fewer rows": ({"max_samples": 30}, "data.max_samples"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES.keys())
def test_other_settings_are_a_conflict_that_names_them(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], named: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", range(60))
    prepare(config(path), run, tiny_tokenizer)
    with pytest.raises(RunConflict, match=f"different: {named}") as caught:
        prepare(config(path, **change), run, tiny_tokenizer)
    assert caught.value.exit_code == ExitCode.USAGE
    load_prepared(run)


def test_other_rows_or_another_template_are_a_conflict(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    import copy

    path = write_rows(tmp_path / "rows.jsonl", range(60))
    prepare(config(path), run, tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template = str(other.chat_template) + " "
    with pytest.raises(RunConflict, match="different: template"):
        prepare(config(path), run, other)
    write_rows(tmp_path / "rows.jsonl", range(61))
    with pytest.raises(RunConflict, match=r"different: train\[0\]"):
        prepare(config(path), run, tiny_tokenizer)


@pytest.mark.parametrize(
    "name", ["holdout.conversations.jsonl", "train.conversations.jsonl", "validation.examples.arrow"]
)
@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_a_changed_split_is_refused_by_name_and_hash(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, name: str, damage: str
) -> None:
    data = config(write_rows(tmp_path / "rows.jsonl", range(80)))
    prepare(data, run, tiny_tokenizer)
    path = run.file(f"data/{name}")
    os.chmod(path, 0o644)
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content.replace(content[-9:-8], b"~"))
    for attempt in (lambda: load_prepared(run), lambda: prepare(data, run, tiny_tokenizer)):
        with pytest.raises(DataError, match="changed after it was frozen") as caught:
            attempt()
        assert caught.value.exit_code == ExitCode.DATA
        assert name in str(caught.value.where)
        assert "sha256" in str(caught.value.expected)


def test_nothing_prepared_is_said(run: RunDirectory) -> None:
    with pytest.raises(DataError, match="no PreparedData here"):
        load_prepared(run)


def test_a_stopped_stage_leaves_nothing_that_counts_and_starts_anew(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = config(write_rows(tmp_path / "rows.jsonl", range(40)))
    prepare(data, run, tiny_tokenizer)
    run.file("data/manifest.json").unlink()
    with pytest.raises(DataError, match="no PreparedData"):
        load_prepared(run)
    assert prepare(data, run, tiny_tokenizer).splits["train"].rows > 0


def prompts(run: RunDirectory, prepared: PreparedData) -> dict[str, set[str]]:
    return {
        name: {conversation.messages[0].text for conversation in read_conversations(run.file(report.conversations))}
        for name, report in prepared.splits.items()
    }


def test_holdout_and_validation_files_take_their_prompts_out_of_training(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    train = write_rows(tmp_path / "train.jsonl", range(50), answer="other words")
    validation = write_rows(tmp_path / "validation.jsonl", range(5, 10))
    holdout = write_rows(tmp_path / "holdout.jsonl", range(8, 15))
    prepared = prepare(
        config(train, validation_file=validation, holdout_file=holdout, max_bad_fraction=0.0), run, tiny_tokenizer
    )
    assert {name: report.rows for name, report in prepared.splits.items()} == {
        "train": 40,
        "validation": 3,
        "holdout": 7,
    }
    assert prepared.reasons == {"in_holdout": 9, "in_validation": 3}
    found = prompts(run, prepared)
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["holdout"]
    assert [source.read for source in prepared.sources] == [50, 5, 7]


def test_max_samples_counts_rows_over_files(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    files = [write_rows(tmp_path / f"{n}.jsonl", range(n * 100, n * 100 + 10)) for n in range(3)]
    prepared = prepare(config(files, max_samples=15), run, tiny_tokenizer)
    assert [source.read for source in prepared.sources] == [10, 5, 0]


def test_too_many_bad_rows_stop_the_run_and_leave_the_ledger(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", range(98)))
    with open(path, "a") as file:
        file.write('{"question": "a", "answer": null}\n{"question": "b"\n')
    with pytest.raises(DataError, match=r"2 of 100 rows cannot be used \(2.0%") as caught:
        prepare(config(str(path)), run, tiny_tokenizer)
    assert f"{path}:99" in str(caught.value)
    assert "max_bad_fraction=0.03" in str(caught.value.fix)
    assert len(ledger(run)) == 100
    assert prepare(config(str(path), max_bad_fraction=0.03), run, tiny_tokenizer).splits["train"].rows > 0


def test_on_bad_row_fail_stops_at_the_first(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", range(5)))
    with open(path, "a") as file:
        file.write('{"question": "a", "answer": null}\n')
    with pytest.raises(DataError, match="null_content") as caught:
        prepare(config(str(path), on_bad_row="fail", max_bad_fraction=1.0), run, tiny_tokenizer)
    assert caught.value.where == f"{path}:6"


def test_nothing_to_train_on_says_why(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": ""}\n{"question": "a", "answer": null}\n')
    with pytest.raises(DataError, match=r"nothing to train on: 1 empty_content \(first: .*:1\), 1 null_content"):
        prepare(config(str(path), max_bad_fraction=1.0), run, tiny_tokenizer)
    path.write_text(json.dumps({"question": "long " * 200, "answer": "b"}) + "\n")
    with pytest.raises(DataError, match="nothing to train on: 1 too_long"):
        prepare(config(str(path), max_seq_length=64), run, tiny_tokenizer)


def test_one_row_trains(tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    for number in range(30):
        with RunDirectory.open(tmp_path / f"run{number}") as directory:
            path = write_rows(tmp_path / "rows.jsonl", range(number, number + 1))
            splits = prepare(config(path), directory, tiny_tokenizer).splits
            assert {name: report.rows for name, report in splits.items()} == {
                "train": 1,
                "validation": 0,
                "holdout": 0,
            }


def test_small_files_get_a_validation_and_a_holdout_row(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", range(12))
    prepared = prepare(config(path, validation_split=0.001, holdout_split=0.001), run, tiny_tokenizer)
    assert {name: report.rows for name, report in prepared.splits.items()} == {
        "train": 10,
        "validation": 1,
        "holdout": 1,
    }
    assert any("no row fell into its share" in note for note in prepared.notes)


LENGTHS: dict[str, tuple[str, Callable[[PreparedData], bool]]] = {
    "drop": ("drop", lambda prepared: prepared.reasons == {"too_long": 1} and prepared.sources[0].dropped == 1),
    "truncate": ("truncate", lambda prepared: prepared.reasons == {"truncated": 1} and prepared.sources[0].fixed == 1),
}


@pytest.mark.parametrize(("policy", "as_expected"), LENGTHS.values(), ids=LENGTHS.keys())
def test_overlong_rows_follow_the_policy_and_are_no_damage(
    tmp_path: Path,
    run: RunDirectory,
    tiny_tokenizer: PreTrainedTokenizerBase,
    policy: str,
    as_expected: Callable[[PreparedData], bool],
) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", range(20)))
    with open(path, "a") as file:
        file.write(json.dumps({"question": "And now?", "answer": "apples " * 300}) + "\n")
    data = config(str(path), max_seq_length=128, overlong=policy, max_bad_fraction=0.0)
    prepared = prepare(data, run, tiny_tokenizer)
    assert as_expected(prepared)
    assert prepared.token_lengths["max"] <= 128
    with RunDirectory.open(tmp_path / "strict") as strict, pytest.raises(DataError, match="too long") as caught:
        prepare(config(str(path), max_seq_length=128, overlong="fail"), strict, tiny_tokenizer)
    assert f"{path}:21" in str(caught.value)


def test_check_and_prepare_agree(tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", range(30)))
    with open(path, "a") as file:
        file.write('{"question": "\\u0000a", "answer": "b"}\n{"question": "a", "answer": null}\n')
    data = config(str(path), max_bad_fraction=0.1)
    report, prepared = check(data), prepare(data, run, tiny_tokenizer)
    assert report.reasons == prepared.reasons
    assert report.usable
    assert (report.read, report.kept, report.fixed, report.dropped) == (32, 31, 1, 1)
    assert report.rows == tuple(
        {key: value for key, value in line.items() if key != "split"} for line in ledger(run) if line["code"]
    )


def test_documents_train_whole(tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n---\n".join(f"Document {number} about apples and pears." for number in range(30)))
    prepared = prepare(config(str(path)), run, tiny_tokenizer)
    train = prepared.splits["train"]
    assert train.supervised_tokens == train.tokens - train.rows, "all but the first token of each"


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data/gsm8k_train.jsonl is not here")
def test_gsm8k_end_to_end(run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    prepared = prepare(config(str(GSM8K), max_samples=200), run, tiny_tokenizer)
    assert prepared.sources[0].read == 200
    assert sum(report.rows for report in prepared.splits.values()) == prepared.sources[0].kept == 200
    assert prepared.splits["holdout"].rows >= 5
    found = prompts(run, prepared)
    assert not found["train"] & found["holdout"]
    assert not found["train"] & found["validation"]
    example = read_examples(run.file(prepared.splits["train"].examples))[0]
    text = tiny_tokenizer.decode(example.input_ids[example.loss_weights > 0])
    assert "####" in text
    assert text.endswith("<|im_end|>")
