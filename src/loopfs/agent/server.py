"""The agent: it accepts connections of container runtimes, and forks a process for each.

It does not examine containers itself and has no state of them: if it is killed, they continue.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module

from loopfs.agent import keeper, state
from loopfs.agent.doors import Doors
from loopfs.agent.log import say
from loopfs.channel import close_all
from loopfs.errors import LoopfsError

LONGEST = 80  # bytes of the socket's path: those of the doors are longer, and 107 is the maximum
ENDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Agent:
    """The agent's listening socket.

    Args:
        path: of the socket.
    Raises:
        LoopfsError: it cannot listen there.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._doors = Doors(f"{self._path}.d", keeper.WITHIN)
        if len(os.fsencode(self._path)) > LONGEST:
            raise LoopfsError(errno.ENAMETOOLONG, f"{path}: longer than {LONGEST} bytes")
        try:
            with self._doors.locked():
                self._listening = self._listen()
        except LoopfsError:
            raise
        except OSError as problem:
            raise LoopfsError(problem.errno or 0, f"{path}: {problem.strerror}") from None

    def _listen(self) -> socket.socket:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                os.unlink(self._path)  # left by an agent that was killed
            except FileNotFoundError:
                pass
            else:
                raise LoopfsError(errno.EADDRINUSE, f"{self._path}: an agent listens there already")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listening.bind(self._path)
        finally:
            os.umask(mask)
        listening.listen(64)
        listening.setblocking(False)
        return listening

    def serve(self) -> None:
        """Accept connections until SIGTERM, SIGINT or SIGHUP. Containers that are served keep their
        devices."""
        made = os.lstat(self._path)
        prepare()
        self._woken = woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker)
        for number in ENDERS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        poller = select.poll()
        poller.register(self._listening, select.POLLIN)
        poller.register(woken, select.POLLIN)
        say(f"listens on {self._path}")
        while not any(fd == woken for fd, _ in poller.poll()):
            self._accept()
        self._listening.close()
        with suppress(OSError):  # another agent may have made a new socket
            if os.path.samestat(made, os.lstat(self._path)):
                os.unlink(self._path)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return  # the peer has closed the connection
        with connection:
            uid = state.peer_user(connection)
            if uid != os.geteuid():
                say(f"a connection was refused: it is from user {uid}")
                return
            try:
                if os.fork() == 0:
                    self._keep(connection)
            except OSError as problem:
                say(f"a connection was refused: no process for it ({problem.strerror})")

    def _keep(self, connection: socket.socket) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*ENDERS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.chdir("/")
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1):  # a reader of the agent's output must not wait for containers
                os.dup2(null, fd)
            os.close(null)
            close_all([*self._woken, self._listening.detach()])
            connection.setblocking(True)
            keeper.main(connection, self._doors)
            status = 0
        except BaseException:  # nothing may return into the agent's code
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)


def prepare() -> None:
    """Import all modules that a container's supervisor, its jobs and engines need: these are forks
    of the agent, and have other root directories."""
    for package in _PACKAGES:
        for module in pkgutil.iter_modules(import_module(package).__path__):
            if not module.ispkg:  # the package is embedded, which is not used for containers
                import_module(f"{package}.{module.name}")
    for name in _CODECS:
        import_module(name)


_PACKAGES = (
    *("loopfs.ext4", "loopfs.fat", "loopfs.iso9660", "loopfs.udf", "loopfs.fuse"),
    "loopfs.engines",
)
_CODECS = (
    *("encodings.cp437", "encodings.utf_16_le", "encodings.utf_16_be", "encodings.latin_1"),
    *("json", "queue"),
)
