"""System calls that Python does not provide, through ctypes.

Each function raises OSError with the kernel's errno. This module does not depend on loopfs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from loopfs.lean import Callable, NamedTuple, Sequence
from loopfs.text import to_bytes
from loopfs.uapi import mount as uapi_mount
from loopfs.uapi import sched, seccomp
from loopfs.uapi.stat import (
    STATFS,
    STATX,
    STATX_DEV,
    STATX_DEV_OFFSET,
    STATX_DIO_OFFSET_ALIGN_OFFSET,
    STATX_DIOALIGN,
    STATX_MNT_ID,
    STATX_MNT_ID_OFFSET,
    UINT,
    ULONG,
)
from loopfs.uapi.syscalls import abis

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_NR = abis()[0].numbers
_libc.process_vm_readv.restype = _libc.process_vm_writev.restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


def _check(call: str, result: int, what: str | None = None) -> int:
    """Return the result of a system call. Raises OSError with a note that names the call.

    The message about a failed start contains this name (errors.of_start).
    """
    if result < 0:
        code = ctypes.get_errno()
        problem = OSError(code, os.strerror(code), what)
        problem.add_note(call)
        raise problem
    return result


def unshare(flags: int) -> None:
    """unshare(2) with CLONE_* ``flags``."""
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, nstype: int) -> None:
    """setns(2): ``fd`` is a namespace's file or, with several types, a pidfd (5.8)."""
    _check("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(nstype)))


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""

    def text(s: str | None) -> bytes | None:
        return None if s is None else to_bytes(s)

    args = (text(source), text(target), text(fstype), ctypes.c_ulong(flags), text(data))
    _check("mount", _libc.mount(*args), target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check("umount2", _libc.umount2(to_bytes(target), ctypes.c_int(flags)), target)


def chroot(path: str) -> None:
    """chroot(2)."""
    _check("chroot", _libc.chroot(to_bytes(path)), path)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(
        "prctl", _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(v) for v in (value, 0, 0, 0)))
    )


def set_ids(uids: Sequence[int], gids: Sequence[int]) -> None:
    """setresuid(2) and setresgid(2) of this thread only; the C library's affect all threads.

    Args:
        uids, gids: real, effective and saved.
    """
    for call, numbers in (("setresgid", gids), ("setresuid", uids)):
        arguments = (ctypes.c_uint(number) for number in numbers)
        _check(call, _syscall(ctypes.c_long(_NR[call]), *arguments))


def set_filesystem_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of this thread.

    Raises:
        OSError: EPERM: refused, which the calls themselves do not report.
    """
    no_id = ctypes.c_uint(-1)  # an invalid id changes nothing and returns the current one
    for call, number in ((_libc.setfsgid, gid), (_libc.setfsuid, uid)):
        call(ctypes.c_uint(number))
        if call(no_id) & 0xFFFFFFFF != number:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def set_effective_capabilities(wanted: int) -> None:
    """capset(2): make those permitted capabilities effective that are in ``wanted``, no others."""
    header = struct.pack("=Ii", sched.LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: low words, high
    _check("capget", _libc.capget(header, data))
    words = list(struct.unpack("=6I", data.raw))
    words[0], words[3] = words[1] & wanted & 0xFFFFFFFF, words[4] & wanted >> 32
    _check("capset", _libc.capset(header, struct.pack("=6I", *words)))


def drop_capabilities() -> None:
    """capset(2): drop all capabilities, so that none can be made effective again."""
    header = struct.pack("=Ii", sched.LINUX_CAPABILITY_VERSION_3, 0)
    _check("capset", _libc.capset(header, bytes(24)))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check("pivot_root", _libc.pivot_root(to_bytes(new_root), to_bytes(put_old)))


def landlock_create_ruleset(attributes: bytes) -> int:
    """landlock_create_ruleset(2) with a struct landlock_ruleset_attr; close-on-exec."""
    nr = ctypes.c_long(_NR["landlock_create_ruleset"])
    size = ctypes.c_size_t(len(attributes))
    return _check("landlock_create_ruleset", _syscall(nr, attributes, size, ctypes.c_uint(0)))


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2)."""
    nr = ctypes.c_long(_NR["landlock_restrict_self"])
    _check("landlock_restrict_self", _syscall(nr, ctypes.c_int(ruleset), ctypes.c_uint(0)))


