"""BFCL's questions and its acceptable calls, joined by id into rows that `data.format: bfcl` reads.

python examples/agentic/join_bfcl.py DATA OUTPUT [--categories simple_python,irrelevance] [--max-chars 900]

DATA holds BFCL_v4_*.json and possible_answer/: the folder bfcl_eval/data of the package bfcl-eval (Apache-2.0),
    pip download --no-deps bfcl-eval==2026.3.23 && unzip bfcl_eval-*.whl 'bfcl_eval/data/*'
Each row gets a column `functions`, equal for rows that share a function, directly or over other rows: with
`data.split_by: functions` no function of the holdout was ever seen in training. `--max-chars` leaves out rows whose
functions are described in more characters.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def joined(data: Path, categories: Iterable[str]) -> list[dict[str, Any]]:
    rows = []
    for category in categories:
        answers_file = data / "possible_answer" / f"BFCL_v4_{category}.json"
        answers = {row["id"]: row["ground_truth"] for row in read_lines(answers_file)} if answers_file.exists() else {}
        for row in read_lines(data / f"BFCL_v4_{category}.json"):
            answer = {"ground_truth": answers[row["id"]]} if row["id"] in answers else {}
            kept = {key: row[key] for key in ("id", "question", "function")}
            rows.append({**kept, **answer, "slices": {"category": category}})
    return rows


def label_functions(rows: list[dict[str, Any]]) -> None:
    """Add `functions`: the name of the group of functions that a row belongs to."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        leader.setdefault(name, name)
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for row in rows:
        names = [function["name"] for function in row["function"]]
        for name in names:
            one, other = sorted((find(names[0]), find(name)))
            leader[other] = one
    for row in rows:
        row["functions"] = find(row["function"][0]["name"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--max-chars", type=int, default=10**9)
    given = parser.parse_args()
    rows = [
        row
        for row in joined(given.data, given.categories.split(","))
        if len(json.dumps(row["function"])) <= given.max_chars
    ]
    label_functions(rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    given.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} rows, {len({row['functions'] for row in rows})} groups of functions: {given.output}")


if __name__ == "__main__":
    main()
