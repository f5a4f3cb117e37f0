"""A read-only engine of loopfs as a program, for a device whose backing file cannot be lent."""

from __future__ import annotations

import os
import sys

from loopfs import syscalls
from loopfs.engines.engine import Launch, Mounter, Serve
from loopfs.file_device import FileDevice
from loopfs.lean import Callable
from loopfs.uapi.mount import MS_NOATIME, MS_RDONLY

Prepare = Callable[[FileDevice, Launch], Serve]


def command(module: str, launch: Launch) -> list[str]:
    """Return the command that starts ``main`` of an engine's module with this interpreter's
    path."""
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {module} import main; main(sys.argv)"
    words = launch.device, launch.mountpoint, launch.fstype, ",".join(map(str, launch.caller[:3]))
    return [sys.executable, "-SEc", code, *words, ",".join(launch.options)]


def run(prepare: Prepare, argv: list[str]) -> None:
    """Serve. After an error at start the program exits with a message, and the mount is refused.

    Args:
        argv: device, mount point, type; uid, gid and umask of the process that mounts; the options.
    """
    _, device, mountpoint, fstype, ids, words = argv
    uid, gid, umask = map(int, ids.split(","))
    options = tuple(filter(None, words.split(",")))
    launch = Launch(device, mountpoint, fstype, options, True, Mounter(uid, gid, umask, MS_NOATIME))
    try:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        serve = prepare(FileDevice(fd), launch)
        connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={connection},rootmode=40000,user_id=0,group_id=0"
        data += ",allow_other,default_permissions"
        syscalls.mount(device, mountpoint, f"fuse.{fstype}", MS_RDONLY, data)
    except OSError as problem:
        sys.exit(problem.strerror)
    serve(connection)
