"""The main use in many environments: limits, variables, directories, containers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.skip import need
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

JOB = """
set -e; test "$1" = . || cd "$1"; truncate -s 16M disk.img; mkdir mnt data; echo text >data/file
d=$(losetup -f --show disk.img) && mkfs.ext4 -q $d && losetup -d $d &&
    mount -o loop disk.img mnt && cp -r data mnt && umount mnt
losetup -a
"""

# A container whose /proc is partly covered: the kernel lets nobody mount another one there.
COVERED = """
exec unshare -Urmpf sh -ec '
    mount -t proc proc /proc; mount -t tmpfs none /proc/tty; exec "$@"' sh "$@"
"""

Job = Callable[..., None]


@pytest.fixture
def job_in(run_as_user: Run, loopfs_bin: list[str], workdir: Path) -> Job:
    """Do the main job in surroundings: a script that is to execute "$@"."""

    def do(surroundings: str, run: Run = run_as_user) -> None:
        command = ["env", "-C", workdir, "sh", "-c", JOB, "sh", "."]
        words = ["sh", "-c", surroundings, "sh", *loopfs_bin, "run", "--", *command]
        check(run(words, cwd=workdir), workdir, run_as_user)

    return do


def check(result: Result, workdir: Path, run_as_user: Run) -> None:
    """The job has succeeded and said nothing, and its image is as it should be."""
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    looked = run_as_user(["e2fsck", "-f", "-n", workdir / "disk.img"])
    assert looked.returncode == 0, looked.stdout
    read = run_as_user(["debugfs", "-R", "cat data/file", workdir / "disk.img"])
    assert read.stdout == "text\n"


@pytest.mark.parametrize(
    "surroundings",
    [
        'umask 077; exec "$@"',
        'unset HOME; exec "$@"',
        'unset PATH; exec "$@"',
        'exec env -i "$@"',
        'ulimit -n 256; exec "$@"',
        'mkdir gone; cd gone; rmdir ../gone; exec "$@"',
        COVERED,
        """exec unshare -Urm sh -ec '
            mount --rbind / /mnt; cd /mnt; pivot_root . .; umount -l .; exec "$@"' sh "$@" """,
        """exec unshare -rm sh -ec '
            mount -t tmpfs -o mode=0755 none /run; exec "$@"' sh "$@" """,
    ],
)
def test_the_job_in(job_in: Job, surroundings: str) -> None:
    job_in(surroundings)


@pytest.mark.may_skip("podman is not among the packages that the tests install")
def test_the_job_in_podman_unshare(
    job_in: Job, run_as_user: Run, user: User, workdir: Path
) -> None:
    need(shutil.which("podman"), "podman is not installed")
    locks = Path(f"/dev/shm/libpod_rootless_lock_{user.uid}")  # podman leaves it to the next
    were_there = locks.exists()
    own = f"export HOME={workdir}/home XDG_RUNTIME_DIR={workdir}/run TMPDIR={workdir}/run; "
    prepare = 'mkdir -m 0700 "$HOME" "$TMPDIR"; podman unshare true 2>/dev/null; '
    try:
        job_in(own + prepare + 'exec podman --log-level=error unshare "$@"')
    finally:
        # A process keeps its namespaces, and is not ours.
        run_as_user(own + "podman --log-level=error system migrate")
        if not were_there:
            locks.unlink()


# --- files ---------------------------------------------------------------------


def test_without_a_mount_table_on_the_host(
    root: User, user: User, loopfs_bin: list[str], workdir: Path, run_as_user: Run
) -> None:
    """/run/mount is not there, and only the host's root can make it."""
    script = """
        mount -t tmpfs -o mode=0755 none /run; echo text >/run/file; exec "$@"
    """
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    command = [*loopfs_bin, "run", "--", "sh", "-c", JOB + "cmp -s /run/file data/file", "sh"]
    words = ["unshare", "-m", "sh", "-ec", script, "sh", *drop, *command, str(workdir)]
    check(root.run(words, cwd=workdir), workdir, run_as_user)


@pytest.mark.parametrize("option", ["hidepid=2", "subset=pid"])
def test_a_proc_that_shows_less(
    root: User, user: User, loopfs_bin: list[str], workdir: Path, run_as_user: Run, option: str
) -> None:
    """Processes that one may not trace, of which jobs are some, or files that are no process's."""
    script = f'mount -t proc -o {option} proc /proc; exec "$@"'
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    command = [*loopfs_bin, "run", "--", "sh", "-c", JOB, "sh", str(workdir)]
    words = ["unshare", "-m", "sh", "-ec", script, "sh", *drop, *command]
    check(root.run(words, cwd=workdir), workdir, run_as_user)


