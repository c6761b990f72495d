"""A small run directory as the stages leave it: real records, real safetensors, real stub -> JSON rows.

Shared by the tests of publish, monitor and report; nothing here is read from outside the standard library's own
docstrings, so it is the same on every machine with the same Python.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from halo_forge.artifacts import (
    Comparison,
    Direction,
    EvalReport,
    GateDecision,
    Measurement,
    PreparedData,
    SourceReport,
    SplitReport,
    TrainedModel,
    Verdict,
)
from halo_forge.chat import Conversation, Message, SourceRef, TextPart, write_conversations
from halo_forge.config.schema import Config
from halo_forge.gate import decide
from halo_forge.runs import (
    RunDirectory,
    provenance,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_artifact,
    write_json,
)

MODULES = ("textwrap", "shlex", "fnmatch", "statistics", "bisect", "heapq", "calendar", "colorsys", "gettext", "shutil")
NUM_HOLDOUT = 40
SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
NUM_STEPS = 60
JSON_LIMIT: dict[Verdict, float] = {"PASS": 0.7, "INCONCLUSIVE": 0.9, "FAIL": 0.99}
"""Least share of valid JSON that gives each verdict: the tuned model's interval is 0.77 to 0.96."""


@dataclass(frozen=True)
class BuiltRun:
    config: Config
    run: RunDirectory
    trained: TrainedModel
    report: EvalReport
    decision: GateDecision
    prepared: PreparedData

    @property
    def records(self) -> tuple[Config, RunDirectory, TrainedModel, EvalReport, GateDecision, PreparedData]:
        return self.config, self.run, self.trained, self.report, self.decision, self.prepared


def stub_rows() -> list[dict[str, str]]:
    """Prompt (signature and first docstring line) and the JSON object that describes it."""
    rows = []
    for module_name in MODULES:
        module = __import__(module_name)
        for name, function in sorted(vars(module).items()):
            if not inspect.isfunction(function) or not function.__doc__ or name.startswith("_"):
                continue
            parameters = list(inspect.signature(function).parameters)
            summary = function.__doc__.strip().splitlines()[0].strip()
            prompt = f'def {name}({", ".join(parameters)}):\n    """{summary}"""'
            answer = {"name": name, "parameters": parameters, "summary": summary}
            rows.append({"prompt": prompt, "answer": json.dumps(answer)})
    return rows


def build_run(
    path: Path,
    *,
    registry: Path | None = None,
    verdict: Verdict = "PASS",
    seed: int = 0,
    alter_answer: Callable[[int, dict[str, Any]], None] | None = None,
) -> BuiltRun:
    """Write every record of a finished run; `alter_answer` may change lines of answers.jsonl before they are."""
    run = RunDirectory(path)
    config = Config.model_validate(
        {
            "data": {"train_file": "examples/stubs.jsonl", "max_seq_length": 512},
            "training": {"num_train_epochs": 1, "learning_rate": 5e-4},
            "output": {"dir": str(path)},
            "gate": {
                "rules": [{"metric": "json_valid", "min": JSON_LIMIT[verdict]}, {"metric": "perplexity", "max": 20}]
            },
            "publish": {"registry": str(registry or path.parent / "registry")},
        }
    )
    config_sha256 = sha256_json(config.to_dict())
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.resolved.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_json(
        path / "run.json",
        {
            "schema_version": 1,
            "config": config.to_dict(),
            "origins": _origins(config),
            "notices": [],
            "command": ["halo-forge", "run", "configs/demo.yaml", "--output", str(path)],
            "code_version": "0.1.0",
            "libraries": {"numpy": np.__version__},
            "python": "3.11.2",
        },
    )
    rows = stub_rows()
    weights_sha256 = write_adapter(path / "final_model", seed)
    prepared = _prepared(run, config_sha256, rows)
    trained = _trained(run, config_sha256, weights_sha256)
    report = _report(run, config_sha256, rows[:NUM_HOLDOUT], trained, prepared, alter_answer)
    decision = decision_for(config, report, run)
    return BuiltRun(config, run, trained, report, decision, prepared)


