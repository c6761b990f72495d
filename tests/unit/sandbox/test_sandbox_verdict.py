"""A verdict cannot be forged: a wrong answer never passes, whatever it does besides, and a right one always does."""

# ruff: noqa: E501 - an attack a line

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from halo_forge.sandbox import Limits, Unavailable, compiles, run_program, run_tests, selftest
from halo_forge.sandbox import process as sandbox_process

QUICK = Limits(wall_s=20.0, cpu_s=5, memory_bytes=256 << 20)
TESTS = "assert square(3) == 9\nassert [square(x) for x in (1, 2)] == [1, 4]\n"
WRONG = "def square(x):\n    return 0\n"
PASSED = """'{"status": "passed", "nonce": "", "reason": ""}\\n'"""
FORGERIES = {
    "prints that it passed": f"print({PASSED})\n{WRONG}",
    "ends with success": "import os\nos._exit(0)",
    "ends with success when asked": "import os\ndef square(x):\n    os._exit(0)",
    "exits": "raise SystemExit(0)",
    "exits when asked": "def square(x):\n    raise SystemExit(0)",
    "ends at exit": f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG}",
    "is killed": "import os, signal\ndef square(x):\n    os.kill(os.getpid(), signal.SIGKILL)",
    "writes a verdict everywhere": f"import os\nfor f in range(64):\n    try: os.write(f, {PASSED}.encode())\n    except OSError: pass\n{WRONG}",
    "answers before it is asked": "import os\nfor f in range(3, 64):\n    try: os.write(f, b'{\"ready\": true}\\n' * 9)\n    except OSError: pass\n" + WRONG,
    "closes everything": f"import os\nos.closerange(0, 64)\n{WRONG}",
    "speaks nonsense": "import os\nfor f in range(3, 64):\n    try: os.write(f, b'][\\n' * 9)\n    except OSError: pass\n" + WRONG,
    "always equal": "class Equal:\n    __eq__ = lambda a, b: True\n    __ne__ = lambda a, b: False\ndef square(x):\n    return Equal()",
    "always equal number": "class Equal(int):\n    __eq__ = lambda a, b: True\n    __hash__ = int.__hash__\ndef square(x):\n    return Equal(0)",
    "always equal list": "class Equal(list):\n    __eq__ = lambda a, b: True\ndef square(x):\n    return Equal()",
    "always equal text": "class Equal(str):\n    __eq__ = lambda a, b: True\n    __str__ = lambda s: s\ndef square(x):\n    return Equal('x')",
    "ends the loop": "def square(x):\n    raise StopIteration",
    "closes the generator": "def square(x):\n    raise GeneratorExit",
    "interrupts": "def square(x):\n    raise KeyboardInterrupt",
    "an error named like ours": "class BadTests(Exception): pass\ndef square(x):\n    raise BadTests('the tests never call the code')",
    "an error that lies": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef square(x):\n    raise E",
    "patches assert": f"import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {{'__new__': lambda *a: 1 / 0}})\n{WRONG}",
    "patches comparison": f"import operator, builtins\noperator.eq = lambda a, b: True\nbuiltins.all = lambda x: True\nbuiltins.int = type('I', (int,), {{'__eq__': lambda a, b: True}})\n{WRONG}",
    "patches json": f"import json\njson.dumps = lambda *a, **k: {PASSED}\njson.loads = lambda *a, **k: {{'status': 'passed'}}\n{WRONG}",
    "patches print": f"import builtins\nbuiltins.print = lambda *a, **k: None\n{WRONG}",
    "walks the frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for names in (frame.f_locals, frame.f_globals):\n"
        "        for name, value in list(names.items()):\n"
        "            if callable(value) and name not in ('exec', 'square'):\n"
        "                try: frame.f_globals[name] = lambda *a, **k: {'value': '{\"int\": \"9\"}'}\n"
        "                except Exception: pass\n"
        "            if isinstance(value, dict):\n"
        "                try: value['status'] = 'passed'\n"
        "                except Exception: pass\n"
        "    frame = frame.f_back\n" + WRONG
    ),
    "searches the memory for the tests": (
        "import gc\nfound = [t for o in gc.get_objects() for t in (o.values() if type(o) is dict else ()) "
        "if isinstance(t, str) and 'square(3) == 9' in t.replace('found', '')]\n"
        "def square(x):\n    return x * x if [t for t in found if 'gc' not in t] else 0"
    ),
    "imports the grader": (
        f"import sys\nsys.path += [{str(Path(sandbox_process.__file__).parents[2])!r}]\ntry:\n"
        "    import halo_forge.sandbox.run as run\n    run.run_tests = lambda *a, **k: True\nexcept Exception: pass\n" + WRONG
    ),
    "traces every call": f"import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n{WRONG}",
    "answers from a thread": f"import threading\ntry: threading.Thread(target=lambda: print({PASSED})).start()\nexcept RuntimeError: pass\n{WRONG}",
    "defines check": "def check(candidate): pass\ndef square(x):\n    return 0",
    "returns without end": "def square(x):\n    while True: yield 9",
    "returns too much": "def square(x):\n    return 'x' * 3_000_000",
    "returns too deep": "def square(x):\n    r = []\n    for _ in range(100_000): r = [r]\n    return r",
    "returns itself": "def square(x):\n    r = []\n    r.append(r)\n    return r",
    "returns a function": "def square(x):\n    return lambda: 9",
    "returns a wide number": "def square(x):\n    return 10 ** 200_000",
    "returns not a number": "def square(x):\n    return float('nan')",
    "removes the function": "def square(x):\n    del globals()['square']\n    return 0",
    "is no function": "square = 9",
    "is not there": "cube = 9",
    "does not compile": "def square(x: return x",
    "prints without end": "def square(x):\n    while True: print('x' * 9999)",
    "fills the disk": "def square(x):\n    for n in range(10_000): open(str(n), 'w').write('x' * 99_999)",
    "eats memory": "def square(x):\n    return bytearray(1 << 30)",
    "crashes the interpreter": "import ctypes\ndef square(x):\n    ctypes.string_at(0)",
    "exhausts the stack": "import sys\nsys.setrecursionlimit(1 << 30)\ndef square(x):\n    return square(x)",
}  # fmt: skip
EVASIONS = {
    "works without end": "def square(x):\n    while True: pass",
    "sleeps": "import time\ntime.sleep(99)",
    "ignores signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
}  # fmt: skip
FOOLS_THE_NAIVE = (
    "ends with success", "exits", "ends at exit", "always equal", "always equal number", "always equal list",
    "always equal text",
)  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_wrong_answer_never_passes(name: str) -> None:
    """Nor does it make its tests look bad. Those that break their own process may leave it waiting."""
    verdict = run_tests(FORGERIES[name], TESTS, ["square"], limits=replace(QUICK, wall_s=6.0))
    assert verdict.status in ("failed", "limit", "timed_out"), verdict


