"""The job that mounts a filesystem that a program of the caller serves from a device of ours.

ntfs-3g and mount.exfat-fuse call mount(2) with type fuseblk, which is not allowed in a user
namespace, and there is no block device of the kernel for it. Type fuse is the same without one.
"""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import paths
from loopfs.engines.caller import Caller
from loopfs.engines.device import find_device
from loopfs.engines.helper import NOT_OURS, WRITE_BACK, answer
from loopfs.engines.jobs import Job

_ONLY_OF_FUSEBLK = "blksize"  # an option that type fuse does not have


def _fuseblk(
    channel: Channel,
    fds: list[int],
    instances: tuple[int, ...],
    source: str,
    target: str,
    fstype: str,
    flags: int,
    data: str,
) -> None:
    """Mount it. Answers with st_dev of the mount."""
    *callers, fuse = fds
    own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    caller = Caller(callers)
    caller.enter()
    with caller.rights():
        node = find_device(source, caller.proc, instances, own_fds)
        if node is None:
            answer(channel, NOT_OURS)
            return
        shown = node.shown(source)
        place = paths.resolve(target, caller.proc)
        directory, name = paths.resolve_parent(target, caller.proc)
    answer(channel, WRITE_BACK, (node.instance, node.ino))
    if code := int(channel.receive().data or errno.EINTR):
        raise OSError(code, os.strerror(code))
    os.fchdir(own_fds)
    subtype = fstype.removeprefix("fuseblk")
    syscalls.mount(shown, str(place), f"fuse{subtype}", flags, _options(data, fuse))
    os.close(place)
    # Nothing may access the filesystem yet: its server is blocked in mount(2).
    answer(channel, 0, syscalls.statx_dev(directory, name))


def _options(data: str, fuse: int) -> str:
    """Convert the options of type fuseblk to those of type fuse, with our descriptor number."""
    words = []
    for word in data.split(","):
        key = word.partition("=")[0]
        if key != _ONLY_OF_FUSEBLK:
            words.append(f"fd={fuse}" if key == "fd" else word)
    return ",".join(words)


JOBS: dict[str, Job] = {"fuseblk": _fuseblk}
