"""A real kernel without privilege: Debian's package user-mode-linux (Linux 6.1)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.support.patience import scaled

PROGRAM = "linux.uml"
TIMEOUT = scaled(100)  # seconds
MODULES = Path("/usr/lib/uml/modules")
_XSTATE = Path(__file__).with_name("xstate.c")

# The root directory is that of the host, by hostfs; changes affect the host.
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
{insmod}
{script}
halt -f
"""


def missing(module: str) -> str:
    """Return why it cannot be run here with a module, as "fat/vfat"; empty if it can."""
    if not shutil.which(PROGRAM) or not list(MODULES.glob(f"*/kernel/fs/{module}.ko")):
        return "needs the package user-mode-linux"
    if not shutil.which("gcc"):
        return "needs gcc"
    return ""


@cache
def modules() -> Path:
    """Return the directory of the kernel's filesystem modules."""
    (found,) = MODULES.glob("*/kernel/fs")
    return found


def boot(script: str, wanted: Iterable[str], directory: Path, arguments: Iterable[str] = ()) -> str:
    """Run a shell script as process 1 of the kernel.

    Args:
        wanted: modules, relative to :func:`modules`, without ".ko", in the order of loading.
        directory: for temporary files.
        arguments: of the kernel, as ubd0=IMAGE.
    Returns:
        the output of the console.
    """
    helper = directory / "xstate.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", helper, _XSTATE], check=True)
    insmod = "\n".join(f"insmod {modules() / name}.ko" for name in wanted)
    init = directory / "init"
    init.write_text(_INIT.format(insmod=insmod, script=script))
    init.chmod(0o755)
    words = [*arguments, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
    words += ["mem=256M", f"init={init}", "con=null", "con0=fd:0,fd:1"]
    process = subprocess.Popen(
        [PROGRAM, *words],
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
    return console.decode(errors="replace")
