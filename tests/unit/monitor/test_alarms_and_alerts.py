"""From windows to alarms: hysteresis, alerts in the spool, new topics, and that no text is kept unless wanted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.monitor.alarms import next_alarms
from halo_forge.monitor.records import Alarm, Alert, DriftCheck
from halo_forge.report.monitor_page import render_monitor_page
from halo_forge.texts.refusal import refuses
from halo_forge.traits.answers import is_repetitive
from monitored_traffic import Row, append, session_for, support_rows, write_release

CANARY = "zebrafish-4711"


def check_of(statistic: float, *, drifted: bool) -> DriftCheck:
    return DriftCheck(
        name="x", kind="rate", reference=0.1, observed=0.1, statistic=statistic, threshold=0.1, noise=0.01,
        p_value=0.0, drifted=drifted, words="x",
    )  # fmt: skip


def rings(statistics: list[float], limits: MonitorSection) -> list[bool]:
    alarms: dict[str, Alarm] = {}
    seen = []
    for window, statistic in enumerate(statistics, 1):
        alarms, _, _ = next_alarms(alarms, window, [check_of(statistic, drifted=statistic > 0.1)], limits)
        seen.append(alarms["x"].is_on)
    return seen


def test_an_alarm_rings_above_its_threshold_and_stops_well_below_it() -> None:
    """0.08 is below the threshold of 0.1 and above the 0.07 that clears."""
    assert rings([0.05, 0.11, 0.08, 0.11, 0.08, 0.06, 0.08, 0.06, 0.06, 0.08], MonitorSection()) == [
        False, True, True, True, True, True, True, True, False, False,
    ]  # fmt: skip
    assert rings([0.11, 0.05, 0.11, 0.11], MonitorSection(windows_to_alarm=2)) == [False, False, False, True]


def about_fish(num: int, seed: int) -> list[Row]:
    """What no release row asks about."""
    return [
        {**row, "prompt": f"Which plankton does my {CANARY} eat in the aquarium at {row['id']}?", "id": f"f{row['id']}"}
        for row in support_rows(num, seed)
    ]


def watched(place: Path, **monitor: object) -> tuple[list[Alert], str]:
    """Two calm windows, two with new topics and refusals, three calm ones; the alerts and the page."""
    write_release(place / "release", support_rows(300, 1))
    log = place / "prod.jsonl"
    append(log, support_rows(400, 2))
    odd = [*support_rows(240, 3), *about_fish(160, 4)]
    odd = [row for pair in zip(odd[:200], odd[200:], strict=True) for row in pair]
    append(log, [{**r, "answer": "I'm sorry, but I can't help."} if n % 3 == 0 else r for n, r in enumerate(odd)])
    append(log, support_rows(600, 5))
    session = session_for(place, log, **monitor)
    with session.state:
        session.read()
        page = render_monitor_page(session.report(), session.state.windows())
    alerts = sorted((place / "state/alerts").glob("*.json"))
    return [Alert.model_validate_json(path.read_bytes()) for path in alerts], page


def test_alarms_are_raised_and_cleared_once_each_with_a_file(tmp_path: Path) -> None:
    alerts, page = watched(tmp_path)
    said = {(alert.event, alert.check.name): alert.window for alert in alerts}
    assert len(said) == len(alerts)
    for name in ("refusing answers", "new topics", "prompt vectors"):
        assert said["raised", name] == 3
        assert said["cleared", name] == 6
    assert {alert.window for alert in alerts} == {3, 6}
    assert "No drift" in page
    assert page.count('class="chart"') >= 10
    assert "raised" in page


def test_no_text_is_kept_unless_it_is_wanted(tmp_path: Path) -> None:
    alerts, page = watched(tmp_path / "private")
    files = [path for path in (tmp_path / "private/state").rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        content = path.read_text()
        for word in (CANARY, "plankton", "aquarium", "warranty", "sorry", "last week", "f4-1"):
            assert word not in content, path
    assert CANARY not in page
    topics = next(alert.topics for alert in alerts if alert.check.name == "new topics" and alert.event == "raised")
    assert re.fullmatch(r"topic [0-9a-f]{8}", topics[0].name)
    assert topics[0].num_rows > 50

    alerts, page = watched(tmp_path / "open", store_texts=True)
    topics = next(alert.topics for alert in alerts if alert.check.name == "new topics" and alert.event == "raised")
    assert {"plankton", "aquarium"} <= set(topics[0].words)
    assert CANARY in topics[0].examples[0]


def test_texts_on_the_page_are_escaped(tmp_path: Path) -> None:
    write_release(tmp_path / "release", support_rows(300, 1))
    log = tmp_path / "prod.jsonl"
    append(log, [*support_rows(100, 3), *({**row, "prompt": "<script>plankton</script> " + row["prompt"]}
                                          for row in about_fish(100, 4))])  # fmt: skip
    session = session_for(tmp_path, log, store_texts=True)
    with session.state:
        session.read()
        page = render_monitor_page(session.report(), session.state.windows())
    assert "plankton" in page
    assert "<script" not in page
    assert "default-src &#39;none&#39;; style-src &#39;sha256-" in page


def test_a_state_has_its_report_in_words_and_json(tmp_path: Path) -> None:
    watched(tmp_path)
    session = session_for(tmp_path, tmp_path / "prod.jsonl")
    with session.state:
        assert session.read() == 0
        report = session.report()
    assert report.verdict == "ok"
    assert (report.num_windows, report.num_rows, report.num_open_rows) == (7, 1400, 0)
    assert json.loads(report.model_dump_json())["alarms"]
    assert report.words().startswith("ok: 7 windows judged")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot provide medical advice.", True),
        ("As an AI language model, I am not able to browse.", True),
        ("Unfortunately, I am unable to answer this.", True),
        ("Es tut mir leid, aber das kann ich nicht tun.", True),
        ("Sorry for the delay! Your parcel is on its way.", False),
        ("You cannot return an item after 30 days.", False),
        ('{"answer": "I cannot help"}', False),
        ("", False),
    ],
)
def test_what_counts_as_a_refusal(answer: str, expected: bool) -> None:
    assert refuses(answer) is expected


def test_what_counts_as_repetition() -> None:
    assert is_repetitive("the same words again " * 20)
    assert is_repetitive("a" * 60)
    assert not is_repetitive(" ".join(f"word{at}" for at in range(200)))
    assert not is_repetitive("-" * 80)
    assert not is_repetitive("yes yes yes")
