"""What the page says about a run, in every state that a run can be in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.publish import publish
from halo_forge.report import render_report, write_report
from halo_forge.report.answers import common_frame
from halo_forge.runs import RunDirectory, write_artifact

SECTIONS = ["data", "masks", "training", "evaluation", "gate", "release", "reproduce"]


class Page(HTMLParser):
    """Text of the page by section, every start tag with its attributes, and the text of marked tokens."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.sections: list[str] = []
        self.marked = ""
        self._section, self._open_marks, self._skip = "head", 0, False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.tags.append((tag, fields))
        if tag == "section" and fields.get("id"):
            self._section = str(fields["id"])
            self.sections.append(self._section)
        self._open_marks += tag == "mark"
        if tag in ("li", "tr", "div", "p", "dt", "dd", "h2", "h3", "h4", "h5"):
            self.text[self._section] = self.text.get(self._section, "") + " "
        self._skip = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._open_marks -= tag == "mark"
        self._skip = False

    def handle_data(self, data: str) -> None:
        if self._skip:
            return
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._open_marks and self._section == "masks":
            self.marked += data

    def words(self, section: str) -> str:
        return " ".join(self.text[section].split())


@pytest.fixture
def built(builder: ModuleType, tmp_path: Path):
    return builder.build_run(tmp_path / "stub-writer")


def page_of(run: RunDirectory) -> Page:
    return Page(render_report(run))


def test_a_finished_run_is_told_from_rows_to_release(built) -> None:
    publish(*built.records)
    path = write_report(built.run)
    assert path == built.run.file("report.html")
    assert path.stat().st_size < 300_000
    page = Page(path.read_text(encoding="utf-8"))
    assert page.sections == SECTIONS
    head = page.words("head")
    assert "Verdict PASS Every rule of the quality gate held: 2 of 2." in head
    assert "Exact match 0 % → 77.5 % base → tuned, 40 unseen rows" in head
    data = page.words("data")
    assert "570 rows read: 567 kept (1 of them mended), 3 left out." in data
    assert (
        "nothing to train on: the row has no assistant turn no_assistant_turn 1 example examples/stubs.jsonl:201"
        in data
    )
    training = page.words("training")
    assert "LoRA, rank 16, alpha 32" in training
    assert "60, 1 epoch, 32 rows a step" in training
    evaluation = page.words("evaluation")
    assert "Perplexity lower is better · n 40" in evaluation
    assert "base 9.41 8.2 to 10.9 tuned 1.28 1.21 to 1.36 better −8.13" in evaluation
    assert "Not measured: no JSON schema was given" in evaluation
    assert built.decision.verdict == "PASS"
    assert f"json_valid is at least 0.7 {built.decision.rules[0].reason}" in page.words("gate")
    release = page.words("release")
    assert "stub-writer v1" in release
    assert built.trained.weights_sha256 in release
    assert "training.learning_rate 0.0005 --set" in release
    reproduce = page.words("reproduce")
    assert f"halo-forge run configs/demo.yaml --output {built.run.path}" in reproduce
    assert f"halo-forge run {built.run.path}/config.resolved.yaml --set output.dir=runs/again" in reproduce


def test_exactly_the_trained_tokens_are_marked(built) -> None:
    samples = json.loads(built.run.file("data/mask_samples.json").read_text())
    trained = "".join(
        token.replace("\n", "↵\n")
        for sample in samples
        for token, weight in zip(sample["tokens"], sample["weights"], strict=True)
        if weight > 0
    )
    assert page_of(built.run).marked == "Underlined tokens" + trained


def test_weights_other_than_one_are_told(built) -> None:
    sample = {"id": "ab", "tokens": ["a", "b", "c"], "weights": [0.0, 0.25, 1.0]}
    built.run.file("data/mask_samples.json").write_text(json.dumps([sample]))
    page = page_of(built.run)
    titles = [fields.get("title") for tag, fields in page.tags if tag == "mark"]
    assert titles == [None, "loss weight 0.25", None]
    assert "row ab 2 of 3 tokens trained" in page.words("masks")


def test_a_long_row_is_cut_in_the_middle_and_says_so(built) -> None:
    tokens = [f"t{number} " for number in range(2000)]
    sample = {"id": "x", "tokens": tokens, "weights": [0.0] * 1000 + [1.0] * 1000}
    built.run.file("data/mask_samples.json").write_text(json.dumps([sample]))
    words = page_of(built.run).words("masks")
    assert "1,000 of 2,000 tokens trained" in words
    assert "t159 … 1,540 tokens not shown … t1700" in words


