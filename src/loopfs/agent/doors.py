"""The sockets by which the keepers of containers are found again.

They are in a directory of the agent's user alone, PATH.d, named by the containers' mount
namespaces. It is made when the first one is, and removed with the last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loopfs.errors import LoopfsError


class Door:
    """One of a keeper's.

    Args:
        socket: listens, if it is new; else it is connected to the keeper.
        doors: where it is.
        path: its own.
    """

    def __init__(self, sock: socket.socket, is_new: bool, doors: Doors, path: str) -> None:
        self.socket = sock
        self.is_new = is_new
        self._is_there = is_new
        self._doors = doors
        self._path = path

    def remove(self) -> None:
        """Have nobody find it any more: the next who comes makes another one of that name."""
        if self._is_there:
            self._is_there = False
            with self._doors.locked(), suppress(FileNotFoundError):
                os.unlink(self._path)
        self.socket.close()


class Doors:
    """Those of one agent.

    Args:
        path: the directory.
        within: seconds for what a keeper has to say.
    """

    def __init__(self, path: str, within: float) -> None:
        self._path = path
        self._within = within

    @contextmanager
    def at(self, name: str) -> Iterator[Door]:
        """A connection to a door; or a new one, which listens, and is removed afterwards if it has
        not been.

        Raises:
            OSError: the directory cannot be made, or is not ours alone (a LoopfsError); there is no
                room; a keeper does not accept.
        """
        path = f"{self._path}/{name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            with self.locked():
                is_new = self._enter(sock, path)
            door = Door(sock, is_new, self, path)
            try:
                yield door
            finally:
                door.remove()

    def _enter(self, sock: socket.socket, path: str) -> bool:
        sock.settimeout(self._within)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):  # there was one, and it was killed
            with suppress(FileNotFoundError):
                os.unlink(path)
            sock.settimeout(None)
            sock.bind(path)
            sock.listen()
            return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else makes or removes a door meanwhile. The directory is there, and is removed
        afterwards if it is empty.

        Raises:
            LoopfsError: EPERM: it is not ours alone.
        """
        directory = self._open()
        try:
            found = os.fstat(directory)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
                sentence = f"{self._path} is not a directory of yours alone"
                raise LoopfsError(errno.EPERM, sentence)
            try:
                yield
            finally:
                with suppress(OSError):  # there are doors
                    os.rmdir(self._path)
        finally:
            os.close(directory)

    def _open(self) -> int:
        """The directory, with a lock on it."""
        while True:
            with suppress(FileExistsError):
                os.mkdir(self._path, 0o700)
            with suppress(FileNotFoundError):  # removed meanwhile
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                directory = os.open(self._path, flags)
                fcntl.flock(directory, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(directory), os.lstat(self._path)):
                        return directory
                os.close(directory)