def pidfd_open(pid: int) -> int:
    """pidfd_open(2) of a process; an error has a note that names the call."""
    try:
        return os.pidfd_open(pid)
    except OSError as problem:
        problem.add_note("pidfd_open")
        raise


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate of another process's descriptor, close-on-exec."""
    nr = ctypes.c_long(_NR["pidfd_getfd"])
    return _check(
        "pidfd_getfd", _syscall(nr, ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    )


def pidfd_pid(pidfd: int) -> int:
    """Return the id of the process that a pidfd refers to; -1 after it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"])


def process_vm_read(pid: int, address: int, size: int) -> bytes:
    """process_vm_readv(2): read at most ``size`` bytes of a thread's memory."""
    buffer = ctypes.create_string_buffer(size)
    count = _process_vm(_libc.process_vm_readv, pid, ctypes.addressof(buffer), address, size)
    return buffer.raw[:count]


def process_vm_write(pid: int, address: int, data: bytes) -> int:
    """process_vm_writev(2): write ``data`` to a thread's memory; return the number of bytes."""
    source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    return _process_vm(_libc.process_vm_writev, pid, source, address, len(data))


def _process_vm(function: Callable[..., int], pid: int, own: object, its: int, size: int) -> int:
    local, remote = (_Iovec(base, size) for base in (own, its))
    one, flags = ctypes.c_ulong(1), ctypes.c_ulong(0)
    return _check(
        "process_vm_readv",
        function(pid, ctypes.byref(local), one, ctypes.byref(remote), one, flags),
    )


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2)."""
    nr = ctypes.c_long(_NR["open_tree"])
    raw = to_bytes(path)
    return _check("open_tree", _syscall(nr, ctypes.c_int(dirfd), raw, ctypes.c_uint(flags)), path)


def fsopen(fstype: str) -> int:
    """fsopen(2), close-on-exec."""
    nr = ctypes.c_long(_NR["fsopen"])
    flags = ctypes.c_uint(uapi_mount.FSOPEN_CLOEXEC)
    return _check("fsopen", _syscall(nr, to_bytes(fstype), flags), fstype)


def fsconfig(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2) with an FSCONFIG_* ``command`` whose last argument is zero."""
    texts = (None if text is None else to_bytes(text) for text in (key, value))
    nr = ctypes.c_long(_NR["fsconfig"])
    fd, number = ctypes.c_int(context), ctypes.c_uint(command)
    _check("fsconfig", _syscall(nr, fd, number, *texts, ctypes.c_int(0)), key)


def fsmount(context: int, attributes: int) -> int:
    """fsmount(2) with MOUNT_ATTR_* ``attributes``: return the detached mount, close-on-exec."""
    nr = ctypes.c_long(_NR["fsmount"])
    flags = ctypes.c_uint(uapi_mount.FSMOUNT_CLOEXEC)
    return _check("fsmount", _syscall(nr, ctypes.c_int(context), flags, ctypes.c_uint(attributes)))


def fspick(dirfd: int) -> int:
    """fspick(2) of the mount whose root ``dirfd`` refers to, close-on-exec."""
    nr = ctypes.c_long(_NR["fspick"])
    flags = ctypes.c_uint(uapi_mount.FSPICK_CLOEXEC | uapi_mount.FSPICK_EMPTY_PATH)
    return _check("fspick", _syscall(nr, ctypes.c_int(dirfd), b"", flags))


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2) of the tree ``from_fd`` to the mount point ``to_fd``."""
    flags = uapi_mount.MOVE_MOUNT_F_EMPTY_PATH | uapi_mount.MOVE_MOUNT_T_EMPTY_PATH
    nr = ctypes.c_long(_NR["move_mount"])
    fds = (ctypes.c_int(from_fd), b"", ctypes.c_int(to_fd), b"")
    _check("move_mount", _syscall(nr, *fds, ctypes.c_uint(flags)))


def mount_setattr(fd: int, attr_set: int, attr_clr: int) -> None:
    """mount_setattr(2) (5.12) on the mount that ``fd`` refers to."""
    attr = uapi_mount.MOUNT_ATTR.pack(attr_set, attr_clr, 0, 0)
    nr = ctypes.c_long(_NR["mount_setattr"])
    flags = ctypes.c_uint(uapi_mount.AT_EMPTY_PATH)
    _check(
        "mount_setattr",
        _syscall(nr, ctypes.c_int(fd), b"", flags, attr, ctypes.c_size_t(len(attr))),
    )


def seccomp_listener(program: bytes, flags: int) -> int:
    """seccomp(2): install a filter on this thread and return its notification listener.

    Args:
        program: consecutive struct sock_filter.
        flags: SECCOMP_FILTER_FLAG_* in addition to NEW_LISTENER.
    """
    return seccomp_filter(program, flags | seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER)


def seccomp_filter(program: bytes, flags: int = 0) -> int:
    """seccomp(2): install a filter on this thread. Requires CAP_SYS_ADMIN or no_new_privs."""
    count = len(program) // seccomp.SOCK_FILTER.size
    buffer = ctypes.create_string_buffer(program, len(program))

    class SockFprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    fprog = SockFprog(count, ctypes.addressof(buffer))
    nr = ctypes.c_long(_NR["seccomp"])
    operation = ctypes.c_uint(seccomp.SECCOMP_SET_MODE_FILTER)
    return _check("seccomp", _syscall(nr, operation, ctypes.c_uint(flags), ctypes.byref(fprog)))


def statx_dev(dirfd: int, path: str = "") -> int:
    """Return the device number (st_dev) of a file, without a request to its filesystem's server.

    With a mask of zero the kernel answers from the superblock, even for a FUSE mount that
    refuses everything else to this process (fs/fuse/dir.c).
    """
    return os.makedev(*STATX_DEV.unpack_from(_statx(dirfd, path, 0), STATX_DEV_OFFSET))


def mount_id(dirfd: int, path: str = "") -> int:
    """Return the id of the mount of a file (5.8), without a request to its filesystem's server."""
    return int(ULONG.unpack_from(_statx(dirfd, path, STATX_MNT_ID), STATX_MNT_ID_OFFSET)[0])


