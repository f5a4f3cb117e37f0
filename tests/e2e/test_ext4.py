"""ext2, ext3 and ext4 by the engine `ext4`."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Compare
from tests.support.sandbox import PRELUDE
from tests.support.user import Run

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("fstype", ["ext2", "ext3", "ext4"])
def test_an_image_is_filled(loopfs_run: Run, fstype: str) -> None:
    result = loopfs_run(
        PRELUDE
        + f"""
        truncate -s 64M disk.img; mkfs.{fstype} -q -F disk.img; mkdir mnt
        mount -o loop -t {fstype} disk.img mnt
        cp -a /etc/. mnt/ 2>/dev/null || :
        echo text >mnt/{"n" * 255}; sync mnt; chmod g+s mnt; mkdir mnt/inner; stat -c %A mnt/inner
        umount mnt; e2fsck -fn disk.img >log 2>&1 || cat log
        mount -o loop,ro disk.img mnt; cat mnt/nnn*; umount mnt
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["drwxr-sr-x", "text"]


SETUID = """
    truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
    chmod 777 mnt; cd mnt; begin() { rm -f file; echo text >file; chmod 6777 file; }
    begin; echo more >>file; truncate -s 3 file; : >file; stat -c %A file
    for command in "chown 0:0 file" "setpriv --reuid 1 --clear-groups sh -c 'echo more >>file'" \\
        "setpriv --reuid 1 --clear-groups truncate -s 3 file"; do
        begin; eval "$command"; stat -c %A file
    done
    try setfattr -n user. -v x file; cd ..; umount mnt
"""


def test_users_that_may_keep_set_user_id(in_both: Compare) -> None:
    """Root may write to such a file."""
    native, ours = in_both(SETUID)
    assert ours.lines() == native.lines()
    assert ours.output[0] == "-rwsrwsrwx"


REMOUNT = """
    truncate -s 64M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
    echo text >mnt/file; mount -o remount,ro mnt; cp disk.img copy.img
    e2fsck -fn copy.img >log 2>&1
    dumpe2fs -h copy.img 2>/dev/null | grep -c recovery || :
    debugfs -R "cat file" copy.img 2>/dev/null; try touch mnt/other; cat mnt/file
    mount -o remount,rw mnt; echo more >>mnt/file; umount mnt; e2fsck -fn disk.img >log 2>&1
    mount -o loop,ro disk.img mnt; cat mnt/file; try mount -o remount,rw mnt; umount mnt
    d=$(losetup -f --show disk.img); mount -o ro $d mnt; try touch mnt/third
    mount -o remount,rw mnt; echo third >mnt/third; mount -o remount,ro mnt; try touch mnt/fourth
    mount -o remount,rw mnt; echo fourth >mnt/fourth; umount mnt; losetup -d $d
    e2fsck -fn disk.img >log 2>&1; debugfs -R 'cat third' disk.img; debugfs -R 'cat fourth' disk.img
"""


def test_a_mount_that_is_made_read_only_is_clean(in_both: Compare) -> None:
    """Until it is made writable again."""
    native, ours = in_both(REMOUNT)
    assert native.lines()[:2] == ["0", "text"]
    assert ours.lines() == native.lines()


FLAGS = """
    truncate -s 64M disk.img; mkfs.ext4 -q -F -b 4096 disk.img; mkdir mnt
    mount -o loop disk.img mnt; echo 1 >mnt/fixed
    chattr +i mnt/fixed; try rm -f mnt/fixed; try sh -c 'echo 2 >>mnt/fixed'; lsattr mnt/fixed
    chattr -i +a mnt/fixed; touch mnt/fixed; try touch -a mnt/fixed
    echo 3 >>mnt/fixed; try sh -c 'echo 4 >mnt/fixed'; chattr -a mnt/fixed
    cat mnt/fixed; truncate -s 100M mnt/holes; fallocate -l 64K mnt/ahead
    head -c 300K /dev/zero | dd of=mnt/file bs=100K conv=fsync status=none
    dd if=/dev/zero of=mnt/holes bs=4K count=1 seek=5 conv=notrunc,fsync status=none
    filefrag -v mnt/ahead mnt/file mnt/holes |
        awk '$1 ~ /:$/ && NF > 5 { print $2, $3, $6, $NF }; /extents? found/'
    try filefrag mnt/lost+found; umount mnt; e2fsck -fn disk.img >log 2>&1
"""


