"""The parts of /sys that list block devices: those of the sandbox in addition to the host's.

Four directories are covered, each by a separate mount. Entries of the host are read from the
host's /sys on each access, so they follow hotplug; they are read-only. Of the sandbox's devices,
the attribute uevent is writable.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.driver.minors import BLOCK_EXT_MAJOR
from loopfs.driver.partition import Partition
from loopfs.driver.sysfs import Attribute, Directory, Item, Link, device_number, disk
from loopfs.driver.uevent import place
from loopfs.filesystems.dev_layout import HOST_LASTS, hosts_devices
from loopfs.fuse.operations import Buffer, Entry, Operations, SetAttr
from loopfs.fuse.session import Request
from loopfs.lean import NamedTuple, Protocol
from loopfs.text import to_bytes, to_str
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FUSE_ROOT_ID, Attr
from loopfs.uapi.loop import LOOP_MAJOR

HOST = "/sys"
DEVICES = "devices/virtual/block"
# The directories of links, and the relative path from each to /sys.
LINKS = {"block": "..", "class/block": "../..", "dev/block": "../.."}

FILE_SIZE = 4096  # bytes, the size of every attribute in sysfs
LASTS = 3600  # seconds
OVERFLOW_ID = 65534  # the user id that the host's root has in a user namespace

# A negative answer, which the kernel caches: there is no such name.
NO_ENTRY = Entry(0, Attr(0, 0, 0, 0, 0, 0, 0, (0, 0, 0)), LASTS)

Path = tuple[str, ...]
Key = tuple[Path, str]  # of a node: its path, and the target if it is a link


class File(NamedTuple):
    """An open file: a function that reads its contents, the contents, and the attribute to
    write."""

    show: Callable[[], bytes]
    content: bytes
    attribute: Attribute | None


class Host(NamedTuple):
    """A file in the host's /sys."""

    path: str


class Disks(Protocol):
    """The devices of an instance, or of all instances."""

    @property
    def devices(self) -> Mapping[int, LoopDevice]: ...

    def catch_up(self) -> None:
        """Wait until requests made before now have taken effect on the devices."""

    @property
    def all_see_all(self) -> bool:
        """Whether every thread may see every device."""

    def seen_by(self, tid: int) -> Mapping[int, LoopDevice]:
        """Return the devices that a thread may see."""

    def seen(self, number: int, tid: int | None) -> LoopDevice | None:
        """Return a device that a thread may see; any device if ``tid`` is None."""

    def partition(self, minor: int) -> Partition | None:
        """Return the partition with a minor number."""

    def store(self, attribute: Attribute, text: str) -> None:
        """Write to an attribute of a device. Raises OSError, also if the device was removed."""


