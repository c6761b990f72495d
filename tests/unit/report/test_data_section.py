"""What the page says about rows: every row is accounted for, and a page about data alone reads as one."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.artifacts import PreparedData
from halo_forge.report import render_report
from halo_forge.report.data_charts import (
    MAX_BARS,
    bar_segments,
    flow_chart,
    language_bar,
    length_histogram,
    small_share,
)
from halo_forge.report.ledger_digest import read_ledger
from halo_forge.report.read_run import read_run
from halo_forge.report.row_totals import data_verdict, dropped_by_kind
from halo_forge.report.stop_rules import stop_rules
from halo_forge.runs import RunDirectory, write_artifact

MAX_PAGE_BYTES = 300_000
OPTIONAL = (
    "findings", "duplicates", "contamination", "languages", "length_counts", "advice", "prepare_time_s", "notes",
    "token_lengths",
)  # fmt: skip


def text_of(html: str) -> str:
    """The page's words; figures of a table are parted by blanks."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    plain = re.sub(r"<[^>]+>", " ", body).replace("&#39;", "'").replace("&#34;", '"').replace("&amp;", "&")
    return " ".join(plain.split())


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', html, re.S)
    assert found is not None
    return text_of(found[0])


def altered(run: RunDirectory, **changes: object) -> RunDirectory:
    record = PreparedData.model_validate_json(run.file("data/manifest.json").read_bytes())
    write_artifact(run.file("data/manifest.json"), record.model_copy(update=changes))
    return run


@pytest.fixture
def rows(data_builder: ModuleType, tmp_path: Path) -> RunDirectory:
    return data_builder.build_data_run(tmp_path / "support-data")


# ---------------------------------------------------------------------------------------------- a page about data


def test_a_data_run_reads_as_a_data_report(rows: RunDirectory) -> None:
    html = render_report(rows)
    page = text_of(html)
    assert re.findall(r'<section id="(\w+)"', html) == ["data", "masks", "next", "release", "reproduce"]
    assert re.findall(r'class="step" aria-hidden="true">(\d)<', html) == ["1", "2", "3", "4", "5"]
    assert "<title>support-data · Ready to train · halo-forge data report</title>" in html
    verdict = "7,473 rows read: 7,401 kept (12 of them mended), 72 left out; enough to specialise in a task."
    assert f"Data Ready to train {verdict}" in page
    assert "To train on 6,290 rows 370 validation, 741 holdout" in page
    assert "Prepared in 12 s 603 rows a second" in page
    for words in ("Not judged yet", "has not been evaluated", "Nothing has been trained in this run", "No version"):
        assert words not in page
    assert f"halo-forge run {rows.path}/config.resolved.yaml" in section(html, "next")
    assert len(html.encode()) < MAX_PAGE_BYTES


def test_every_left_out_row_stands_in_one_part_of_the_bar(rows: RunDirectory) -> None:
    counts = dropped_by_kind(read_run(rows))
    assert counts == {"damage": 11, "contamination": 4, "privacy": 2, "quality": 8, "duplicate": 45, "policy": 2}
    data = section(render_report(rows), "data")
    assert "kept as they are 7,389 98.9 % mended and kept 12 0.2 % left out 72 1 %" in data
    assert "damaged 11 benchmark repeats 4 private or secret 2 quality 8 copies 45 left out by the settings 2" in data


def test_without_a_matching_ledger_no_row_is_invented(rows: RunDirectory) -> None:
    rows.file("data/ledger.jsonl").unlink()
    assert sum(dropped_by_kind(read_run(rows)).values()) == 72  # from the findings
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    doubled = tuple(finding.model_copy(update={"rows": finding.rows * 2}) for finding in record.findings)
    altered(rows, findings=doubled)  # rows with two findings each: what part they are of the 72 is not known
    assert dropped_by_kind(read_run(rows)) == {"out": 72}
    altered(rows, findings=())
    assert dropped_by_kind(read_run(rows)) == {"out": 72}


