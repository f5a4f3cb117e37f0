"""socket(2) for NETLINK_KOBJECT_UEVENT: the socket is created where it receives the uevents of
the sandbox."""

from __future__ import annotations

import _socket
import os

from loopfs.engines.mounts import Mounts
from loopfs.intercept.notify import Call, may_wait


class SocketHandler:
    """Creates sockets for uevents; the filter also traps other families' protocol of this
    number."""

    def __init__(self, mounts: Mounts) -> None:
        self._uevents = mounts.instances.uevents

    def __call__(self, call: Call) -> None:
        family, kind = (register & 0xFFFFFFFF for register in call.args[:2])
        if family != _socket.AF_NETLINK:
            call.proceed()
            return
        may_wait()
        fd = self._uevents.socket(call.process, kind)
        if fd is None:
            call.proceed()
            return
        try:
            if call.alive():
                call.finish_with_descriptor(fd, close_on_exec=bool(kind & _socket.SOCK_CLOEXEC))
        finally:
            os.close(fd)
