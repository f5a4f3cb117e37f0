"""mount(8), mount(2) and umount(8) of devices, where the sandbox differs from the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.user import User

pytestmark = pytest.mark.e2e

# mount(2) itself: no tool canonicalises the names.
MOUNT = r"""
mount2() { python3 -c 'import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
source, target, kind, flags, data = (os.fsencode(word) for word in sys.argv[1:])
if libc.mount(source, target, kind, ctypes.c_ulong(int(flags)), data or None):
    sys.exit(os.strerror(ctypes.get_errno()))' "$@"; }
"""


@pytest.fixture(autouse=True)
def _places(image: Path) -> None:
    """disk.img, and two places to mount it at."""
    (image.parent / "mnt").mkdir(mode=0o777)
    (image.parent / "two").mkdir(mode=0o777)


# --- how the source can be named ---------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "/dev/$name",
        "/dev/loopfs/$name",
        "/dev/../dev/.//$name",
        "dev/$name",
        "./dev/loopfs/../$name",
        "link",
        "/proc/self/root/dev/$name",
        "/proc/self/cwd/link",
    ],
)
def test_a_device_by_its_names(inside: Lines, source: str) -> None:
    inside(f"""{MOUNT}
        d=$(losetup -f --show disk.img); name=${{d##*/}}; ln -s $d link; ln -s /dev dev
        mount2 {source} mnt ext4 0 ""; echo text >mnt/file; umount mnt; losetup -d $d
        debugfs -R 'cat file' disk.img 2>/dev/null | grep -q text
    """)


@pytest.mark.parametrize("name", ["self", "thread-self"])
def test_a_device_by_the_callers_descriptor(inside: Lines, name: str) -> None:
    lines = inside(f"""{MOUNT}
        d=$(losetup -f --show disk.img)
        exec 7<>$d; mount2 /proc/{name}/fd/7 mnt ext4 0 ""; exec 7>&-
        ls mnt; umount mnt; losetup -d $d
    """)
    assert lines == ["lost+found"]


def test_in_two_steps(inside: Lines) -> None:
    lines = inside("""
        d=$(losetup -f --show disk.img); mount $d mnt; echo text >mnt/file; umount mnt
        mount -t ext4 -r $d mnt; cat mnt/file; umount $d; losetup -d $d; losetup -a
    """)
    assert lines == ["text"]


def test_part_of_an_image(inside: Lines, workdir: Path) -> None:
    inside("""
        truncate -s 24M whole.img; dd if=disk.img of=whole.img bs=1M seek=4 conv=notrunc status=none
        mount -o loop,offset=4194304,sizelimit=16777216 whole.img mnt; echo text >mnt/file
        umount mnt; e2fsck -fn whole.img?offset=4194304 >/dev/null 2>&1
        dd if=whole.img of=disk.img bs=1M skip=4 status=none count=16; e2fsck -fn disk.img >log 2>&1
        mount -o loop,ro disk.img mnt; test "$(cat mnt/file)" = text; umount mnt
    """)
    whole = (workdir / "whole.img").read_bytes()
    assert not any(whole[: 4 << 20])
    assert not any(whole[20 << 20 :])


# --- what is shown -----------------------------------------------------------


@pytest.mark.parametrize("fstype", ["ext2", "ext3", "ext4"])
def test_mountinfo(inside: Lines, fstype: str) -> None:
    (line,) = inside(f"""
        mkfs.{fstype} -q -F disk.img; mount -o loop disk.img mnt
        grep " $PWD/mnt " /proc/self/mountinfo; umount mnt
    """)
    before, _, after = line.partition(" - ")
    kind, source, options = after.split()
    assert kind == f"fuse.{fstype}"
    assert source.startswith("/dev/loop")
    assert before.split()[5].split(",")[0] == options.split(",")[0] == "rw"


def test_mount_options_of_the_vfs(inside: Lines) -> None:
    (line,) = inside("""
        cp /bin/busybox . ; mount -o loop,nosuid,nodev,noexec,noatime disk.img mnt
        cp busybox mnt; ! mnt/busybox true 2>/dev/null
        grep " $PWD/mnt " /proc/self/mountinfo; umount mnt
    """)
    assert {"nosuid", "nodev", "noexec", "noatime"} <= set(line.split()[5].split(","))


@pytest.mark.parametrize(
    "options", ["errors=remount-ro", "errors=continue,bsddf", "minixdf,barrier=1,commit=5"]
)
def test_mount_options_of_ext4(inside: Lines, options: str) -> None:
    """As they are found in /etc/fstab."""
    lines = inside(f"""
        echo $PWD/disk.img $PWD/mnt ext4 loop,{options} 0 0 >tab; mount -T tab mnt
        ls mnt; umount mnt
    """)
    assert lines == ["lost+found"]


def test_programs_of_the_image_can_be_run(inside: Lines) -> None:
    lines = inside("""
        mount -o loop disk.img mnt; cp /bin/busybox mnt/busybox
        chroot mnt /busybox echo in the image; umount mnt
    """)
    assert lines == ["in the image"]


# --- read-only ---------------------------------------------------------------


def test_read_only_changes_no_bit(inside: Lines, image: Path) -> None:
    before = image.read_bytes()
    lines = inside("""
        mount -o loop,ro disk.img mnt; try touch mnt/file; ls mnt; umount mnt
        d=$(losetup -r -f --show disk.img); try mount $d mnt; try touch mnt/file; umount mnt
        losetup -d $d
    """)
    refusal = "touch: cannot touch 'mnt/file': Read-only file system"
    assert lines[:3] == [refusal, "status 1", "lost+found"]
    assert "write-protected, mounted read-only" in lines[3]
    assert lines[4:] == ["status 0", refusal, "status 1"]
    assert image.read_bytes() == before


REMOUNT = """
    mount -o loop disk.img mnt; mount -i -o remount,ro mnt; try touch mnt/file
    mount -i -o remount,rw mnt; touch mnt/file; ls mnt; umount mnt; losetup -a
"""


def test_remount(inside: Lines) -> None:
    """With -i, lest mount(8) call the helper for FUSE types, mount.fuse, where there is one."""
    lines = inside(REMOUNT)
    assert lines[0] == "touch: cannot touch 'mnt/file': Read-only file system"
    assert lines[1:] == ["status 1", "file", "lost+found"]


def test_nothing_that_can_be_mounted(inside: Lines) -> None:
    """mount(8) tries all types; of those without an engine nothing is said."""
    lines = inside("truncate -s 1M empty.img; try mount -o loop empty.img mnt; losetup -a")
    # The last type that it tries may have an engine, and is then not what is on the device.
    assert "unknown filesystem type" in lines[0] or "wrong fs type" in lines[0]
    assert lines[-1] == "status 32"


# --- end of a mount ----------------------------------------------------------


def test_umount_has_written_everything(inside: Lines) -> None:
    """Read from the image by another way right after each umount."""
    lines = inside("""
        for n in 1 2 3 4 5; do
            mount -o loop disk.img mnt; seq ${n}00000 >mnt/file; umount mnt
            debugfs -R 'cat file' disk.img 2>/dev/null | tail -n 1; losetup -a
            e2fsck -fn disk.img >log 2>&1
        done
    """)
    assert lines == [f"{n}00000" for n in range(1, 6)]


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
def test_every_block_size_is_synced_and_unmounted(inside: Lines, block_size: int) -> None:
    """fuse2fs holds blocks back at a sync, and must not wait for itself (fuse2fs.environment)."""
    inside(f"""
        mkfs.ext4 -q -F -b {block_size} disk.img; mount -o loop disk.img mnt
        for n in 1 2 3; do
            dd if=/dev/urandom of=mnt/file$n bs=1M count=1 conv=fsync status=none
        done
        sync; sha256sum mnt/file? >sums; umount mnt
        e2fsck -fn disk.img >fsck 2>&1 || cat fsck; mount -o loop,ro disk.img mnt
        sha256sum --quiet -c sums; umount mnt
    """)


def test_a_mount_can_be_unmounted_at_once(inside: Lines, image: Path) -> None:
    """Nothing of ours keeps it busy when mount(2) has returned, however busy the machine is."""
    (image.parent / "program.py").write_text("""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for kind in (b"ext4", b"loop") * 30:
    for result in (
        libc.mount(sys.argv[1].encode(), b"mnt", kind, 0, None),
        libc.umount2(b"mnt", 0),
    ):
        assert result == 0, os.strerror(ctypes.get_errno())
""")
    lines = inside("""
        d=$(losetup -f --show disk.img); while :; do :; done & busy=$!
        python3 program.py $d || echo failed; kill $busy; losetup -d $d
    """)
    assert lines == []


def test_lazy_umount(inside: Lines) -> None:
    lines = inside("""
        mount -o loop disk.img mnt; exec 3>mnt/file; umount -l mnt; ls mnt; echo text >&3
        losetup -n -O NAME -l | wc -l; exec 3>&-; until test -z "$(losetup -a)"; do :; done
        debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    assert lines == ["1", "text"]


def test_a_busy_mount_stays(inside: Lines) -> None:
    said, _, *rest = inside("""
        mount -o loop disk.img mnt; exec 3>mnt/file; umount mnt 2>&1 || echo "status $?"
        try umount mnt; echo text >&3; exec 3>&-; umount mnt; losetup -a
        debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    assert said.endswith("target is busy.")
    assert rest[-1] == "text"


def test_one_device_at_two_places(inside: Lines) -> None:
    """One superblock, one engine; it ends with the last of its mounts."""
    lines = inside("""
        d=$(losetup -f --show disk.img); mount $d mnt; echo one >mnt/file
        mount -o ro,nosuid $d two 2>&1 || echo "status $?"; mount -o nosuid $d two; cat two/file
        echo two >two/file; cat mnt/file; findmnt -no OPTIONS two | cut -d, -f1-2
        findmnt -no OPTIONS mnt | cut -d, -f1-2
        test "$(findmnt -no MAJ:MIN mnt)" = "$(findmnt -no MAJ:MIN two)"
        umount mnt; cat two/file; umount two; losetup -d $d; e2fsck -fn disk.img >log 2>&1
        debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    refused, *others = lines[:-6], *lines[-6:]
    assert "already mounted" in refused[0] and refused[-1] == "status 32"
    rw = ["rw,nosuid", "rw,relatime"]
    assert others == ["one", "two", *rw, "two", "two"]


def test_a_mounted_device_shows_what_is_synced(inside: Lines) -> None:
    """To who opens it then, and whoever had opened it before."""
    lines = inside("""
        d=$(losetup -f --show disk.img); debugfs -R ls $d >before 2>&1; exec 3<$d
        mount $d mnt; echo text >mnt/file; sync mnt/file; debugfs -R 'cat file' $d 2>/dev/null
        echo more >>mnt/file; sync mnt/file; debugfs -R 'cat file' $d 2>/dev/null; umount mnt
    """)
    assert lines == ["text", "text", "more"]


def test_two_loop_mounts_of_one_image(inside: Lines) -> None:
    """mount(8) finds the device that has it, and the device goes with the last mount."""
    lines = inside("""
        mount -o loop disk.img mnt; mount -o loop disk.img two; echo text >two/file; cat mnt/file
        losetup -a | wc -l; umount two; cat mnt/file; umount mnt; losetup -a
        e2fsck -fn disk.img >log 2>&1
    """)
    assert lines == ["text", "1", "text"]


def test_another_user_namespace_gets_no_second_mount(inside: Lines) -> None:
    lines = inside(r"""
        d=$(losetup -f --show disk.img); mount $d mnt
        unshare -Urm sh -c "mount $d two 2>&1 || echo status \$?"; ls mnt; umount mnt
    """)
    assert "already mounted" in lines[0]
    assert lines[-2:] == ["status 32", "lost+found"]


def test_a_bind_mount_keeps_the_filesystem(inside: Lines) -> None:
    lines = inside("""
        mount -o loop disk.img mnt; mount --bind mnt two; umount mnt; ls mnt
        echo text >two/file; umount two; losetup -a; debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    assert lines == ["text"]


def test_other_mounts_are_the_kernels(inside: Lines) -> None:
    lines = inside("""
        mount -o loop disk.img mnt; mount -t tmpfs none two; touch two/file; ls two
        mount --move two mnt/lost+found; ls mnt/lost+found; umount mnt/lost+found; umount mnt
        try umount two
    """)
    assert lines[:2] == ["file", "file"]
    assert lines[2:] == ["umount: two: not mounted.", "status 32"]


# --- what cannot be mounted --------------------------------------------------


def test_without_an_engine(root: User, user: User, loopfs_bin: list[str], workdir: Path) -> None:
    """As from a kernel without that filesystem, and one sentence more."""
    hide = 'for place in $(which -a fuse2fs); do mount --bind /dev/null $place; done; exec "$@"'
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    script = """
        d=$(losetup -f --show disk.img); mount -t ext4 $d mnt 2>said; echo $?
        cut -d. -f1 said | head -n 1; losetup -d $d; losetup -a
    """
    words = [*drop, *loopfs_bin, "run", "--engine=ext4=fuse2fs", "--", "sh", "-c", script]
    result = root.run(["unshare", "-m", "sh", "-ec", hide, "sh", *words], cwd=workdir)
    said = f"mount: {workdir}/mnt: unknown filesystem type 'ext4'"
    assert (result.returncode, result.stdout) == (0, f"32\n{said}\n")
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("loopfs: ")
    assert "package fuse2fs" in sentence


def test_a_source_that_is_no_device(inside: Lines) -> None:
    """toybox's mount gives a file a loop device after this error only."""
    lines = inside(f"""{MOUNT}
        for source in disk.img two /dev/null missing; do
            mount2 $source mnt ext4 0 "" 2>&1 || :
        done
        python3 -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for target in b"mnt", b"missing":
    libc.mount(None, target, b"ext4", 0, None)
    print(os.strerror(ctypes.get_errno()))'
    """)
    none = ["Invalid argument", "No such file or directory"]
    assert lines == ["Block device required"] * 3 + ["No such file or directory", *none]


@pytest.mark.parametrize("fstype", ["vfat", "xfs", "strange"])
def test_other_types_are_refused(inside: Lines, fstype: str) -> None:
    *said, status = inside(
        f"d=$(losetup -f --show disk.img); try mount -i -t {fstype} $d mnt; losetup -d $d"
    )
    assert status == "status 32"
    assert said[0].startswith("mount: ")
