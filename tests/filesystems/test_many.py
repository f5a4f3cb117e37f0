"""With thousands of devices a request takes no more work than with a few.

Work is counted, not timed: the instructions of Python's that the server executes for it. What C
does in one of them (a list's copy, say) is not seen.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from loopfs.driver.minors import FIRST_EXTENDED
from loopfs.driver.partition import Found
from loopfs.filesystems.sysfs import SysfsDirectory
from loopfs.fuse import connection
from loopfs.fuse.session import Request
from loopfs.uapi import fuse, loop
from loopfs.uapi.fuse import FUSE_ROOT_ID
from tests.driver.fakes import bind
from tests.filesystems.conftest import FIRST, Mounted
from tests.fuse.wire import entries, served

FEW, MANY = 200, 4096
PAGE = 4096  # bytes for which the kernel asks at a time


class Counter:
    """Counts the instructions of all threads that start while it is installed."""

    def __init__(self) -> None:
        self.executed = 0
        self.on = False

    def count(self, work: Callable[[], object]) -> int:
        """How many are executed while ``work`` is done."""
        self.executed = 0
        self.on = True
        work()
        self.on = False
        return self.executed

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self.on or frame.f_code.co_filename == connection.__file__:  # it only waits there
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._count

    def _count(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.executed += 1
        return self._count


@contextmanager
def served_with(devices: int, counter: Counter) -> Iterator[Mounted]:
    """An instance that has so many devices, all but the last of them bound."""
    mounted = Mounted()
    threading.settrace(counter)
    try:
        with served(mounted.make, os.getpid()) as mounted.kernel:
            control = mounted.handle(b"loop-control")
            for _ in range(devices):
                mounted.ioctl(control, loop.LOOP_CTL_ADD, -1 % 2**64)
            for device in list(mounted.filesystem.instance.devices.values())[:-1]:
                bind(device)
            yield mounted
            mounted.close(control)
    finally:
        threading.settrace(None)


def _free(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_GET_FREE)


def _add(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, -1 % 2**64)


def _lookup(mounted: Mounted) -> None:
    assert mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop%d\0" % (FIRST + FEW // 2)).code == 0


def _missing(mounted: Mounted) -> None:
    assert mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop777777\0").code != 0


def _first_page(mounted: Mounted) -> None:
    _page(mounted, 0)


def _last_page(mounted: Mounted) -> None:
    """The last hundred: by the places that the nodes have."""
    _page(mounted, mounted.filesystem.nodes._order[-100] + 2)


def _page(mounted: Mounted, offset: int) -> None:
    body = fuse.READ_IN.pack(0, offset, PAGE, 0, 0, 0, 0)
    assert len(entries(mounted.kernel.ask(fuse.FUSE_READDIR, body).data)) > 90


def _open(mounted: Mounted) -> None:
    mounted.close(mounted.handle(b"loop%d" % (FIRST + FEW // 2)))


REQUESTS: list[Callable[[Mounted], None]] = [
    _free,
    _add,
    _lookup,
    _missing,
    _first_page,
    _last_page,
    _open,
]


def work(devices: int, request: Callable[[Mounted], None]) -> int:
    """Instructions that one request takes where there are so many devices."""
    counter = Counter()
    with served_with(devices, counter) as mounted:
        request(mounted)  # what is only done the first time
        # The least of some: a request can meet the thread that has just answered another.
        return min(counter.count(lambda: request(mounted)) for _ in range(3))


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else traces")
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request.__name__)[1:])
def test_a_request_costs_the_same_with_thousands(request_: Callable[[Mounted], None]) -> None:
    few, many = work(FEW, request_), work(MANY, request_)
    assert few > 50, "nothing was counted"
    assert many <= few * 1.1 + 20  # binary search takes a step or two more


SYSFS_NAMES = [
    ("block", b"loop%d" % (FIRST + 5)),
    ("class/block", b"loop%dp1" % (FIRST + 5)),
    ("dev/block", b"7:%d" % (FIRST + 5)),
    ("dev/block", b"259:%d" % FIRST_EXTENDED),
    ("devices/virtual/block", b"loop%d" % (FIRST + 5)),
]


def lookup_in_sysfs(devices: int, place: str, name: bytes) -> int:
    """Instructions that a lookup in a directory of /sys takes where there are so many devices."""
    counter = Counter()
    with served_with(devices, counter) as mounted:
        instances = mounted.filesystem._instances
        instances.devices[FIRST + 5].partitions.add(Found(1, 0, 4096))
        directory = SysfsDirectory(place, instances)
        request = Request(-1, 2, FUSE_ROOT_ID, os.getpid())
        directory.lookup(request, FUSE_ROOT_ID, name)
        sys.settrace(counter)
        try:
            return counter.count(lambda: directory.lookup(request, FUSE_ROOT_ID, name))
        finally:
            sys.settrace(None)


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else traces")
@pytest.mark.parametrize(("place", "name"), SYSFS_NAMES)
def test_a_lookup_in_sysfs_costs_the_same_with_thousands(place: str, name: bytes) -> None:
    few, many = lookup_in_sysfs(FEW, place, name), lookup_in_sysfs(MANY, place, name)
    assert few > 50, "nothing was counted"
    assert many <= few * 1.1 + 20