@pytest.mark.parametrize("mode", [0o711, 0o700])
def test_a_directory_that_the_user_cannot_read(
    loopfs_run: Run, run_as_user: Run, root: User, workdir: Path, mode: int
) -> None:
    """Entered before the user became who it is."""
    locked = workdir / "locked"
    locked.mkdir()
    locked.chmod(mode)
    command = ["sh", "-c", f'test "$PWD" = {locked} || exit 9; {JOB}', "sh", workdir]
    check(loopfs_run(command, cwd=locked), workdir, run_as_user)


def test_a_directory_that_the_user_cannot_reach(
    loopfs_run: Run, run_as_user: Run, root: User, user: User, workdir: Path
) -> None:
    """All names are relative, as absolute ones lead nowhere; what is still mounted is written."""
    place = workdir / "locked/place"
    place.mkdir(parents=True)
    os.chown(place, user.uid, user.gid)
    place.parent.chmod(0o700)
    script = JOB + "mount -o loop disk.img mnt; echo more >mnt/more"
    result = loopfs_run(["sh", "-c", script, "sh", "."], cwd=place)
    place.parent.chmod(0o755)
    check(result, place, run_as_user)
    assert run_as_user(["debugfs", "-R", "cat more", place / "disk.img"]).stdout == "more\n"


# --- descriptors ---------------------------------------------------------------

BIND = """
python3 -c 'import fcntl, os
file = os.open("one.img", os.O_RDWR | os.O_CREAT)
os.truncate(file, 1 << 20)
control = os.open("/dev/loop-control", os.O_RDWR)
bound = 0
try:
    for bound in range(300):
        device = os.open(f"/dev/loop{fcntl.ioctl(control, 0x4C82)}", os.O_RDWR)
        fcntl.ioctl(device, 0x4C00, file)
        os.close(device)
    bound = 300
except OSError as problem:
    print(problem.strerror)
with os.scandir("/dev/loopfs") as entries:
    paths = [entry.path for entry in entries if entry.name != "loop-control"]
size = 0
for path in paths:
    with open(path, "rb", buffering=0) as device:
        size += device.seek(0, 2)
print(bound, size >> 20)'
"""


def test_more_devices_than_a_process_may_have_open(
    run_as_user: Run, loopfs_bin: list[str], workdir: Path
) -> None:
    """The command keeps its limit; the supervisor raises its own as far as it may."""
    limited = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *loopfs_bin, "run", "--"]
    script = BIND + "ulimit -n"
    result = run_as_user([*limited, "sh", "-ec", script], cwd=workdir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["300", "300", "256"]


def test_images_are_larger_than_files_may_be(
    run_as_user: Run, loopfs_bin: list[str], workdir: Path
) -> None:
    """RLIMIT_FSIZE is about the files of the command."""
    limited = ["sh", "-c", 'ulimit -Sf 2048; exec "$@"', "sh", *loopfs_bin, "run", "--"]
    script = """
        device=$(losetup -f --show disk.img); mkdir mnt; mount $device mnt
        for n in 1 2 3 4; do head -c 700K /dev/urandom >mnt/$n; done; sync mnt/4; umount mnt
        ulimit -Sf; cat disk.img >copy 2>/dev/null || stat -c %s copy; e2fsck -fn $device >&2
    """
    run_as_user("truncate -s 16M disk.img; mkfs.ext4 -qF disk.img", cwd=workdir)
    result = run_as_user([*limited, "sh", "-ec", script], cwd=workdir)
    assert (result.returncode, result.stdout.split()) == (0, ["2048", str(1 << 20)]), result.stderr


def test_no_more_descriptors_for_devices(
    run_as_user: Run, loopfs_bin: list[str], workdir: Path, first_number: int
) -> None:
    """Binding fails with EMFILE; everything else goes on."""
    limited = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *loopfs_bin, "run", "--"]
    script = f"""{BIND}
        losetup -d /dev/loop{first_number}; losetup -f one.img
        losetup -D; {JOB}
    """
    result = run_as_user([*limited, "sh", "-ec", script, "sh", workdir], cwd=workdir)
    assert (result.returncode, result.stderr) == (0, "")
    said, numbers = result.stdout.splitlines()
    assert said == "Too many open files"
    count, listed = numbers.split()
    assert count == listed
    assert 128 <= int(count) < 256


