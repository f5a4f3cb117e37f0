"""The caller for whom a job acts: its namespaces, and its rights in them.

A job enters the namespaces as root of the caller's user namespace, which it needs for opening
/dev/fuse, copying the mounts and starting an engine. Paths that the caller has passed are resolved,
and operations that are visible to it are made, with the caller's own credentials.
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

_guardian = [os.getppid()]  # the process with which this process ends


class Caller:
    """A caller. The constructor enters its user namespace.

    Args:
        fds: pidfd, root, working directory, /proc/TGID, /proc/TGID/task/TID.
    """

    def __init__(self, fds: list[int]) -> None:
        self.pidfd, self._root, self._cwd, process, thread = fds
        # Not by the pidfd, since a thread can have its own namespaces. And all of it now, since a
        # process that is not dumpable is accessible only in the user namespace in which it was
        # started.
        read = os.O_RDONLY | os.O_CLOEXEC
        self._mounts = os.open("ns/mnt", read, dir_fd=thread)
        self.userns = os.open("ns/user", read, dir_fd=thread)
        with open(os.open("status", read, dir_fd=thread), "rb") as status:
            line = next((line for line in status if line.startswith(b"Umask:")), None)
        if line is None:  # the thread has ended
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self.umask = int(line.split()[1], 8)
        sandbox = _outermost(self.userns)
        own = credentials.of(thread, lambda: enter_user(sandbox))
        self.credentials = confinement.granted(own, self.userns)
        self.proc = CallerProc(process, thread, self._own_rights)
        _enter_from(sandbox, self.userns, self.credentials)

    def mounter(self, flags: int) -> Mounter:
        """Return what a filesystem without owners takes from the caller, in its user namespace's
        ids.

        Args:
            flags: MS_* flags of the mount.
        """
        uids, gids = self.credentials.uids or ROOT, self.credentials.gids or ROOT
        return Mounter(
            uids[3], gids[3], self.umask, flags & (MS_NOATIME | MS_NODIRATIME | MS_STRICTATIME)
        )

    def enter_mounts(self) -> None:
        """Enter the mount namespace; root and working directory are then the namespace's root."""
        syscalls.setns(self._mounts, CLONE_NEWNS)

    def enter(self) -> None:
        """Enter the mount namespace, root and working directory. Imports are refused from now on,
        since they would find the caller's files."""
        refuse_imports()
        self.enter_mounts()
        if not _is_root(self._root):  # a container may not allow chroot(2)
            os.fchdir(self._root)
            os.chroot(".")
        os.fchdir(self._cwd)

    @contextmanager
    def rights(self) -> Iterator[None]:
        """Have exactly the caller's rights in the body of the with statement."""
        with rights_of(self.credentials):
            yield

    @contextmanager
    def _own_rights(self) -> Iterator[None]:
        """Within :meth:`rights`: have our own rights, for access that any process has to itself."""
        self.credentials.lay_off()
        try:
            yield
        finally:
            self.credentials.take_on()
            guard()


@contextmanager
def rights_of(bearer: Credentials) -> Iterator[None]:
    """Have credentials of the user namespace that this process is in."""
    bearer.take_on()
    guard()
    try:
        yield
    finally:
        bearer.lay_off()
        guard()


@contextmanager
def visible() -> Iterator[None]:
    """Be dumpable in the body: the server of a device reads the system call and the memory of a
    process that opens it or makes an ioctl on it."""
    syscalls.set_dumpable(True)
    try:
        yield
    finally:
        syscalls.set_dumpable(False)


def enter_user(userns: int, *, root: bool = True) -> None:
    """Enter a user namespace, given by its file, as its root. The previous ids may not be mapped in
    it, and then a FUSE mount could not be accessed or created.

    Args:
        root: false: keep the ids, with all capabilities.
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
    """Return whether a directory is our root directory, also on the same mount: a bind mount of the
    root is a different root that looks the same."""
    if syscalls.mount_id(fd) != syscalls.mount_id(AT_FDCWD, "/"):
        return False
    try:
        return os.path.samestat(os.fstat(fd), os.stat("/"))
    except OSError:  # a FUSE filesystem that does not allow it
        return False


def _outermost(userns: int) -> int:
    """Return the outermost user namespace of a chain that is not ours: that of the sandbox."""
    ours = os.stat("/proc/self/ns/user").st_ino
    while os.fstat(parent := fcntl.ioctl(userns, NS_GET_PARENT)).st_ino != ours:
        userns = parent
    return userns


def enter_as(userns: int, bearer: Credentials) -> None:
    """Enter a user namespace, given by its file, to act for a bearer of credentials."""
    sandbox = _outermost(userns)
    enter_user(sandbox)
    _enter_from(sandbox, userns, bearer)


def _enter_from(sandbox: int, userns: int, bearer: Credentials) -> None:
    bearer.take_on_around()
    if os.fstat(sandbox).st_ino != os.fstat(userns).st_ino:
        enter_user(userns, root=bearer.root_ids)


def guard() -> None:
    """Clear the dumpable flag, and request to be killed when the parent ends. Both are reset by a
    change of credentials (PR_SET_DUMPABLE and PR_SET_PDEATHSIG of prctl(2))."""
    syscalls.set_dumpable(False)
    syscalls.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != _guardian[0]:
        os._exit(1)


def guard_with(parent: int) -> None:
    """As :func:`guard`, with this parent (a process id) from now on."""
    _guardian[0] = parent
    guard()
