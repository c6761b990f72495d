"""`halo-forge doctor`: is this machine fit to train, and if not, which command mends it.

`examine` looks and never changes anything. Looking and judging are apart: the functions called `judge_*` are pure, so
that machines we do not have (a GPU with the wrong torch, a Strix Halo, a full disk) are tested by their records.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from halo_forge.doctor import hardware, software
from halo_forge.doctor.finding import PACKAGE, Finding

__all__ = ["Finding", "examine"]


def examine(hub: bool = True) -> list[Finding]:
    """Everything that decides whether a run can work here, in the order a run meets it. Takes a few seconds (torch is
    imported). hub=False, or HF_HUB_OFFLINE=1, sends nothing to the network. Tokens are never shown."""
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("python", hardware.python_findings),
        ("torch", hardware.torch_findings),
        ("cpu", hardware.cpu_findings),
        ("memory", hardware.memory_findings),
        ("gpu memory", hardware.gpu_memory_findings),
        ("bf16", hardware.bf16_findings),
        ("disk", hardware.disks_findings),
        ("cache", software.caches_findings),
        ("hub", lambda: software.hub_findings(hub)),
        ("token", software.token_findings),
        ("libraries", software.libraries_findings),
        ("embedded model", software.embedded_findings),
        ("extras", software.extras_findings),
        ("media", software.media_findings),
        ("sandbox", software.sandbox_findings),
        ("platform", hardware.platform_findings),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            with warnings.catch_warnings():  # torch warns about drivers while we ask; the finding says it better
                warnings.simplefilter("ignore")
                findings.extend(check())
        except Exception as error:  # a doctor who faints helps nobody: say what could not be seen, and go on
            detail = f"could not be examined: {type(error).__name__}: {error}".splitlines()[0]
            fix = f"pip install --force-reinstall {PACKAGE}" if isinstance(error, ImportError) else None
            findings.append(Finding(name=name, status="warning", detail=detail, fix=fix))
    return findings
