"""baseline_metrics.json: what the fine-tuned model can do, for whoever trains on from it to hold regressions against.

The top level is metric -> number of the tuned model, as the baseline that a later stage (DPO) starts from; shares are
from 0 to 1. `base` has the same metrics of the model before training, `metadata` what seed 002 asks to be saved with a
baseline. A metric without a number is not there: its name and reason are under `metadata.not_measured`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from halo_forge.artifacts import EvalReport, Measurement, TrainedModel
from halo_forge.config.schema import Config


def baseline_metrics(config: Config, trained: TrainedModel, report: EvalReport) -> dict[str, Any]:
    """The content of baseline_metrics.json."""
    numbers = {row.metric: row.tuned.value for row in report.overall if _is_number(row.tuned)}
    return {
        **numbers,
        "base": {row.metric: row.base.value for row in report.overall if _is_number(row.base)},
        "metadata": {
            "model": trained.model_name,
            "method": trained.method,
            "training_configuration": config.to_dict(),
            "final_training_loss": _finite(trained.train_loss),
            "validation_loss": _finite(trained.validation_loss),
            "validation_perplexity": _perplexity(trained.validation_loss),
            "benchmark_scores": numbers,
            "num_items": {row.metric: row.tuned.n for row in report.overall if _is_number(row.tuned)},
            "not_measured": {
                row.metric: row.tuned.note for row in report.overall if not _is_number(row.tuned)
            },
            "training_date": trained.provenance.created_at,
            "training_duration_s": trained.train_time_s,
            "evaluation_date": datetime.now(UTC).isoformat(timespec="seconds"),
            "evaluation_duration_s": report.time_s,
            "weights_sha256": report.weights_sha256,
            "holdout_sha256": report.holdout_sha256,
        },
    }  # fmt: skip


def _is_number(measurement: Measurement) -> bool:
    return measurement.status == "measured" and _finite(measurement.value) is not None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _perplexity(loss: float | None) -> float | None:
    """exp of a mean loss in nats; None where there is none or it is too large for a number."""
    try:
        return _finite(math.exp(loss)) if loss is not None else None
    except OverflowError:
        return None
