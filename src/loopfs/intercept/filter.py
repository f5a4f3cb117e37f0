"""The seccomp filter: which system calls are trapped, as a classic BPF program.

A filter sees only numbers. So a call is trapped by its number and by at most one argument; all
other calls run without delay.
"""

from __future__ import annotations

import errno
import stat

from loopfs import syscalls
from loopfs.lean import Iterable, NamedTuple
from loopfs.uapi import seccomp as uapi
from loopfs.uapi.fs import FILES, LABELS
from loopfs.uapi.mount import AT_EMPTY_PATH
from loopfs.uapi.netlink import NETLINK_KOBJECT_UEVENT
from loopfs.uapi.syscalls import Abi, abis


class Trap(NamedTuple):
    """A system call to trap.

    If ``argument`` is given, the call is trapped only if that argument (its lower 32 bits) has a
    bit of ``mask`` or is one of ``values``.
    """

    syscall: str
    argument: int | None = None
    mask: int = 0
    values: tuple[int, ...] = ()


S_IFCHR = stat.S_IFCHR  # a bit that only S_IFCHR and S_IFBLK have

# The calls that are trapped, on every ABI of the machine.
TRAPS = (
    Trap("fstat"),
    Trap("fstat64"),
    Trap("newfstatat", 3, AT_EMPTY_PATH),
    Trap("fstatat64", 3, AT_EMPTY_PATH),
    Trap("statx", 2, AT_EMPTY_PATH),
    Trap("mount"),
    Trap("umount2"),
    Trap("umount"),
    Trap("fsopen"),
    Trap("fsconfig"),
    Trap("fspick"),
    Trap("move_mount"),
    Trap("statfs"),
    Trap("fstatfs"),
    Trap("fsync"),
    Trap("fdatasync"),
    Trap("syncfs"),
    Trap("sync"),
    Trap("mknod", 1, S_IFCHR),
    Trap("mknodat", 2, S_IFCHR),
    Trap("io_submit"),
    Trap("ioctl", 1, values=(*LABELS, *FILES)),
    Trap("socket", 2, values=(NETLINK_KOBJECT_UEVENT,)),
)

# Calls that fail, and the errno: a sync through io_uring could not be trapped.
REFUSED = {"io_uring_setup": errno.ENOSYS}


def install() -> int:
    """Install the filter on this thread and return the listener.

    The caller needs CAP_SYS_ADMIN in its user namespace.

    Raises:
        OSError: EBUSY if this process already has a listener.
    """
    code = program(TRAPS, abis(), REFUSED)
    try:
        # Since Linux 5.19: only a fatal signal interrupts a call that is being processed.
        return syscalls.seccomp_listener(code, uapi.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return syscalls.seccomp_listener(code, 0)


def program(
    traps: Iterable[Trap], abis: Iterable[Abi], refused: dict[str, int] | None = None
) -> bytes:
    """Return the filter as an array of struct sock_filter.

    Calls of an ABI that is not in ``abis`` (for example x32) are allowed: they behave as without
    loopfs. ``refused`` has calls and the errnos with which they fail.
    """
    traps = tuple(traps)
    code = load(uapi.DATA_ARCH)
    for abi in abis:
        block = _abi_block(traps, abi, refused or {})
        code += jump(uapi.BPF_JMP_JEQ_K, abi.arch, 0, _length(block)) + block
    return code + returns(uapi.SECCOMP_RET_ALLOW)


def _abi_block(traps: tuple[Trap, ...], abi: Abi, refused: dict[str, int]) -> bytes:
    code = load(uapi.DATA_NR)
    for trap in traps:
        if trap.syscall not in abi.numbers:
            continue
        if trap.argument is None:
            action = returns(uapi.SECCOMP_RET_USER_NOTIF)
        else:
            action = load(uapi.data_arg(trap.argument))
            tests = [(uapi.BPF_JMP_JSET_K, trap.mask)] if trap.mask else []
            tests += [(uapi.BPF_JMP_JEQ_K, value) for value in trap.values]
            for left, (test, value) in zip(range(len(tests), 0, -1), tests, strict=True):
                action += jump(test, value, left, 0)  # skip the other tests and the allowing return
            action += returns(uapi.SECCOMP_RET_ALLOW) + returns(uapi.SECCOMP_RET_USER_NOTIF)
        code += jump(uapi.BPF_JMP_JEQ_K, abi.numbers[trap.syscall], 0, _length(action)) + action
    for syscall, error in refused.items():
        action = refuse(error)
        code += jump(uapi.BPF_JMP_JEQ_K, abi.numbers[syscall], 0, _length(action)) + action
    return code + returns(uapi.SECCOMP_RET_ALLOW)


def _length(code: bytes) -> int:
    return len(code) // uapi.SOCK_FILTER.size


def load(offset: int) -> bytes:
    """Return an instruction that loads 32 bits of struct seccomp_data."""
    return uapi.SOCK_FILTER.pack(uapi.BPF_LD_W_ABS, 0, 0, offset)


def jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    """Return a conditional jump: compare with ``value`` and skip a number of instructions."""
    return uapi.SOCK_FILTER.pack(kind, if_true, if_false, value)


def refuse(error: int) -> bytes:
    """Return an instruction that makes the call fail with an errno."""
    return returns(uapi.SECCOMP_RET_ERRNO | error)


def returns(action: int) -> bytes:
    """Return an instruction that ends the filter with an action."""
    return uapi.SOCK_FILTER.pack(uapi.BPF_RET_K, 0, 0, action)
