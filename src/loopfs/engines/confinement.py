"""What keeps an engine in its container: the container's cgroup, a root with nothing in it, no
network, no capability, and the few system calls that serving takes.

In a sandbox of ``loopfs run`` an engine that is taken over can do what the caller's own programs
can. The images of a container are a stranger's, and the engine's user is the agent's. So each
engine, and libblkid too, is confined before it reads the first byte.
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

_ROOT = "/proc"  # a directory that every mount namespace has; what is to be the root covers it
_ANSWER = 1 << 20  # bytes


class Confinement(NamedTuple):
    """Of one container.

    Args:
        userns: its user namespace (inode number), whose root may mount without CAP_SYS_ADMIN.
        cgroups: open cgroup.procs of its cgroups, or none if it has the agent's.
    """

    userns: int
    cgroups: tuple[int, ...]


_confinement: list[Confinement] = []  # of this process's container; a sandbox has none


def adopt(confinement: Confinement) -> None:
    """All engines of this process, and of those that it forks, are confined so."""
    _confinement[:] = [confinement]


def is_wanted() -> bool:
    """Engines are to be confined."""
    return bool(_confinement)


def descriptors() -> tuple[int, ...]:
    """What :func:`confine` needs."""
    return _confinement[0].cgroups if _confinement else ()


def granted(bearer: Credentials, userns: int) -> Credentials:
    """The credentials of a caller, with what the agent lets it do more.

    Args:
        userns: a descriptor of its user namespace.
    """
    if not _confinement or os.fstat(userns).st_ino != _confinement[0].userns:
        return bearer
    if bearer.uids is None or bearer.uids[1] != 0:
        return bearer
    return bearer._replace(effective=bearer.effective | 1 << CAP_SYS_ADMIN)


def refuse_programs() -> None:
    """Raise LoopfsError if engines are to be confined: a program cannot be."""
    if _confinement:
        raise LoopfsError(
            errno.EOPNOTSUPP,
            "in a container, the image must be a file of a filesystem that the kernel serves by"
            " itself: put it on a volume or a tmpfs",
        )


def check_place(place: int) -> None:
    """Raise OSError if a container's root may not mount here (a descriptor).

    The runtime must find its own root directory, /proc and /sys again when it executes something;
    that includes what it has mounted in them to cover parts. Its capabilities let it look.

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
    """Two descriptors are of one directory on one mount."""
    is_same = syscalls.mount_id(one) == syscalls.mount_id(other)
    return is_same and os.path.samestat(os.fstat(one), os.fstat(other))


def confine() -> None:
    """Confine this process, which has one thread and is root of the container's user namespace,
    for good. What it will need is open and imported."""
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
    """Have an empty root that cannot be written, and no network."""
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_PRIVATE, None)
    flags = uapi.MS_RDONLY | uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    syscalls.mount("none", _ROOT, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0")
    os.chdir(_ROOT)
    syscalls.pivot_root(".", ".")  # the old root is on the new one then
    syscalls.umount2(".", uapi.MNT_DETACH)
    os.chdir("/")


def confined(work: Callable[[], object]) -> object:
    """What ``work`` returns, or the OSError that it raises, from a confined process; made of
    lists, strings and numbers, for the process may be in others' hands."""
    import json  # not there afterwards

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
