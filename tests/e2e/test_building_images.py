"""The recipes of docs/building-images.md, exactly as printed there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from loopfs.engines.engine import SEARCH_PATH
from tests.support.skip import need
from tests.support.user import CHECKOUT, Run, User

pytestmark = pytest.mark.e2e

PAGE = (CHECKOUT / "docs/building-images.md").read_text()
# Title and script.
RECIPES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```sh\n(.*?)^```$", PAGE, re.M | re.S))
GPT, CARD, BIOS, REPART, CHROOT, LIVE = RECIPES

# What may be missing.
PROGRAMS = {BIOS: "grub-install", REPART: "systemd-repart", LIVE: "mksquashfs"}

FILES = {"etc/hostname": "image\n", "home/of/a/user": "x" * 5000}


@pytest.fixture
def rootfs(workdir: Path, user: User) -> None:
    """rootfs.tar: a shell, and files of several owners."""
    busybox = shutil.which("busybox")
    need(busybox is not None, "busybox is not installed")
    assert busybox is not None
    tree = workdir / "rootfs"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    for name in ("sh", "cat"):
        (tree / "bin" / name).symlink_to("busybox")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    made = user.run(
        ["tar", "--owner=7", "--group=8", "-C", "rootfs", "-cf", "rootfs.tar", "."], cwd=workdir
    )
    assert made.returncode == 0, made.stderr


# What each has made, and what is to be seen there.
LOOKS = {
    GPT: (
        """
        losetup -fP --show disk.img; blkid -o value -s TYPE /dev/loop*p[12]
        e2fsck -fn /dev/loop*p2; fsck.vfat -n /dev/loop*p1
        mount LABEL=root m; stat -c %u:%g m/etc/hostname; cat m/etc/fstab
        """,
        ["vfat", "ext4", "7:8", " / ext4 defaults 0 1"],
    ),
    CARD: (
        """
        losetup -fP --show card.img; mount LABEL=BOOTFS m; cat m/cmdline.txt; umount m
        mount LABEL=rootfs m; cat m/etc/hostname
        """,
        ["root=LABEL=rootfs rootwait", "image"],
    ),
    BIOS: (
        """
        head -c 440 disk.img | grep -ac GRUB; losetup -fP --show disk.img
        mount LABEL=root m; ls m/boot/grub/i386-pc/core.img
        """,
        ["1", "m/boot/grub/i386-pc/core.img"],
    ),
    REPART: (
        """
        for turn in 2 3 4; do rm disk.img; sh -eu recipe.sh; losetup -a; done
        losetup -fP --show disk.img; blkid -o value -s TYPE /dev/loop*p[12]
        """,
        ["vfat", "ext4"],
    ),
    CHROOT: ("mount -o loop root.img m; cat m/made; ls m/dev m/run", ["made in Linux"]),
    LIVE: ("mount -o loop iso/live/filesystem.squashfs m; cat m/etc/hostname", ["image"]),
}


@pytest.mark.usefixtures("rootfs")
@pytest.mark.parametrize("title", RECIPES)
def test_recipe(loopfs_run: Run, workdir: Path, title: str) -> None:
    look, wanted = LOOKS[title]
    program = PROGRAMS.get(title, "true")
    need(shutil.which(program, path=SEARCH_PATH), f"{program} is not installed")
    (workdir / "recipe.sh").write_text(RECIPES[title])
    made = loopfs_run(["sh", "-eu", "recipe.sh"])
    assert made.returncode == 0, made.stderr
    seen = loopfs_run(["sh", "-euc", f"mkdir m; {look}"])
    assert seen.returncode == 0, seen.stdout + seen.stderr
    lines = seen.stdout.splitlines()
    assert [line for line in wanted if not any(line in each for each in lines)] == []
