"""Foreign code in processes of its own, judged from outside.

    run_program    a script with its standard input -> what it printed
    compiles       does it compile
    run_tests      do its functions pass tests that it never sees

The verdict is never the judged process's own: printed output is compared by the caller, and tests run in a second
sandboxed process that calls the code by value (child.py). Exit codes are recorded and decide nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack

from halo_forge.sandbox.limits import Ending, Limits, Outcome, Verdict
from halo_forge.sandbox.process import Child, pipe, scratch_directory, start, unnamed_file, watch

DEFAULT = Limits()
NOT_SAID = "no verdict: the process ended early"


def run_program(code: str, stdin: str = "", limits: Limits = DEFAULT) -> Outcome:
    """Run a Python program. Its output is data: what it claims about itself is for the caller to compare."""
    began = time.monotonic()
    with scratch_directory(limits) as scratch, unnamed_file(stdin.encode(errors="replace")) as given:
        with ExitStack() as held:
            child = start(held, {"role": "program", "code": code}, scratch, limits, stdin=given)
            ending = watch([child], child, scratch, limits)
        return Outcome(
            ending=ending, exit_code=child.process.returncode, stdout=bytes(child.stdout), stderr=bytes(child.stderr),
            time_s=time.monotonic() - began,
        )  # fmt: skip


def compiles(code: str, limits: Limits = DEFAULT) -> Verdict:
    """Whether Python compiles the code. Nothing of it is run; the compiler itself is held to the limits."""
    nonce = secrets.token_hex(16)
    with scratch_directory(limits) as scratch, ExitStack() as held:
        told, tell = pipe(held)
        order = {"role": "compile", "code": code, "nonce": nonce, "verdict": tell.fileno()}
        child = start(held, order, scratch, limits)
        tell.close()
        ending = watch([child], child, scratch, limits, verdict=told)
    return _verdict(child, ending, nonce)


def run_tests(code: str, tests: str, entry_points: Sequence[str], setup: str = "", limits: Limits = DEFAULT) -> Verdict:
    """Run `tests` against the functions `entry_points` of `code`.

    tests   statements (assert, or raise); where they define `check`, it is called with the first entry point
    setup   run before both: imports and definitions that code and tests share. What the tests use beside the entry
            points comes from here, never from the code under test
    Arguments and results cross by value (values.py): a function that changes its argument in place, or returns an
    object of a class of its own, cannot be tested this way.
    """
    nonce = secrets.token_hex(16)
    shared = {"setup": setup, "entry_points": list(entry_points)}
    with scratch_directory(limits) as scratch, ExitStack() as held:
        (asked, ask), (answered, answer), (told, tell) = pipe(held), pipe(held), pipe(held)
        order = {"role": "answer", "code": code, "calls": asked.fileno(), "answers": answer.fileno(), **shared}
        answering = start(held, order, scratch, limits)
        order = {
            "role": "test", "tests": tests, "calls": ask.fileno(), "answers": answered.fileno(),
            "verdict": tell.fileno(), "nonce": nonce, **shared,
        }  # fmt: skip
        testing = start(held, order, scratch, limits)
        for end in (asked, ask, answered, answer, tell):
            end.close()
        ending = watch([answering, testing], testing, scratch, limits, verdict=told)
    return _verdict(testing, ending, nonce)


def _verdict(child: Child, ending: Ending, nonce: str) -> Verdict:
    if ending == "timed_out":
        return Verdict(status="timed_out", reason="the time is up")
    if ending != "ended":
        return Verdict(status="limit", reason=ending.replace("_", " "))
    try:
        said = json.loads(bytes(child.verdict))
        if secrets.compare_digest(said["nonce"], nonce):
            return Verdict(status=said["status"], reason=said["reason"])
    except (ValueError, KeyError, TypeError):
        pass
    return Verdict(status="failed", reason=NOT_SAID)
