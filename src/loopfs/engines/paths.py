"""Path resolution with the result that the caller of a system call would get.

The resolving process has entered the caller's mount namespace, root and working directory, so the
kernel does most of it. The exceptions are /proc/self and /proc/thread-self, which must refer to the
caller.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from loopfs import syscalls
from loopfs.lean import NamedTuple
from loopfs.uapi.magic import PROC_SUPER_MAGIC

MAX_LINKS = 40  # MAXSYMLINKS
_PROC_ROOT_INO = 1
Rights = Callable[[], AbstractContextManager[None]]
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class CallerProc(NamedTuple):
    """Descriptors of the caller's own directories in /proc.

    ``own_rights`` is a context in which they are accessed: the kernel gives a process access to its
    own directory whatever its credentials are, and we are another process.
    """

    process: int
    thread: int
    own_rights: Rights = nullcontext


def resolve(path: str, proc: CallerProc) -> int:
    """Return an O_PATH descriptor of the file that ``path`` names; symbolic links are followed.

    Raises:
        OSError: as open(2).
    """
    directory, name, must_be_directory = _walk(path, proc, follow=True)
    if not name:
        place = directory
    else:
        try:
            place = os.open(name, _PATH, dir_fd=directory)
        finally:
            os.close(directory)
    if must_be_directory and not stat.S_ISDIR(os.fstat(place).st_mode):
        os.close(place)
        raise _error(errno.ENOTDIR)
    return place


def resolve_parent(path: str, proc: CallerProc, follow: bool = True) -> tuple[int, str]:
    """Return the directory that contains the last component of ``path``, and that component.

    If ``follow``, the component is not a symbolic link. It is empty if the path ends at a place
    without a name ("/", "..", a magic link): then the descriptor refers to the place itself.
    """
    return _walk(path, proc, follow)[:2]


def _walk(path: str, proc: CallerProc, follow: bool) -> tuple[int, str, bool]:
    """As :func:`resolve_parent`; also return whether the path must end at a directory."""
    if not path:
        raise _error(errno.ENOENT)
    current = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_CLOEXEC)
    todo = _components(path)
    rights: Rights = nullcontext  # the caller's rights, which we have, or our own
    must_be_directory = _ends_at_directory(path)
    links = 0
    while todo:
        name = todo.pop(0)
        if name == "..":
            rights = nullcontext
            current = _move(current, "..")
            continue
        if name in ("self", "thread-self") and _is_proc_root(current):
            os.close(current)
            current = os.dup(proc.process if name == "self" else proc.thread)
            rights = proc.own_rights
            continue
        to_be_followed = todo or follow or must_be_directory
        with rights():
            link = _link_text(current, name) if to_be_followed else None
        if link is None:
            if not todo:
                return current, name, must_be_directory
            with rights():
                current = _move(current, name)
            continue
        links += 1
        if links > MAX_LINKS:
            raise _error(errno.ELOOP)
        if _is_proc(current) and not _is_proc_root(current):
            with rights():
                current = _follow_magic(current, name)
            rights = nullcontext
            continue
        must_be_directory |= not todo and _ends_at_directory(link)
        if link.startswith("/"):
            os.close(current)
            current = os.open("/", os.O_PATH | os.O_CLOEXEC)
        rights = nullcontext
        todo = _components(link) + todo
    return current, "", must_be_directory


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _ends_at_directory(path: str) -> bool:
    return path.endswith(("/", "/."))


def _is_proc(directory: int) -> bool:
    return syscalls.filesystem_type(directory) == PROC_SUPER_MAGIC


def _is_proc_root(directory: int) -> bool:
    return _is_proc(directory) and os.fstat(directory).st_ino == _PROC_ROOT_INO


def _link_text(directory: int, name: str) -> str | None:
    try:
        if not stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            return None
        return os.readlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None  # the following open returns the error


def _move(directory: int, name: str) -> int:
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _follow_magic(directory: int, name: str) -> int:
    try:
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
