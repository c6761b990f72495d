"""Which items were won and lost: eval/flips.jsonl, and where each stands in eval/answers.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence

from halo_forge.evaluate.items import Item
from halo_forge.evaluate.metrics import METRICS
from halo_forge.evaluate.score import Scored


def flip_lines(items: Sequence[Item], scored: Scored) -> str:
    """One line for each answered item and yes/no metric whose score changed, by metric, lost ones first:
    {"metric", "outcome", "id", "line"}. `line` counts the answered items from 1, as answers.jsonl does. A metric
    without a better direction has no winners."""
    answered = [index for index, item in enumerate(items) if item.prompt is not None]
    line_of = {index: line for line, index in enumerate(answered, start=1)}
    lines = []
    for name in scored.base:
        direction = METRICS[name].direction if name in METRICS else scored.own[name]
        if direction == "none" or scored.kind(name) != "rate":
            continue
        sign = 1 if direction == "higher" else -1
        change = sign * (scored.tuned[name] - scored.base[name])
        for outcome, value in (("lost", -1), ("won", 1)):
            for index in (change == value).nonzero()[0].tolist():
                flip = {"metric": name, "outcome": outcome, "id": items[index].id, "line": line_of[index]}
                lines.append(json.dumps(flip) + "\n")
    return "".join(lines)
