"""Delivery of uevents to the sockets of NETLINK_KOBJECT_UEVENT in the sandbox.

The kernel sends a uevent to the network namespaces of one user namespace. A sandbox is in the
caller's network namespace, which is not owned by a user namespace of the sandbox. So its sockets
are created in other network namespaces that we keep for this purpose (:class:`_Room`), one for each
user namespace that listens. There it receives the uevents of its own devices and those of its
ancestors, as /sys shows them. A listener in another network namespace has a socket of the kernel
and receives the uevents of the user namespace that owns the network namespace.

A uevent is not multicast but sent to the kernel, which checks that we have CAP_SYS_ADMIN over the
network namespace, adds SEQNUM and delivers it as its own (uevent_net_rcv_skb, Linux 4.18).

A new thread enters each network namespace, since we do not have the right to go back.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.driver.event import Uevent
from loopfs.driver.uevent import message
from loopfs.filesystems.shares import UEVENTS, WATCH, Share, Shares
from loopfs.lean import NamedTuple
from loopfs.process import Process
from loopfs.text import to_bytes
from loopfs.uapi import netlink as uapi
from loopfs.uapi.mount import NS_GET_USERNS
from loopfs.uapi.sched import CLONE_NEWNET

T = TypeVar("T")
Ids = tuple[int, int]  # uid and gid in our user namespace
_UCRED = struct.Struct("=iII")  # pid, uid, gid
_READ = os.O_RDONLY | os.O_CLOEXEC
_PROTOCOL, _PORT, _INODE = 1, 2, 9  # columns of /proc/net/netlink


class _Room(NamedTuple):
    """A network namespace that contains only sockets for uevents.

    ``namespace`` is its file, ``sockets`` is its open /proc/net/netlink, ``root`` has the ids of
    root in the listener's user namespace, ``threads`` have received a socket in it that they may
    not have bound yet.
    """

    namespace: int
    sockets: int
    sender: _socket.socket
    root: Ids
    threads: set[int]
    share: Share

    def listened_to(self) -> bool:
        """Return whether someone other than us and the kernel has a socket in it."""
        self.threads.intersection_update(t for t in self.threads if os.path.exists(f"/proc/{t}"))
        ours = {os.fstat(self.sender.fileno()).st_ino}
        return bool(self.threads or _bound(self.sockets) - ours)

    def close(self) -> None:
        self.sender.close()
        close_all([self.sockets, self.namespace])
        self.share.give_back()


class _Own(NamedTuple):
    """A network namespace of the workload. ``thread`` was in it when it requested a socket.

    No reference is kept, so that the namespace ends when the workload leaves it.
    """

    thread: int
    share: Share


class Uevents:
    """The listeners, and the uevents that each receives.

    Args:
        shares: the resources that each user may use; a room is charged.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._lock = threading.Lock()
        # By the listening user namespace and its ancestors.
        self._rooms: dict[tuple[int, ...], _Room] = {}
        self._own: dict[int, _Own] = {}  # by inode number

    @property
    def wanted(self) -> bool:
        """Whether there may be a listener."""
        return bool(self._rooms or self._own)

    def socket(self, process: Process, kind: int) -> int | None:
        """Return a socket of NETLINK_KOBJECT_UEVENT for a thread, as a descriptor; None if the
        kernel is to create it, because the thread is in a network namespace of the sandbox's own.

        Args:
            kind: the second argument of socket(2).
        Raises:
            OSError: the errors of unshare(2) and socket(2); EMFILE if the user has reached the
                limit of our resources.
        """
        namespace = os.open(process.path("ns/net"), _READ)
        try:
            if _owner(namespace) is not None:
                with self._lock:
                    self._watch(os.fstat(namespace).st_ino, process)
                return None
        finally:
            os.close(namespace)
        trusted = process.has_our_credentials()
        with self._lock:
            room = self._room_of(process)
            room.threads.add(process.tid)
            return _within(room.namespace, lambda: _make(kind, trusted=trusted))

    def _watch(self, inode: int, process: Process) -> None:
        """Send uevents to a network namespace of the workload from now on."""
        if inode in self._own:
            self._own[inode] = self._own[inode]._replace(thread=process.tid)
            return
        self._leave_empty_rooms()
        close_all(list(self._open_own().values()))  # which removes those that no longer exist
        share = self._shares.take(process.charged_user(), WATCH, errno.EMFILE)
        self._own[inode] = _Own(process.tid, share)

    def _open_own(self) -> dict[int, int]:
        """Open each network namespace of the workload and return the descriptors, by a thread that
        was or is in it; remove those that have no process any more."""
        opened, missing = {}, {}
        for inode, own in self._own.items():
            if (fd := _open_if(own.thread, {inode})) is not None:
                opened[own.thread] = fd
            else:
                missing[inode] = own
        if missing:
            for name in filter(str.isdecimal, os.listdir("/proc")):
                if (fd := _open_if(int(name), missing.keys())) is not None:
                    own = missing.pop(os.fstat(fd).st_ino)
                    self._own[os.fstat(fd).st_ino] = own._replace(thread=int(name))
                    opened[int(name)] = fd
        for inode, own in missing.items():
            del self._own[inode]
            own.share.give_back()
        return opened

    def _room_of(self, process: Process) -> _Room:
        listener = process.user_namespaces()
        if listener not in self._rooms:
            self._leave_empty_rooms()
            share = self._shares.take(process.charged_user(), UEVENTS, errno.EMFILE)
            with share:
                parts = _within(None, _furnish)
                self._rooms[listener] = _Room(*parts, _root(process), set(), share)
        return self._rooms[listener]

    def _leave_empty_rooms(self) -> None:
        for listener, room in list(self._rooms.items()):
            if not room.listened_to():
                del self._rooms[listener]
                room.close()

    def send(self, userns: int, events: Sequence[Uevent]) -> None:
        """Send the uevents of devices of a user namespace (its inode number).

        Raises:
            OSError: ENOBUFS, ENOMEM: the uevents are lost.
        """
        messages = [b"".join(to_bytes(text) + b"\0" for text in message(e)) for e in events]
        with self._lock:
            self._leave_empty_rooms()
            for listener, room in self._rooms.items():
                if userns in listener:
                    _send(room.sender, messages, room.root)
            own = self._open_own()
            try:
                for thread, namespace in own.items():
                    if _owner(namespace) == userns:
                        _within(namespace, partial(_send_once, messages, _root(Process(thread))))
            finally:
                close_all(list(own.values()))