def dio_alignment(fd: int) -> int:
    """Return the alignment of offsets of direct I/O on an open file, in bytes.

    0 if the kernel (before 6.1) or the filesystem does not report it.
    """
    (mask,) = UINT.unpack_from(buffer := _statx(fd, "", STATX_DIOALIGN))
    if not mask & STATX_DIOALIGN:
        return 0
    return int(UINT.unpack_from(buffer, STATX_DIO_OFFSET_ALIGN_OFFSET)[0])


def _statx(dirfd: int, path: str, mask: int) -> ctypes.Array[ctypes.c_char]:
    buffer = ctypes.create_string_buffer(STATX.size)
    flags = uapi_mount.AT_STATX_DONT_SYNC | (0 if path else uapi_mount.AT_EMPTY_PATH)
    nr = ctypes.c_long(_NR["statx"])
    args = (ctypes.c_int(dirfd), to_bytes(path), ctypes.c_int(flags), ctypes.c_uint(mask))
    _check("statx", _syscall(nr, *args, buffer), path)
    return buffer


def filesystem_type(fd: int) -> int:
    """fstatfs(2): return f_type of the filesystem that an open file is on."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs; f_type is the first member
    _check("fstatfs", _libc.fstatfs(ctypes.c_int(fd), buffer))
    return ctypes.c_ulong.from_buffer(buffer).value


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2) with RESOLVE_* ``resolve``, without creating a file."""
    how = uapi_mount.OPEN_HOW.pack(flags, 0, resolve)
    nr = ctypes.c_long(_NR["openat2"])
    args = (ctypes.c_int(dirfd), to_bytes(path), how, ctypes.c_size_t(len(how)))
    return _check("openat2", _syscall(nr, *args), path)


def fstatfs(fd: int) -> bytes:
    """fstatfs(2): return the struct statfs, not decoded."""
    buffer = ctypes.create_string_buffer(STATFS.size)
    _check("fstatfs", _libc.fstatfs(ctypes.c_int(fd), buffer))
    return buffer.raw


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_* ``mode``; ``offset`` and ``length`` are in bytes."""
    sizes = ctypes.c_longlong(offset), ctypes.c_longlong(length)
    _check("fallocate", _libc.fallocate64(ctypes.c_int(fd), ctypes.c_int(mode), *sizes))


def syncfs(fd: int) -> None:
    """syncfs(2) of the filesystem that an open file is on."""
    _check("syncfs", _libc.syncfs(ctypes.c_int(fd)))


class DescriptorInfo(NamedTuple):
    """/proc/PID/fdinfo/FD: O_* flags, mount id, inode number."""

    flags: int
    mnt_id: int
    ino: int


def descriptor_info(pid: int, fd: int) -> DescriptorInfo:
    """Return what /proc reports about a descriptor, without a request to its server (ino: 5.14)."""
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb", buffering=0) as file:
        fields = dict(line.split(b":", 1) for line in file.read(1024).splitlines()[:4])
    return DescriptorInfo(int(fields[b"flags"], 8), int(fields[b"mnt_id"]), int(fields[b"ino"]))


def set_parent_death_signal(signal: int) -> None:
    """prctl(PR_SET_PDEATHSIG): send ``signal`` to this process when its parent thread ends."""
    prctl(sched.PR_SET_PDEATHSIG, signal)


def set_dumpable(dumpable: bool) -> None:
    """prctl(PR_SET_DUMPABLE): allow or forbid tracing and access to /proc/PID.

    A process that is not dumpable can be traced only with CAP_SYS_PTRACE in the user namespace in
    which its program was executed.
    """
    prctl(sched.PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """prctl(PR_SET_NAME): set the name of this thread in /proc; at most 15 bytes."""
    _check("prctl", _libc.prctl(ctypes.c_int(sched.PR_SET_NAME), to_bytes(name)))


def become_subreaper() -> None:
    """prctl(PR_SET_CHILD_SUBREAPER): make orphaned descendants children of this process."""
    prctl(sched.PR_SET_CHILD_SUBREAPER, 1)
