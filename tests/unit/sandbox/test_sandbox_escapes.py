"""Nothing gets out: every attempt is refused, and gets through as soon as what holds it is taken away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halo_forge.sandbox import Limits, Outcome, run_program
from unit.sandbox.escape_attempts import ATTEMPTS, PREAMBLE, RUNNER

SMALL = {"wall_s": 20.0, "cpu_s": 10, "memory_bytes": 256 << 20, "file_bytes": 1 << 20}
HELD = {name: attempt for name, attempt in ATTEMPTS.items() if attempt.held_by}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file outside that everybody may read, write and delete."""
    path = tmp_path / "canary"
    path.write_text("untouched")
    path.chmod(0o666)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777 if directory == tmp_path else 0o755)
    return path


def attempt(name: str, canary: Path, without: frozenset[str] = frozenset()) -> Outcome:
    code = PREAMBLE.format(canary=str(canary)) + RUNNER.format(code=ATTEMPTS[name].code)
    return run_program(code, limits=Limits(**SMALL, without=without))


def test_there_are_enough() -> None:
    assert len(ATTEMPTS) >= 100
    assert len(HELD) >= 70


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_attempt_gets_through(name: str, canary: Path) -> None:
    outcome = attempt(name, canary)
    said = outcome.stdout.decode().split()
    assert said[:1] == ["refused"], (outcome.stdout, outcome.stderr)
    assert ATTEMPTS[name].refused in ("?", said[1]), outcome
    assert [path.name for path in canary.parent.iterdir()] == ["canary"]
    assert canary.read_text() == "untouched"


@pytest.mark.parametrize("name", HELD)
def test_it_gets_through_without_what_holds_it(name: str, canary: Path) -> None:
    if "identity" in HELD[name].held_by and os.geteuid() != 0:
        pytest.skip("a plain user has no other identity to keep")
    outcome = attempt(name, canary, frozenset(HELD[name].held_by.split()))
    assert outcome.stdout.split()[:1] == [b"through"], (outcome.stdout, outcome.stderr)
