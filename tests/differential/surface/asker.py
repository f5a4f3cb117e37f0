"""The program that makes the ioctls: how it is built, started and controlled."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("ask.c")
WORDS = {"64-bit": 8, "32-bit": 4}  # bytes in an unsigned long
BASE = 0x20000000  # where ask.c has a page, and nothing after it
PAGE = 4096
FILL = 0xA5  # what the page is filled with
_QUIET = ["-Wall", "-Wextra", "-Werror", "-O1"]
_BARE = ["-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"]
_BARE += ["-fno-stack-protector", "-fcf-protection=none"]
_REQUEST = struct.Struct("=IIIIQII")
_ANSWER = struct.Struct("=iI")
_OPEN, _CLOSE, _IOCTL = 1, 2, 3
_VALUE, _MEMORY, _AT_THE_EDGE, _FROM_READ_ONLY = 1, 2, 3, 4


def program(directory: str, width: str) -> str:
    """Where the program of a width is, once it has been built."""
    return os.path.join(directory, f"ask-{width}")


def build(directory: str) -> None:
    """Compile the program for each width that runs here; it needs x86-64 and no C library."""
    for width, word in WORDS.items():
        output = program(directory, width)
        compile_ = ["gcc", *_QUIET, *_BARE, f"-m{word * 8}", "-o", output, str(SOURCE)]
        subprocess.run(compile_, check=True)
        try:
            subprocess.run([output], stdin=subprocess.DEVNULL, check=True)
        except OSError:  # a kernel that knows no programs of 32 bits
            os.unlink(output)


class Value(NamedTuple):
    """An argument that is a number, or leads nowhere."""

    number: int


class Memory(NamedTuple):
    """An argument that leads to ``data``.

    Its last ``missing`` bytes are on no page.
    """

    data: bytes
    missing: int = 0


class ReadOnly(NamedTuple):
    """An argument that leads to ``data``, which cannot be changed."""

    data: bytes


Argument = Value | Memory | ReadOnly
Hidden = tuple[tuple[int, int], ...]


class Answer(NamedTuple):
    """What an ioctl returned, or the name of its errno; and what it changed in the memory."""

    result: int | str
    at: int = 0
    changed: bytes = b""


class Asker:
    """A running program of one width.

    Args:
        directory: where :func:`build` has put it.
        width: a key of WORDS.
        capable: it has CAP_SYS_ADMIN.
    """

    def __init__(self, directory: str, width: str, *, capable: bool = True) -> None:
        self.word = WORDS[width]
        pipe = subprocess.PIPE
        without = [] if capable else ["setpriv", "--bounding-set", "-sys_admin", "--"]
        command = [*without, program(directory, width)]
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)

    def stop(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait()

    def open(self, slot: int, path: str, flags: int) -> None:
        """Open a file as the descriptor ``slot``.

        Raises:
            OSError: as open(2).
        """
        result = self._ask(_OPEN, slot, flags, data=os.fsencode(path))[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result), path)

    def close(self, slot: int) -> None:
        self._ask(_CLOSE, slot)

    def ioctl(self, slot: int, cmd: int, argument: Argument, hidden: Hidden = ()) -> Answer:
        """What came of an ioctl.

        Args:
            hidden: ranges of bytes of the argument; how they changed is not said.
        """
        result, page = self.page(slot, cmd, argument)
        if not isinstance(argument, Memory):
            return Answer(result)
        data, missing = argument
        there = data[: len(data) - missing]
        filling = bytes([FILL]) * (PAGE - len(there))
        before = filling + there if missing else there + filling
        start = len(filling) if missing else 0
        for first, end in hidden:
            page = page[: start + first] + before[start + first : start + end] + page[start + end :]
        places = [at for at in range(PAGE) if page[at] != before[at]] if page != before else []
        if not places:
            return Answer(result)
        return Answer(result, places[0] - start, page[places[0] : places[-1] + 1])

    def page(self, slot: int, cmd: int, argument: Argument) -> tuple[int | str, bytes]:
        """What an ioctl returned, and the page that held its argument."""
        if isinstance(argument, Value):
            value = argument.number & (256**self.word - 1)
            result, page = self._ask(_IOCTL, slot, cmd, _VALUE, value)
        elif isinstance(argument, ReadOnly):
            result, page = self._ask(_IOCTL, slot, cmd, _FROM_READ_ONLY, 0, argument.data)
        else:
            kind = _AT_THE_EDGE if argument.missing else _MEMORY
            result, page = self._ask(_IOCTL, slot, cmd, kind, argument.missing, argument.data)
        return _named(result), page

    def _ask(
        self, operation: int, slot: int, number: int = 0, kind: int = 0, value: int = 0,
        data: bytes = b"",
    ) -> tuple[int, bytes]:  # fmt: skip
        assert self._child.stdin is not None
        head = _REQUEST.pack(operation, slot, number, kind, value, len(data), 0)
        self._child.stdin.write(head + data)
        result, length = _ANSWER.unpack(self._read(_ANSWER.size))
        return result, self._read(length)

    def _read(self, length: int) -> bytes:
        assert self._child.stdout is not None
        data = b""
        while len(data) < length:
            part = self._child.stdout.read(length - len(data))
            assert part, "the asking program has ended"
            data += part
        return data


def _named(result: int) -> int | str:
    return result if result >= 0 else errno.errorcode.get(-result, str(result))
