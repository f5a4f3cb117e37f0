"""Packing of the kernel's structures compared with the compiler's (golden.json).

A field holds a number of its own, repeated in all its bytes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

import pytest

from loopfs.uapi import aio, block, fuse, loop, mount, netlink, seccomp
from loopfs.uapi import fcntl as uapi_fcntl
from loopfs.uapi import stat as uapi_stat
from loopfs.uapi.fuse import Attr, encode_dev, pack_dirent
from loopfs.uapi.loop import LoopConfig, LoopInfo64
from loopfs.uapi.stat import Stat
from loopfs.uapi.syscalls import MACHINES
from tests.uapi import golden

GOLDEN = golden.committed()
NATIVE = GOLDEN["x86_64"]  # what is the same for all 64-bit machines is recorded there

LAYOUTS: dict[str, tuple[struct.Struct, ...]] = {
    "fuse_in_header": (fuse.IN_HEADER,),
    "fuse_out_header": (fuse.OUT_HEADER,),
    "fuse_init_in": (fuse.INIT_IN,),
    "fuse_init_out": (fuse.INIT_OUT,),
    "fuse_attr": (fuse.ATTR,),
    "fuse_attr_out": (fuse.ATTR_OUT, fuse.ATTR),
    "fuse_entry_out": (fuse.ENTRY_OUT, fuse.ATTR),
    "fuse_getattr_in": (fuse.GETATTR_IN,),
    "fuse_setattr_in": (fuse.SETATTR_IN,),
    "fuse_open_in": (fuse.OPEN_IN,),
    "fuse_open_out": (fuse.OPEN_OUT,),
    "fuse_read_in": (fuse.READ_IN,),
    "fuse_write_in": (fuse.WRITE_IN,),
    "fuse_write_out": (fuse.WRITE_OUT,),
    "fuse_release_in": (fuse.RELEASE_IN,),
    "fuse_fsync_in": (fuse.FSYNC_IN,),
    "fuse_ioctl_in": (fuse.IOCTL_IN,),
    "fuse_ioctl_out": (fuse.IOCTL_OUT,),
    "fuse_fallocate_in": (fuse.FALLOCATE_IN,),
    "fuse_lseek_in": (fuse.LSEEK_IN,),
    "fuse_lseek_out": (fuse.LSEEK_OUT,),
    "fuse_statfs_out": (fuse.STATFS_OUT,),
    "fuse_dirent": (fuse.DIRENT,),
    "fuse_interrupt_in": (fuse.INTERRUPT_IN,),
    "fuse_forget_in": (fuse.FORGET_IN,),
    "fuse_forget_one": (fuse.FORGET_ONE,),
    "fuse_batch_forget_in": (fuse.BATCH_FORGET_IN,),
    "fuse_create_in": (fuse.CREATE_IN,),
    "fuse_mkdir_in": (fuse.MKDIR_IN,),
    "fuse_link_in": (fuse.LINK_IN,),
    "fuse_setxattr_in": (fuse.SETXATTR_IN,),
    "fuse_mknod_in": (fuse.MKNOD_IN,),
    "fuse_getxattr_in": (fuse.GETXATTR_IN,),
    "fuse_getxattr_out": (fuse.GETXATTR_OUT,),
    "fuse_rename_in": (fuse.RENAME_IN,),
    "fuse_rename2_in": (fuse.RENAME2_IN,),
    "fuse_notify_inval_inode_out": (fuse.NOTIFY_INVAL_INODE_OUT,),
    "fuse_notify_inval_entry_out": (fuse.NOTIFY_INVAL_ENTRY_OUT,),
    "fuse_notify_store_out": (fuse.NOTIFY_STORE_OUT,),
    "iocb": (aio.IOCB,),
    "mount_attr": (mount.MOUNT_ATTR,),
    "seccomp_notif": (seccomp.NOTIF,),
    "seccomp_notif_resp": (seccomp.NOTIF_RESP,),
    "seccomp_notif_addfd": (seccomp.NOTIF_ADDFD,),
    "nlmsghdr": (netlink.NLMSGHDR,),
    "statfs": (uapi_stat.STATFS,),
    "flock": (uapi_fcntl.FLOCK,),
    "open_how": (mount.OPEN_HOW,),
    "sock_filter": (seccomp.SOCK_FILTER,),
}
# Those that have grown, and of which we read the beginning only.
PREFIXES = {"fuse_init_in", "fuse_setxattr_in"}


def field(number: int, size: int) -> int:
    return int.from_bytes(bytes([number]) * size, "little")


def filled(layouts: tuple[struct.Struct, ...]) -> bytes:
    """The layouts one after the other, with the numbers 1, 2, 3… in their fields."""
    number = 1
    out = b""
    for layout in layouts:
        values = []
        for size in _field_sizes(layout):
            values.append(field(number, size))
            number += 1
        out += layout.pack(*values)
    return out


def _field_sizes(layout: struct.Struct) -> Iterator[int]:
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        if code != "x":
            yield from [struct.calcsize("=" + code)] * int(count or 1)


NEWER = {"STATX_IN", "STATX_OUT"}  # Linux 6.6; tests/e2e/test_ext4.py shows what comes of them


def test_every_layout_of_fuse_is_compared() -> None:
    ours = {name for name, value in vars(fuse).items() if isinstance(value, struct.Struct)}
    compared = {name.upper().removeprefix("FUSE_") for name in LAYOUTS}
    assert ours - NEWER <= compared


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    expected = NATIVE.structure(name)
    ours = filled(LAYOUTS[name])
    if name in PREFIXES:
        expected = expected[: len(ours)]
    assert ours == expected


def test_headers_and_notifications_are_read_by_name() -> None:
    header = fuse.InHeader._make(fuse.IN_HEADER.unpack(NATIVE.structure("fuse_in_header")))
    assert (header.length, header.opcode) == (field(1, 4), field(2, 4))
    assert (header.unique, header.nodeid) == (field(3, 8), field(4, 8))
    assert (header.uid, header.gid, header.pid) == (field(5, 4), field(6, 4), field(7, 4))
    call = seccomp.Notification._make(seccomp.NOTIF.unpack(NATIVE.structure("seccomp_notif")))
    assert (call.id, call.pid, call.flags) == (field(1, 8), field(2, 4), field(3, 4))
    assert (call.nr, call.arch, call.ip) == (field(4, 4), field(5, 4), field(6, 8))
    assert call[6:] == tuple(field(n, 8) for n in range(7, 13))


# --- FUSE ----------------------------------------------------------------------


def test_fuse_attr_by_name() -> None:
    second = 10**9
    attr = Attr(
        ino=7,
        size=8,
        mode=9,
        nlink=10,
        uid=11,
        gid=12,
        rdev=13,
        times=(14 * second + 17, 15 * second + 18, 16 * second + 19),
        blksize=20,
    )
    fields = fuse.ATTR.unpack(attr.pack())
    # In the order of structures.c: ino, size, blocks, seconds, nanoseconds, mode…
    assert fields == (7, 8, 0, 14, 15, 16, 17, 18, 19, 9, 10, 11, 12, 13, 20, 0)


def test_a_time_before_the_epoch_has_positive_nanoseconds() -> None:
    parts = uapi_stat.pack_statx(Stat(0, 1, 0, 1, 0, 0, 0, (-1, 0, 0)), 0)
    assert struct.unpack_from("=qI", parts, 64) == (-1, 999_999_999)


@pytest.mark.parametrize(
    ("major", "minor", "encoded"),
    [
        (7, 0, 0x700),
        (7, 255, 0x7FF),
        (7, 256, 0x100700),
        (10, 237, 0xAED),
        (7, 0xFFFFF, 0xFFF007FF),
    ],
)
def test_device_numbers_are_encoded_as_by_new_encode_dev(
    major: int, minor: int, encoded: int
) -> None:
    assert encode_dev(major, minor) == encoded


@pytest.mark.parametrize("length", range(1, 18))
def test_a_directory_entry_is_padded_to_eight_bytes(length: int) -> None:
    name = b"n" * length
    entry = pack_dirent(0x1122334455667788, 3, 4, name)
    assert len(entry) % 8 == 0
    assert len(entry) - fuse.DIRENT.size - length < 8
    assert fuse.DIRENT.unpack_from(entry) == (0x1122334455667788, 3, length, 4)
    assert entry[fuse.DIRENT.size :].rstrip(b"\0") == name


# --- loop ----------------------------------------------------------------------

INFO64 = LoopInfo64(
    device=field(1, 8),
    inode=field(2, 8),
    rdevice=field(3, 8),
    offset=field(4, 8),
    sizelimit=field(5, 8),
    number=field(6, 4),
    encrypt_type=field(7, 4),
    encrypt_key_size=field(8, 4),
    flags=field(9, 4),
    file_name=bytes([10]) * 64,
    crypt_name=bytes([11]) * 64,
    encrypt_key=bytes([12]) * 32,
    init=(field(13, 8), field(14, 8)),
)


def test_loop_info64() -> None:
    expected = NATIVE.structure("loop_info64")
    assert len(expected) == loop.LOOP_INFO64_SIZE == 232
    assert INFO64.pack() == expected
    assert LoopInfo64.unpack(expected) == INFO64


def test_loop_config() -> None:
    expected = NATIVE.structure("loop_config")
    assert len(expected) == loop.LOOP_CONFIG_SIZE == 304
    config = LoopConfig(fd=field(20, 4), block_size=field(21, 4), info=INFO64)
    assert config.pack() == expected
    assert LoopConfig.unpack(expected) == config


def test_texts_are_all_that_is_there() -> None:
    data = LoopInfo64(file_name=b"name\0rest").pack()
    assert LoopInfo64.unpack(data).file_name == b"name\0rest"


# The widths of lo_device and lo_rdevice, and of lo_inode and lo_init.
OLD_WIDTHS = {"x86_64": (8, 8), "i386": (2, 4), "aarch64": (4, 8), "arm": (2, 4)}
OWN_ABIS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}


def old_info(abi: str) -> LoopInfo64:
    device, word = OLD_WIDTHS[abi]
    return LoopInfo64(
        number=field(1, 4),
        device=field(2, device),
        inode=field(3, word),
        rdevice=field(4, device),
        offset=field(5, 4),
        encrypt_type=field(6, 4),
        encrypt_key_size=field(7, 4),
        flags=field(8, 4),
        file_name=bytes([9]) * 64,
        encrypt_key=bytes([10]) * 32,
        init=(field(11, word), field(12, word)),
    )


@pytest.mark.parametrize("machine", OWN_ABIS)
def test_old_loop_info(machine: str) -> None:
    for abi in OWN_ABIS[machine]:
        word = OLD_WIDTHS[abi][1]
        expected = GOLDEN[abi].structure("loop_info")
        assert len(expected) == loop.old_info_size(word, machine)
        assert loop.pack_old_info(old_info(abi), word, machine) == expected
        read = old_info(abi)._replace(encrypt_type=0, encrypt_key_size=0, encrypt_key=b"")
        assert loop.unpack_old_info(expected, word, machine) == read, "encryption is passed over"


@pytest.mark.parametrize("abi", OLD_WIDTHS)
def test_blkpg(abi: str) -> None:
    expected = GOLDEN[abi].structure("blkpg_ioctl_arg")
    word = OLD_WIDTHS[abi][1]
    fields = (field(1, 4), field(2, 4), field(3, 4), field(4, word))
    assert block.BLKPG_ARG[word].unpack(expected) == fields
    partition = NATIVE.structure("blkpg_partition")
    assert block.BLKPG_PARTITION.unpack(partition) == (field(1, 8), field(2, 8), field(3, 4))


@pytest.mark.parametrize("word", [4, 8])
def test_an_old_offset_is_signed(word: int) -> None:
    packed = loop.pack_old_info(LoopInfo64(offset=2**31 - 1), word)
    assert packed is not None
    assert loop.unpack_old_info(packed, word).offset == 2**31 - 1
    minus_one = packed.replace(b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff")
    assert minus_one != packed
    assert loop.unpack_old_info(minus_one, word).offset == 2**64 - 1


@pytest.mark.parametrize(
    ("too_big", "word"),
    [
        (LoopInfo64(offset=2**31), 8),
        (LoopInfo64(offset=2**31), 4),
        (LoopInfo64(inode=2**32), 4),
        (LoopInfo64(device=2**16), 4),
        (LoopInfo64(rdevice=2**16), 4),
    ],
)
def test_what_does_not_fit_the_old_structure_is_an_overflow(too_big: LoopInfo64, word: int) -> None:
    assert loop.pack_old_info(too_big, word) is None


def test_a_device_number_in_the_old_structure_of_64_bit_programs() -> None:
    large = LoopInfo64(device=2**32)
    assert loop.pack_old_info(large, 8, "x86_64") is not None
    assert loop.pack_old_info(large, 8, "aarch64") is None


def test_a_size_limit_is_not_in_the_old_structure() -> None:
    packed = loop.pack_old_info(LoopInfo64(sizelimit=2**40), 8)
    assert packed is not None
    assert loop.unpack_old_info(packed, 8).sizelimit == 0


# --- stat ----------------------------------------------------------------------


def status(word: int, nlink: int) -> Stat:
    def time(number: int) -> int:
        return field(number, word) * 10**9 + number * 1111111

    return Stat(
        dev=field(1, 8),
        ino=field(2, 8),
        nlink=field(3, nlink),
        mode=field(4, 4),
        uid=field(5, 4),
        gid=field(6, 4),
        rdev=field(7, 8),
        times=(time(10), time(11), time(12)),
        size=field(8, 8),
        blocks=field(9, 8),
        blksize=4096,
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_stat(machine: str) -> None:
    for abi, name in zip(MACHINES[machine], OWN_ABIS[machine], strict=True):
        st = status(abi.word, nlink=8 if name == "x86_64" else 4)
        assert uapi_stat.pack_stat(st, abi.arch) == GOLDEN[name].structure("stat"), name


def test_statx() -> None:
    st = status(8, nlink=4)._replace(
        mode=field(4, 2),
        dev=os.makedev(0x101, 0x10101),
        rdev=os.makedev(0x707, 0x70707),
    )
    assert uapi_stat.pack_statx(st, field(13, 8)) == NATIVE.structure("statx")
