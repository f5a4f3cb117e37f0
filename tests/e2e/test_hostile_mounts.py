"""Callers that change their minds, die, or leave things lying about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines, Start
from tests.support.supervisor import next_line, resources

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


def test_nothing_is_kept_for_who_is_gone(started: Start, image: Path) -> None:
    """The supervisor's descriptors and threads."""
    script = """
        python3 abandon.py; mount -o loop disk.img two; umount two; sleep 0.5
        echo ready; read -r go
        for n in 1 2 3 4 5 6 7 8 9; do python3 abandon.py; done
        for n in 1 2 3; do mount -o loop disk.img two; umount two; done; sleep 0.5; echo; read -r go
    """
    process = started(script)
    before = resources(process.pid)
    next_line(process)
    after = resources(process.pid)
    assert after == before
