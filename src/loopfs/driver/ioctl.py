"""Tables of the ioctls of a loop device and of the control node.

A handler receives the device, the opener, the caller and the argument as a number. It reads
and writes the caller's memory through :class:`~loopfs.driver.world.Caller`, in the same
order as the kernel, and returns the result of ioctl(2).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from loopfs.driver import block
from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice
from loopfs.driver.world import Caller
from loopfs.errors import DriverError
from loopfs.uapi import loop as uapi

Handler = Callable[[LoopDevice, Opener, Caller, int], int]


def ioctl(bdev: BlockDevice, opener: Opener, caller: Caller, cmd: int, arg: int) -> int:
    """Carry out ioctl(2) on an open device; ioctls of the loop driver act on a partition's disk.

    Raises:
        DriverError: the error of the driver; EINVAL for an unknown command, or ENOTTY for a
            32-bit caller, as the kernel's compat layer returns.
        OSError: EFAULT or EBADF for the caller's memory or descriptor.
    """
    if own := LOOP_IOCTLS.get(cmd):
        return own(bdev.disk, opener, caller, arg)
    if common := block.find(cmd, caller.word):
        return common(bdev, opener, caller, arg)
    unknown = errno.EINVAL if caller.word == 8 else errno.ENOTTY
    raise DriverError(unknown, f"unknown loop ioctl {cmd:#x}")


def control_ioctl(instance: Instance, cmd: int, arg: int) -> int:
    """Carry out ioctl(2) on the control node.

    Args:
        arg: the argument as a signed long.
    Raises:
        DriverError: ENOSYS for an unknown command, else the error of the driver.
    """
    if cmd == uapi.LOOP_CTL_ADD:
        return instance.ctl_add(arg)
    if cmd == uapi.LOOP_CTL_REMOVE:
        return instance.ctl_remove(arg)
    if cmd == uapi.LOOP_CTL_GET_FREE:
        return instance.ctl_get_free()
    raise DriverError(errno.ENOSYS, f"unknown control ioctl {cmd:#x}")


def _check_may_change(opener: Opener, caller: Caller) -> None:
    """Check that the caller may change a bound device (patch 3/8).

    Raises:
        DriverError: EPERM if the device is open read-only and the caller lacks the capability.
    """
    if not opener.write and not caller.capable():
        raise DriverError(errno.EPERM, "the device is open read-only")


def _set_fd(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    return _bind(device, opener, caller, uapi.LoopConfig(fd=arg))


def _configure(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    config = uapi.LoopConfig.unpack(caller.read(arg, uapi.LOOP_CONFIG_SIZE))
    return _bind(device, opener, caller, config)


def _bind(device: LoopDevice, opener: Opener, caller: Caller, config: uapi.LoopConfig) -> int:
    backing = caller.file(config.fd)
    try:
        device.configure(opener, backing, config)
    except OSError:
        backing.close()
        raise
    return 0


def _change_fd(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    backing = caller.file(arg)
    try:
        device.change_fd(backing)
    except OSError:
        backing.close()
        raise
    return 0


def _clr_fd(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    if not device.is_freed_for(caller):
        device.clr_fd()
    return 0


def _set_status(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_may_change(opener, caller)
    data = caller.read(arg, uapi.old_info_size(caller.word))
    device.set_status(uapi.unpack_old_info(data, caller.word))
    return 0


def _set_status64(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_may_change(opener, caller)
    data = caller.read(arg, uapi.LOOP_INFO64_SIZE)
    device.set_status(uapi.LoopInfo64.unpack(data))
    return 0


def _get_status(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    info = _status_for(device, arg)
    data = uapi.pack_old_info(info, caller.word)
    if data is None:
        raise DriverError(errno.EOVERFLOW, "a value does not fit struct loop_info")
    caller.write(arg, data)
    return 0


def _get_status64(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    caller.write(arg, _status_for(device, arg).pack())
    return 0


def _status_for(device: LoopDevice, arg: int) -> uapi.LoopInfo64:
    if arg == 0:
        raise DriverError(errno.EINVAL, "the argument is a null pointer")
    return device.get_status()


def _set_capacity(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_may_change(opener, caller)
    device.set_capacity()
    return 0


def _set_direct_io(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_may_change(opener, caller)
    device.set_direct_io(bool(arg))
    return 0


def _set_block_size(device: LoopDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_may_change(opener, caller)
    device.set_block_size(opener, arg)
    return 0


LOOP_IOCTLS: dict[int, Handler] = {
    uapi.LOOP_SET_FD: _set_fd,
    uapi.LOOP_CONFIGURE: _configure,
    uapi.LOOP_CHANGE_FD: _change_fd,
    uapi.LOOP_CLR_FD: _clr_fd,
    uapi.LOOP_SET_STATUS: _set_status,
    uapi.LOOP_GET_STATUS: _get_status,
    uapi.LOOP_SET_STATUS64: _set_status64,
    uapi.LOOP_GET_STATUS64: _get_status64,
    uapi.LOOP_SET_CAPACITY: _set_capacity,
    uapi.LOOP_SET_DIRECT_IO: _set_direct_io,
    uapi.LOOP_SET_BLOCK_SIZE: _set_block_size,
}
