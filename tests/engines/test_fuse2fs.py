"""fuse2fs: the options of mount(2) and the command line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from loopfs.engines import fuse2fs
from loopfs.engines.engine import Launch, Mounter
from loopfs.engines.programs import FUSE2FS


@pytest.mark.parametrize(
    ("data", "passed"),
    [
        ("", []),
        (",,", []),
        ("defaults", []),
        ("noload", ["norecovery"]),
        ("norecovery,minixdf", ["norecovery", "minixdf"]),
        ("errors=panic", ["errors=panic"]),
        ("user_xattr,acl,errors=continue,data=ordered,barrier=1,commit=5,bsddf", []),
    ],
)
def test_options(data: str, passed: list[str]) -> None:
    assert FUSE2FS.translated(data) == tuple(passed)


@pytest.mark.parametrize(
    "data",
    [
        "frobnicate",
        "errors=explode",
        "errors",
        "data=journal",
        "noload,frobnicate",
        " noload",
        # What would reach into fuse2fs or libfuse if it were passed on.
        "fakeroot",
        "offset=512",
        "subtype=x",
        "allow_other",
        "fsname=/etc/passwd",
    ],
)
def test_options_that_are_refused(data: str) -> None:
    with pytest.raises(OSError, match="Invalid argument") as problem:
        FUSE2FS.translated(data)
    assert problem.value.errno == errno.EINVAL


@pytest.mark.parametrize(("read_only", "option"), [(True, "ro"), (False, "rw")])
def test_arguments(read_only: bool, option: str) -> None:
    launch = Launch(
        "/dev/loop8", "/mnt/x", "ext3", ("norecovery",), read_only, Mounter(0, 0, 0o022, 0)
    )
    words = fuse2fs.command(launch)
    assert words[0] == "fuse2fs"
    assert "-f" in words, "it must stay our child"
    assert words.index("/dev/loop8") < words.index("/mnt/x")
    options = words[words.index("-o") + 1].split(",")
    assert {"subtype=ext3", "norecovery", option} <= set(options)
    assert {"ro", "rw"} & set(options) == {option}
    # As a kernel's mount: others may look, and permissions are the image's.
    assert {"allow_other", "default_permissions"} <= set(options)


def test_each_type_of_ext_is_served() -> None:
    assert {"ext2", "ext3", "ext4"} == fuse2fs.TYPES


@pytest.mark.parametrize(("log_block_size", "bounces"), [(0, True), (1, False), (2, False)])
def test_bouncing_is_for_blocks_of_a_superblocks_size(
    tmp_path: Path, log_block_size: int, bounces: bool
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1024 + 24) + log_block_size.to_bytes(4, "little") + bytes(100))
    with image.open("rb") as file:
        assert ("UNIX_IO_FORCE_BOUNCE" in fuse2fs.environment(file.fileno())) is bounces
