"""Model output and data are hostile: nothing of them may act, load, hide or reorder on the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halo_forge.artifacts import EvalReport, GateDecision, PreparedData, TrainedModel
from halo_forge.publish import publish
from halo_forge.report import render_report
from halo_forge.report.visible import clip, difference, visible
from halo_forge.runs import RunDirectory

PAYLOADS = [
    "<script>document.title='owned'</script>",
    "</style><script>document.title='owned'</script>",
    "</title><svg onload=\"document.title='owned'\">",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'\" autofocus onfocus=document.title='owned' x='",
    "<a href=\"javascript:document.title='owned'\">click</a>",
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "]]><![CDATA[<script>document.title='owned'</script>]]>",
    "--><script>document.title='owned'</script><!--",
    '<meta http-equiv=refresh content="0;url=http://127.0.0.1:9/">',
    "<base href=http://127.0.0.1:9/><form action=http://127.0.0.1:9/><button>go</button></form>",
    "<style>*{display:none}</style><link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "{{ 7*7 }}{% raw %}{% include '/etc/passwd' %}${7*7}",
    "</p></section></main></body></html><h1>owned</h1>",
    "&lt;script&gt;&#60;script&#62;\\u003cscript\\u003e",
    "<math><mtext></mtext><mglyph><svg><mtext><style><img src=x onerror=alert(1)></style></mtext></svg></math>",
    "`${alert(1)}`\r\n\x0b\x0c",
]
HIDING = "\x1b[2J\x1b]0;owned\x07 \u202eabc\u2066 \u200b\ufeff\u2028 \x00\x08\x7f\x9b \ud800 \U000e0041 \u00ad end"
VISIBLE_NAMES = [
    "␛[2J",
    "⟨U+202E⟩",
    "⟨U+2066⟩",
    "⟨U+200B⟩",
    "⟨U+2028⟩",
    "␀",
    "␡",
    "⟨U+009B⟩",
    "\ufffd",
    "⟨U+E0041⟩",
    "⟨U+00AD⟩",
]

# Values that the records fix; everything else that is text is replaced by a payload.
FIXED = {
    "schema_version", "verdict", "cause", "status", "direction", "method", "stop_reason", "precision", "kind",
    "config_sha256", "sha256", "weights_sha256", "report_sha256", "holdout_sha256", "ledger", "answers", "flips",
    "final_model",
    "metric",
}  # fmt: skip
ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "p", "span", "h1", "h2", "h3", "h4", "h5",
    "strong", "time", "section", "div", "svg", "circle", "path", "ul", "ol", "li", "dl", "dt", "dd", "nav", "main",
    "aside", "code", "rect", "table", "thead", "tbody", "tr", "th", "td", "line", "text", "details", "summary", "mark",
    "figure", "figcaption", "article", "em", "footer", "pre", "g",
}  # fmt: skip


def poison(value: Any, payloads: list[str], key: str = "") -> Any:
    """The same structure with every free text, and every free key, carrying the next payload."""

    def taken() -> str:
        payloads.append(payloads.pop(0))
        return payloads[-1]

    if key in FIXED or (key, value) == ("slice", "all") or isinstance(value, (int, float, type(None))):
        return value
    if isinstance(value, str):
        return taken() if key != "train" else value
    if isinstance(value, list):
        return [poison(item, payloads, key) for item in value]
    if key in ("reasons", "libraries", "scores", "inputs", "decoding"):
        return {taken() + str(index): poison(item, payloads) for index, item in enumerate(value.values())}
    return {name: poison(item, payloads, name) for name, item in value.items()}


def poison_ledger(file: Path, payloads: list[str]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for key, value in row.items():
            if key != "action":
                row[key] = poison(value, payloads)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_hostile_data(data_builder: ModuleType, path: Path, payloads: list[str]) -> RunDirectory:
    """Prepared rows whose record fills every optional field, each with something hostile: source names, codes,
    meanings, kinds and actions of findings, pairs of copies, benchmark items, languages, length ranges, advice."""
    run = data_builder.build_data_run(path)
    manifest = run.file("data/manifest.json")
    content = poison(json.loads(manifest.read_text()), list(payloads))
    for report in content["contamination"]:
        report["benchmark"] = payloads[0] + report["benchmark"]
    for finding, payload in zip(content["findings"], payloads, strict=False):
        finding["kind"] = payload
    content["languages"] = {payload: 10 + place for place, payload in enumerate(payloads)}
    content["length_counts"] = {f"{place}-{payload}": place for place, payload in enumerate(payloads, start=1)}
    PreparedData.model_validate(content)
    manifest.write_text(json.dumps(content))
    for name in ("run.json", "data/mask_samples.json"):
        run.file(name).write_text(json.dumps(poison(json.loads(run.file(name).read_text()), list(payloads))))
    poison_ledger(run.file("data/ledger.jsonl"), list(payloads))
    return run


def build_hostile(builder: ModuleType, path: Path, payloads: list[str]):
    """A published run whose every record, log and answer says something hostile wherever it can."""
    built = builder.build_run(path)
    publish(*built.records)
    records = {
        "data/manifest.json": PreparedData, "trained.json": TrainedModel, "eval/report.json": EvalReport,
        "gate.json": GateDecision, "run.json": None, "data/mask_samples.json": None,
    }  # fmt: skip
    for name, kind in records.items():
        file = built.run.file(name)
        content = poison(json.loads(file.read_text()), list(payloads))
        if kind is not None:
            kind.model_validate(content)
        file.write_text(json.dumps(content))
    sources = {name: {"loss": 1.0, "num_supervised_tokens": 3} for name in payloads}
    built.run.file("samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": "p", "answer": "a", "reference": "r", "stopped": True}) + "\n"
    )
    with open(built.run.file("metrics.jsonl"), "a") as metrics:
        for step in range(1000, 1003):
            metrics.write(json.dumps({"kind": "train", "step": step, "loss": 1.0, "by_source": sources}) + "\n")
    for name in ("eval/answers.jsonl", "eval/flips.jsonl", "data/ledger.jsonl", "metrics.jsonl", "samples.jsonl"):
        file = built.run.file(name)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        keep = {"kind", "action", "outcome"}
        shift = list(payloads)
        for row in rows:
            for key, value in row.items():
                if key not in keep:
                    row[key] = poison(value, shift)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return built


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.declarations: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def unknown_decl(self, data: str) -> None:
        self.declarations.append(data)

    def handle_comment(self, data: str) -> None:
        self.declarations.append(data)


def assert_inert(html: str) -> Tags:
    page = Tags(html)
    assert page.declarations == []
    assert {tag for tag, _ in page.found} <= ALLOWED_TAGS
    assert sum(tag == "style" for tag, _ in page.found) == 1
    for tag, fields in page.found:
        for name, value in fields.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "style", "action", "formaction", "srcdoc", "xlink:href"), (tag, name)
            if name == "href":
                assert str(value).startswith("#"), value
            if name == "http-equiv":
                assert value == "Content-Security-Policy"
    return page


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 4))
def test_payloads_in_every_field_stay_text(builder: ModuleType, tmp_path: Path, start: int) -> None:
    payloads = PAYLOADS[start:] + PAYLOADS[:start]
    built = build_hostile(builder, tmp_path / "run", payloads)
    page = assert_inert(render_report(built.run))
    shown = [payload for payload in PAYLOADS if visible(payload) in page.text]
    assert len(shown) == len(PAYLOADS)  # they are there to be read, so the fields were really poisoned


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 4))
def test_payloads_in_every_field_of_the_data_record_stay_text(
    data_builder: ModuleType, tmp_path: Path, start: int
) -> None:
    payloads = PAYLOADS[start:] + PAYLOADS[:start]
    run = build_hostile_data(data_builder, tmp_path / "run", payloads)
    html = render_report(run, holdout_uses=payloads[1])
    page = assert_inert(html)
    assert "Not everything could be read" not in page.text
    shown = [payload for payload in PAYLOADS if visible(payload) in page.text]
    assert len(shown) == len(PAYLOADS)
    assert len(html.encode()) < 300_000


def put(run: RunDirectory, record: dict[str, Any], field: str, payload: str) -> None:
    """Write the record with one field hostile, or, without a record, one field of one line of the ledger."""
    finding = record["findings"][0]
    match field:
        case "advice":
            record["advice"] = payload
        case "source name":
            record["sources"][0]["name"] = payload
        case "finding code" | "finding meaning" | "finding kind" | "finding action":
            finding[field.removeprefix("finding ")] = payload
        case "finding example":
            finding["examples"][0]["file"] = finding["examples"][0]["excerpt"] = payload
        case "copy":
            record["duplicates"]["examples"][0] |= {"kept": payload, "dropped": payload, "excerpt": payload}
        case "benchmark":
            record["contamination"][0]["benchmark"] = payload
        case "item":
            record["contamination"][0]["examples"][0] |= {"item": payload, "file": payload, "excerpt": payload}
        case "language":
            record["languages"] = {payload: 3}
        case "length":
            record["length_counts"] = {f"1{payload}": 3, payload: 4}
        case "input":
            record["provenance"]["inputs"] = {payload: payload, f"data.{payload}": payload}
    manifest, ledger = run.file("data/manifest.json"), run.file("data/ledger.jsonl")
    if field.startswith("ledger "):
        row = {"file": "f", "line": 1, "action": "dropped", "code": "x", "reason": "r", "excerpt": "e"}
        row[field.removeprefix("ledger ")] = payload
        ledger.write_text(json.dumps(row) + "\n")
        manifest.unlink(missing_ok=True)
    else:
        PreparedData.model_validate(record)
        manifest.write_text(json.dumps(record))
        ledger.write_text("")


NEW_FIELDS = (
    "advice", "source name", "finding code", "finding meaning", "finding kind", "finding action", "finding example",
    "copy", "benchmark", "item", "language", "length", "input", "ledger code", "ledger reason", "ledger excerpt",
    "ledger file",
)  # fmt: skip


@pytest.mark.parametrize("field", NEW_FIELDS)
def test_each_field_of_the_data_record_is_escaped_alone(data_builder: ModuleType, tmp_path: Path, field: str) -> None:
    run = data_builder.build_data_run(tmp_path / "run")
    record = json.loads(run.file("data/manifest.json").read_text())
    for payload in PAYLOADS:
        put(run, json.loads(json.dumps(record)), field, payload)
        page = assert_inert(render_report(run))
        said = page.text + " ".join(str(value) for _, fields in page.found for value in fields.values())
        # A code ends at a comma, a range of lengths is told with "to", and a long text is cut.
        beginning = visible(payload.split(",")[0].split("-")[0])[:12]
        if field != "finding kind":  # an unknown kind is not shown: its rows stand under "left out"
            assert beginning in said, (field, payload)


def test_a_hostile_directory_name_is_text_in_the_title(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "<img src=x onerror=alert(1)>")
    page = assert_inert(render_report(built.run))
    assert "<img src=x onerror=alert(1)>" in page.text


def test_hidden_characters_become_visible(builder: ModuleType, tmp_path: Path) -> None:
    def alter(index: int, line: dict) -> None:
        line["tuned"]["text"] = line["prompt"] = HIDING

    built = builder.build_run(tmp_path / "run", alter_answer=alter)
    html = render_report(built.run)
    html.encode("utf-8")  # a lone surrogate would not pass
    for name in VISIBLE_NAMES:
        assert name in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff\ud800-\udfff]", html)


def test_writing_systems_and_emoji_are_left_alone() -> None:
    text = "العربية עברית हिन्दी ไทย 日本語\t👩‍👩‍👧 می‌خواهم\n"
    assert visible(text) == text
    assert visible("a\r\nb\rc") == "a\nb␍c"


def test_the_policy_allows_one_style_sheet_and_nothing_else(builder: ModuleType, tmp_path: Path) -> None:
    html = render_report(builder.build_run(tmp_path / "run").run)
    policy = next(
        str(fields["content"])
        for tag, fields in Tags(html).found
        if fields.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert "http://" not in html
    assert "https://" not in html


def test_clip_and_difference() -> None:
    assert clip("abc", 10) == clip("abc", 10).__class__("abc", 0)
    assert clip("x" * 140, 100).num_hidden == 0
    assert (clip("x" * 141, 100).text, clip("x" * 141, 100).num_hidden) == ("x" * 100, 41)
    assert clip("a\n" * 10, 100, 3).text == "a\na\na"
    assert clip("a\n" * 10, 100, 3).num_hidden == 15
    part = difference("abcXdef", "abcYYdef")
    assert (part.before, part.differs, part.after) == ("abc", "X", "def")
    part = difference("abcdef", "abcXdef")
    assert (part.before, part.differs, part.after) == ("abc", "⟨missing⟩", "def")
    part = difference("something else", "abcdef")
    assert (part.before, part.differs, part.after) == ("something else", "", "")
    for text, reference in (("", ""), ("", "a"), ("a", ""), ("aa", "aaa"), ("aaa", "aa"), ("same", "same")):
        part = difference(text, reference)
        assert (part.before + part.differs + part.after).replace("⟨missing⟩", "") == text
