"""include/uapi/linux/loop.h: ioctls, flags and structures of the loop driver."""

from __future__ import annotations

import os
import struct

from loopfs.lean import NamedTuple

LOOP_MAJOR = 7
MISC_MAJOR = 10
LOOP_CTRL_MINOR = 237
LOOPFS_SUPER_MAGIC = 0x6C6F6F71  # patch 2/8

LO_NAME_SIZE = 64
LO_KEY_SIZE = 32

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_PARTSCAN = 8
LO_FLAGS_DIRECT_IO = 16

LOOP_SET_STATUS_SETTABLE_FLAGS = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN
LOOP_SET_STATUS_CLEARABLE_FLAGS = LO_FLAGS_AUTOCLEAR
LOOP_CONFIGURE_SETTABLE_FLAGS = (
    LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO
)

LO_CRYPT_NONE = 0

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS = 0x4C02
LOOP_GET_STATUS = 0x4C03
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_CHANGE_FD = 0x4C06
LOOP_SET_CAPACITY = 0x4C07
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_SET_BLOCK_SIZE = 0x4C09
LOOP_CONFIGURE = 0x4C0A

LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81
LOOP_CTL_GET_FREE = 0x4C82

_INFO64 = struct.Struct("=QQQQQIIII64s64s32s2Q")
# struct loop_info in its 64-bit and 32-bit layouts, which differ in the type of lo_device
# (__kernel_old_dev_t, whose size is the second item) and in the size of unsigned long.
_INFO32 = struct.Struct("=iHxxIHxxiiii64s32s2I4s"), 2
_INFO = {
    "x86_64": {8: (struct.Struct("=i4xQQQiiii64s32s2Q4s4x"), 8), 4: _INFO32},
    "aarch64": {8: (struct.Struct("=iIQIiiii64s32s4x2Q4s4x"), 4), 4: _INFO32},
}
_CONFIG_HEAD = struct.Struct("=II")

LOOP_INFO64_SIZE = _INFO64.size
LOOP_CONFIG_SIZE = _CONFIG_HEAD.size + _INFO64.size + 8 * 8


class LoopInfo64(NamedTuple):
    """struct loop_info64: the binding of a device.

    ``offset`` and ``sizelimit`` are in bytes; a ``sizelimit`` of 0 means no limit.
    """

    device: int = 0
    inode: int = 0
    rdevice: int = 0
    offset: int = 0
    sizelimit: int = 0
    number: int = 0
    encrypt_type: int = 0
    encrypt_key_size: int = 0
    flags: int = 0
    file_name: bytes = b""
    crypt_name: bytes = b""
    encrypt_key: bytes = b""
    init: tuple[int, int] = (0, 0)

    def pack(self) -> bytes:
        return _INFO64.pack(*self[:12], *self.init)

    @classmethod
    def unpack(cls, data: bytes) -> LoopInfo64:
        *head, name, crypt_name, key, init0, init1 = _INFO64.unpack_from(data)
        texts = (field.rstrip(b"\0") for field in (name, crypt_name, key))
        return cls._make((*head, *texts, (init0, init1)))


class LoopConfig(NamedTuple):
    """struct loop_config, the argument of LOOP_CONFIGURE. ``block_size`` is in bytes."""

    fd: int = 0
    block_size: int = 0
    info: LoopInfo64 = LoopInfo64()

    def pack(self) -> bytes:
        head = _CONFIG_HEAD.pack(self.fd & 0xFFFFFFFF, self.block_size)
        return head + self.info.pack() + bytes(8 * 8)

    @classmethod
    def unpack(cls, data: bytes) -> LoopConfig:
        fd, block_size = _CONFIG_HEAD.unpack_from(data)
        info = LoopInfo64.unpack(data[_CONFIG_HEAD.size : _CONFIG_HEAD.size + _INFO64.size])
        return cls(fd, block_size, info)


def _layout(word: int, machine: str | None) -> tuple[struct.Struct, int]:
    return _INFO[machine or os.uname().machine][word]


def old_info_size(word: int, machine: str | None = None) -> int:
    """Return the size in bytes of struct loop_info for a caller with ``word``-byte longs.

    Args:
        machine: as returned by uname(2); None: this one.
    """
    return _layout(word, machine)[0].size


def unpack_old_info(data: bytes, word: int, machine: str | None = None) -> LoopInfo64:
    """Convert a struct loop_info to a LoopInfo64, without the encryption fields.

    Args:
        data: the bytes of the structure.
        word: the size of the caller's unsigned long in bytes, 8 or 4.
        machine: as returned by uname(2); None: this one.
    """
    f = _layout(word, machine)[0].unpack_from(data)
    number, device, inode, rdevice, offset, _, _, flags, name, _, *rest = f
    return LoopInfo64(
        device=device,
        inode=inode,
        rdevice=rdevice,
        offset=offset & 0xFFFFFFFFFFFFFFFF,
        number=number & 0xFFFFFFFF,
        flags=flags & 0xFFFFFFFF,
        file_name=name.rstrip(b"\0"),
        init=(rest[0], rest[1]),
    )


def pack_old_info(info: LoopInfo64, word: int, machine: str | None = None) -> bytes | None:
    """Convert ``info`` to a struct loop_info; None if a value does not fit (EOVERFLOW)."""
    layout, old_dev = _layout(word, machine)
    fits = (
        info.device >> old_dev * 8 == 0
        and info.rdevice >> old_dev * 8 == 0
        and info.inode >> word * 8 == 0
        and info.offset >> 31 == 0
    )
    if not fits:
        return None
    return layout.pack(
        info.number,
        info.device,
        info.inode,
        info.rdevice,
        info.offset,
        info.encrypt_type,
        info.encrypt_key_size,
        info.flags,
        info.file_name,
        info.encrypt_key,
        *info.init,
        b"",
    )
