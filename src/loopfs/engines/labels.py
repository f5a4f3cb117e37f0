"""Writes of tools to the superblock of an ext filesystem while an engine serves it for writing.

fuse2fs caches the superblock and writes it at any time, which would undo a change of the label. Our
own engine adopts the changes of tools.
"""

from __future__ import annotations

import errno
import os

from loopfs.engines import ext_superblock
from loopfs.engines.ext_superblock import SIZE, START
from loopfs.ext4 import tune
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.lent_device import LentDevice


class Label:
    """The label of the filesystem that an engine serves from ``device``."""

    def __init__(self, device: HeldDevice) -> None:
        self._device = device

    def get(self) -> bytes:
        """Return the label, up to 16 bytes. Raises OSError as a disk does."""
        return ext_superblock.label(self._superblock())

    def set(self, name: bytes) -> None:
        """Change the label in the image, permanently.

        Raises:
            OSError: EROFS (mounted read-only); as a disk does.
        """
        self._rewrite(name)
        self._device.drop_pages(START, SIZE)

    def write(self, offset: int, data: bytes) -> bool:
        """Accept a write(2) to used bytes of the device if it changes only the label: that of the
        superblock, or of a copy of it. e2label(8) makes such writes.

        The caller's page is locked in the meantime, so no pages are dropped.

        Args:
            offset: bytes from the start of the device.
        Returns:
            whether the write was made.
        Raises:
            OSError: as a disk does.
        """
        superblock = self._superblock()
        if offset >= START and offset + len(data) <= START + SIZE:
            name = ext_superblock.label_by_write(superblock, offset - START, data)
            if name is None:
                return False
            if name != ext_superblock.label(superblock):
                self._rewrite(name)
            return True
        if not ext_superblock.is_copy(superblock, data):
            return False
        if not ext_superblock.is_older(self._device.contents(offset, SIZE), data):
            return False
        self._device.store(offset, data)
        return True

    def _superblock(self) -> bytes:
        return self._device.contents(START, SIZE)

    def _rewrite(self, name: bytes) -> None:
        self._device.rewrite(START, SIZE, lambda old: ext_superblock.with_label(old, name))


class Tuning(Label):
    """Changes by tune2fs(8) and e2label(8) to the filesystem of our own engine on ``device``."""

    def __init__(self, device: LentDevice) -> None:
        super().__init__(device)
        self._engine = device

    def write(self, offset: int, data: bytes) -> bool:
        """As :meth:`Label.write`, for all fields that may be changed (:mod:`loopfs.ext4.tune`)."""
        superblock = self._superblock()
        if offset >= START and offset + len(data) <= START + SIZE:
            begin = offset - START
            return self._engine.tune(superblock[:begin] + data + superblock[begin + len(data) :])
        if not tune.may_become(superblock, data, copy=True):
            return False
        if not ext_superblock.is_older(self._device.contents(offset, SIZE), data):
            return False
        self._device.store(offset, data)
        return True

    def _rewrite(self, name: bytes) -> None:
        if not self._engine.tune(ext_superblock.with_label(self._superblock(), name)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
