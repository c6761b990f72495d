"""The whole stage on tiny real models: files in, report, answers and baseline out; interrupted, repeated, tampered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from halo_forge.artifacts import Comparison, EvalReport, PreparedData, Provenance, SplitReport, TrainedModel
from halo_forge.chat import Conversation, Message, SourceRef, TextPart, prompt_and_reference, write_conversations
from halo_forge.config.schema import Config
from halo_forge.errors import DataError, Interrupted, OutOfMemory, UsageError
from halo_forge.evaluate import check_evaluation, evaluate
from halo_forge.evaluate.items import decode
from halo_forge.evaluate.metrics import Given
from halo_forge.gate.judge import judge_rules
from halo_forge.models.generate import Prompt, generate
from halo_forge.runs import RunDirectory, read_artifact, sha256_file, sha256_json

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 6
STAMP = Provenance(created_at="2026-01-01T00:00:00+00:00", code_version="0", config_sha256="c")


def conversation(question: str, answer: str | None) -> Conversation:
    """answer None: a plain text."""
    roles = (("document", question),) if answer is None else (("user", question), ("assistant", answer))
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in roles)  # type: ignore[arg-type]
    return Conversation(id=sha256_json([question, answer]), messages=messages, source=SourceRef(path="x", line=1))


@dataclass
class Pair:
    """Two models that are there already; counts how often each was asked for, and the tokens each was fed."""

    base_model: LlamaForCausalLM
    tuned_model: LlamaForCausalLM
    entered: list[str] = field(default_factory=list)
    num_calls: int = 0

    def __post_init__(self) -> None:
        for model in (self.base_model, self.tuned_model):
            model.model.embed_tokens.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.num_calls += 1

    @contextmanager
    def base(self) -> Iterator[LlamaForCausalLM]:
        self.entered.append("base")
        yield self.base_model

    @contextmanager
    def tuned(self) -> Iterator[LlamaForCausalLM]:
        self.entered.append("tuned")
        yield self.tuned_model


@dataclass
class Stage:
    """A run directory with a frozen holdout, ready to be evaluated."""

    run: RunDirectory
    prepared: PreparedData
    pair: Pair
    tokenizer: PreTrainedTokenizerBase
    conversations: list[Conversation]

    def evaluate(
        self,
        settings: dict[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
        notify: Callable[[str, Mapping[str, Any]], None] = lambda event, fields: None,
    ) -> EvalReport:
        config = config_with(settings)
        return evaluate(config, self.run, self.prepared, trained(), self.pair, self.tokenizer, notify, check)

    @property
    def shared_cache(self) -> Path:
        return self.run.path.parent / "evaluations"

    def answers(self) -> list[dict[str, Any]]:
        return self.lines("eval/answers.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.file(name).read_text().splitlines()]


def config_with(settings: dict[str, Any] | None) -> Config:
    evaluation = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 3, "bootstrap_samples": 200, **(settings or {})}
    gate = evaluation.pop("gate", {})
    return Config.model_validate({"evaluation": evaluation, "gate": gate})


def trained() -> TrainedModel:
    return TrainedModel(
        provenance=STAMP, model_name="tiny", method="full", final_model="final_model", final_step=10,
        weights_sha256="w" * 64, num_steps=10, num_epochs=1.0, num_tokens=1000, num_supervised_tokens=400,
        num_trainable_parameters=10, num_parameters=10, train_loss=1.25, validation_loss=0.5,
        best_validation_loss=0.5, best_val=None, best_train=None, latest="checkpoint-10", stop_reason="finished",
        precision="float32", device="cpu", attention="sdpa", train_time_s=12.0, tokens_per_s=80.0,
        peak_memory_bytes=1,
    )  # fmt: skip


def freeze(run: RunDirectory, conversations: list[Conversation]) -> PreparedData:
    name = "data/holdout.conversations.jsonl"
    sha256 = write_conversations(run.file(name), conversations)
    split = SplitReport(
        rows=len(conversations), tokens=1, supervised_tokens=1, sha256=sha256, conversations=name, examples="unused"
    )
    return PreparedData(
        provenance=STAMP, sources=(), reasons={}, splits={"holdout": split}, ledger="data/ledger.jsonl",
        model_name="tiny", template_sha256="t", tokenizer_sha256="t", max_seq_length=256,
    )  # fmt: skip


@pytest.fixture
def stage(
    tmp_path: Path,
    tiny_llama: Callable[..., LlamaForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> Stage:
    """Nine questions whose references are what the tuned model says, and one plain text; an empty cache."""
    monkeypatch.setenv("HALO_FORGE_EVALUATIONS", str(tmp_path / "evaluations"))
    pair = Pair(tiny_llama(seed=0), tiny_llama(seed=7))
    drafts = [conversation(f"What is {number} plus {number}?", "draft") for number in range(9)]
    prompts = []
    for draft in drafts:
        token_ids, _, stops = prompt_and_reference(draft, tiny_tokenizer)
        prompts.append(Prompt(tuple(token_ids), frozenset(stops)))
    said = generate(
        pair.tuned_model, prompts, decode=lambda ids: decode(tiny_tokenizer, ids), max_new_tokens=MAX_NEW_TOKENS,
        batch_size=4,
    )  # fmt: skip
    rows = [
        conversation(draft.messages[0].text, answer.text or "nothing")
        for draft, answer in zip(drafts, said, strict=True)
    ]
    rows.append(conversation("The dog sleeps through the afternoon.", None))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    stage = Stage(run, freeze(run, rows), pair, tiny_tokenizer, rows)
    pair.num_calls = 0
    return stage


def row_of(report: EvalReport, metric: str) -> Comparison:
    (row,) = [row for row in report.overall if row.metric == metric]
    return row


def test_report_answers_and_baseline_agree(stage: Stage) -> None:
    report = stage.evaluate()
    assert (report.num_items, report.num_scored) == (10, 9)
    assert read_artifact(stage.run.file("eval/report.json"), EvalReport) == report
    exact = row_of(report, "exact_match")
    assert (exact.tuned.value, exact.tuned.n, exact.base.value) == (1.0, 9, 0.0)
    assert (exact.delta.value, exact.wins, exact.losses) == (1.0, 9, 0)
    assert exact.tuned.low is not None
    assert 0.6 < exact.tuned.low < 1.0  # nine of nine is no certainty

    answers = stage.answers()
    assert len(answers) == 9
    assert [row["id"] for row in answers] == [row.id for row in stage.conversations[:9]]
    for row in answers:
        assert set(row) == {"id", "prompt", "reference", "slices", "base", "tuned"}
        assert row["prompt"].endswith("<|im_start|>assistant\n")
        for side in (row["base"], row["tuned"]):
            assert set(side) == {"text", "stopped", "num_tokens", "scores"}
            assert side["scores"]["answer_length"] == side["num_tokens"] <= MAX_NEW_TOKENS
    mean_f1 = sum(row["base"]["scores"]["token_f1"] for row in answers) / 9
    assert row_of(report, "token_f1").base.value == pytest.approx(mean_f1)

    baseline = json.loads(stage.run.file("baseline_metrics.json").read_text())
    numbers = {name: value for name, value in baseline.items() if isinstance(value, float)}
    assert numbers == {row.metric: row.tuned.value for row in report.comparisons}
    assert baseline["base"]["exact_match"] == 0.0
    assert baseline["metadata"]["validation_perplexity"] == pytest.approx(math.exp(0.5))
    assert baseline["metadata"]["final_training_loss"] == 1.25
    assert baseline["metadata"]["training_configuration"]["training"]["method"] == "lora"
    assert (baseline["metadata"]["training_duration_s"], baseline["metadata"]["training_date"][:10]) == (
        12.0, "2026-01-01",
    )  # fmt: skip


def test_perplexity_counts_every_row_and_goes_down_when_better(stage: Stage) -> None:
    report = stage.evaluate()
    perplexity = row_of(report, "perplexity")
    assert perplexity.tuned.n == 10  # the plain text too
    assert perplexity.delta.direction == "lower"
    assert perplexity.delta.value == perplexity.tuned.value - perplexity.base.value  # type: ignore[operator]
    assert perplexity.wins + perplexity.losses == 10
    per_item = [(row["base"]["scores"], row["tuned"]["scores"]) for row in stage.answers()]
    wins = sum(tuned["perplexity"] < base["perplexity"] for base, tuned in per_item)
    assert perplexity.wins - wins in (0, 1)  # the text has no line of its own


def test_metrics_that_do_not_apply_are_left_out_unless_a_rule_reads_them(stage: Stage) -> None:
    names = {row.metric for row in stage.evaluate().comparisons}
    assert names == {
        "perplexity", "exact_match", "token_f1", "rouge_l", "stop_rate", "repetition", "conciseness", "answer_length",
        "length_to_reference", "length_to_base", "general_perplexity", "general_kl",
    }  # fmt: skip
    report = stage.evaluate({"gate": {"rules": [{"metric": "numeric_match", "min": 0.5}]}})
    asked = row_of(report, "numeric_match").tuned
    assert (asked.value, asked.status) == (None, "not_measured")
    assert "0 of 9 references" in (asked.note or "")


def test_max_prompts_takes_the_same_rows_in_any_order(stage: Stage) -> None:
    report = stage.evaluate({"max_prompts": 4})
    assert (report.num_items, report.num_scored) == (10, 4)
    assert (row_of(report, "exact_match").tuned.n, row_of(report, "perplexity").tuned.n) == (4, 10)
    first = {row["id"] for row in stage.answers()}
    stage.prepared = freeze(stage.run, stage.conversations[::-1])
    stage.evaluate({"max_prompts": 4})
    assert {row["id"] for row in stage.answers()} == first


def test_a_second_evaluation_computes_nothing(stage: Stage) -> None:
    first = stage.evaluate()
    assert stage.pair.num_calls > 0
    stage.pair.num_calls = 0
    again = stage.evaluate()
    assert stage.pair.num_calls == 0
    assert again.comparisons == first.comparisons


def test_other_weights_or_decoding_are_measured_anew(stage: Stage) -> None:
    before = stage.evaluate()
    with torch.no_grad():
        stage.pair.tuned_model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    stage.pair.num_calls = 0
    after = stage.evaluate()
    assert stage.pair.num_calls > 0
    assert row_of(after, "perplexity").tuned != row_of(before, "perplexity").tuned
    assert row_of(after, "perplexity").base == row_of(before, "perplexity").base
    stage.pair.num_calls = 0
    shorter = stage.evaluate({"max_new_tokens": 2})
    assert stage.pair.num_calls > 0
    assert row_of(shorter, "answer_length").tuned.value == 2.0
    assert len(list(stage.run.file("eval/cache").glob("*.jsonl"))) == 1  # only what the last evaluation used


@pytest.mark.parametrize("stop_at", [1, 3, 9, 14])
def test_an_interrupted_evaluation_goes_on(stage: Stage, stop_at: int) -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        stage.evaluate(check=stop)
    assert not stage.run.file("eval/report.json").exists()
    caches = [*stage.run.file("eval/cache").glob("*.jsonl"), *stage.shared_cache.glob("*.jsonl")]
    cached = [path.read_bytes() for path in caches]
    for path in caches:
        with open(path, "ab") as file:
            file.write(b'{"key": "torn')
    resumed = stage.evaluate()
    interrupted_calls = stage.pair.num_calls
    assert row_of(resumed, "exact_match").tuned.value == 1.0
    if stop_at >= 9:
        assert any(b"token_ids" in content for content in cached)
    stage.pair.num_calls = 0
    fresh = stage.evaluate()
    assert stage.pair.num_calls == 0  # the line after the torn one was not lost
    assert fresh.comparisons == resumed.comparisons
    assert interrupted_calls > 0


def test_a_changed_holdout_is_refused(stage: Stage) -> None:
    path = stage.run.file("data/holdout.conversations.jsonl")
    path.write_bytes(path.read_bytes().replace(b"What is 3", b"What is 4"))
    with pytest.raises(DataError, match="not the one that was frozen") as raised:
        stage.evaluate()
    assert str(path) in (raised.value.where or "")
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        stage.evaluate()
    assert stage.pair.entered == []


def test_an_empty_holdout_measures_nothing_and_says_so(stage: Stage) -> None:
    stage.prepared = freeze(stage.run, [])
    report = stage.evaluate({"gate": {"rules": [{"metric": "json_valid", "min": 0.5}]}})
    assert stage.pair.entered == []
    assert {row.metric for row in report.comparisons} >= {"perplexity", "exact_match", "json_valid"}
    for row in report.comparisons:
        assert (row.tuned.value, row.tuned.n, row.tuned.status) == (None, 0, "not_measured")
    baseline = json.loads(stage.run.file("baseline_metrics.json").read_text())
    assert not any(isinstance(value, float) for value in baseline.values())
    assert set(baseline["metadata"]["not_measured"]) == {row.metric for row in report.comparisons}
    assert stage.answers() == []


def test_a_broken_model_fails_its_perplexity_and_never_scores_zero(stage: Stage) -> None:
    with torch.no_grad():
        stage.pair.tuned_model.model.norm.weight.fill_(float("nan"))
    perplexity = row_of(stage.evaluate(), "perplexity")
    assert (perplexity.tuned.value, perplexity.tuned.status) == (None, "failed")
    assert (perplexity.delta.value, perplexity.delta.status) == (None, "failed")
    assert "not a finite number" in (perplexity.tuned.note or "")


def test_rows_that_cannot_be_used_are_counted(stage: Stage) -> None:
    silent_row = conversation("", None)
    opening = Conversation(
        id="z", source=SourceRef(path="x", line=2),
        messages=(Message(role="assistant", parts=(TextPart(text="I begin."),)),),
    )  # fmt: skip
    stage.prepared = freeze(stage.run, [*stage.conversations, silent_row, opening])
    notes: list[str] = []
    report = stage.evaluate(notify=lambda event, fields: notes.append(str(fields.get("text"))))
    assert (report.num_items, report.num_scored) == (12, 9)
    assert row_of(report, "perplexity").tuned.n == 11
    assert "1 holdout rows could not be used: likelihood (no_supervised_tokens)" in notes
    assert "1 holdout rows could not be used: answer (no_prompt)" in notes


def test_progress_is_told_for_both_models(stage: Stage) -> None:
    told: list[tuple[str, int, int]] = []

    def notify(event: str, fields: Mapping[str, Any]) -> None:
        if event == "eval.progress":
            told.append((fields["which"], fields["done"], fields["total"]))

    stage.evaluate(notify=notify)
    assert [entry for entry in told if entry[0] == "base"] == [("base", done, 9) for done in range(10)]
    assert told[-1] == ("tuned", 9, 9)


def test_equal_rows_are_answered_once_and_counted_each_time(stage: Stage) -> None:
    stage.prepared = freeze(stage.run, [stage.conversations[0]] * 5)
    told: list[int] = []
    report = stage.evaluate(notify=lambda event, fields: told.append(fields.get("total", 0)))
    assert set(told) == {1}
    assert row_of(report, "exact_match").tuned.n == 5


def test_a_schema_is_measured_and_a_bad_one_is_refused_before_any_model(stage: Stage, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    report = stage.evaluate({"json_schema": str(schema)})
    assert row_of(report, "schema_valid").tuned.value == 0.0
    assert "json_schema" in report.provenance.inputs
    schema.write_text("{")
    stage.pair.entered.clear()
    with pytest.raises(UsageError, match="not JSON"):
        stage.evaluate({"json_schema": str(schema)})
    assert stage.pair.entered == []
    assert check_evaluation(config_with(None)) == (Given(), ())


def test_spent_memory_is_told_in_words(stage: Stage) -> None:
    @contextmanager
    def full() -> Iterator[LlamaForCausalLM]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    stage.pair.base = full  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match=r"evaluation\.batch_size"):
        stage.evaluate()


# ---------------------------------------------------------------------------------------------- slices, flips, scorers


def with_labels(stage: Stage, rows: list[Conversation], labels: list[dict[str, str]]) -> None:
    rows = [replace(row, slices=label) for row, label in zip(rows, labels, strict=True)]
    stage.prepared = freeze(stage.run, rows)


def test_slices_stand_beside_the_whole_and_are_of_their_rows(stage: Stage) -> None:
    rows = stage.conversations[:9] * 3
    labels = [{"source": "faq" if index < 12 else "chat", "domain": "law"} for index in range(27)]
    with_labels(stage, rows, labels)
    report = stage.evaluate()
    found = {row.slice: row for row in report.comparisons if row.metric == "exact_match"}
    assert list(found) == ["all", *sorted(set(found) - {"all"})]
    assert (found["source=faq"].tuned.n, found["source=chat"].tuned.n) == (12, 15)
    assert "domain=law" not in found  # all items
    perplexity = next(
        row for row in report.comparisons if (row.metric, row.slice) == ("perplexity", "source=faq")
    )  # fmt: skip
    nats = [row["tuned"]["scores"]["perplexity"] for row in stage.answers()[:12]]
    assert min(nats) <= (perplexity.tuned.value or 0) <= max(nats)
    assert stage.answers()[0]["slices"] == labels[0]
    baseline = json.loads(stage.run.file("baseline_metrics.json").read_text())
    assert baseline["perplexity"] == row_of(report, "perplexity").tuned.value != perplexity.tuned.value
    assert baseline["base"]["perplexity"] == row_of(report, "perplexity").base.value
    assert {row.slice for row in stage.evaluate({"slices": False}).comparisons} == {"all"}


def test_flips_name_the_line_of_their_answers(stage: Stage) -> None:
    row = row_of(stage.evaluate(), "exact_match")
    flips = [flip for flip in stage.lines("eval/flips.jsonl") if flip["metric"] == "exact_match"]
    assert sum(flip["outcome"] == "won" for flip in flips) == row.wins == 9
    answers = stage.answers()
    for flip in flips:
        answer = answers[flip["line"] - 1]
        assert answer["id"] == flip["id"]
        assert (answer["base"]["scores"]["exact_match"], answer["tuned"]["scores"]["exact_match"]) == (0, 1)
    metrics = {flip["metric"] for flip in stage.lines("eval/flips.jsonl")}
    assert metrics <= {"exact_match", "stop_rate"}  # yes/no metrics only


def test_fewer_prompts_than_rows_are_subsampled_and_the_perplexity_is_not(stage: Stage) -> None:
    report = stage.evaluate({"max_prompts": 4})
    assert {row.metric for row in report.comparisons if row.tuned.subsampled} == {
        "exact_match", "token_f1", "rouge_l", "stop_rate", "repetition", "conciseness", "answer_length",
        "length_to_reference", "length_to_base",
    }  # fmt: skip
    assert not any(row.tuned.subsampled for row in stage.evaluate({"max_prompts": 9}).comparisons)


def test_every_number_has_an_error_and_every_difference_a_test(stage: Stage) -> None:
    for row in stage.evaluate().overall:
        assert row.delta.standard_error is not None, row.metric
        assert (row.p_value is None) == (row.test is None) == (row.metric == "general_kl")
    lengths = row_of(stage.evaluate(), "length_to_base")
    assert (lengths.base.value, lengths.tuned.direction) == (1.0, "none")


def test_a_users_scorer_is_a_metric_that_the_gate_knows(stage: Stage, tmp_path: Path) -> None:
    scorer = tmp_path / "brand.py"
    scorer.write_text("def short(answer, reference, row):\n    return len(answer) < 10_000\n")
    rules = {"rules": [{"metric": "short", "min": 0.5}], "min_items": 5}
    settings = {"scorers": [f"{scorer}:short"], "gate": rules}
    report = stage.evaluate(dict(settings))
    row = row_of(report, "short")
    assert (row.tuned.value, row.tuned.n, row.test) == (1.0, 9, "McNemar exact")
    assert report.provenance.inputs["scorer short"] == sha256_file(scorer)
    verdict, _ = judge_rules(config_with(dict(settings)).gate, report)
    assert verdict == "PASS"
    assert stage.answers()[0]["tuned"]["scores"]["short"] == 1.0
    assert json.loads(stage.run.file("baseline_metrics.json").read_text())["short"] == 1.0


def test_a_scorer_that_raises_fails_its_metric_alone(stage: Stage, tmp_path: Path) -> None:
    scorer = tmp_path / "brand.py"
    scorer.write_text("def short(answer, reference, row):\n    return {}[row['id']]\n")
    report = stage.evaluate({"scorers": [f"{scorer}:short"], "gate": {"rules": [{"metric": "short", "min": 0.5}]}})
    row = row_of(report, "short")
    assert (row.tuned.status, row.tuned.value) == ("failed", None)
    assert (row.tuned.note or "").startswith(f"brand.py:short raised on item {stage.conversations[0].id}: KeyError")
    assert row_of(report, "exact_match").tuned.value == 1.0


# ---------------------------------------------------------------------------------------------- the shared cache


def another_run(stage: Stage, tmp_path: Path, name: str) -> Stage:
    run = RunDirectory(tmp_path / name)
    run.path.mkdir()
    return Stage(run, freeze(run, stage.conversations), stage.pair, stage.tokenizer, stage.conversations)


def test_another_run_with_the_same_base_asks_the_base_nothing(
    stage: Stage, tmp_path: Path, tiny_llama: Callable[..., LlamaForCausalLM]
) -> None:
    first = stage.evaluate()
    other = another_run(stage, tmp_path, "other")
    other.pair = Pair(tiny_llama(seed=0), tiny_llama(seed=9))
    calls: list[str] = []
    for which, model in (("base", other.pair.base_model), ("tuned", other.pair.tuned_model)):
        model.model.embed_tokens.register_forward_pre_hook(lambda *_, which=which: calls.append(which))
    report = other.evaluate()
    assert set(calls) == {"tuned"}
    assert row_of(report, "perplexity").base == row_of(first, "perplexity").base
    assert [row["base"] for row in other.answers()] == [row["base"] for row in stage.answers()]
    assert row_of(report, "general_perplexity").base == row_of(first, "general_perplexity").base


def test_a_cache_that_cannot_be_written_is_replaced_by_the_runs_own(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HALO_FORGE_EVALUATIONS", str(tmp_path / "file" / "evaluations"))
    stage.evaluate()
    assert len(list(stage.run.file("eval/cache").glob("*.jsonl"))) == 2
