"""Mount tables as the kernel writes them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.filesystems.covered import escaped
from loopfs.mountinfo import Mount, parse
from loopfs.text import to_str


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
            Mount(36, 35, "/mnt2", "ext3", os.makedev(98, 0)),
        ),
        (b"1 0 0:1 / / rw - rootfs none rw\n", Mount(1, 0, "/", "rootfs", 1)),
        (
            b"7 1 0:9 / /a rw shared:1 master:2 - fuse.loop - rw\n",
            Mount(7, 1, "/a", "fuse.loop", 9),
        ),
    ],
)
def test_lines(line: bytes, mount: Mount) -> None:
    assert parse([line]) == [mount]


@given(st.binary(min_size=1).filter(lambda name: 0 not in name))
def test_names_of_all_kinds(name: bytes) -> None:
    line = b"7 1 0:9 / /%s rw - tmpfs none rw\n" % escaped(name)
    (mount,) = parse([line])
    assert mount.place == to_str(b"/" + name)


def test_our_own() -> None:
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = parse(table)
    assert all(os.path.isabs(mount.place) for mount in mounts)
    assert len({mount.mount_id for mount in mounts}) == len(mounts)