def test_findings_are_told_by_kind_with_rows(rows: RunDirectory) -> None:
    data = section(render_report(rows), "data")
    found = data[data.index("What was found") :]
    order = ["Damaged", "Benchmark repeats", "Private or secret", "Quality", "Copies", "Left out by the", "Mended"]
    places = [found.index(f"{title} ") for title in order]
    assert places == sorted(places)
    assert "an unknown role bad_role 2 examples" in data
    assert "message 2: unknown role 'bot'; did you mean 'assistant'?" in data
    assert "holds what looks like a key or password secret 2 examples" in data
    assert "put aside 2" in data
    # A kept row has no excerpt in the ledger; the record has one, and it comes first.
    assert (
        "the same prompt has another answer elsewhere contradiction 5 examples data/support_chats.jsonl.gz:1005" in data
    )


def test_copies_benchmarks_languages_and_lengths_are_told(rows: RunDirectory) -> None:
    html = render_report(rows, holdout_uses="this holdout has been used once by 1 run; every look adapts you to it")
    data = section(html, "data")
    assert "exact 31 near, Jaccard from 0.85 14 in meaning, not looked for –" in data
    assert "The first copy in source order stays. 3 of these copies stand in another file" in data
    assert data.index("data/gsm8k_train.jsonl:3050 repeats") < data.index("data/support_chats.jsonl.gz:55 repeats")
    assert "gsm8k 1,319 items" in data
    assert "3 exact, 1 near; sharing 13 words in a row 2, 8 words 7" in data
    assert "left out 13 holdout 741 items" in data
    assert "clean 0" in data
    assert "English 7,102 96 % German 188 2.5 %" in data
    assert "not told 38 0.5 %" in data
    assert "64 to 127 tokens: 903 rows, 12.2 %" in data
    assert "This holdout has been used once by 1 run; every look adapts you to it." in data
    assert "replay hub/general/part-00007.parquet question answer 200 200 0 0 35,448 58 % 0.25" in data
    assert "data.max_seq_length 2048" in data


def test_leaks_that_stay_are_a_warning_in_the_head(rows: RunDirectory) -> None:
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    kept = tuple(
        finding.model_copy(update={"action": "keep"}) if finding.code == "contaminated" else finding
        for finding in record.findings
    )
    html = render_report(altered(rows, findings=kept))
    assert "Ready to train, with a warning" in html
    assert "4 kept rows: repeats a benchmark item or a held-out row." in text_of(html)
    assert "repeated 13" in section(html, "data")


def test_much_damage_is_a_warning_in_the_head(rows: RunDirectory) -> None:
    rows.file("data/ledger.jsonl").unlink()
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    source = record.sources[0].model_copy(update={"read": 200, "kept": 189, "fixed": 0, "dropped": 11})
    damage = tuple(finding for finding in record.findings if finding.kind == "damage")
    page = text_of(render_report(altered(rows, sources=(source,), findings=damage)))
    assert "Ready to train, with a warning 200 rows read: 189 kept, 11 left out" in page
    assert "11 of them are damaged." in page
    source = source.model_copy(update={"read": 220, "kept": 209})
    assert "with a warning" not in render_report(altered(rows, sources=(source,)))


# ---------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("missing", [*OPTIONAL, "all"])
def test_records_without_the_optional_fields_still_render(rows: RunDirectory, missing: str) -> None:
    record = json.loads(rows.file("data/manifest.json").read_text())
    for name in OPTIONAL if missing == "all" else (missing,):
        del record[name]
    if missing == "all":
        for source in record["sources"]:
            for name in ("name", "loss_weight", "train_rows", "train_tokens", "train_supervised_tokens"):
                del source[name]
    rows.file("data/manifest.json").write_text(json.dumps(record))
    html = render_report(rows)
    data = section(html, "data")
    assert "Not everything could be read" not in html
    assert "left out 72" in data
    if missing == "all":
        assert "the line is not JSON" not in data  # from the ledger alone: what it says about the rows
        assert "column 120: a comma before the closing bracket bad_json" in data
        assert "Training tokens" not in data
        assert "Loss weight" not in data
        assert "72 of 7,473 rows were left out for any reason. More than 1 % damaged ones would have stopped" in data


