"""The seccomp filter, run on system calls: those that it traps, and all others."""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopfs.intercept.filter import REFUSED, TRAPS, Trap, program
from loopfs.intercept.notify import FSTAT_CALLS, NAMES
from loopfs.uapi import fs
from loopfs.uapi.mount import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW
from loopfs.uapi.seccomp import SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF
from loopfs.uapi.syscalls import AARCH64, ARM, I386, MACHINES, X86_64, Abi, abis
from tests.intercept import bpf

PROGRAMS = {machine: program(TRAPS, tables, REFUSED) for machine, tables in MACHINES.items()}
ABIS = {abi.arch: machine for machine, tables in MACHINES.items() for abi in tables}
CASES = [
    pytest.param(machine, abi, trap, id=f"{machine}-{abi.word * 8}-{trap.syscall}")
    for machine, tables in MACHINES.items()
    for abi in tables
    for trap in TRAPS
    if trap.syscall in abi.numbers
]
X32_BIT = 0x40000000


def flags_at(argument: int, flags: int) -> list[int]:
    args = [2**64 - 1] * 6  # the other arguments do not matter
    args[argument] = flags
    return args


@pytest.mark.parametrize("machine", PROGRAMS)
def test_the_kernel_takes_the_filter(machine: str) -> None:
    bpf.check(PROGRAMS[machine])
    assert len(PROGRAMS[machine]) // 8 < 140, "every call of the sandbox runs through it"


@pytest.mark.parametrize(("machine", "abi", "trap"), CASES)
def test_trapped(machine: str, abi: Abi, trap: Trap) -> None:
    number = abi.numbers[trap.syscall]
    cases = [[0] * 6]
    if trap.argument is not None:
        cases = [flags_at(trap.argument, value) for value in trap.values or (trap.mask,)]
    for args in cases:
        assert bpf.run(PROGRAMS[machine], number, abi.arch, *args) == SECCOMP_RET_USER_NOTIF


@pytest.mark.parametrize(
    ("machine", "abi", "trap"),
    [case for case in CASES if case.values[2].mask],  # type: ignore[union-attr]
)
def test_not_trapped_without_the_flag(machine: str, abi: Abi, trap: Trap) -> None:
    assert trap.argument is not None
    number = abi.numbers[trap.syscall]
    # Flags that look like the number of a trapped call, too: the two are in one register.
    numbers = [value for value in abi.numbers.values() if not value & trap.mask]
    for flags in (0, AT_SYMLINK_NOFOLLOW, 0xFFFFFFFF & ~trap.mask, trap.mask << 32, *numbers):
        args = flags_at(trap.argument, flags)
        assert bpf.run(PROGRAMS[machine], number, abi.arch, *args) == SECCOMP_RET_ALLOW
    for flags in (trap.mask | AT_SYMLINK_NOFOLLOW, 2**64 - 1):
        args = flags_at(trap.argument, flags)
        assert bpf.run(PROGRAMS[machine], number, abi.arch, *args) == SECCOMP_RET_USER_NOTIF


@pytest.mark.parametrize("machine", PROGRAMS)
def test_io_uring_is_not_there(machine: str) -> None:
    for abi in MACHINES[machine]:
        verdict = bpf.run(PROGRAMS[machine], 425, abi.arch, 4, 0x1000)
        assert verdict == SECCOMP_RET_ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", PROGRAMS)
def test_sockets_are_trapped_by_their_protocol(machine: str) -> None:
    for abi in MACHINES[machine]:
        for protocol, verdict in ((0, SECCOMP_RET_ALLOW), (15, SECCOMP_RET_USER_NOTIF)):
            number = abi.numbers["socket"]
            assert bpf.run(PROGRAMS[machine], number, abi.arch, 16, 3, protocol) == verdict


