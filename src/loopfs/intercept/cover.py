"""A mount that the kernel is left to make: what it will be mounted on has to know before."""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.engines.mounts import Mounts
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.intercept.fstat import seen_id
from loopfs.intercept.lookup import peek, resolved
from loopfs.intercept.notify import Call
from loopfs.process import UINT_MAX, Process
from loopfs.text import to_str

PAGE = 4096  # bytes of a path, with the NUL
ALL_IDS = f"0 0 {UINT_MAX}"  # the map of our own user namespace, as we see it
_FSUID = 3  # its place in the field of /proc/PID/status
_PATH = os.O_PATH | os.O_CLOEXEC


def expect_mount(mounts: Mounts, call: Call, address: int, start: int | None = None) -> None:
    """Have the node that a call mounts something on, if it is one of an instance's, keep its face
    from now on (:mod:`loopfs.filesystems.covered`).

    Others than the node's owner are left without: what they mount goes with the next lookup.
    What cannot be read or found here the kernel does not find either, and it says so. If another
    thread changes the path meanwhile, what is mounted may go with the next lookup.

    Args:
        address: of the target's path in the caller's memory.
        start: the descriptor where it begins, or that it is if it is empty; None for the working
            directory.
    """
    process = call.process
    by_path = True
    try:
        path = to_str(process.read_string(address, PAGE))
        if path:
            try:
                place = peek(process, path, start)
            except OSError:  # it leads through a descriptor, or out of where it begins
                by_path = False
                place = resolved(mounts, call, path, start)
        else:
            by_path = False
            place = os.open(process.path("cwd" if start is None else f"fd/{start}"), _PATH)
        try:
            filesystem = mounts.instances.find(syscalls.statx_dev(place))
            ino = syscalls.descriptor_info(os.getpid(), place).ino if filesystem else 0
        finally:
            close_all([place])
    except OSError:
        return
    if filesystem is None:
        return
    node = filesystem.nodes.of_inode(ino)
    if node is None or node is filesystem.nodes.root:
        return
    if _may_cover(process, filesystem, node):
        filesystem.covers.begin(node, process.tid, by_path=by_path)


def _may_cover(process: Process, filesystem: LoopFilesystem, node: Node) -> bool:
    """It is root of the sandbox or the node's owner who mounts on it: as long as it is covered,
    all others are shown a regular file, too."""
    user = int(process.status()["Uid"].split()[_FSUID])
    return user in (0, seen_id(filesystem.id_map("uid"), ALL_IDS, node.uid))
