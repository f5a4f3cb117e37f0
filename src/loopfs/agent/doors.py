"""Doors: the sockets by which the keepers of containers are found again.

They are in a directory that only the agent's user can access, PATH.d, and are named after the
mount namespaces of the containers. The directory is made with the first door, and removed with the
last one.
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
    """The socket of a keeper.

    Args:
        sock: a listening socket if ``is_new``; otherwise it is connected to the keeper.
        is_new: this process has made it.
        doors: the directory.
        path: of the socket.
    """

    def __init__(self, sock: socket.socket, is_new: bool, doors: Doors, path: str) -> None:
        self.socket = sock
        self.is_new = is_new
        self._is_there = is_new
        self._doors = doors
        self._path = path

    def remove(self) -> None:
        """Remove the socket: after that, another one of that name can be made."""
        if self._is_there:
            self._is_there = False
            with self._doors.locked(), suppress(FileNotFoundError):
                os.unlink(self._path)
        self.socket.close()


class Doors:
    """The doors of one agent.

    Args:
        path: the directory.
        within: seconds that a keeper may take to answer.
    """

    def __init__(self, path: str, within: float) -> None:
        self._path = path
        self._within = within

    @contextmanager
    def at(self, name: str) -> Iterator[Door]:
        """Yield a connection to a door, or a new door that listens; a new one is removed at the
        end.

        Raises:
            OSError: the directory cannot be made, or other users can access it (a LoopfsError); the
                disk is full; a keeper does not accept.
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
        except (FileNotFoundError, ConnectionRefusedError):  # refused: its keeper was killed
            with suppress(FileNotFoundError):
                os.unlink(path)
            sock.settimeout(None)
            sock.bind(path)
            sock.listen()
            return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from making or removing a door. The directory exists meanwhile,
        and is removed afterwards if it is empty.

        Raises:
            LoopfsError: EPERM: other users can access the directory.
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
                with suppress(OSError):  # it is not empty
                    os.rmdir(self._path)
        finally:
            os.close(directory)

    def _open(self) -> int:
        """Make the directory if necessary, open it, and lock it."""
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
