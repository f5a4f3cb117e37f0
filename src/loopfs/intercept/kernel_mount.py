"""mount(2) of a device whose filesystem the kernel itself is to serve."""

from __future__ import annotations

import errno
import os
from functools import partial

from loopfs.channel import close_all
from loopfs.driver.bdev import BlockDevice
from loopfs.engines.helper import result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.running import KernelMount
from loopfs.errors import LoopfsError
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.image_lock import ImageLock, lowest
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.intercept.engine_mount import tell
from loopfs.intercept.notify import Call
from loopfs.uapi.mount import MS_RDONLY


def mount_by_kernel(
    mounts: Mounts, call: Call, source: str, target: str, fstype: str, flags: int, data: str
) -> int:
    """Carry out a mount; return an errno, NOT_OURS, or 0.

    Raises:
        OSError: as mount(2).
    """
    helper, instances = mounts.helper, mounts.instances
    with caller_descriptors(call) as fds:
        job = (instances.device_numbers(), source, target, bool(flags & MS_RDONLY))
        channel = helper.begin("claim", job, fds)
        with channel:
            message = channel.receive()
        code, claimed = result(message)
        if code:
            return code
        assert isinstance(claimed, tuple)
        instance, ino, shown = claimed
        device, place = message.fds
        try:
            filesystem, bdev = _device(mounts, instance, ino)
            mounts.write_back(instance, ino)
            backing, offset, size = _seal(bdev)
            filesystem.drop_pages(bdev)  # stores made since write_back()
            lock = _lock(call, bdev, fstype, write=not flags & MS_RDONLY)
            parts = (*fds, place, device, backing.fileno(), lock.fileno())
            channel = helper.begin(
                "kernel_mount", (fstype, flags, data, shown, offset, size), parts
            )
        finally:
            close_all([device, place])
    try:
        message = channel.receive()
        code, numbers = result(message)
        if code:
            return code
        assert isinstance(numbers, tuple)
        st_dev, superblock, loop = numbers
        let_go = partial(filesystem.drop_pages, bdev)
        mounts.add_kernels(KernelMount(message.fds[0], st_dev, superblock, loop, let_go))
        if not call.alive():
            return errno.EINTR
        channel.send(b"go")
        return result(channel.receive())[0]
    finally:
        channel.close()


def _device(mounts: Mounts, instance: int, ino: int) -> tuple[LoopFilesystem, BlockDevice]:
    filesystem = mounts.instances.find(instance)
    node = filesystem.nodes.of_inode(ino) if filesystem else None
    if filesystem is None or node is None or node.device is None:  # it has been removed
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return filesystem, node.device


def _seal(device: BlockDevice) -> tuple[BackingFile, int, int]:
    """Block writes to a claimed device. Return the lowest backing file and the part of it."""
    device.block_writers()
    return lowest(device, 0, device.capacity)


def _lock(call: Call, device: BlockDevice, fstype: str, *, write: bool) -> ImageLock:
    """Lock an image; the process that keeps the mount receives the lock, and is then its only
    owner.

    Raises:
        LoopfsError: EBUSY; the reason has been printed.
    """
    try:
        lock = ImageLock.take(device, 0, device.capacity, write=write)
    except LoopfsError as problem:
        tell(call, f"cannot mount {fstype}: {problem.strerror}")
        raise
    call.note(why=lock.without or None)
    return lock
