"""Fill a UDF volume by the kernel's own driver: ``python3 populate.py DEVICE...``, as root."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import sys

PLACE = "/mnt/volume"
MOMENT = 1_700_000_000 * 10**9 + 123_456_000


def main(*devices: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    os.makedirs(PLACE, exist_ok=True)
    for device in devices:
        if libc.mount(device.encode(), PLACE.encode(), b"udf", 0, b""):
            print("cannot mount", device, os.strerror(ctypes.get_errno()))
            continue
        try:
            fill(PLACE)
        finally:
            os.chdir("/")
            libc.umount2(PLACE.encode(), 0)


def fill(place: str) -> None:
    os.chdir(place)
    os.makedirs("deep/er/and/more")
    os.mkdir("many")
    for number in range(120):
        write(f"many/a name of some length {number}", b"%d\n" % number)
    for name in (
        "gone",
        "hidden.txt",
        "Ünïcode",
        "\u4e2d\u6587.txt",
        "smile \U0001f600",
        "x" * 200,
    ):
        write(name, name.encode())
    os.unlink("gone")
    write("empty", b"")
    write("small", b"s" * 150)
    write("block", b"b" * 4096)
    write("big", bytes(range(256)) * 700)
    with open("sparse", "wb") as file:
        file.seek(300_000)
        file.write(b"end")
    pieces()
    os.symlink("../up/./and/down", "deep/relative")
    os.symlink("/absolute/Ünï", "absolute")
    os.symlink(".", "dot")
    os.link("small", "again")
    os.mknod("block device", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.mknod("char device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo("fifo")
    socket.socket(socket.AF_UNIX).bind("socket")
    os.chmod("small", 0o4751)
    os.chmod("deep", 0o1777)
    os.chown("big", 1000, 1001)
    for directory, names, files in os.walk(".", topdown=False):
        for name in (*names, *files):
            where = os.path.join(directory, name)
            os.utime(where, ns=(MOMENT, MOMENT), follow_symlinks=False)


def write(name: str, data: bytes) -> None:
    with open(name, "wb") as file:
        file.write(data)


def pieces() -> None:
    """A file of many extents: two that grow in turn."""
    with open("one", "wb") as one, open("other", "wb") as other:
        for number in range(150):
            for file in (one, other):
                file.write(bytes([number]) * 2048)
                file.flush()
                os.fsync(file.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
