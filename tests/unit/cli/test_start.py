"""A command that trains starts itself again with memory settings that glibc reads at the start; nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from halo_forge.cli.main import Group, commands
from halo_forge.cli.start import COMMANDS_THAT_TRAIN, MALLOC_SETTINGS, with_malloc_settings

SCRIPT = """
import os, sys
from halo_forge.cli import main, start
print("started", os.getpid(), flush=True)
main.main = lambda: print("ran", os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
start.main()
"""
LOADERS = [*Path("/lib64").glob("ld-linux*.so*"), *Path("/lib").glob("ld-linux*.so*")]


def test_only_commands_that_train_start_again() -> None:
    assert with_malloc_settings({"A": "1"}, ["sft", "train"]) == {"A": "1", "GLIBC_TUNABLES": MALLOC_SETTINGS}
    for arguments in ([], ["--help"], ["data", "check"], ["gate"]):
        assert with_malloc_settings({}, arguments) is None


def test_settings_of_the_user_s_own_stay() -> None:
    assert with_malloc_settings({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, ["run"]) is None
    assert with_malloc_settings({"HALO_FORGE_MALLOC_SETTINGS": "0"}, ["run"]) is None


def test_every_command_that_trains_is_named() -> None:
    groups = {name for name, entry in commands().items() if isinstance(entry, Group) and "sft" in entry.commands}
    assert {"demo", "run", "sft", "iterate", *groups} == COMMANDS_THAT_TRAIN


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize(
    ("words", "is_off", "num_starts"), [(["run", "a b", "--x=1"], False, 2), (["run"], True, 1), (["doctor"], False, 1)]
)
def test_it_stays_the_same_process_with_the_same_words(
    words: list[str], is_off: bool, num_starts: int, tmp_path: Path
) -> None:
    script = tmp_path / "start.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["HALO_FORGE_MALLOC_SETTINGS"] = "0" if is_off else "1"
    process = subprocess.Popen(
        [sys.executable, str(script), *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    *starts, ran = said.splitlines()
    assert starts == [f"started {process.pid}"] * num_starts
    settings = MALLOC_SETTINGS if num_starts == 2 else None
    assert ran == f"ran {process.pid} {settings} {words}"


@pytest.mark.skipif(not LOADERS, reason="another C library")
def test_glibc_knows_the_settings() -> None:
    shown = subprocess.run(
        [str(LOADERS[0]), "--list-tunables"], env={"GLIBC_TUNABLES": MALLOC_SETTINGS}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if shown.returncode:
        pytest.skip("a loader that lists nothing")
    values = dict(line.split(":")[:2] for line in shown.stdout.splitlines() if line.startswith("glibc.malloc."))
    for setting in MALLOC_SETTINGS.split(":"):
        name, value = setting.split("=")
        assert int(values[name].split()[0], 16) == int(value), values[name]
