"""How much of the supervisor each user of the sandbox may have in use.

Contexts, instances, bound devices and engines each keep descriptors, and some a thread, of the one
process that serves all. As the kernel's limits do (ucounts of user_namespaces(7)), we charge them
to a user of the sandbox: to the caller, or to who made the user namespace that he is in. Its root
may have all that the others do not have; each other has a share, and all others together no more
than half, so that root can always go on.
"""

from __future__ import annotations

import os
import sys
import threading

KEPT = 64  # descriptors for opens, mounts and /sys, which need some for a moment
MOST = 256  # of each other user, for threads are scarcer than descriptors can be
ROOT = 0

# What is taken for a thing: its descriptors, and two for a thread, which is dearer.
CONTEXT = 1
BACKING_FILE = 1
INSTANCE = 3  # /dev/fuse and a thread
LINKS = 2  # of an instance that has some: user namespace and directory
LIMIT = 1  # of a user namespace, that it has set
WATCH = 1  # a network namespace of his own, in which he listens
UEVENTS = 3  # a network namespace in which a user namespace listens
ENGINE = 4  # its pidfd, /dev/fuse of its device and the thread that serves it


class Share:
    """Something taken; given back once."""

    def __init__(self, shares: Shares, user: int, count: int) -> None:
        self._shares = shares
        self._user = user
        self._count = count

    def __enter__(self) -> None:
        """From here on: given back if an exception ends the block."""

    def __exit__(self, problem: type[BaseException] | None, *_: object) -> None:
        if problem is not None:
            self.give_back()

    def last_as_long_as(self, thing: object) -> None:
        """Be given back when nobody has ``thing`` any more."""
        from weakref import finalize

        finalize(thing, self.give_back)

    def give_back(self) -> None:
        self._shares.release(self._user, self._count)
        self._count = 0


class Shares:
    """What is in use, by user.

    Args:
        room: how many descriptors we may have.
    """

    def __init__(self, room: int = sys.maxsize) -> None:
        self._limit = room - min(KEPT, room // 2)
        self._each = min(MOST, max(self._limit // 8, 1))
        self._others = min(4 * MOST, self._limit // 2)
        self._used: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, user: int, count: int, code: int, fd: int = 0) -> Share:
        """Charge ``count`` to a user of the sandbox's user namespace.

        Args:
            fd: a descriptor that it is for: the last ones are kept for other work.
        Raises:
            OSError: ``code``: he has what he may.
        """
        with self._lock:
            used = self._used.get(user, 0) + count
            everybodys = sum(self._used.values()) + count
            others = everybodys - self._used.get(ROOT, 0)
            too_much = user != ROOT and (used > self._each or others > self._others)
            if too_much or everybodys > self._limit or fd >= self._limit:
                raise OSError(code, os.strerror(code))
            self._used[user] = used
        return Share(self, user, count)

    def release(self, user: int, count: int) -> None:
        with self._lock:
            left = self._used.pop(user, 0) - count
            if left:
                self._used[user] = left
