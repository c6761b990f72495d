"""A production log against the release: injected drift is found, a resample of the same traffic is not called drift."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.config.schema import Config
from halo_forge.errors import DataError
from halo_forge.monitor import MonitorReport, Reference, observe
from halo_forge.monitor.drift import length_check, population_stability_index
from halo_forge.monitor.production_log import line_to_row
from halo_forge.monitor.records import Histogram
from halo_forge.publish import publish
from halo_forge.publish.reference import length_histogram
from halo_forge.texts.json_documents import is_json_document

Rows = list[tuple[str, str]]


def traffic(num_rows: int, seed: int, scale: float = 1.0) -> Rows:
    """Prompts and JSON answers with long-tailed lengths."""
    numbers = random.Random(seed)
    return [
        ("p" * int(scale * numbers.lognormvariate(4.5, 0.5)), json.dumps({"a": "x" * int(numbers.gammavariate(3, 40))}))
        for _ in range(num_rows)
    ]


def write_reference(path: Path, rows: Rows) -> Path:
    path.mkdir(exist_ok=True, parents=True)
    answers = [answer for _, answer in rows]
    reference = {
        "schema_version": 1,
        "num_rows": len(rows),
        "prompt_chars": length_histogram([len(prompt) for prompt, _ in rows]),
        "answer_chars": length_histogram([len(answer) for answer in answers]),
        "json_valid_rate": sum(map(is_json_document, answers)) / len(rows) if rows else None,
        "empty_rate": sum(not answer.strip() for answer in answers) / len(rows) if rows else None,
        "weights_sha256": "0" * 64,
        "holdout_sha256": "0" * 64,
    }
    (path / "reference.json").write_text(json.dumps(reference))
    return path


def write_log(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    return path


def watch(tmp_path: Path, reference: Rows, log: Rows) -> MonitorReport:
    release = write_reference(tmp_path / "release", reference)
    return observe(Config(), release, write_log(tmp_path / "log.jsonl", log))


def drifted(report: MonitorReport) -> list[str]:
    return [check.name for check in report.checks if check.drifted]


# ---------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("num_reference", "num_log"), [(40, 100), (60, 300), (400, 120), (300, 2000)])
def test_a_resample_of_the_same_traffic_is_ok(tmp_path: Path, num_reference: int, num_log: int) -> None:
    """One run makes four comparisons at one in a thousand each; 50 runs may raise one alarm, not more."""
    alarms = 0
    for seed in range(50):
        report = watch(tmp_path, traffic(num_reference, seed), traffic(num_log, seed + 1000))
        assert report.verdict in ("ok", "drift")
        alarms += report.verdict == "drift"
    assert alarms <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p, a: (p * 2, a), ["prompt length"]),
        (lambda p, a: (p[: len(p) // 2], a), ["prompt length"]),
        (lambda p, a: (p, json.dumps({"a": json.loads(a)["a"] * 3})), ["answer length"]),
        (lambda p, a: (p, a[:-1] if len(p) % 4 == 0 else a), ["JSON-valid answers"]),
        (lambda p, a: (p, " " if len(p) % 3 == 0 else a), ["answer length", "JSON-valid answers", "empty answers"]),
    ],
    ids=["longer prompts", "shorter prompts", "longer answers", "broken JSON", "empty answers"],
)
def test_injected_drift_is_found_and_named(tmp_path: Path, change, expected: list[str]) -> None:
    for seed in range(5):
        log = [change(*row) for row in traffic(400, seed + 1000)]
        report = watch(tmp_path, traffic(80, seed), log)
        assert report.verdict == "drift"
        assert drifted(report) == expected
        assert all(name in report.reason for name in expected)


def test_a_drift_shows_with_few_rows_because_bins_are_merged(tmp_path: Path) -> None:
    """40 rows in 20 bins could be told from nothing; in a few bins, twice as long stands out."""
    for seed in range(10):
        report = watch(tmp_path, traffic(40, seed), traffic(100, seed + 1000, scale=2.2))
        assert drifted(report) == ["prompt length"]


def test_an_answer_that_is_always_the_same_drifts_when_it_is_not(tmp_path: Path) -> None:
    """All reference lengths equal: lengths just below or above must still stand out."""
    reference = [(f"{n:04}", "[1]") for n in range(60)]
    assert watch(tmp_path, reference, reference * 4).verdict == "ok"
    for answer in ("[]", "[12]"):
        assert drifted(watch(tmp_path, reference, [(prompt, answer) for prompt, _ in reference * 4])) == [
            "answer length"
        ]


def test_too_few_rows_are_no_verdict_even_where_they_look_bad(tmp_path: Path) -> None:
    report = watch(tmp_path, traffic(80, 1), traffic(99, 2, scale=10))
    assert report.verdict == "too_few_rows"
    assert "99 usable rows" in report.reason
    assert watch(tmp_path, traffic(80, 1), traffic(100, 2, scale=10)).verdict == "drift"
    assert watch(tmp_path, traffic(80, 1), []).verdict == "too_few_rows"


@pytest.mark.parametrize("num_reference", [0, 19])
def test_a_release_measured_on_too_little_gives_no_verdict(tmp_path: Path, num_reference: int) -> None:
    report = watch(tmp_path, traffic(num_reference, 1), traffic(500, 2))
    assert report.verdict == "too_few_rows"
    assert f"measured on {num_reference} answers" in report.reason


def test_thresholds_of_the_config_decide(tmp_path: Path) -> None:
    release = write_reference(tmp_path / "release", traffic(400, 1))
    log = write_log(tmp_path / "log.jsonl", traffic(2000, 2, scale=1.25))
    statistic = observe(Config(), release, log).checks[0].statistic
    for factor, verdict in ((0.99, "drift"), (1.01, "ok")):
        config = Config.model_validate({"monitor": {"max_psi": statistic * factor}})
        assert observe(config, release, log).verdict == verdict


# ---------------------------------------------------------------------------------------------- lines of the log


def test_bad_lines_are_counted_by_reason_and_change_nothing_else(tmp_path: Path) -> None:
    release = write_reference(tmp_path / "release", traffic(80, 1))
    rows = traffic(200, 2)
    clean = observe(Config(), release, write_log(tmp_path / "clean.jsonl", rows))
    bad = [
        b"{half a line",
        b"[1, 2]",
        b'{"prompt": 3, "answer": "x"}',
        b'{"prompt": "x"}',
        b'"\xff\xfe\xfa"',
        b'{"messages": [{"role": "user", "content": "hello"}]}',
        b'{"messages": "hello"}',
        b'{"messages": [{"role": "assistant", "content": 7}]}',
        b"[" * 100_000,
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\n\n".join([*bad, (tmp_path / "clean.jsonl").read_bytes()]))
    report = observe(Config(), release, path)
    assert report.checks == clean.checks
    assert report.num_rows == 200
    assert report.num_bad_lines == len(bad)
    assert report.bad_lines == {
        "not JSON": 2,
        "not an object": 1,
        "no prompt and answer": 2,
        "not UTF-8": 1,
        "no assistant turn": 1,
        "messages are not a list of objects": 1,
        "content is neither text nor parts": 1,
    }
    assert report.first_bad_lines == (1, 3, 5, 7, 9, 11, 13, 15, 17)
    words = report.words().splitlines()
    assert words[0] == "ok: 200 rows look like the 80 measured at release"
    assert [line.split()[0] for line in words[1:5]] == ["ok"] * 4
    assert "9 lines of the log are unusable" in words[-1]


def test_messages_rows_count_like_prompt_and_answer() -> None:
    lines = [
        {"prompt": "hi", "answer": "hello"},
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                {"role": "assistant", "content": "hello"},
            ]
        },
        {"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "after"}]},
    ]
    found = [line_to_row(json.dumps(line).encode()) for line in lines]
    assert [len(row.prompt) for row in found] == [2, 2, 0]
    assert [row.answer for row in found] == ["hello", "hello", ""]


def test_a_line_that_is_too_long_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("log_lines", "traffic"):
        monkeypatch.setattr(f"halo_forge.monitor.{module}.MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "log.jsonl"
    row = json.dumps({"prompt": "p", "answer": "a"})
    path.write_text("\n".join([row, json.dumps({"prompt": "p" * (5 << 20), "answer": "a"}), row]) + "\n")
    found = observe(Config(), write_reference(tmp_path / "release", traffic(80, 1)), path)
    assert found.num_rows == 2
    assert found.bad_lines == {"longer than 1 MB": 1}
    assert found.first_bad_lines == (2,)


def test_no_text_of_the_log_or_the_holdout_is_kept(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    release = publish(*built.records)
    secret = "canary-4711-name@example.org"
    report = observe(
        built.config, Path(release.path), write_log(tmp_path / "log.jsonl", [(secret, f'{{"x": "{secret}"}}')] * 150)
    )
    assert secret not in report.model_dump_json()
    holdout_words = [row["prompt"] for row in builder.stub_rows()[:5]]
    reference = (Path(release.path) / "reference.json").read_text()
    assert not any(word[:20] in reference for word in holdout_words)


# ---------------------------------------------------------------------------------------------- with a real release


def test_a_published_run_is_watched_by_its_version_or_its_run_directory(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    log = tmp_path / "log.jsonl"
    with pytest.raises(DataError, match="nothing was published here"):
        observe(built.config, built.run.path, log)
    release = publish(*built.records)
    answers = [json.loads(line) for line in built.run.file("eval/answers.jsonl").read_text().splitlines()]
    asked = [row["prompt"] for row in builder.stub_rows()[: len(answers)]]
    assert all(prompt in row["prompt"] for prompt, row in zip(asked, answers, strict=True))
    texts = [row["tuned"]["text"] for row in answers]
    write_log(log, list(zip(asked, texts, strict=True)) * 3)
    by_version = observe(built.config, Path(release.path), log)
    by_run = observe(built.config, built.run.path, log)
    assert by_version.verdict == "ok"
    assert by_version.release == by_run.release == "run v1"
    assert by_version.checks == by_run.checks
    # The same answers: whatever is not zero would be a difference between publish's and the monitor's counting.
    rates = [check for check in by_version.checks if check.kind == "rate" and check.name != "new topics"]
    assert [check.statistic for check in rates] == [0.0] * 4
    assert all(check.statistic < 0.02 for check in by_version.checks if check.kind != "rate")
    assert MonitorReport.model_validate_json(by_version.model_dump_json()) == by_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', True),
        (" [1]\n", True),
        ("3", False),
        ("", False),
        ("[NaN]", False),
        ("```\n{}\n```", False),
        ("[" * 100_000, False),
    ],
)
def test_what_counts_as_json(text: str, expected: bool) -> None:
    assert is_json_document(text) is expected


def test_errors_name_the_file(tmp_path: Path) -> None:
    release = write_reference(tmp_path / "release", traffic(80, 1))
    with pytest.raises(DataError, match="cannot read the production log"):
        observe(Config(), release, tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot read the production log"):
        observe(Config(), release, tmp_path)
    for content in ("{", '{"schema_version": 1}', (release / "reference.json").read_text().replace(": 80", ": 81")):
        (release / "reference.json").write_text(content)
        with pytest.raises(DataError, match="not the reference of a release"):
            observe(Config(), release, tmp_path / "missing.jsonl")


# ---------------------------------------------------------------------------------------------- figures


def test_stability_index_of_a_known_table() -> None:
    """Large counts, so that smoothing does not show: (0.6-0.5) ln(0.6/0.5) + (0.4-0.5) ln(0.4/0.5)."""
    assert population_stability_index([10**9, 10**9], [12 * 10**8, 8 * 10**8]) == pytest.approx(0.0405465, abs=1e-6)
    assert population_stability_index([3, 4, 5], [3, 4, 5]) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.lists(st.integers(0, 9000), min_size=1, max_size=200)
)
def test_any_lengths_give_a_finite_check(reference: list[int], observed: list[int]) -> None:
    histogram = Histogram.model_validate(length_histogram(reference))
    assert sum(histogram.counts) == len(reference)
    check = length_check("x", histogram, Counter(observed), MonitorSection())
    assert 0 <= check.statistic < 50
    assert min(reference) <= check.reference <= max(reference)
    assert length_check("x", histogram, Counter(reference), MonitorSection()).p_value > 0.5


def test_a_histogram_counts_what_it_says() -> None:
    histogram = length_histogram([5, 5, 7, 9])
    assert histogram == {"edges": [4, 5, 7, 9], "counts": [0, 2, 1, 1, 0]}
    assert length_histogram([]) == {"edges": [], "counts": []}
    with pytest.raises(ValueError, match="one more count"):
        Histogram(edges=(1, 2), counts=(1, 2))
    with pytest.raises(ValueError, match="add up"):
        Reference.model_validate(
            {"schema_version": 1, "num_rows": 1, "prompt_chars": {"edges": [], "counts": []},
             "answer_chars": {"edges": [], "counts": []}, "json_valid_rate": 0.0, "empty_rate": 0.0,
             "weights_sha256": "", "holdout_sha256": ""}
        )  # fmt: skip


def test_watching_imports_no_torch() -> None:
    code = "import sys, halo_forge.monitor; assert not {'torch', 'transformers'} & set(sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
