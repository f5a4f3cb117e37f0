"""Nodes that something is mounted on: what mount tables show, until it is unmounted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.filesystems import covered
from loopfs.filesystems.covered import Covers, Mounter, covers, escaped, is_covered
from loopfs.filesystems.nodes import Node, Nodes
from loopfs.process import Process
from loopfs.uapi import fuse, loop
from loopfs.uapi.syscalls import abis
from tests.filesystems.conftest import Mounted
from tests.support.patience import scaled

PATIENCE = scaled(10.0)  # seconds
NUMBER = b"0:77"
TABLE = b"""\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:77 / /dev/loopfs rw - fuse.loop none rw
3 2 8:1 /home/f /dev/loopfs/loop8 rw - ext4 /dev/sda1 rw
4 1 0:77 /loop9 /srv/disk rw - fuse.loop none rw
5 4 8:1 /home/f /srv/disk rw - ext4 /dev/sda1 rw
6 1 0:77 / / rw - fuse.loop none rw
7 6 8:1 /home/f /a\\040\\134b rw - ext4 /dev/sda1 rw
8 1 8:1 / /dev/loopfs/loop10 rw - ext4 /dev/sda1 rw
9 1 0:77 /loop11//deleted /srv/gone rw - fuse.loop none rw
"""


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        (b"loop8", True),
        (b"loop9", True),  # on a bind mount of it
        (b"a \\b", True),
        (b"loop10", False),  # below another mount
        (b"loop11", False),  # it is what is mounted
        (b"loop", False),
        (b"", False),
    ],
)
def test_mount_tables(name: bytes, is_there: bool) -> None:
    assert covers(TABLE, NUMBER, (b"/none", b"/" + escaped(name))) is is_there
    assert not covers(TABLE, b"0:7", (b"/" + escaped(name),))


IN_A_NAMESPACE = """
mount -t tmpfs none "$1"; cd "$1"; touch over other; mount --bind other over; stat -c %d .; exec cat
"""


def test_all_mount_namespaces_are_asked(tmp_path: Path) -> None:
    """A file that is covered in the namespace of one process."""
    command = ["unshare", "-Urm", "sh", "-euc", IN_A_NAMESPACE, "sh", os.fspath(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        device = int(child.stdout.readline())
        number = b"%d:%d" % (os.major(device), os.minor(device))
        try:
            assert is_covered(number, (b"/over",))
            assert not is_covered(number, (b"/other",))
        finally:
            child.stdin.close()
            child.wait(PATIENCE)
    assert not is_covered(number, (b"/over",))


# --- from the mount on until it is over ----------------------------------------------------

US = os.getpid()
DROPPED = [(1, b"loop-control"), (5, b"loop-control")]


class World:
    """What the mount tables and the threads say, and which names were dropped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.covered = False
        self.left = False
        self.dropped: list[tuple[int, bytes]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.covers = Covers(
            os.makedev(0, 77), self.places, lambda *name: self.dropped.append(name)
        )
        monkeypatch.setattr(covered, "is_covered", self.look)
        monkeypatch.setattr(covered, "has_left", lambda mounter: self.left)

    def places(self, node: Node) -> tuple[tuple[int, bytes], ...]:
        return (1, b"/"), (5, b"/loopfs/")

    def look(self, number: bytes, paths: tuple[bytes, ...]) -> bool:
        assert (number, *paths) == (b"0:77", b"/loop-control", b"/loopfs/loop-control")
        answer = self.covered
        self.meanwhile()
        return answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def node() -> Node:
    return Nodes(0).control


def test_a_mount_comes_and_goes(world: World, node: Node) -> None:
    assert world.covers.is_over(node)
    world.covers.begin(node, US, by_path=True)
    assert world.dropped == DROPPED
    assert not world.covers.is_over(node), "the call has not been carried out"
    world.left, world.covered = True, True
    assert not world.covers.is_over(node)
    world.covers.begin(node, US, by_path=True)  # elsewhere, or on top of it
    assert world.dropped == DROPPED, "it would take the first away"
    world.covered = False
    assert world.covers.is_over(node)
    assert node.cover is None
    world.covers.begin(node, US, by_path=True)
    assert world.dropped == DROPPED * 2


def test_a_mount_by_a_descriptor_of_the_node(world: World, node: Node) -> None:
    world.covers.begin(node, US, by_path=False)
    assert world.dropped == []
    assert not world.covers.is_over(node)


def test_a_mount_that_begins_while_the_tables_are_read(world: World, node: Node) -> None:
    world.covers.begin(node, US, by_path=True)
    world.left = True
    world.meanwhile = lambda: world.covers.begin(node, US, by_path=True)
    assert not world.covers.is_over(node)
    world.meanwhile = lambda: None
    assert world.covers.is_over(node)


def test_another_thread_finds_meanwhile_that_it_has_ended(world: World, node: Node) -> None:
    world.covers.begin(node, US, by_path=True)
    world.left = True
    world.covered = True

    def meanwhile() -> None:
        world.meanwhile = lambda: None
        world.covered = False
        assert world.covers.is_over(node)

    world.meanwhile = meanwhile
    assert world.covers.is_over(node)


# --- the thread that mounts ------------------------------------------------------------------


class Told(Process):
    """A thread of which /proc says what we like; its other files are this process's."""

    def path(self, name: str) -> str:
        return str(TOLD) if name == "syscall" else f"/proc/{US}/{name}"


TOLD = Path("/nonexistent")


@pytest.mark.parametrize(
    ("says", "left"),
    [
        ("{mount} 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8", False),
        ("{openat} 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8", True),
        ("-1 0x7 0x8", True),
        ("running", False),
    ],
)
def test_what_a_thread_is_in(
    says: str, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "syscall"
    told.write_text(says.format(**abis()[0].numbers) + "\n")
    monkeypatch.setitem(globals(), "TOLD", told)
    monkeypatch.setattr(covered, "Process", Told)
    now = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    assert covered.has_left(Mounter(US, round(now) + 1000)) is left


def test_a_thread_that_computes() -> None:
    """/proc never says what call it is in; but it cannot be in one for so long."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            mounter = Mounter(child.pid, covered._ticks(Process(child.pid)))
            deadline = time.monotonic() + PATIENCE
            while not covered.has_left(mounter):
                assert time.monotonic() < deadline
        finally:
            child.kill()
    assert covered.has_left(mounter), "it is gone"


# --- lookups ---------------------------------------------------------------------------------


def looked_up(mounted: Mounted, name: bytes) -> int:
    reply = mounted.kernel.ask(fuse.FUSE_LOOKUP, name + b"\0")
    return int(fuse.ENTRY_OUT.unpack_from(reply.data)[0])


def test_a_covered_node_has_one_face(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 9)
    node, other = (mounted.filesystem.nodes.by_name[n] for n in (b"loop9", b"loop-control"))
    there = True
    monkeypatch.setattr(covered, "is_covered", lambda number, paths: there)
    monkeypatch.setattr(covered, "has_left", lambda mounter: True)
    mounted.filesystem.covers.begin(node, US, by_path=False)
    assert looked_up(mounted, b"loop9") == node.data
    assert looked_up(mounted, b"loop-control") == other.special
    there = False
    assert looked_up(mounted, b"loop9") == node.special
