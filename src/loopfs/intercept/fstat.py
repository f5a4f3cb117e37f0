"""fstat(2) and similar calls on an open device or control node, which return the special face.

To the kernel an open device is a regular file (its data face), also if it was opened with O_PATH.
Programs that check the descriptor expect a block or character special file.
"""

from __future__ import annotations

import errno
import os
import stat

from loopfs import syscalls
from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.filesystems.lending import STAT
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.intercept.notify import Call, may_wait
from loopfs.process import Process
from loopfs.uapi.stat import STATX__RESERVED, Stat, pack_stat, pack_statx

_STAT_WORDS = 8
OVERFLOW_ID = 65534  # the id that a user namespace shows for one that is not mapped

# The index of the argument that points to the result.
_BUFFER = {"fstat": 1, "fstat64": 1, "newfstatat": 2, "fstatat64": 2, "statx": 4}
_HAS_PATH = frozenset({"newfstatat", "fstatat64", "statx"})


class FstatHandler:
    """Answers for the open files of all instances, and for devices on our own ext4."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._instances = mounts.instances

    def __call__(self, call: Call) -> None:
        if not self._instances.in_use() and not self._mounts.any_characters():
            call.proceed()
            return
        fd = call.args[0] & 0xFFFFFFFF
        number = call.process.descriptor_device(fd)
        if number is None:
            call.proceed()
            return
        server = self._instances.find(number) or self._mounts.with_characters(number)
        if server is None:
            call.proceed()
        else:
            may_wait()  # it may wait for the caller's memory
            self._answer(call, fd, server)

    def _answer(self, call: Call, fd: int, server: LoopFilesystem | Engine) -> None:
        process = call.process
        if call.name in _HAS_PATH and call.args[1] and process.read(call.args[1], 1) != b"\0":
            call.proceed()
            return
        info = syscalls.descriptor_info(process.tid, fd)
        if isinstance(server, Engine):
            st = _stat_of_character(server, info.ino, process)
        else:
            node = server.nodes.of_inode(info.ino)
            st = None if node is None else stat_of(node, server, process)
        if st is None or not call.alive():
            call.proceed()
            return
        is_statx = call.name == "statx"
        if is_statx and call.args[3] & STATX__RESERVED:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = pack_statx(st, info.mnt_id) if is_statx else pack_stat(st, call.arch)
        process.write(call.args[_BUFFER[call.name]], data)
        call.finish()


def stat_of(node: Node, filesystem: LoopFilesystem, process: Process) -> Stat:
    """Return what ``process`` sees of a node's special face."""
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


def _stat_of_character(engine: Engine, ino: int, process: Process) -> Stat | None:
    """Return what ``process`` sees of a character device in an engine's filesystem; None if the
    file is not one."""
    if engine.lent is None or ino not in engine.lent.characters:
        return None
    answer = engine.lent.control(ino, STAT)
    if len(answer) != _STAT_WORDS:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    mode, nlink, uid, gid, rdev = (word & 0xFFFFFFFF for word in answer[:5])
    if not stat.S_ISCHR(mode):
        return None
    atime, mtime, ctime = answer[5:]
    uid = seen_id(engine.id_map("uid"), process.id_map("uid"), uid)
    gid = seen_id(engine.id_map("gid"), process.id_map("gid"), gid)
    return Stat(engine.device, ino, mode, nlink, uid, gid, rdev, (atime, mtime, ctime))


def seen_id(from_map: str, to_map: str, number: int) -> int:
    """Convert an id of one user namespace to the id that another shows for it.

    Args:
        from_map: the text of the first one's uid_map or gid_map, as read by this process.
        to_map: that of the other.
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
