"""Remounting what our own ext4 serves: the engine hears of it, too.

The kernel only lets nobody write any more. The engine then has all in its place, marks the
filesystem as clean, and writes nothing until it is remounted for writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loopfs.engines.mounts import Mounts
from loopfs.filesystems.lending import REMOUNT
from loopfs.filesystems.lent_device import LentDevice

_ROOT_INO = 2


def lent_devices(mounts: Mounts) -> dict[int, LentDevice]:
    """What the engines that can be told have their devices from, by st_dev of what they serve."""
    found = ((engine.device, engine.lent) for engine in mounts.alive())
    return {number: lent for number, lent in found if lent is not None}


@contextmanager
def told(lent: LentDevice | None, read_only: bool | None) -> Iterator[None]:
    """The engine is told of a remount by the kernel, which is made within.

    Args:
        lent: its device; None: nobody is to be told.
        read_only: None: that stays as it is.
    Raises:
        OSError: EROFS: it cannot be written; and as the engine.
    """
    if lent is None or read_only is None:
        yield
        return
    changed = () if read_only else lent.control(_ROOT_INO, REMOUNT, 0)
    try:
        yield
    except BaseException:
        if changed == (1,):
            lent.control(_ROOT_INO, REMOUNT, 1)
        raise
    if read_only:
        lent.control(_ROOT_INO, REMOUNT, 1)
