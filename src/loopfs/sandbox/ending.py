"""Find the processes that keep a sandbox from ending after a signal to ``loopfs run``.

A process that waits for an answer of a filesystem cannot be killed, and process 1, and so the whole
sandbox, waits for its end.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from loopfs.lean import signal

ENDERS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
PATIENCE = 1.0  # seconds within which a signal should take effect
_NAMED = 5  # processes that a message names


class Command:
    """The command of a sandbox.

    Args:
        pid: its process id in our pid namespace.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pidfd: int | None = None
        with suppress(ProcessLookupError):  # it has ended already
            self._pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        if self._pidfd is None:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def hangs(self) -> bool:
        """Whether it has ended and others have not, or it is blocked in the kernel and does not
        react to signals."""
        return self.ended() or any(map(_is_deaf, _threads(self._pid)))


def _threads(pid: int) -> list[str]:
    """Return the directories in /proc of the threads of a process."""
    try:
        return [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def _is_deaf(thread: str) -> bool:
    """Whether a signal that would end the thread, or that it handles, is pending."""
    try:
        with open(f"{thread}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False
    if fields["State"].split()[0] in ("T", "t"):  # stopped, or traced
        return False
    pending, shared, blocked = (int(fields[f], 16) for f in ("SigPnd", "ShdPnd", "SigBlk"))
    wanted = sum(1 << number - 1 for number in ENDERS | {signal.SIGKILL})
    return bool((pending | shared) & ~blocked & wanted)


def remaining(child: int) -> str:
    """Return the names of the processes that remain in the sandbox of ``child``."""
    found, parents = [], [child]
    while parents:
        parent = parents.pop()
        for pid in _children(parent):
            parents.append(pid)
            if parent != child:  # else it is process 1
                found.append(f"{_name(pid)} (process {pid})")
    more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join(found[:_NAMED] + more) or "the sandbox"


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for thread in _threads(pid):
        try:
            with open(f"{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return children


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "?"
