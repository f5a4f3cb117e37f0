"""The server of a device of ``loopfs.attach``: an instance with one device, mounted nowhere.

It stays in the caller's user namespace, because the kernel permits only processes there to access
the memory of a caller of ioctl(2). A child makes the FUSE mount, in a user namespace of its own,
and attaches it to no path: when the last descriptor is closed, the kernel ends the connection, and
the server exits.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from typing import Any

from loopfs import syscalls
from loopfs.api import messages
from loopfs.channel import Channel
from loopfs.driver.minors import Minors
from loopfs.errors import LoopfsError, SetupError, fork
from loopfs.filesystems.backing import FileFacts
from loopfs.filesystems.instances import Instances, Owner
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.threads import start
from loopfs.lean import TYPE_CHECKING, NoReturn, signal
from loopfs.limits import raise_limits
from loopfs.sandbox import control_socket, idmap
from loopfs.sandbox import messages as sandbox_messages
from loopfs.sandbox.run import check_proc
from loopfs.uapi import loop
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWUSER

if TYPE_CHECKING:
    from loopfs.engines.running import Engine

MADE = b"made"  # from the child: st_dev and the user namespace; with /dev/fuse and the mount


def main() -> NoReturn:
    """Run the server. Arguments of the process: the descriptor of the channel to the caller, and
    the arguments of :func:`_bound` as JSON."""
    channel, about = Channel.of_descriptor(int(sys.argv[1])), json.loads(sys.argv[2])
    status = 1
    try:
        if fork() != 0:
            os._exit(0)
        status = _serve(channel, about)
    except LoopfsError as problem:
        sentence = str(problem.strerror)
        if isinstance(problem, SetupError):
            from loopfs.cli.doctor import cause

            sentence = cause(problem)
        channel.send(messages.error(problem.code, sentence))
    except OSError as problem:
        channel.send(messages.of_problem(problem))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)  # threads may still be blocked in the kernel


def _serve(channel: Channel, about: dict[str, Any]) -> int:
    """Make the device, pass it to the caller, and serve it. Raises LoopfsError, OSError."""
    os.setsid()  # signals of the terminal are not for us
    raise_limits()
    check_proc()
    filesystem, mount, instances = _instance()
    start("loop", instances.serve, filesystem)
    start("control", _control, instances, os.readlink(f"/proc/self/fd/{about['image']}"))
    device = _bound(mount, **about)
    os.close(mount)
    channel.send(messages.pack({}), (device,))
    os.close(device)
    channel.close()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stream in range(3):  # a reader of the caller's output must not wait for us
        os.dup2(null, stream)
    filesystem.gone.wait()
    return 0


def _instance() -> tuple[LoopFilesystem, int, Instances]:
    """Return the filesystem to be served, its mount, and the instances. Raises SetupError."""
    ours, childs = Channel.pair()
    pid = fork()
    if pid == 0:
        ours.close()
        _be_mounter(childs)
    childs.close()
    with ours:
        message = sandbox_messages.expect(ours, MADE)
    os.waitpid(pid, 0)
    fuse, mount = message.fds
    number, userns = map(int, message.data[len(MADE) :].split())
    maps = {"uid": f"0 {os.geteuid()} 1\n", "gid": f"0 {os.getegid()} 1\n"}
    instances = Instances(Minors(0), _refuse_stat, _refuse_partitions)
    namespaces = userns, os.stat("/proc/self/ns/user").st_ino
    filesystem = instances.add(fuse, number, Owner(namespaces, maps.__getitem__))
    return filesystem, mount, instances


def _be_mounter(channel: Channel) -> NoReturn:
    """Mount an instance in a user namespace of our own, attached to no path."""
    from loopfs.engines.superblock import fuse_context

    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ids = os.geteuid(), os.getegid()
        syscalls.unshare(CLONE_NEWUSER | CLONE_NEWNS)
        idmap.write_own(*ids)
        # A descriptor of /dev/fuse can be mounted only in the user namespace that has opened it.
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        # Without allow_other it is open to all processes of its user, in any user namespace.
        context = fuse_context(fuse, "loop", "loop", allow_other=False)
        tree = syscalls.fsmount(context, 0)
        userns = os.stat("/proc/self/ns/user").st_ino
        channel.send(MADE + f" {syscalls.statx_dev(tree)} {userns}".encode(), (fuse, tree))
        status = 0
    except OSError as problem:
        sandbox_messages.fail(channel, problem)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _bound(
    mount: int, image: int, offset: int, sizelimit: int, read_only: bool, sector_size: int
) -> int:
    """Bind the device and return a descriptor of it; close ``image``. Raises LoopfsError."""
    writable = fcntl.fcntl(image, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR and not read_only
    flags = loop.LO_FLAGS_AUTOCLEAR | (0 if writable else loop.LO_FLAGS_READ_ONLY)
    name = os.fsencode(os.readlink(f"/proc/self/fd/{image}"))[: loop.LO_NAME_SIZE - 1]
    info = loop.LoopInfo64(offset=offset, sizelimit=sizelimit, flags=flags, file_name=name)
    control = os.open("loop-control", os.O_RDWR | os.O_CLOEXEC, dir_fd=mount)
    number = fcntl.ioctl(control, loop.LOOP_CTL_GET_FREE)
    os.close(control)
    mode = os.O_RDWR if writable else os.O_RDONLY
    device = os.open(f"loop{number}", mode | os.O_CLOEXEC, dir_fd=mount)
    try:
        fcntl.ioctl(device, loop.LOOP_CONFIGURE, loop.LoopConfig(image, sector_size, info).pack())
    except OSError as problem:
        raise LoopfsError(
            problem.errno or 0, f"the file cannot be attached: {problem.strerror}"
        ) from None
    os.close(image)
    return device


class _Served:
    """The instance; its device cannot be mounted."""

    def __init__(self, instances: Instances) -> None:
        self.instances = instances

    def alive(self) -> list[Engine]:
        return []


def _control(instances: Instances, path: str) -> None:
    """Answer `loopfs ls` and `detach`; modules are imported at the first request."""
    import select

    listener = control_socket.listen()
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.poll()
    from loopfs.sandbox.control import Control

    control = Control(_Served(instances), ["loopfs.attach", path], os.geteuid())
    control.serve(listener.detach())


def _refuse_stat(fd: int) -> FileFacts:
    """Refuse fstat(2) of a file that only a process in another user namespace may examine."""
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _refuse_partitions(*_: int) -> NoReturn:
    """Refuse to read a partition table: such a device has no partitions."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
