"""Links in a directory, for example /dev, to the devices of an instance mounted there."""

from __future__ import annotations

import errno
import os


def change(directory: int, place: str, action: str, name: str) -> None:
    """Create or remove the link to a node of an instance.

    An existing file with the name of the link is kept, and only a link that leads to the node is
    removed. If another process replaces the link between the check and the removal, its file is
    removed: no system call removes a name conditionally.

    Args:
        directory: a descriptor of the directory of the links.
        place: the name in it of the mount point of the instance.
        action: "add" or "remove".
        name: the name of the node and of the link.
    """
    target = f"{place}/{name}"
    try:
        if action == "add":
            os.symlink(target, name, dir_fd=directory)
        elif _leads_to(directory, name, target):
            os.unlink(name, dir_fd=directory)
    except (FileExistsError, FileNotFoundError):
        return  # the workload has changed its /dev itself
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.ENOENT):
            raise


def _leads_to(directory: int, name: str, target: str) -> bool:
    """Return whether a name is a symbolic link with a target. Raises OSError if it does not
    exist."""
    try:
        return os.readlink(name, dir_fd=directory) == target
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # not a symbolic link
            raise
        return False
