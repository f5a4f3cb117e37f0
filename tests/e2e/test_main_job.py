"""The main use of loopfs; it leaves the same filesystem as real root does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Compare, Lines
from tests.support import host
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

# As the issue has it, but for the place.
JOB = """
d=$(losetup -f --show disk.img) && mkfs.ext4 -q $d && losetup -d $d &&
    mount -o loop disk.img mnt && cp -r data mnt && umount mnt
"""

DATA = """
mkdir -p mnt data/deep/empty; seq 100000 >data/numbers; echo text >data/deep/text; : >data/nothing
ln -s ../numbers data/deep/link
"""

# All kinds of files, with what a copy by root must keep of them.
TREE = r"""
mkdir -p mnt tree/deep/er tree/empty; cd tree
seq 100000 >numbers; : >nothing; printf 'no newline' >deep/text
truncate -s 3M sparse; echo middle | dd of=sparse bs=1M seek=1 conv=notrunc status=none
ln numbers deep/hard; ln -s ../numbers deep/soft; ln -s /nowhere dangling
head -c 300000 /dev/zero | tr '\0' x >deep/er/xs
mkfifo fifo; touch 'a name with spaces' "$(printf 'caf\303\251')" .hidden
for n in $(seq 200); do echo $n >deep/er/$n; done
chown 1:2 numbers; chown 65535:65535 nothing; chown -h 1000:100 deep/soft
chmod 0400 deep/text; chmod 4755 numbers; chmod 1777 empty; chmod 2750 deep
python3 -c 'import os
os.setxattr("numbers", "user.kind", b"numbers\0and more")
os.setxattr("empty", "user.long", b"x" * 500)'
touch -h -d '2001-02-03 04:05:06.789 UTC' numbers nothing deep/soft empty
cd ..
"""

COPY = """
truncate -s 64M disk.img; mkfs.ext4 -q -F disk.img; mount -o loop disk.img mnt
cp -a tree mnt; umount mnt
"""

# What a filesystem holds, as text. Times are told of files that are old by intent only.
LISTING = r"""
cd "$1"
find . -mindepth 1 -type d -printf '%P|d|%m|%U|%G|%n\n' -o -mindepth 1 \
    -printf '%P|%y|%m|%U|%G|%n|%l|%s\n' | sort
find . -newermt 2002-01-01 -o -printf '%P %t\n' | sort
find . -type f -exec cksum {} + | sort -k 3
python3 -c 'import os
for base, names, files in sorted(os.walk(".")):
    for path in sorted(os.path.join(base, name) for name in names + files):
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            print(path, key, os.getxattr(path, key, follow_symlinks=False))'
"""

Contents = Callable[[Path], list[str]]


@pytest.fixture
def contents(kernel_loops: None, root: User, workdir: Path) -> Contents:
    """A listing of an image's files as the kernel's own ext4 shows them."""
    place = workdir / "look"
    place.mkdir()

    def look(image: Path) -> list[str]:
        script = 'mount -o loop,ro "$2" "$1" &&' + LISTING
        result = root.run(["unshare", "--mount", "sh", "-c", script, "sh", place, image])
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()

    return look


def test_the_job(inside: Lines, workdir: Path, run_as_user: Run, user: User) -> None:
    before = host.look(user)
    inside("truncate -s 32M disk.img\n" + DATA + JOB)
    assert not host.wait_for_leftovers_to_go(user, before)
    check = run_as_user(["e2fsck", "-f", "-n", "disk.img"], cwd=workdir)
    assert check.returncode == 0, check.stdout
    read = run_as_user(["debugfs", "-R", "dump data/numbers numbers", "disk.img"], cwd=workdir)
    assert read.returncode == 0
    assert digest(workdir / "numbers") == digest(workdir / "data/numbers")
    assert list((workdir / "mnt").iterdir()) == []


def test_the_job_gives_what_root_gets(
    in_both: Compare, contents: Contents, workdir: Path, run_as_user: Run
) -> None:
    same_in_both(in_both, "truncate -s 32M disk.img\n" + DATA + JOB)
    check_images(workdir, contents, run_as_user)
    assert any("data/deep/link" in line for line in contents(workdir / "sandbox/disk.img"))


def test_all_kinds_of_files_are_copied_as_by_root(
    in_both: Compare, contents: Contents, workdir: Path, run_as_user: Run
) -> None:
    same_in_both(in_both, TREE + COPY)
    check_images(workdir, contents, run_as_user)


@pytest.mark.parametrize("fstype", ["ext2", "ext3", "ext4"])
def test_files_read_back_from_a_later_mount(inside: Lines, fstype: str) -> None:
    """In the sandbox itself a file shows what was copied, with its owner and attributes."""
    inside(
        TREE
        + f"""
        truncate -s 48M disk.img; d=$(losetup -f --show disk.img); mkfs.{fstype} -q $d
        mount -t {fstype} $d mnt; cp -a tree mnt; umount mnt
        mount -t {fstype} -o ro $d mnt; diff -r -x fifo --no-dereference tree mnt/tree
        look() {{  # fuse2fs keeps parts of a second, but does not show them
            (cd $1; find . -printf '%P|%y|%m|%U|%G|%l|%t\\n' | sed 's/\\.[0-9]* / /' | sort) >$2
        }}
        look tree before; look mnt/tree after; diff before after
        test $(stat -c %h mnt/tree/numbers) = 2; test $(du -k mnt/tree/sparse | cut -f1) -lt 1024
        umount mnt; losetup -d $d
        """
    )


def same_in_both(in_both: Compare, script: str) -> None:
    native, ours = in_both(script)
    assert (native.status, native.complaints) == (0, [])
    assert ours == native


def check_images(workdir: Path, contents: Contents, run_as_user: Run) -> None:
    native, ours = workdir / "native/disk.img", workdir / "sandbox/disk.img"
    check = run_as_user(["e2fsck", "-f", "-n", ours])
    assert check.returncode == 0, check.stdout
    assert contents(ours) == contents(native)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
