"""Dump a mounted filesystem as a kernel shows it: ``python3 tree_dump.py JOBS RESULTS TYPE``.

JOBS is a JSON list of [image, options]; RESULTS gets one of the same length: an errno, or statfs
and all entries. To be run as root of a kernel that has the filesystem's driver and loop devices.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys

_PLACE = "/mnt/volume"
_MS_RDONLY = 1
_MOST_DEPTH = 12


def main(jobs: str, results: str, fstype: str) -> None:
    os.makedirs(_PLACE, exist_ok=True)
    with open(jobs, encoding="utf-8") as file:
        wanted = json.load(file)
    devices = {image: attached(image) for image in dict.fromkeys(image for image, _ in wanted)}
    found = [dump(devices[image], options, fstype) for image, options in wanted]
    with open(results, "w", encoding="utf-8") as file:
        json.dump(found, file)


def attached(image: str) -> str:
    """Bind an image to a loop device and return its path."""
    attach = ["losetup", "-f", "--show", image]
    return subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()


def dump(device: str, options: str, fstype: str) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    read_only = "rw" not in options.split(",")
    data = ",".join(word for word in options.split(",") if word != "rw")
    flags = _MS_RDONLY if read_only else 0
    if libc.mount(device.encode(), _PLACE.encode(), fstype.encode(), flags, data.encode()):
        return ctypes.get_errno()
    try:
        space = os.statvfs(_PLACE)
        return {
            "statfs": [space.f_bsize, space.f_blocks, space.f_files, space.f_namemax],
            "entries": entries(os.fsencode(_PLACE), b"", 0),
        }
    finally:
        libc.umount2(_PLACE.encode(), 0)


def entries(place: bytes, path: bytes, depth: int) -> list[list[object]]:
    try:
        names = sorted(os.listdir(place))
    except OSError as problem:
        return [[path.decode("latin-1"), "listdir", problem.errno]]
    out: list[list[object]] = []
    for name in names:
        one = place + b"/" + name
        shown = (path + b"/" + name).decode("latin-1")
        try:
            found = os.lstat(one)
        except OSError as problem:
            out.append([shown, "lstat", problem.errno])
            continue
        times = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
        numbers = found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size
        more = found.st_rdev, found.st_blocks, found.st_blksize, found.st_ino
        out.append([shown, *numbers, *more, *times, content(one, found.st_mode)])
        if stat.S_ISDIR(found.st_mode) and depth < _MOST_DEPTH:
            out += entries(one, path + b"/" + name, depth + 1)
    return out


def content(path: bytes, mode: int) -> object:
    try:
        if stat.S_ISLNK(mode):
            return os.readlink(path).decode("latin-1")
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest()
    except OSError as problem:
        return problem.errno or errno.EIO
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
