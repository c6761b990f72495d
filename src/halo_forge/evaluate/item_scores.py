"""eval/scores.jsonl: what the tuned model scored on each item, by the item's id and without any text.

A released version keeps this file, so that the next one can be compared with it in pairs. The first line says what the
scores were made on; each other line is one item:

{"schema_version": 1, "weights_sha256", "sets": {"holdout": sha256, "general_texts": sha256, "suite.NAME": sha256},
 "decoding", "json_schema"}
{"set": "holdout", "id": ..., "slices": {"source": ...}, "num_tokens": T, "nll": nats, "scores": {metric: score}}

eval/bench/scores.jsonl has the same of benchmarks, in sets called as their metric: bench/compare.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from halo_forge.artifacts import EvalReport

if TYPE_CHECKING:
    from halo_forge.evaluate.compare import Slices
    from halo_forge.evaluate.items import Item
    from halo_forge.evaluate.measure import Measured
    from halo_forge.evaluate.retention import Retention
    from halo_forge.evaluate.score import Scored
    from halo_forge.evaluate.suites.stage import SuiteResults

SCORES = "eval/scores.jsonl"
SUITE_SET = "suite."
"""How the sets of suites begin."""
DECISIVE_DECODING = ("strategy", "max_new_tokens")
"""Settings under which answers of two versions can be compared; the batch size changes none."""


def score_lines(
    report: EvalReport,
    items: Sequence[Item],
    tuned: Measured,
    scored: Scored,
    slices: Slices,
    general: Retention | None,
    suites: SuiteResults,
) -> str:
    """The content of eval/scores.jsonl."""
    inputs = report.provenance.inputs
    header = {
        "schema_version": 1,
        "weights_sha256": report.weights_sha256,
        "sets": {
            "holdout": report.holdout_sha256,
            "general_texts": inputs.get("general_texts", ""),
            **{f"{SUITE_SET}{suite.name}": suite.sha256 for suite in suites.reports},
        },
        "decoding": {name: report.decoding[name] for name in DECISIVE_DECODING},
        "json_schema": inputs.get("json_schema", ""),
    }
    lines = [header, *_item_lines(items, tuned, scored, slices), *_general_lines(general), *_suite_lines(suites)]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _item_lines(items: Sequence[Item], tuned: Measured, scored: Scored, slices: Slices) -> Iterator[dict[str, Any]]:
    for index, item in enumerate(items):
        scores = {name: float(values[index]) for name, values in scored.tuned.items() if np.isfinite(values[index])}
        labels = (name.split("=", 1) for name, mask in slices.items() if mask[index])
        yield {
            "set": "holdout",
            "id": item.id,
            "slices": dict(labels),
            **_likelihood(float(tuned.nll_sums[index]), int(tuned.num_tokens[index])),
            "scores": scores,
            **({"units": units} if (units := {name: int(of[index]) for name, of in scored.units.items()}) else {}),
        }


def _general_lines(general: Retention | None) -> Iterator[dict[str, Any]]:
    if general is None:
        return
    for index, (nll, num_tokens) in enumerate(zip(general.tuned_nll, general.num_tokens, strict=True)):
        yield {"set": "general_texts", "id": str(index), "slices": {}, **_likelihood(float(nll), int(num_tokens))}


def _suite_lines(suites: SuiteResults) -> Iterator[dict[str, Any]]:
    for asked, _, tuned in suites.judged:
        yield {"set": f"{SUITE_SET}{asked.suite}", "id": asked.item.id, "slices": {}, "scores": tuned.scores}


def _likelihood(nll: float, num_tokens: int) -> dict[str, Any]:
    return {"num_tokens": num_tokens, "nll": nll} if num_tokens and np.isfinite(nll) else {}
