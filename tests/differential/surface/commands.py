"""The ioctls with their arguments."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.differential.steps import uapi
from tests.differential.surface.asker import BASE, FILL, Argument, Hidden, Memory, ReadOnly, Value

DEVICE = 10  # the descriptor that is asked
# Descriptors that the program has besides.
FILES = {
    "another image": 20,
    "an image open for reading": 21,
    "a directory": 22,
    "no block device": 23,
    "a smaller image": 24,
    "O_PATH": 25,
    "O_DIRECT": 26,
    "an unbound device": 27,
}
NO_FILES = {"itself": DEVICE, "closed": 999, "-1": -1, "2^31": 1 << 31, "2^32": 1 << 32}


class Command(NamedTuple):
    """One ioctl.

    Args:
        number: of a 64-bit program.
        arguments: by what they are.
        changes: a good one changes the device: what is then is looked at.
        binds: what it changes is the binding: the next command gets a new device.
        hidden: of what it stores, the bytes that differ from device to device.
        hides_result: what it returns is a number that differs.
    """

    name: str
    number: int
    arguments: Mapping[str, Argument]
    changes: bool = False
    binds: bool = False
    hidden: Hidden = ()
    hides_result: bool = False


def commands(word: int) -> Iterable[Command]:
    """All of them, as a program with ``word`` bytes in a long sends them."""
    yield from _of_loop(word)
    yield from _of_block_devices(word)
    yield from _of_others(word)


# --- kinds of commands -----------------------------------------------------------


def pointers(example: bytes) -> dict[str, Argument]:
    """Where a structure like ``example`` could be and is not, or only in part."""
    return {
        "NULL": Value(0),
        "unmapped": Value(0x1000),
        "of the kernel": Value(-4096),
        "read-only": ReadOnly(example),
        "over the edge": Memory(example, missing=1),
    }


def getter(name: str, number: int, size: int, *hidden: tuple[int, int]) -> Command:
    """It stores ``size`` bytes."""
    blank = bytes([FILL]) * size
    return Command(name, number, {"good": Memory(blank), **pointers(blank)}, hidden=hidden)


def setter(name: str, number: int, values: Mapping[str, bytes], *, changes: bool = True) -> Command:
    """It reads a structure; each of ``values`` is tried."""
    structures = {key: Memory(value) for key, value in values.items()}
    example = next(iter(values.values()))
    return Command(name, number, {**structures, **pointers(example)}, changes)


def plain(name: str, number: int, *values: int, changes: bool = False) -> Command:
    """Its argument is a number."""
    return Command(name, number, {str(value): Value(value) for value in values}, changes)


def stranger(name: str, number: int, size: int = 64) -> Command:
    """Of another driver; zeros are as good as anything."""
    return Command(name, number, {"zeros": Memory(bytes(size)), **pointers(bytes(size))})


def numbered(number: int, name: str, word: int, size_in_64: int = 8) -> Command:
    """A stranger whose number carries the size of a long or of what has one."""
    return stranger(name, number - ((size_in_64 - word) << 16))


# --- the loop driver ---------------------------------------------------------------

_STATUS64_HIDDEN = ((0, 24), (40, 44))
_OLD_HIDDEN = {8: ((0, 4), (8, 32)), 4: ((0, 6), (8, 14))}
_OLD32 = struct.Struct("=iHxxIHxxiiii64s32s2I4s")


def _old_info(word: int, **fields: int) -> bytes:
    if word == 8:
        return uapi.old_info(**fields)
    order = "number device inode rdevice offset encrypt_type encrypt_key_size flags"
    values = [fields.get(name, 0) for name in order.split()]
    return _OLD32.pack(*values, b"", b"", 0, 0, b"")


def _of_loop(word: int) -> Iterable[Command]:
    files = FILES | NO_FILES
    yield _with_files("LOOP_SET_FD", uapi.LOOP_SET_FD)
    yield plain("LOOP_CLR_FD", uapi.LOOP_CLR_FD, 0, 1, -1)._replace(binds=True)
    yield setter(
        "LOOP_SET_STATUS64",
        uapi.LOOP_SET_STATUS64,
        {
            "nothing": uapi.info64(),
            "offset": uapi.info64(offset=4096),
            "odd": uapi.info64(offset=100, sizelimit=1000),
            "far": uapi.info64(offset=1 << 63),
            "limit": uapi.info64(sizelimit=1 << 63),
            "encrypted": uapi.info64(encrypt_type=2),
            "key": uapi.info64(encrypt_key_size=33),
            "flags": uapi.info64(flags=0xFFFFFFE3),
            "read only": uapi.info64(flags=uapi.READ_ONLY),
            "direct": uapi.info64(flags=uapi.DIRECT_IO),
            "autoclear": uapi.info64(flags=uapi.AUTOCLEAR),
            "named": uapi.info64(file_name=b"n" * 64, crypt_name=b"c" * 64, encrypt_key=b"k" * 32),
        },
    )._replace(binds=True)
    yield getter("LOOP_GET_STATUS64", uapi.LOOP_GET_STATUS64, uapi.INFO64_SIZE, *_STATUS64_HIDDEN)
    yield setter(
        "LOOP_SET_STATUS",
        uapi.LOOP_SET_STATUS,
        {
            "nothing": _old_info(word),
            "offset": _old_info(word, offset=4096),
            "negative": _old_info(word, offset=-1),
            "encrypted": _old_info(word, encrypt_type=2),
            "key": _old_info(word, encrypt_key_size=33),
            "flags": _old_info(word, flags=-1 & ~uapi.PARTSCAN),
        },
    )._replace(binds=True)
    size = len(_old_info(word))
    yield getter("LOOP_GET_STATUS", uapi.LOOP_GET_STATUS, size, *_OLD_HIDDEN[word])
    yield _with_files("LOOP_CHANGE_FD", uapi.LOOP_CHANGE_FD)
    yield plain("LOOP_SET_CAPACITY", uapi.LOOP_SET_CAPACITY, 0, 1, -1)
    yield plain("LOOP_SET_DIRECT_IO", uapi.LOOP_SET_DIRECT_IO, 1, 2, -1, 0, changes=True)
    sizes = (1024, 513, 0, 256, 4096, 65536, 131072, -1, 1 << 31, (1 << 32) + 512, 512)
    yield plain("LOOP_SET_BLOCK_SIZE", uapi.LOOP_SET_BLOCK_SIZE, *sizes, changes=True)
    good = FILES["another image"]
    bad = {name: uapi.config(fd) for name, fd in files.items() if fd != good and fd < 1 << 32}
    yield setter(
        "LOOP_CONFIGURE",
        uapi.LOOP_CONFIGURE,
        {
            **bad,
            "flag": uapi.config(good, flags=2),
            "size": uapi.config(good, block_size=513),
            "large": uapi.config(good, block_size=131072),
            "far": uapi.config(good, offset=1 << 63),
            "encrypted": uapi.config(good, encrypt_type=1),
            "reserved": uapi.config(good, reserved=1),
            "again": uapi.config(good),
        },
    )._replace(binds=True)
    for number in (0x4C0B, 0x4CFF):
        yield stranger(f"loop {number:#x}", number)
    yield plain("LOOP_CTL_ADD", uapi.LOOP_CTL_ADD, 1 << 20, (1 << 31) - 1)
    yield plain("LOOP_CTL_REMOVE", uapi.LOOP_CTL_REMOVE, -1, 1 << 20, (1 << 31), -(1 << 31))
    free = plain("LOOP_CTL_GET_FREE", uapi.LOOP_CTL_GET_FREE, 0, 1, -1)
    yield free._replace(hides_result=True)


def _with_files(name: str, number: int) -> Command:
    arguments = {what: Value(fd) for what, fd in (NO_FILES | FILES).items()}
    return Command(name, number, arguments, binds=True)


# --- the block layer ----------------------------------------------------------------


def _range(start: int, length: int) -> bytes:
    return uapi.byte_range(start, length)


def _blkpg(word: int, operation: int, number: int, start: int, size: int) -> bytes:
    """struct blkpg_ioctl_arg, and the struct blkpg_partition that it leads to."""
    layout = "=iii4xQ" if word == 8 else "=iiiI"
    inner = struct.pack("=qqi132x", start, size, number)
    return struct.pack(layout, operation, 0, len(inner), BASE + struct.calcsize(layout)) + inner


def _int(value: int) -> bytes:
    return struct.pack("=I", value & 0xFFFFFFFF)


# The commands that store a number: its bytes, None for those of a long.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "BLKROGET": (0x125E, 4),
    "BLKGETSIZE": (0x1260, None),
    "BLKSSZGET": (0x1268, 4),
    "BLKPBSZGET": (0x127B, 4),
    "BLKIOMIN": (0x1278, 4),
    "BLKIOOPT": (0x1279, 4),
    "BLKALIGNOFF": (0x127A, 4),
    "BLKDISCARDZEROES": (0x127C, 4),
    "BLKSECTGET": (0x1267, 2),
    "BLKGETZONESZ": (0x80041284, 4),
    "BLKGETNRZONES": (0x80041285, 4),
}
# Those that a device takes over from the disk below its file: only whether they can be had.
_FROM_BELOW = {"BLKROTATIONAL": (0x127E, 2), "BLKRAGET": (0x1263, 8), "BLKFRAGET": (0x1265, 8)}


def _of_block_devices(word: int) -> Iterable[Command]:
    for name, (number, size) in _NUMBERS.items():
        yield getter(name, number, size or word)
    for name, (number, size) in _FROM_BELOW.items():
        yield getter(name, number, size, (0, size))
    for bits, shift in ((64, 0), (32, 4 << 16)):
        yield getter(f"BLKGETSIZE64 of {bits} bits", uapi.BLKGETSIZE64 - shift, 8)
        yield getter(f"BLKBSZGET of {bits} bits", uapi.BLKBSZGET - shift, 4)
        sizes = (512, 4096, 0, 513, 256, 65536, 131072, -1)
        values = {f"size {size}": _int(size) for size in sizes}
        yield setter(f"BLKBSZSET of {bits} bits", uapi.BLKBSZSET - shift, values)
    yield getter("BLKGETDISKSEQ", uapi.BLKGETDISKSEQ, 8, (0, 8))
    yield setter("BLKROSET", uapi.BLKROSET, {"1": _int(1), "-1": _int(-1), "0": _int(0)})
    yield plain("BLKRASET", 0x1262, 256, 0, -1, changes=True)
    yield plain("BLKFRASET", 0x1264, 256, 0, -1, changes=True)
    yield plain("BLKFLSBUF", uapi.BLKFLSBUF, 0, 1, -1)
    yield plain("BLKRRPART", uapi.BLKRRPART, 0, 1, -1, changes=True)
    yield setter("BLKPG", uapi.BLKPG, _partitions(word))
    for name in ("BLKDISCARD", "BLKZEROOUT", "BLKSECDISCARD"):
        yield setter(
            name,
            getattr(uapi, name),
            {
                "good": _range(0, 4096),
                "odd": _range(100, 512),
                "empty": _range(0, 0),
                "past the end": _range(1 << 19, 1 << 20),
                "overflow": _range((1 << 64) - 512, 1024),
                "sector": _range(512, 512),
            },
        )
    for name, number in _ZONES.items():
        yield stranger(name, number)
    for name, (number, structures) in _RESERVATIONS.items():
        yield setter(f"IOC_PR_{name}", number, structures, changes=False)
    for name, number in _CRYPTO.items():
        yield stranger(f"BLKCRYPTO{name}", number)
    for name, number in _TRACE.items():
        yield stranger(name, number)
    yield numbered(0xC0481273, "BLKTRACESETUP", word, 8)


def _partitions(word: int) -> dict[str, bytes]:
    add, delete, resize = 1, 2, 3
    requests = {
        "add": (add, 7, 65536, 4096),
        "again": (add, 7, 131072, 4096),
        "overlapping": (add, 8, 65536, 4096),
        "odd": (add, 8, 100, 512),
        "sector": (add, 8, 131072 + 512, 512),
        "negative": (add, 8, -512, 512),
        "empty": (add, 8, 131072, 0),
        "past the end": (add, 8, 1 << 20, 4096),
        "number 0": (add, 0, 131072, 4096),
        "number 256": (add, 256, 196608, 4096),
        "resize": (resize, 7, 65536, 8192),
        "resize none": (resize, 9, 65536, 8192),
        "move": (resize, 7, 131072, 4096),
        "delete none": (delete, 9, 0, 0),
        "delete": (delete, 7, 0, 0),
        "no operation": (9, 7, 0, 0),
    }
    return {name: _blkpg(word, *request) for name, request in requests.items()} | {
        "no partition": _blkpg(word, add, 7, 0, 4096)[: 24 if word == 8 else 16]
    }


_ZONES = {
    "BLKREPORTZONE": 0xC0101282,
    "BLKRESETZONE": 0x40101283,
    "BLKOPENZONE": 0x40101286,
    "BLKCLOSEZONE": 0x40101287,
    "BLKFINISHZONE": 0x40101288,
    "BLKREPORTZONEV2": 0xC010128E,
}


def _reserve(kind: int, flags: int = 0) -> bytes:
    return struct.pack("=QII", 1, kind, flags)


def _preempt(kind: int, flags: int = 0) -> bytes:
    return struct.pack("=QQII", 1, 2, kind, flags)


_RESERVATIONS: dict[str, tuple[int, dict[str, bytes]]] = {
    "REGISTER": (0x401870C8, {"good": _preempt(0), "flags": _preempt(2)}),
    "RESERVE": (0x401070C9, {"good": _reserve(1), "type": _reserve(99), "flags": _reserve(1, 9)}),
    "RELEASE": (0x401070CA, {"good": _reserve(1), "type": _reserve(99), "flags": _reserve(1, 9)}),
    "PREEMPT": (0x401870CB, {"good": _preempt(1), "flags": _preempt(1, 9)}),
    "PREEMPT_ABORT": (0x401870CC, {"good": _preempt(1), "flags": _preempt(1, 9)}),
    "CLEAR": (0x401070CD, {"good": _reserve(0), "flags": _reserve(9)}),
    "READ_KEYS": (0xC01070CE, {"good": bytes(16)}),
    "READ_RESERVATION": (0x801070CF, {"good": bytes(16)}),
}
_CRYPTO = {
    "IMPORTKEY": 0xC0401289,
    "GENERATEKEY": 0xC030128A,
    "PREPAREKEY": 0xC040128B,
}
_TRACE = {"BLKTRACESTART": 0x1274, "BLKTRACESTOP": 0x1275, "BLKTRACETEARDOWN": 0x1276}


# --- what tools try, and nobody answers ----------------------------------------------


def _of_others(word: int) -> Iterable[Command]:
    for name, number in _PROBES.items():
        yield stranger(name, number)
    for name, number in _PROBES_BY_WORD.items():
        yield numbered(number, name, word)
    for name, number in (("FIONBIO", 0x5421), ("FIOASYNC", 0x5452)):
        yield setter(name, number, {"1": _int(1), "0": _int(0)}, changes=False)
    yield plain("FICLONE", 0x40049409, FILES["another image"], 999, -1)


_PROBES = {
    "HDIO_GETGEO": 0x0301,
    "HDIO_GET_UNMASKINTR": 0x0302,
    "HDIO_GET_MULTCOUNT": 0x0304,
    "HDIO_GET_IDENTITY": 0x030D,
    "HDIO_DRIVE_CMD": 0x031F,
    "HDIO_GETGEO_BIG": 0x0330,
    "CDROMREADTOCHDR": 0x5305,
    "CDROMEJECT": 0x5309,
    "CDROMMULTISESSION": 0x5310,
    "CDROM_MEDIA_CHANGED": 0x5325,
    "CDROM_DRIVE_STATUS": 0x5326,
    "CDROM_LOCKDOOR": 0x5329,
    "CDROM_GET_CAPABILITY": 0x5331,
    "CDROM_SEND_PACKET": 0x5393,
    "CDROM_LAST_WRITTEN": 0x5395,
    "DVD_READ_STRUCT": 0x5390,
    "SG_IO": 0x2285,
    "SG_GET_VERSION_NUM": 0x2282,
    "SG_GET_TIMEOUT": 0x2202,
    "SG_EMULATED_HOST": 0x2203,
    "SG_GET_RESERVED_SIZE": 0x2272,
    "SCSI_IOCTL_GET_IDLUN": 0x5382,
    "SCSI_IOCTL_PROBE_HOST": 0x5385,
    "SCSI_IOCTL_GET_BUS_NUMBER": 0x5386,
    "SCSI_IOCTL_GET_PCI": 0x5387,
    "NVME_IOCTL_ID": 0x4E40,
    "NVME_IOCTL_ADMIN_CMD": 0xC0484E41,
    "MEMGETINFO": 0x80204D01,
    "RAID_VERSION": 0x800C0910,
    "GET_ARRAY_INFO": 0x80480911,
    "NBD_SET_SOCK": 0xAB00,
    "FDFLUSH": 0x024B,
    "IOC_OPAL_GET_STATUS": 0x800870EC,
    "DM_VERSION": 0xC138FD00,
    "BLKGETLASTSECT": 0x126B,
    "BLKELVGET": 0x126A,
    "TCGETS": uapi.TCGETS,
    "TCGETS2": 0x802C542A,
    "TIOCGWINSZ": 0x5413,
    "TIOCGPGRP": 0x540F,
    "TIOCOUTQ": 0x5411,
    "FIONREAD": 0x541B,
    "FIBMAP": 1,
    "FIGETBSZ": 2,
    "FIOQSIZE": 0x5460,
    "FICLONERANGE": 0x4020940D,
    "FIDEDUPERANGE": 0xC0189436,
    "FITRIM": 0xC0185879,
    "FS_IOC_FIEMAP": 0xC020660B,
    "FS_IOC_FSGETXATTR": 0x801C581F,
    "FS_IOC_GETFSLABEL": 0x81009431,
    "FS_IOC_GETFSUUID": 0x80111500,
    "FS_IOC_GET_ENCRYPTION_POLICY": 0x400C6615,
    "nothing": 0,
    "all ones": 0xFFFFFFFF,
    "_IOR('x', 1, 4)": 0x80047801,
    "_IOW('x', 1, 64)": 0x40407801,
    "_IOWR('x', 1, 512)": 0xC2007801,
    "_IO('x', 1)": 0x7801,
}
_PROBES_BY_WORD = {
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_GETVERSION": 0x80087601,
}
