"""A volume that is mounted by FUSE, in namespaces of the ordinary user."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fat.images import tool
from tests.support.skip import need
from tests.support.user import CHECKOUT, Result, User

# Serve $1 with the options $2 at the directory m, run the script $3 in it, unmount, and wait.
_MOUNTED = """
set -eu
python3 -m tests.fat.serve "$1" m "$2" & server=$!
until mountpoint -q m; do kill -0 $server; sleep 0.01; done
status=0; (cd m; eval "$3") || status=$?
umount m
wait $server
exit $status
"""
InVolume = Callable[..., Result]


@pytest.fixture
def in_volume(user: User, workdir: Path) -> InVolume:
    """Run a script as the ordinary user with an image mounted; its working directory is the mount.

    The image is "image" in ``workdir``, of the size and the arguments of mkfs.fat that are given;
    if none are, the one that is there. A script that fails fails the test, but with ``check``
    False.
    """
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "needs /dev/fuse")
    reachable = user.run(["test", "-r", CHECKOUT / "tests"]).returncode == 0
    need(reachable, f"{user.name} cannot enter the checkout")
    (workdir / "m").mkdir()
    os.chown(workdir / "m", user.uid, user.gid)

    def run(
        script: str, size: int = 0, words: str = "", *, options: str = "", check: bool = True
    ) -> Result:
        image = workdir / "image"
        if size:
            with image.open("wb") as file:
                file.truncate(size)
            done = tool("mkfs.fat", *words.split(), "-i", "12345678", image)
            assert done.returncode == 0, done.stderr
            os.chown(image, user.uid, user.gid)
        environment = f"PYTHONPATH={CHECKOUT / 'src'}:{CHECKOUT}", "PYTHONDONTWRITEBYTECODE=1"
        inner = ["env", *environment, "LC_ALL=C.UTF-8", "sh", "-c", _MOUNTED, "sh"]
        words_ = [*inner, str(image), options, script]
        command = f"exec unshare -Urm --propagation private {shlex.join(words_)}"
        done = user.run(command, cwd=workdir, timeout=60)
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    return run
