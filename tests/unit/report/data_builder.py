"""A run directory as `data prepare` leaves it over a dirty data set, with every optional field of the record filled.

Also what the stage leaves when it stops before it has a result: the ledger, and no record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from halo_forge.artifacts import (
    ContaminationHit,
    ContaminationReport,
    DuplicatePair,
    DuplicateReport,
    Finding,
    PreparedData,
    RowExample,
    SourceReport,
    SplitReport,
)
from halo_forge.config.schema import Config
from halo_forge.runs import RunDirectory, provenance, sha256_bytes, sha256_json, write_artifact, write_json

MAIN, CHAT, REPLAY = "data/gsm8k_train.jsonl", "data/support_chats.jsonl.gz", "hub/general/part-00007.parquet"

# code, kind, action, rows, meaning, what the ledger says about one row, excerpt
FOUND = (
    ("bad_json", "damage", "skip", 6, "the line is not JSON", "column 120: a comma before the closing bracket",
     '{"question": "What is 7 x 8?", "answer": "56",}'),
    ("null_content", "damage", "skip", 3, "content is null", "message 2 (assistant) has no content",
     '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null}]}'),
    ("bad_role", "damage", "skip", 2, "an unknown role", "message 2: unknown role 'bot'; did you mean 'assistant'?",
     '{"messages": [{"role": "user", "content": "Oslo?"}, {"role": "bot", "content": "Yes."}]}'),
    ("contaminated", "contamination", "skip", 4, "repeats a benchmark item or a held-out row",
     "repeats gsm8k/test item 411", "Tom's ship can travel at 10 miles per hour. He is sailing from 1 to 4 PM."),
    ("benchmark_overlap", "contamination", "keep", 9, "shares word n-grams with a benchmark item", "", ""),
    ("secret", "privacy", "quarantine", 2, "holds what looks like a key or password", "an access key in turn 1",
     "export AWS_ACCESS_KEY_ID=[redacted]"),
    ("pii_email", "privacy", "fix", 7, "holds an e-mail address", "e-mail addresses are replaced",
     "Write to [redacted] and they will answer within a day."),
    ("refusal", "quality", "skip", 8, "the answer declines to answer", "the answer declines to answer",
     "I'm sorry, but as a language model I cannot help with that."),
    ("repetition", "quality", "keep", 3, "the answer repeats itself", "", ""),
    ("contradiction", "quality", "keep", 5, "the same prompt has another answer elsewhere", "", ""),
    ("duplicate", "duplicate", "skip", 31, "the same conversation as an earlier row",
     f"the same conversation as {MAIN}:17", "How many eggs does Janet sell?"),
    ("near_duplicate", "duplicate", "skip", 14, "nearly the same words as an earlier row",
     f"0.93 of the words of {MAIN}:204", "Weng earns $12 an hour for babysitting."),
    ("too_long", "policy", "skip", 2, "longer than data.max_seq_length", "2,731 tokens, longest allowed 2,048",
     "Summarise the following contract in one page."),
    ("role_normalised", "mended", "fix", 5, "a role was written in another way",
     "a role was written in another way", '{"messages": [{"role": "User", "content": "Hello"}'),
    ("merged_boundary", "flag", "keep", 1, "one token stands across the border between prompt and answer", "", ""),
)  # fmt: skip
NUM_READ = 7473


def settings(path: Path, **data: Any) -> Config:
    return Config.model_validate(
        {
            "data": {"train_file": [MAIN, CHAT], "policies": {"contaminated": "skip"}, **data},
            "output": {"dir": str(path)},
        }
    )


def write_run_record(path: Path, config: Config) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.resolved.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    record = {
        "schema_version": 1,
        "config": config.to_dict(),
        "origins": {"data.train_file": "--data", "data.policies": "configs/data.yaml:9"},
        "command": ["halo-forge", "data", "prepare", "--data", MAIN, "-o", str(path)],
        "python": "3.11.2",
    }
    write_json(path / "run.json", record)


def ledger_lines() -> Iterator[dict[str, Any]]:
    """One line for every row that was read, as the stage writes it."""
    line = 0
    for code, _, action, rows, meaning, reason, excerpt in FOUND:
        done = {"skip": "dropped", "quarantine": "dropped", "fix": "fixed", "keep": "kept"}[action]
        for _ in range(rows):
            line += 1
            yield {
                "file": MAIN if line % 3 else CHAT, "line": line, "action": done, "code": code,
                "reason": (reason or meaning) if done != "kept" else meaning,
                "split": None if done == "dropped" else "train", "excerpt": excerpt if done != "kept" else None,
            }  # fmt: skip
    for number in range(line + 1, NUM_READ + 1):
        yield {"file": MAIN, "line": number, "action": "kept", "code": None, "reason": None, "split": "train",
               "excerpt": None}  # fmt: skip


def write_ledger(run: RunDirectory) -> None:
    run.file("data").mkdir(parents=True, exist_ok=True)
    run.file("data/ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger_lines()))


def prepared_record(config: Config) -> PreparedData:
    num_dropped = sum(rows for _, _, action, rows, *_ in FOUND if action in ("skip", "quarantine"))
    num_fixed = sum(rows for _, _, action, rows, *_ in FOUND if action == "fix")
    parts = ((MAIN, "gsm8k", 6200, 48, 3, 1.0), (CHAT, "", 1073, 24, 9, 1.0), (REPLAY, "replay", 200, 0, 0, 0.25))
    sources = tuple(
        SourceReport(
            path=path, name=name, sha256=sha256_bytes(path.encode()), format="question_answer", read=read,
            kept=read - dropped, fixed=fixed, dropped=dropped, loss_weight=weight, train_rows=int(read * 0.84),
            train_tokens=int(read * 0.84) * 211, train_supervised_tokens=int(read * 0.84) * 122,
        )
        for path, name, read, dropped, fixed, weight in parts
    )  # fmt: skip
    assert sum(source.read for source in sources) == NUM_READ
    assert sum(source.dropped for source in sources) == num_dropped
    assert sum(source.fixed for source in sources) == num_fixed
    splits = {
        name: SplitReport(
            rows=rows, tokens=rows * 211, supervised_tokens=rows * 122, sha256=sha256_bytes(name.encode()),
            conversations=f"data/{name}.conversations.jsonl", examples=f"data/{name}.examples.arrow",
        )
        for name, rows in (("train", 6290), ("validation", 370), ("holdout", 741))
    }  # fmt: skip
    inputs = {"train[0]": sources[0].sha256, "train[1]": sources[1].sha256}
    data = config.to_dict()["data"]
    inputs |= {f"data.{key}": sha256_json(data[key]) for key in ("max_seq_length", "validation_split", "policies")}
    inputs |= {"template": sha256_bytes(b"template"), "code": sha256_bytes(b"code")}
    return PreparedData(
        provenance=provenance(sha256_json(config.to_dict()), inputs),
        sources=sources, reasons={code: rows for code, _, action, rows, *_ in FOUND if action != "keep"},
        splits=splits, ledger="data/ledger.jsonl", model_name="smollm2-135m-instruct",
        template_sha256=inputs["template"], tokenizer_sha256=sha256_bytes(b"tokenizer"), max_seq_length=2048,
        token_lengths={"min": 41, "p50": 202, "p95": 347, "max": 1204},
        notes=("data/support_chats.jsonl.gz: messages rows (columns messages, id); not used: id",),
        findings=findings(), duplicates=duplicates(), contamination=contamination(),
        languages={"en": 7102, "de": 188, "fr": 61, "es": 12, "unknown": 38},
        length_counts={"32-63": 22, "64-127": 903, "128-255": 4501, "256-511": 1902, "512-1023": 70, "1024-2047": 3},
        advice="6,290 training rows: enough to specialise in a task", prepare_time_s=12.4,
    )  # fmt: skip


def findings() -> tuple[Finding, ...]:
    return tuple(
        Finding(
            code=code, meaning=meaning, kind=kind, action=action, rows=rows,
            examples=(RowExample(file=CHAT, line=1000 + rows, excerpt=excerpt or "The answer is 12."),),
        )
        for code, kind, action, rows, meaning, _, excerpt in FOUND
    )  # fmt: skip


def duplicates() -> DuplicateReport:
    return DuplicateReport(
        exact=31, near=14, semantic=0, across_sources=3, near_threshold=0.85, semantic_threshold=None,
        examples=(
            DuplicatePair(kept=f"{MAIN}:17", dropped=f"{CHAT}:55", kind="exact", similarity=1.0,
                          excerpt="How many eggs does Janet sell?"),
            DuplicatePair(kept=f"{MAIN}:204", dropped=f"{MAIN}:3050", kind="near", similarity=0.927,
                          excerpt="Weng earns $12 an hour for babysitting."),
        ),
    )  # fmt: skip


def contamination() -> tuple[ContaminationReport, ...]:
    hit = ContaminationHit(file=MAIN, line=88, item="gsm8k/test:411", kind="exact", overlap=1.0,
                           excerpt="Tom's ship can travel at 10 miles per hour.")  # fmt: skip
    leak = ContaminationReport(
        benchmark="gsm8k", items=1319, sha256=sha256_bytes(b"gsm8k"), exact=3, near=1, ngram_13=2, ngram_8=7,
        examples=(hit, hit.model_copy(update={"line": 91, "kind": "ngram_8", "overlap": 0.4})),
    )  # fmt: skip
    clean = ContaminationReport(
        benchmark="holdout", items=741, sha256=sha256_bytes(b"holdout"), exact=0, near=0, ngram_13=0, ngram_8=0
    )
    return leak, clean


def build_data_run(path: Path, **data: Any) -> RunDirectory:
    """Rows prepared, nothing trained. `data` are settings of the data section."""
    run, config = RunDirectory(path), settings(path, **data)
    write_run_record(path, config)
    write_ledger(run)
    tokens = ["<|im_start|>", "user", "\n", "7 x 8?", "<|im_end|>", "\n", "56", "<|im_end|>"]
    write_json(
        run.file("data/mask_samples.json"),
        [{"id": "0" * 64, "source": f"{MAIN}:1", "tokens": tokens, "weights": [0.0] * 6 + [1.0, 1.0]}],
    )
    write_artifact(run.file("data/manifest.json"), prepared_record(config))
    return run


def build_stopped_run(path: Path) -> RunDirectory:
    """Too many damaged rows: the ledger is there, and no record."""
    run, config = RunDirectory(path), settings(path)
    write_run_record(path, config)
    write_ledger(run)
    return run
