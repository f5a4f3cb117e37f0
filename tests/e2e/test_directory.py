"""rm, mv and others in /dev/loopfs (patch 2/8)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = pytest.mark.e2e

# ask DIRECTORY CONTROL DEVICE: what a directory says to everything that could be done in it, as
# JSON; CONTROL and DEVICE are nodes of it.
ASK = """
import ctypes, errno, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
directory, control, device = sys.argv[1:]
os.chdir(directory)
answers = {}
create = os.O_CREAT | os.O_WRONLY
long = "x" * 256
shown = {control: "control", device: "device", long: "long"}
def ask(label, function, *arguments):
    label = " ".join(shown.get(word, word) for word in label.split())
    try:
        answer = function(*arguments)
    except OSError as problem:
        answer = errno.errorcode[problem.errno]
    answers[label] = answer
def rename(name, to, flags):
    if libc.renameat2(-100, os.fsencode(name), -100, os.fsencode(to), flags) < 0:
        raise OSError(ctypes.get_errno(), "")
def opened(name, flags):
    os.close(os.open(name, flags))
ask("create", opened, "new", create)
ask("create exclusively", opened, "new", create | os.O_EXCL)
ask("create what is there", opened, control, os.O_CREAT | os.O_EXCL | os.O_RDWR)
ask("open what is there", opened, control, os.O_CREAT | os.O_RDWR)
ask("O_TMPFILE", opened, ".", os.O_TMPFILE | os.O_RDWR)
ask("create the directory", opened, ".", os.O_CREAT)
ask("write the directory", opened, ".", os.O_RDWR)
ask("link from elsewhere", os.link, "/etc/passwd", "new")
ask("unlink what is not there", os.unlink, "new")
ask("unlink a directory", os.rmdir, control)
ask("remove the root", os.rmdir, ".")
ask("unlink the control node", os.unlink, control)
ask("a file in a file", os.stat, control + "/new")
ask("a long name", os.stat, long)
ask("the longest name", os.pathconf, ".", "PC_NAME_MAX")
for name in ("new", control, long):
    ask("mkdir " + name, os.mkdir, name)
    ask("symlink " + name, os.symlink, "target", name)
    ask("link " + name, os.link, control, name)
    for kind in ("S_IFREG", "S_IFIFO", "S_IFSOCK", "S_IFCHR", "S_IFBLK"):
        ask(f"mknod {kind} {name}", os.mknod, name, getattr(stat, kind) | 0o600, 1799)
for flags in (0, 1, 2, 4, 3, 8):
    for name, to in ((control, "new"), ("missing", "new"), (device, control), (control, device)):
        ask(f"rename {name} {to} {flags}", rename, name, to, flags)
    ask(f"rename to elsewhere {flags}", rename, device, "/tmp/new", flags)
for name in (control, device):
    for flags in (0, 1, 2, 4):
        ask(f"rename {name} {name} {flags}", rename, name, name, flags)
for name in (control, device, "."):
    mode = os.stat(name).st_mode
    ask("chmod " + name, os.chmod, name, 0o4711)
    ask("mode " + name, lambda: stat.S_IMODE(os.stat(name).st_mode))
    os.chmod(name, mode)
    ask("chown " + name, os.chown, name, 0, 0)
    ask("chown to nobody " + name, os.chown, name, 999999999, 1)
    ask("utimens " + name, os.utime, name, (1, 2))
    ask("times " + name, lambda: os.stat(name).st_mtime)
    ask("truncate " + name, os.truncate, name, 5)
    ask("statvfs " + name, lambda: os.statvfs(name).f_bsize)
    ask("listxattr " + name, os.listxattr, name)
    for key in ("user", "trusted", "security"):
        if (key, name) != ("user", "."):
            ask(f"setxattr {key} {name}", os.setxattr, name, key + ".key", b"x")
        ask(f"getxattr {key} {name}", os.getxattr, name, key + ".key")
        ask(f"removexattr {key} {name}", os.removexattr, name, key + ".key")
    for key in ("system.posix_acl_access", "security.capability", "nonsense"):
        ask(f"setxattr {key} {name}", os.setxattr, name, key, b"x")
        ask(f"getxattr {key} {name}", os.getxattr, name, key)
