"""Observe: the one entry of this room. A production log against the reference of the version that produced it."""

from __future__ import annotations

import json
from pathlib import Path

from halo_forge.artifacts import Release
from halo_forge.config.schema import Config, MonitorSection
from halo_forge.errors import DataError
from halo_forge.monitor.drift import Rate, length_check, rate_check
from halo_forge.monitor.production_log import Traffic, read_traffic
from halo_forge.monitor.records import DriftCheck, MonitorReport, MonitorVerdict, Reference
from halo_forge.runs import Notify, provenance, read_artifact, sha256_file, sha256_json, silent

MIN_REFERENCE_ROWS = 20
"""With fewer answers at release, nothing can be told from noise."""


def observe(config: Config, release_dir_or_run: Path, log_path: Path, notify: Notify = silent) -> MonitorReport:
    """Hold a log of prompts and answers against what the release measured.

    `release_dir_or_run` is a version directory of the registry, or a run directory that was published. Verdict `ok`,
    `drift` (some check is above its threshold and above chance) or `too_few_rows`. Raises DataError where the log or
    the reference cannot be read.
    """
    reference_path, release = find_reference(release_dir_or_run)
    reference = read_reference(reference_path)
    traffic = read_traffic(log_path)
    checks = drift_checks(reference, traffic, config.monitor)
    verdict, reason = judge(reference, traffic, checks, config.monitor)
    num_bad = traffic.bad_lines.total()
    report = MonitorReport(
        provenance=provenance(
            sha256_json(config.to_dict()), {"log": traffic.sha256, "reference": sha256_file(reference_path)}
        ),
        verdict=verdict,
        reason=reason,
        release=release,
        log=str(log_path),
        num_rows=traffic.num_rows,
        num_reference_rows=reference.num_rows,
        num_bad_lines=num_bad,
        bad_lines=dict(sorted(traffic.bad_lines.items())),
        first_bad_lines=tuple(traffic.first_bad_lines),
        checks=checks,
        notes=_notes(checks, num_bad, traffic),
    )
    for note in (report.reason, *report.notes):
        notify("note", {"text": note})
    return report


def find_reference(directory: Path) -> tuple[Path, str | None]:
    """(path of reference.json, "name vN") for a version directory, or for a run through its release.json."""
    manifest = directory / "manifest.json"
    if (directory / "reference.json").is_file():
        return directory / "reference.json", _release_words(manifest)
    if (directory / "release.json").is_file():
        release = read_artifact(directory / "release.json", Release)
        reference = Path(release.path) / "reference.json"
        if reference.is_file():
            return reference, f"{release.name} v{release.version}"
        raise DataError(
            "the version that this run was published as is not where it was",
            where=release.path,
            fix="give the version's directory itself, as `halo-forge models show` prints it",
        )
    raise DataError(
        "nothing was published here, so there is nothing to compare a log with",
        where=str(directory),
        expected="a version directory of the registry, or the directory of a published run",
        fix="halo-forge models list",
    )


def _release_words(manifest: Path) -> str | None:
    try:
        fields = json.loads(manifest.read_bytes())
        return f"{fields['name']} v{fields['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_reference(path: Path) -> Reference:
    try:
        return Reference.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            "this is not the reference of a release",
            where=str(path),
            expected=str(error),
            fix="halo-forge models verify NAME@VERSION",
        ) from None


def drift_checks(reference: Reference, traffic: Traffic, limits: MonitorSection) -> tuple[DriftCheck, ...]:
    """All four comparisons, or none where one side is empty."""
    if not traffic.num_rows or not reference.num_rows:
        return ()
    rates = [
        ("JSON-valid answers", reference.json_valid_rate, traffic.num_json),
        ("empty answers", reference.empty_rate, traffic.num_empty),
    ]
    return (
        length_check("prompt length", reference.prompt_chars, traffic.prompt_chars, limits.max_psi),
        length_check("answer length", reference.answer_chars, traffic.answer_chars, limits.max_psi),
        *(
            rate_check(
                name,
                Rate(yes=(rate or 0.0) * reference.num_rows, total=reference.num_rows),
                Rate(yes=yes, total=traffic.num_rows),
                limits.max_rate_change,
            )
            for name, rate, yes in rates
        ),
    )


def judge(
    reference: Reference, traffic: Traffic, checks: tuple[DriftCheck, ...], limits: MonitorSection
) -> tuple[MonitorVerdict, str]:
    if traffic.num_rows < limits.min_rows:
        return "too_few_rows", f"{traffic.num_rows} usable rows in the log; monitor.min_rows is {limits.min_rows}"
    if reference.num_rows < MIN_REFERENCE_ROWS:
        return (
            "too_few_rows",
            f"the release was measured on {reference.num_rows} answers; at least {MIN_REFERENCE_ROWS} are needed",
        )
    drifted = [check.words for check in checks if check.drifted]
    if drifted:
        return "drift", "; ".join(drifted)
    return "ok", f"{traffic.num_rows} rows look like the {reference.num_rows} measured at release"


def _notes(checks: tuple[DriftCheck, ...], num_bad: int, traffic: Traffic) -> tuple[str, ...]:
    notes = [
        f"{check.name}: with this many rows only a change above {check.noise:.3f} can be told from chance"
        for check in checks
        if check.noise > check.threshold and not check.drifted
    ]
    if num_bad:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(traffic.bad_lines.items()))
        lines = ", ".join(map(str, traffic.first_bad_lines))
        notes.append(f"{num_bad} lines of the log are unusable ({reasons}); the first: line {lines}")
    return tuple(notes)