@pytest.mark.parametrize("name", EVASIONS)
def test_what_does_not_end_is_ended(name: str) -> None:
    verdict = run_tests(EVASIONS[name], TESTS, ["square"], limits=replace(QUICK, wall_s=0.5))
    assert verdict.status == "timed_out", verdict


@pytest.mark.parametrize("name", FOOLS_THE_NAIVE)
def test_the_same_forgery_fools_a_grader_in_one_process(name: str) -> None:
    """The control: exit code 0 of code and tests in one interpreter, as HumanEval's own harness has it, passes."""
    code = FORGERIES[name] + "\n" + TESTS
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=20)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("code", "tests", "names", "setup"),
    [
        ("def square(x):\n    return x * x", TESTS, ["square"], ""),
        ("def f(a, *, b=2):\n    return {(a, b): {a}, 'k': [1.5, None, b'x', 1j]}",
         "assert f(1, b=3) == {(1, 3): {1}, 'k': [1.5, None, b'x', 1j]}", ["f"], ""),
        ("def f(x):\n    raise KeyError(x)", "try:\n    f('a')\nexcept KeyError as e:\n    assert 'a' in str(e)\n"
         "else:\n    assert False", ["f"], ""),
        ("def f(n):\n    return (i for i in range(n))", "assert list(f(3)) == [0, 1, 2]", ["f"], ""),
        ("def f(x):\n    return math.sqrt(x)", "assert math.isclose(f(4), 2)", ["f"], "import math"),
        ("def f(x):\n    return x + 1\ndef g(x):\n    return f(x) * 2", "assert g(f(1)) == 6", ["f", "g"], ""),
        ("import sys\nprint('x' * 999)\ndef f(x):\n    print(x, file=sys.stderr)\n    return x",
         "def check(candidate):\n    assert candidate(float('inf')) == float('inf')", ["f"], ""),
    ],
)  # fmt: skip
def test_a_right_answer_passes(code: str, tests: str, names: list[str], setup: str) -> None:
    verdict = run_tests(code, tests, names, setup, limits=QUICK)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("assert sqare(3) == 9", "sqare"),
        ("assert True", "never call"),
        ("import numpy\nassert square(3) == 9", "numpy"),
        ("assert square(lambda: 3) == 9", "cannot be passed"),
        ("assert (", "SyntaxError"),
    ],
)
def test_bad_tests_say_nothing_about_the_answer(tests: str, words: str) -> None:
    verdict = run_tests("def square(x):\n    return x * x", tests, ["square"], limits=QUICK)
    assert verdict.status == "bad_tests"
    assert words in verdict.reason


