"""fstat(2) and its kin on an open device or control node: say what the node is.

An open device is a regular file to the kernel (its data face), and so is one that is had by
O_PATH; programs that check the descriptor expect a block or character special file.
"""

from __future__ import annotations

import errno
import os
import stat

from loopfs import syscalls
from loopfs.filesystems.instances import Instances
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.intercept.notify import Call, may_wait
from loopfs.process import Process
from loopfs.uapi.stat import STATX__RESERVED, Stat, pack_stat, pack_statx

OVERFLOW_ID = 65534  # how a namespace shows an id that it does not have

# The argument that points to what is filled in.
_BUFFER = {"fstat": 1, "fstat64": 1, "newfstatat": 2, "fstatat64": 2, "statx": 4}
_HAS_PATH = frozenset({"newfstatat", "fstatat64", "statx"})


class FstatHandler:
    """Answers for the open files of all instances."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def __call__(self, call: Call) -> None:
        if not self._instances.in_use():
            call.proceed()
            return
        fd = call.args[0] & 0xFFFFFFFF
        number = call.process.descriptor_device(fd)
        filesystem = None if number is None else self._instances.find(number)
        if filesystem is None:
            call.proceed()
        else:
            may_wait()  # for the caller's memory
            self._answer(call, fd, filesystem)

    def _answer(self, call: Call, fd: int, filesystem: LoopFilesystem) -> None:
        process = call.process
        if call.name in _HAS_PATH and call.args[1] and process.read(call.args[1], 1) != b"\0":
            call.proceed()
            return
        info = syscalls.descriptor_info(process.tid, fd)
        node = filesystem.nodes.of_inode(info.ino)
        if node is None or not call.alive():
            call.proceed()
            return
        st = stat_of(node, filesystem, process)
        is_statx = call.name == "statx"
        if is_statx and call.args[3] & STATX__RESERVED:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = pack_statx(st, info.mnt_id) if is_statx else pack_stat(st, call.arch)
        process.write(call.args[_BUFFER[call.name]], data)
        call.finish()


def stat_of(node: Node, filesystem: LoopFilesystem, process: Process) -> Stat:
    """What ``process`` sees of a node's special face."""
    uid, gid = node.uid, node.gid
    if process.namespace("user") != filesystem.userns:
        uid = seen_id(filesystem.id_map("uid"), process.id_map("uid"), uid)
        gid = seen_id(filesystem.id_map("gid"), process.id_map("gid"), gid)
    nlink = 2 if node.kind == stat.S_IFDIR else 1
    return Stat(
        filesystem.device_number,
        node.ino,
        node.kind | node.mode,
        nlink,
        uid,
        gid,
        node.device_number,
        node.times,
        blksize=node.io_unit,
    )


def seen_id(from_map: str, to_map: str, number: int) -> int:
    """An id of one user namespace as another sees it.

    Args:
        from_map: the text of the first's uid_map or gid_map, as we read it.
        to_map: the other's.
    """
    for line in from_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= number < inside + count:
            number += outside - inside
            break
    else:
        return OVERFLOW_ID
    for line in to_map.splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= number < outside + count:
            return number + inside - outside
    return OVERFLOW_ID
