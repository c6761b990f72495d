"""The settings that end the data stage, in words, held against what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from halo_forge.report.data_charts import small_share
from halo_forge.report.read_run import RunFiles
from halo_forge.report.row_totals import CONTAMINATED, WORDS_CHARS, dropped_by_kind, totals
from halo_forge.report.visible import cut
from halo_forge.report.wording import count, plural


def stop_rules(files: RunFiles) -> tuple[str, ...]:
    """The settings that end the data stage, held against what was found. Empty where the settings are not known."""
    data = data_settings(files)
    rules = []
    limit = data.get("max_bad_fraction")
    if isinstance(limit, (int, float)) and math.isfinite(limit):
        rules.append(_damage_rule(files, float(limit)))
    if data.get("on_bad_row") == "fail":
        rules.append("The first damaged row stops it (data.on_bad_row: fail).")
    policies = data.get("policies")
    policies = policies if isinstance(policies, Mapping) else {}
    if data:
        rules.append(_contamination_rule(files, str(policies.get(CONTAMINATED, "fail"))))
    if data.get("overlong") == "fail":
        rules.append(f"The first row longer than {data.get('max_seq_length')} tokens stops it (data.overlong: fail).")
    failing = sorted(str(code) for code, action in policies.items() if action == "fail" and code != CONTAMINATED)
    if failing:
        rules.append(f"The first row with one of these findings stops it (data.policies): {', '.join(failing)}.")
    return tuple(cut(rule, 2 * WORDS_CHARS) for rule in rules)


def _damage_rule(files: RunFiles, limit: float) -> str:
    found = totals(files)
    allowed = small_share(round(limit * 1_000_000), 1_000_000)
    if files.prepared is None or (not files.prepared.findings and found.dropped):
        told = f"{count(found.dropped)} of {count(found.read)} rows were left out for any reason."
        verb = "stops" if files.prepared is None else "would have stopped"
        return f"{told} More than {allowed} damaged ones {verb} it (data.max_bad_fraction)."
    damaged = dropped_by_kind(files).get("damage", 0)
    first = math.floor(limit * found.read)
    while first <= found.read and first / max(found.read, 1) <= limit:
        first += 1
    if first > found.read:
        return f"No number of damaged rows would have stopped it: data.max_bad_fraction allows {allowed}."
    return (
        f"{count(damaged)} of {count(found.read)} rows ({small_share(damaged, found.read)}) are damaged; from "
        f"{count(first)} on it would have stopped (data.max_bad_fraction allows {allowed})."
    )


def _contamination_rule(files: RunFiles, action: str) -> str:
    if files.prepared is None:
        repeats = files.ledger.codes.get(CONTAMINATED)
        told = f"; {plural(repeats.actions.total(), 'such row')} stood here" if repeats else ""
        does = "stops it" if action == "fail" else "does not stop it"
        return f"A row that repeats a benchmark item {does} (data.policies.contaminated: {action}){told}."
    reports = files.prepared.contamination
    if not reports:
        return "Nothing was held against a benchmark (data.decontaminate names them), so no repeat could stop it."
    leaks = sum(report.exact + report.near for report in reports)
    held = f"{count(sum(report.items for report in reports))} items of {plural(len(reports), 'benchmark')}"
    if action == "fail" and not leaks:
        return f"No row repeats one of {held}; a single one would have stopped it (data.policies.contaminated: fail)."
    done = {"skip": "left out", "quarantine": "put aside", "keep": "kept", "fail": "refused"}.get(action, action)
    rows = f"{plural(leaks, 'row')} that {'repeats' if leaks == 1 else 'repeat'} one of {held}"
    return f"{rows}: {done} (data.policies.contaminated: {action}); by default the first would have stopped it."


def data_settings(files: RunFiles) -> dict[str, Any]:
    config = files.info.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    return data if isinstance(data, dict) else {}
