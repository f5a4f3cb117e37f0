"""Errors found in an image, as its superblock records them (fs/ext4/super.c: save_error_info)."""

from __future__ import annotations

import errno
import struct

from loopfs.ext4.errors import BadChecksum, Damaged
from loopfs.ext4.super import STATE_ERROR

_STATE = 58
_COUNT = 404  # s_error_count
_AREA = slice(_COUNT, 512)  # up to s_mount_opts
_LATER = slice(632, 636)  # high bytes of the times, error codes: of the first and the last error
_FIRST, _LAST = (408, 632, 634), (460, 633, 635)
# Seconds, inode, block, function, line of the first error; the last one has the line before block.
_OF_FIRST, _OF_LAST = struct.Struct("<IIQ32sI"), struct.Struct("<IIIQ32s")
_CODES = {errno.EBADMSG: 4, errno.EUCLEAN: 5}  # EXT4_ERR_EFSBADCRC, EXT4_ERR_EFSCORRUPTED


def is_damage(problem: BaseException) -> bool:
    """Return whether an error means that the image is inconsistent or a checksum is wrong."""
    return isinstance(problem, (Damaged, BadChecksum))


def record(raw: bytearray, problem: Damaged | BadChecksum, now: int) -> None:
    """Record an error in a superblock, so that the next e2fsck checks the whole filesystem.

    Args:
        raw: the superblock; the caller updates its checksum afterwards.
        now: seconds since the epoch.
    """
    function, line = _where(problem)
    (state,) = struct.unpack_from("<H", raw, _STATE)
    (count,) = struct.unpack_from("<I", raw, _COUNT)
    struct.pack_into("<H", raw, _STATE, state | STATE_ERROR)
    struct.pack_into("<I", raw, _COUNT, min(count + 1, 0xFFFFFFFF))
    seconds, ino, block = now & 0xFFFFFFFF, problem.ino & 0xFFFFFFFF, problem.block
    at, *high = _LAST
    _OF_LAST.pack_into(raw, at, seconds, ino, line, block, function)
    places = [high]
    if not any(raw[_FIRST[0] : _FIRST[0] + 4]):
        at, *high = _FIRST
        _OF_FIRST.pack_into(raw, at, seconds, ino, block, function, line)
        places.append(high)
    for time, code in places:
        raw[time], raw[code] = now >> 32 & 0xFF, _CODES[problem.errno or errno.EUCLEAN]


def _where(problem: BaseException) -> tuple[bytes, int]:
    """Return the function and the line that found the error."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return b"", 0
    return trace.tb_frame.f_code.co_name.encode()[:31], trace.tb_lineno


def keep(before: bytes | bytearray, after: bytearray) -> None:
    """Keep the recorded errors when a replay replaces the superblock with an older one."""
    if before[_COUNT : _COUNT + 4] != bytes(4):
        after[_AREA], after[_LATER] = before[_AREA], before[_LATER]
    after[_STATE] |= before[_STATE] & STATE_ERROR
