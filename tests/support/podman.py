"""Rootless podman with a storage of its own, and root directories of containers."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.skip import need
from tests.support.user import Result, User

JOB = """set -e
cd /work; truncate -s 8M disk.img; mkdir mnt
d=$(losetup -f --show disk.img); mkfs.ext4 -q $d; losetup -d $d
mount -o loop disk.img mnt; echo text >mnt/file; umount mnt
mount -o loop,ro disk.img mnt; cat mnt/file; umount mnt
test -z "$(losetup -a)"
"""
DIRECTORIES = ("usr", "etc", "tmp", "proc", "sys", "dev", "run", "work")
LINKS = ("bin", "sbin", "lib", "lib64")
HOMES = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "TMPDIR": "tmp"}
# The default is vfs where podman is told nothing, and copies an image for each container.
DRIVER = {"STORAGE_DRIVER": "overlay"}
HYBRID = "/sys/fs/cgroup/unified"

Podman = Callable[..., Result]


def make_root(directory: Path) -> None:
    """Make a root directory of a Debian whose /usr is that of the machine."""
    for name in DIRECTORIES:
        (directory / name).mkdir(parents=True)
    for name in ("work", "tmp"):
        (directory / name).chmod(0o1777)
    for name in LINKS:
        (directory / name).symlink_to(f"usr/{name}")
    (directory / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")


def tarball(directory: Path) -> Path:
    """Make a tarball of a directory, beside it."""
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(directory, ".")
    return path


@contextmanager
def storage(user: User) -> Iterator[tuple[Podman, Path]]:
    """Yield a function that calls podman as the user, and a directory of the user; remove the
    storage with the context."""
    place = Path(tempfile.mkdtemp(prefix="loopfs-podman-", dir="/var/tmp"))
    locks = Path(f"/dev/shm/libpod_rootless_lock_{user.uid}")  # podman does not remove it
    were_there = locks.exists()
    for path in (place, *(place / name for name in HOMES.values())):
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, user.uid, user.gid)

    environment = {name: str(place / directory) for name, directory in HOMES.items()}
    environment |= DRIVER

    def call(
        *words: str | Path,
        before: tuple[str, ...] = (),
        runtime: str = "runc",
        timeout: float = 60,
    ) -> Result:
        command = [*before, "podman", "--log-level=error", f"--runtime={runtime}", *words]
        result = user.run(command, cwd=place, env=environment, timeout=timeout)
        if before:  # the directory for what is running does not belong to its root there
            for name in ("containers-user", "podman-run"):
                shutil.rmtree(f"/tmp/{name}-{user.uid}", ignore_errors=True)
        return result

    try:
        _begin_without_hybrid_cgroups(user, environment)
        yield call, place
    finally:
        call("unshare", "rm", "-rf", place / "home", place / "tmp")
        call("system", "migrate")  # ends the process that keeps its namespaces
        shutil.rmtree(place)
        if not were_there:
            locks.unlink(missing_ok=True)


@contextmanager
def with_base(user: User) -> Iterator[tuple[Podman, Path]]:
    """As :func:`storage`, with an image "base" in it; skip the test if podman does not work."""
    need(shutil.which("podman") and shutil.which("runc"), "podman and runc are not installed")
    with storage(user) as (call, place):
        make_root(place / "root")
        made = call("import", tarball(place / "root"), "base")
        need(made.returncode == 0, f"podman does not work here: {made.stderr}")
        made = call("run", "--rm", "--network=none", "-v", "/usr:/usr:ro", "base", "true")
        need(made.returncode == 0, f"podman cannot run a container here: {made.stderr}")
        yield call, place


def _begin_without_hybrid_cgroups(user: User, environment: dict[str, str]) -> None:
    """Make podman's common namespaces in a mount namespace without the cgroup2 beside hierarchies
    of version 1: crun refuses such a machine."""
    if os.geteuid() or not os.path.ismount(HYBRID):
        return
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    script = f'umount {HYBRID}; exec "$@"'
    words = ["unshare", "-m", "sh", "-ec", script, "sh", *drop, "podman", "unshare", "true"]
    User("root", 0, 0, "/root").run(words, env=user.environment() | environment)
