"""The doors that a process closes behind itself, for good: limits, identity, Landlock, seccomp. Linux, no privilege.

Runs in the child, before any foreign code. The kernel is called through ctypes; nothing is installed. Each function
raises OSError where the kernel refuses, and the child then ends before it has run anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Collection, Sequence

from halo_forge.sandbox.syscalls import seccomp_program

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
SECCOMP_MODE_FILTER = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAP_DAC_READ_SEARCH = 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 5, 1 << 8, 1 << 14
READING = READ_FILE | READ_DIR
WRITING = READING | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
"""Landlock version -> how many kinds of access to files it knows; later ones know 16."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def lock_down(
    limits: dict[str, int], readable: Sequence[str], scratch: str, keep: Collection[int], without: Collection[str] = ()
) -> None:
    """Close every door. There is no way back.

    limits    cpu_s, memory_bytes, file_bytes, open_files
    readable  files and directories that may be read
    scratch   the one directory in which plain files may be made, written and removed
    keep      open files beside 0, 1 and 2
    without   protections that are left out, by name: for the tests that show what each one holds
    """
    if "closed_files" not in without:
        _close_all_but({0, 1, 2, *keep})
    os.umask(0o077)
    if "limits" not in without:
        _limit(limits)
    if "identity" not in without:
        _become_nobody(readable)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_PDEATHSIG, 9)  # a change of identity clears it, so after that
    _prctl(PR_SET_DUMPABLE, 0)
    if "landlock" not in without:
        _restrict_files(readable, scratch)
    if "seccomp" not in without:
        _filter_calls()


def _close_all_but(keep: Collection[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                continue


def _limit(limits: dict[str, int]) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),  # soft and hard alike: no handler gets to see it
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _become_nobody(readable: Sequence[str]) -> None:
    """Root gives up its name, and everybody every power. Where Python's own library is closed to others (it lies in
    root's home) the one power to read past that is kept; Landlock still holds it to that library."""
    kept = 0
    if os.getuid() == 0:
        kept = 0 if all(map(_open_to_others, readable)) else 1 << CAP_DAC_READ_SEARCH
        _prctl(PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=II", 0x20080522, 0)
    sets = struct.pack("=IIIIII", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; low words, high words
    _checked(_libc.syscall(SYS_CAPSET[platform.machine()], header, sets), "capset")


def _open_to_others(path: str) -> bool:
    while True:
        if not os.stat(path).st_mode & 0o005:
            return False
        parent = os.path.dirname(path)
        if parent == path:
            return True
        path = parent


def _restrict_files(readable: Sequence[str], scratch: str) -> None:
    abi = landlock_abi()
    if not abi:
        raise OSError("the kernel has no Landlock")
    handled = (1 << RIGHTS_OF_ABI.get(abi, 16)) - 1
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", 0b11)  # TCP: bind, connect
    if abi >= 6:
        attributes += struct.pack("=Q", 0b11)  # signals and abstract sockets stay inside
    ruleset = _checked(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    rules = [(path, READING) for path in readable]
    rules += [("/dev/null", READ_FILE | WRITE_FILE), ("/dev/urandom", READ_FILE), (scratch, WRITING)]
    for path, rights in rules:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights &= handled if os.path.isdir(path) else handled & FILE_RIGHTS
        rule = struct.pack("=Qi", rights, beneath)
        _checked(_libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
        os.close(beneath)
    _checked(_libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def _filter_calls() -> None:
    program = seccomp_program(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(filter_, len(filter_)))


def _prctl(option: int, argument: object, second: object = 0) -> None:
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (argument, second, 0, 0)]
    _checked(_libc.prctl(option, *words), f"prctl {option}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
