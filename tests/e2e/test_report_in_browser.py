"""The report in a real browser: it renders under its own policy, runs nothing and asks nobody for anything."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.publish import publish
from halo_forge.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here (apt-get install chromium)")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr",
)  # fmt: skip
OWNED = "document.title='owned'"
PAYLOADS = [
    f"<script>{OWNED}</script>",
    f"</style></title><script>{OWNED}</script>",
    f'"><img src=x onerror="{OWNED}">',
    f"]]><svg onload={OWNED}>",
    f'<iframe srcdoc="<script>parent.{OWNED}</script>"></iframe>',
    "\x1b[31m\u202edlrow olleh\u2066",
    "<style>*{display:none!important}</style>",
]


@dataclass(frozen=True)
class Visit:
    dom: str
    title: str
    complaints: list[str]  # what the browser wrote about the page on its console


def load_builder(file_name: str = "run_builder.py") -> ModuleType:
    name = f"halo_forge_test_{file_name.removesuffix('.py')}"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "unit" / "report" / file_name
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def visit(page: Path, profile: Path) -> Visit:
    answer = chromium(profile, "--virtual-time-budget=2000", "--dump-dom", page.as_uri())
    title = re.search(r"<title>(.*?)</title>", answer.stdout, re.S)
    complaints = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    return Visit(dom=answer.stdout, title=title[1] if title else "", complaints=complaints)


def picture(page: Path, profile: Path, path: Path, *, width: int = 1200, dark: bool = False) -> bytes:
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(profile, f"--window-size={width},1000", f"--screenshot={path}", *theme, page.as_uri())
    return path.read_bytes()


def corner_and_size(png: bytes) -> tuple[str, tuple[int, int]]:
    """Colour of the first pixel (its filter is against nothing, so it stands there as it is) and the size."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return "#" + zlib.decompressobj().decompress(data, 4)[1:4].hex(), (width, height)


@pytest.fixture
def finished_page(tmp_path: Path) -> Path:
    built = load_builder().build_run(tmp_path / "stub-writer")
    publish(*built.records)
    return write_report(built.run)


@pytest.fixture
def hostile_page(tmp_path: Path) -> Path:
    def alter(index: int, line: dict) -> None:
        line["prompt"] = line["reference"] = PAYLOADS[index % len(PAYLOADS)]
        line["tuned"]["text"] = PAYLOADS[(index + 1) % len(PAYLOADS)] + "x" * 100_000 * (index == 3)
        line["base"]["text"] = "\n".join(PAYLOADS)

    built = load_builder().build_run(tmp_path / "run", alter_answer=alter)
    sample = {"id": PAYLOADS[0], "tokens": PAYLOADS, "weights": [0.0, *[1.0] * (len(PAYLOADS) - 1)]}
    built.run.file("data/mask_samples.json").write_text(json.dumps([sample]))
    return write_report(built.run)


@pytest.fixture
def data_page(tmp_path: Path) -> Path:
    return write_report(load_builder("data_builder.py").build_data_run(tmp_path / "support-data"))


@pytest.fixture
def hostile_data_page(tmp_path: Path) -> Path:
    """Every text of a finding, a copy, a benchmark hit and the ledger says something hostile."""
    run = load_builder("data_builder.py").build_data_run(tmp_path / "run")
    record = json.loads(run.file("data/manifest.json").read_text())
    for place, finding in enumerate(record["findings"]):
        payload = PAYLOADS[place % len(PAYLOADS)]
        finding |= {"code": payload, "meaning": payload}
        finding["examples"] = [{"file": payload, "line": 1, "excerpt": payload}]
    for pair in record["duplicates"]["examples"]:
        pair |= {"kept": PAYLOADS[1], "dropped": PAYLOADS[2], "excerpt": PAYLOADS[0]}
    for hit in record["contamination"][0]["examples"]:
        hit |= {"file": PAYLOADS[4], "item": PAYLOADS[2], "excerpt": PAYLOADS[6]}
    record |= {"advice": PAYLOADS[0], "languages": dict.fromkeys(PAYLOADS, 5), "notes": PAYLOADS}
    run.file("data/manifest.json").write_text(json.dumps(record))
    row = {"file": PAYLOADS[0], "line": 1, "action": "dropped", "code": PAYLOADS[0], "reason": PAYLOADS[3]}
    run.file("data/ledger.jsonl").write_text(json.dumps(row | {"excerpt": PAYLOADS[4]}) + "\n")
    return write_report(run)


