"""vfat and msdos of loopfs and of a kernel: results and directory entries are the same.

``LOOPFS_ALL=1 ./check tests/fat/test_as_kernel.py`` compares all geometries and options.
``python -m tests.fat.test_as_kernel`` writes the golden files anew, by user-mode Linux.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path

import pytest

from loopfs.fat.dir import load
from loopfs.fat.inode import Inode
from loopfs.fat.volume import Volume
from tests.fat import operations, uml
from tests.fat.conftest import InVolume
from tests.fat.images import MIB, Memory, mounted, tool
from tests.support.skip import need

BASE = "utf8,iocharset=ascii"
GOLDEN = Path(__file__).with_name("golden")
COMMAND = ["/usr/bin/python3", operations.__file__]
# Size and arguments of mkfs.fat.
GEOMETRIES = {
    "FAT12": (1440 << 10, "-F 12"),
    "FAT16": (32 * MIB, "-F 16"),
    "FAT16-1": (16 * MIB, "-F 16 -s 1 -f 1"),
    "FAT32": (64 * MIB, "-F 32"),
    "FAT32-512": (64 * MIB, "-F 32 -s 1"),
    "FAT32-4096": (300 * MIB, "-F 32 -S 4096"),
}
OPTIONS = [
    *("shortname=winnt", "shortname=lower", "shortname=win95", "shortname=mixed"),
    *(
        "codepage=850",
        "codepage=852",
        "codepage=866",
        "codepage=932",
        "codepage=932,shortname=winnt",
    ),
    *("check=s", "iocharset=utf8", "utf8=no,iocharset=iso8859-1", "utf8=no", "uni_xlate,utf8=no"),
    *(
        "umask=077",
        "fmask=0133,dmask=0027",
        "showexec",
        "quiet",
        "rodir",
        "nonumtail",
    ),
    *("time_offset=90", "tz=UTC", "sys_immutable", "usefree", "errors=continue"),
]
MSDOS = [
    *("", "dots", "dotsOK=yes,check=s", "check=s", "check=r", "nocase", "codepage=932"),
    *("codepage=932,nocase", "fmask=0133,dmask=0027", "quiet", "tz=UTC,showexec"),
]
ALL = [*((name, "") for name in GEOMETRIES), *(("FAT32", option) for option in OPTIONS)]
ALL_OF_MSDOS = [*(("FAT12", option) for option in MSDOS), ("FAT32-4096", "")]
# Each takes some seconds: these are enough for every day.
DAILY = [
    ("FAT12", ""),
    ("FAT32", "codepage=932,shortname=winnt"),
]
DAILY_OF_MSDOS = [("FAT12", "dots")]
# By the name of a golden file: type, geometry, options.
RECORDED = {
    "FAT12": ("vfat", "FAT12", BASE),
    "FAT32": ("vfat", "FAT32", BASE),
    "msdos": ("msdos", "FAT12", "dots"),
}
# The lines that differ, and why.
KNOWN = (
    # After a directory has replaced another the kernel's count of its parent is one too many.
    (r"b'\./ren' (\d+) 0o\d+ \d", "nlink"),
    # Clusters beyond the size go when the file is closed; the kernel's when it is forgotten.
    (r"b'\./size/big' 50000 0o\d+ 1 \d+ \d+", "blocks"),
    # The kernel says ok to what it cannot do.
    (r"truncate 4G", "quiet"),
)
HASHED = re.compile(rb"^(.{0,2}?)[0-9A-F]{4}~[1-8]", re.DOTALL)


def prepare(image: Path, geometry: str) -> None:
    size, words = GEOMETRIES[geometry]
    with image.open("wb") as file:
        file.truncate(size)
    assert tool("mkfs.fat", *words.split(), "-i", "12345678", image).returncode == 0


def entries(image: Path, fstype: str = "vfat") -> list[tuple[object, ...]]:
    """Every directory entry, as it is on the disk but for times and the kernel's random tails."""
    options = BASE if fstype == "vfat" else ""
    tree = mounted(Memory(bytearray(image.read_bytes())), options, fstype, read_only=True)
    return list(_walk(tree.volume, tree.root(), b""))


