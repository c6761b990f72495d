"""Foreign code, run so that it can do no harm and cannot lie about itself. Linux; no privilege, no daemon, no torch.

limits.py    what it may use          run.py       programs, compiling, tests: the way in
process.py   one process, watched     child.py     the program inside
lockdown.py  limits, identity, Landlock, seccomp   syscalls.py  what may be asked of the kernel
values.py    results that carry no behaviour       selftest.py  does all of this hold on this machine?
"""

from halo_forge.sandbox.limits import Limits, Outcome, Unavailable, Verdict
from halo_forge.sandbox.run import compiles, run_program, run_tests
from halo_forge.sandbox.selftest import require_sandbox, sandbox_status

__all__ = [
    "Limits",
    "Outcome",
    "Unavailable",
    "Verdict",
    "compiles",
    "require_sandbox",
    "run_program",
    "run_tests",
    "sandbox_status",
]
