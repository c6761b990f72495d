"""Does the sandbox hold on this machine, now? Asked with real attacks before the first foreign line is run.

Kernels lack parts, containers switch some off. Where one attack gets through, or honest code does not, foreign code is
not run at all, and what was to be measured with it is `not_measured`, with the reason.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from halo_forge.sandbox.limits import Limits, Unavailable
from halo_forge.sandbox.lockdown import landlock_abi
from halo_forge.sandbox.run import run_program, run_tests
from halo_forge.sandbox.syscalls import ARCHITECTURES

PROBES = {
    "read a file outside": "open(CANARY).read()",
    "write a file outside": "open(CANARY, 'a')",
    "make a file outside": "open(CANARY + '.new', 'x')",
    "list a directory outside": "os.listdir(os.path.dirname(CANARY))",
    "remove a file outside": "os.unlink(CANARY)",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read another process's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "open an internet socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "open a local socket": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "start a process": "os.fork() or os._exit(0)",
    "start a program": "os.execv('/bin/true', ['true'])",
    "start a thread": "_thread.start_new_thread(print, ())",
    "trace the parent": "checked(libc.ptrace(16, os.getppid(), 0, 0))",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "become root": "os.setuid(0)",
    "make a namespace": "checked(libc.unshare(0x10000000))",
    "use io_uring": "checked(libc.syscall(425, 1, ctypes.create_string_buffer(256)))",
    "take more memory than allowed": "bytearray(1 << 29)",
    "write more than one file may hold": "open('full', 'wb').write(bytes(1 << 20))",
}
"""What must fail, each with an exception."""

_SCRIPT = """
import _thread, ctypes, json, os, resource, signal, socket, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
CANARY, PROBES = {canary!r}, {probes!r}
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
through = []
for name, probe in PROBES.items():
    try:
        {run}(probe)
    except (OSError, RuntimeError, MemoryError, ValueError):
        continue
    through.append(name)
print(json.dumps(through))
"""
LIMITS = Limits(wall_s=10.0, cpu_s=3, memory_bytes=256 << 20, file_bytes=64 << 10)
GUESS = "def f(x):\n    import os\n    os._exit(0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """`reason` is empty where the sandbox may be used. `num_attacks` were tried, none came through."""

    available: bool
    reason: str
    machine: str
    kernel: str
    landlock_abi: int
    num_attacks: int


@cache
def sandbox_status() -> SandboxStatus:
    """The sandbox's test of itself, once in a process. Takes about half a second."""
    try:
        num_attacks, reason = _attack(LIMITS), ""
    except (Unavailable, OSError) as error:
        num_attacks, reason = 0, str(error)
    return SandboxStatus(
        available=not reason, reason=reason, machine=platform.machine(), kernel=platform.release(),
        landlock_abi=landlock_abi() if sys.platform == "linux" else 0, num_attacks=num_attacks,
    )  # fmt: skip


def require_sandbox() -> SandboxStatus:
    """Raise Unavailable, with the reason, unless the sandbox has shown that it holds."""
    status = sandbox_status()
    if not status.available:
        raise Unavailable(status.reason)
    return status


def _attack(limits: Limits) -> int:
    """Try everything; the number of attacks, or Unavailable where one came through or honest code did not."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise Unavailable(f"no sandbox for {sys.platform} on {platform.machine()}: Linux on x86_64 or aarch64 only")
    if not landlock_abi():
        raise Unavailable(f"this kernel ({platform.release()}) has no Landlock, or it is switched off")
    with tempfile.TemporaryDirectory(prefix="halo-forge-canary-") as directory:
        canary = Path(directory, "canary")
        canary.write_text("untouched")
        canary.chmod(0o666)
        Path(directory).chmod(0o777)
        script = _SCRIPT.format(canary=str(canary), probes=PROBES, run="exec")
        outcome = run_program(script, limits=limits)
        try:
            through = json.loads(outcome.stdout)
        except ValueError:
            told = outcome.stderr.decode(errors="replace").strip().splitlines()
            raise Unavailable(f"the sandbox ends honest code: {told[-1] if told else outcome.ending}") from None
        if not canary.exists() or canary.read_text() != "untouched":
            through.append("change a file outside")
    if through:
        raise Unavailable(f"the sandbox does not hold here; what came through: {', '.join(through)}")
    _judge(limits)
    return len(PROBES) + 4


def _judge(limits: Limits) -> None:
    """The verdict follows the values and nothing else; endless work and endless output are ended."""
    tests = "assert f(2) == 4"
    if not run_tests("def f(x):\n    return x * x", tests, ["f"], limits=limits).passed:
        raise Unavailable("a right answer does not pass its tests in the sandbox")
    for forgery in ("def f(x):\n    return x", GUESS):
        if run_tests(forgery, tests, ["f"], limits=limits).passed:
            raise Unavailable("a wrong answer passes its tests in the sandbox")
    if run_program("while True: pass", limits=replace(limits, wall_s=0.2)).ending != "timed_out":
        raise Unavailable("the sandbox does not end what takes too long")
    if run_program("while True: print('x' * 9999)", limits=replace(limits, wall_s=5.0)).ending != "output_limit":
        raise Unavailable("the sandbox does not end what prints too much")
