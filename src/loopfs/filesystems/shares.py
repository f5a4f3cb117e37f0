"""Limits of the supervisor's resources for each user of the sandbox.

Filesystem contexts, instances, bound devices and engines each use descriptors, and some a thread,
of the one supervisor. Like the kernel's limits (ucounts of user_namespaces(7)), they are charged to
a user of the sandbox: to the caller, or to the creator of the caller's user namespace. The root of
the sandbox may use all that others do not use. Each other user has a limit, and all of them
together may use at most half, so that root can always continue to work.
"""

from __future__ import annotations

import os
import sys
import threading

KEPT = 64  # descriptors kept free for the short-term needs of opens, mounts and /sys
MOST = 256  # limit of each other user, since threads can be scarcer than descriptors
ROOT = 0

# What each object is charged: its descriptors, and two for a thread, which costs more.
CONTEXT = 1
BACKING_FILE = 1
INSTANCE = 3  # /dev/fuse and a thread
LINKS = 2  # of an instance with links: a user namespace and a directory
LIMIT = 1  # a limit that was set for a user namespace
WATCH = 1  # a network namespace of the user in which he listens for uevents
UEVENTS = 3  # a network namespace in which a user namespace listens for uevents
ENGINE = 4  # its pidfd, /dev/fuse of its device and the thread that serves it


class Share:
    """An amount that was taken; it is released once."""

    def __init__(self, shares: Shares, user: int, count: int) -> None:
        self._shares = shares
        self._user = user
        self._count = count

    def __enter__(self) -> None:
        """Begin a block; an exception in it releases the amount."""

    def __exit__(self, problem: type[BaseException] | None, *_: object) -> None:
        if problem is not None:
            self.give_back()

    def last_as_long_as(self, thing: object) -> None:
        """Release the amount when ``thing`` is garbage-collected."""
        from weakref import finalize

        finalize(thing, self.give_back)

    def give_back(self) -> None:
        self._shares.release(self._user, self._count)
        self._count = 0


class Shares:
    """The amounts in use, by user.

    Args:
        room: the number of descriptors that this process may have.
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
            code: the errno of the error.
            fd: the descriptor that it is for: the last descriptors are kept free for other work.
        Raises:
            OSError: ``code`` if the user has reached the limit.
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
