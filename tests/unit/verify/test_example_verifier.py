"""examples/verify_stub.py, a verifier that needs no reference, agrees with all 600 of them and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from halo_forge.verify import Question, Verifier, make_verifiers

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SPEC = f"python:{EXAMPLES / 'verify_stub.py'}"
ROWS = [json.loads(line) for line in (EXAMPLES / "docstring_json.jsonl").read_text().splitlines()]


def verdicts(verify: Verifier, answers: list[str]) -> list[tuple[str, float | None]]:
    found = []
    for row, answer in zip(ROWS, answers, strict=True):
        judged = verify(answer, Question(prompt="", row={"messages": row["messages"][:1]}))
        found.append((judged.status, judged.score))
    return found


def test_every_reference_passes_and_no_other_answer_does() -> None:
    verify = make_verifiers([SPEC])[SPEC]
    references = [row["messages"][1]["content"] for row in ROWS]
    assert set(verdicts(verify, references)) == {("passed", 1.0)}
    assert set(verdicts(verify, [text[:-1] for text in references])) == {("failed", 0.0)}
    assert {status for status, _ in verdicts(verify, [*references[1:], references[0]])} == {"failed"}
    renamed = [json.dumps({**json.loads(text), "name": "other"}) for text in references]
    assert set(verdicts(verify, renamed)) == {("failed", 0.75)}
