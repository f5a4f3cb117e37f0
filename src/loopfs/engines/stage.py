"""The stage: a mount namespace in which an engine runs and mounts, before the mount is moved to the
caller."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
from contextlib import suppress

from loopfs import syscalls
from loopfs.channel import Channel, close_all_but
from loopfs.engines import fusermount
from loopfs.engines.engine import SEARCH_PATH, find_program
from loopfs.engines.superblock import connection_of
from loopfs.errors import LoopfsError, errno_of
from loopfs.lean import NamedTuple, NoReturn, signal
from loopfs.text import to_str
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWPID

MOUNTPOINT = "/dev/filesystem"
_DEVICE = "/dev/device"
_NODES = ("null", "fuse")  # the devices that an engine needs
_PROGRAMS = "/dev/programs"
_FUSERMOUNTS = ("/usr/bin/fusermount", "/bin/fusermount")
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
_INTERVAL = 1  # milliseconds
_SAID = 4096  # maximum size in bytes of an engine's messages


class Server(NamedTuple):
    """A running engine: its process id and a pidfd."""

    pid: int
    pidfd: int


class Stage:
    """A copy of the host's mounts, owned by the caller's user namespace, which we are in.

    It has the host's programs and libraries, whatever root the caller has. An engine is the only
    process in its pid namespace, and outlives the sandbox's until it has written everything.
    """

    def __init__(self) -> None:
        syscalls.unshare(CLONE_NEWNS)
        syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_PRIVATE, None)
        self._namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def enter(self) -> None:
        """Enter the namespace, at its root."""
        syscalls.setns(self._namespace, CLONE_NEWNS)

    def build(self, fstype: str) -> None:
        """Enter the namespace, and create a /dev with only what the engine needs."""
        self.enter()
        nodes = {name: syscalls.open_tree(uapi.AT_FDCWD, f"/dev/{name}", _CLONE) for name in _NODES}
        syscalls.mount("stage", "/dev", "tmpfs", uapi.MS_NOSUID, "size=64k,mode=0755")
        for name, tree in nodes.items():
            place = os.open(f"/dev/{name}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
            syscalls.move_mount(tree, place)
        os.mkdir(MOUNTPOINT)
        _write_fusermount(fstype)
        os.chdir("/")

    def mount_device(self) -> int:
        """Mount, in the built stage, the filesystem with the device; return its /dev/fuse."""
        os.mkdir(_DEVICE, 0o700)
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        flags = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
        data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount("loop", _DEVICE, "fuse.loop", flags, data)
        return fuse

    def show(self, name: str, shown: str) -> None:
        """Bind-mount the device, ``name`` in that mount, at ``shown``: an engine passes the path
        with which it opened its device to the kernel, and mountinfo shows it."""
        os.makedirs(os.path.dirname(shown), exist_ok=True)
        os.close(os.open(shown, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC))
        syscalls.mount(f"{_DEVICE}/{name}", shown, None, uapi.MS_BIND, None)

    def start(
        self, command: list[str], environment: dict[str, str], device: int, caller: int
    ) -> Server:
        """Start an engine and wait until it serves the filesystem mounted on MOUNTPOINT.

        Until :meth:`clear` the stage has a mount of the engine's filesystem, so the engine would
        not end by itself. If this process fails before, a keeper kills the engine.

        Args:
            command: its command line.
            environment: its environment besides PATH and LC_ALL.
            device: the only descriptor that it inherits.
            caller: a pidfd: when it ends, there is no one to wait for the mount.
        Raises:
            OSError: EINVAL if it exited, for example because there is no filesystem of its type (a
                LoopfsError with its message, if it printed one); EAGAIN, ENOMEM if its process
                cannot be created.
        """
        said = _paper()
        # Before an engine can have mounted there.
        bare = syscalls.statx_dev(uapi.AT_FDCWD, MOUNTPOINT)
        self._keeper, keepers = Channel.pair()
        if os.fork() == 0:
            self._keeper.close()
            _keep(keepers, command, environment, device, said)
        keepers.close()
        word, started, _ = self._keeper.receive()
        if not started:
            code = int(word or errno.EINVAL)
            raise OSError(code, os.strerror(code))
        server = Server(syscalls.pidfd_pid(started[0]), started[0])
        if not (_wait_for_mount(bare, server.pidfd, caller) and _wait_for_server(server, caller)):
            signal.pidfd_send_signal(server.pidfd, signal.SIGKILL)
            if sentence := _last_line(said):
                raise LoopfsError(errno.EINVAL, sentence)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.close(said)
        return server

    def clear(self) -> None:
        """Unmount it in the stage: the engine then ends with the last mount that is elsewhere."""
        syscalls.umount2(MOUNTPOINT, uapi.MNT_DETACH)
        self._keeper.send(b"cleared")


def _write_fusermount(fstype: str) -> None:
    """Install our fusermount where libfuse looks for it: at its usual path, and on PATH."""
    os.mkdir(_PROGRAMS)
    path = f"{_PROGRAMS}/fusermount"
    with open(path, "x", encoding="utf-8") as file:
        file.write(fusermount.script(fstype))
    os.chmod(path, 0o755)
    for place in _FUSERMOUNTS:
        with suppress(FileNotFoundError):
            syscalls.mount(path, place, None, uapi.MS_BIND, None)


def _paper() -> int:
    """Return a file for an engine's messages, which cannot grow."""
    paper = os.memfd_create("said", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(paper, _SAID)
    fcntl.fcntl(paper, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return paper


def _last_line(paper: int) -> str:
    lines = os.pread(paper, _SAID, 0).rstrip(b"\0\n ").splitlines()
    return to_str(lines[-1].strip()) if lines else ""


def _keep(
    channel: Channel, command: list[str], environment: dict[str, str], device: int, said: int
) -> NoReturn:
    """Start an engine, send its pidfd, and kill it if the other end closes without a message."""
    try:
        close_all_but(channel.fileno(), device, said)  # what is inherited may lack close-on-exec
        try:
            syscalls.unshare(CLONE_NEWPID)
            pid = _spawn(command, environment, device, said)
        except OSError as problem:
            channel.send(b"%d" % errno_of(problem))
            os._exit(1)
        cleared = b""
        with suppress(BrokenPipeError):  # the other end is closed already
            channel.send(b"started", (os.pidfd_open(pid),))
            cleared = channel.receive().data
        if not cleared:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except BaseException:  # no exception may return into the job's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _spawn(command: list[str], environment: dict[str, str], device: int, said: int) -> int:
    """Start the engine, with no descriptors but the device and the file for its messages; return
    its process id.

    Raises:
        OSError: ENOENT if it is not installed.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.set_inheritable(device, True)
    always = {"PATH": f"{_PROGRAMS}:{SEARCH_PATH}", "LC_ALL": "C.UTF-8"}
    return os.posix_spawn(  # it copies no memory, unlike fork
        find_program(command[0]) or command[0],
        command,
        always | environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, null, 1),
            (os.POSIX_SPAWN_DUP2, said, 2),
        ],
        setsid=True,
        setsigmask=(),
    )


def _wait_for_mount(bare: int, server: int, caller: int) -> bool:
    """Wait until something is mounted. Return False if the server (a pidfd) or the caller has
    ended.

    Args:
        bare: the device number of the mount point while nothing is mounted there.
    """
    with open("/proc/self/mountinfo", "rb", buffering=0) as mounts:
        poller = select.poll()
        poller.register(mounts, select.POLLPRI)
        poller.register(server, select.POLLIN)
        poller.register(caller, select.POLLIN)
        while syscalls.statx_dev(uapi.AT_FDCWD, MOUNTPOINT) == bare:
            if any(fd != mounts.fileno() for fd, _ in poller.poll()):
                return False
    return True


def _wait_for_server(server: Server, caller: int) -> bool:
    """Wait until the server has the connection; as :func:`_wait_for_mount`.

    A mount by our fusermount is visible a moment before the connection has been passed on.
    """
    poller = select.poll()
    poller.register(server.pidfd, select.POLLIN)
    poller.register(caller, select.POLLIN)
    while True:
        try:
            os.close(connection_of(server.pidfd, server.pid))
        except OSError:  # not yet, or not any more; then the poll detects its end
            if poller.poll(_INTERVAL):
                return False
        else:
            return True