ask("names", lambda: sorted(shown[name] for name in os.listdir(".")))
print(json.dumps(answers))
"""


def test_rm_removes_an_unused_device(inside: Lines) -> None:
    lines = inside("""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); n=${d#/dev/}
        try rm /dev/loopfs/$n | sed "s,$n,N,"; losetup -d $d
        rm /dev/loopfs/$n; ls /dev/loopfs; ls $d 2>/dev/null || echo gone
        test $(losetup -f) = $d && echo again
    """)
    busy = "rm: cannot remove '/dev/loopfs/N': Device or resource busy"
    assert lines == [busy, "status 1", "loop-control", "gone", "again"]


def test_mv_renames_a_device(inside: Lines) -> None:
    lines = inside("""
        truncate -s 16M disk.img; d=$(losetup -f); n=${d#/dev/}
        mv /dev/loopfs/$n /dev/loopfs/disk; ls /dev/loopfs; ls $d 2>/dev/null || echo no link
        losetup /dev/loopfs/disk disk.img; mkfs.ext4 -q /dev/loopfs/disk
        stat -c %t /dev/loopfs/disk; mkdir mnt; mount /dev/loopfs/disk mnt; ls mnt; umount mnt
        mv /dev/loopfs/disk /dev/loopfs/$n; losetup -n -O BACK-FILE $d | sed 's,.*/,,'
    """)
    assert lines == ["disk", "loop-control", "no link", "7", "lost+found", "disk.img"]


@pytest.mark.usefixtures("image")
def test_two_devices_exchange_their_names(inside: Lines) -> None:
    """Also where one of them is mounted."""
    lines = inside("""
        d=$(losetup -f --show disk.img); n=${d#/dev/}
        mkdir mnt; mount $d mnt; e=$(losetup -f); cd /dev/loopfs
        python3 -c 'import ctypes, sys; names = [word.encode() for word in sys.argv[1:]]
print(ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2))' $n ${e#/dev/}
        cd - >/dev/null; stat -c %T /dev/loopfs/$n | wc -l; ls $d $e | wc -l
        umount mnt; losetup -d /dev/loopfs/${e#/dev/}; losetup -a
    """)
    assert lines == ["0", "1", "2"]


def test_nothing_else_can_be_made_or_moved_there(inside: Lines) -> None:
    lines = inside("""
        here=$PWD; touch x; cd /dev/loopfs; losetup -f >/dev/null
        for c in 'touch new' 'mkdir new' 'ln -s a new' 'mknod new b 7 99' 'mv loop-control new' \\
            "mv -T $here/x new" 'rm loop-control'; do try $c | tail -n 1; done; ls | wc -l
    """)
    assert lines == [*["status 1"] * 7, "2"]


def test_a_directory_as_the_kernels(inside: Lines, workdir: Path) -> None:
    """The oracle is devpts, which has a control node and devices, too."""
    (workdir / "ask.py").write_text(ASK)
    ours, kernels = map(
        json.loads,
        inside("""
        mkdir one two; mount -t loop none one
        mount -t devpts -o newinstance,ptmxmode=600 none two; exec 3<>two/ptmx
        python3 -c "import fcntl; fcntl.ioctl(0, 0x4C80, -1)" <>one/loop-control
        python3 ask.py one loop-control $(ls one | grep -v control); python3 ask.py two ptmx 0
    """),
    )
    answers: dict[str, tuple[object, object]] = {
        label: (ours, kernels)
        for (label, ours), kernels in zip(ours.items(), kernels.values(), strict=True)
        if ours != kernels
    }
    assert answers == {}
