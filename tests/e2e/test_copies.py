"""/sys and /dev mounted and bound somewhere else, beside the same by real root; what of them says
which filesystem it is."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.conftest import Compare, Lines
from tests.support.skip import need

pytestmark = pytest.mark.e2e

# own: what is mounted below the working directory, with what is in trees that were bound.
SETUP = """
truncate -s 8M disk.img; mkdir m; d=$(losetup -f --show disk.img); n=${d#/dev/}
mounted() { grep -c " $PWD/" /proc/self/mountinfo || :; }
end() { "$@"; mounted; losetup -d $d; }
"""
LOOK = """
cat m/block/$n/size m/class/block/$n/loop/backing_file; readlink m/dev/block/$(cat m/block/$n/dev)
stat -f -c %t m m/block m/class/block/$n/size; ls m/class/net; cat m/class/net/lo/mtu
test -d m/fs && test -d m/kernel && test -d m/bus
"""


@pytest.mark.parametrize("umount", ["umount m", "umount -R m", 'umount -l "$PWD/m"'])
@pytest.mark.parametrize("mount", ["-t sysfs -o nosuid,nodev,noexec s", "--bind /sys/."])
def test_sysfs(in_both: Compare, mount: str, umount: str) -> None:
    native, ours = in_both(f"{SETUP} mount {mount} m; {LOOK} end try {umount}")
    assert (native.status, native.complaints, native.output[-1]) == (0, [], "0")
    assert ours == native


@pytest.mark.parametrize(
    "script",
    [
        # A tree: its locked mounts go with it.
        f"mount --rbind /sys m; mount --make-rslave m; {LOOK} end try umount -R m",
        "mount --rbind /sys m; end try umount -l m",
        "mount --rbind / m; test -e m$PWD/disk.img; end try umount -R m",
        # In use: nothing of it goes.
        f"mount --bind /sys m; cd m/block; try umount ../../m; cd ../..; {LOOK} end umount m",
        f"mount -t sysfs s m; cd m; try umount ../m; cd ..; {LOOK} end umount m",
        f"mount -t sysfs s m; mount -t tmpfs t m/fs; try umount m; umount m/fs {LOOK} end umount m",
        # Flags of the mount, and a remount of them.
        "mount -t sysfs -o ro s m; findmnt -no OPTIONS m; end umount m",
        "mount --bind -o ro /sys m; findmnt -no OPTIONS m; end umount m",
        # Where it cannot be.
        "try mount -t sysfs s m/none; try mount -t sysfs s disk.img; end try umount m",
        "try mount --bind /sys m/none; try mount --bind /sys/none m; end try umount m",
        # A part of it is the kernel's own to bind.
        "mount --bind /sys/block m; test -L m/$n; stat -f -c %t m; end umount m",
        # In a mount namespace, and in a network namespace, which has interfaces of its own.
        "n=$n unshare -m sh -ec 'mount -t sysfs s m; cat m/block/$n/size; umount m'; end true",
        """n=$n unshare -n sh -ec 'mount -t sysfs s m; cat m/block/$n/size; ls m/class/net
            umount m'; end true""",
    ],
)
def test_in_all_ways(in_both: Compare, script: str) -> None:
    native, ours = in_both(SETUP + script)
    assert (native.status, native.output[-1]) == (0, "0")
    assert ours == native


@pytest.mark.parametrize("mount", ["-t devtmpfs -o nosuid,mode=0755 udev", "--bind /dev"])
def test_dev(in_both: Compare, mount: str) -> None:
    """The same superblock: a device that is made later is there, too."""
    native, ours = in_both(f"""{SETUP} mount {mount} m; test -b m/$n && echo there
        losetup -d $d; losetup $d disk.img; head -c 3 m/zero | wc -c; echo x >m/null; test -c m/null
        touch m/here; test -e /dev/here; rm /dev/here; test ! -e m/here; end try umount m""")
    assert (native.status, native.complaints, native.output[-1]) == (0, [], "0")
    assert ours == native


# As pi-gen, debos and most scripts do it, arch-chroot, and Gentoo's handbook.
BUILDERS = {
    "binds": """
        mount -t proc proc m/proc; mount --bind /dev m/dev; mount --bind /dev/pts m/dev/pts
        mount --bind /sys m/sys; mount --bind /run m/run; inside
        umount m/run; umount m/sys; umount m/dev/pts; umount m/dev; umount m/proc""",
    "mounts": """
        mount -t proc -o nosuid,noexec,nodev proc m/proc
        mount -t sysfs -o nosuid,noexec,nodev,ro sys m/sys
        mount -t devtmpfs -o mode=0755,nosuid udev m/dev
        mkdir -p m/dev/pts; mount -t devpts -o mode=0620,nosuid,noexec devpts m/dev/pts
        inside; umount m/dev/pts m/dev m/sys m/proc""",
    "trees": """
        for x in dev sys; do mount --rbind /$x m/$x; mount --make-rslave m/$x; done
        mount -t proc proc m/proc; inside
        umount -R m/proc; umount -R m/sys; umount -R m/dev""",
    "within": """
        mkdir m/old; mount --rbind / m/old
        chroot m /bin/busybox sh -ec 'b=/bin/busybox; $b mount -t proc p /proc
            $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev'
        inside; umount m/dev; umount m/sys; umount m/proc; umount -R m/old; rmdir m/old""",
}


