"""The child: makes the namespaces and waits for the command's end.

It runs in a fork of the supervisor and never returns.
"""

from __future__ import annotations

import os
import sys

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.errors import LoopfsError, SetupError
from loopfs.lean import Sequence, signal
from loopfs.sandbox import messages
from loopfs.text import to_bytes
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER


def main(channel: Channel, argv: Sequence[str], mask: set[int], *, bare: bool) -> int:
    """Be the child. Returns the exit status.

    Args:
        channel: to the supervisor.
        argv: the command.
        mask: the signals that the caller had blocked.
        bare: make no instance.
    """
    try:
        is_nested = _make_namespaces(channel, bare)
        pid = _fork_init(channel, argv, mask, is_nested)
    except LoopfsError as problem:
        channel.send(messages.FAILED + to_bytes(f"{problem.code}:{problem.strerror}"))
        return 1
    channel.close()
    return messages.exit_status(os.waitpid(pid, 0)[1])


def _make_namespaces(channel: Channel, bare: bool) -> bool:
    """Make them, with all mounts; returns whether a sandbox is around us, whose supervisor
    serves us too."""
    parent = os.getppid()
    try:
        syscalls.unshare(CLONE_NEWUSER | CLONE_NEWNS)
    except OSError as problem:
        raise SetupError(
            problem.errno or 0,
            f"cannot make a user namespace ({problem.strerror}); `loopfs doctor` says what to do",
        ) from None
    die_with_parent(parent)
    channel.send(messages.WANTS_MAPS)
    from loopfs.intercept.filter import install  # noqa: F401 - meanwhile: process 1 will need it
    from loopfs.sandbox import dev, init, nested, sysfs  # noqa: F401

    _await_answer(channel)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_SLAVE, None)
    if nested.is_nested():
        dev.build()
        if not bare:
            dev.mount_nested_instance()
        _own_mount_table()
        channel.send(messages.MOUNTED.encode())
        return True
    try:
        # Only its own user namespace may mount what a descriptor of /dev/fuse serves.
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        raise SetupError(
            problem.errno or 0,
            f"cannot open /dev/fuse ({problem.strerror}); `loopfs doctor` says what to do",
        ) from None
    dev.build()
    if not bare:
        dev.mount_instance(fuse)
    views = sysfs.mount_views()
    _own_mount_table()
    directory = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    root = os.open("/dev" if bare else dev.INSTANCE, os.O_PATH | os.O_CLOEXEC)
    fds = fuse, directory, root, *views.values()
    channel.send(" ".join([messages.MOUNTED, *views]).encode(), fds)
    for fd in fds:
        os.close(fd)
    return False


def _own_mount_table() -> None:
    """Give mount(8) a /run/mount of its own: it notes loop mounts there (utab)."""
    try:
        flags = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC
        syscalls.mount("utab", "/run/mount", "tmpfs", flags, "mode=0755,size=1m")
    except FileNotFoundError:
        return  # then mount(8) does without


def _fork_init(channel: Channel, argv: Sequence[str], mask: set[int], is_nested: bool) -> int:
    # After the instance was mounted, so that its requests carry process ids of the
    # supervisor's namespace.
    syscalls.unshare(CLONE_NEWPID)
    from loopfs.sandbox import init

    pid = os.fork()
    if pid == 0:
        die_with_parent(0)  # as what a parent outside the namespace appears
        status = 1
        try:
            status = init.main(channel, argv, mask, nested=is_nested)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return pid


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, even if it has ended already.

    Args:
        parent: its process id as we see it.
    """
    syscalls.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _await_answer(channel: Channel) -> None:
    if not channel.receive().data:
        os._exit(1)  # the supervisor is gone, or has said what is wrong