def _walk(volume: Volume, directory: Inode, path: bytes) -> list[tuple[object, ...]]:
    out: list[tuple[object, ...]] = []
    for inode in load(volume, directory).inodes.values():
        at = path + b"/" + inode.name
        short = HASHED.sub(rb"\1HASH", inode.short)
        name = re.sub(HASHED, rb"\1HASH", inode.name)
        place = inode.first, inode.slot, inode.size, volume.chain(inode).total
        out.append((path + b"/" + name, short, inode.attr, inode.lcase, *place))
        if inode.is_dir:
            out += _walk(volume, inode, at)
    return out


def unexpected(kernel: str, ours: str) -> list[str]:
    """The lines that differ without being known."""
    lines = difflib.unified_diff(kernel.splitlines(), ours.splitlines(), "kernel", "ours", n=0)
    return [
        line
        for line in lines
        if line[:2] not in ("--", "++", "@@")
        and not any(re.match(pattern, line[1:]) for pattern, _ in KNOWN)
    ]


def ours(in_volume: InVolume, workdir: Path, geometry: str, options: str) -> str:
    prepare(workdir / "image", geometry)
    os.chmod(workdir / "image", 0o666)
    return str(in_volume(" ".join([*COMMAND, "."]), options=options).stdout)


@pytest.mark.parametrize("name", RECORDED)
def test_as_was_recorded(in_volume: InVolume, workdir: Path, name: str) -> None:
    recorded = (GOLDEN / f"{name}.txt").read_text()
    fstype, geometry, options = RECORDED[name]
    options = f"type=msdos,{options}" if fstype == "msdos" else options
    assert unexpected(recorded, ours(in_volume, workdir, geometry, options)) == []


@pytest.mark.may_skip(reason="no package user-mode-linux")
@pytest.mark.parametrize(("geometry", "options"), ALL if "LOOPFS_ALL" in os.environ else DAILY)
def test_as_a_kernel(in_volume: InVolume, workdir: Path, geometry: str, options: str) -> None:
    need(not (why := uml.missing()), why)
    options = f"{BASE},{options}" if options else BASE
    image = workdir / "kernel"
    prepare(image, geometry)
    kernel = uml.run(image, options, list(COMMAND), workdir)
    assert unexpected(kernel, ours(in_volume, workdir, geometry, options)) == []
    assert entries(workdir / "image") == entries(image)


@pytest.mark.may_skip(reason="no package user-mode-linux")
@pytest.mark.parametrize(
    ("geometry", "options"), ALL_OF_MSDOS if "LOOPFS_ALL" in os.environ else DAILY_OF_MSDOS
)
def test_msdos_as_a_kernel(in_volume: InVolume, workdir: Path, geometry: str, options: str) -> None:
    need(not (why := uml.missing()), why)
    image = workdir / "kernel"
    prepare(image, geometry)
    kernel = uml.run(image, options or "rw", list(COMMAND), workdir, "msdos")
    printed = ours(in_volume, workdir, geometry, ",".join(filter(None, ["type=msdos", options])))
    assert unexpected(kernel, printed) == []
    assert entries(workdir / "image", "msdos") == entries(image, "msdos")


def write() -> None:
    """The golden files."""
    GOLDEN.mkdir(exist_ok=True)
    for name, (fstype, geometry, options) in RECORDED.items():
        with tempfile.TemporaryDirectory() as directory:
            image = Path(directory, "image")
            prepare(image, geometry)
            printed = uml.run(image, options, list(COMMAND), Path(directory), fstype)
        (GOLDEN / f"{name}.txt").write_text(printed)


if __name__ == "__main__":
    write()
