"""Multiple mount protection (fs/ext4/mmp.c): a block with a sequence number, which the machine that
has mounted the filesystem for writing updates, so that other machines see that it is in use.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time

from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.errors import BadChecksum, Damaged
from loopfs.ext4.super import Super
from loopfs.lean import Callable

_SIZE = 1024  # bytes: struct mmp_struct
_MAGIC = 0x004D4D50
_CLEAN, _FSCK, _LAST = 0xFF4D4D50, 0xE24D4D50, 0xE24D4D4F  # EXT4_MMP_SEQ_*
_HEAD = struct.Struct("<IIQ")  # magic, sequence, time
_NODE, _DEVICE, _INTERVAL = slice(16, 80), slice(80, 112), 112
_UPDATE, _CHECK_LEAST, _CHECK_MOST = 5, 5, 300  # seconds
_CHECKSUM = 1020


class MultipleMountProtection:
    """The multiple mount protection of a filesystem.

    Args:
        wait: a function that sleeps for a number of seconds.

    Attributes:
        interval: seconds between two updates.

    Raises:
        OSError: EUCLEAN: the number of the block is wrong.
    """

    def __init__(self, device: Device, sb: Super, wait: Callable[[float], None]) -> None:
        number = sb.u32(360) | sb.u32(364) << 32
        if not sb.first_data_block < number < sb.blocks:
            raise Damaged(f"the block of multiple mount protection cannot be {number}")
        self._device, self._super, self._wait = device, sb, wait
        self._offset = number * sb.block_size
        self._sequence = _CLEAN
        self.interval = min(sb.u16(358) or _UPDATE, _CHECK_MOST)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Take the filesystem into use; wait if it was not unmounted cleanly.

        Raises:
            OSError: EBUSY with a sentence: it is in use; EUCLEAN, EBADMSG.
        """
        block = self._read()
        _, sequence, _ = _HEAD.unpack_from(block)
        (interval,) = struct.unpack_from("<H", block, _INTERVAL)
        if sequence == _FSCK:
            why = "e2fsck is at work on it; if that was killed, run tune2fs -f -E clear_mmp"
            raise OSError(errno.EBUSY, why)
        seconds = 0
        if sequence != _CLEAN:
            check = min(max(self.interval, interval, _CHECK_LEAST), _CHECK_MOST)
            seconds = min(2 * check + 1, check + 60)
            self._wait(seconds)
            self._expect(sequence)
        self._sequence = 1 + int.from_bytes(os.urandom(4)) % _LAST
        self._write()
        if seconds:
            self._wait(seconds)
        self._expect(self._sequence)

    def _expect(self, sequence: int) -> None:
        """Check the sequence number in the block. Raises OSError EBUSY if it is another one."""
        block = self._read()
        if _HEAD.unpack_from(block)[1] != sequence:
            node = block[_NODE].partition(b"\0")[0].decode(errors="replace")
            name = node if node.isprintable() and node else "another machine"
            raise OSError(errno.EBUSY, f"it is mounted by {name} (multiple mount protection)")

    def _read(self) -> bytes:
        block = self._device.read(self._offset, _SIZE)
        if _HEAD.unpack_from(block)[0] != _MAGIC:
            raise Damaged("the block of multiple mount protection is invalid")
        if self._super.csum and self._sum(block) != struct.unpack_from("<I", block, _CHECKSUM)[0]:
            raise BadChecksum("the checksum of the multiple mount protection block is wrong")
        return block

    def _sum(self, block: bytes | bytearray) -> int:
        return crc32c(self._super.seed, block[:_CHECKSUM])

    def _write(self) -> None:
        block = bytearray(self._device.read(self._offset, _SIZE))
        _HEAD.pack_into(block, 0, _MAGIC, self._sequence, int(time.time()))
        block[_NODE] = os.fsencode(os.uname().nodename)[:63].ljust(64, b"\0")
        block[_DEVICE] = b"loopfs".ljust(32, b"\0")
        struct.pack_into("<H", block, _INTERVAL, max(2 * self.interval, _CHECK_LEAST))
        if self._super.csum:
            struct.pack_into("<I", block, _CHECKSUM, self._sum(block))
        self._device.write(self._offset, block)
        self._device.barrier()

    # --- while it is mounted ---------------------------------------------------------

    def start(self, lost: Callable[[OSError], None]) -> None:
        """Start the thread that updates the block.

        Args:
            lost: called by that thread, once, when an update fails, or when another machine has
                taken the filesystem.
        """
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, args=(lost,), name="ext4 mmp")
        self._thread.daemon = True
        self._thread.start()

    def _run(self, lost: Callable[[OSError], None]) -> None:
        while not self._ended.wait(self.interval):
            try:
                self.update()
            except OSError as problem:
                lost(problem)
                return

    def update(self) -> None:
        """Update the block. Raises OSError EBUSY: it is in use; or an error of the device."""
        self._expect(self._sequence)
        self._sequence = self._sequence + 1 if self._sequence < _LAST else 1
        self._write()

    def end(self) -> None:
        """Stop updating, and mark the block as unused unless another machine has taken it.

        Raises:
            OSError: an error of the device.
        """
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
        try:
            self._expect(self._sequence)
        except OSError as problem:
            if problem.errno in (errno.EBUSY, errno.EUCLEAN, errno.EBADMSG):
                return
            raise
        self._sequence = _CLEAN
        self._write()
