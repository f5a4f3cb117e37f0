"""A real kernel's vfat, without privilege: Debian's package user-mode-linux (Linux 6.1)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

PROGRAM = "linux.uml"
TIMEOUT = 100  # seconds
MODULES = Path("/usr/lib/uml/modules")
_XSTATE = Path(__file__).with_name("xstate.c")
_WANTED = ("fat/fat", "fat/vfat", "fat/msdos", "nls/nls_utf8", "nls/nls_ascii", "nls/nls_iso8859-1")
_CODEPAGES = ("437", "850", "852", "866", "932")

# The root is the host's, by hostfs; what is changed there is changed here.
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/volume
mknod /mnt/device b 98 0
{insmod}
mount -t {fstype} -o {options} /mnt/device /mnt/volume && {command} /mnt/volume >{printed} 2>&1
umount /mnt/volume
dmesg | grep -i fat
halt -f
"""


def missing() -> str:
    """Why it cannot be run here; empty if it can."""
    if not shutil.which(PROGRAM) or not list(MODULES.glob("*/kernel/fs/fat/vfat.ko")):
        return "needs the package user-mode-linux"
    if not shutil.which("gcc"):
        return "needs gcc"
    return ""


@cache
def modules() -> Path:
    """Where the kernel's modules of filesystems are."""
    (found,) = MODULES.glob("*/kernel/fs")
    return found


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
    helper = directory / "xstate.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", helper, _XSTATE], check=True)
    wanted = [*_WANTED, *(f"nls/nls_cp{number}" for number in _CODEPAGES)]
    insmod = "\n".join(f"insmod {modules()}/{name}.ko" for name in wanted)
    printed, init = directory / "printed", directory / "init"
    words = shlex.join(map(str, command))
    mount = {"fstype": fstype, "options": options, "command": words}
    init.write_text(_INIT.format(insmod=insmod, printed=printed, **mount))
    init.chmod(0o755)
    arguments = [f"ubd0={image}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
    arguments += ["mem=256M", f"init={init}", "con=null", "con0=fd:0,fd:1"]
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"LD_PRELOAD": str(helper)},
        start_new_session=True,
    )
    try:
        console, _ = process.communicate(timeout=TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if not printed.exists():
        raise RuntimeError(console.decode(errors="replace")[-2000:])
    return printed.read_text(errors="surrogateescape")
