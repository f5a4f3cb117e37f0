"""/sys/module/loop/parameters/max_loop: how many devices the reader's user namespace may have.

The kernel's driver has its limit in this file. As the files of /proc/sys/user do, it shows each
user namespace its own limit, which a process with CAP_SYS_RESOURCE in that namespace can set
(set_permissions of kernel/ucount.c).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from itertools import count

from loopfs.driver.ucounts import Ucounts, UserNamespace
from loopfs.filesystems.shares import LIMIT, Share, Shares
from loopfs.fuse.operations import Buffer, Operations, SetAttr
from loopfs.fuse.session import Request
from loopfs.lean import NamedTuple
from loopfs.process import Process
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FUSE_ROOT_ID, Attr
from loopfs.uapi.sched import CAP_SYS_RESOURCE

PLACE = "module/loop/parameters/max_loop"  # below /sys
SIZE = 4096  # bytes, the size of every attribute in sysfs
SWEPT = 16  # after this many new limits, those of namespaces that are gone are removed


class _Kept(NamedTuple):
    """A user namespace whose limit was set. The open file keeps its number from being reused."""

    namespace: UserNamespace
    file: int
    share: Share


class MaxLoopFile(Operations):
    """The file, which is the root of its mount. It is mounted without default_permissions.

    Args:
        ucounts: the limits.
        numbers: the lock that protects them.
        shares: the resources that each user may use: a limit that was set uses a descriptor.
    """

    def __init__(self, ucounts: Ucounts, numbers: threading.Lock, shares: Shares) -> None:
        self._ucounts = ucounts
        self._numbers = numbers
        self._shares = shares
        self._now = time.time_ns()
        self._handles = count(1)
        self._kept: dict[int, _Kept] = {}

    def getattr(self, nodeid: int) -> Attr:
        return Attr(FUSE_ROOT_ID, SIZE, stat.S_IFREG | 0o644, 1, 0, 0, 0, (self._now,) * 3)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        if changes[:3] != (None, None, None):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self.getattr(nodeid)  # O_TRUNC changes nothing

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and not Process(request.pid).has_capability(CAP_SYS_RESOURCE):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return next(self._handles), FOPEN_DIRECT_IO

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        chain = Process(request.pid).user_namespaces()
        with self._numbers:
            limit = self._ucounts.limit_of(chain)
        return b"%d\n" % limit if offset == 0 else b""

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        word = bytes(data).strip()
        limit = int(word) if word.isdigit() and len(word) < 10 else -1
        if not 0 <= limit <= self._ucounts.ceiling:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        process = Process(request.pid)
        if not process.has_capability(CAP_SYS_RESOURCE):  # another process opened the file
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._set(process, limit)
        return len(data)

    def _set(self, process: Process, limit: int) -> None:
        file = os.open(process.path("ns/user"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            number = os.fstat(file).st_ino
            if number not in self._kept:
                self._keep(process, os.dup(file))
            with self._numbers:
                self._kept[number].namespace.limit = limit
        finally:
            os.close(file)

    def _keep(self, process: Process, file: int) -> None:
        """Keep a user namespace from now on; ``file`` refers to it and is then owned by this
        object."""
        try:
            if len(self._kept) % SWEPT == SWEPT - 1:
                self._forget_the_gone()
            share = self._shares.take(process.charged_user(), LIMIT, errno.ENFILE, file)
            chain = process.user_namespaces()
            with share, self._numbers:
                namespace = self._ucounts.hold(chain)
            self._kept[chain[0]] = _Kept(namespace, file, share)
        except BaseException:
            os.close(file)
            raise

    def _forget_the_gone(self) -> None:
        """Remove the limits of user namespaces that, with their descendants, have no process."""
        inhabited: set[int] = set()
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    inhabited.update(Process(int(name)).user_namespaces())
                except OSError:  # the process has ended
                    continue
        for number in self._kept.keys() - inhabited:
            namespace, file, share = self._kept[number]
            if namespace.used == 0:
                del self._kept[number]
                with self._numbers:
                    self._ucounts.drop(namespace)
                os.close(file)
                share.give_back()