@pytest.mark.parametrize("way", BUILDERS)
def test_around_a_chroot(in_both: Compare, way: str) -> None:
    """In an image that is mounted from a device."""
    need(shutil.which("busybox"), "busybox is not installed")
    native, ours = in_both(f"""{SETUP} mkfs.ext4 -q $d; mount $d m
        mkdir m/dev m/proc m/sys m/run m/bin; cp $(command -v busybox) m/bin
        inside() {{ chroot m /bin/busybox sh -ec 'export PATH=; b() {{ /bin/busybox "$@"; }}
            b echo x >/dev/null; b head -c 4 /dev/zero | b wc -c; b test -c /dev/null
            b test -b '$d'; b cat /sys/block/'$n'/size; b test -e /proc/self/mounts
            b ls /sys/class/net'; }}
        {BUILDERS[way]}
        mounted; umount m; e2fsck -fn $d >said 2>&1; end true""")
    assert (native.status, native.complaints, native.output[-2:]) == (0, [], ["1", "0"])
    assert ours == native


NESTED = "truncate -s 8M disk.img; mkdir m; d=$(losetup -f --show disk.img); n=${d#/dev/}; export n"


@pytest.mark.parametrize(
    "script",
    [
        "mount -t sysfs s m; cat m/block/$n/size; umount m",
        "mount --bind /sys m; cat m/block/$n/size; umount m",
        "mount --rbind /sys m; cat m/block/$n/size; umount -R m",
        "mount -t devtmpfs d m; test -b m/$n && echo 16384; umount m",
        "mount --bind /dev m; test -b m/$n && echo x >m/null && echo 16384; umount m",
        "mkdir m/a; mount --rbind / m/a; cat m/a/sys/block/$n/size; umount -R m/a; rmdir m/a",
    ],
)
@pytest.mark.parametrize("namespaces", ["-Urm", "-Urmn"])
def test_in_a_user_namespace(inside: Lines, namespaces: str, script: str) -> None:
    """There the kernel refuses most of it; what is asked for is what root gets."""
    lines = inside(f"""{NESTED}
        unshare {namespaces} sh -ec '{script}; grep -c " $PWD/m" /proc/self/mountinfo || :'
        losetup -d $d""")
    assert lines == ["16384", "0"]


def test_interfaces(inside: Lines) -> None:
    """A new sysfs shows those of the network namespace of who mounts it."""
    lines = inside("""
        mkdir m; ls /sys/class/net >host
        unshare -Urm sh -ec 'mount -t sysfs s m; ls m/class/net' >in
        cmp host in; unshare -Urmn sh -ec 'mount -t sysfs s m; ls m/class/net'
    """)
    assert lines == ["lo"]


# open_tree(2) and move_mount(2), by which mount(8) of util-linux 2.39 binds, and fsopen(2).
BIND = """
SRC, TREE = "{source}", {recursive}
tree = call("open_tree", HERE, SRC, 1 | TREE)
show("move_mount", tree, "", HERE, "one", 4)
os.close(tree)
print(*(open(f"one/block/{{os.environ['n']}}/size").read().split()), flush=True)
"""


@pytest.mark.parametrize(
    ("recursive", "umount"), [("0", "umount one"), ("0x8000", "umount -R one")]
)
def test_by_the_new_mount_api(calls: Lines, recursive: str, umount: str) -> None:
    program = BIND.format(source="/sys", recursive=recursive)
    program += f'os.system("{umount}; grep -c $PWD /proc/self/mountinfo")\n'
    before = "d=$(losetup -f --show disk.img); n=${d#/dev/}; export n"
    assert calls(program, before) == ["0", "32768", "0"]


def test_a_context_of_sysfs(calls: Lines) -> None:
    """ENOSYS, as where there is no such call: mount(8) goes on with mount(2)."""
    assert calls('show("fsopen", "sysfs", 1); show("fsopen", "devtmpfs", 1)') == ["ENOSYS"] * 2


def test_what_filesystem_it_is(in_both: Compare) -> None:
    """By path and by descriptor, also of what is below the views and of their copies."""
    program = """
import os
for path in ("/sys", "/sys/block", "/sys/block/{n}/", "/sys/dev/block", "/sys/class/block/{n}/size",
             "/sys/devices/virtual/block/{n}/queue", "/proc/partitions", "/proc/self/status"):
    path = path.format(n=os.environ["n"])
    fd = os.open(path, os.O_PATH)
    by_path, by_fd = os.statvfs(path), os.statvfs(fd)
    assert by_path == by_fd, path
    print(path, by_fd.f_bsize, by_fd.f_frsize, by_fd.f_blocks, by_fd.f_namemax)
"""
    native, ours = in_both(f"""{SETUP} export n; python3 -c '{program}'
        stat -f -c %t /sys/block /sys/dev/block /sys/block/$n/queue /proc/partitions; end true""")
    assert (native.status, native.complaints) == (0, [])
    assert ours == native


@pytest.mark.may_skip("systemd's udevadm is not among the packages that the tests install")
def test_udevadm(inside: Lines) -> None:
    """It asks whether /sys is one (sd-device)."""
    need(shutil.which("udevadm"), "udevadm is not installed")
    lines = inside("""
        truncate -s 8M disk.img; d=$(losetup -f --show disk.img); n=${d#/dev/}
        test $(udevadm info -q name -n $d) = $n
        udevadm info -q path -p /sys/block/$n | sed s/$n//
        udevadm info -q property -n $d | grep TYPE
        losetup -d $d
    """)
    assert lines == ["/devices/virtual/block/", "DEVTYPE=disk"]


def test_what_is_not_a_copy_stays_locked(inside: Lines) -> None:
    lines = inside("""
        mkdir m; mount --rbind / m; umount -R m; try umount /proc; try umount /sys
        test -d /sys/block && test -d /proc/self
    """)
    assert [line for line in lines if line.startswith("status")] == ["status 32"] * 2
