"""What foreign code tries in order to get out of the sandbox: one line of Python each, which raises where it is refused.

`refused` is what it must be told (an errno's name or an exception; `?` where machines differ). `held_by` names the protections whose absence, all
at once and nothing else, lets it through: the tests take them away and see it happen. Attempts without it are held twice
over by things that cannot all be taken away without harm.
"""

# ruff: noqa: E501 - an attack a line

from __future__ import annotations

import platform
from dataclasses import dataclass

X86 = platform.machine() == "x86_64"


@dataclass(frozen=True)
class Attempt:
    code: str
    refused: str
    held_by: str = ""


def _call(x86: int, arm: int, *arguments: str) -> str:
    return f"call({x86 if X86 else arm}{''.join(', ' + argument for argument in arguments)})"


PREAMBLE = """
import ctypes, errno, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
PARENT, CANARY = os.getppid(), {canary!r}
HERE = os.path.dirname(CANARY)
def words(arguments):
    return [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *words(arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
def told(error):
    return errno.errorcode.get(error.errno, "?") if isinstance(error, OSError) and error.errno else type(error).__name__
"""
RUNNER = """
try:
    {code}
except BaseException as error:
    print("refused", told(error), flush=True)
else:
    print("through", flush=True)
"""

FILES = {
    "read /etc/passwd": Attempt("open('/etc/passwd').read()", "EACCES", "landlock"),
    "read /etc/shadow": Attempt("open('/etc/shadow').read()", "EACCES", "landlock identity"),
    "list the home": Attempt("os.listdir('/home')", "EACCES", "landlock"),
    "list the root": Attempt("os.listdir('/')", "EACCES", "landlock"),
    "read a file outside": Attempt("open(CANARY).read()", "EACCES", "landlock"),
    "read it by way of ..": Attempt("open(os.path.relpath(CANARY)).read()", "EACCES", "landlock"),
    "read it from a directory descriptor": Attempt(
        "os.open('../' * 20 + CANARY, os.O_RDONLY, dir_fd=os.open('.', os.O_DIRECTORY))", "EACCES", "landlock"
    ),
    "reopen it by its descriptor": Attempt(
        "open(f'/proc/self/fd/{os.open(CANARY, os.O_PATH)}').read()", "EACCES", "landlock"
    ),
    "map it": Attempt("__import__('mmap').mmap(os.open(CANARY, os.O_RDWR), 0)", "EACCES", "landlock"),
    "write it": Attempt("open(CANARY, 'r+').write('x')", "EACCES", "landlock"),
    "append to it": Attempt("open(CANARY, 'a').write('x')", "EACCES", "landlock"),
    "empty it by path": Attempt("os.truncate(CANARY, 0)", "EPERM", "landlock seccomp"),
    "empty it while reading": Attempt("os.open(CANARY, os.O_RDONLY | os.O_TRUNC)", "EPERM", "landlock seccomp"),
    "make a file beside it": Attempt("open(CANARY + '.new', 'x')", "EACCES", "landlock"),
    "delete it": Attempt("os.unlink(CANARY)", "EACCES", "landlock"),
    "rename it": Attempt("os.rename(CANARY, CANARY + '.old')", "EACCES", "landlock"),
    "move a file out": Attempt("open('mine', 'w').close(); os.rename('mine', HERE + '/mine')", "EACCES", "landlock"),
    "link it into the scratch": Attempt("os.link(CANARY, 'mine')", "EPERM", "landlock seccomp identity"),
    "point a symbolic link at it": Attempt("os.symlink(CANARY, 'link'); open('link').read()", "EPERM", "landlock seccomp"),
    "change its mode": Attempt("os.chmod(CANARY, 0o777)", "EPERM", "seccomp identity"),
    "change its owner": Attempt("os.chown(CANARY, 0, 0)", "EPERM", "seccomp identity"),
    "change its times": Attempt("os.utime(CANARY)", "EPERM", "seccomp"),
    "hang an attribute on it": Attempt("os.setxattr(CANARY, 'user.x', b'1')", "EPERM", "seccomp"),
    "make a directory": Attempt("os.mkdir('deep')", "EPERM", "landlock seccomp"),
    "make a pipe in the file system": Attempt("os.mkfifo('pipe')", "EPERM", "landlock seccomp"),
    "make a device": Attempt("os.mknod('device', 0o020666, os.makedev(1, 1))", "EPERM", "landlock seccomp identity"),
    "leave the scratch": Attempt("os.chdir('/')", "EPERM", "seccomp"),
    "open a file by its handle": Attempt(_call(304, 265, "-100", "ctypes.create_string_buffer(64)", "0"), "EPERM"),
    "read the kernel's messages": Attempt("os.read(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 9)", "EACCES"),
    "open the machine's memory": Attempt("os.open('/dev/mem', os.O_RDWR)", "?"),
    "type into the terminal": Attempt("__import__('fcntl').ioctl(0, 0x5412, b'x')", "EPERM"),
}  # fmt: skip

