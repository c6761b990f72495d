"""The evaluation's records: reports of earlier versions load, and slices stand beside the whole."""

from __future__ import annotations

import json

from halo_forge.artifacts import Comparison, EvalReport, Measurement, Provenance

STAMP = Provenance(created_at="2026-01-01T00:00:00+00:00", code_version="0", config_sha256="c")


def comparison(slice_name: str) -> Comparison:
    measured = Measurement(metric="exact_match", value=0.5, n=20, slice=slice_name)
    return Comparison(metric="exact_match", base=measured, tuned=measured, delta=measured)


def report() -> EvalReport:
    return EvalReport(
        provenance=STAMP, num_items=20, num_scored=20, confidence=0.95, decoding={}, answers="eval/answers.jsonl",
        comparisons=(comparison("all"), comparison("source=faq")), weights_sha256="w", holdout_sha256="h", time_s=1.0,
    )  # fmt: skip


def test_a_report_written_before_the_newer_fields_loads() -> None:
    written = report().model_dump(mode="json")
    for name in ("flips", "notes"):
        del written[name]
    for row in written["comparisons"]:
        del row["p_value"], row["test"]
        for side in ("base", "tuned", "delta"):
            del row[side]["standard_error"], row[side]["subsampled"]
    loaded = EvalReport.model_validate_json(json.dumps(written))
    assert loaded == report()
    assert (loaded.comparisons[0].p_value, loaded.comparisons[0].tuned.subsampled, loaded.notes) == (None, False, ())


def test_slices_stand_beside_the_whole() -> None:
    assert [row.slice for row in report().comparisons] == ["all", "source=faq"]
    assert report().overall == report().comparisons[:1]
