"""How many devices each user namespace may have (kernel/ucount.c).

A device counts for the user namespace that has mounted its instance, and for each around that. Each
has a limit, so that a user gets no more by making namespaces within his own. A part of the
outermost's is reserved for its own instances, as devpts reserves some for the first one
(Documentation/filesystems/devpts.rst).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from loopfs.driver.minors import MINORMASK
from loopfs.errors import DriverError

MAX_DEVICES = MINORMASK + 1
RESERVED = 4  # the part of the limit that is reserved when nothing is said: a quarter


class UserNamespace:
    """What a user namespace has and may have.

    Args:
        number: which, for who asks.
        parent: the one around it; None for the outermost.
        limit: devices it and those within may have, together.
        reserve: of these, those that only its own instances may have. For the outermost.
    """

    def __init__(
        self, number: int, parent: UserNamespace | None, limit: int, reserve: int = 0
    ) -> None:
        self.number = number
        self.parent = parent
        self.limit = limit
        self.reserve = reserve
        self.used = 0
        self.holders = 0  # instances, namespaces within, and who keeps a limit that was set

    def and_around(self) -> Iterator[UserNamespace]:
        """It, and those around it from the inside out."""
        namespace: UserNamespace | None = self
        while namespace is not None:
            yield namespace
            namespace = namespace.parent

    def charge(self) -> None:
        """Count one more device. Raises DriverError ENOSPC: it or one around may have no more."""
        chain = list(self.and_around())
        for namespace in chain:
            may_have = namespace.limit - (namespace.reserve if namespace is not self else 0)
            if namespace.used >= may_have:
                raise DriverError(errno.ENOSPC, f"a user namespace has its {may_have} devices")
        for namespace in chain:
            namespace.used += 1

    def uncharge(self) -> None:
        """One is gone."""
        for namespace in self.and_around():
            namespace.used -= 1


class Ucounts:
    """The user namespaces that have devices, or a limit of their own.

    Args:
        limit: of the outermost.
        reserve: devices of it that only its own instances may have; a part of the limit without.
    """

    def __init__(self, limit: int = MAX_DEVICES, reserve: int | None = None) -> None:
        self.ceiling = limit
        self._reserve = limit // RESERVED if reserve is None else min(reserve, limit)
        self._namespaces: dict[int, UserNamespace] = {}

    def find(self, chain: Sequence[int]) -> UserNamespace | None:
        """The innermost one that is known of a user namespace and those around it."""
        return next((self._namespaces[n] for n in chain if n in self._namespaces), None)

    def limit_of(self, chain: Sequence[int]) -> int:
        """What a user namespace may have, with all that is around it."""
        innermost = self.find(chain)
        limits = [namespace.limit for namespace in innermost.and_around()] if innermost else []
        return min(limits, default=self.ceiling)

    def hold(self, chain: Sequence[int]) -> UserNamespace:
        """Know a user namespace until :meth:`drop`.

        Args:
            chain: it, and those around it from the inside out, to the outermost.
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
        """Forget a user namespace when nobody else knows it, and so those around it."""
        namespace.holders -= 1
        if not namespace.holders:
            del self._namespaces[namespace.number]
            if namespace.parent is not None:
                self.drop(namespace.parent)
