"""Each filesystem with each of its engines: data that was written is read back."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

# All that a filesystem tells of its files; a directory's size is every driver's own.
LOOK = r"""
cd mnt
find . -mindepth 1 ! -name lost+found ! -type d -printf '%P %y %m %U %G %s %n %l %T@\n' | sort
find . -mindepth 1 ! -name lost+found -type d -printf '%P %y %m %U %G %T@\n' | sort
find . -type f -print0 | sort -z | xargs -0 md5sum
cd ..
"""

MAKE = {
    "ext4": "mkfs.ext4 -q -d tree disk.img 64M",
    "btrfs": "truncate -s 128M disk.img; mkfs.btrfs -q -r tree disk.img",
    "squashfs": "mksquashfs tree disk.img -quiet -no-progress",
}
ENGINES = [
    ("ext4", "ext4"),
    ("ext4", "fuse2fs"),
    ("btrfs", "embedded"),
    ("squashfs", "squashfuse"),
    ("squashfs", "embedded"),
]


@pytest.fixture
def tree(workdir: Path, user: User) -> Path:
    """A directory of the user with files of every kind, the same at every call."""
    place = workdir / "tree"
    for name in ("deep/er/still", "many", "empty directory"):
        (place / name).mkdir(parents=True)
    (place / "hello").write_text("hello\n")
    (place / "empty").touch()
    (place / "big").write_bytes(random.Random(7).randbytes(3_000_001))
    (place / "zeroes").write_bytes(bytes(1 << 20))
    (place / "deep/er/still/file").write_text("far down\n")
    (place / "a näme with ünicode").write_text("ü\n")
    for n in range(300):
        (place / f"many/file number {n}").write_text(f"{n}\n")
    for path in (place, *place.rglob("*")):
        os.chown(path, user.uid, user.gid)
    return place


@pytest.fixture
def special(tree: Path, user: User) -> Path:
    """With what only filesystems of Unix have."""
    os.symlink("deep/er", tree / "short link")
    os.symlink("x" * 200, tree / "long link")
    os.link(tree / "hello", tree / "again")
    (tree / "hello").chmod(0o4750)
    os.mkfifo(tree / "fifo")
    for name in ("short link", "long link", "fifo"):
        os.chown(tree / name, user.uid, user.gid, follow_symlinks=False)
    return tree


@pytest.mark.may_skip(reason="whether the kernel reads the filesystem as well")
@pytest.mark.usefixtures("kernel_loops")
@pytest.mark.parametrize(("fstype", "engine"), ENGINES)
def test_it_is_read_as_by_the_kernel(
    loopfs_run: Run,
    run_as_user: Run,
    root: User,
    workdir: Path,
    special: Path,
    fstype: str,
    engine: str,
) -> None:
    need(fstype in kernels_filesystems(), f"this kernel has no {fstype}")
    made = run_as_user(f"mkdir mnt; {MAKE[fstype]}", cwd=workdir)
    assert made.returncode == 0, made.stderr
    mount = f"set -e; mount -t {fstype} -o loop,ro disk.img mnt; {LOOK} umount mnt"
    kernels = root.run(["unshare", "-m", "sh", "-c", mount], cwd=workdir)
    ours = loopfs_run(mount, f"--engine={fstype}={engine}")
    assert (ours.returncode, ours.stderr) == (kernels.returncode, kernels.stderr) == (0, "")
    assert ours.stdout.splitlines() == kernels.stdout.splitlines()
    assert len(ours.stdout.splitlines()) > 600


@pytest.mark.may_skip(reason="whether the kernel makes and reads xfs")
@pytest.mark.usefixtures("kernel_loops")
def test_xfs_is_read_as_by_the_kernel(
    loopfs_run: Run, root: User, workdir: Path, special: Path
) -> None:
    need("xfs" in kernels_filesystems(), "this kernel has no xfs")
    make = """
        set -e; truncate -s 320M disk.img; mkfs.xfs -q disk.img; mkdir mnt
        mount -o loop disk.img mnt; cp -a tree/. mnt; mknod mnt/null c 1 3; umount mnt
        mount -o loop,ro disk.img mnt
    """
    kernels = root.run(["unshare", "-m", "sh", "-c", f"{make} {LOOK} umount mnt"], cwd=workdir)
    chosen = "--engine=xfs=embedded"
    os.chmod(workdir / "disk.img", 0o644)
    ours = loopfs_run(f"set -e; mount -o loop,ro disk.img mnt; {LOOK} umount mnt", chosen)
    assert (ours.returncode, ours.stderr) == (kernels.returncode, kernels.stderr) == (0, "")
    assert len(ours.stdout.splitlines()) == len(kernels.stdout.splitlines()) > 600
    names = {line.split()[0] for line in ours.stdout.splitlines()}
    assert names == {line.split()[0] for line in kernels.stdout.splitlines()}


def test_btrfs_subvolumes(loopfs_run: Run, run_as_user: Run, workdir: Path) -> None:
    run_as_user("truncate -s 128M disk.img; mkfs.btrfs -q disk.img", cwd=workdir)
    result = loopfs_run(
        "mkdir mnt; mount -o loop,ro,subvolid=5 disk.img mnt && ls mnt | wc -l && umount mnt;"
        "mount -o loop,ro,subvol=none disk.img mnt; echo $?",
        "--engine=btrfs=embedded",
    )
    assert result.stdout == "0\n32\n"
    assert "cannot mount btrfs: embedded: there is no subvolume 'none'\n" in result.stderr


@pytest.fixture
def inside_with(loopfs_run: Run) -> Lines:
    """As ``inside``, with options of ``loopfs run``."""

    def run(script: str, *options: str) -> list[str]:
        prelude = 'try() { "$@" 2>&1 || echo "status $?"; }; set -e\n'
        result = loopfs_run(prelude + script, *options, timeout=60)
        seen = (result.returncode, result.stderr)
        assert seen == (0, ""), f"status and stderr: {seen}\n{result.stdout}"
        return result.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    ("fstype", "make", "check"),
    [
        ("ntfs", "mkntfs -q -F disk.img 2>/dev/null >&2", "ntfsfix -n disk.img"),
        ("exfat", "mkfs.exfat disk.img", "fsck.exfat -n disk.img"),
    ],
)
def test_it_is_written(
    inside_with: Lines, tree: Path, workdir: Path, fstype: str, make: str, check: str
) -> None:
    lines = inside_with(f"""
        truncate -s 64M disk.img; {make} >/dev/null; mkdir mnt
        mount -i -t {fstype} -o loop disk.img mnt; cp -r tree/. mnt
        rm -r mnt/many; mv mnt/deep/er mnt/moved; echo more >>mnt/hello; cp -r tree/many mnt
        truncate -s 1000 mnt/zeroes; umount mnt; losetup -a
        mount -i -t {fstype} -o loop,ro disk.img mnt
        diff -r tree/many mnt/many; cmp tree/big mnt/big; cat mnt/moved/still/file mnt/hello
        wc -c <mnt/zeroes; try touch mnt/new; umount mnt; losetup -a; {check} >log; echo $?
    """)
    refused = "touch: cannot touch 'mnt/new': Read-only file system"
    assert lines == ["far down", "hello", "more", "1000", refused, "status 1", "0"]


def test_what_ntfs_3g_has_written_is_read_by_the_embedded_engine(
    inside_with: Lines, tree: Path
) -> None:
    inside_with("""
        truncate -s 64M disk.img; mkntfs -q -F disk.img 2>/dev/null >&2; mkdir mnt
        mount -i -t ntfs -o loop disk.img mnt; cp -r tree/. mnt; umount mnt
    """)
    script = "mount -i -t ntfs -o loop,ro,umask=027 disk.img mnt; diff -r tree mnt; stat -c %a mnt"
    assert inside_with(script, "--engine=ntfs=embedded") == ["750"]


def test_iso9660(inside_with: Lines, tree: Path) -> None:
    """Asked to write, it says what makes mount(8) mount it for reading. Nothing is installed."""
    lines = inside_with("""
        genisoimage -quiet -r -J -o disk.img tree 2>/dev/null; mkdir mnt
        try mount -o loop disk.img mnt; diff -r tree mnt; findmnt -n -o FSTYPE,OPTIONS mnt
        stat -f -c '%T %s' mnt; ls mnt/many | wc -l; try touch mnt/new
        try mount -o remount,rw mnt; mount -o remount,noatime mnt; umount mnt; losetup -a
        mount -o loop,ro,norock,nojoliet,mode=0400,uid=7 disk.img mnt; stat -c '%a %u' mnt/hello
        ls mnt/HELLO 2>&1 | tail -1; umount mnt
        for words in map=x session=99 block=1000; do
            try mount -o loop,ro,$words disk.img mnt
        done; losetup -a
    """)
    assert lines[0].endswith("WARNING: source write-protected, mounted read-only.")
    kind, options = lines[1].split()
    assert kind == "fuse.iso9660"
    assert options.split(",")[0] == "ro"
    assert lines[2] == "isofs 2048"
    assert lines[4] == "touch: cannot touch 'mnt/new': Read-only file system"
    assert "cannot remount" in lines[6]
    assert lines[9] == "400 7"
    assert [line for line in lines if line == "status 32"] == ["status 32"] * 4


def test_an_image_that_is_udf_and_iso9660(inside_with: Lines, tree: Path) -> None:
    lines = inside_with("""
        genisoimage -quiet -udf -R -o disk.img tree 2>/dev/null; mkdir mnt
        mount -o loop,ro disk.img mnt; diff -r tree mnt; findmnt -n -o FSTYPE mnt
        stat -f -c '%T %s' mnt; try mount -o remount,rw mnt; umount mnt; losetup -a
        under=$(losetup -f --show disk.img); over=$(losetup -f --show $under) # not lent
        mount -t iso9660 -o ro $over mnt; stat -f -c %T mnt; diff -r tree mnt; umount mnt
        losetup -d $over $under
        try mount -t udf -o loop,ro,bs=512 disk.img mnt; losetup -a
    """)
    assert lines[:2] == ["fuse.udf", "udf 2048"]
    assert "cannot remount" in lines[2]
    assert [line for line in lines if line in ("isofs", "status 32")] == [
        *("status 32", "isofs", "status 32"),
    ]


# --- the policy ------------------------------------------------------------------


def test_without_a_writing_engine_btrfs_is_mounted_for_reading(inside_with: Lines) -> None:
    lines = inside_with("""
        mkdir tree mnt; touch tree/file; truncate -s 128M disk.img
        mkfs.btrfs -q -r tree disk.img >log
        try mount -o loop disk.img mnt; ls mnt; try touch mnt/new; umount mnt
    """)
    assert lines[0].endswith("WARNING: source write-protected, mounted read-only.")
    refused = "touch: cannot touch 'mnt/new': Read-only file system"
    assert lines[1:] == ["file", refused, "status 1"]


def test_a_denied_type(loopfs_run: Run, image: Path, user: User, workdir: Path) -> None:
    (workdir / "config.toml").write_text('[engines]\next4 = "deny"\n')
    script = "mkdir -p mnt; mount -o loop disk.img mnt; echo $?; losetup -a"
    result = loopfs_run(script, "--config", "config.toml")
    assert result.stdout == "32\n"
    assert "loopfs: cannot mount ext4: the policy denies it\n" in result.stderr
    assert "permission denied" in result.stderr
    again = loopfs_run(script, "--config", "config.toml", "--engine", "ext4=fuse2fs")
    assert (again.stdout.splitlines()[0], again.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--engine", "ext4"), "--engine needs TYPE=ENGINE"),
        (("--engine", "ext4=nothing"), "there is no engine 'nothing'"),
        (("--config", "missing.toml"), "missing.toml cannot be read: No such file or directory"),
        (("--engine",), "--engine needs a value"),
    ],
)
def test_choices_that_mean_nothing(
    user: User, loopfs_bin: list[str], options: tuple[str, ...], sentence: str
) -> None:
    result = user.run([*loopfs_bin, "run", *options])
    assert result.returncode == 2
    assert sentence in result.stderr


def kernels_filesystems() -> set[str]:
    for name in ("btrfs", "squashfs", "xfs"):
        subprocess.run(["modprobe", "-q", name], check=False)
    return {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