# --- words ---------------------------------------------------------------------


def test_an_empty_environment(run_as_user: Run, loopfs_bin: list[str]) -> None:
    """It gets a PATH, and what podman wants; Python's own LC_CTYPE does not show."""
    result = run_as_user(["env", "-i", *loopfs_bin, "run", "env"])
    assert (result.returncode, result.stderr) == (0, "")
    known = ("PYTHON", "_CONTAINERS_")  # of the test's Python, and of podman
    variables = [line for line in result.stdout.splitlines() if not line.startswith(known)]
    assert [line.partition("=")[0] for line in variables] == ["PATH"]
    result = run_as_user(["env", "-i", "LC_CTYPE=C.UTF-8", *loopfs_bin, "run", "env"])
    assert "LC_CTYPE=C.UTF-8\n" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["two\nlines", "\udcff\udc80\udcfe", "", " ", "é", "--", "-x"],
        [f"{n:049}" for n in range(20000)],
        ["x" * 131000],
    ],
    ids=["odd", "many", "long"],
)
def test_arguments(loopfs_run: Run, run_as_user: Run, words: Sequence[str]) -> None:
    command = ["sh", "-c", 'echo $#; printf "%s|" "$@" | od -An -c | cksum', "sh", *words]
    ours, plain = loopfs_run(command), run_as_user(command)
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, plain.stdout, plain.stderr)


def test_a_command_with_a_slash(loopfs_run: Run, workdir: Path, user: User) -> None:
    script = workdir / "script"
    script.write_text('#!/bin/sh\necho "$0" "$@"\n')
    script.chmod(0o755)
    for name in ("./script", str(script)):
        assert loopfs_run([name, "a", "b"]).stdout == f"{name} a b\n"


# --- /proc and chroot ------------------------------------------------------------


def test_beneath_a_covered_proc(run_as_user: Run, loopfs_bin: list[str], workdir: Path) -> None:
    """The command's /proc is the caller's: its process ids are other than those it knows."""
    script = """
        test "$(readlink /proc/self)" = "$(sh -c 'echo $PPID')" || echo others
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt two
        d=$(losetup -f --show disk.img)
        mount $d mnt; mount $d two; echo text >two/file; cat mnt/file; umount mnt; umount -l two
        until losetup -d $d 2>/dev/null; do :; done
        unshare -m sh -ec 'mount -o loop disk.img mnt; exec 3>mnt/left; cat mnt/file'
        mount -o loop disk.img mnt; setsid sh -c 'exec 3>mnt/open; echo >ready; exec sleep 1000' &
        until test -e ready; do :; done; echo last >mnt/last
    """
    words = ["sh", "-c", COVERED, "sh", *loopfs_bin, "run", "--", "sh", "-ec", script]
    result = run_as_user(words, cwd=workdir)
    assert (result.returncode, result.stdout, result.stderr) == (0, "others\ntext\ntext\n", "")
    read = run_as_user(["debugfs", "-R", "cat last", workdir / "disk.img"])
    assert read.stdout == "last\n"


@pytest.mark.parametrize("words", [["run", "--", "true"], ["doctor"]])
def test_proc_of_another_pid_namespace(
    run_as_user: Run, loopfs_bin: list[str], words: Sequence[str]
) -> None:
    result = run_as_user(["unshare", "-Urpf", *loopfs_bin, *words])
    said = result.stderr if words[0] == "run" else result.stdout
    assert result.returncode == (125 if words[0] == "run" else 1)
    assert "pid namespace" in said and "--mount-proc" in said
    assert "Traceback" not in result.stderr


def test_in_a_chroot_no_sandbox_can_be_made(
    root: User, user: User, loopfs_bin: list[str], workdir: Path
) -> None:
    """The kernel lets nobody in a chroot make a user namespace."""
    script = f"""
        mkdir root; mount --rbind / root
        exec chroot --userspec={user.uid}:{user.gid} root "$@"
    """
    words = ["unshare", "-m", "sh", "-ec", script, "sh", *loopfs_bin, "run", "--", "true"]
    result = root.run(words, cwd=workdir)
    assert (result.returncode, result.stdout) == (125, "")
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("loopfs: ") and "leave the chroot" in sentence
