"""easy-VQA (package easy-vqa 1.0, MIT) as rows for `halo-forge vlm sft`; its images are drawn shapes of 64 x 64 pixels.

    pip download --no-deps easy-vqa==1.0 && pip install --no-deps --target site easy_vqa-1.0-*.whl
    python examples/vlm/easy_vqa_rows.py site/easy_vqa/data runs/easy-vqa

Writes train.jsonl and holdout.jsonl. The questions of the holdout are about the package's test images, which are in no
training row. So many of each kind of question are taken, and equally many of `yes` and `no`: of all of easy-VQA's
questions 74 % are yes or no, and of these most are no, so that a model that never looks would seem to see. Shapes are
what a new tower learns last, so there are most questions about them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

KINDS = ("color", "shape", "yes or no")
NUM_ROWS = {
    "train": {"color": 600, "shape": 500, "yes or no": 180},
    "test": {"color": 40, "shape": 40, "yes or no": 40},
}


def kind_of(question: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes or no"
    return "color" if "color" in question else "shape"


def chosen(rows: list[tuple[str, str, int]], counts: dict[str, int]) -> list[tuple[str, str, int]]:
    """So many rows of each kind, half of the yes-or-no ones `yes`, in an order drawn from seed 0."""
    order = np.random.default_rng(0).permutation(len(rows))
    room = {(kind, ""): counts[kind] for kind in KINDS[:2]}
    room |= {("yes or no", answer): counts["yes or no"] // 2 for answer in ("yes", "no")}
    taken: Counter[tuple[str, str]] = Counter()
    found = []
    for at in order:
        question, answer, _ = rows[at]
        kind = kind_of(question, answer)
        slot = (kind, answer if kind == "yes or no" else "")
        if taken[slot] < room[slot]:
            taken[slot] += 1
            found.append(rows[at])
    return found


def write(source: Path, split: str, target: Path) -> None:
    rows = [tuple(row) for row in json.loads((source / split / "questions.json").read_text())]
    with open(target, "w") as file:
        for question, answer, image in chosen(rows, NUM_ROWS[split]):
            row = {
                "image": str((source / split / "images" / f"{image}.png").resolve()),
                "conversations": [
                    {"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer},
                ],
                "slices": {"question": kind_of(question, answer)},
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def main(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write(source, "train", directory / "train.jsonl")
    write(source, "test", directory / "holdout.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
