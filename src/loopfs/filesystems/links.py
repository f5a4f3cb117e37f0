"""Links in a directory, /dev for one, to the devices of an instance that is mounted there."""

from __future__ import annotations

import errno
import os


def change(directory: int, place: str, action: str, name: str) -> None:
    """Make or remove the link to a node of an instance.

    What has the link's name already stays, and only a link that leads to the node is removed. Who
    puts something else in its place in the moment between the look and the removal loses that:
    no system call removes a name on a condition.

    Args:
        directory: a descriptor of where the links are.
        place: the name there of what the instance is mounted on.
        action: "add" or "remove".
        name: the node's and the link's.
    """
    target = f"{place}/{name}"
    try:
        if action == "add":
            os.symlink(target, name, dir_fd=directory)
        elif _leads_to(directory, name, target):
            os.unlink(name, dir_fd=directory)
    except (FileExistsError, FileNotFoundError):
        return  # the workload arranges its /dev itself
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.ENOENT):
            raise


def _leads_to(directory: int, name: str, target: str) -> bool:
    """It is a symbolic link with that content. Raises OSError: FileNotFoundError."""
    try:
        return os.readlink(name, dir_fd=directory) == target
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # no link
            raise
        return False
