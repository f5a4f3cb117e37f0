"""The known differences between loopfs and the kernel's driver, with reasons.

A key is SCENARIO/STEP; the step may be a pattern of fnmatch, and then every step that it
matches differs. What is no such limit is a bug, and not listed.
"""

from __future__ import annotations

from typing import NamedTuple

_BY_THE_KERNEL = "another version or configuration of the kernel answers something else"
_WIDTH_UNKNOWN = "of those FUSE does not say that a 32-bit program asks"
_ASKED_OF_NOBODY = "an open device is a regular file to the VFS, which answers for those itself"
_COPIED_FIRST = "FUSE copies an argument whose size the command carries before it asks anybody"
_AT_THE_END = "the VFS moves an append to the file's end before it asks anybody"
_NO_XATTRS = "FUSE would ask for security.capability at every write, so it is told there are none"
_NO_ENOSYS = "FUSE makes ENOTTY of a server's ENOSYS"

_FAR = ("1048577", "1099511627776", "9223372036854775807")

KNOWN_DIFFERENCES: dict[str, str] = {
    **{f"lseek/SEEK_SET {far}": _ASKED_OF_NOBODY for far in _FAR},
    **{f"lseek/SEEK_CUR {far}": _ASKED_OF_NOBODY for far in _FAR},
    **{f"lseek/SEEK_END {far}": _ASKED_OF_NOBODY for far in ("100", "1048576", *_FAR[:2])},
    "lseek/unbound: 1": _ASKED_OF_NOBODY,
    "commands_without_a_meaning/FIONREAD*": _ASKED_OF_NOBODY,
    "commands_without_a_meaning/FIBMAP*": _ASKED_OF_NOBODY,
    "commands_without_a_meaning/FIOQSIZE*": _ASKED_OF_NOBODY,
    "commands_without_a_meaning/FITRIM, NULL": _COPIED_FIRST,
    "commands_without_a_meaning/BLKREPORTZONE, NULL": _COPIED_FIRST,
    "commands_without_a_meaning/BLKRESETZONE, NULL": _COPIED_FIRST,
    "commands_without_a_meaning/all ones, NULL": _COPIED_FIRST,
    "commands_without_a_meaning/_IOW('x', 1, 64), NULL": _COPIED_FIRST,
    "block_sizes/NULL": _COPIED_FIRST,
    "write_edges/from nowhere at the end": "FUSE copies the data before it asks anybody",
    "other_calls_on_the_control_node/LOOP_*": _NO_ENOSYS,
    "other_calls_on_the_control_node/TCGETS": _NO_ENOSYS,
    "other_calls_on_the_control_node/BLKGETSIZE64": _NO_ENOSYS,
    "other_calls_on_the_control_node/0x0": _NO_ENOSYS,
    "other_calls_on_the_control_node/0x4c*": _NO_ENOSYS,
    "other_calls_on_the_control_node/0xffffffff": _NO_ENOSYS,
    "other_calls_on_the_control_node/0x541b": _ASKED_OF_NOBODY,
    "other_calls_on_the_control_node/read nothing": _ASKED_OF_NOBODY,
    "extended_attributes/set user of the descriptor": _NO_XATTRS,
    "extended_attributes/access control list": _NO_XATTRS,
    "extended_attributes/capabilities": _NO_XATTRS,
    "append/write": _AT_THE_END,
    "append/pwrite": _AT_THE_END,
    "append/position": _AT_THE_END,
    "append/read": _AT_THE_END,
    "append/RWF_APPEND": _AT_THE_END,
    "append/read after RWF_APPEND": _AT_THE_END,
    "direct_transfers/pwrite 4096 at 1048064": "FUSE makes EIO of a direct write cut short",
    "poll_and_select/epoll": "every file on FUSE can be polled, and so watched by epoll",
    "file_locks/lease": _ASKED_OF_NOBODY,
    "copies/from the device": "two filesystems to the VFS: EXDEV, before anybody is asked",
    "copies/to the device": "two filesystems to the VFS: EXDEV, before anybody is asked",
    "direct_memory/one sector in two": "FUSE passes on no memory addresses to be aligned",
}


class Rule(NamedTuple):
    """Answers of :mod:`tests.differential.surface` that differ.

    Args:
        steps: WIDTH/NODE/COMMAND: ARGUMENT, as a pattern of fnmatch.
        kernel, ours: what is answered, patterns too.
        everywhere: it differs on every kernel that has been tried.
        copied: only of commands that FUSE copies an argument for.
    """

    steps: str
    kernel: str
    ours: str
    why: str
    everywhere: bool = True
    copied: bool = False


SURFACE = (
    Rule("*/loop-control*/*", "ENOSYS", "ENOTTY", _NO_ENOSYS),
    Rule("*: NULL", "*", "EFAULT", _COPIED_FIRST, copied=True),
    Rule("*: unmapped", "*", "EFAULT", _COPIED_FIRST, copied=True),
    Rule("*: of the kernel", "*", "EFAULT", _COPIED_FIRST, copied=True),
    Rule("*: over the edge", "*", "EFAULT", _COPIED_FIRST, copied=True),
    Rule("*/all ones: *", "*", "EFAULT", _COPIED_FIRST, copied=True),
    Rule("*/FIONREAD: *", "*", "*", _ASKED_OF_NOBODY),
    Rule("*/FIBMAP: *", "*", "*", _ASKED_OF_NOBODY),
    Rule("*/FIOQSIZE: *", "*", "*", _ASKED_OF_NOBODY),
    Rule("*/FIDEDUPERANGE: *", "EINVAL", "ENOTSUP", _ASKED_OF_NOBODY),
    Rule("32-bit/*/FS_IOC_GETFLAGS: *", "ENOTTY", "EINVAL", _WIDTH_UNKNOWN, everywhere=False),
    Rule("32-bit/*/FS_IOC_FSGETXATTR: *", "ENOTTY", "EINVAL", _WIDTH_UNKNOWN, everywhere=False),
    Rule(
        "32-bit/without it*/LOOP_SET_STATUS: *",
        "*",
        "*",
        "the kernel's lo_compat_ioctl does not ask for the right: a bug that is not copied",
    ),
    Rule("*/FS_IOC_GETFSUUID: *", "*", "*", "the node's filesystem answers", everywhere=False),
    Rule(
        "*part*/LOOP_CLR_FD: *: then",
        "*'p1'*",
        "*",
        "close(2) does not wait for us, so partitions go when nobody can open them any more",
    ),
    Rule("*/BLKTRACE*", "*", "*", _BY_THE_KERNEL, everywhere=False),
    Rule("*/BLKCRYPTO*", "*", "*", _BY_THE_KERNEL, everywhere=False),
    Rule("*/IOC_PR_READ_*", "*", "*", _BY_THE_KERNEL, everywhere=False),
    Rule("*/BLKREPORTZONEV2*", "*", "*", _BY_THE_KERNEL, everywhere=False),
)
