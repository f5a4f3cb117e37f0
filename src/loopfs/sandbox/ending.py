"""The end of a sandbox in which filesystems are still mounted.

The end of a pid namespace kills engines like everything else, and they may not have
written everything yet. So the workload goes first, then the mounts, and engines end by
themselves.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator

from loopfs.engines.mounts import Mounts
from loopfs.process import Process
from loopfs.uapi.mount import NS_GET_PARENT


def end_workload(init: int, mounts: Mounts) -> None:
    """Kill what the command left behind and let the engines finish.

    Args:
        init: the sandbox's process 1.
        mounts: the filesystems that are mounted in it.
    """
    namespace = Process(init).namespace("pid")
    spared = {init, *mounts.engine_pids()}
    while doomed := [pid for pid in _members(namespace) if pid not in spared]:
        for pid in doomed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.002)
    mounts.unmount_all(init)


def _members(namespace: int) -> Iterator[int]:
    """Processes of a pid namespace and its descendants that are not yet dead."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        process = Process(int(entry))
        try:
            if process.status()["State"][0] not in "ZX" and _is_within(process, namespace):
                yield process.tid
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or of somebody else


def _is_within(process: Process, namespace: int) -> bool:
    fd = os.open(process.path("ns/pid"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.fstat(fd).st_ino != namespace:
            try:
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
            except PermissionError:  # beyond our own
                return False
            os.close(fd)
            fd = parent
        return True
    finally:
        os.close(fd)