def test_a_run_that_stopped_over_its_rows_says_so(data_builder: ModuleType, tmp_path: Path) -> None:
    run = data_builder.build_stopped_run(tmp_path / "run")
    html = render_report(run)
    page = text_of(html)
    assert "Data Stopped before anything was prepared 7,473 rows read: 7,401 could be used" in page
    assert "72 could not. No training set was written." in page
    data = section(html, "data")
    assert data.index("What stops it") < data.index("What was found")
    assert "72 of 7,473 rows were left out for any reason. More than 1 % damaged ones stops it" in data
    assert "(data.policies.contaminated: skip); 4 such rows stood here." in data
    assert data.index("Left out rows that are not used") < data.index("Mended rows that are used")
    assert "halo-forge run" not in section(html, "next")


def test_clean_rows_have_a_short_page(rows: RunDirectory) -> None:
    rows.file("data/ledger.jsonl").write_text("")
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    sources = tuple(s.model_copy(update={"kept": s.read, "fixed": 0, "dropped": 0}) for s in record.sources)
    html = render_report(altered(rows, sources=sources, findings=(), reasons={}, contamination=(), duplicates=None))
    data = section(html, "data")
    assert "Nothing was found in these rows: none was damaged, mended or left out." in data
    assert 'class="zoom"' not in html
    assert "What was found" not in data
    assert "Nothing was held against a benchmark" in data


@pytest.mark.parametrize("name", ["metrics.jsonl", "trained.json", "eval/report.json"])
def test_with_anything_after_the_data_the_page_is_a_run_report(rows: RunDirectory, name: str) -> None:
    rows.file(name).parent.mkdir(exist_ok=True)
    rows.file(name).write_text("not json")
    html = render_report(rows)
    assert "halo-forge run report</title>" in html
    assert re.findall(r'<section id="(\w+)"', html)[2:5] == ["training", "evaluation", "gate"]


# ---------------------------------------------------------------------------------------------- what would stop it


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.01, "11 of 7,473 rows (0.1 %) are damaged; from 75 on it would have stopped"),
        (0.0, "from 1 on it would have stopped (data.max_bad_fraction allows 0 %)"),
        (1.0, "No number of damaged rows would have stopped it: data.max_bad_fraction allows 100 %."),
    ],
)
def test_the_limit_on_damage_is_told_as_a_number_of_rows(
    data_builder: ModuleType, tmp_path: Path, limit: float, words: str
) -> None:
    run = data_builder.build_data_run(tmp_path / "run", max_bad_fraction=limit)
    assert words in stop_rules(read_run(run))[0]


@pytest.mark.parametrize(("read", "limit"), [(100, 0.29), (100, 0.07), (1000, 0.001), (17, 0.6), (3, 0.5)])
def test_the_first_row_too_many_is_exact(rows: RunDirectory, read: int, limit: float) -> None:
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    source = record.sources[0].model_copy(update={"read": read, "kept": read, "fixed": 0, "dropped": 0})
    altered(rows, sources=(source,))
    files = read_run(rows)
    files.info["config"]["data"]["max_bad_fraction"] = limit
    told = re.search(r"from (\d+) on", stop_rules(files)[0])
    first = next(bad for bad in range(read + 2) if bad / read > limit)  # as the data stage compares
    assert told is not None
    assert int(told[1]) == first


def test_other_settings_that_stop_it_are_told(data_builder: ModuleType, tmp_path: Path) -> None:
    run = data_builder.build_data_run(
        tmp_path / "run", policies={"refusal": "fail"}, overlong="fail", on_bad_row="fail"
    )
    record = PreparedData.model_validate_json(run.file("data/manifest.json").read_bytes())
    clean = tuple(r.model_copy(update={"exact": 0, "near": 0}) for r in record.contamination)
    told = " ".join(stop_rules(read_run(altered(run, contamination=clean))))
    assert "No row repeats one of 2,060 items of 2 benchmarks; a single one would have stopped it" in told
    assert "The first damaged row stops it (data.on_bad_row: fail)." in told
    assert "longer than 2048 tokens stops it" in told
    assert "(data.policies): refusal." in told