@pytest.mark.parametrize(
    ("verdict", "lead", "point"),
    [
        ("FAIL", "1 of 2 rules of the quality gate did not hold.", "add rows with the exact format"),
        ("INCONCLUSIVE", "The evidence does not decide 1 of 2 rules", "evaluate more rows"),
    ],
)
def test_without_a_pass_the_page_says_why_and_what_would_change_it(
    builder: ModuleType, tmp_path: Path, verdict: str, lead: str, point: str
) -> None:
    built = builder.build_run(tmp_path / "run", verdict=verdict)
    page = page_of(built.run)
    head = page.words("head")
    assert f"Verdict {verdict} {lead}" in head
    rule = built.decision.rules[0]
    assert built.decision.verdict == rule.verdict == verdict
    assert f"{verdict.lower()} {rule.rule} {rule.evidence} It would have passed with the whole interval" in head
    assert f"Next: {rule.next_action}" in head
    assert point in head
    assert "perplexity is at most 20" not in head  # it held, so it is no reason
    assert "No version was published from this run." in page.words("release")


def test_a_forced_release_is_told_in_the_banner(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run", verdict="FAIL")
    forced = built.config.model_copy(update={"publish": built.config.publish.model_copy(update={"force": True})})
    publish(forced, *built.records[1:])
    page = page_of(built.run)
    assert "Published by force." in page.words("head")
    assert "run v1 forced" in page.words("release")


# ---------------------------------------------------------------------------------------------- answers


def test_failures_stand_before_wins_and_every_item_is_counted(builder: ModuleType, tmp_path: Path) -> None:
    def alter(index: int, line: dict) -> None:
        if index in (5, 30):
            line["base"]["scores"]["exact_match"], line["tuned"]["scores"]["exact_match"] = 1.0, 0.0
        if index == 7:
            line["base"]["scores"]["exact_match"] = line["tuned"]["scores"]["exact_match"] = 1.0

    built = builder.build_run(tmp_path / "run", alter_answer=alter)
    page = page_of(built.run)
    labels = [fields["aria-label"] for tag, fields in page.tags if tag == "article"]
    marks = [str(label).split(", ")[1] for label in labels]
    assert labels[:2] == ["Prompt 6, lost", "Prompt 31, lost"]
    assert marks == sorted(marks, key=["lost", "both wrong", "won", "both right"].index)
    words = page.words("evaluation")
    tally = re.search(r"lost (\d+) both wrong (\d+) won (\d+) both right (\d+)", words)
    assert tally is not None
    assert sum(map(int, tally.groups())) == 40
    assert (tally[1], tally[4]) == ("2", "1")
    assert f"Shown are {len(labels)}, failures first" in words


def test_what_all_prompts_share_is_told_once(built, builder: ModuleType) -> None:
    html = render_report(built.run)
    words = Page(html).words("evaluation")
    assert words.count("You are a helpful AI assistant named SmolLM") == 1
    assert words.count("<|im_start|>assistant") == 1
    answered = [json.loads(line)["prompt"] for line in built.run.file("eval/answers.jsonl").read_text().splitlines()]
    begins, ends = common_frame(answered)
    assert begins == f"<|im_start|>system\n{builder.SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
    assert ends == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompts", "frame"),
    [
        (["one"], ("", "")),
        (["same", "same"], ("", "")),
        (["a\nb\n", "a\nb\n"], ("a\nb\n", "")),
        (["a\nx1\nz\n", "a\nx2\nz\n"], ("a\n", "z\n")),
        (["a\nx\n", "a\ny\n"], ("a\n", "")),
        (["", "a\n"], ("", "")),
    ],
)
def test_the_common_frame_is_of_whole_lines_and_takes_nothing_else(prompts: list[str], frame: tuple[str, str]) -> None:
    assert common_frame(prompts) == frame


def test_a_small_difference_to_the_reference_is_marked(builder: ModuleType, tmp_path: Path) -> None:
    def alter(index: int, line: dict) -> None:
        if index == 0:
            line["reference"], line["tuned"]["text"] = '{"name": "alpha", "x": 1}', '{"name": "beta", "x": 1}'
            line["tuned"]["scores"]["exact_match"], line["base"]["scores"]["exact_match"] = 0.0, 1.0

    built = builder.build_run(tmp_path / "run", alter_answer=alter)
    assert '&#34;<em class="differs">bet</em>a&#34;' in render_report(built.run)