PROC = {
    "look about in /proc": Attempt("os.listdir('/proc')", "EACCES", "landlock"),
    "read the own status": Attempt("open('/proc/self/status').read()", "EACCES", "landlock"),
    "write the own memory": Attempt("open('/proc/self/mem', 'r+b')", "EACCES"),
    "go round by /proc/self/root": Attempt("open('/proc/self/root/etc/passwd').read()", "EACCES"),
    "go round by the parent's root": Attempt("open(f'/proc/{PARENT}/root/etc/passwd').read()", "EACCES", "landlock identity"),
    "read the parent's variables": Attempt("open(f'/proc/{PARENT}/environ').read()", "EACCES", "landlock identity"),
    "read the parent's memory": Attempt("open(f'/proc/{PARENT}/mem', 'rb')", "EACCES", "landlock identity"),
    "list the parent's files": Attempt("os.listdir(f'/proc/{PARENT}/fd')", "EACCES", "landlock identity"),
    "read the parent's command": Attempt("open(f'/proc/{PARENT}/cmdline').read()", "EACCES", "landlock"),
    "set where cores go": Attempt("os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)", "EACCES", "landlock identity"),
    "ask not to be killed": Attempt("os.open('/proc/self/oom_score_adj', os.O_WRONLY)", "EACCES"),
}  # fmt: skip

PROCESSES = {
    "fork": Attempt("os.fork() or os._exit(0)", "EPERM", "seccomp identity limits"),
    "fork for ever": Attempt("[os.fork() or os._exit(0) for _ in range(99)]", "EPERM", "seccomp identity limits"),
    "vfork and exec": Attempt("os.posix_spawn('/bin/true', ['true'], {})", "EPERM", "landlock seccomp identity limits"),
    "run a shell": Attempt("os.system('true') and 1 / 0", "ZeroDivisionError", "landlock seccomp identity limits"),
    "run a program": Attempt("subprocess.run(['/bin/true'], check=True)", "EPERM", "landlock seccomp identity limits"),
    "become a program": Attempt("os.execve('/bin/echo', ['echo', 'through'], {})", "EPERM", "landlock seccomp"),
    "become one with a library of its own": Attempt(
        "os.execve('/bin/echo', ['echo', 'through'], {'LD_PRELOAD': './evil.so'})", "EPERM", "landlock seccomp"
    ),
    "become one from memory": Attempt(
        "f = os.memfd_create('x', 0); os.write(f, b'#!/bin/echo through'); os.execve(f, ['x'], {})", "EPERM"
    ),
    "clone by number": Attempt(_call(56, 220, "17", "0", "0", "0", "0") + " or os._exit(0)", "EPERM", "seccomp identity limits"),
    "clone3": Attempt(_call(435, 435, "ctypes.create_string_buffer(88)", "88"), "EPERM"),
    "start a thread": Attempt("threading.Thread(target=print).start()", "RuntimeError", "seccomp identity limits"),
    "leave the session": Attempt("os.setsid()", "EPERM", "seccomp group"),
    "leave the process group": Attempt("os.setpgid(0, 0)", "EPERM", "seccomp group"),
}  # fmt: skip

