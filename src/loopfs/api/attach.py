"""``loopfs.attach``: a loop device as a descriptor, for a process outside of every sandbox."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from typing import Protocol

from loopfs.api import messages
from loopfs.api.supervise import module_words
from loopfs.channel import Channel
from loopfs.errors import LoopfsError

_FIRST = 3  # the lowest descriptor that is not one of a standard stream


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def attach(
    file: int | _HasFileno,
    *,
    offset: int = 0,
    sizelimit: int = 0,
    read_only: bool = False,
    sector_size: int = 0,
) -> int:
    """Bind a loop device to an open file; return an open descriptor of the device.

    The device exists as long as a descriptor of it is open, in any process: the descriptor can be
    inherited, duplicated, and passed on by SCM_RIGHTS. After the last close the device is detached,
    and nothing remains. A process of the same user serves it; it is not a child of the caller.

    read(2), write(2), mmap(2), fallocate(2), fsync(2) and those ioctls of a loop device that need
    no capability work; fstat(2) reports a regular file. ``file`` can be closed afterwards.

    Args:
        file: a descriptor, or an object that has one: a regular file, open for reading and writing,
            or for reading; then the device is read-only.
        offset: bytes.
        sizelimit: bytes; 0: to the end.
        read_only: the device cannot be written, whatever the file is open for.
        sector_size: bytes; 0: 512.
    Returns:
        the descriptor, which is not inheritable; the caller closes it.
    Raises:
        LoopfsError: EBADF: the file is not open; EINVAL: it is not a regular file, or a number is
            invalid; otherwise the reason why no device can be made, with a remedy.
    """
    fd = file if isinstance(file, int) else file.fileno()
    try:
        image = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
    except OSError as problem:
        raise LoopfsError(problem.errno or 0, f"descriptor {fd} is not open") from None
    about = {
        "image": image,
        "offset": offset,
        "sizelimit": sizelimit,
        "read_only": read_only,
        "sector_size": sector_size,
    }
    ours, theirs = Channel.pair()
    with ours:
        try:
            with theirs:
                words = module_words("attach_server", str(theirs.fileno()), json.dumps(about))
                starter = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), image)
                )
        finally:
            os.close(image)
        starter.wait()  # it forks, so that the server is not our child
        lost = LoopfsError(errno.ECHILD, "the process that serves the device has ended")
        _, _, message = messages.answer(ours, lost)
    return message.fds[0]