def test_long_answers_are_cut_with_a_count(builder: ModuleType, tmp_path: Path) -> None:
    def alter(index: int, line: dict) -> None:
        line["base"]["text"] = "x" * 100_000
        line["tuned"]["text"] = "y\n" * 50_000
        line["prompt"] = "z" * 100_000

    built = builder.build_run(tmp_path / "run", alter_answer=alter)
    html = render_report(built.run)
    assert len(html.encode()) < 300_000
    words = Page(html).words("evaluation")
    assert "… 99,100 characters more" in words
    assert "… 99,300 characters more" in words
    assert "y … 99,945 characters more" in words


def test_an_answer_stands_below_what_was_seen_and_heard(builder: ModuleType, tmp_path: Path) -> None:
    """A picture whose bytes are those that were asked about; one that changed, is gone or never was a file is named
    without being shown."""
    pillow = pytest.importorskip("PIL.Image")
    picture = tmp_path / "seen.png"
    pillow.new("RGB", (300, 200), (200, 10, 10)).save(picture)
    sha256 = hashlib.sha256(picture.read_bytes()).hexdigest()
    of = {
        0: [("image", str(picture), sha256)],
        1: [("image", str(picture), "0" * 64)],
        2: [("image", "/dev/zero", sha256), ("image", str(tmp_path / "gone.png"), sha256)],
        3: [("audio", "heard<b>.wav", sha256)],
    }

    def alter(index: int, line: dict) -> None:
        if index in of:
            line["media"] = [{"kind": kind, "path": path, "sha256": of_bytes} for kind, path, of_bytes in of[index]]
            line["tuned"]["scores"]["exact_match"], line["base"]["scores"]["exact_match"] = 0.0, 1.0  # shown first

    page = page_of(builder.build_run(tmp_path / "run", alter_answer=alter).run)
    shown = [fields["src"] for tag, fields in page.tags if tag == "img"]
    assert len(shown) == 1
    small = pillow.open(io.BytesIO(base64.b64decode(str(shown[0]).partition(",")[2])))
    assert small.width <= 200
    assert small.getpixel((5, 5)) == (200, 10, 10)
    words = page.words("evaluation")
    assert words.count(f"image {picture}") == 2
    assert f"image /dev/zero, image {tmp_path / 'gone.png'}" in words
    assert "audio heard<b>.wav" in words


# ---------------------------------------------------------------------------------------------- unfinished and broken


def test_an_empty_directory_has_a_page_too(tmp_path: Path) -> None:
    page = page_of(RunDirectory(tmp_path))
    assert page.sections == SECTIONS
    assert "Nothing has been recorded in this run directory so far." in page.words("head")
    for section, words in (("data", "No rows"), ("training", "Nothing has been trained"), ("gate", "has not judged")):
        assert words in page.words(section)


def test_a_run_that_was_stopped_shows_how_far_it_came(built) -> None:
    for name in ("gate.json", "eval/report.json", "eval/answers.jsonl", "trained.json"):
        built.run.file(name).unlink()
    metrics = built.run.file("metrics.jsonl")
    metrics.write_bytes(metrics.read_bytes()[:4000])  # the last line is torn
    page = page_of(built.run)
    assert "The run has recorded: data, what is trained. The gate has not spoken." in page.words("head")
    assert "these are the steps so far" in page.words("training")
    assert "Not everything could be read" not in page.words("head")