OTHERS = {
    "signal the parent": Attempt("os.kill(PARENT, 0)", "EPERM", "landlock seccomp identity"),
    "signal everybody": Attempt("os.kill(-1, 0)", "EPERM"),
    "signal the whole group": Attempt("os.kill(0, 0)", "EPERM", "seccomp"),
    "signal the parent's thread": Attempt(_call(234, 131, "PARENT", "PARENT", "0"), "EPERM", "landlock seccomp identity"),
    "signal by descriptor": Attempt("signal.pidfd_send_signal(os.pidfd_open(PARENT), 0)", "EPERM", "landlock seccomp identity"),
    "queue a signal": Attempt(_call(129, 138, "PARENT", "0", "ctypes.create_string_buffer(128)"), "EPERM"),
    "let the kernel signal the parent": Attempt("__import__('fcntl').fcntl(0, 8, PARENT)", "EPERM", "seccomp"),
    "trace the parent": Attempt(_call(101, 117, "0x4206", "PARENT", "0", "0"), "EPERM"),
    "be traced": Attempt(_call(101, 117, "0", "0", "0", "0"), "EPERM"),
    "read the parent's memory by call": Attempt(_call(310, 270, "PARENT", "0", "0", "0", "0", "0"), "EPERM", "seccomp identity landlock"),
    "write the parent's memory by call": Attempt(_call(311, 271, "PARENT", "0", "0", "0", "0", "0"), "EPERM", "seccomp identity landlock"),
    "take the parent's files": Attempt(_call(438, 438, "os.pidfd_open(PARENT)", "1", "0"), "EPERM", "seccomp identity landlock"),
    "compare with the parent": Attempt(_call(312, 272, "PARENT", "PARENT", "0", "0", "0"), "EPERM", "seccomp identity landlock"),
    "limit the parent": Attempt("resource.prlimit(PARENT, resource.RLIMIT_CORE)", "EPERM", "seccomp identity"),
}  # fmt: skip

NETWORK = {
    f"a socket: {words}": Attempt(f"socket.socket({family}, {kind})", "EPERM", held)
    for words, family, kind, held in (
        ("internet", "socket.AF_INET", "socket.SOCK_STREAM", "seccomp"),
        ("internet datagrams", "socket.AF_INET", "socket.SOCK_DGRAM", "seccomp"),
        ("internet 6", "socket.AF_INET6", "socket.SOCK_STREAM", ""),
        ("local", "socket.AF_UNIX", "socket.SOCK_STREAM", "seccomp"),
        ("local datagrams", "socket.AF_UNIX", "socket.SOCK_DGRAM", "seccomp"),
        ("the kernel's", "socket.AF_NETLINK", "socket.SOCK_RAW", "seccomp"),
        ("raw", "socket.AF_INET", "socket.SOCK_RAW", ""),
        ("packets", "socket.AF_PACKET", "socket.SOCK_RAW", ""),
        ("the host's", "socket.AF_VSOCK", "socket.SOCK_STREAM", ""),
        ("the kernel's ciphers", "socket.AF_ALG", "socket.SOCK_SEQPACKET", ""),
    )
} | {
    "a pair of sockets": Attempt("socket.socketpair()", "EPERM", "seccomp"),
    "a name looked up": Attempt("socket.getaddrinfo('example.com', 80)", "?"),
    "a connection": Attempt("socket.create_connection(('127.0.0.1', 9), timeout=1)", "EPERM"),
}  # fmt: skip

