"""The system calls that a confined engine may make: those for serving, on open descriptors.

It cannot open files, send signals or start processes. All other calls fail with EPERM, which Python
and the C library treat as "not available".
"""

from __future__ import annotations

import errno
import fcntl
import os

from loopfs.intercept.filter import jump, load, refuse, returns
from loopfs.uapi import seccomp as uapi
from loopfs.uapi.sched import CLONE_THREAD
from loopfs.uapi.syscalls import abis

# asm/unistd_64.h and asm-generic/unistd.h.
CALLS = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "readv": 19,
        "writev": 20,
        "pread64": 17,
        "pwrite64": 18,
        "preadv": 295,
        "pwritev": 296,
        "preadv2": 327,
        "pwritev2": 328,
        "lseek": 8,
        "close": 3,
        "dup": 32,
        "dup2": 33,
        "dup3": 292,
        "fstat": 5,
        "newfstatat": 262,
        "statx": 332,
        "fsync": 74,
        "fdatasync": 75,
        "fallocate": 285,
        "poll": 7,
        "ppoll": 271,
        "futex": 202,
        "mmap": 9,
        "munmap": 11,
        "mremap": 25,
        "mprotect": 10,
        "madvise": 28,
        "brk": 12,
        "rt_sigaction": 13,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "sigaltstack": 131,
        "set_robust_list": 273,
        "rseq": 334,
        "gettid": 186,
        "getpid": 39,
        "getuid": 102,
        "geteuid": 107,
        "getgid": 104,
        "getegid": 108,
        "clock_gettime": 228,
        "clock_nanosleep": 230,
        "nanosleep": 35,
        "sched_yield": 24,
        "sched_getaffinity": 204,
        "exit": 60,
        "exit_group": 231,
        "sendmsg": 46,
        "recvmsg": 47,
        "getrandom": 318,
        "memfd_create": 319,
        "restart_syscall": 219,
        "membarrier": 324,
        "gettimeofday": 96,
    },
    "aarch64": {
        "read": 63,
        "write": 64,
        "readv": 65,
        "writev": 66,
        "pread64": 67,
        "pwrite64": 68,
        "preadv": 69,
        "pwritev": 70,
        "preadv2": 286,
        "pwritev2": 287,
        "lseek": 62,
        "close": 57,
        "dup": 23,
        "dup3": 24,
        "fstat": 80,
        "newfstatat": 79,
        "statx": 291,
        "fsync": 82,
        "fdatasync": 83,
        "fallocate": 47,
        "ppoll": 73,
        "futex": 98,
        "mmap": 222,
        "munmap": 215,
        "mremap": 216,
        "mprotect": 226,
        "madvise": 233,
        "brk": 214,
        "rt_sigaction": 134,
        "rt_sigprocmask": 135,
        "rt_sigreturn": 139,
        "sigaltstack": 132,
        "set_robust_list": 99,
        "rseq": 293,
        "gettid": 178,
        "getpid": 172,
        "getuid": 174,
        "geteuid": 175,
        "getgid": 176,
        "getegid": 177,
        "clock_gettime": 113,
        "clock_nanosleep": 115,
        "nanosleep": 101,
        "sched_yield": 124,
        "sched_getaffinity": 123,
        "exit": 93,
        "exit_group": 94,
        "sendmsg": 211,
        "recvmsg": 212,
        "getrandom": 278,
        "memfd_create": 279,
        "restart_syscall": 128,
        "membarrier": 283,
        "gettimeofday": 169,
    },
}
# Allowed only with some values of an argument: setting an owner of a file would cause signals, and
# clone(2) must create a thread.
FLAGS = (0x5421, 0x5450, 0x5451)  # FIONBIO, FIONCLEX, FIOCLEX
DESCRIPTORS = (
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL),
    *(fcntl.F_SETFL, fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS),
)
COMMANDS = {
    "x86_64": {16: FLAGS, 72: DESCRIPTORS},
    "aarch64": {29: FLAGS, 25: DESCRIPTORS},
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435  # a filter cannot read its flags; on ENOSYS the C library uses clone


def program(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter.

    Args:
        machine: the output of uname -m; default: this machine.
    """
    machine = machine or os.uname().machine
    allow = returns(uapi.SECCOMP_RET_ALLOW)
    code = load(uapi.DATA_ARCH)
    code += jump(uapi.BPF_JMP_JEQ_K, abis(machine)[0].arch, 1, 0) + refuse(errno.EPERM)
    code += load(uapi.DATA_NR)
    for number in sorted(CALLS[machine].values()):
        code += jump(uapi.BPF_JMP_JEQ_K, number, 0, 1) + allow
    code += jump(uapi.BPF_JMP_JEQ_K, CLONE3, 0, 1) + refuse(errno.ENOSYS)
    code += jump(uapi.BPF_JMP_JEQ_K, CLONE[machine], 0, 4) + load(uapi.data_arg(0))
    code += jump(uapi.BPF_JMP_JSET_K, CLONE_THREAD, 0, 1) + allow + refuse(errno.EPERM)
    for number, commands in COMMANDS[machine].items():
        length = 2 * len(commands) + 2
        code += jump(uapi.BPF_JMP_JEQ_K, number, 0, length) + load(uapi.data_arg(1))
        for command in commands:
            code += jump(uapi.BPF_JMP_JEQ_K, command, 0, 1) + allow
        code += refuse(errno.EPERM)
    return code + refuse(errno.EPERM)