def widths(page: Path, folder: Path, width: int) -> tuple[int, int]:
    """How wide the page is shown, and how wide it would like to be, with everything folded open. A window of this
    browser is never narrower than 500, a frame is."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    measure = "parent.postMessage(innerWidth + ' ' + document.documentElement.scrollWidth, '*')"
    html = html.replace("<details", "<details open").replace("</body>", f"<script>onload=()=>{measure}</script></body>")
    (folder / "measured.html").write_text(html, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(
        f"<title>none</title><script>onmessage = event => {{ document.title = event.data }}</script>"
        f'<iframe src="measured.html" width={width} height=900></iframe>'
    )
    shown, wanted = visit(frame, folder / "profile").title.split()
    return int(shown), int(wanted)


@pytest.mark.parametrize("width", [400, 1100])
def test_a_data_page_fits_a_narrow_screen(data_page: Path, tmp_path: Path, width: int) -> None:
    assert widths(data_page, tmp_path, width) == (width, width)


def test_a_run_page_fits_a_narrow_screen(finished_page: Path, tmp_path: Path) -> None:
    assert widths(finished_page, tmp_path, 400) == (400, 400)


def test_the_data_page_renders_in_both_themes_and_has_no_complaint(data_page: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    wide = picture(data_page, profile, tmp_path / "wide.png")
    assert corner_and_size(wide) == ("#fbfaf7", (1200, 1000))
    assert len(wide) > 40_000
    assert corner_and_size(picture(data_page, profile, tmp_path / "dark.png", dark=True))[0] == "#141518"
    seen = visit(data_page, profile)
    assert seen.title == "support-data · Ready to train · halo-forge data report"
    assert re.findall(r'<section id="(\w+)"', seen.dom) == ["data", "masks", "next", "release", "reproduce"]
    assert seen.dom.count('<svg class="bar"') == 3
    assert seen.complaints == []


def test_hostile_rows_are_inert(hostile_data_page: Path, tmp_path: Path) -> None:
    seen = visit(hostile_data_page, tmp_path / "profile")
    assert seen.title == "run · Ready to train · halo-forge data report"
    assert seen.complaints == []
    assert not re.search(r"<(script|iframe|img|style\b[^>]*>\*)", seen.dom)
    assert seen.dom.count("&lt;script&gt;") > 10


def test_the_page_renders_with_its_own_style_in_both_themes_and_widths(finished_page: Path, tmp_path: Path) -> None:
    """The background is the style sheet's: under a policy whose hash did not match, it would be the browser's."""
    profile = tmp_path / "profile"
    wide = picture(finished_page, profile, tmp_path / "wide.png")
    assert corner_and_size(wide) == ("#fbfaf7", (1200, 1000))
    assert len(wide) > 40_000  # an empty page of this size has about 5 kB
    dark = picture(finished_page, profile, tmp_path / "dark.png", dark=True)
    assert corner_and_size(dark)[0] == "#141518"
    narrow = picture(finished_page, profile, tmp_path / "narrow.png", width=500)
    assert corner_and_size(narrow) == ("#fbfaf7", (500, 1000))
    assert len(narrow) > 30_000


def test_the_finished_page_has_every_section_and_no_complaint(finished_page: Path, tmp_path: Path) -> None:
    seen = visit(finished_page, tmp_path / "profile")
    assert seen.title == "stub-writer · PASS · halo-forge run report"
    assert re.findall(r'<section id="(\w+)"', seen.dom) == [
        "data", "masks", "training", "evaluation", "gate", "release", "reproduce",
    ]  # fmt: skip
    assert seen.dom.count('<svg class="intervals"') == 6
    assert 'class="smooth"' in seen.dom
    assert seen.complaints == []


def test_every_flip_leads_to_its_answers(finished_page: Path, tmp_path: Path) -> None:
    """A click on a link of the flips, as the browser does it: the answer stands in view, also out of a fold."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", finished_page.read_text(encoding="utf-8"))
    look = """onload = () => setTimeout(() => {
        const links = [...document.querySelectorAll('.flips a')]
        const bad = links.filter(link => {
            link.click()
            const place = document.querySelector(link.getAttribute('href'))
            const folds = []
            for (let at = place; at; at = at.parentElement) if (at.tagName == 'DETAILS' && !at.open) folds.push(at)
            return !place || folds.length
        })
        document.title = links.length + ' links, ' + bad.length + ' lead nowhere'
    }, 100)"""
    page = tmp_path / "clicked.html"
    page.write_text(html.replace("</body>", f"<script>{look}</script></body>"), encoding="utf-8")
    title = visit(page, tmp_path / "profile").title
    assert re.fullmatch(r"[1-9]\d* links, 0 lead nowhere", title), title


def test_hostile_answers_are_inert(hostile_page: Path, tmp_path: Path) -> None:
    seen = visit(hostile_page, tmp_path / "profile")
    assert seen.title == "run · PASS · halo-forge run report"
    assert seen.complaints == []
    assert not re.search(r"<(script|iframe|img|style\b[^>]*>\*)", seen.dom)
    assert seen.dom.count("&lt;script&gt;") > 10
    assert corner_and_size(picture(hostile_page, tmp_path / "profile", tmp_path / "page.png"))[0] == "#fbfaf7"


@pytest.fixture
def visitors() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine and the requests that it got."""
    requests: list[str] = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_policy_holds_even_if_escaping_failed(
    finished_page: Path, tmp_path: Path, visitors: tuple[str, list[str]]
) -> None:
    """Markup put into the page unescaped: without the policy it acts, with the policy nothing of it does."""
    address, requests = visitors
    markup = (
        f"<script>{OWNED}</script><svg onload=\"{OWNED}\"></svg><img src='{address}/image'>"
        f"<link rel=stylesheet href='{address}/style'><iframe src='{address}/frame'></iframe>"
        f"<script src='{address}/script'></script><p style='background:url({address}/background)'>x</p>"
    )
    html = finished_page.read_text(encoding="utf-8")
    planted = html.replace('<main id="main">', '<main id="main">' + markup)
    page = tmp_path / "planted.html"

    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", planted), encoding="utf-8")
    seen = visit(page, tmp_path / "open")
    assert seen.title == "owned"
    assert set(requests) >= {"/image", "/style", "/frame", "/script", "/background"}

    requests.clear()
    page.write_text(planted, encoding="utf-8")
    seen = visit(page, tmp_path / "guarded")
    assert seen.title == "stub-writer · PASS · halo-forge run report"
    assert [path for path in requests if path != "/favicon.ico"] == []
    assert sum("Content Security Policy" in line for line in seen.complaints) >= 5