# ---------------------------------------------------------------------------------------------- size and ledger


def test_a_ledger_of_a_million_rows_makes_a_small_page_quickly(rows: RunDirectory) -> None:
    kept = '{"file": "d.jsonl", "line": %d, "action": "kept", "code": null, "reason": null, "split": "train"}\n'
    dropped = '{"file": "d.jsonl", "line": %d, "action": "dropped", "code": "c%d", "reason": "r", "excerpt": "%s"}\n'
    with open(rows.file("data/ledger.jsonl"), "w") as file:
        for start in range(0, 1_000_000, 20):
            file.write("".join(kept % (start + place) for place in range(18)))
            file.write(dropped % (start + 18, start % 300, "x" * 120) + dropped % (start + 19, 1, "<" * 120))
    began = time.process_time()
    digest = read_ledger(rows.file("data/ledger.jsonl"), [])
    assert time.process_time() - began < 20  # about 1 s where nothing else runs
    assert (digest.num_rows, digest.actions["kept"], digest.actions["dropped"]) == (1_000_000, 900_000, 100_000)
    assert digest.dropped_by_code.total() == 100_000
    assert sum(len(code.examples) for code in digest.codes.values()) <= 5 * len(digest.codes) <= 5 * 201
    rows.file("data/manifest.json").unlink()
    html = render_report(rows)
    assert len(html.encode()) < MAX_PAGE_BYTES
    assert "1,000,000 rows read: 900,000 could be used" in text_of(html)


def test_a_record_with_too_much_of_everything_makes_a_small_page(rows: RunDirectory) -> None:
    record = PreparedData.model_validate_json(rows.file("data/manifest.json").read_bytes())
    long = "<" * 4000
    finding, report = record.findings[0], record.contamination[0]
    examples = tuple(
        finding.examples[0].model_copy(update={"file": long, "line": n, "excerpt": long}) for n in range(50)
    )
    altered(
        rows,
        sources=tuple(record.sources[0].model_copy(update={"path": f"shard-{n:05}.jsonl"}) for n in range(3000)),
        notes=tuple(f"note {n} {long}" for n in range(3000)),
        findings=tuple(
            finding.model_copy(update={"code": f"c{n}", "meaning": long, "examples": examples}) for n in range(400)
        ),
        contamination=(report.model_copy(update={"examples": report.examples * 200}),) * 200,
        languages={f"x{n}": n for n in range(500)},
        length_counts={f"{n}-{n + 1}": n for n in range(5000)},
        duplicates=record.duplicates.model_copy(update={"examples": record.duplicates.examples * 500}),
        provenance=record.provenance.model_copy(update={"inputs": {f"train[{n}]": "0" * 64 for n in range(3000)}}),
    )
    html = render_report(rows)
    assert len(html.encode()) < MAX_PAGE_BYTES
    page = text_of(html)
    assert "2,960 more files in data/manifest.json" in page
    assert "2,980 more notes in data/manifest.json" in page
    assert "3,000 inputs and settings" in page


