"""Every look at a holdout is counted once: through crashes, and with several processes at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from halo_forge.data.holdout import HoldoutUses, record_use, uses
from halo_forge.errors import DataError

SHA = "ab" * 32
WRITER = """
import sys
from pathlib import Path
from halo_forge.data.holdout import record_use
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    record_use(sys.argv[1], "evaluate", sys.argv[4] * 500, Path(sys.argv[2]))
"""


def test_a_use_is_counted_with_its_run(tmp_path: Path) -> None:
    assert uses(SHA, tmp_path) == HoldoutUses(0, 0, None, None)
    record_use(SHA, "evaluate", "runs/a", tmp_path)
    record_use(SHA, "evaluate", "runs/a", tmp_path)
    found = record_use(SHA, "baseline", "runs/ünï\n", tmp_path)
    assert (found.num, found.runs, found.unreadable) == (3, 2, 0)
    assert found.first is not None
    assert found.last is not None
    assert found.first <= found.last
    assert found == uses(SHA, tmp_path)
    assert uses("cd" * 32, tmp_path).num == 0
    lines = (tmp_path / "holdouts" / f"{SHA}.jsonl").read_text().splitlines()
    assert [json.loads(line)["purpose"] for line in lines] == ["evaluate", "evaluate", "baseline"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (HoldoutUses(0, 0, None, None), "this holdout has not been used yet"),
        (HoldoutUses(1, 1, "t", "t"), "this holdout has been used once by 1 run; every look adapts you to it"),
        (HoldoutUses(12, 3, "t", "u"), "this holdout has been used 12 times by 3 runs; every look adapts you to it"),
    ],
)
def test_the_report_says_it_in_a_sentence(found: HoldoutUses, words: str) -> None:
    assert found.words() == words


@pytest.mark.parametrize("torn", [b'{"at": "2026-01-01T00:00:00+00:00", "pur', b"\xff\xfe", b"[[[["])
def test_a_torn_last_line_costs_nothing_but_its_run(tmp_path: Path, torn: bytes) -> None:
    record_use(SHA, "evaluate", "runs/a", tmp_path)
    path = tmp_path / "holdouts" / f"{SHA}.jsonl"
    with open(path, "ab") as file:
        file.write(torn)
    assert (uses(SHA, tmp_path).num, uses(SHA, tmp_path).unreadable) == (2, 1)
    found = record_use(SHA, "evaluate", "runs/b", tmp_path)
    assert (found.num, found.runs, found.unreadable) == (3, 2, 1)
    assert json.loads(path.read_bytes().split(b"\n")[-2])["run"] == "runs/b"


def test_processes_at_the_same_moment_lose_no_use(tmp_path: Path) -> None:
    """Four writers of long lines, started together over a torn line."""
    (tmp_path / "holdouts").mkdir()
    (tmp_path / "holdouts" / f"{SHA}.jsonl").write_bytes(b'{"torn')
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, SHA, str(tmp_path), "25", name], stdin=subprocess.PIPE)
        for name in "abcd"
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    found = uses(SHA, tmp_path)
    assert (found.num, found.runs, found.unreadable) == (101, 4, 1)


def test_without_a_directory_it_is_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_FORGE_CACHE", str(tmp_path / "cache"))
    record_use(SHA, "evaluate", "runs/a")
    assert (tmp_path / "cache" / "holdouts" / f"{SHA}.jsonl").exists()
    assert uses(SHA).num == 1


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be counted") as caught:
        record_use(SHA, "evaluate", "runs/a", tmp_path / "file")
    assert "HALO_FORGE_CACHE" in str(caught.value.fix)
    for name in ("../../etc/passwd", "", "ab" * 31, "AB" * 32, SHA + "\n"):
        with pytest.raises(DataError, match="not the hash"):
            record_use(name, "evaluate", "runs/a", tmp_path)
    assert os.listdir(tmp_path) == ["file"]
