"""The seccomp filter: which system calls are trapped, as a classic BPF program.

A filter sees numbers only, so what it traps is decided by the call's number and at most
by one argument; everything else runs at full speed.
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

    ``argument``, and ``mask`` or ``values``: only when that argument has a bit of the mask, or is
    one of the values (32 bits of it).
    """

    syscall: str
    argument: int | None = None
    mask: int = 0
    values: tuple[int, ...] = ()


S_IFCHR = stat.S_IFCHR  # the bit that it and S_IFBLK have, and no other type

# All that is trapped, on every ABI of the machine.
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

# What is refused, and the errno: a sync by io_uring would be seen by nobody.
REFUSED = {"io_uring_setup": errno.ENOSYS}


def install() -> int:
    """Install the filter on this thread; return the listener.

    The caller needs CAP_SYS_ADMIN in its user namespace.

    Raises:
        OSError: EBUSY when a listener watches this process already.
    """
    code = program(TRAPS, abis(), REFUSED)
    try:
        # From 5.19 on a call that is being answered is interrupted by death only.
        return syscalls.seccomp_listener(code, uapi.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return syscalls.seccomp_listener(code, 0)


def program(
    traps: Iterable[Trap], abis: Iterable[Abi], refused: dict[str, int] | None = None
) -> bytes:
    """The filter as struct sock_filter, one after the other.

    Calls of an ABI that is not in ``abis`` (x32 among them) are let through: they see
    what there is without us. ``refused`` are calls and the errnos with which they fail.
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
                action += jump(test, value, left, 0)  # over the others and what allows it
            action += returns(uapi.SECCOMP_RET_ALLOW) + returns(uapi.SECCOMP_RET_USER_NOTIF)
        code += jump(uapi.BPF_JMP_JEQ_K, abi.numbers[trap.syscall], 0, _length(action)) + action
    for syscall, error in refused.items():
        action = refuse(error)
        code += jump(uapi.BPF_JMP_JEQ_K, abi.numbers[syscall], 0, _length(action)) + action
    return code + returns(uapi.SECCOMP_RET_ALLOW)


def _length(code: bytes) -> int:
    return len(code) // uapi.SOCK_FILTER.size


def load(offset: int) -> bytes:
    """Load 32 bits of struct seccomp_data."""
    return uapi.SOCK_FILTER.pack(uapi.BPF_LD_W_ABS, 0, 0, offset)


def jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    """Compare what was loaded with ``value``, and leave out so many instructions."""
    return uapi.SOCK_FILTER.pack(kind, if_true, if_false, value)


def refuse(error: int) -> bytes:
    """Have the call fail with that errno."""
    return returns(uapi.SECCOMP_RET_ERRNO | error)


def returns(action: int) -> bytes:
    """Decide on the call."""
    return uapi.SOCK_FILTER.pack(uapi.BPF_RET_K, 0, 0, action)
