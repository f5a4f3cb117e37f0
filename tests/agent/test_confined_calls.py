"""The seccomp filter of confined engines: the calls that it permits."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from loopfs.engines.confined_calls import CALLS, CLONE, COMMANDS, program
from loopfs.uapi.sched import CLONE_NEWUSER, CLONE_THREAD
from loopfs.uapi.seccomp import SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
from loopfs.uapi.syscalls import MACHINES
from tests.intercept import bpf
from tests.support.skip import need

REFUSED = SECCOMP_RET_ERRNO | errno.EPERM
HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
# What somebody who has taken over an engine would like to do.
WANTED = {"open", "openat", "openat2", "socket", "unshare", "setns", "mount", "seccomp", "mknod"}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_serving_takes_and_no_more(machine: str) -> None:
    code, (native, other) = program(machine), MACHINES[machine]
    bpf.check(code)
    allowed = set(CALLS[machine].values())
    conditional = {*COMMANDS[machine], CLONE[machine]}
    for number in range(600):
        verdict = bpf.run(code, number, native.arch)
        if number not in conditional and number != 435:
            assert verdict == (SECCOMP_RET_ALLOW if number in allowed else REFUSED)
        assert bpf.run(code, number, other.arch) == REFUSED
        assert bpf.run(code, number | 0x40000000, native.arch) == REFUSED  # x32
    assert not {native.numbers[call] for call in WANTED & native.numbers.keys()} & allowed


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments(machine: str) -> None:
    code, arch = program(machine), MACHINES[machine][0].arch
    clone = CLONE[machine]
    assert bpf.run(code, clone, arch, CLONE_THREAD) == SECCOMP_RET_ALLOW
    assert bpf.run(code, clone, arch, CLONE_NEWUSER | 17) == REFUSED
    assert bpf.run(code, 435, arch) == SECCOMP_RET_ERRNO | errno.ENOSYS  # clone3
    for number, commands in COMMANDS[machine].items():
        for command in commands:
            assert bpf.run(code, number, arch, 3, command) == SECCOMP_RET_ALLOW
        assert bpf.run(code, number, arch, 3, 8) == REFUSED  # F_SETOWN


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_headers(machine: str) -> None:
    header = Path(HEADERS[machine])
    need(header.exists(), "the kernel's headers are not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", header.read_text()))
    found.setdefault("newfstatat", found.get("fstatat", ""))
    names = CALLS[machine] | {"clone": CLONE[machine], "clone3": 435}
    names |= dict(zip(("ioctl", "fcntl"), COMMANDS[machine], strict=True))
    assert names == {name: int(found[name]) for name in names}