BROKEN = [
    "",
    "{",
    "null",
    "[]",
    '"text"',
    "[1, 2]",
    '{"schema_version": 2}',
    '{"tokens": 3}\n{"id": []}\n',
    "\x00\xff\n",
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize(
    "name",
    ["run.json", "data/manifest.json", "trained.json", "eval/report.json", "gate.json", "metrics.jsonl",
     "eval/answers.jsonl", "data/ledger.jsonl", "data/mask_samples.json"],
)  # fmt: skip
def test_a_broken_record_never_stops_the_page(built, name: str, content: str) -> None:
    built.run.file(name).write_text(content, encoding="latin-1")
    page = page_of(built.run)
    assert page.sections == SECTIONS
    is_record = name in ("data/manifest.json", "trained.json", "eval/report.json", "gate.json")
    if is_record:
        assert f"{Path(name).name} is not a" in page.words("head")


def test_losses_that_are_not_finite_are_counted_not_drawn(built) -> None:
    lines = [{"kind": "train", "step": n, "loss": n / 10, "learning_rate": 1e-4} for n in range(1, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    text += '{"kind": "train", "step": 20, "loss": NaN, "learning_rate": 1e-4}\n'
    text += '{"kind": "train", "step": 21, "loss": Infinity, "learning_rate": Infinity}\n'
    text += '{"kind": "train", "step": 22, "loss": null, "learning_rate": null}\n'
    built.run.file("metrics.jsonl").write_text(text)
    html = render_report(built.run)
    assert "3 steps had a loss that is not a finite number" in html
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", html, flags=re.S), re.I)


def test_values_that_are_not_finite_in_an_evaluation_are_words(built) -> None:
    row = built.report.comparisons[0]
    infinite = row.tuned.model_copy(update={"value": float("inf"), "high": float("inf")})
    report = built.report.model_copy(update={"comparisons": (row.model_copy(update={"tuned": infinite}),)})
    write_artifact(built.run.file("eval/report.json"), report)
    words = page_of(built.run).words("evaluation")
    assert "tuned not finite" in words


def test_the_page_is_the_same_every_time(built) -> None:
    assert render_report(built.run) == render_report(built.run)


def test_the_report_imports_no_torch(built) -> None:
    code = (
        "import sys; from pathlib import Path; from halo_forge.report import write_report;"
        "from halo_forge.runs import RunDirectory; write_report(RunDirectory(Path(sys.argv[1])));"
        "assert not {'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(built.run.path)], check=True, timeout=60, env=environment)


def test_a_large_run_still_makes_a_small_page(built) -> None:
    steps = [{"kind": "train", "step": n, "loss": 1 + 1 / n, "learning_rate": 1e-4} for n in range(1, 20_001)]
    steps += [{"kind": "validation", "step": n, "loss": 1 + 1 / n} for n in range(10, 20_001, 10)]
    built.run.file("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    sample = {"id": "x", "tokens": ["token "] * 4000, "weights": [0.0] + [1.0, 0.0] * 1999 + [1.0]}
    built.run.file("data/mask_samples.json").write_text(json.dumps([sample] * 20))
    ledger = [{"file": "f", "line": n, "action": "dropped", "code": f"c{n % 50}", "reason": "r"} for n in range(5000)]
    built.run.file("data/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    assert len(render_report(built.run).encode()) < 300_000


# ---------------------------------------------------------------------------------------------- flips and slices


def test_each_flip_links_to_its_answers_on_the_page(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    page = write_report(built.run).read_text()
    numbers = re.findall(r'<a href="#answer-(\d+)">', page)
    assert len(numbers) > 20
    for number in numbers:
        assert page.count(f'id="answer-{number}"') == 1
    flips = [json.loads(line) for line in built.run.file("eval/flips.jsonl").read_text().splitlines()]
    won = sum(flip["metric"] == "exact_match" for flip in flips)
    assert f"and {won - 20} more in eval/flips.jsonl" in page


def test_a_flip_of_an_answer_that_is_not_there_has_no_link(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    built.run.file("eval/flips.jsonl").write_text(
        '{"metric": "exact_match", "outcome": "lost", "id": "another", "line": 1}\n'
        '{"metric": "exact_match", "outcome": "lost", "id": "x", "line": 100000}\n'
        '{"metric": "exact_match", "outcome": "drawn", "id": "x", "line": 1}\n'
    )
    page = write_report(built.run).read_text()
    assert "#answer-" not in page
    assert "and 2 more in eval/flips.jsonl" in page
    assert "1 lines of flips.jsonl say of no answer" in page


def test_slices_stand_in_a_table_of_their_own(builder: ModuleType, tmp_path: Path) -> None:
    page = write_report(builder.build_run(tmp_path / "run").run).read_text()
    assert page.count('<svg class="intervals"') == 6  # the metrics over all items, as before
    assert re.search(r"<summary>1 slice: by source", page)
    assert page.count("<td>source=faq</td>") == 2  # the deciding metric and the perplexity
    assert "slices of fewer than 10 items are not measured: domain=law (3)" in page
