"""The nodes of an instance: names, inode numbers, attributes, and the ids of both faces."""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import count
from threading import Lock

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.partition import Partition
from loopfs.filesystems.dev_layout import ROOT_INO
from loopfs.fuse.operations import SetAttr
from loopfs.lean import TYPE_CHECKING
from loopfs.uapi.fuse import FUSE_ROOT_ID, Attr, encode_dev
from loopfs.uapi.loop import LOOP_CTRL_MINOR, MISC_MAJOR

if TYPE_CHECKING:
    from loopfs.filesystems.covered import Cover

CONTROL_INO = 2
FIRST_DEVICE_INO = 3  # loopN has inode N + 3 (patch 2/8)
PARTITION_INO_SHIFT = 24  # the partition's number, above all minor numbers
_AT_ONCE = 64  # nodes that are copied at a time for a reader of the directory
CONTROL_NAME = b"loop-control"


def device_name(ino: int) -> str:
    """Return the driver's name of the device whose node has the inode number ``ino``."""
    part, number = divmod(ino, 1 << PARTITION_INO_SHIFT)
    disk = f"loop{number - FIRST_DEVICE_INO}"
    return f"{disk}p{part}" if part else disk


class Node:
    """A file of the instance.

    ``special`` and ``data`` are the FUSE node ids of its two faces, ``kind`` is the S_IF* type of
    the special face.
    """

    __slots__ = (
        "cover",
        "data",
        "device",
        "gid",
        "ino",
        "kind",
        "mode",
        "name",
        "rdev",
        "special",
        "times",
        "uid",
    )

    def __init__(
        self, name: bytes, ino: int, kind: int, rdev: int, now: int, device: BlockDevice | None
    ) -> None:
        self.name = name
        self.ino = ino
        self.kind = kind
        self.rdev = rdev  # as FUSE encodes it
        self.device = device
        self.mode = 0o755 if kind == stat.S_IFDIR else 0o600
        self.uid = self.gid = 0  # the root of the user namespace that has mounted the instance
        self.times = (now, now, now)
        self.special = self.data = FUSE_ROOT_ID
        self.cover: Cover | None = None  # if not None, something may be mounted on it

    @property
    def device_number(self) -> int:
        """st_rdev of the special face."""
        if self.device is not None:
            return os.makedev(self.device.major, self.device.minor)
        return os.makedev(MISC_MAJOR, LOOP_CTRL_MINOR) if self.kind == stat.S_IFCHR else 0

    def attr(self, nodeid: int) -> Attr:
        """Return the attributes of the face ``nodeid``."""
        kind, rdev, size = self.kind, self.rdev, 0
        if nodeid != self.special:
            kind, rdev = stat.S_IFREG, 0
            size = self.device.capacity if self.device else 0
        nlink = 2 if kind == stat.S_IFDIR else 1
        owner = (self.uid, self.gid)
        return Attr(self.ino, size, kind | self.mode, nlink, *owner, rdev, self.times, self.io_unit)

    @property
    def io_unit(self) -> int:
        """st_blksize in bytes; for a device the value of BLKIOMIN."""
        return self.device.disk.block_size if self.device else 4096

    def touch(self) -> None:
        """Update mtime and ctime after a change of the device's data: by a write (as
        file_update_time() does), or in another way after which udevd touches the node. blkid(8)
        uses its cache while st_mtime is older than that."""
        now = time.time_ns()
        self.times = (self.times[0], now, now)

    def change(self, changes: SetAttr, now: int) -> None:
        """Change attributes (chmod(2), chown(2), utimensat(2)); a device's size cannot be set."""
        if changes.mode is not None:
            self.mode = stat.S_IMODE(changes.mode)
        if changes.uid is not None:
            self.uid = changes.uid
        if changes.gid is not None:
            self.gid = changes.gid
        atime, mtime, _ = self.times
        self.times = (
            atime if changes.atime is None else changes.atime,
            mtime if changes.mtime is None else changes.mtime,
            now,
        )


class Nodes:
    """All nodes of an instance, by name and by id. An id is never reused.

    Args:
        now: when the instance was mounted, in nanoseconds since the epoch.
    """

    def __init__(self, now: int) -> None:
        self._ids = count(FUSE_ROOT_ID + 1)
        self.root = Node(b"", ROOT_INO, stat.S_IFDIR, 0, now, None)
        self.by_id = {FUSE_ROOT_ID: self.root}
        self.by_ino = {ROOT_INO: self.root}
        self.by_name: dict[bytes, Node] = {}
        self._of_device: dict[BlockDevice, Node] = {}
        self._order: list[int] = []  # ids of the special faces, ascending
        self._order_lock = Lock()
        rdev = encode_dev(MISC_MAJOR, LOOP_CTRL_MINOR)
        self.control = Node(CONTROL_NAME, CONTROL_INO, stat.S_IFCHR, rdev, now, None)
        self._add(self.control)

    def new_id(self) -> int:
        """Return a number for a node id or another unique number; the numbers are ascending."""
        return next(self._ids)

    def add_device(self, device: BlockDevice, now: int) -> Node:
        ino = FIRST_DEVICE_INO + device.disk.number
        if isinstance(device, Partition):
            ino += device.number << PARTITION_INO_SHIFT
        rdev = encode_dev(device.major, device.minor)
        node = Node(device.name.encode(), ino, stat.S_IFBLK, rdev, now, device)
        self._add(node)
        return node

    def remove_device(self, device: BlockDevice) -> Node:
        node = self._of_device.pop(device)
        del self.by_name[node.name], self.by_ino[node.ino]
        del self.by_id[node.special], self.by_id[node.data]
        with self._order_lock:
            del self._order[bisect_left(self._order, node.special)]
        return node

    def after(self, place: int) -> Iterator[tuple[int, Node]]:
        """Iterate over the nodes except the root, oldest first, each with the place after it.

        Args:
            place: a place that was returned with a node, even if nodes were added or removed since;
                or 0.
        """
        while True:
            with self._order_lock:
                first = bisect_right(self._order, place)
                ids = self._order[first : first + _AT_ONCE]
            if not ids:
                return
            for nodeid in ids:
                if (node := self.by_id.get(nodeid)) is not None:
                    yield nodeid, node
            place = ids[-1]

    def of_device(self, device: BlockDevice) -> Node:
        return self._of_device[device]

    def find(self, device: BlockDevice) -> Node | None:
        """As :meth:`of_device`, but return None if the device has been removed."""
        return self._of_device.get(device)

    def of_inode(self, ino: int) -> Node | None:
        """Return the node with the inode number ``ino``, or None."""
        return self.by_ino.get(ino)

    def rename(self, names: dict[Node, bytes]) -> None:
        """Rename nodes to names that no other nodes have."""
        for node in names:
            del self.by_name[node.name]
        for node, name in names.items():
            node.name = name
            self.by_name[name] = node

    def _add(self, node: Node) -> None:
        node.special, node.data = next(self._ids), next(self._ids)
        with self._order_lock:
            self._order.append(node.special)
        self.by_id[node.special] = self.by_id[node.data] = node
        self.by_name[node.name] = self.by_ino[node.ino] = node
        if node.device is not None:
            self._of_device[node.device] = node
