"""The credentials of a caller in the namespace that it is in (credentials(7)).

With these a job resolves paths for a caller and changes the caller's mounts. The kernel shows ids
as mapped in the reader's user namespace, in which different unmapped ids look the same. So they are
read from namespaces in which they are mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from loopfs import syscalls
from loopfs.lean import NamedTuple, Sequence
from loopfs.uapi.sched import PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP

ALL_CAPABILITIES = (1 << 64) - 1
ROOT = (0, 0, 0, 0)
_ROOM = 8192  # bytes

Ids = tuple[int, ...]  # real, effective, saved, filesystem


class Credentials(NamedTuple):
    """The credentials of a thread.

    Args:
        uids, gids: the ids in its user namespace; None if one of them is not mapped there.
        around: both, in the sandbox's user namespace.
        groups: supplementary groups, as ``around``; None if they are the same as the reader's,
            since those may not be mapped anywhere.
        effective: the effective capabilities, as bits.
        has_root: whether its user namespace has a root.
    """

    uids: Ids | None
    gids: Ids | None
    around: tuple[Ids, Ids]
    groups: Ids | None
    effective: int
    has_root: bool

    @property
    def root_ids(self) -> bool:
        """Whether a process that acts for the bearer is otherwise root of the namespace."""
        return self.has_root and self.uids is not None

    def take_on_around(self) -> None:
        """Take on, permanently, what can only be set in the sandbox's user namespace: the groups,
        which another may not allow to be set, and unmapped ids. Must be called as root of the
        sandbox."""
        if self.groups is not None:
            os.setgroups(self.groups)
        if self.uids is None:
            syscalls.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
            _set_ids(*self.around)

    def take_on(self) -> None:
        """Take on the credentials, but keep all capabilities permitted for :meth:`lay_off`.

        Must be called with all capabilities in their user namespace.
        """
        syscalls.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        if self.uids is not None and self.gids is not None:
            _set_ids(self.uids, self.gids)
        syscalls.set_effective_capabilities(self.effective)

    def take_on_again(self) -> None:
        """Set the ids and capabilities that this process, the bearer, already has."""
        _set_ids(*self.around)
        syscalls.set_effective_capabilities(self.effective)

    def lay_off(self) -> None:
        """Have all capabilities again, and be root of the namespace if there is one."""
        syscalls.set_effective_capabilities(ALL_CAPABILITIES)
        if self.root_ids:
            _set_ids(ROOT, ROOT)
        syscalls.prctl(PR_SET_SECUREBITS, 0)


def parse(status: str, own_status: str, around: str, uid_map: str, gid_map: str) -> Credentials:
    """Return the credentials described by the contents of files in /proc/TID.

    Args:
        status: /proc/TID/status.
        own_status: the reader's own /proc/self/status.
        around: /proc/TID/status, read as root of the sandbox.
        uid_map, gid_map: as read by the first reader.
    """
    fields, own, outer = _fields(status), _fields(own_status), _fields(around)
    uids = _inside(uid_map, fields["Uid"])
    gids = _inside(gid_map, fields["Gid"])
    return Credentials(
        uids if gids else None,
        gids if uids else None,
        (_numbers(outer["Uid"]), _numbers(outer["Gid"])),
        None if fields["Groups"] == own["Groups"] else _numbers(outer["Groups"]),
        int(fields["CapEff"][0], 16),
        all(_inside(text, ["0"], by=0) for text in (uid_map, gid_map)),
    )


def of(thread: int, enter_sandbox: Callable[[], None]) -> Credentials:
    """Return the credentials of a thread, whose directory in /proc is open as ``thread``.

    Args:
        enter_sandbox: enters the sandbox's user namespace as its root.
    """
    status, uid_map, gid_map = (_read(name, thread) for name in ("status", "uid_map", "gid_map"))
    own_status = _read("/proc/self/status")
    enter_sandbox()
    return parse(status, own_status, _read("status", thread), uid_map, gid_map)


def _fields(status: str) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in status.splitlines())
    return {name: value.split() for name, _, value in lines}


def _read(name: str, directory: int | None = None) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    text = b""
    try:
        while part := os.read(fd, _ROOM):  # open() makes twice as many system calls
            text += part
    finally:
        os.close(fd)
    return text.decode(errors="replace")


def _numbers(words: Sequence[str]) -> Ids:
    return tuple(map(int, words))


def _inside(id_map: str, numbers: Sequence[str], by: int = 1) -> Ids | None:
    """Map ids to those inside a namespace; return None if one of them is not mapped.

    Args:
        by: the column to search: 1, the ids are outside ones; 0, they are inside ones.
    """
    extents = [_numbers(line.split()) for line in id_map.splitlines()]

    def seen(number: int) -> Iterator[int]:
        for extent in extents:
            if extent[by] <= number < extent[by] + extent[2]:
                yield extent[0] + number - extent[by]

    found = tuple(inside for number in _numbers(numbers) for inside in seen(number))
    return found if len(found) == len(numbers) else None


def _set_ids(uids: Ids, gids: Ids) -> None:
    syscalls.set_ids(uids[:3], gids[:3])
    syscalls.set_filesystem_ids(uids[3], gids[3])
