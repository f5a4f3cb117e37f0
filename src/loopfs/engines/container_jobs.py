"""Jobs that prepare a container served by ``loopfs agent`` before its first program runs.

They act as root of its user namespace in its mount namespace, whatever user its program has.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines.caller import Caller
from loopfs.engines.credentials import ALL_CAPABILITIES, ROOT, Credentials
from loopfs.engines.helper import answer
from loopfs.engines.jobs import Job, apply_flags
from loopfs.engines.superblock import fuse_context
from loopfs.uapi import mount as uapi

LOOP = "loop"
PLACE = "loopfs"  # in /dev, where the instance is mounted
CONTROL = "loop-control"
_FLAGS = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _furnish(channel: Channel, fds: list[int]) -> None:
    """Mount an instance on /dev/loopfs, with links to it in /dev. The answers are those of the job
    "instance" of :mod:`loopfs.engines.instance_jobs` with links."""
    caller = Caller(fds)
    # The superblock of a /dev/fuse can be mounted only in the user namespace that has opened it.
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    caller.enter()
    dev = os.open("/dev", os.O_RDONLY | _DIRECTORY)
    with suppress(FileExistsError):
        os.mkdir(PLACE, 0o755, dir_fd=dev)
    place = os.open(PLACE, os.O_PATH | _DIRECTORY, dir_fd=dev)
    with suppress(FileExistsError):
        os.symlink(f"{PLACE}/{CONTROL}", CONTROL, dir_fd=dev)
    context = fuse_context(fuse, LOOP, LOOP)
    tree = syscalls.fsmount(context, 0)
    os.close(context)
    apply_flags(tree, _FLAGS)
    linker = Credentials(ROOT, ROOT, (ROOT, ROOT), None, ALL_CAPABILITIES, has_root=True)
    made = syscalls.statx_dev(tree), PLACE, tuple(linker)
    answer(channel, 0, made, (fuse, caller.userns, dev))
    if channel.receive().data:
        syscalls.move_mount(tree, place)
        os.close(tree)
        answer(channel, 0)


def _cover(channel: Channel, fds: list[int], places: tuple[str, ...]) -> None:
    """Cover directories of /sys. Answers with those that exist, and the /dev/fuse of each."""
    caller = Caller(fds)
    fuses = [os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC) for _ in places]
    caller.enter()
    covered = []
    for place, fuse in zip(places, fuses, strict=True):
        path = f"/sys/{place}"
        if not os.path.isdir(path):
            continue
        options = f"fd={fuse},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0"
        options += ",allow_other,default_permissions"
        syscalls.mount("sysfs", path, "fuse.sysfs", _FLAGS, options)
        covered.append((place, fuse))
    answer(channel, 0, tuple(p for p, _ in covered), tuple(f for _, f in covered))


JOBS: dict[str, Job] = {"furnish": _furnish, "cover": _cover}
