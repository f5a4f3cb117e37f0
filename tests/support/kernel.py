"""A loop device of the kernel's driver: the reference for that of loopfs."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loopfs.uapi.loop import LOOP_CLR_FD, LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_MAJOR
from tests.support.patience import scaled

PATIENCE = scaled(5.0)  # seconds


@contextmanager
def new_loop_device() -> Iterator[str]:
    """Yield the path of a new device; unbind and remove it at the end. Needs root."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Another process could take a free device of LOOP_CTL_GET_FREE before we use it.
        number = fcntl.ioctl(control, LOOP_CTL_ADD, -1)
        path = f"/dev/loop{number}"
        try:
            made = _make_node(path, number)
            yield path
        finally:
            _remove(control, path, number)
        if made:
            os.unlink(path)
    finally:
        os.close(control)


def _make_node(path: str, number: int) -> bool:
    """Wait for the node; make it if there is no devtmpfs (containers). Return whether we did."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if os.path.exists(path):
            return False
        time.sleep(0.02)
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))
    return True


def _remove(control: int, path: str, number: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CLR_FD)
            finally:
                os.close(fd)
        try:
            fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
        except OSError as problem:
            if problem.errno == errno.ENODEV:  # the test has removed it
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
