"""The parts of /sys that list block devices: the sandbox's own beside the host's.

Four directories are covered, each by a mount of its own. What is the host's is read from
the host's /sys at every look, so it follows hotplug; all is read-only.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import NamedTuple, Protocol

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.driver.sysfs import Attribute, Item, Link, device_number, disk, place
from loopfs.fuse.operations import Buffer, Entry, Operations
from loopfs.fuse.session import Request
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FUSE_ROOT_ID, Attr

HOST = "/sys"
DEVICES = "devices/virtual/block"
# The directories of links and what leads from them to /sys.
LINKS = {"block": "..", "class/block": "../..", "dev/block": "../.."}

FILE_SIZE = 4096  # what sysfs says of every attribute
OVERFLOW_ID = 65534  # the host's root, as a user namespace sees it

Path = tuple[str, ...]


class Host(NamedTuple):
    """Something in the host's /sys."""

    path: str


class Disks(Protocol):
    """An instance, or all of them."""

    @property
    def devices(self) -> Mapping[int, LoopDevice]: ...


class SysfsDirectory(Operations):
    """One of the directories (:data:`loopfs.sandbox.sysfs.PLACES`).

    Args:
        place: which.
        disks: what is shown.
        hosts_loops: the host's loop devices are shown, as all its others are.
    """

    def __init__(self, place: str, disks: Disks, *, hosts_loops: bool = True) -> None:
        self._place = place
        self._disks = disks
        self._hosts_loops = hosts_loops
        self._now = time.time_ns()
        self._ids = count(FUSE_ROOT_ID + 1)
        self._paths: dict[int, Path] = {FUSE_ROOT_ID: ()}
        self._nodeids: dict[Path, int] = {}
        self._handles = count(1)
        self._files: dict[int, tuple[Callable[[], bytes], bytes]] = {}

    # --- what is where ------------------------------------------------------------

    def _own(self, wanted: str | None = None) -> dict[str, Item]:
        """What is ours here, or at least of it what is named ``wanted``."""
        disks = list(self._disks.devices.values())
        if self._place == DEVICES:
            return {device.name: disk(device) for device in disks if wanted in (None, device.name)}
        devices: list[BlockDevice] = [*disks]
        if self._place != "block":
            devices += [part for each in disks for part in list(each.partitions.values())]
        up = LINKS[self._place]
        name = device_number if self._place == "dev/block" else operator.attrgetter("name")
        return {name(device): Link(f"{up}/{DEVICES}/{place(device)}") for device in devices}

    def _find(self, path: Path) -> Item | Host:
        own = self._own(path[0] if path else None)
        if not path:
            return own
        if path[0] not in own:
            if self._hidden(path[0]):
                raise _error(errno.ENOENT)
            return Host("/".join((HOST, self._place, *path)))
        item: Item = own
        for name in path:
            if not isinstance(item, dict) or name not in item:
                raise _error(errno.ENOENT)
            item = item[name]
        return item

    def _hidden(self, name: str) -> bool:
        """A loop device of the host's, or a partition of one, where those are not shown."""
        if self._hosts_loops:
            return False
        if self._place == "dev/block":  # it tells numbers, and they can be any device's
            name = os.readlink("/".join((HOST, self._place, name))).partition("/block/")[2]
        return name.startswith("loop")

    def _attr(self, path: Path) -> Attr:
        item = self._find(path)
        uid = 0
        size = 0
        if isinstance(item, Host):
            st = os.lstat(item.path)
            mode, uid = st.st_mode, OVERFLOW_ID
            if not stat.S_ISLNK(mode):
                mode &= ~0o222
            size = st.st_size
        elif isinstance(item, dict):
            mode = stat.S_IFDIR | 0o755
        elif isinstance(item, Link):
            mode = stat.S_IFLNK | 0o777
        else:
            mode, size = stat.S_IFREG | 0o444, FILE_SIZE
        nodeid = self._nodeid(path)
        nlink = 2 if stat.S_ISDIR(mode) else 1
        return Attr(nodeid, size, mode, nlink, uid, uid, 0, (self._now,) * 3)

    def _nodeid(self, path: Path) -> int:
        if not path:
            return FUSE_ROOT_ID
        if path not in self._nodeids:
            nodeid = next(self._ids)
            self._nodeids[path] = nodeid
            self._paths[nodeid] = path
        return self._nodeids[path]

    # --- requests -----------------------------------------------------------------

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        path = (*self._paths[parent], os.fsdecode(name))
        attr = self._attr(path)
        return Entry(attr.ino, attr)

    def getattr(self, nodeid: int) -> Attr:
        return self._attr(self._paths[nodeid])

    def readdir(self, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        path = self._paths[nodeid]
        return [(os.fsencode(name), 1, kind) for name, kind in self._entries(path)]

    def _entries(self, path: Path) -> Iterator[tuple[str, int]]:
        item = self._find(path)
        own = item if isinstance(item, dict) else {}
        for name, entry in own.items():
            yield name, _kind(entry)
        if not path or isinstance(item, Host):
            for host in os.scandir("/".join((HOST, self._place, *path))):
                if host.name not in own and (path or not self._hidden(host.name)):
                    yield host.name, stat.S_IFMT(host.stat(follow_symlinks=False).st_mode)

    def readlink(self, nodeid: int) -> bytes:
        item = self._find(self._paths[nodeid])
        if isinstance(item, Link):
            return os.fsencode(item.target)
        if isinstance(item, Host):
            return os.fsencode(os.readlink(item.path))
        raise _error(errno.EINVAL)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _error(errno.EACCES)
        item = self._find(self._paths[nodeid])
        if isinstance(item, Host):
            path = item.path
            show = lambda: _contents(path)  # noqa: E731 - a function of this path
        elif isinstance(item, Attribute):
            text = item.show
            show = lambda: _line(text())  # noqa: E731
        else:
            raise _error(errno.EISDIR)
        handle = next(self._handles)
        self._files[handle] = show, b""
        return handle, FOPEN_DIRECT_IO

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        show, data = self._files[handle]
        if offset == 0:  # as kernfs: a read from the start shows what is so now
            data = show()
            self._files[handle] = show, data
        return data[offset : offset + size]

    def release(self, request: Request, handle: int) -> None:
        del self._files[handle]
        request.reply()


def _kind(item: Item) -> int:
    if isinstance(item, dict):
        return stat.S_IFDIR
    return stat.S_IFLNK if isinstance(item, Link) else stat.S_IFREG


def _line(text: str) -> bytes:
    return text.encode() + b"\n" if text else b""


def _contents(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 16)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