def test_only_a_line_with_the_nonce_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the code under test did hold the verdict pipe, the nonce would still be missing."""
    monkeypatch.setattr("halo_forge.sandbox.run.secrets.compare_digest", lambda a, b: False)
    assert run_tests("def square(x):\n    return x * x", TESTS, ["square"], limits=QUICK).status == "failed"


def test_compiling_runs_nothing(tmp_path: Path) -> None:
    assert compiles("raise SystemExit\nopen('x', 'w')").passed
    assert compiles("def f(:").status == "failed"
    assert not compiles("(" * 100_000 + ")" * 100_000).passed
    assert not compiles("x = '\0'").passed
    assert not compiles("-" * 3_000_000 + "1", limits=replace(QUICK, wall_s=5.0)).passed


# ------------------------------------------------------------------------------------------------ limits from outside


def test_endings() -> None:
    quick = replace(QUICK, wall_s=0.4)
    assert run_program("import time; time.sleep(60)", limits=quick).ending == "timed_out"
    assert run_program("import os; os.close(1); os.close(2)\nwhile True: pass", limits=quick).ending == "timed_out"
    assert run_program("while True: pass", limits=replace(QUICK, cpu_s=1)).exit_code == -9
    for stream in ("stdout", "stderr"):
        flood = run_program(f"import sys\nwhile True: sys.{stream}.write('x' * 9999)", limits=QUICK)
        assert flood.ending == "output_limit"
        assert len(flood.stdout) + len(flood.stderr) <= QUICK.output_bytes + 1
    many = "import time\nfor n in range(500): open(str(n), 'w')\ntime.sleep(9)"
    assert run_program(many, limits=QUICK).ending == "disk_limit"
    large = "import time\nfor n in range(9): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(9)"
    assert run_program(large, limits=QUICK).ending == "disk_limit"


@pytest.mark.parametrize(
    ("protection", "code", "ending"),
    [
        ("disk", "for n in range(500): open(str(n), 'w')", "disk_limit"),
        ("output", "print('x' * 999_999)", "output_limit"),
        ("wall_time", "import time; time.sleep(1)", "timed_out"),
    ],
)
def test_each_limit_holds_by_itself(protection: str, code: str, ending: str) -> None:
    slow = f"import time\n{code}\ntime.sleep(0.3)"
    limits = replace(QUICK, wall_s=0.8 if protection == "wall_time" else 20.0)
    assert run_program(slow, limits=limits).ending == ending
    assert run_program(slow, limits=replace(limits, without=frozenset({protection}))).ending == "ended"


def test_input_output_and_an_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    show = "import os, sys\nprint(sys.stdin.read().upper(), dict(os.environ), os.listdir('.'))"
    assert run_program(show, "héllo", QUICK).stdout.decode() == "HÉLLO {} []\n"
    leaking = run_program("import ctypes\nprint(ctypes.CDLL(None).getenv(b'SECRET_TOKEN'))", limits=QUICK)
    assert leaking.stdout == b"0\n"


def test_only_its_own_files_are_open() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        looks = "import os\nfor f in range(3, 64):\n    try: print(f, os.fstat(f).st_ino)\n    except OSError: pass"
        assert run_program(looks, limits=QUICK).stdout == b""
        answers = run_tests(f"import os\ndef f():\n    return os.read({read}, 1)", "f()", ["f"], limits=QUICK)
        assert answers.status == "failed"
    finally:
        os.close(read)
        os.close(write)


def own_children() -> set[str]:
    """Process ids whose parent is this process, the ended ones that nobody waited for among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(stat.parent.name)
    return found


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.parents[1].chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors, children = len(os.listdir("/proc/self/fd")), own_children()
    run_tests("def f():\n    while True: pass", "f()", ["f"], limits=replace(QUICK, wall_s=0.2))
    assert own_children() == children  # other tests of this process may have some
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == descriptors


# ------------------------------------------------------------------------------------------------ the self-test


@pytest.mark.parametrize(
    ("protection", "words"),
    [
        ("landlock", "read a file outside"),
        ("seccomp", "open an internet socket"),
        ("limits", "more memory"),
        ("wall_time", "too long"),
        ("output", "prints too much"),
    ],
)
def test_the_self_test_refuses_where_a_part_is_missing(protection: str, words: str) -> None:
    limits = replace(selftest.LIMITS, wall_s=20.0, without=frozenset({protection}))
    if protection == "wall_time":
        limits = replace(limits, cpu_s=1)
    with pytest.raises(Unavailable, match=words):
        selftest._attack(limits)


def test_the_self_test_passes_here() -> None:
    status = selftest.require_sandbox()
    assert status.available
    assert status.num_attacks >= 20


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("landlock_abi", lambda: 0, "no Landlock"),
        ("ARCHITECTURES", {}, "Linux on x86_64 or aarch64 only"),
    ],
)
def test_no_sandbox_without_the_kernel_for_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, words: str
) -> None:
    monkeypatch.setattr(selftest, name, value)
    with pytest.raises(Unavailable, match=words):
        selftest._attack(selftest.LIMITS)


def test_a_process_that_cannot_close_its_doors_is_no_verdict() -> None:
    """A machine's fault must never look like a model's 0 %."""
    for run in (lambda limits: run_program("print(1)", limits=limits), lambda limits: compiles("1", limits)):
        with pytest.raises(Unavailable, match="could not be set up"):
            run(replace(QUICK, open_files=3))
