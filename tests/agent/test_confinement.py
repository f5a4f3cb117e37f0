"""The operations that a confined process can perform on this kernel."""

from __future__ import annotations

import ast
import errno
import os
import sys

import pytest

from tests.support.user import CHECKOUT, User

pytestmark = pytest.mark.e2e

# As root of a user namespace, like a job: what each attempt comes to.
ATTEMPTS = """
import ctypes, fcntl, os, signal, socket, sys, threading
sys.path[:0] = [sys.argv[1]]
from loopfs.engines import confinement
from loopfs.engines.confinement import Confinement
parent, image, libc = os.getpid(), os.memfd_create("image"), ctypes.CDLL(None, use_errno=True)
end = socket.socketpair()[0]
def serve():
    os.pwrite(image, b"x", 5)
    os.fsync(image)
    thread = threading.Thread(target=os.sched_yield)
    thread.start()
    thread.join()
    return os.pread(image, 9, 0).decode("latin-1")
def make_user_namespace():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
attempts = {
    "serve": serve,
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "list": lambda: os.listdir("/"),
    "make": lambda: os.mkdir("/x"),
    "stat": lambda: os.stat("/proc"),
    "kill": lambda: os.kill(parent, 9),
    "own": lambda: fcntl.fcntl(end, fcntl.F_SETOWN, parent),
    "fork": os.fork,
    "socket": lambda: socket.socket(),
    "namespace": make_user_namespace,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "ioctl": lambda: fcntl.ioctl(image, 0x40049409, image),  # FICLONE
}
def attempt(work):
    try:
        return str(work())
    except OSError as problem:
        return problem.errno
confinement.adopt(Confinement(0, ()))
print(confinement.confined(lambda: {name: attempt(work) for name, work in attempts.items()}))
"""


def test_nothing_can_be_reached(user: User) -> None:
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
    words = [python, "-c", ATTEMPTS, str(CHECKOUT / "src")]
    result = user.run(["unshare", "-U", "--map-root-user", *words])
    assert (result.returncode, result.stderr) == (0, "")
    came = ast.literal_eval(result.stdout)
    assert came.pop("serve") == "\0" * 5 + "x"
    assert came.pop("stat") in (errno.ENOENT, errno.EACCES, errno.EPERM)
    assert came == dict.fromkeys(came, errno.EPERM)
    assert len(came) == 10