def test_when_a_file_was_made(loopfs_run: Run) -> None:
    result = loopfs_run(
        PRELUDE
        + """
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        echo text >mnt/file; touch -d 2020-01-01 mnt/file
        a=$(stat -c %W mnt/file); test $((a - $(date +%s))) -lt 100
        test $a -gt $(stat -c %Y mnt/file); umount mnt; mount -o loop disk.img mnt
        test $(stat -c %W mnt/file) = $a; umount mnt; debugfs -R "stat file" disk.img 2>/dev/null |
            grep -c crtime
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_flags_and_extents_of_files(in_both: Compare) -> None:
    """The VFS keeps both from FUSE: two flags are the machine's root's, and FIEMAP."""
    native, ours = in_both(FLAGS)
    assert native.lines()[:3] == [
        "rm: cannot remove 'mnt/fixed': Operation not permitted",
        "status 1",
        "sh: 1: cannot create mnt/fixed: Operation not permitted",
    ]
    assert ours.lines() == native.lines()


AGAIN = """
    truncate -s 64M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt
    d=$(losetup -f --show disk.img); mount $d mnt; mount $d mnt 2>/dev/null || echo "status $?"
    echo text >mnt/file; touch -a -d @1000 mnt/file; umount mnt; mount $d mnt
    dd if=mnt/file of=/dev/null iflag=noatime status=none; stat -c %X mnt/file
    umount mnt; mount $d mnt; cat mnt/file; test "$(stat -c %X mnt/file)" != 1000
    touch -a -d @1000 mnt mnt/lost+found; umount mnt
    mount -o nodiratime $d mnt; ls mnt >log; stat -c %X mnt; umount mnt
    mount -o strictatime $d mnt; ls mnt mnt/lost+found >log; stat -c %x mnt >first; ls mnt >log
    stat -c %x mnt | cmp -s first - || echo changed; umount mnt
    losetup -d $d; e2fsck -fn disk.img >log 2>&1
"""


def test_a_mount_over_itself_and_o_noatime(in_both: Compare) -> None:
    native, ours = in_both(AGAIN)
    assert native.lines()[:3] == ["status 32", "1000", "text"]
    assert ours.lines() == native.lines()


FREEZE = """
    truncate -s 64M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
    echo text >mnt/file; mkdir mnt/d; ln mnt/file mnt/d/link; exec 3<>mnt/file
    rm mnt/file mnt/d/link; echo more >mnt/other
    fsfreeze -f mnt; cp disk.img copy.img
    debugfs -R "cat other" copy.img 2>/dev/null
    dumpe2fs -h copy.img 2>/dev/null | grep -c recovery || :
    for word in first second; do (echo $word >mnt/d/$word; echo $word >>done) & done
    (echo changed >mnt/other; echo third >>done) & (echo fd >&3; echo fourth >>done) &
    cat mnt/other; lsattr -d mnt/d; try fsfreeze -f mnt; echo thawed >>done
    exec 3<&-; fsfreeze -u mnt; wait; head -n 1 done; sort done
    cat mnt/d/* mnt/other; try fsfreeze -u mnt
    mount -o remount,ro mnt; fsfreeze -f mnt; fsfreeze -u mnt; mount -o remount,rw mnt
    fsfreeze -f mnt; fsfreeze -u mnt; touch mnt/end; umount mnt; e2fsck -fn disk.img >log 2>&1
    mount -o loop disk.img mnt; ls mnt; chmod 777 mnt
    try setpriv --reuid 1 --clear-groups fsfreeze -f mnt; umount mnt
"""


def test_fsfreeze(in_both: Compare) -> None:
    """What is written meanwhile waits."""
    native, ours = in_both(FREEZE)
    assert (native.status, native.complaints) == (0, [])
    assert ours.lines() == native.lines()
    assert ours.output[:2] == ["more", "0"]


def test_a_caller_that_waits_for_a_frozen_filesystem_can_be_killed(loopfs_run: Run) -> None:
    """So the sandbox ends, though nobody is left who could thaw it."""
    result = loopfs_run(
        PRELUDE
        + """
        truncate -s 16M disk.img; mkfs.ext4 -q disk.img; mkdir mnt; mount -o loop disk.img mnt
        echo text >mnt/file; fsfreeze -f mnt
        waits() { until [ -e $2 ] && grep -q '^State:.S' /proc/$1/status; do :; done; }
        sh -c ': >first; echo more >>mnt/file' & waits $! first; kill -9 $!; wait $! 2>l || echo $?
        cat mnt/file; sh -c ': >second; mkdir mnt/d' & waits $! second
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "137\ntext\n", "")
