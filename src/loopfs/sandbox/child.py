"""The child: the process that makes the namespaces and waits for the end of the command.

It runs in a fork of the supervisor and never returns.
"""

from __future__ import annotations

import os
import sys

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.errors import fork
from loopfs.lean import TYPE_CHECKING, NamedTuple, NoReturn, Sequence, signal
from loopfs.sandbox import messages
from loopfs.text import to_str
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER

if TYPE_CHECKING:
    from loopfs.sandbox.init import Command
    from loopfs.sandbox.proc import Copy
    from loopfs.settings import Settings


class _Found(NamedTuple):
    """Data that only the caller's /proc has: whether we are in a sandbox, whose supervisor then
    serves us too; the path of our terminal; and the mount points below /sys."""

    is_nested: bool
    terminal: str | None
    below_sys: Sequence[str]


def main(channel: Channel, command: Command, mask: set[int], settings: Settings) -> int:
    """Run the child and return the exit status of the command.

    Args:
        channel: to the supervisor.
        command: as in :func:`loopfs.sandbox.init.main`.
        mask: the signals that the caller had blocked.
        settings: the settings of the sandbox.
    """
    try:
        pid = _make_sandbox(channel, command, mask, settings)
    except OSError as problem:
        messages.fail(channel, problem)
        return 1
    channel.close()
    return messages.exit_status(os.waitpid(pid, 0)[1])


def _make_sandbox(channel: Channel, command: Command, mask: set[int], settings: Settings) -> int:
    """Make the sandbox; return the pid of its process 1, which has begun to start the command."""
    parent, ids = os.getppid(), (os.geteuid(), os.getegid())
    syscalls.unshare(CLONE_NEWUSER | CLONE_NEWNS)
    die_with_parent(parent)
    channel.send(messages.WANTS_MAPS)
    from loopfs.intercept.filter import install  # noqa: F401 - meanwhile: process 1 will need it
    from loopfs.sandbox import (  # noqa: F401
        dev,
        furnishing,
        host,
        init,
        landlock,
        nested,
        own_sysfs,
        proc,
        sysfs,
    )

    _await_answer(channel)
    # These read the caller's /proc about ourselves, so they come before another one is mounted.
    found = _Found(nested.is_nested(), dev.terminal(), own_sysfs.mounted_below())
    environment = init.command_environment(*ids)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_SLAVE, None)
    copy = proc.copy_for_another()
    syscalls.set_dumpable(False)  # process 1 inherits it
    gate, inits = Channel.pair()
    # Our FUSE mounts send process ids of the supervisor's pid namespace, in which we stay.
    syscalls.unshare(CLONE_NEWPID)
    pid = fork()
    if pid == 0:
        gate.close()
        _be_init(channel, inits, copy, (command, environment, mask, found.is_nested))
    inits.close()
    if copy is not None:
        copy.close()
    _enter_mounts_of_init(gate)
    _build(channel, gate, found, settings)
    gate.send(messages.OK)
    gate.close()
    if copy is not None:
        os.waitpid(copy.maker, 0)
    return pid


def _be_init(
    channel: Channel,
    gate: Channel,
    copy: Copy | None,
    command: tuple[Command, dict[str, str], set[int], bool],
) -> NoReturn:
    status = 1
    try:
        from loopfs.sandbox import init, proc

        die_with_parent(0)  # the process id of a parent outside of the pid namespace
        try:
            proc.mount_proc(copy)
            namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            gate.send(messages.OK, (namespace,))
            os.close(namespace)
            _await_start(gate)
        except BrokenPipeError:  # the child was killed, and we will be
            os._exit(1)
        except OSError as problem:
            messages.fail(channel, problem)
            os._exit(1)
        gate.close()
        status = init.main(channel, *command)
    except BaseException:  # nothing may return into the child's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _enter_mounts_of_init(gate: Channel) -> None:
    (namespace,) = messages.expect(gate, messages.OK).fds
    syscalls.setns(namespace, CLONE_NEWNS)
    os.close(namespace)


def _build(channel: Channel, gate: Channel, found: _Found, settings: Settings) -> None:
    """Make the mounts of the sandbox, and report them to the supervisor.

    Args:
        gate: to process 1.
    """
    from loopfs.sandbox import dev, host, own_sysfs, sysfs

    kept = dev.keep(found.terminal)
    if found.is_nested:
        dev.build(kept)
        if not settings.bare:
            dev.mount_nested_instance()
        host.build()
        channel.send(messages.MOUNTED)
        return
    # A descriptor of /dev/fuse can be mounted only in the user namespace that has opened it.
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    has_own_sysfs = own_sysfs.replace(found.below_sys)
    hosts = sysfs.keep_hosts(loops=settings.number_from is None)
    views = sysfs.mount_views()  # before /dev is replaced: it needs /dev/fuse
    host.build()
    served = {}
    if hosts:
        served["sys"] = hosts, views[sysfs.DEVICES][1]
    if settings.bare:
        dev.build(kept)
    else:
        dev.mount_instance(fuse)
        channel.send(messages.FUSE, (fuse,))
        served["dev"] = kept, fuse
    words = ";".join(f"{what}:{','.join(names)}" for what, (names, _) in served.items())
    gate.send(messages.SERVE + words.encode(), tuple(fd for _, fd in served.values()))
    os.close(fuse)
    if not settings.bare:
        dev.furnish(kept)
    sysfs.place_hosts(hosts)
    gate.send(messages.OK)  # from now on lookups wait for the supervisor
    root = os.open("/dev", os.O_PATH | os.O_CLOEXEC)
    fds = root, *(fd for _, fd in views.values())
    words = f"{','.join(kept)} {','.join(hosts)} {sysfs.described(views, has_own_sysfs)}"
    channel.send(messages.MOUNTED + f" {words}".encode(), fds)
    for fd in fds:
        os.close(fd)


def die_with_parent(parent: int) -> None:
    """Arrange to be killed when the parent ends; exit if it has already ended.

    Args:
        parent: its process id in our pid namespace.
    """
    syscalls.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _await_start(gate: Channel) -> None:
    """Wait until the sandbox is built; meanwhile serve its /dev and /sys when requested."""
    from loopfs.sandbox import furnishing

    message = gate.receive()
    if message.data.startswith(messages.SERVE):
        words = to_str(message.data[len(messages.SERVE) :]).split(";")
        furnishing.serve_until_told(gate, furnishing.understood(words, message.fds))
        for fuse in message.fds:
            os.close(fuse)
        _await_answer(gate)
        message = gate.receive()
    if not message.data:
        os._exit(1)


def _await_answer(channel: Channel) -> None:
    if not channel.receive().data:
        os._exit(1)  # the other process has ended, or has reported its failure