def _origins(config: Config) -> dict[str, str]:
    chosen = {
        "data.train_file": "configs/demo.yaml:4",
        "data.max_seq_length": "configs/demo.yaml:5",
        "training.num_train_epochs": "configs/demo.yaml:8",
        "training.learning_rate": "--set",
        "output.dir": "--output",
        "gate.rules": "configs/demo.yaml:20",
    }
    return {
        f"{section}.{key}": chosen.get(f"{section}.{key}", "default")
        for section, values in config.to_dict().items()
        for key in values
    }


def write_adapter(directory: Path, seed: int = 0) -> str:
    """A LoRA adapter as peft saves it, with a tokenizer's files beside it; its weights_sha256."""
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers"
    tensors = {
        f"{prefix}.{layer}.self_attn.q_proj.lora_{side}.weight": numbers.normal(size=shape).astype(np.float32)
        for layer in range(2)
        for side, shape in (("A", (4, 16)), ("B", (16, 4)))
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        directory / "adapter_config.json",
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "smollm2-135m-instruct"},
    )
    (directory / "README.md").write_text("a card that the library wrote\n")
    for folder in (directory, directory / "tokenizer"):
        write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return sha256_tree(directory, names=["adapter_model.safetensors"])


def decision_for(config: Config, report: EvalReport, run: RunDirectory) -> GateDecision:
    """The gate's own decision on the report that lies in the run."""
    decision = decide(config, report, sha256_file(run.file("eval/report.json")))
    write_artifact(run.file("gate.json"), decision)
    return decision


# ---------------------------------------------------------------------------------------------- data


def _prepared(run: RunDirectory, config_sha256: str, rows: list[dict[str, str]]) -> PreparedData:
    dropped = [
        (17, "empty_answer", "the assistant's turn has no text"),
        (58, "overlong", "731 tokens, longest allowed 512"),
        (201, "no_assistant_turn", "nothing to train on: the row has no assistant turn"),
    ]
    ledger = [
        {
            "file": "examples/stubs.jsonl",
            "line": line,
            "action": "dropped",
            "code": code,
            "reason": reason,
            "split": None,
            "excerpt": '{"prompt": "def frobnicate(',
        }
        for line, code, reason in dropped
    ]
    ledger.append(
        {"file": "examples/stubs.jsonl", "line": 90, "action": "fixed", "code": "special_token_in_content",
         "reason": "<|im_end|> inside a user turn is encoded as text"}
    )  # fmt: skip
    run.file("data").mkdir(exist_ok=True)
    run.file("data/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    masks = [_mask_sample(index, row) for index, row in enumerate(rows[50:53])]
    write_json(run.file("data/mask_samples.json"), masks)
    hashes = {name: sha256_bytes(name.encode()) for name in ("train", "validation")}
    holdout = [_conversation(index, row) for index, row in enumerate(rows[:NUM_HOLDOUT])]
    hashes["holdout"] = write_conversations(run.file("data/holdout.conversations.jsonl"), holdout)
    splits = {
        name: SplitReport(
            rows=count,
            tokens=count * 92,
            supervised_tokens=count * 37,
            sha256=hashes[name],
            conversations=f"data/{name}.conversations.jsonl",
            examples=f"data/{name}.examples.arrow",
        )
        for name, count in (("train", 500), ("validation", 27), ("holdout", NUM_HOLDOUT))
    }
    source = SourceReport(
        path="examples/stubs.jsonl", sha256=sha256_bytes(b"stubs"), format="prompt_completion",
        read=570, kept=567, fixed=1, dropped=3,
    )  # fmt: skip
    prepared = PreparedData(
        provenance=provenance(config_sha256, {"examples/stubs.jsonl": source.sha256}),
        sources=(source,),
        reasons={"empty_answer": 1, "overlong": 1, "no_assistant_turn": 1, "special_token_in_content": 1},
        splits=splits,
        ledger="data/ledger.jsonl",
        model_name="smollm2-135m-instruct",
        template_sha256=sha256_bytes(b"template"),
        tokenizer_sha256=sha256_bytes(b"tokenizer"),
        max_seq_length=512,
        token_lengths={"min": 41, "p50": 88, "p95": 164, "max": 402},
        notes=("2 rows are exact duplicates of others; one of each was kept",),
    )
    write_artifact(run.file("data/manifest.json"), prepared)
    return prepared


def row_id(row: dict[str, str]) -> str:
    return sha256_json([row["prompt"], row["answer"]])


def _conversation(index: int, row: dict[str, str]) -> Conversation:
    turns = (("system", SYSTEM_PROMPT), ("user", row["prompt"]), ("assistant", row["answer"]))
    return Conversation(
        id=row_id(row),
        messages=tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns),  # type: ignore[arg-type]
        source=SourceRef(path="examples/stubs.jsonl", line=index + 1),
    )


