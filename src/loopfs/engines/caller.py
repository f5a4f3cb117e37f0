"""The caller for whom a job acts: its namespaces, and its rights in them.

A job enters the namespaces as root of the caller's user namespace, which its own work there needs:
opening /dev/fuse, a copy of the mounts, an engine. What the caller has named is looked up, and what
it sees of it is done, with the caller's own credentials.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from loopfs import syscalls
from loopfs.engines import confinement, credentials
from loopfs.engines.credentials import ROOT, Credentials
from loopfs.engines.engine import Mounter
from loopfs.engines.own_modules import refuse_imports
from loopfs.engines.paths import CallerProc
from loopfs.lean import signal
from loopfs.uapi.mount import (
    AT_FDCWD,
    MS_NOATIME,
    MS_NODIRATIME,
    MS_STRICTATIME,
    NS_GET_PARENT,
)
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWUSER

_guardian = [os.getppid()]  # the process that we end with


class Caller:
    """A caller, whose user namespace we enter now.

    Args:
        fds: pidfd, root, working directory, /proc/TGID, /proc/TGID/task/TID.
    """

    def __init__(self, fds: list[int]) -> None:
        self.pidfd, self._root, self._cwd, process, thread = fds
        # Not by the pidfd: a thread can have namespaces of its own. And all of it now, for what is
        # not dumpable can be looked at only from the user namespace in which it was started.
        read = os.O_RDONLY | os.O_CLOEXEC
        self._mounts = os.open("ns/mnt", read, dir_fd=thread)
        self.userns = os.open("ns/user", read, dir_fd=thread)
        with open(os.open("status", read, dir_fd=thread), "rb") as status:
            line = next((line for line in status if line.startswith(b"Umask:")), None)
        if line is None:  # it has ended meanwhile
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self.umask = int(line.split()[1], 8)
        sandbox = _outermost(self.userns)
        own = credentials.of(thread, lambda: enter_user(sandbox))
        self.credentials = confinement.granted(own, self.userns)
        self.proc = CallerProc(process, thread, self._own_rights)
        _enter_from(sandbox, self.userns, self.credentials)

    def mounter(self, flags: int) -> Mounter:
        """What a filesystem without owners takes from it, as its user namespace has the ids.

        Args:
            flags: MS_* of the mount.
        """
        uids, gids = self.credentials.uids or ROOT, self.credentials.gids or ROOT
        return Mounter(
            uids[3], gids[3], self.umask, flags & (MS_NOATIME | MS_NODIRATIME | MS_STRICTATIME)
        )

    def enter_mounts(self) -> None:
        """Take on the mount namespace; root and working directory are the namespace's root."""
        syscalls.setns(self._mounts, CLONE_NEWNS)

    def enter(self) -> None:
        """Take on the mount namespace, root and working directory. Nothing is imported from now on:
        what would be found is not ours."""
        refuse_imports()
        self.enter_mounts()
        if not _is_root(self._root):  # containers can refuse chroot(2)
            os.fchdir(self._root)
            os.chroot(".")
        os.fchdir(self._cwd)

    @contextmanager
    def rights(self) -> Iterator[None]:
        """Have the caller's rights and no others."""
        with rights_of(self.credentials):
            yield

    @contextmanager
    def _own_rights(self) -> Iterator[None]:
        """Within :meth:`rights`: have ours, for what the kernel lets a process do with itself."""
        self.credentials.lay_off()
        try:
            yield
        finally:
            self.credentials.take_on()
            guard()


@contextmanager
def rights_of(bearer: Credentials) -> Iterator[None]:
    """Have credentials of the user namespace that we are in."""
    bearer.take_on()
    guard()
    try:
        yield
    finally:
        bearer.lay_off()
        guard()


@contextmanager
def visible() -> Iterator[None]:
    """Be dumpable for a while: who serves a device looks at the system calls and the memory of who
    opens it and asks it for something."""
    syscalls.set_dumpable(True)
    try:
        yield
    finally:
        syscalls.set_dumpable(False)


def enter_user(userns: int, *, root: bool = True) -> None:
    """Enter a user namespace, by its file, as its root: what we were may have no id there, and then
    nothing can be made or even looked at on a FUSE mount.

    Args:
        root: false: keep the ids, if with all capabilities.
    """
    syscalls.setns(userns, CLONE_NEWUSER)
    try:
        if root:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # it has no root
            raise
    guard()


def _is_root(fd: int) -> bool:
    """A directory is our root: on the same mount, as well, for a bind mount of a root is another
    root that looks the same."""
    if syscalls.mount_id(fd) != syscalls.mount_id(AT_FDCWD, "/"):
        return False
    try:
        return os.path.samestat(os.fstat(fd), os.stat("/"))
    except OSError:  # a FUSE filesystem that does not let us look
        return False


def _outermost(userns: int) -> int:
    """Of a user namespace and those around it, the one that is next to ours: the sandbox's."""
    ours = os.stat("/proc/self/ns/user").st_ino
    while os.fstat(parent := fcntl.ioctl(userns, NS_GET_PARENT)).st_ino != ours:
        userns = parent
    return userns


def enter_as(userns: int, bearer: Credentials) -> None:
    """Enter a user namespace, by its file, to work for who has those credentials."""
    sandbox = _outermost(userns)
    enter_user(sandbox)
    _enter_from(sandbox, userns, bearer)


def _enter_from(sandbox: int, userns: int, bearer: Credentials) -> None:
    bearer.take_on_around()
    if os.fstat(sandbox).st_ino != os.fstat(userns).st_ino:
        enter_user(userns, root=bearer.root_ids)


def guard() -> None:
    """Not be dumpable, and end with the helper: who takes on other credentials must say so anew
    (PR_SET_DUMPABLE and PR_SET_PDEATHSIG of prctl(2))."""
    syscalls.set_dumpable(False)
    syscalls.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != _guardian[0]:
        os._exit(1)


def guard_with(parent: int) -> None:
    """As :func:`guard`, from now on with this parent (its process id)."""
    _guardian[0] = parent
    guard()
