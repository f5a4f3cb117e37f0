"""One image in two sandboxes, or bound to two devices."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.support.patience import scaled
from tests.support.sandbox import content
from tests.support.skip import need
from tests.support.supervisor import next_line
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

PATIENCE = scaled(20)  # seconds
REFUSED = 32  # the exit status of mount(8)

Mount = Callable[..., Result]
Begin = Callable[..., "subprocess.Popen[str]"]


def holder(options: str = "loop", image: str = "disk.img") -> str:
    """A script that mounts an image, unmounts it when a line comes, and waits for another."""
    return f"""
        set -e; mkdir -p mnt1; mount -o {options} {image} mnt1; echo ready; read line
        echo text >mnt1/file 2>/dev/null || :; umount mnt1; echo unmounted; read line
    """


@pytest.fixture
def mount(loopfs_run: Run) -> Mount:
    """Mount an image in a sandbox of its own."""

    def run(options: str = "loop", image: str = "disk.img", *of_run: str) -> Result:
        return loopfs_run(f"mkdir -p mnt2; mount -o {options} {image} mnt2", *of_run)

    return run


def assert_refused(result: Result, image: Path, how: str = "it is mounted") -> None:
    assert result.returncode == REFUSED, result.stderr
    sentence = f"loopfs: cannot mount ext4: {image}: {how} by another sandbox"
    assert result.stderr.startswith(sentence), result.stderr
    assert "already mounted" in result.stderr, "EBUSY"


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("loop", "loop", "it is mounted"),
        ("loop", "loop,ro", "it is mounted for writing"),
        ("loop,ro", "loop", "it is mounted"),
        ("loop,ro", "loop,ro", None),
    ],
    ids=["two writers", "writer, reader", "reader, writer", "two readers"],
)
def test_two_sandboxes(
    image: Path, started: Start, mount: Mount, first: str, second: str, how: str | None
) -> None:
    process = started(holder(first))
    result = mount(second)
    if how is None:
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert_refused(result, image, how)
    assert next_line(process) == "unmounted\n"
    result = mount(second)
    assert (result.returncode, result.stderr) == (0, ""), "the first still runs, and has let go"


def test_the_image_is_whole(image: Path, started: Start, mount: Mount, run_as_user: Run) -> None:
    process = started(holder())
    assert_refused(mount(), image)
    assert next_line(process) == "unmounted\n"
    assert content(image, "file", run_as_user) == "text\n"


def test_after_a_kill(image: Path, started: Start, mount: Mount) -> None:
    process = started(holder())
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    result = mount()
    assert (result.returncode, result.stderr) == (0, "")


def test_partitions_of_one_image(
    workdir: Path, run_as_user: Run, started: Start, mount: Mount
) -> None:
    first, second = (f"loop,offset={n << 20},sizelimit={8 << 20}" for n in (1, 9))
    run_as_user("""
        truncate -s 20M disk.img; printf 'label: dos\\n1M,8M\\n9M,8M\\n' | sfdisk -q disk.img
        for n in 1 9; do mkfs.ext4 -q -F -E offset=$((n << 20)) disk.img 8M; done
    """, cwd=workdir).check_returncode()  # fmt: skip
    process = started("""
        d=$(losetup -P -f --show disk.img); mkdir mnt1; mount ${d}p1 mnt1; echo ready; read line
        umount mnt1; losetup -d $d; echo unmounted
    """)
    assert_refused(mount(first), workdir / "disk.img")
    result = mount(second)
    assert (result.returncode, result.stderr) == (0, "")
    assert next_line(process) == "unmounted\n"
    assert mount(first).returncode == 0


def test_two_devices_of_one_sandbox(image: Path, loopfs_run: Run) -> None:
    """The kernel lets both be mounted, and the image is destroyed."""
    result = loopfs_run("""
        set -e; a=$(losetup -f --show disk.img); b=$(losetup -f --show disk.img)
        c=$(losetup -f --show $a); mkdir mnt1 mnt2
        mount $a mnt1; mount $a mnt2; umount mnt2
        for d in $b $c; do mount $d mnt2 2>/dev/null || echo $?; done
        umount mnt1; mount $c mnt2; umount mnt2; mount -o ro $a mnt1; mount -o ro $b mnt2
        umount mnt1 mnt2; losetup -D
    """)
    assert (result.returncode, result.stdout) == (0, f"{REFUSED}\n" * 2)
    sentence = f"loopfs: cannot mount ext4: {image}: it is mounted by another sandbox, or from"
    assert [line.startswith(sentence) for line in result.stderr.splitlines()] == [True, True]


def test_fsconfig_is_refused_as_well(image: Path, started: Start, loopfs_run: Run) -> None:
    need(os.path.exists("/usr/bin/python3"), "needs python3")
    started(holder())
    script = """
        import ctypes, os, sys
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(430, b"ext4", 0)
        for key, value, cmd in ((b"source", sys.argv[1].encode(), 1), (None, None, 6)):
            code = libc.syscall(431, fd, cmd, key, value, 0)
        print(code, os.strerror(ctypes.get_errno()))
    """.replace("\n        ", "\n")
    command = 'd=$(losetup -f --show disk.img); python3 -c "$0" $d; losetup -d $d'
    result = loopfs_run(["sh", "-c", command, script])
    assert result.stdout == "-1 Device or resource busy\n"
    assert result.stderr.startswith(f"loopfs: cannot mount ext4: {image}: it is mounted")


# --- others ------------------------------------------------------------------------------


@pytest.fixture
def roots(root: User, loopfs_bin: list[str], workdir: Path) -> Iterator[Begin]:
    """As ``started``, as the machine's root; options of run follow."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *options: str) -> subprocess.Popen[str]:
        words = [*loopfs_bin, "run", *options, "--", "sh", "-c", script]
        processes.append(process := root.start(words, cwd=workdir))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_sandbox_of_another_user(
    image: Path, roots: Begin, mount: Mount, run_as_user: Run
) -> None:
    process = roots(holder())
    assert_refused(mount(), image)
    assert next_line(process) == "unmounted\n"
    assert mount().returncode == 0


