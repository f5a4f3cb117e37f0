"""Names, inode numbers, attributes and ids of the nodes: patch 2/8, loopfs_fill_super()."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from loopfs.driver.loop import LoopDevice
from loopfs.filesystems.nodes import Node, Nodes
from loopfs.fuse.operations import SetAttr
from loopfs.fuse.session import unpack_setattr
from loopfs.uapi import fuse
from loopfs.uapi.fuse import encode_dev
from loopfs.uapi.stat import Stat, pack_statx
from tests.driver.fakes import FakeBacking, bind, new_instance

NOW = 1_700_000_000_000_000_005
NOTHING = SetAttr(None, None, None, None, None, None, False)


def device(number: int) -> LoopDevice:
    instance = new_instance()
    return instance.devices[instance.ctl_add(number)]


@pytest.fixture
def nodes() -> Nodes:
    return Nodes(NOW)


def test_root(nodes: Nodes) -> None:
    attr = nodes.root.attr(nodes.root.special)
    assert nodes.root.special == fuse.FUSE_ROOT_ID
    assert (attr.ino, attr.mode, attr.nlink) == (1, stat.S_IFDIR | 0o755, 2)
    assert (attr.uid, attr.gid) == (0, 0)
    assert attr.times == (NOW, NOW, NOW)


def test_control_node(nodes: Nodes) -> None:
    control = nodes.by_name[b"loop-control"]
    attr = control.attr(control.special)
    assert (attr.ino, attr.mode, attr.nlink) == (2, stat.S_IFCHR | 0o600, 1)
    assert attr.rdev == encode_dev(10, 237)
    assert control.device_number == os.makedev(10, 237)


@pytest.mark.parametrize("number", [0, 8, 255, 256, 2**20 - 1])
def test_device_node(nodes: Nodes, number: int) -> None:
    node = nodes.add_device(device(number), NOW)
    attr = node.attr(node.special)
    assert node.name == b"loop%d" % number
    assert (attr.ino, attr.mode, attr.nlink) == (number + 3, stat.S_IFBLK | 0o600, 1)
    assert attr.rdev == encode_dev(7, number)
    assert node.device_number == os.makedev(7, number)
    assert (attr.uid, attr.gid, attr.size) == (0, 0, 0)


def test_the_data_face_is_a_regular_file_as_long_as_the_device(nodes: Nodes) -> None:
    loop = device(8)
    node = nodes.add_device(loop, NOW)
    assert node.attr(node.data).size == 0
    bind(loop, FakeBacking(5 << 20), offset=1 << 20)
    data, special = node.attr(node.data), node.attr(node.special)
    assert (data.mode, data.size, data.rdev) == (stat.S_IFREG | 0o600, 4 << 20, 0)
    assert data.ino == special.ino
    assert special.size == 0


def test_a_faces_permissions_are_one_nodes(nodes: Nodes) -> None:
    node = nodes.add_device(device(8), NOW)
    node.change(NOTHING._replace(mode=stat.S_IFREG | 0o640, uid=5, gid=6), NOW + 1)
    for face, kind in ((node.special, stat.S_IFBLK), (node.data, stat.S_IFREG)):
        attr = node.attr(face)
        assert (attr.mode, attr.uid, attr.gid) == (kind | 0o640, 5, 6)


def test_times(nodes: Nodes) -> None:
    node = nodes.control
    node.change(NOTHING._replace(atime=1), NOW + 1)
    assert node.times == (1, NOW, NOW + 1)
    node.change(NOTHING._replace(mtime=2), NOW + 2)
    assert node.times == (1, 2, NOW + 2)
    node.change(NOTHING, NOW + 3)
    assert node.times == (1, 2, NOW + 3)


def test_a_time_before_the_epoch(nodes: Nodes) -> None:
    """touch -d 1969-12-31."""
    seconds = -100
    body = fuse.SETATTR_IN.pack(fuse.FATTR_MTIME, *[0] * 5, seconds, *[0] * 9)
    node = nodes.control
    node.change(unpack_setattr(body, NOW), NOW)
    assert fuse.ATTR.unpack(node.attr(node.special).pack())[4] == seconds
    st = Stat(0, node.ino, node.mode, 1, 0, 0, node.device_number, node.times)
    mtime_offset = 112
    assert struct.unpack_from("=q", pack_statx(st, 0), mtime_offset) == (-100,)


def test_the_size_of_a_device_cannot_be_set(nodes: Nodes) -> None:
    loop = device(8)
    node = nodes.add_device(loop, NOW)
    bind(loop, FakeBacking(1 << 20))
    node.change(NOTHING._replace(size=0), NOW)
    assert node.attr(node.data).size == 1 << 20


# --- ids ---------------------------------------------------------------------------------


def test_a_node_is_found_by_both_its_ids_its_name_and_its_inode(nodes: Nodes) -> None:
    loop = device(8)
    node = nodes.add_device(loop, NOW)
    assert node.special != node.data
    assert nodes.by_id[node.special] is nodes.by_id[node.data] is node
    assert nodes.by_name[b"loop8"] is nodes.of_device(loop) is nodes.of_inode(11) is node
    assert nodes.of_inode(1) is nodes.root
    assert nodes.of_inode(2) is nodes.control
    assert nodes.of_inode(12) is nodes.of_inode(0) is None


def test_ids_are_never_used_again(nodes: Nodes) -> None:
    loop = device(8)
    seen = {nodes.root.special, nodes.control.special, nodes.control.data}
    for _ in range(5):
        node = nodes.add_device(loop, NOW)
        assert not seen & {node.special, node.data}
        seen |= {node.special, node.data}
        nodes.remove_device(loop)


def test_a_removed_node_is_nowhere(nodes: Nodes) -> None:
    loop = device(8)
    before: dict[int, Node] = dict(nodes.by_id)
    nodes.add_device(loop, NOW)
    nodes.remove_device(loop)
    assert nodes.by_id == before
    assert list(nodes.by_name) == [b"loop-control"]
    assert nodes.of_inode(11) is None
