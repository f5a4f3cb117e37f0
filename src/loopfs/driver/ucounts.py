"""Limits of the number of devices in each user namespace (kernel/ucount.c).

A device counts for the user namespace that has mounted its instance, and for each of its ancestors.
Each has a limit, so a user cannot get more devices by creating nested user namespaces. A part of
the limit of the outermost one is reserved for its own instances, as devpts reserves some numbers
for the initial instance (Documentation/filesystems/devpts.rst).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from loopfs.driver.minors import MINORMASK
from loopfs.errors import DriverError

MAX_DEVICES = MINORMASK + 1
RESERVED = 4  # a quarter of the limit is reserved by default


class UserNamespace:
    """The device count and the limit of a user namespace.

    Args:
        number: identifies the namespace (used as a key).
        parent: the parent user namespace; None for the outermost one.
        limit: maximum number of devices in the namespace and its descendants together.
        reserve: how many of these only its own instances may have; for the outermost namespace.
    """

    def __init__(
        self, number: int, parent: UserNamespace | None, limit: int, reserve: int = 0
    ) -> None:
        self.number = number
        self.parent = parent
        self.limit = limit
        self.reserve = reserve
        self.used = 0
        self.holders = 0  # instances, child namespaces, and users of a limit that was set

    def and_around(self) -> Iterator[UserNamespace]:
        """Iterate over the namespace and its ancestors, from the inside out."""
        namespace: UserNamespace | None = self
        while namespace is not None:
            yield namespace
            namespace = namespace.parent

    def charge(self) -> None:
        """Count one more device. Raises DriverError ENOSPC if a limit has been reached."""
        chain = list(self.and_around())
        for namespace in chain:
            may_have = namespace.limit - (namespace.reserve if namespace is not self else 0)
            if namespace.used >= may_have:
                raise DriverError(errno.ENOSPC, f"a user namespace already has {may_have} devices")
        for namespace in chain:
            namespace.used += 1

    def uncharge(self) -> None:
        """Count one device less."""
        for namespace in self.and_around():
            namespace.used -= 1


class Ucounts:
    """The user namespaces that have devices or a limit that was set.

    Args:
        limit: the limit of the outermost user namespace.
        reserve: how many of these devices only its own instances may have; None: a quarter.
    """

    def __init__(self, limit: int = MAX_DEVICES, reserve: int | None = None) -> None:
        self.ceiling = limit
        self._reserve = limit // RESERVED if reserve is None else min(reserve, limit)
        self._namespaces: dict[int, UserNamespace] = {}

    def find(self, chain: Sequence[int]) -> UserNamespace | None:
        """Return the innermost known user namespace of a chain, or None."""
        return next((self._namespaces[n] for n in chain if n in self._namespaces), None)

    def limit_of(self, chain: Sequence[int]) -> int:
        """Return the limit of a user namespace: the lowest of its own and its ancestors'."""
        innermost = self.find(chain)
        limits = [namespace.limit for namespace in innermost.and_around()] if innermost else []
        return min(limits, default=self.ceiling)

    def hold(self, chain: Sequence[int]) -> UserNamespace:
        """Return a user namespace and keep it until :meth:`drop`.

        Args:
            chain: the namespace and its ancestors, from the inside out.
        """
        number, *around = chain
        if number not in self._namespaces:
            parent = self.hold(around) if around else None
            limit, reserve = (self.ceiling, self._reserve) if parent is None else (MAX_DEVICES, 0)
            self._namespaces[number] = UserNamespace(number, parent, limit, reserve)
        namespace = self._namespaces[number]
        namespace.holders += 1
        return namespace

    def drop(self, namespace: UserNamespace) -> None:
        """Release a user namespace; forget it, and then its ancestors, if nothing else holds it."""
        namespace.holders -= 1
        if not namespace.holders:
            del self._namespaces[namespace.number]
            if namespace.parent is not None:
                self.drop(namespace.parent)
