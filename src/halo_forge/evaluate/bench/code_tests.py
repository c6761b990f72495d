"""Programs of a benchmark against the benchmark's tests: in the sandbox, or not at all."""

from __future__ import annotations

from collections.abc import Callable

from halo_forge.sandbox import run_tests, sandbox_status

CodeTest = Callable[[str, str, str, str], bool]
"""(program, its tests, the function they call, definitions that both use) -> did it pass."""


def sandbox_tests() -> tuple[CodeTest | None, str]:
    """(how to test a program, "") or (None, why generated code is not run here)."""
    status = sandbox_status()
    if not status.available:
        return None, f"generated code runs only in the sandbox, which does not hold here: {status.reason}"

    def passes(program: str, tests: str, entry_point: str, setup: str) -> bool:
        return bool(run_tests(program, tests, [entry_point], setup=setup).passed)

    return passes, ""
