"""A thread with descriptors or mounts of its own, or that outlives the first thread."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# "fd" is a number that means one file in the process and can mean another in a thread.
PREAMBLE = """
import fcntl, struct, threading
from calls import *
wrong, right = (os.open(name, os.O_RDWR) for name in ("wrong.img", "right.img"))
fd = os.dup(wrong)
def refused(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else 0
def bound():
    device = os.open(os.environ["d"], os.O_RDWR)
    fcntl.ioctl(device, 0x4C00, fd)
    size = struct.unpack("Q", fcntl.ioctl(device, 0x80081272, bytes(8)))[0]
    fcntl.ioctl(device, 0x4C01)
    os.close(device)
    return size
def mounted(fstype, where=b"one"):
    return refused(libc.mount(b"none", where, fstype, 0, None)), refused(libc.umount2(where, 0))
def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
"""


@pytest.fixture
def says(inside: Lines, image: object) -> Lines:
    def run(program: str) -> list[str]:
        quoted = (PREAMBLE + program).replace("'", "'\\''")
        return inside(f"""
            truncate -s 1M wrong.img; truncate -s 2M right.img; d=$(losetup -f); export d
            export PYTHONDONTWRITEBYTECODE=1; python3 -c '{quoted}'
        """)

    return run


def test_descriptors_of_its_own(says: Lines) -> None:
    assert says("""
def own():
    assert libc.unshare(0x400) == 0  # CLONE_FILES
    os.dup2(right, fd)
    print(bound())
in_thread(own)
print(bound())
""") == [str(2 << 20), str(1 << 20)]


def test_mounts_of_its_own(says: Lines) -> None:
    """Seen by the thread alone; and a working directory."""
    assert says("""
def own():
    assert libc.unshare(0x200 | 0x20000) == 0  # CLONE_FS, CLONE_NEWNS
    print(*mounted(b"tmpfs"), *mounted(b"loop"))
    os.mkdir("sub")
    os.chdir("sub")
    os.mkdir("one")
    print(*mounted(b"tmpfs"), *mounted(b"loop"))
    print(refused(libc.mount(b"none", b"one", b"loop", 0, None)))
    print(*sorted(os.listdir("one")))
in_thread(own)
print(*os.listdir("one"), *os.listdir("sub/one"), os.path.basename(os.getcwd()) != "sub")
""") == ["0 0 0 0", "0 0 0 0", "0", "loop-control", "True"]


def test_it_outlives_the_first_thread(says: Lines) -> None:
    assert says("""
first = threading.get_native_id()
def late():
    while "Z" not in open(f"/proc/{first}/stat").read().rpartition(")")[2].split()[0]:
        pass
    print(bound(), *mounted(b"tmpfs"), *mounted(b"loop"))
    got = call("fsopen", "loop", 0)
    print(call("fsconfig", got, CREATE, None, None, 0), call("fsmount", got, 0, 0) > 0, flush=True)
    os._exit(0)
threading.Thread(target=late).start()
libc.syscall(60, 0)  # exit(2): of this thread alone
""") == [f"{1 << 20} 0 0 0 0", "0 True"]