def rendered(prompt: str) -> str:
    """The prompt as the model sees it: what evaluate writes into answers.jsonl."""
    return (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


def _mask_sample(index: int, row: dict[str, str]) -> dict[str, Any]:
    """Split as a byte-pair tokenizer would, roughly: words with their leading blank, marks, line ends."""
    context = rendered(row["prompt"])
    pieces = r"<\|im_start\|>|<\|im_end\|>|\s?\w+|\s?[^\w\s]|\s"
    before = re.findall(pieces, context)
    trained = [*re.findall(pieces, row["answer"]), "<|im_end|>"]
    return {
        "id": f"{index:064x}",
        "source": f"examples/stubs.jsonl:{index + 51}",
        "tokens": [*before, *trained, "\n"],
        "weights": [0.0] * len(before) + [1.0] * len(trained) + [0.0],
    }


# ---------------------------------------------------------------------------------------------- train


def _trained(run: RunDirectory, config_sha256: str, weights_sha256: str) -> TrainedModel:
    numbers = np.random.default_rng(7)
    lines = []
    for step in range(1, NUM_STEPS + 1):
        rate = 5e-4 * (step / 4 if step < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 4) / (NUM_STEPS - 4))))
        loss = 0.28 + 2.3 * math.exp(-step / 9) + 0.06 * numbers.normal()
        lines.append(
            {"kind": "train", "step": step, "loss": loss, "learning_rate": rate, "grad_norm": 0.8 + 2 / step,
             "num_supervised_tokens": 592, "num_tokens": 1472, "time_s": 2.4, "epoch": step / NUM_STEPS}
        )  # fmt: skip
        if step % 15 == 0:
            loss = 0.34 + 2.2 * math.exp(-step / 10)
            lines.append({"kind": "validation", "step": step, "loss": loss})
    run.file("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = TrainedModel(
        provenance=provenance(config_sha256, {"data/manifest.json": sha256_file(run.file("data/manifest.json"))}),
        model_name="smollm2-135m-instruct",
        method="lora",
        final_model="final_model",
        final_step=NUM_STEPS,
        weights_sha256=weights_sha256,
        num_steps=NUM_STEPS,
        num_epochs=1.0,
        num_tokens=46_000,
        num_supervised_tokens=18_500,
        num_trainable_parameters=4_884_480,
        num_parameters=139_399_488,
        train_loss=0.31,
        validation_loss=0.345,
        best_validation_loss=0.345,
        best_val="checkpoint-60",
        best_train="checkpoint-60",
        latest="checkpoint-60",
        stop_reason="finished",
        precision="float32",
        device="cpu",
        attention="document",
        train_time_s=144.0,
        tokens_per_s=319.0,
        peak_memory_bytes=2_100_000_000,
    )
    write_artifact(run.file("trained.json"), trained)
    return trained


# ---------------------------------------------------------------------------------------------- evaluate