def test_only_plainly_kept_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    text = '"action": "kept", "code": null'
    lines = [
        {"file": "a", "line": 1, "action": "kept", "code": None, "reason": None},
        {"file": "a", "line": 2, "action": "kept", "code": "flagged", "reason": "why"},
        {"file": "a", "line": 3, "action": "dropped", "code": "x,y", "reason": text, "excerpt": text},
        {"file": "a", "line": 4, "action": "fixed", "code": None, "reason": None},
        {"file": "a", "line": 5, "action": "invented", "code": "z"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\n{torn")
    problems: list[str] = []
    digest = read_ledger(path, problems)
    assert dict(digest.actions) == {"kept": 2, "dropped": 1, "fixed": 1}
    assert dict(digest.dropped_by_code) == {"x": 1}
    assert set(digest.codes) == {"flagged", "x", "y", "no reason recorded"}
    assert digest.codes["y"].examples[0].excerpt == text
    assert problems == ["1 lines of ledger.jsonl cannot be read; nothing of them is shown"]


# ---------------------------------------------------------------------------------------------- geometry


def test_bars_fill_their_width_and_the_smallest_part_can_be_seen() -> None:
    parts = bar_segments([("a", "a", 999_999), ("b", "b", 1), ("c", "c", 0), ("d", "d", 12)])
    assert [part.label for part in parts] == ["a", "b", "d"]
    assert parts[1].width >= 0.3
    assert sum(part.width for part in parts) == pytest.approx(100, abs=0.05)
    for left, right in itertools.pairwise(parts):
        assert right.x == pytest.approx(left.x + left.width, abs=0.02)
    assert bar_segments([]) == ()


def test_the_zoom_opens_from_the_left_out_rows() -> None:
    flow = flow_chart(80, 10, 10, [("damage", "damaged", 7), ("policy", "by the settings", 3)])
    assert flow is not None
    assert flow.zoom.startswith("M900 0")
    assert flow.zoom.endswith("1000 0Z")
    assert flow.words == (
        "100 rows read: 80 kept as they are, 10 mended and kept, 10 left out. "
        "Of those left out: 7 damaged, 3 by the settings."
    )
    assert flow_chart(0, 0, 0, []) is None
    assert flow_chart(-1, 2, 0, []) is None  # a record that does not add up is not drawn
    alone = flow_chart(1, 0, 1, [("out", "left out", 1)])
    assert alone is not None
    assert (alone.left_out, alone.zoom) == ((), "")


@pytest.mark.parametrize(
    ("part", "total", "words"),
    [
        (0, 5, "0 %"),
        (1, 1_000_000, "under 0.1 %"),
        (999_999, 1_000_000, "over 99.9 %"),
        (5, 5, "100 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_a_share_is_never_rounded_to_none_or_all(part: int, total: int, words: str) -> None:
    assert small_share(part, total) == words


def test_lengths_stand_in_order_and_the_highest_bar_is_the_highest() -> None:
    chart = length_histogram({"1024-2047": 1, "64-127": 50, "128-255": 200, "2048+": 0, "none": 9})
    assert chart is not None
    assert [bar.label for bar in chart.bars] == ["64", "128", "1,024", "2,048"]
    assert [bar.height for bar in chart.bars] == [32.5, 130.0, 1.5, 0.0]
    assert all(bar.y + bar.height == pytest.approx(chart.height) for bar in chart.bars)
    assert chart.words == "Rows by length. Most, 200 of 251, have 128 to 255 tokens."
    assert length_histogram({}) is None
    assert length_histogram({"64-127": 0}) is None
    many = length_histogram({f"{low}-{low + 9}": 1 for low in range(0, 1000, 10)})
    assert many is not None
    assert len(many.bars) == MAX_BARS
    assert "230+ tokens: 77 rows" in many.bars[-1].words


def test_rare_languages_are_counted_together() -> None:
    bar = language_bar({"unknown": 5, "en": 100, **{f"x{n}": n for n in range(1, 12)}})
    assert [part.label for part in bar][:2] == ["English", "x11"]
    assert [(part.label, part.rows) for part in bar][-2:] == [("5 others", 15), ("not told", 5)]
    assert sum(part.rows for part in bar) == 171


@pytest.mark.parametrize(
    ("advice", "ending"),
    [
        ("6,290 training rows: enough to specialise in a task", "left out; enough to specialise in a task."),
        ("412 rows: enough for style by LoRA; more is better.", "; enough for style by LoRA; more is better."),
        ("Enough for most tasks", "left out. Enough for most tasks."),
        ("", "72 left out."),
    ],
)  # fmt: skip
def test_the_verdict_takes_the_advice_in(rows: RunDirectory, advice: str, ending: str) -> None:
    assert data_verdict(read_run(altered(rows, advice=advice))).endswith(ending)


def test_the_page_is_the_same_every_time(rows: RunDirectory) -> None:
    assert render_report(rows) == render_report(rows)
