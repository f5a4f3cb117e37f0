"""The part of its backing file that a device shows."""

from __future__ import annotations

import errno

from loopfs.driver.world import Backing
from loopfs.errors import DriverError
from loopfs.lean import NamedTuple
from loopfs.uapi.block import SECTOR_SIZE
from loopfs.uapi.loop import LO_CRYPT_NONE, LO_KEY_SIZE, LoopInfo64

LLONG_MAX = 2**63 - 1


class Window(NamedTuple):
    """A part of a backing file; ``offset`` and ``capacity`` are bytes.

    ``backing`` is None while the device is in state Lo_rundown.
    """

    backing: Backing | None
    offset: int
    capacity: int


def window_of(backing: Backing, info: LoopInfo64) -> Window:
    """Return the part of ``backing`` that a device with ``info``'s offset and size limit shows.

    Raises:
        OSError: the size of the file cannot be determined.
    """
    size = max(backing.size() - info.offset, 0)
    if info.sizelimit:
        size = min(size, info.sizelimit)
    return Window(backing, info.offset, size - size % SECTOR_SIZE)


def check_info(info: LoopInfo64) -> None:
    """Check a struct loop_info64, as all ioctls that take one do.

    Raises:
        DriverError: EINVAL for encryption, EOVERFLOW for an offset or size limit that is
            negative as a signed number.
    """
    if info.encrypt_key_size > LO_KEY_SIZE or info.encrypt_type != LO_CRYPT_NONE:
        raise DriverError(errno.EINVAL, "the loop driver has no encryption")
    if info.offset > LLONG_MAX or info.sizelimit > LLONG_MAX:
        raise DriverError(errno.EOVERFLOW, "offset or size limit beyond 2^63-1")
