"""Makes the calls that it reads, one JSON list a line, and answers with what came of each.

It names devices, files and descriptors by small numbers of its own, so that the same line means
the same on either side.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import struct
import sys
import tempfile

from tests.differential.steps import uapi
from tests.differential.steps.bench import (
    NOWHERE,
    Device,
    aligned,
    ioctl,
    ioctl_out,
    number_out,
    plain,
    status,
)

DEVICES = 3
FILES = (65536, 65536, 12800, 0)  # sizes; the last two are odd on purpose
PARTITIONS = (1, 2, 5)

Result = object


class Executor:
    """The state of one side: some devices, some files, some open descriptors."""

    def __init__(self, directory: str) -> None:
        self._top = directory
        self._control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        self._directory = ""
        self._devices: list[Device] = []
        self._fds: dict[int, int] = {}
        self._paths: list[str] = []

    # --- beginning and end of a sequence -----------------------------------------

    def begin(self) -> Result:
        """Make new devices and files; remove the former ones."""
        self.end()
        self._directory = tempfile.mkdtemp(dir=self._top)
        for number, size in enumerate(FILES):
            path = os.path.join(self._directory, f"file{number}")
            with open(path, "wb") as file:
                file.write((bytes([65 + number]) * size)[:size])
            self._paths.append(path)
        for _ in range(DEVICES):
            number = ioctl(self._control, uapi.LOOP_CTL_ADD, -1)
            self._devices.append(Device(number, os.path.realpath(f"/dev/loop{number}")))
        return None

    def end(self) -> Result:
        """Remove devices and files; return the number of devices that could not be removed."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        for device in self._devices:
            try:
                with device.opened(os.O_RDONLY) as fd:
                    ioctl(fd, uapi.LOOP_CLR_FD)
            except OSError as problem:
                if problem.errno not in (errno.ENXIO, errno.ENOENT):
                    raise
        left = [device for device in reversed(self._devices) if not self._removed(device)]
        left = [device for device in left if not self._removed(device)]
        self._devices.clear()
        self._paths.clear()
        if self._directory:
            shutil.rmtree(self._directory)
            self._directory = ""
        return len(left)

    def _removed(self, device: Device) -> bool:
        try:
            ioctl(self._control, uapi.LOOP_CTL_REMOVE, device.number)
        except OSError as problem:
            return problem.errno == errno.ENODEV
        return True

    # --- calls ---------------------------------------------------------------------

    def open(self, slot: int, device: int, part: int, flags: int) -> Result:
        path = self._devices[device].path + (f"p{part}" if part else "")
        self._fds[slot] = os.open(path, flags | os.O_CLOEXEC)
        return None

    def close(self, slot: int) -> Result:
        os.close(self._fds.pop(slot))
        return None

    def ioctl(self, slot: int, cmd: int, arg: int) -> Result:
        return ioctl(self._fds[slot], cmd, arg)

    def nowhere(self, slot: int, cmd: int) -> Result:
        """Make an ioctl with an unmapped pointer."""
        return ioctl(self._fds[slot], cmd, NOWHERE)

    def number(self, slot: int, cmd: int, size: int) -> Result:
        """Return the number that an ioctl stores."""
        return number_out(self._fds[slot], cmd, size)

    def put(self, slot: int, cmd: int, value: int) -> Result:
        """Make an ioctl with a pointer to an int."""
        return ioctl(self._fds[slot], cmd, struct.pack("=i", value))

    def byte_range(self, slot: int, cmd: int, start: int, length: int) -> Result:
        return ioctl(self._fds[slot], cmd, uapi.byte_range(start, length))

    def set_fd(self, slot: int, cmd: int, file: int, flags: int) -> Result:
        """Make LOOP_SET_FD or LOOP_CHANGE_FD with a file, or with a device (from 100 on)."""
        fd = self._file(file, flags)
        try:
            return ioctl(self._fds[slot], cmd, fd)
        finally:
            os.close(fd)

    def configure(
        self, slot: int, file: int, flags: int, block_size: int, fields: dict[str, int]
    ) -> Result:
        fd = self._file(file, flags)
        try:
            config = bytearray(uapi.config(fd, **fields))
            struct.pack_into("=I", config, 4, block_size)
            return ioctl(self._fds[slot], uapi.LOOP_CONFIGURE, bytes(config))
        finally:
            os.close(fd)

    def set_status(self, slot: int, fields: dict[str, int]) -> Result:
        return ioctl(self._fds[slot], uapi.LOOP_SET_STATUS64, uapi.info64(**fields))

    def set_old_status(self, slot: int, fields: dict[str, int]) -> Result:
        return ioctl(self._fds[slot], uapi.LOOP_SET_STATUS, uapi.old_info(**fields))

    def get_status(self, slot: int) -> Result:
        """Return the structure, with comparable numbers of file and device."""
        info: dict[str, object] = {**status(self._fds[slot])}
        info["device"] = 0
        info["rdevice"] = bool(info["rdevice"])
        info["inode"] = self._which(info["inode"])
        info["number"] = [n.number == info["number"] for n in self._devices].index(True)
        return plain(info)

    def get_old_status(self, slot: int) -> Result:
        data = ioctl_out(self._fds[slot], uapi.LOOP_GET_STATUS, uapi.OLD_INFO_SIZE)
        info = uapi.unpack_old_info(data)
        return plain({name: info[name] for name in ("offset", "flags", "encrypt_type", "name")})

    def partition(self, slot: int, operation: int, number: int, start: int, size: int) -> Result:
        """Make BLKPG."""
        inner = struct.pack("=qqi132x", start, size, number)
        kept = ctypes.create_string_buffer(inner, len(inner))
        address = ctypes.addressof(kept)
        request = struct.pack("=iii4xQ", operation, 0, len(inner), address)
        return ioctl(self._fds[slot], uapi.BLKPG, request)

    def control(self, cmd: int, device: int) -> Result:
        """Make LOOP_CTL_ADD or LOOP_CTL_REMOVE of an existing or removed device."""
        number = self._devices[device].number
        return ioctl(self._control, cmd, number) in (0, number)

    def free(self) -> Result:
        """Make LOOP_CTL_GET_FREE; return the index of the device. A new device is removed again."""
        number = ioctl(self._control, uapi.LOOP_CTL_GET_FREE)
        for index, device in enumerate(self._devices):
            if device.number == number:
                return index
        ioctl(self._control, uapi.LOOP_CTL_REMOVE, number)
        return "new"

    def read(self, slot: int, offset: int, length: int) -> Result:
        memory = aligned(length)
        count = os.preadv(self._fds[slot], [memory], offset)
        return plain(memory[:count])

    def write(self, slot: int, offset: int, length: int, byte: int) -> Result:
        memory = aligned(length, bytes([byte]))
        return os.pwritev(self._fds[slot], [memoryview(memory)[:length]], offset)

    def seek_end(self, slot: int) -> Result:
        """Return the size of the device according to the VFS."""
        return os.lseek(self._fds[slot], 0, os.SEEK_END)

    def fsync(self, slot: int) -> Result:
        os.fsync(self._fds[slot])
        return None

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> Result:
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = ctypes.c_longlong(offset), ctypes.c_longlong(length)
        if libc.fallocate(self._fds[slot], mode, *arguments):
            raise OSError(ctypes.get_errno(), "")
        return None

    def seek(self, slot: int, offset: int, whence: int) -> Result:
        return os.lseek(self._fds[slot], offset, whence)

    def truncate(self, file: int, size: int) -> Result:
        os.truncate(self._paths[file], size)
        return None

    def content(self, file: int) -> Result:
        with open(self._paths[file], "rb") as opened:
            return plain(opened.read())

    def nodes(self, device: int) -> Result:
        """Return the existing partitions."""
        directory, name = os.path.split(self._devices[device].path)
        return sorted(n[len(name) :] for n in os.listdir(directory) if n.startswith(f"{name}p"))

    def _file(self, file: int, flags: int) -> int:
        path = self._devices[file - 100].path if file >= 100 else self._paths[file]
        return os.open(path, flags | os.O_CLOEXEC)

    def _which(self, inode: object) -> int | str:
        inodes = [os.stat(path).st_ino for path in self._paths]
        return inodes.index(inode) if inode in inodes else "a device"


def main() -> None:
    executor = Executor(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = getattr(executor, name)(*arguments)
        except OSError as problem:
            answer = errno.errorcode[problem.errno or 0]
        except Exception as problem:
            answer = f"broken: {problem!r}"
        print(json.dumps(answer), flush=True)
    executor.end()


if __name__ == "__main__":
    main()
