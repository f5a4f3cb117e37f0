"""Another process, by its thread id: memory, descriptors, credentials, current system call.

This corresponds to ``current`` in a kernel driver. Everything is read through /proc and pidfds, and
fails with ESRCH or ENOENT after the thread has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from contextlib import suppress

from loopfs import syscalls
from loopfs.text import to_str
from loopfs.uapi.mount import NS_GET_OWNER_UID, NS_GET_PARENT
from loopfs.uapi.sched import CAP_SYS_ADMIN, PIDFD_THREAD

UINT_MAX = 2**32 - 1  # the number of user ids
INT_MAX = 2**31 - 1  # the largest pid_t
ASLEEP_WITHIN = 10.0  # seconds to wait until a thread sleeps
_CLOSED = frozenset({errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM})
_YIELDS = 1000  # sched_yield() calls before sleeping


class Process:
    """A thread that waits for the reply to its request or system call.

    Args:
        tid: its id in this process's pid namespace.
    """

    __slots__ = ("_status", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._status: dict[str, str] | None = None

    def path(self, name: str) -> str:
        """Return the path of /proc/TID/``name``."""
        return f"/proc/{self.tid}/{name}"

    def current_syscall(self) -> tuple[int, list[int]] | None:
        """Return the number and the six arguments of the system call in which the thread waits.

        None if it is in none, or is a process of loopfs that cannot be inspected.
        """
        try:
            fields = self._syscall_fields()
        except PermissionError:
            return None
        except FileNotFoundError:
            self.check_hidden()
            return None
        if len(fields) < 7:
            return None
        return int(fields[0]), [int(field, 16) for field in fields[1:7]]

    def _syscall_fields(self) -> list[bytes]:
        fd = os.open(self.path("syscall"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 256).split()
            return _when_it_sleeps(fd) if fields == [b"running"] else fields
        finally:
            os.close(fd)

    # --- memory --------------------------------------------------------------

    # Not by /proc/TID/mem, which also accesses memory that the thread itself cannot access.

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of its memory at ``address``.

        Raises:
            OSError: EFAULT: not all of them can be read.
        """
        data = self.read_some(address, size)
        if len(data) < size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def read_some(self, address: int, size: int) -> bytes:
        """Return as many of ``size`` bytes as can be read, at least one. Raises OSError EFAULT."""
        data = syscalls.process_vm_read(self.tid, address, size)
        if size and not data:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def read_string(self, address: int, limit: int) -> bytes:
        """Return a NUL-terminated string.

        Args:
            limit: the largest number of bytes, including the NUL.
        Raises:
            OSError: EFAULT; ENAMETOOLONG: there is no NUL within ``limit``.
        """
        text = b""
        while len(text) < limit:
            # At most up to the end of a page: the next page may not be mapped.
            room = 4096 - (address + len(text)) % 4096
            part = self.read_some(address + len(text), min(room, limit - len(text)))
            end = part.find(0)
            if end >= 0:
                return text + part[:end]
            text += part
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` at ``address``. Raises OSError EFAULT."""
        if syscalls.process_vm_write(self.tid, address, data) < len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    # --- descriptors ---------------------------------------------------------

    @property
    def tgid(self) -> int:
        return int(self.status()["Tgid"])

    def pidfd(self) -> int:
        """Return a pidfd of the thread; before Linux 6.9, of its process."""
        try:
            return os.pidfd_open(self.tid, PIDFD_THREAD)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
        return os.pidfd_open(self.tgid)

    def descriptor(self, fd: int) -> int:
        """Return a duplicate of its descriptor ``fd``. A thread can have its own descriptor table.

        Raises:
            OSError: EBADF.
        """
        try:
            return _duplicate(os.pidfd_open(self.tid, PIDFD_THREAD), fd)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
        return self._descriptor_before_6_9(fd)

    def _descriptor_before_6_9(self, fd: int) -> int:
        """Return a duplicate of the process's descriptor, if it seems to be the thread's as well.

        Otherwise open the same file again.
        """
        try:
            info = _info(self.tid, fd)
        except FileNotFoundError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        with suppress(OSError):  # the first thread has ended, or has no such descriptor
            duplicate = _duplicate(os.pidfd_open(self.tgid), fd)
            if _info(os.getpid(), duplicate) == info:
                return duplicate
            os.close(duplicate)
        kept = os.O_ACCMODE | os.O_PATH | os.O_DIRECT | os.O_APPEND | os.O_NONBLOCK
        return os.open(self.path(f"fd/{fd}"), info.flags & kept | os.O_CLOEXEC)

    def descriptor_device(self, fd: int) -> int | None:
        """Return st_dev of what its descriptor ``fd`` refers to, without a request to its server.

        None where only the kernel knows: there is no such descriptor, or access to it is denied.
        """
        if fd >= 1 << 31:
            return None
        try:
            return syscalls.statx_dev(-1, self.path(f"fd/{fd}"))
        except OSError as problem:
            if problem.errno not in _CLOSED:
                raise
            return None

    def check_hidden(self) -> None:
        """Check that a thread exists that is not in /proc, as it cannot be traced: one of loopfs.

        With hidepid=2 of proc(5) such a process is not visible.

        Raises:
            OSError: ESRCH: it has ended, or no thread can have this id.
        """
        if not 0 < self.tid <= INT_MAX:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        os.sched_getscheduler(self.tid)

    def closed_to_us(self) -> bool:
        """Return whether its memory and descriptors cannot be accessed.

        This is so if it executes a program that it cannot read, whose owner is not mapped in this
        user namespace (would_dump).
        """
        try:
            os.readlink(self.path("cwd"))
        except PermissionError:
            return True
        except OSError:  # it was killed just now
            return False
        return False

    # --- credentials ---------------------------------------------------------

    def status(self) -> dict[str, str]:
        """Return the fields of /proc/TID/status, which is read once."""
        if self._status is None:
            with open(self.path("status"), "rb", buffering=0) as file:
                lines = file.read().split(b"\n")  # a name can have a carriage return
            pairs = (to_str(line).partition(":") for line in lines)
            self._status = {key: value.strip() for key, _, value in pairs}
        return self._status

    def comm(self) -> str:
        """Return its name: the first 15 bytes of that of the program, unless it has set another.

        Raises:
            OSError: ESRCH, ENOENT: it has ended.
        """
        with open(self.path("comm"), "rb", buffering=0) as file:
            return to_str(file.read(64).removesuffix(b"\n"))

    def namespace(self, name: str) -> int:
        """Return the inode number that identifies its namespace ``name`` (``user``, ``mnt``…)."""
        return os.stat(self.path(f"ns/{name}")).st_ino

    def user_namespaces(self) -> tuple[int, ...]:
        """Return the inode numbers of its user namespace and the outer ones, up to this process's.

        For a process of loopfs that cannot be inspected, only the latter.
        """
        try:
            fd = os.open(self.path("ns/user"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.check_hidden()
            fd = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            fd = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        return user_namespaces(fd)

    def charged_user(self) -> int:
        """Return the user of this user namespace to whom its resources are charged (ucounts).

        That is the user of the process itself, or the owner of the inner namespace that it is in.
        """
        fd, within = os.open(self.path("ns/user"), os.O_RDONLY | os.O_CLOEXEC), None
        ours = Process(os.getpid()).namespace("user")
        try:
            while os.fstat(fd).st_ino != ours:
                within = int.from_bytes(fcntl.ioctl(fd, NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
                os.close(fd)
                fd = parent
        finally:
            os.close(fd)
        return int(self.status()["Uid"].split()[1]) if within is None else within

    def has_our_credentials(self) -> bool:
        """Return whether it has the user namespace, ids, groups and capabilities of this process.

        Then both can look up the same files.
        """
        own = Process(os.getpid())
        mine, its = own.status(), self.status()
        kinds = ("Uid", "Gid", "Groups", "CapEff")
        return all(mine[kind] == its[kind] for kind in kinds) and own.namespace(
            "user"
        ) == self.namespace("user")

    def id_map(self, kind: str) -> str:
        """Return the text of its uid_map or gid_map, with outer ids as this process sees them."""
        if self.namespace("user") == Process(os.getpid()).namespace("user"):
            return f"0 0 {UINT_MAX}\n"  # the kernel would return the ids of the parent namespace
        with open(self.path(f"{kind}_map"), encoding="utf-8") as file:
            return file.read()

    def has_capability(self, capability: int = CAP_SYS_ADMIN) -> bool:
        """Return whether ``capability`` is effective in its own user namespace."""
        return bool(int(self.status()["CapEff"], 16) >> capability & 1)


def _duplicate(pidfd: int, fd: int) -> int:
    """Duplicate the descriptor ``fd`` of the process that ``pidfd`` refers to; close ``pidfd``."""
    try:
        return syscalls.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)


def _info(pid: int, fd: int) -> syscalls.DescriptorInfo:
    info = syscalls.descriptor_info(pid, fd)
    return info._replace(flags=info.flags & ~os.O_CLOEXEC)


def _when_it_sleeps(fd: int) -> list[bytes]:
    """Return the fields of /proc/TID/syscall, open as ``fd``, when the thread no longer runs.

    A thread that has just sent a request may still be on its way to sleep. This can take long if
    the machine is busy, or if its cgroup has used up its CPU quota.
    """
    deadline = time.monotonic() + ASLEEP_WITHIN
    turn = 0
    while (fields := os.pread(fd, 256, 0).split()) == [b"running"]:
        if time.monotonic() > deadline:
            break
        turn += 1
        if turn < _YIELDS:
            os.sched_yield()
        else:
            time.sleep(0.001)
    return fields


def user_namespaces(fd: int) -> tuple[int, ...]:
    """Return the inode numbers of a user namespace and the outer ones, up to this process's.

    Args:
        fd: its file, which is closed.
    """
    found: list[int] = []
    try:
        while True:
            found.append(os.fstat(fd).st_ino)
            try:
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
            except PermissionError:  # outside of this process's namespace
                return tuple(found)
            os.close(fd)
            fd = parent
    finally:
        os.close(fd)
