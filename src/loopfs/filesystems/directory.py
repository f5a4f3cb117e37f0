"""The directory of an instance: names, attributes, and the face of a node that a lookup returns."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice
from loopfs.filesystems import blockdev, faces
from loopfs.filesystems.covered import Covers
from loopfs.filesystems.nodes import Node, Nodes
from loopfs.filesystems.threads import spawn
from loopfs.fuse.operations import Entry, Operations, SetAttr
from loopfs.fuse.replies import pack_entry
from loopfs.fuse.session import Request, Session
from loopfs.lean import TYPE_CHECKING
from loopfs.process import Process
from loopfs.text import to_str
from loopfs.uapi.fuse import FUSE_ROOT_ID, Attr

if TYPE_CHECKING:
    from loopfs.filesystems.instances import Instances

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
NAME_MAX = 255  # bytes
DeviceListener = Callable[[str, str], None]
T = TypeVar("T")


class Directory(Operations):
    """The directory of an instance; subclasses implement the contents of the files.

    Args:
        fd: the open /dev/fuse that the instance is mounted with.
        device_number: st_dev of the mount.
        instance: the instance.
        on_device: called with "add" or "remove" and the name of a node, before the call
            that caused the change returns.
        instances: all instances, with which it shares the numbers.
    """

    def __init__(
        self,
        fd: int,
        device_number: int,
        instance: Instance,
        on_device: DeviceListener,
        instances: Instances,
    ) -> None:
        self.instance = instance
        self.session = Session(fd, self, watched=True)
        # One thread at a time calls the driver, and must not block in the call.
        self.lock = threading.Lock()
        self.device_number = device_number
        self.nodes = Nodes(time.time_ns())
        self.data_faces = faces.DataFaces()
        self.covers = Covers(device_number, self.places, self.session.forget_name)
        self.on_device = on_device
        self._instances = instances
        self._named: deque[tuple[str, BlockDevice]] = deque()  # changes not yet reported
        self._naming = threading.Lock()

    def drive(self, call: Callable[[], T], *, may_wait: bool = False) -> T:
        """Call the driver, and carry out its events."""
        raise NotImplementedError

    def places(self, node: Node) -> tuple[tuple[int, bytes], ...]:
        """Return the directories that contain a node: node ids, and paths with a trailing slash."""
        return ((FUSE_ROOT_ID, b"/"),)

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        node = self.nodes.by_name.get(name)
        if node is None or parent != self.nodes.root.special:
            raise _error(errno.ENOENT)
        return self.lookup_node(request, node)

    def lookup_node(self, request: Request, node: Node) -> Entry | None:
        """Answer a lookup that has found a node with two faces."""
        purpose = faces.purpose(Process(request.pid))
        if purpose == faces.LOOK and node.cover is not None:

            def look_at_covered() -> None:
                shown = faces.LOOK if self.covers.is_over(node) else faces.OPEN
                request.reply(pack_entry(*self._entry(node, shown)))

            spawn(blockdev.answering(request, look_at_covered))
            return None
        return self._entry(node, purpose)

    def _entry(self, node: Node, purpose: int) -> Entry:
        if purpose == faces.LOOK:
            return Entry(node.special, node.attr(node.special))
        self.data_faces.given(node.data, purpose)
        return Entry(node.data, node.attr(node.data))

    def forget(self, nodeid: int, nlookup: int) -> None:
        self.data_faces.forgotten(nodeid, nlookup)

    def getattr(self, nodeid: int) -> Attr:
        return self._node(nodeid).attr(nodeid)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        node = self._node(nodeid)
        if changes.size is not None and changes.by_handle:
            raise _error(errno.EINVAL)  # ftruncate(2); O_TRUNC changes nothing
        node.change(changes, time.time_ns())
        return node.attr(nodeid)

    def entries(
        self, request: Request, nodeid: int, handle: int, place: int
    ) -> Iterator[tuple[int, bytes, int, int]]:
        return ((n, node.name, node.ino, node.kind) for n, node in self.nodes.after(place))

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        self.drive(lambda: self._remove(self._renamable(name)))
        request.reply()

    def _remove(self, device: LoopDevice) -> None:
        with self._instances.numbers:
            self.instance.remove_unused(device)

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        device = self._renamable(name)
        other = self._renamable(to_name) if to_name in self.nodes.by_name else None
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise _error(errno.EINVAL)
        if flags & RENAME_EXCHANGE:
            self._exchange(device, self._renamable(to_name))
        else:
            self._rename(device, to_name, other)
        request.reply()

    def _rename(self, device: LoopDevice, name: bytes, victim: LoopDevice | None) -> None:
        """Rename the node of a device. A device that has the name is removed; it must be unused."""
        if is_name_of_partition(name):
            raise _error(errno.EPERM)  # it would conflict with a partition scan
        if victim is device:
            return
        if victim is not None:
            self.drive(lambda: self._remove(victim))
        self._name({device: name})

    def _exchange(self, device: LoopDevice, other: LoopDevice) -> None:
        """Exchange the names of two devices' nodes; none is removed, so both may be in use."""
        names = [self.nodes.of_device(each).name for each in (other, device)]
        self._name(dict(zip((device, other), names, strict=True)))

    def _name(self, names: dict[LoopDevice, bytes]) -> None:
        """Rename nodes to names that no other nodes have."""
        with self.lock:
            for device in names:
                if self.nodes.of_device(device).name == device.name.encode():
                    self._named.append(("remove", device))
            for device, name in names.items():
                self.instance.rename(device, to_str(name))
            self.nodes.rename({self.nodes.of_device(d): name for d, name in names.items()})
            for device, name in names.items():
                if name == device.name.encode():
                    self._named.append(("add", device))
        self._tell_names()

    def _renamable(self, name: bytes) -> LoopDevice:
        """Return the disk with a name, whose node can be removed and renamed.

        Raises:
            OSError: ENOENT; EPERM for the control node and for a partition.
        """
        node = self.nodes.by_name.get(name)
        if node is None:
            raise _error(errno.ENOENT)
        if not isinstance(node.device, LoopDevice):
            raise _error(errno.EPERM)
        return node.device

    def _node(self, nodeid: int) -> Node:
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise _error(errno.ENXIO)  # the device has been removed
        return node

    def _tell_names(self) -> None:
        first: OSError | None = None
        with self._naming:
            while self._named:
                action, device = self._named.popleft()
                with suppress(OSError):  # the directory is read-only, full or closed; no process
                    self.on_device(action, device.name)  # a device works without its links
                if action == "remove":
                    try:
                        self._instances.removed(device)
                    except OSError as problem:
                        first = first or problem
        if first is not None:
            raise first


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def is_name_of_partition(name: bytes) -> bool:
    """Return whether a name has the form loopNpM."""
    disk, _, partition = name[4:].partition(b"p")
    return name[:4] == b"loop" and disk.isdigit() and partition.isdigit()
