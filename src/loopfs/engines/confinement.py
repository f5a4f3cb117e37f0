"""Confinement of an engine to its container: the container's cgroup, an empty root, no network, no
capabilities, and only the few system calls that serving needs.

In a sandbox of ``loopfs run`` an engine that has been compromised by an image has the same rights
as the caller's own programs. But the images of a container are not trusted, and the engine runs as
the agent's user. So each engine, and libblkid too, is confined before it reads the first byte.
"""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.engines.credentials import Credentials
from loopfs.errors import LoopfsError, errno_of
from loopfs.lean import Callable, NamedTuple, NoReturn, signal
from loopfs.sandbox import landlock
from loopfs.uapi import mount as uapi
from loopfs.uapi.magic import PROC_SUPER_MAGIC, SYSFS_MAGIC
from loopfs.uapi.sched import (
    CAP_SYS_ADMIN,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    PR_SET_NO_NEW_PRIVS,
)

_ROOT = "/proc"  # a directory in every mount namespace; the new root is mounted on it
_ANSWER = 1 << 20  # bytes


class Confinement(NamedTuple):
    """The confinement of one container.

    Args:
        userns: its user namespace (inode number), whose root may mount without CAP_SYS_ADMIN.
        cgroups: open cgroup.procs files of its cgroups; empty if it has the agent's.
    """

    userns: int
    cgroups: tuple[int, ...]


_confinement: list[Confinement] = []  # of this process's container; empty in a sandbox


def adopt(confinement: Confinement) -> None:
    """Confine all engines of this process and of its children."""
    _confinement[:] = [confinement]


def is_wanted() -> bool:
    """Return whether engines are to be confined."""
    return bool(_confinement)


def descriptors() -> tuple[int, ...]:
    """Return the descriptors that :func:`confine` needs."""
    return _confinement[0].cgroups if _confinement else ()


def granted(bearer: Credentials, userns: int) -> Credentials:
    """Return the credentials of a caller, with the additional rights that the agent grants.

    Args:
        userns: a descriptor of its user namespace.
    """
    if not _confinement or os.fstat(userns).st_ino != _confinement[0].userns:
        return bearer
    if bearer.uids is None or bearer.uids[1] != 0:
        return bearer
    return bearer._replace(effective=bearer.effective | 1 << CAP_SYS_ADMIN)


def refuse_programs() -> None:
    """Raise LoopfsError if engines are to be confined, which is impossible for a program."""
    if _confinement:
        raise LoopfsError(
            errno.EOPNOTSUPP,
            "in a container, the image must be a file of a filesystem that the kernel serves by"
            " itself: put it on a volume or a tmpfs",
        )


def check_place(place: int) -> None:
    """Check that a container's root may mount at a place (a descriptor).

    The runtime must find its own root directory, /proc and /sys when it executes a program in the
    container, including the mounts that hide parts of them. The capabilities of the container's
    root let this check search the directories.

    Raises:
        OSError: EPERM, ENOTDIR.
    """
    if not _confinement:
        return
    here, is_root = os.dup(place), False
    first = True
    while not is_root:
        if syscalls.filesystem_type(here) in (PROC_SUPER_MAGIC, SYSFS_MAGIC):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        is_root = _same(here, above)
        os.close(here)
        here = above
        if is_root and first:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        first = False
    os.close(here)


def _same(one: int, other: int) -> bool:
    """Return whether two descriptors refer to the same directory on the same mount."""
    is_same = syscalls.mount_id(one) == syscalls.mount_id(other)
    return is_same and os.path.samestat(os.fstat(one), os.fstat(other))


def confine() -> None:
    """Confine this process permanently. It must have one thread, be root of the container's user
    namespace, and have everything open and imported that it will need."""
    from loopfs.engines.confined_calls import program

    code = program()
    for procs in _confinement[0].cgroups:
        os.write(procs, b"0")
        os.close(procs)
    landlock.restrict()
    _leave_all_files()
    syscalls.drop_capabilities()
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscalls.seccomp_filter(code)


def _leave_all_files() -> None:
    """Have an empty, read-only root and no network."""
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_PRIVATE, None)
    flags = uapi.MS_RDONLY | uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    syscalls.mount("none", _ROOT, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0")
    os.chdir(_ROOT)
    syscalls.pivot_root(".", ".")  # the old root is then mounted on the new one
    syscalls.umount2(".", uapi.MNT_DETACH)
    os.chdir("/")


def confined(work: Callable[[], object]) -> object:
    """Call ``work`` in a confined process, and return its result or raise its OSError. The result
    consists of lists, strings and numbers, since the process is not trusted."""
    import json  # not available once confined

    ours, its = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        _work(work, its, json.dumps)
    os.close(its)
    with open(ours, "rb") as file:
        said = file.read(_ANSWER)
    try:
        code, value = json.loads(said)
    except ValueError:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
    if code:
        raise OSError(int(code), os.strerror(int(code)))
    return value


def _work(work: Callable[[], object], end: int, text: Callable[[object], str]) -> NoReturn:
    try:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        confine()
        try:
            said: tuple[int, object] = 0, work()
        except OSError as problem:
            said = errno_of(problem), None
        os.write(end, text(said).encode())
    finally:
        os._exit(0)
