"""What locked-down code may ask of the kernel: a list of what is allowed, in the numbers of x86_64 and aarch64.

Everything else answers EPERM: new processes and threads (clone, fork, vfork, execve), sockets of any family, ptrace
and process_vm_*, io_uring, bpf, userfaultfd, keyctl, mount, unshare, chroot, setuid, memfd_create, shared memory, and
whatever the kernel gets next year. A program that asks in another machine's numbers (32 bit on x86_64) is killed.

Sources: seccomp(2), asm/unistd_64.h, asm-generic/unistd.h. Imported by the child before it is locked, so the standard
library only.
"""

from __future__ import annotations

import struct

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""machine -> (AUDIT_ARCH_*, column of NUMBERS)."""

_: None = None  # aarch64 has no such call: an older form of another
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "newfstatat": (262, 79), "fstat": (5, 80), "lseek": (8, 62),
    "openat": (257, 56), "mmap": (9, 222), "munmap": (11, 215), "brk": (12, 214), "futex": (202, 98),
    "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "ioctl": (16, 29), "fcntl": (72, 25), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "dup": (32, 23), "dup2": (33, _), "dup3": (292, 24), "pipe": (22, _), "pipe2": (293, 59),
    "stat": (4, _), "lstat": (6, _), "statx": (332, 291), "access": (21, _), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, _), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "unlink": (87, _), "unlinkat": (263, 35), "rename": (82, _), "renameat": (264, 38),
    "renameat2": (316, 276), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "flock": (73, 32),
    "poll": (7, _), "ppoll": (271, 73), "select": (23, _), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, _), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, _), "times": (100, 153), "getrusage": (98, 165), "getrandom": (318, 278),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "prlimit64": (302, 261), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "umask": (95, 166), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "kill": (62, 129), "tgkill": (234, 131), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

IOCTLS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # is it a terminal, how large, bytes waiting, close-on-exec
FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags; not F_SETOWN, which makes the kernel signal another process
O_TRUNC, O_ACCMODE = 0o1000, 0o3

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, operand) of classic BPF."""


def seccomp_program(machine: str, pid: int) -> bytes:
    """The filter as an array of `struct sock_filter`. `pid` is the process it is for: signals reach itself only.
    KeyError for a machine whose numbers are not known."""
    arch, column = ARCHITECTURES[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER),
    ]  # fmt: skip
    for name, numbers in NUMBERS.items():
        number = numbers[column]
        if number is not None:
            block = _checks(name, pid)
            program += [(_EQUAL, 0, len(block), number), *block]
    program.append((_RETURN, 0, 0, _EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _checks(name: str, pid: int) -> list[Instruction]:
    """What follows when the number is this call's: every path returns."""
    if name == "ioctl":
        return _argument_is_one_of(1, IOCTLS)
    if name == "fcntl":
        return _argument_is_one_of(1, FCNTLS)
    if name in ("kill", "tgkill"):
        return _argument_is_one_of(0, (pid,))
    if name == "prlimit64":  # reading one's own limits: pid 0 and no new limit (a pointer, two words)
        words = [_ARGUMENTS, _ARGUMENTS + 16, _ARGUMENTS + 20]
        tests = [step for word in words for step in ((_LOAD, 0, 0, word), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _EPERM))]
        return [*tests, (_RETURN, 0, 0, _ALLOW)]
    if name == "openat":  # Landlock before its third version lets a file that may be read be emptied
        flags = _ARGUMENTS + 16
        return [
            (_LOAD, 0, 0, flags), (_AND, 0, 0, O_TRUNC | O_ACCMODE), (_EQUAL, 0, 1, O_TRUNC), (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]  # fmt: skip
    return [(_RETURN, 0, 0, _ALLOW)]


def _argument_is_one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """The low word decides: the kernel reads these arguments as 32 bits."""
    tests = [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * index), *tests, (_RETURN, 0, 0, _EPERM)]
