"""The first process of a container: its process id may be reused meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loopfs.agent import notifications
from loopfs.agent.notifications import First
from loopfs.uapi import seccomp as uapi
from loopfs.uapi.mount import NS_GET_MNTNS_ID

LISTENER = -1


@contextmanager
def waiting() -> Iterator[uapi.Notification]:
    """A call of a process that waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield uapi.Notification(1, process.pid, 0, 0, 0, 0, *(0,) * 6)


def kernel(monkeypatch: pytest.MonkeyPatch, *, waits: bool, numbers: bool = True) -> None:
    """One in which the call waits or does not, and mount namespaces have numbers or not."""
    real = fcntl.ioctl

    def ioctl(fd: int, command: int, argument: bytes, mutate: bool = True) -> object:
        if fd == LISTENER:
            assert command == uapi.SECCOMP_IOCTL_NOTIF_ID_VALID
            if not waits:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return 0
        if command == NS_GET_MNTNS_ID and not numbers:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return real(fd, command, argument, mutate)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def test_one_that_was_killed_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has its process id now is another."""
    kernel(monkeypatch, waits=False)
    monkeypatch.setattr(First, "_look", lambda _: pytest.fail("it is looked at"))
    before = os.listdir("/proc/self/fd")
    with waiting() as call, pytest.raises(ProcessLookupError):
        First(LISTENER, call)
    assert os.listdir("/proc/self/fd") == before


def test_one_that_is_killed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, waits=True)
    monkeypatch.setattr(First, "alive", lambda _: False)
    with waiting() as call, pytest.raises(ProcessLookupError):
        First(LISTENER, call)


@pytest.mark.parametrize("numbers", [True, False])
def test_what_it_is_found_by(monkeypatch: pytest.MonkeyPatch, numbers: bool) -> None:
    """The number of a mount namespace, or of its inode, which another can have later."""
    kernel(monkeypatch, waits=True, numbers=numbers)
    inode = os.stat("/proc/self/ns/mnt").st_ino
    with waiting() as call:
        begun = First(LISTENER, call)
    assert begun.userns == os.stat("/proc/self/ns/user").st_ino
    assert begun.mounts == notifications.First(LISTENER, call._replace(pid=os.getpid())).mounts
    assert numbers or begun.mounts == str(inode)
    begun.close()