def _report(
    run: RunDirectory,
    config_sha256: str,
    rows: list[dict[str, str]],
    trained: TrainedModel,
    prepared: PreparedData,
    alter_answer: Callable[[int, dict[str, Any]], None] | None,
) -> EvalReport:
    run.file("eval").mkdir(exist_ok=True)
    lines = [_answer_line(index, row) for index, row in enumerate(rows)]
    for index, line in enumerate(lines):
        if alter_answer is not None:
            alter_answer(index, line)
    run.file("eval/answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_flips(run, lines)
    report = EvalReport(
        provenance=provenance(config_sha256, {"holdout": prepared.splits["holdout"].sha256}),
        num_items=len(rows),
        num_scored=len(rows),
        confidence=0.95,
        decoding={"strategy": "greedy", "max_new_tokens": 256},
        comparisons=_comparisons(len(rows)),
        answers="eval/answers.jsonl",
        weights_sha256=trained.weights_sha256,
        holdout_sha256=prepared.splits["holdout"].sha256,
        time_s=61.0,
        flips="eval/flips.jsonl",
        notes=("slices of fewer than 10 items are not measured: domain=law (3)",),
    )
    write_artifact(run.file("eval/report.json"), report)
    return report


def write_flips(run: RunDirectory, lines: list[dict[str, Any]]) -> None:
    flips = []
    for metric in ("exact_match", "json_valid"):
        for number, line in enumerate(lines, start=1):
            base, tuned = (line[side]["scores"].get(metric, 0.0) for side in ("base", "tuned"))
            if base != tuned:
                outcome = "won" if tuned > base else "lost"
                flips.append({"metric": metric, "outcome": outcome, "id": line["id"], "line": number})
    run.file("eval/flips.jsonl").write_text("".join(json.dumps(flip) + "\n" for flip in flips))


def _answer_line(index: int, row: dict[str, str]) -> dict[str, Any]:
    name = re.match(r"def (\w+)", row["prompt"])[1]  # type: ignore[index]
    chat = textwrap.dedent(f"""\
        The function `{name}` can be used as follows:

        ```python
        {name}(...)
        ```
        It returns the result of the operation.""")
    if index % 9 == 4:
        tuned, exact = row["answer"].replace('", "', '", "', 1)[:-2], 0.0  # the closing brace is missing
    elif index % 7 == 3:
        tuned, exact = row["answer"].replace(".", "", 1), 0.0
    else:
        tuned, exact = row["answer"], 1.0
    exact = float(tuned == row["answer"])
    is_json = float(index % 9 != 4)
    return {
        "id": row_id(row),
        "prompt": rendered(row["prompt"]),
        "reference": row["answer"],
        "base": {"text": chat, "stopped": index % 3 != 0, "num_tokens": 58,
                 "scores": {"exact_match": 0.0, "token_f1": 0.11, "json_valid": 0.0}},
        "tuned": {"text": tuned, "stopped": True, "num_tokens": 37,
                  "scores": {"exact_match": exact, "token_f1": 1.0 if exact else 0.9, "json_valid": is_json}},
    }  # fmt: skip


def in_slice(row: Comparison, name: str, n: int) -> Comparison:
    sides = {side: getattr(row, side).model_copy(update={"slice": name, "n": n}) for side in ("base", "tuned", "delta")}
    return row.model_copy(update=sides)


def _comparisons(n: int) -> tuple[Comparison, ...]:
    def measured(metric: str, numbers: tuple[float, float, float], direction: Direction) -> Measurement:
        value, low, high = numbers
        return Measurement(metric=metric, value=value, n=n, low=low, high=high, direction=direction)

    table: list[tuple[str, Direction, tuple[float, float, float], tuple[float, float, float]]] = [
        ("perplexity", "lower", (9.41, 8.2, 10.9), (1.28, 1.21, 1.36)),
        ("exact_match", "higher", (0.0, 0.0, 0.088), (0.775, 0.625, 0.9)),
        ("token_f1", "higher", (0.112, 0.09, 0.135), (0.956, 0.93, 0.98)),
        ("json_valid", "higher", (0.0, 0.0, 0.088), (0.875, 0.77, 0.96)),
        ("stop_rate", "higher", (0.65, 0.5, 0.8), (1.0, 0.91, 1.0)),
        ("answer_length", "none", (58.1, 55.0, 61.4), (37.2, 33.8, 40.9)),
    ]
    rows = []
    for metric, direction, base, tuned in table:
        delta = (tuned[0] - base[0], tuned[1] - base[2], tuned[2] - base[1])
        rows.append(
            Comparison(
                metric=metric,
                base=measured(metric, base, direction),
                tuned=measured(metric, tuned, direction),
                delta=measured(metric, delta, direction),
                wins=31 if direction == "higher" else 0,
                losses=1 if metric == "stop_rate" else 0,
            )
        )
    rows += [in_slice(row, "source=faq", n // 2) for row in rows[:3]]
    missing = Measurement(
        metric="schema_valid", value=None, n=0, status="not_measured", note="no JSON schema was given"
    )
    rows.append(Comparison(metric="schema_valid", base=missing, tuned=missing, delta=missing))
    return tuple(rows)
