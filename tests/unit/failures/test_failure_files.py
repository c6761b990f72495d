"""The template refuses to be trained on unfilled, and the page shows hostile texts as texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from halo_forge.artifacts import Measurement
from halo_forge.data import check_file
from halo_forge.failures.page import render_page
from halo_forge.failures.records import FailedAnswer, FailureCluster, Inspection
from halo_forge.failures.template import template_lines
from halo_forge.runs import provenance

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[2J\u202egnp.exe"


def cluster(name: str = "not JSON", text: str = "a text", system: str | None = None, rows: int = 3) -> FailureCluster:
    example = FailedAnswer(
        id="1", source=f"{text}:3", prompt=text, expected=text + "!", answered=text + "?", stopped=False, how=name
    )
    return FailureCluster(
        id="c1", name=name, kind=name, num=7, share=0.7, words=(text,), labels=(), also_failed={"json_valid": 2},
        examples=(example,), items=("1",), num_rows_to_write=rows, system=system,
    )  # fmt: skip


def inspection(*clusters: FailureCluster, run: str = "runs/x", notes: tuple[str, ...] = ()) -> Inspection:
    return Inspection(
        provenance=provenance("0" * 64, {}), run=run, directory=f"{run}/inspect", weights_sha256="1" * 64,
        validation_sha256="2" * 64, metric="json_match", why_metric="the strictest that applies", right_from=1.0,
        measurement=Measurement(metric="right by json_match", value=0.3, n=10, low=0.1, high=0.6), num_rows=11,
        num_judged=10, num_not_judged=1, num_right=3, num_failed=7, kinds={"not JSON": 7}, clusters=clusters,
        num_template_rows=3, answers="answers.jsonl", template="rows.template.jsonl", page="failures.html", notes=notes,
    )  # fmt: skip


def test_an_unfilled_row_is_refused_by_line_and_a_filled_one_is_kept(tmp_path: Path) -> None:
    lines = template_lines([cluster(text=HOSTILE, system="You are brief."), cluster("cut off", rows=2)]).splitlines()
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    found = check_file(str(path))
    assert (found.read, found.kept, found.usable) == (5, 0, False)
    assert {row["code"] for row in found.rows} == {"empty_content"}
    assert "empty or white space only" in found.rows[0]["reason"]

    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows[:-1]):
        row["messages"][-2]["content"] = f"question number {number} about something else each time: {number * 77}"
        row["messages"][-1]["content"] = f"answer {number}"
    rows[-1]["messages"][-2]["content"] = "a question whose answer was forgotten"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_file(str(path))
    assert (found.kept, found.dropped) == (4, 1)
    assert [row["line"] for row in found.rows if row["action"] == "dropped"] == [5]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in ("src", "srcset")]


def test_the_page_shows_hostile_texts_as_texts() -> None:
    page = render_page(
        inspection(cluster(HOSTILE, HOSTILE), run=f"runs/{HOSTILE}".replace("/script", ""), notes=(HOSTILE,))
    )
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "iframe", "form", "link", "object"} & set(tags.seen)
    assert tags.handlers == []
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in page
    assert "&lt;script&gt;" in page
    assert re.search(r"default-src 'none'; style-src 'sha256-[\w+/=]+'", page.replace("&#39;", "'"))


def test_a_page_without_failures_says_so() -> None:
    assert "nothing to write against" in render_page(inspection())
    assert "no failures" not in inspection().words()


def test_words_of_an_inspection_name_the_next_step() -> None:
    words = inspection(cluster()).words()
    assert "7 of 10 validation answers are wrong (json_match below 1" in words
    assert "halo-forge iterate runs/x --rows FILE" in words
