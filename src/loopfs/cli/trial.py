"""The test that `loopfs doctor` runs in a sandbox: a device, a mount and an instance.

The image is a file in memory. The first failure is printed as STEP: ERROR. Nothing outside of the
sandbox is changed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

from loopfs import syscalls
from loopfs.uapi.loop import LOOP_CLR_FD, LOOP_CTL_GET_FREE, LOOP_SET_FD

DIRECTORY = "/dev/loopfs-doctor"
SECTOR, SECTORS = 512, 128


def image() -> int:
    """Make a file in memory with an empty FAT12 filesystem, and return its descriptor."""
    fd = os.memfd_create("loopfs-doctor", os.MFD_CLOEXEC)
    # One sector each: reserved sectors, the two FATs, the root directory, a cluster.
    numbers = SECTOR, 1, 1, 2, 16, SECTORS, 0xF8, 1, 1, 1, 0, 0
    boot = b"\xeb\x3c\x90loopfs  " + struct.pack("<HBHBHHBHHHII", *numbers)
    boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0, b"NO NAME    ", b"FAT12   ")
    os.pwrite(fd, boot.ljust(SECTOR - 2, b"\0") + b"\x55\xaa", 0)
    for fat in (1, 2):
        os.pwrite(fd, b"\xf8\xff\xff", fat * SECTOR)
    os.truncate(fd, SECTORS * SECTOR)
    return fd


def main() -> int:
    """Run the test and return the exit status."""
    step = "opening /dev/loop-control"
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        step = "binding a device"
        device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, LOOP_SET_FD, image())
        os.mkdir(DIRECTORY)
        step = "mounting a filesystem"
        syscalls.mount(f"/dev/loop{number}", DIRECTORY, "vfat", 0, None)
        step = "writing to a mounted filesystem"
        with open(f"{DIRECTORY}/file", "w", encoding="ascii") as file:
            file.write("text\n")
        step = "unmounting a filesystem"
        syscalls.umount2(DIRECTORY, 0)
        step = "detaching a device"
        fcntl.ioctl(device, LOOP_CLR_FD)
        step = "making an instance (mount -t loop)"
        syscalls.mount("none", DIRECTORY, "loop", 0, None)
        step = "unmounting an instance"
        syscalls.umount2(DIRECTORY, 0)
    except OSError as problem:
        print(f"{step}: {problem.strerror}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