def _within(namespace: int | None, call: Callable[[], T]) -> T:
    """Call a function in a network namespace, given by its file; None: in a new one."""
    results: list[T] = []
    problems: list[BaseException] = []

    def enter() -> None:
        try:
            if namespace is None:
                syscalls.unshare(CLONE_NEWNET)
            else:
                syscalls.setns(namespace, CLONE_NEWNET)
            results.append(call())
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=enter, name="netns", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    thread.join()
    if problems:
        raise problems[0]
    return results[0]


def _furnish() -> tuple[int, int, _socket.socket]:
    sender = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_DGRAM, uapi.NETLINK_KOBJECT_UEVENT)
    namespace = os.open("/proc/thread-self/ns/net", _READ)
    return namespace, os.open("/proc/thread-self/net/netlink", _READ), sender


def _make(kind: int, *, trusted: bool) -> int:
    """Create a socket for another process. The kernel checks the rights of the socket's creator: so
    without ``trusted`` the socket is created without capabilities and cannot send uevents."""
    if not trusted:
        syscalls.set_effective_capabilities(0)
    kind |= _socket.SOCK_CLOEXEC
    return _socket.socket(_socket.AF_NETLINK, kind, uapi.NETLINK_KOBJECT_UEVENT).detach()


def _send_once(messages: Sequence[bytes], root: Ids) -> None:
    kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    sender = _socket.socket(_socket.AF_NETLINK, kind, uapi.NETLINK_KOBJECT_UEVENT)
    try:
        _send(sender, messages, root)
    finally:
        sender.close()


def _send(sender: _socket.socket, messages: Sequence[bytes], root: Ids) -> None:
    """Pass uevents to the kernel. libudev accepts only those whose sender is root to it."""
    credentials = _UCRED.pack(os.getpid(), *root)
    control = [(_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS, credentials)]
    for data in messages:
        length = uapi.NLMSGHDR.size + len(data)
        header = uapi.NLMSGHDR.pack(length, uapi.NLMSG_MIN_TYPE, uapi.NLM_F_REQUEST, 0, 0)
        sender.sendmsg([header, data], control, 0, (0, 0))


def _bound(table: int) -> set[int]:
    """Return the inode numbers of the bound uevent sockets in an open /proc/net/netlink."""
    with open(os.dup(table), "rb") as file:
        file.seek(0)
        rows = [line.split() for line in file][1:]
    protocol = b"%d" % uapi.NETLINK_KOBJECT_UEVENT
    theirs = (row for row in rows if row[_PROTOCOL] == protocol and row[_PORT] != b"0")
    return {int(row[_INODE]) for row in theirs}


def _owner(namespace: int) -> int | None:
    """Return the user namespace that owns a namespace, given by its file; None if it is not ours or
    a descendant of ours."""
    try:
        owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    except PermissionError:
        return None
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)


def _open_if(tid: int, inodes: Collection[int]) -> int | None:
    """Open the network namespace of a thread, if its inode number is in ``inodes``; else None."""
    try:
        fd = os.open(f"/proc/{tid}/ns/net", _READ)
    except OSError:  # the thread has ended, or belongs to another user
        return None
    if os.fstat(fd).st_ino in inodes:
        return fd
    os.close(fd)
    return None


def _root(process: Process) -> Ids:
    """Return the ids of root in a process's user namespace; ours if it has none or has ended."""
    with suppress(OSError):
        uid, gid = (_outside(process.id_map(kind)) for kind in ("uid", "gid"))
        return uid, gid
    return 0, 0


def _outside(id_map: str) -> int:
    for line in id_map.splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == 0:
            return outside
    return 0
