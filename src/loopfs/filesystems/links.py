"""Links in a directory, /dev for one, to the devices of an instance that is mounted there."""

from __future__ import annotations

import errno
import os


def change(directory: int, place: str, action: str, name: str) -> None:
    """Make or remove the link to a node of an instance.

    Args:
        directory: a descriptor of where the links are.
        place: the name there of what the instance is mounted on.
        action: "add" or "remove".
        name: the node's and the link's.
    """
    try:
        if action == "add":
            os.symlink(f"{place}/{name}", name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    except (FileExistsError, FileNotFoundError):
        return  # the workload arranges its /dev itself
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.ENOENT):
            raise
