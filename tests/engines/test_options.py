"""Options of the kernel's drivers that engines accept without effect."""

from __future__ import annotations

import errno

import pytest

from loopfs.engines.embedded.engine import EMBEDDED
from loopfs.engines.engine import Engine
from loopfs.engines.options import WITHOUT_EFFECT, is_without_effect
from loopfs.engines.programs import FUSE2FS, FUSEISO, NTFS_3G, SQUASHFUSE


@pytest.mark.parametrize(
    ("engine", "fstype", "data", "passed", "dropped"),
    [
        (FUSE2FS, "ext4", "nobarrier,commit=300,data=writeback,minixdf", 1, ["data=writeback"]),
        (
            FUSE2FS,
            "ext4",
            "init_itable=0,stripe=4,debug",
            0,
            ["init_itable=0", "stripe=4", "debug"],
        ),
        (
            EMBEDDED,
            "btrfs",
            "subvolid=5,compress=zstd:3,rescue=all",
            1,
            ["compress=zstd:3", "rescue=all"],
        ),
        (EMBEDDED, "xfs", "nouuid,inode64,logbsize=32k", 0, ["inode64", "logbsize=32k"]),
        (EMBEDDED, "xfs", "dax=inode", 0, ["dax=inode"]),
        (FUSE2FS, "ext4", "usrjquota=,dax=never", 0, ["usrjquota=", "dax=never"]),
        (FUSEISO, "iso9660", "uid=7,mode=0444", 0, ["uid=7", "mode=0444"]),
        (NTFS_3G, "ntfs3", "force,prealloc", 1, ["prealloc"]),
        (SQUASHFUSE, "squashfs", "threads=single", 0, None),
    ],
)
def test_taken(
    engine: Engine, fstype: str, data: str, passed: int, dropped: list[str] | None
) -> None:
    assert len([each for each in engine.translated(data, fstype) if each]) == passed
    if dropped is not None:
        assert list(engine.without_effect(data, fstype)) == dropped


@pytest.mark.parametrize(
    ("engine", "fstype", "data"),
    [
        (FUSE2FS, "ext4", "stripe=many"),
        (FUSE2FS, "ext4", "stripe="),
        (FUSE2FS, "ext4", "stripe"),
        (FUSE2FS, "ext4", "stripe=#"),
        (FUSE2FS, "ext4", "sb=8193"),
        (FUSE2FS, "ext4", "inode64"),
        (EMBEDDED, "btrfs", "compress-force=*"),
        (EMBEDDED, "xfs", "nosuchoption"),
    ],
)
def test_refused(engine: Engine, fstype: str, data: str) -> None:
    with pytest.raises(OSError, match="Invalid argument") as raised:
        engine.translated(data, fstype)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize("fstype", WITHOUT_EFFECT)
def test_no_option_of_the_table_is_a_pattern_itself(fstype: str) -> None:
    for option in WITHOUT_EFFECT[fstype]:
        pattern = option.endswith(("=#", "=*"))
        assert is_without_effect(fstype, option) is not pattern
        assert is_without_effect(fstype, option.replace("=#", "=1").replace("=*", "=x"))
