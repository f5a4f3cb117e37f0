"""Callers that change arguments, die, or leave mounts and processes behind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from loopfs.filesystems.threads import KEPT
from tests.e2e.conftest import Lines, Start
from tests.support.rounds import rounds
from tests.support.supervisor import next_line, settled

pytestmark = pytest.mark.e2e

# Two names that mean now this and now that, while they are mounted.
RACE = r"""
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
device, = sys.argv[1:]
stop = False
def swap(name, first, second):
    while not stop:
        for place in (first, second):
            os.symlink(place, name + ".new")
            os.rename(name + ".new", name)
threads = [
    threading.Thread(target=swap, args=("source", device, "/dev/null")),
    threading.Thread(target=swap, args=("target", "one", "two")),
]
for thread in threads:
    thread.start()
mounted = 0
try:
    for kind in (b"ext4", b"loop") * 15:
        mounted += libc.mount(b"source", b"target", kind, 0, None) == 0
        for place in (b"one", b"two"):
            libc.umount2(place, 0)
finally:
    stop = True
    for thread in threads:
        thread.join()
print(mounted >= 15)
"""

# Every argument is now this and now that, while it is read; and so is whether there is a place.
REWRITE = r"""
import ctypes, errno, itertools, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
device, times = sys.argv[1:]
texts = {
    "source": (b"none", device.encode(), b"/dev/null", b"missing"),
    "target": (b"one", b"two", b"come", b"missing", b"/proc/self/cwd/one"),
    "type": (b"loop", b"ext4", b"tmpfs", b"proc", b"strange"),
    "data": (b"max=1", b"ro", b"", b"strange"),
}
buffers = {name: ctypes.create_string_buffer(64) for name in texts}
source, target, kind, data = buffers.values()
stop = False
def rewrite(name):
    while not stop:
        for text in texts[name]:
            ctypes.memmove(buffers[name], text + b"\0", len(text) + 1)
def come_and_go():
    while not stop:
        for change in (os.mkdir, os.rmdir):
            try:
                change("come")
            except OSError:
                pass
def configure():
    fd = libc.syscall(430, kind, 1)
    if fd < 0:
        return
    libc.syscall(431, fd, 1, b"source", source, 0)
    libc.syscall(431, fd, 1, data, source, 0)
    if libc.syscall(431, fd, 6, None, None, 0) == 0:
        mount = libc.syscall(432, fd, 1, 0)
        libc.syscall(429, mount, b"", -100, target, 4)
        os.close(mount)
    os.close(fd)
def reconfigure():
    fd = libc.syscall(433, -100, target, 1)
    if fd >= 0:
        libc.syscall(431, fd, 1, b"max", data, 0)
        libc.syscall(431, fd, 7, None, None, 0)
        os.close(fd)
def umount_all():
    for place in (b"one", b"two", b"come"):
        while libc.umount2(place, 2) == 0:
            pass
sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=rewrite, args=(name,)) for name in texts]
threads.append(threading.Thread(target=come_and_go))
for thread in threads:
    thread.start()
answers = set()
try:
    for turn, flags in enumerate(itertools.cycle((0, 32, 1))):
        if turn >= int(times) and 0 in answers or turn > 300:
            break
        answer = libc.mount(source, target, kind, flags, data)
        answers.add(errno.errorcode[ctypes.get_errno()] if answer else 0)
        configure()
        reconfigure()
        libc.statfs(target, ctypes.create_string_buffer(256))
        libc.umount2(target, 8)
        umount_all()
finally:
    stop = True
    for thread in threads:
        thread.join()
umount_all()
print(0 in answers, sorted(answers - {0}))
"""

# Contexts, instances and mounts that are abandoned at every stage.
ABANDON = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None)
for stage in range(4):
    fd = libc.syscall(430, b"loop", 0)
    assert fd >= 0
    if stage > 0:
        assert libc.syscall(431, fd, 1, b"max", b"3", 0) == 0
    if stage > 1:
        assert libc.syscall(431, fd, 6, None, None, 0) == 0
    if stage > 2:
        assert libc.syscall(432, fd, 0, 0) >= 0
assert libc.mount(b"none", b"one", b"loop", 0, None) == 0
assert libc.syscall(433, -100, b"one", 0) >= 0
assert libc.umount2(b"one", 2) == 0
"""


@pytest.fixture(autouse=True)
def _places(image: Path) -> None:
    """disk.img, and two places to mount at."""
    (image.parent / "one").mkdir(mode=0o777)
    (image.parent / "two").mkdir(mode=0o777)
    (image.parent / "race.py").write_text(RACE)
    (image.parent / "rewrite.py").write_text(REWRITE)
    (image.parent / "abandon.py").write_text(ABANDON)


def test_names_that_change_meanwhile(inside: Lines) -> None:
    """What is mounted is what was looked at; nothing else is, and nothing is left."""
    lines = inside("""
        ln -s one target; ln -s disk.img source
        d=$(losetup -f --show disk.img); python3 race.py $d
        grep $PWD /proc/self/mountinfo || echo clean; losetup -d $d; losetup -a
        e2fsck -fn disk.img >log 2>&1
    """)
    assert lines == ["True", "clean"]


def test_arguments_that_change_meanwhile(inside: Lines) -> None:
    """Each call gets an answer of the kernel's for one of its arguments or another, and what is
    mounted can be unmounted."""
    answers, *rest = inside(f"""
        d=$(losetup -f --show disk.img); python3 rewrite.py $d {rounds(18, 90)}
        grep $PWD /proc/self/mountinfo || echo clean; losetup -d $d; losetup -a
        mount -t loop none one; umount one; ls one; e2fsck -fn disk.img >log 2>&1
    """)
    succeeded, refused = answers.split(" ", 1)
    assert succeeded == "True"
    known = ("EACCES", "EBUSY", "EINVAL", "ENODEV", "ENOENT", "ENOTBLK", "ENOTDIR", "EPERM")
    assert set(ast.literal_eval(refused)) <= set(known)
    assert rest == ["clean"]


def test_callers_that_die_meanwhile(inside: Lines) -> None:
    lines = inside("""
        for n in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
            timeout -s KILL 0.00$n mount -t loop none one 2>/dev/null || :
            timeout -s KILL 0.01$n mount -o loop disk.img two 2>/dev/null || :
            while umount one 2>/dev/null; do :; done; while umount two 2>/dev/null; do :; done
        done
        for n in 1 2 3 4 5 6 7 8 9; do test -z "$(losetup -a)" || sleep 0.1; done
        losetup -a; mount -t loop none one; umount one; mount -o loop disk.img two; umount two
        losetup -a; e2fsck -fy disk.img >log 2>&1; echo alive
    """)
    assert lines == ["alive"]


def test_nothing_is_kept_for_a_process_that_has_ended(started: Start, image: Path) -> None:
    """The supervisor's descriptors and threads."""
    script = """
        python3 abandon.py; mount -o loop disk.img two; umount two
        echo ready; read -r go
        for n in 1 2 3 4 5 6 7 8 9; do python3 abandon.py; done
        for n in 1 2 3; do mount -o loop disk.img two; umount two; done; echo; read -r go
    """
    process = started(script)
    kinds, threads = settled(process.pid)
    next_line(process)
    kinds_after, threads_after = settled(process.pid)
    assert kinds_after == kinds
    assert threads_after <= threads + KEPT  # which wait for the next call
