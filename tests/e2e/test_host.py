"""Files of root that a sandbox has of its own: /run, sudo, and remount by mount.fuse."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.sandbox import PRELUDE
from tests.support.skip import need
from tests.support.user import User

pytestmark = [pytest.mark.e2e, pytest.mark.may_skip]


def test_run_is_writable(inside: Lines) -> None:
    """Its own directories are; the host's entries are there, and nothing is left on the host."""
    lines = inside("""
        cd /run; touch lock/loopfs-test
        for d in mount cryptsetup lvm blkid udev systemd/nspawn; do touch $d/x; done
        mkdir /run/loopfs-test; stat -c '%a %n' /run /run/lock /run/cryptsetup; ls /run
    """)
    assert lines[:3] == ["755 /run", "1777 /run/lock", "700 /run/cryptsetup"]
    assert set(os.listdir("/run")) <= {*lines[3:], "loopfs"}
    assert not Path("/run/loopfs-test").exists()
    assert not Path("/run/lock/loopfs-test").exists()


def test_the_hosts_devices_are_read_from_the_kernel(inside: Lines) -> None:
    names = [name for name in os.listdir("/sys/devices/virtual/block") if name.isalnum()]
    need(names, "the host has no virtual block device")
    name = sorted(names)[0]
    lines = inside(f"""
        mkdir m; grep -c ' /sys/devices/virtual/block/{name} ' /proc/self/mountinfo
        cat /sys/block/{name}/dev; readlink -f /sys/block/{name}/subsystem
        unshare -Urm sh -ec 'mount -t sysfs s m; cat m/block/{name}/dev; umount m'
    """)
    number = Path(f"/sys/block/{name}/dev").read_text().strip()
    assert lines == ["1", number, "/sys/class/block", number]


def test_cryptsetup(inside: Lines) -> None:
    """LUKS2 locks below /run."""
    need(shutil.which("cryptsetup"), "no cryptsetup")
    lines = inside("""
        truncate -s 32M disk.img; d=$(losetup -f --show disk.img); echo word >key
        cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $d key
        blkid -o value -s TYPE -p $d; losetup -d $d
    """)
    assert lines == ["crypto_LUKS"]


def test_pvcreate(inside: Lines) -> None:
    need(shutil.which("pvcreate"), "no lvm2")
    lines = inside("""
        truncate -s 32M disk.img; d=$(losetup -f --show disk.img); pvcreate -q -q $d >log 2>&1
        blkid -o value -s TYPE -p $d; losetup -d $d
    """)
    assert lines == ["LVM2_member"]


def test_sudo(inside: Lines) -> None:
    need(shutil.which("sudo"), "no sudo")
    lines = inside("""
        sudo -n id -u; A=text sudo -E sh -c 'echo $A'; sudo -u nobody id -un
        sudo -H sh -c 'echo $HOME'; sudo losetup -a
        touch ~/loopfs-test; sudo -i ls loopfs-test; rm ~/loopfs-test
    """)
    assert lines == ["0", "text", "nobody", "/root", "loopfs-test"]


def test_remount_with_mount_fuse(inside: Lines) -> None:
    """mount(8) calls mount.fuse for the type fuse.loop, which cannot remount."""
    need(os.path.exists("/sbin/mount.fuse3"), "no mount.fuse3")
    lines = inside("""
        mkdir m; mount -t loop one m; mount -o remount,max=1 m
        losetup -f >log; python3 -c '
import fcntl
control = open("m/loop-control", "r+b", 0)
print(fcntl.ioctl(control, 0x4C82) >= 0)
try:
    fcntl.ioctl(control, 0x4C80, 700)
except OSError as problem:
    print(problem.strerror)'; umount m
    """)
    assert lines == ["True", "No space left on device"]


def test_kpartx(inside: Lines) -> None:
    """As vmdb2, grml-debootstrap and diskimage-builder call it: they read the names it prints."""
    need(shutil.which("kpartx") and shutil.which("dmsetup"), "no kpartx, no dmsetup")
    lines = inside("""
        truncate -s 16M a.img; printf 'label: dos\n,4M\n,4M\n' | sfdisk -q a.img; mkdir m
        kpartx -asv a.img | cut -d' ' -f1-3,5- >maps; d=$(losetup -n -O NAME -j a.img); n=${d##*/}
        sed "s/$n/D/;s/7:[0-9]*/disk/" maps; mkfs.ext4 -q /dev/mapper/${n}p2
        mount /dev/mapper/${n}p2 m; try kpartx -dv a.img | sed s/$n/D/; umount /dev/mapper/${n}p2
        printf 'label: dos\n,4M\n' | sfdisk -q a.img; kpartx -u $d; ls /dev/mapper | sed s/$n/D/
        dmsetup mknodes; dmsetup remove ${n}p1; ls /dev/mapper ${d}p* 2>/dev/null || :
        dmsetup splitname a-b | tail -n 1 | xargs; awk '$5 ~ "^/run/loopfs/"' /proc/self/mountinfo
        kpartx -a $d; kpartx -d a.img | sed s/$n/D/; ls ${d}p* /dev/mapper 2>/dev/null || :
        losetup -a
    """)
    assert lines == [
        "add map Dp1 0 8192 linear disk 2048",
        "add map Dp2 0 8192 linear disk 10240",
        "del devmap : Dp1",
        "Dp2 is in use. Not removing",
        "status 1",
        "Dp1",
        "/dev/mapper:",
        "a b",
        "loop deleted : /dev/D",
        "/dev/mapper:",
    ]


WITH_UDEVD = """
mount -t tmpfs -o mode=755 none /run; mkdir -p /run/udev/data /run/udev/tags /run/udev/watch
echo E:FROM=host >/run/udev/data/b254:0; echo >/run/udev/control; chmod 600 /run/udev/control
exec "$@"
"""
BESIDE_UDEVD = """
udev=/run/udev; test ! -e $udev/control; cat $udev/data/b254:0; ls -A $udev/tags $udev/watch
truncate -s 1M disk.img; mkfs.ext2 -q -L name disk.img; d=$(losetup -f --show disk.img)
/lib/systemd/systemd-udevd >log 2>&1 & until udevadm control --ping 2>/dev/null; do :; done
udevadm trigger --settle $d; udevadm info -q property $d | grep ID_FS_LABEL=
losetup -d $d; udevadm control --exit; awk '$5 ~ "^/run/loopfs/"' /proc/self/mountinfo
"""


def test_a_host_with_udevd(root: User, user: User, loopfs_bin: list[str], workdir: Path) -> None:
    """Nobody waits for it, its records are there, and another one can be started."""
    need(os.access("/lib/systemd/systemd-udevd", os.X_OK), "systemd-udevd is not installed")
    need("overlay" in Path("/proc/filesystems").read_text(), "the kernel has no overlayfs")
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    words = [*drop, *loopfs_bin, "run", "--", "sh", "-c", PRELUDE + BESIDE_UDEVD]
    result = root.run(["unshare", "-m", "sh", "-ec", WITH_UDEVD, "sh", *words], cwd=workdir)
    assert (result.returncode, result.stderr) == (0, "")
    said = "E:FROM=host\n/run/udev/tags:\n\n/run/udev/watch:\nID_FS_LABEL=name\n"
    assert result.stdout == said