KERNEL = {
    "io_uring": Attempt(_call(425, 425, "1", "ctypes.create_string_buffer(256)"), "EPERM", "seccomp limits"),
    "userfaultfd": Attempt(_call(323, 282, "1"), "EPERM", "seccomp"),
    "bpf": Attempt(_call(321, 280, "0", "ctypes.create_string_buffer(b'\\x02' + bytes(3) + b'\\x04' + bytes(3) + b'\\x04' + bytes(3) + b'\\x01' + bytes(127))", "128"), "EPERM"),
    "performance counters": Attempt(_call(298, 241, "ctypes.create_string_buffer(128)", "0", "-1", "-1", "0"), "EPERM"),
    "keys": Attempt(_call(250, 219, "0", "-3", "1"), "EPERM", "seccomp"),
    "a new key": Attempt(_call(248, 217, "b'user'", "b'x'", "b'y'", "1", "-2"), "EPERM", "seccomp"),
    "a user namespace": Attempt(_call(272, 97, "0x10000000"), "EPERM", "seccomp"),
    "another namespace": Attempt(_call(308, 268, "0", "0"), "EPERM"),
    "mount": Attempt(_call(165, 40, "b'none'", "b'.'", "b'tmpfs'", "0", "0"), "EPERM"),
    "open a tree to mount": Attempt(_call(428, 428, "-100", "b'/'", "1"), "EPERM"),
    "chroot": Attempt("os.chroot('.')", "EPERM", "seccomp identity"),
    "pivot_root": Attempt(_call(155, 41, "b'.'", "b'.'"), "EPERM"),
    "setuid": Attempt("os.setuid(0)", "EPERM", "seccomp identity"),
    "setgroups": Attempt("os.setgroups([0])", "EPERM", "seccomp identity"),
    "capabilities": Attempt(_call(126, 91, "b'\\x22\\x05\\x08\\x20\\0\\0\\0\\0'", "b'\\xff' * 24"), "EPERM"),
    "personality": Attempt(_call(135, 92, "0x0040000"), "EPERM", "seccomp"),
    "prctl": Attempt("libc.prctl(4, 1, 0, 0, 0) and 1 / 0", "ZeroDivisionError", "seccomp"),
    "a filter of its own": Attempt(_call(317, 277, "2", "0", "b'\\0\\0\\xff\\x7f'"), "EPERM", "seccomp"),
    "memory as a file": Attempt("os.memfd_create('x')", "EPERM", "seccomp"),
    "shared memory": Attempt(_call(29, 194, "0", "4096", "0o1600"), "EPERM", "seccomp"),
    "a message queue": Attempt(_call(68, 186, "0", "0o1600"), "EPERM", "seccomp"),
    "watch files": Attempt(_call(294, 26, "0"), "EPERM", "seccomp"),
    "a kernel module": Attempt(_call(175, 105, "0", "0", "b''"), "EPERM"),
    "another kernel": Attempt(_call(246, 104, "0", "0", "0", "0"), "EPERM"),
    "swap": Attempt(_call(167, 224, "b'x'", "0"), "EPERM"),
    "the host's name": Attempt("socket.sethostname('mine')", "EPERM"),
    "the clock": Attempt("time.clock_settime(time.CLOCK_REALTIME, -1)", "?"),
    "its own priority": Attempt("os.nice(-5)", "EPERM", "seccomp identity"),
    "its own processors": Attempt("os.sched_setaffinity(0, os.sched_getaffinity(0))", "EPERM", "seccomp"),
    "raise its limits": Attempt("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "ValueError"),
    "move data past the limits": Attempt("os.splice(os.pipe()[0], os.pipe()[1], 1, flags=2)", "EPERM"),
}  # fmt: skip

SPENDING = {
    "memory": Attempt("bytearray(300 << 20)", "MemoryError", "limits"),
    "memory by mapping": Attempt("__import__('mmap').mmap(-1, 300 << 20)", "ENOMEM", "limits"),
    "memory little by little": Attempt("[bytearray(1 << 20) for _ in range(300)]", "MemoryError", "limits"),
    "one large file": Attempt("open('large', 'wb').write(bytes(2 << 20))", "EFBIG", "limits"),
    "a sparse file": Attempt("os.truncate(os.open('sparse', os.O_RDWR | os.O_CREAT), 1 << 40)", "EFBIG"),
    "open files": Attempt("files = [open('/dev/null') for _ in range(99)]", "EMFILE", "limits"),
    "pipes": Attempt("pipes = [os.pipe() for _ in range(99)]", "EMFILE", "limits"),
}  # fmt: skip

ATTEMPTS = {**FILES, **PROC, **PROCESSES, **OTHERS, **NETWORK, **KERNEL, **SPENDING}