@pytest.mark.usefixtures("kernel_loops")
def test_a_mount_by_the_kernel(image: Path, roots: Begin, mount: Mount) -> None:
    process = roots(holder(), "--engine=ext4=kernel")
    assert_refused(mount(), image)
    assert_refused(mount("loop,ro"), image, "it is mounted for writing")
    assert next_line(process) == "unmounted\n"
    assert mount().returncode == 0


@pytest.mark.usefixtures("kernel_loops")
def test_the_kernel_does_not_mount_it(
    image: Path, started: Start, root: User, loopfs_bin: list[str], workdir: Path
) -> None:
    process = started(holder())
    run = [*loopfs_bin, "run", "--engine=ext4=kernel", "--", "sh", "-c"]
    command = [*run, "mkdir -p mnt2; mount -o loop disk.img mnt2"]
    assert_refused(root.run(command, cwd=workdir), image)
    assert next_line(process) == "unmounted\n"
    assert root.run(command, cwd=workdir).returncode == 0


def test_a_program_that_has_locked_all_of_it(image: Path, mount: Mount, user: User) -> None:
    """Without -v nobody is told that there is no lock of ours."""
    locker = """
import fcntl, sys
file = open("disk.img", "r+b"); fcntl.lockf(file, fcntl.LOCK_EX); print("ready", flush=True)
sys.stdin.read()
    """
    process = user.start(["/usr/bin/python3", "-c", locker], cwd=image.parent)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        result = mount()
        assert (result.returncode, result.stderr) == (0, "")
        result = mount("loop", "disk.img", "-v")
        assert result.returncode == 0
        assert f"process {process.pid} has locked all of it" in result.stderr
    finally:
        process.kill()
        process.communicate()
