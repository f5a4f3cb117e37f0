"""The calls of the new mount API in a program inside a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sandbox import Lines

# The calls; each says what it returned. Descriptors that they return are shown as "fd".
CALLS = r"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = dict(open_tree=428, move_mount=429, fsopen=430, fsconfig=431, fsmount=432, fspick=433,
               mount_setattr=442)
FLAG, STRING, PATH, FD, CREATE, RECONFIGURE = 0, 1, 3, 5, 6, 7
HERE = -100
def call(name, *words):
    words = [word.encode() if isinstance(word, str) else word for word in words]
    result = libc.syscall(NUMBERS[name], *words)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result
def show(name, *words):
    result = call(name, *words)
    print("fd" if isinstance(result, int) and result else result, flush=True)
    return result
def config(fd, command, key=None, value=None, aux=0):
    return show("fsconfig", fd, command, key, value, aux)
def opened(fstype, **parameters):
    fd = call("fsopen", fstype, 1)
    for key, value in parameters.items():
        assert call("fsconfig", fd, STRING, key, value, 0) == 0
    return fd
def messages(fd):
    while True:
        try:
            print(os.read(fd, 4096).decode().strip())
        except OSError:
            return
def listed(mount):
    fd = os.open(".", os.O_RDONLY, dir_fd=mount)
    print(*sorted(os.listdir(fd)))
    os.close(fd)
"""


@pytest.fixture
def places(image: Path) -> None:
    """disk.img, and two mount points."""
    (image.parent / "one").mkdir(mode=0o777)
    (image.parent / "two").mkdir(mode=0o777)
    (image.parent / "calls.py").write_text(CALLS)


@pytest.fixture
def calls(inside: Lines, image: Path, places: None) -> Lines:
    """A function that runs a Python program with the functions of CALLS and returns its output."""

    def run(program: str, before: str = "") -> list[str]:
        (image.parent / "program.py").write_text("from calls import *\n" + program)
        return inside(f"{before}\nPYTHONDONTWRITEBYTECODE=1 python3 program.py")

    return run
