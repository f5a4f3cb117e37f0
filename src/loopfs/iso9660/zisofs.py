"""zisofs: files that are compressed in independent blocks.

A file has a header, then the offset of each block and of the end, then the blocks, compressed by
zlib (Documentation/filesystems/zisofs.rst).
"""

from __future__ import annotations

import errno
import struct
import zlib

from loopfs.iso9660.errors import refused
from loopfs.lean import Callable

_POINTERS = struct.Struct("<II")
_PAGE = 4096
_WORD = 4


class Zisofs:
    """An open file.

    Args:
        read: returns bytes of the stored file, by offset and length; raises OSError.
        header: the number of words before the offsets.
        shift: log2 of the block size in bytes.
        size: the size of the file in bytes.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], header: int, shift: int, size: int
    ) -> None:
        self._read = read
        self._table = header * _WORD
        self._block = 1 << shift
        self._size = size
        self._last = -1, b""  # the block that was read last: number, content

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file. Raises OSError EIO: they are damaged."""
        end = min(offset + size, self._size)
        out: list[bytes] = []
        while offset < end:
            number, within = divmod(offset, self._block)
            part = self._content(number)[within : within + end - offset]
            if not part or offset + len(part) < min(end, (number + 1) * self._block):
                raise refused(errno.EIO)
            out.append(part)
            offset += len(part)
        return b"".join(out)

    def _content(self, number: int) -> bytes:
        if self._last[0] != number:
            self._last = number, self._inflated(number)
        return self._last[1]

    def _inflated(self, number: int) -> bytes:
        begin, end = _POINTERS.unpack(self._read(self._table + number * _WORD, _POINTERS.size))
        length = end - begin
        if not length:
            return bytes(self._block)
        if not 0 < length <= _most_compressed(self._block):
            raise refused(errno.EIO)
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(self._read(begin, length), self._block)
        except zlib.error:  # it is unknown which part of the block is valid
            raise refused(errno.EIO) from None
        # The rest of a page that the stream ends within is zeros.
        return data + bytes(-len(data) % _PAGE)


def _most_compressed(size: int) -> int:
    """Return the largest compressed size of a block, deflateBound()."""
    return size + (size + 7 >> 3) + (size + 63 >> 6) + 11