class SysfsDirectory(Operations):
    """One of the directories in :data:`loopfs.sandbox.sysfs.PLACES`.

    Args:
        place: the path of the directory below /sys.
        disks: the devices of the sandbox.
        hosts_loops: whether the host's loop devices are shown, as its other devices are.
        mounted_on: the names of the host's devices whose directories are mounted here.
    """

    def __init__(
        self,
        place: str,
        disks: Disks,
        *,
        hosts_loops: bool = True,
        mounted_on: Iterable[str] = (),
    ) -> None:
        self._place = place
        self._disks = disks
        self._hosts_loops = hosts_loops
        self._now = time.time_ns()
        self._ids = count(FUSE_ROOT_ID + 1)
        # The nodes that the kernel knows, with their lookup counts.
        self._keys: dict[int, Key] = {FUSE_ROOT_ID: ((), "")}
        self._nodeids: dict[Key, int] = {}
        self._lookups: dict[int, int] = {}
        self._handles = count(1)
        self._files: dict[int, File] = {}
        self._attrs: dict[int, Attr] = {}
        for nodeid, _, name, *_ in hosts_devices(mounted_on):  # looked up before we serve
            key = (to_str(name),), ""
            self._keys[nodeid], self._nodeids[key], self._lookups[nodeid] = key, nodeid, 1

    # --- what each path refers to ---------------------------------------------------

    def _own(self, tid: int | None) -> dict[str, BlockDevice]:
        """Return the devices that a thread may see (None: all), by their names in this
        directory."""
        seen = self._disks.devices if tid is None else self._disks.seen_by(tid)
        disks = list(seen.values())
        if self._place == DEVICES:
            return {device.name: device for device in disks}
        devices: list[BlockDevice] = [*disks]
        if self._place != "block":
            devices += [part for each in disks for part in each.partitions.in_order()]
        return {self.name_of(device): device for device in devices}

    def _device(self, name: str, tid: int | None) -> BlockDevice | None:
        """Return the device with a name in this directory, as in :meth:`_own`."""
        if self._place == "dev/block":
            device = self._numbered(*name.partition(":")[::2], tid)
        else:
            disk, _, part = name.removeprefix("loop").partition("p")
            device = self._numbered(str(LOOP_MAJOR), disk, tid)
            if part and device is not None:
                device = self._part(device, part)
        return device if device is not None and self.name_of(device) == name else None

    def _part(self, device: BlockDevice, part: str) -> BlockDevice | None:
        if self._place != "class/block" or not part.isdecimal():
            return None
        return device.disk.partitions.get(int(part))

    def _numbered(self, major: str, minor: str, tid: int | None) -> BlockDevice | None:
        """Return the device with a device number; the caller compares its name."""
        if not minor.isdecimal():
            return None
        if major == str(LOOP_MAJOR):
            return self._disks.seen(int(minor), tid)
        part = self._disks.partition(int(minor)) if major == str(BLOCK_EXT_MAJOR) else None
        if part is None or self._disks.seen(part.disk.number, tid) is not part.disk:
            return None
        return part

    def name_of(self, device: BlockDevice) -> str:
        """Return the name of a device in this directory."""
        return device_number(device) if self._place == "dev/block" else device.name

    def _item(self, device: BlockDevice) -> Item:
        if isinstance(device, LoopDevice) and self._place == DEVICES:
            return disk(device)
        return Link(f"{LINKS[self._place]}/{DEVICES}/{place(device)}")

    def _find(self, path: Path, tid: int | None = None) -> Item | Host | None:
        """Return what a path refers to; None for the root."""
        if not path:
            return None
        device = self._device(path[0], tid)
        if device is None:
            if self._hidden(path[0]):
                raise _error(errno.ENOENT)
            return Host("/".join((HOST, self._place, *path)))
        item = self._item(device)
        for name in path[1:]:
            if not isinstance(item, Directory) or name not in item:
                raise _error(errno.ENOENT)
            item = item[name]
        return item

    def _hidden(self, name: str) -> bool:
        """Return whether a name is that of a host's loop device (or its partition) to be hidden."""
        if self._hosts_loops:
            return False
        if self._place == "dev/block":  # its names are numbers, which do not show the driver
            name = os.readlink("/".join((HOST, self._place, name))).partition("/block/")[2]
        return name.startswith("loop")

    def _attr(self, path: Path, tid: int | None = None) -> Attr:
        item = self._find(path, tid)
        uid = size = 0
        target = ""
        if isinstance(item, Host):
            st = os.lstat(item.path)
            mode, uid = st.st_mode, OVERFLOW_ID
            if not stat.S_ISLNK(mode):
                mode &= ~0o222
            size = st.st_size
            target = os.readlink(item.path) if stat.S_ISLNK(mode) else ""
        elif item is None or isinstance(item, Directory):
            mode = stat.S_IFDIR | 0o755
        elif isinstance(item, Link):
            mode, target = stat.S_IFLNK | 0o777, item.target
        else:
            mode = stat.S_IFREG | (0o444 if item.stored is None else 0o644)
            size = FILE_SIZE
        nodeid = self._nodeid(path, target)
        nlink = 2 if stat.S_ISDIR(mode) else 1
        attr = Attr(nodeid, size, mode, nlink, uid, uid, 0, (self._now,) * 3)
        self._attrs[nodeid] = attr
        return attr

    def _nodeid(self, path: Path, target: str) -> int:
        """Return the node id of a path. A link that changes its target gets a new id, since the
        kernel caches the target."""
        if not path:
            return FUSE_ROOT_ID
        key = path, target
        if key not in self._nodeids:
            nodeid = next(self._ids)
            self._nodeids[key] = nodeid
            self._keys[nodeid] = key
        return self._nodeids[key]

    def _path(self, nodeid: int) -> Path:
        return self._keys[nodeid][0]

    # --- requests -----------------------------------------------------------------

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        path = (*self._path(parent), to_str(name))
        if self._changes_at_close(path[:-1]) and name == b"loop":
            self._disks.catch_up()
        try:
            attr = self._attr(path, request.pid)
        except FileNotFoundError:
            if len(path) == 1 or self._device(path[0], None) is None or not _lasts(path):
                raise
            return NO_ENTRY
        entry = Entry(attr.ino, attr, self._valid(path))
        self._lookups[attr.ino] = self._lookups.get(attr.ino, 0) + 1
        return entry

    def forget(self, nodeid: int, nlookup: int) -> None:
        self._lookups[nodeid] -= nlookup
        if not self._lookups[nodeid]:
            del self._lookups[nodeid]
            self._attrs.pop(nodeid, None)
            del self._nodeids[self._keys.pop(nodeid)]

    def _valid(self, path: Path) -> int:
        """Return for how many seconds the kernel may cache a name, unless it is told to drop it."""
        if len(path) > 1:
            return LASTS if _lasts(path) else 0
        if self._device(path[0], None) is None:
            return HOST_LASTS
        return LASTS if self._disks.all_see_all else 0

    def getattr(self, nodeid: int) -> Attr:
        # The kernel requests attributes after every read, for the atime. The lookup has stored
        # them.
        return self._attrs.get(nodeid) or self._attr(self._path(nodeid))

    def readdir(self, request: Request, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        path = self._path(nodeid)
        if self._changes_at_close(path):
            self._disks.catch_up()
        return [(to_bytes(name), 1, kind) for name, kind in self._entries(path, request.pid)]

    def _changes_at_close(self, directory: Path) -> bool:
        """Return whether the contents of a directory can change by a close(2), which does not
        wait."""
        if directory:
            return len(directory) == 1 and self._device(directory[0], None) is not None
        return self._place in ("class/block", "dev/block")  # these list partitions

    def _entries(self, path: Path, tid: int) -> Iterator[tuple[str, int]]:
        if path:
            item = self._find(path, tid)
            if isinstance(item, Directory):
                for name in item:
                    yield name, _kind(item[name])
            elif isinstance(item, Host):
                for entry in os.scandir(item.path):
                    yield entry.name, _kind_of(entry)
            return
        own = self._own(tid)
        for name, device in own.items():
            yield name, _kind(self._item(device))
        for entry in os.scandir(f"{HOST}/{self._place}"):
            if entry.name not in own and not self._hidden(entry.name):
                yield entry.name, _kind_of(entry)

    def readlink(self, nodeid: int) -> bytes:
        item = self._find(self._path(nodeid))
        if isinstance(item, Link):
            return to_bytes(item.target)
        if isinstance(item, Host):
            return to_bytes(os.readlink(item.path))
        raise _error(errno.EINVAL)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        attr = self.getattr(nodeid)
        if changes[:3] != (None, None, None) or not attr.mode & stat.S_IWUSR:
            raise _error(errno.EPERM)
        return attr  # O_TRUNC changes nothing

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        item = self._find(self._path(nodeid), request.pid)
        attribute = item if isinstance(item, Attribute) else None
        if flags & os.O_ACCMODE != os.O_RDONLY and (attribute is None or attribute.stored is None):
            raise _error(errno.EACCES)
        if isinstance(item, Host):
            path = item.path
            show = lambda: _contents(path)  # noqa: E731 - a function of this path
        elif attribute is not None:
            text = attribute.show
            show = lambda: _line(text())  # noqa: E731
        else:
            raise _error(errno.EISDIR)
        handle = next(self._handles)
        self._files[handle] = File(show, b"", attribute)
        return handle, FOPEN_DIRECT_IO

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        file = self._files[handle]
        if offset == 0:  # as in kernfs, a read from the start generates new contents
            file = self._files[handle] = file._replace(content=file.show())
        return file.content[offset : offset + size]

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        attribute = self._files[handle].attribute
        if attribute is None:
            raise _error(errno.EIO)
        self._disks.store(attribute, to_str(bytes(data)))
        return len(data)

    def release(self, request: Request, handle: int) -> None:
        del self._files[handle]
        request.reply()


def _lasts(path: Path) -> bool:
    """Return whether a name in a device's directory exists, or does not exist, as long as the
    directory does. There are few exceptions."""
    device, name, *within = path
    if name in ("holders", "slaves"):
        return not within
    return bool(within) or not (name == "loop" or name.startswith(device))


def _kind_of(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFDIR if entry.is_dir() else stat.S_IFREG


def _kind(item: Item) -> int:
    if isinstance(item, Directory):
        return stat.S_IFDIR
    return stat.S_IFLNK if isinstance(item, Link) else stat.S_IFREG


def _line(text: str) -> bytes:
    return to_bytes(text) + b"\n" if text else b""


def _contents(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
