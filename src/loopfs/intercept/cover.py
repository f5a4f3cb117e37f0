"""Preparing a node for a mount on it that the kernel makes."""

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
ALL_IDS = f"0 0 {UINT_MAX}"  # the id map of our own user namespace, as seen from it
_FSUID = 3  # its index in the field of /proc/PID/status
_PATH = os.O_PATH | os.O_CLOEXEC


def expect_mount(mounts: Mounts, call: Call, address: int, start: int | None = None) -> None:
    """If a call mounts something on a node of an instance, make all lookups of the node return its
    data face from now on (:mod:`loopfs.filesystems.covered`).

    This is not done for callers other than root and the node's owner: the next lookup removes what
    they mount. If the path cannot be read or resolved here, the kernel cannot resolve it either
    and returns the error. If another thread changes the path at the same time, the next lookup may
    remove the mount.

    Args:
        address: the address of the target's path in the caller's memory.
        start: the descriptor from which it is resolved, or which it is if the path is empty; None:
            the working directory.
    """
    process = call.process
    by_path = True
    try:
        path = to_str(process.read_string(address, PAGE))
        if path:
            try:
                place = peek(process, path, start)
            except OSError:  # it leads through a magic link, or out of its start
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
    """Return whether root of the sandbox or the node's owner mounts on it: while it is covered, all
    other users also see a regular file."""
    user = int(process.status()["Uid"].split()[_FSUID])
    return user in (0, seen_id(filesystem.id_map("uid"), ALL_IDS, node.uid))
