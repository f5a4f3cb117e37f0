"""A node opened with O_PATH, bound to another place, or with something mounted on it."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

BOUND = "d=$(losetup -f --show disk.img); n=$(readlink -f $d); export d n; echo masked >f\n"
KIND = "stat -Lc %F"

# What a file and a descriptor are; the calls that bind, as system calls.
LOOK = r"""
import ctypes, os, stat, sys, threading
from calls import *
node, device = os.environ["n"], os.stat(os.environ["d"]).st_rdev
MS_BIND, MS_MOVE, CLONE, EMPTY = 4096, 8192, 1, 0x1000
def kind(st):
    return "block" if stat.S_ISBLK(st.st_mode) and st.st_rdev == device else oct(st.st_mode)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def mount(source, target, flags):
    check(libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None))
def umount(target):
    check(libc.umount2(target.encode(), 2))  # MNT_DETACH: others may have open what is there
def over():
    with open("/proc/self/mountinfo") as table:
        return sum(line.split()[4] == node for line in table)
def read(path):
    with open(path, "rb") as file:
        return file.read(7)
"""


def test_a_path_descriptor(calls: Lines) -> None:
    """fstat(2) of it says block special, and it opens the device; so with openat2(2)."""
    lines = calls(
        LOOK
        + r"""
how = (ctypes.c_uint64 * 3)(os.O_PATH, 0, 0)
for fd in (os.open(node, os.O_PATH), check(libc.syscall(437, -100, node.encode(), how, 24))):
    print(kind(os.fstat(fd)), kind(os.stat(fd)))
    with open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as file:
        print(kind(os.fstat(file.fileno())), file.seek(0, os.SEEK_END))
    os.chmod(f"/proc/self/fd/{fd}", 0o640)
    os.close(fd)
print(kind(os.stat(node)), oct(os.stat(node).st_mode))
""",
        before=BOUND,
    )
    assert lines == [*["block block", "block 16777216"] * 2, "block 0o60640"]


def test_a_node_that_is_bound_elsewhere(inside: Lines) -> None:
    lines = inside(f"""
        {BOUND} touch x y; mount --bind $n x
        blkid -s TYPE -o value x; blockdev --getsize64 x; {KIND} $d; mount -o loop x one
        ls one; umount one; {KIND} $d; mount --bind $d y; blkid -s TYPE -o value y
        umount x y; losetup -d $d
    """)
    special = "block special file"
    assert lines == ["ext4", "16777216", special, "lost+found", special, "ext4"]


def test_what_is_mounted_on_a_node_stays(inside: Lines) -> None:
    """Whoever looks and opens, here and where it is not mounted, until it is unmounted."""
    lines = inside(f"""
        {BOUND} unshare -m sh -c 'touch there; while test -e there; do sleep 0.01; done
            blkid -s TYPE -o value $n; touch asked' & until test -e there; do sleep 0.01; done
        mount --bind f $n; {KIND} $n; cat $n; test -f $d; ls -l $n | cut -c 1; cat $n
        rm there; until test -e asked; do sleep 0.01; done; cat $n; wait
        unshare -m sh -c 'touch copied; while test -e copied; do sleep 0.01; done; cat $n' &
        until test -e copied; do sleep 0.01; done
        umount $n; stat -c %s $n; blkid -s TYPE -o value $n; rm copied; wait; {KIND} $n
    """)
    masked = "masked"
    here = ["regular file", masked, "-", masked, "ext4", masked]
    assert lines == [*here, "16777216", "ext4", masked, "block special file"]


def test_what_another_user_mounts_on_a_node(inside: Lines) -> None:
    """It is his loss: to the owner the node is what it was."""
    lines = inside(f"""
        {BOUND} mkfifo gate; chmod 755 .
        setpriv --reuid 5000 --regid 5000 --clear-groups unshare -Urm sh -euc '
            mount --bind f $n; echo mounted; while read line; do :; done' <gate >said &
        exec 9>gate; until test -s said; do sleep 0.01; done
        {KIND} $n; blkid -s TYPE -o value $n; {KIND} $n; exec 9>&-; wait
    """)
    assert lines == ["block special file", "ext4", "block special file"]


def test_each_way_to_mount_on_a_node(calls: Lines) -> None:
    lines = calls(
        LOOK
        + r"""
def bind(path):
    mount("f", path, MS_BIND)
def tree(to, path, flags):
    fd = check(libc.syscall(428, -100, b"f", CLONE))
    check(libc.syscall(429, fd, b"", to, path.encode(), 4 | flags))
    os.close(fd)
def held():
    return os.open(node, os.O_PATH)
directory = os.open(os.path.dirname(node), os.O_PATH)
os.symlink(node, "link")
open("moved", "w").close()
def by_moving():
    mount("f", "moved", MS_BIND | 0)
    mount("moved", node, MS_MOVE)
ways = {
    "path": lambda: bind(node),
    "relative path": lambda: bind(os.path.relpath(node)),
    "link": lambda: bind("link"),
    "descriptor in proc": lambda: bind(f"/proc/self/fd/{held()}"),
    "move": by_moving,
    "tree": lambda: tree(-100, node, 0),
    "tree to an entry": lambda: tree(directory, os.path.basename(node), 0),
    "tree to a descriptor": lambda: tree(held(), "", 0x40),
}
mount("", "/", 1 << 18 | 16384)  # private: else a mount cannot be moved
for name, way in ways.items():
    way()
    os.stat(node)
    print(name, over(), read(node), over(), end=" ")
    os.stat(node)
    umount(node)
    print(kind(os.stat(node)))
""",
        before=BOUND,
    )
    assert [line.split(" b'")[1] for line in lines] == ["masked\\n' 1 block"] * 8, lines
    assert all(" 1 b'" in line for line in lines)


def test_mounts_on_a_node_that_many_processes_look_up(calls: Lines) -> None:
    """No mount is lost or refused, whatever face others are given meanwhile."""
    lines = calls(
        LOOK
        + r"""
stop = threading.Event()
def ask(what):
    while not stop.is_set():
        try:
            what()
        except OSError as problem:
            print("a look failed:", problem)
            return
def look(): os.stat(node)
def use(): os.close(os.open(node, os.O_RDONLY))
def hold(): os.close(os.open(node, os.O_PATH))
threads = [threading.Thread(target=ask, args=(what,)) for what in (look, look, use, use, hold)]
for thread in threads: thread.start()
done = lost = 0
try:
    for done in range(1, 61):
        mount("f", node, MS_BIND)
        os.stat(node)
        lost += over() != 1 or read(node) != b"masked\n"
        umount(node)
finally:
    stop.set()
    for thread in threads: thread.join()
print("lost", lost, "of", done, kind(os.stat(node)))
""",
        before=BOUND,
    )
    assert lines == ["lost 0 of 60 block"]