@pytest.mark.parametrize("machine", PROGRAMS)
def test_ioctls_are_trapped_by_their_numbers(machine: str) -> None:
    (trap,) = (trap for trap in TRAPS if trap.syscall == "ioctl")
    assert set(trap.values) == {
        fs.FS_IOC_GETFSLABEL,
        fs.FS_IOC_SETFSLABEL,
        fs.FS_IOC_SETFLAGS,
        fs.FS_IOC32_SETFLAGS,
        fs.FS_IOC_FIEMAP,
        fs.FIFREEZE,
        fs.FITHAW,
    }
    for abi in MACHINES[machine]:
        number = abi.numbers["ioctl"]
        for value in trap.values:
            for command, expected in (
                (value, SECCOMP_RET_USER_NOTIF),
                (value | 0xFFFFFFFF << 32, SECCOMP_RET_USER_NOTIF),  # an unsigned int
                (value + 1 if value + 1 not in trap.values else value - 1, SECCOMP_RET_ALLOW),
                (value ^ 0x80000000, SECCOMP_RET_ALLOW),
                (0, SECCOMP_RET_ALLOW),
            ):
                args = flags_at(1, command)
                assert bpf.run(PROGRAMS[machine], number, abi.arch, *args) == expected


NUMBERS = st.one_of(st.integers(-1, 600), st.integers(-(2**31), 2**31 - 1))
ARCHES = st.one_of(st.sampled_from(sorted(ABIS)), st.integers(0, 2**32 - 1))
ARGS = st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6)


@pytest.mark.parametrize("machine", PROGRAMS)
@settings(deadline=None)
@given(number=NUMBERS, arch=ARCHES, args=ARGS)
@example(number=I386.numbers["io_uring_setup"], arch=I386.arch, args=[0] * 6)
@example(number=X32_BIT | 5, arch=X86_64.arch, args=[0] * 6)
@example(number=X86_64.numbers["mount"], arch=I386.arch, args=[0] * 6)
def test_everything_else_is_let_through(
    machine: str, number: int, arch: int, args: list[int]
) -> None:
    expected = SECCOMP_RET_ALLOW
    for abi in MACHINES[machine]:
        for trap in TRAPS:
            if arch == abi.arch and abi.numbers.get(trap.syscall) == number:
                value = 0 if trap.argument is None else args[trap.argument] & 0xFFFFFFFF
                on = trap.argument is None or value & trap.mask or value in trap.values
                expected = SECCOMP_RET_USER_NOTIF if on else SECCOMP_RET_ALLOW
        for syscall, error in REFUSED.items():
            if arch == abi.arch and abi.numbers[syscall] == number:
                expected = SECCOMP_RET_ERRNO | error
    assert bpf.run(PROGRAMS[machine], number, arch, *args) == expected


def test_what_is_trapped_by_name() -> None:
    """The traps of issue 2: whoever changes them has a look at what it costs."""
    always = {trap.syscall for trap in TRAPS if trap.argument is None}
    assert always >= {"fstat", "fstat64", "mount", "umount2", "umount"}
    assert not always & {"open", "openat", "read", "write", "newfstatat", "statx", "ioctl"}
    flagged = {trap.syscall: (trap.argument, trap.mask) for trap in TRAPS if trap.mask}
    assert flagged["newfstatat"] == flagged["fstatat64"] == (3, AT_EMPTY_PATH)
    assert flagged["statx"] == (2, AT_EMPTY_PATH)


def test_every_trapped_number_has_a_name() -> None:
    for abi in abis():
        for trap in TRAPS:
            if trap.syscall in abi.numbers:
                assert NAMES[abi.arch, abi.numbers[trap.syscall]] == trap.syscall
    assert set(NAMES.values()) >= {"fstat", "mount", "umount2"}
    assert {trap.syscall for trap in TRAPS} >= set(FSTAT_CALLS)


def test_a_filter_without_traps_lets_everything_through() -> None:
    code = program((), (X86_64, I386))
    bpf.check(code)
    assert bpf.run(code, 165, X86_64.arch) == SECCOMP_RET_ALLOW


@pytest.mark.parametrize("argument", range(6))
def test_any_argument_can_be_looked_at(argument: int) -> None:
    code = program([Trap("mount", argument, 0x80000000)], (AARCH64, ARM))
    bpf.check(code)
    for abi in (AARCH64, ARM):
        number = abi.numbers["mount"]
        on = bpf.run(code, number, abi.arch, *flags_at(argument, 0x80000000))
        off = bpf.run(code, number, abi.arch, *flags_at(argument, 0x7FFFFFFF))
        assert (on, off) == (SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW)
