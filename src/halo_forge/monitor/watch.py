"""Observe: a whole production log against the reference of the version that produced it, as one window."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from halo_forge.artifacts import Release
from halo_forge.config.monitor_section import MonitorSection
from halo_forge.config.schema import Config
from halo_forge.errors import DataError
from halo_forge.monitor.drift import drift_checks
from halo_forge.monitor.log_lines import UNREADABLE, open_log, read_lines
from halo_forge.monitor.records import DriftCheck, MonitorReport, MonitorVerdict, Reference
from halo_forge.monitor.traffic import Traffic, judge_window
from halo_forge.monitor.window import Instruments, Window
from halo_forge.runs import Notify, provenance, read_artifact, sha256_file, sha256_json, silent
from halo_forge.traits import hashed_vectors, language

Embed = Callable[[Sequence[str]], Any]
"""Texts -> float32 [n, d] of length 1: sentence embeddings, which need a library that this room does not know."""

MIN_REFERENCE_ROWS = 20
"""With fewer answers at release, nothing can be told from noise."""
LINES_PER_PORTION = 2000


def observe(
    config: Config, release_dir_or_run: Path, log_path: Path, notify: Notify = silent, embed: Embed | None = None
) -> MonitorReport:
    """Hold a log of prompts and answers against what the release measured. Nothing is written.

    `release_dir_or_run` is a version directory of the registry, or a run directory that was published. Verdict `ok`,
    `drift` (some check is above its threshold and above chance) or `too_few_rows`. `embed` is needed where the release
    stored sentence embeddings; without it they are not measured, and the report says so. Raises DataError where the
    log or the reference cannot be read.
    """
    reference_path, release = find_reference(release_dir_or_run)
    reference = read_reference(reference_path)
    limits = config.monitor
    traffic, digest = Traffic(), hashlib.sha256()
    instruments = instruments_for(reference, limits, embed)
    for portion in _portions(log_path, digest):
        traffic.add(traffic.read(portion), instruments, reference, None)
    window = traffic.windows.get(traffic.next_window, Window(1))
    checks, missing = drift_checks(reference, window, limits)
    verdict, reason = judge(reference, window.num_rows, checks, limits)
    report = MonitorReport(
        provenance=provenance(
            sha256_json(config.to_dict()), {"log": digest.hexdigest(), "reference": sha256_file(reference_path)}
        ),
        verdict=verdict,
        reason=reason,
        release=release,
        log=str(log_path),
        checks=checks,
        topics=judge_window(window, reference, limits).topics,
        not_measured=missing,
        **counted(reference, traffic, limits),
    )
    report = report.model_copy(update={"notes": notes_of(report, window.num_late)})
    for note in (report.reason, *report.notes):
        notify("note", {"text": note})
    return report


def instruments_for(
    reference: Reference, limits: MonitorSection, embed: Embed | None, salt: bytes = b""
) -> Instruments:
    """What can be measured here of what the release stored."""
    space = reference.prompt_space
    if space is not None and space.kind == hashed_vectors.KIND:
        embed = hashed_vectors.hashed_vectors
    return Instruments(
        space=space if embed is not None else None,
        embed=embed if space is not None else None,
        languages=reference.prompt_languages is not None and language.is_available(),
        store_texts=limits.store_texts,
        salt=salt,
    )


def counted(reference: Reference, traffic: Traffic, limits: MonitorSection) -> dict[str, Any]:
    """The fields of a MonitorReport that count what was read."""
    return {
        "num_rows": traffic.num_rows,
        "num_reference_rows": reference.num_rows,
        "num_bad_lines": traffic.bad_lines.total(),
        "bad_lines": dict(sorted(traffic.bad_lines.items())),
        "first_bad_lines": tuple(traffic.first_bad_lines),
        "num_duplicates": traffic.num_duplicates,
        "false_alarm_rate": limits.false_alarm_rate,
    }


def _portions(path: Path, digest: Any) -> Iterator[list[tuple[int, bytes | None]]]:
    """The log's lines with their numbers, some at a time; `digest` is fed with exactly the bytes that were read. The
    last line counts whole although it may lack its line feed: nothing more is waited for."""
    portion: list[tuple[int, bytes | None]] = []
    try:
        file, _ = open_log(path)
        with file:
            for number, line in enumerate(read_lines(_Hashed(file, digest)), 1):
                portion.append((number, line.data))
                if len(portion) == LINES_PER_PORTION:
                    yield portion
                    portion = []
    except (OSError, *UNREADABLE) as error:
        raise DataError(
            f"cannot read the production log: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            expected='JSON lines with "prompt" and "answer", or "messages"',
            fix="give the path of the log that the model's server writes",
        ) from None
    yield portion


class _Hashed:
    """A file whose lines are hashed as they are read."""

    def __init__(self, file: Any, digest: Any) -> None:
        self.file, self.digest = file, digest

    def seek(self, offset: int) -> None:
        self.file.seek(offset)

    def readline(self, size: int) -> bytes:
        data: bytes = self.file.readline(size)
        self.digest.update(data)
        return data


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


def judge(
    reference: Reference, num_rows: int, checks: Sequence[DriftCheck], limits: MonitorSection
) -> tuple[MonitorVerdict, str]:
    if num_rows < limits.min_rows:
        return "too_few_rows", f"{num_rows} usable rows in the log; monitor.min_rows is {limits.min_rows}"
    if reference.num_rows < MIN_REFERENCE_ROWS:
        return (
            "too_few_rows",
            f"the release was measured on {reference.num_rows} answers; at least {MIN_REFERENCE_ROWS} are needed",
        )
    drifted = [check.words for check in checks if check.drifted]
    if drifted:
        return "drift", "; ".join(drifted)
    return "ok", f"{num_rows} rows look like the {reference.num_rows} measured at release"


def notes_of(report: MonitorReport, num_late: int = 0) -> tuple[str, ...]:
    """What a check could not tell from chance stands in its own words."""
    notes = []
    if report.num_bad_lines:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.bad_lines.items())
        lines = ", ".join(map(str, report.first_bad_lines))
        notes.append(f"{report.num_bad_lines} lines of the log are unusable ({reasons}); the first: line {lines}")
    if report.num_duplicates:
        notes.append(f"{report.num_duplicates} lines repeat the request id of another row and are counted once")
    if num_late:
        notes.append(f"{num_late} rows came after their window was closed and are counted in the next")
    return tuple(notes)
