"""A real kernel's vfat, without privilege: Debian's package user-mode-linux (Linux 6.1)."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.support import uml

_WANTED = ("fat/fat", "fat/vfat", "fat/msdos", "nls/nls_utf8", "nls/nls_ascii", "nls/nls_iso8859-1")
_CODEPAGES = ("437", "850", "852", "866", "932")

_SCRIPT = """
mkdir /mnt/volume
mknod /mnt/device b 98 0
mount -t {fstype} -o {options} /mnt/device /mnt/volume && {command} /mnt/volume >{printed} 2>&1
umount /mnt/volume
dmesg | grep -i fat
"""


def missing() -> str:
    """Why it cannot be run here; empty if it can."""
    return uml.missing("fat/vfat")


def run(
    image: Path, options: str, command: list[str | Path], directory: Path, fstype: str = "vfat"
) -> str:
    """Mount an image, and run a command with the mount point as its last argument.

    Args:
        directory: where to put what is needed for it.
    Returns:
        what it printed.
    Raises:
        RuntimeError: the kernel has not come to its end.
    """
    printed = directory / "printed"
    words = shlex.join(map(str, command))
    script = _SCRIPT.format(fstype=fstype, options=options, command=words, printed=printed)
    wanted = [*_WANTED, *(f"nls/nls_cp{number}" for number in _CODEPAGES)]
    console = uml.boot(script, wanted, directory, [f"ubd0={image}"])
    if not printed.exists():
        raise RuntimeError(console[-2000:])
    return printed.read_text(errors="surrogateescape")
