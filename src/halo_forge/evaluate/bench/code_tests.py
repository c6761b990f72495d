"""Programs of a benchmark against the benchmark's tests: in the sandbox, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, util

CodeTest = Callable[[str, str, str, str], bool]
"""(program, its tests, the function they call, definitions that both use) -> did it pass."""


def sandbox_tests() -> tuple[CodeTest | None, str]:
    """(how to test a program, "") or (None, why generated code is not run here)."""
    if util.find_spec("halo_forge.sandbox") is None:
        return None, "generated code runs only in the sandbox, which this installation does not have"
    sandbox = import_module("halo_forge.sandbox")
    status = sandbox.sandbox_status()
    if not status.available:
        return None, f"generated code runs only in the sandbox, which does not hold here: {status.reason}"

    def passes(program: str, tests: str, entry_point: str, setup: str) -> bool:
        return bool(sandbox.run_tests(program, tests, [entry_point], setup=setup).passed)

    return passes, ""
