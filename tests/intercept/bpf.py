"""An interpreter of the classic BPF that seccomp filters are written in (filter.rst)."""

from __future__ import annotations

import struct

from loopfs.uapi.seccomp import SOCK_FILTER

BPF_MAXINSNS = 4096
SECCOMP_DATA = struct.Struct("=iIQ6Q")  # nr, arch, instruction_pointer, args

LD_W_ABS = 0x20
JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
RET = 0x06


def check(program: bytes) -> None:
    """Check a filter as the kernel does before it installs it (bpf_check_classic)."""
    code = list(SOCK_FILTER.iter_unpack(program))
    assert len(program) == len(code) * SOCK_FILTER.size
    assert 0 < len(code) <= BPF_MAXINSNS
    for place, (operation, if_true, if_false, value) in enumerate(code):
        following = len(code) - place - 1
        if operation == JA:
            assert value < following
        elif operation & 7 == 5:
            assert max(if_true, if_false) < following
        elif operation == LD_W_ABS:
            assert value % 4 == 0
            assert value + 4 <= SECCOMP_DATA.size
        else:
            assert operation == RET, f"unknown instruction {operation:#x}"
    assert code[-1][0] == RET


def run(program: bytes, nr: int, arch: int, *args: int) -> int:
    """Return the filter's result for a system call."""
    data = SECCOMP_DATA.pack(nr, arch, 0x400000, *args, *[0] * (6 - len(args)))
    code = list(SOCK_FILTER.iter_unpack(program))
    accumulator = place = 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == RET:
            return int(value)
        if operation == LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == JA:
            place += value
        else:
            holds = {
                JEQ: accumulator == value,
                JGT: accumulator > value,
                JGE: accumulator >= value,
                JSET: bool(accumulator & value),
            }[operation]
            place += if_true if holds else if_false
