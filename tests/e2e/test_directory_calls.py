"""Every call that changes a directory or what is in it, made of an instance.

What is no affair of loop devices is asked of a devpts too, the kernel's own filesystem of that
kind, and must be the same there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = pytest.mark.e2e

# Evaluates expressions in a directory in which "a" and "b" name devices and "c" the control node.
PROGRAM = """
import ctypes, errno, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
def rename(old, new, flags=0):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "")
def made(mode):
    return os.mknod("new", mode | 0o600, os.makedev(1, 3))
def opened(path, flags):
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    os.close(fd)
def by_descriptor(path, flags, act, *words):
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return act(fd, *words)
    finally:
        os.close(fd)
def changed(path, act, *words, **named):
    act(path, *words, **named)
    st = os.stat(path)
    return f"{stat.S_IMODE(st.st_mode):o} {st.st_uid}:{st.st_gid} {st.st_atime_ns} {st.st_mtime_ns}"
def answer(text):
    try:
        return eval(text)
    except OSError as problem:
        return errno.errorcode[problem.errno]
os.chdir(sys.argv[1])
c, = (name for name in os.listdir() if name in ("ptmx", "loop-control"))
a, b = sorted(set(os.listdir()) - {c})
ino = {name: os.stat(name).st_ino for name in (a, b, c)}
print(json.dumps([answer(text) for text in json.loads(sys.argv[2])]))
assert {name: os.stat(name).st_ino for name in (a, b, c)} == ino and len(os.listdir()) == 3
"""

# Of every filesystem with nodes that only its driver makes.
OF_THAT_KIND: dict[str, object] = {
    # new entries
    "os.mkdir('new')": "EPERM",
    "os.mkdir(a)": "EEXIST",
    "os.symlink('x', 'new')": "EPERM",
    "os.symlink('x', a)": "EEXIST",
    "os.link(a, 'new')": "EPERM",
    "os.link(a, c)": "EEXIST",
    "os.link('../outside', 'new')": "EXDEV",
    "os.link(a, '../new')": "EXDEV",
    "made(stat.S_IFREG)": "EACCES",
    "made(stat.S_IFCHR)": "EPERM",
    "made(stat.S_IFBLK)": "EPERM",
    "made(stat.S_IFIFO)": "EPERM",
    "made(stat.S_IFSOCK)": "EPERM",
    "made(stat.S_IFDIR)": "EPERM",
    "opened('new', os.O_CREAT | os.O_WRONLY)": "EACCES",
    "opened('new', os.O_CREAT | os.O_EXCL | os.O_RDONLY)": "EACCES",
    "opened(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY)": "EEXIST",
    "opened('.', os.O_TMPFILE | os.O_RDWR)": "ENOTSUP",
    "os.stat('x' * 255)": "ENOENT",
    "os.stat('x' * 256)": "ENAMETOOLONG",
    "opened('x' * 256, os.O_CREAT | os.O_WRONLY)": "ENAMETOOLONG",
    # what is no directory, and what is one
    "os.rmdir(a)": "ENOTDIR",
    "os.rmdir('new')": "ENOENT",
    "os.unlink('new')": "ENOENT",
    "os.unlink('../' + os.path.basename(os.getcwd()))": "EISDIR",
    "os.rmdir('../' + os.path.basename(os.getcwd()))": "EBUSY",
    "os.stat(a + '/x')": "ENOTDIR",
    "opened(a, os.O_DIRECTORY)": "ENOTDIR",
    "opened('.', os.O_WRONLY)": "EISDIR",
    "os.readlink(c)": "EINVAL",
    "os.execv(c, ['x'])": "EACCES",
    # renames that end before the filesystem is asked
    "rename('new', a)": "ENOENT",
    "rename(a, a)": None,
    "rename(a, '../new')": "EXDEV",
    "rename('../outside', a)": "EXDEV",
    "rename('../outside', 'new', EXCHANGE)": "EXDEV",
    "rename(a, b, NOREPLACE)": "EEXIST",
    "rename(a, c, NOREPLACE)": "EEXIST",
    "rename(a, a, NOREPLACE)": "EEXIST",
    "rename(a, 'new', EXCHANGE)": "ENOENT",
    "rename(a, b, EXCHANGE | NOREPLACE)": "EINVAL",
    "rename(a, b, EXCHANGE | WHITEOUT)": "EINVAL",
    "rename(a, b, 8)": "EINVAL",
    "rename(a, 'x' * 256)": "ENAMETOOLONG",
    # the control node
    "rename(c, 'new')": "EPERM",
    "rename(c, 'new', NOREPLACE)": "EPERM",
    "rename(c, a)": "EPERM",
    "rename(a, c)": "EPERM",
    "rename(c, a, EXCHANGE)": "EPERM",
    "rename(a, c, EXCHANGE)": "EPERM",
    "rename(c, 'new', WHITEOUT)": "EPERM",
    "os.unlink(c)": "EPERM",
    # size
    "os.truncate(a, 0)": "EINVAL",
    "os.truncate(a, 1 << 20)": "EINVAL",
    "os.truncate(c, 0)": "EINVAL",
    "os.truncate('.', 0)": "EISDIR",
    "by_descriptor(c, os.O_RDWR, os.ftruncate, 0)": "EINVAL",
    "by_descriptor(c, os.O_RDWR, os.ftruncate, 1 << 20)": "EINVAL",
    "by_descriptor('.', os.O_RDONLY, os.ftruncate, 0)": "EINVAL",
    "by_descriptor(c, os.O_RDWR, os.posix_fallocate, 0, 1)": "ENODEV",
    "by_descriptor('.', os.O_RDONLY, os.fsync)": None,
    # extended attributes
    "os.setxattr(a, 'user.x', b'x')": "EPERM",
    "os.setxattr('.', 'user.x', b'x')": "ENOTSUP",
    "os.getxattr(a, 'user.x')": "ENODATA",
    "os.getxattr('.', 'user.x')": "ENOTSUP",
    "os.setxattr(c, 'trusted.x', b'x')": "EPERM",
    "os.setxattr(c, 'security.x', b'x')": "ENOTSUP",
    "os.getxattr(c, 'security.capability')": "ENOTSUP",
    "os.getxattr(c, 'system.posix_acl_access')": "ENOTSUP",
    "os.setxattr(a, 'strange', b'x')": "ENOTSUP",
    "os.removexattr('.', 'user.x')": "ENOTSUP",
    "os.listxattr(a)": [],
    "os.listxattr(c)": [],
    "os.listxattr('.')": [],
    "by_descriptor('.', os.O_RDONLY, os.listxattr)": [],
    # mode, owner and times
    "changed(a, os.utime, ns=(5, 6))[-3:]": "5 6",
    "changed(a, os.chmod, 0o640)": "640 0:0 5 6",
    "changed(a, os.chown, 0, 1)": "640 0:1 5 6",
    "changed(a, os.chmod, 0o7755)": "7755 0:1 5 6",
    "changed(a, os.chown, 1, 0)": "1755 1:0 5 6",
    "changed(a, os.chown, 0, 0)": "1755 0:0 5 6",
    "os.chown(a, 4000000000, 0)": "EINVAL",
    "changed('.', os.utime, ns=(7, 8))[-3:]": "7 8",
    "changed('.', os.chmod, 0o1711)": "1711 0:0 7 8",
    "changed('.', os.chown, 1, 1)": "1711 1:1 7 8",
    "changed(c, os.utime, ns=(9, 2**33 * 10**9))[-21:]": "9 8589934592000000000",
    "changed(c, os.chmod, 0o666)[:7]": "666 0:0",
}

# Of ours alone: devices that can be renamed and removed (patch 2/8).
OF_LOOP: dict[str, object] = {
    "rename(a, b, WHITEOUT)": "EINVAL",
    "rename(a, 'new', WHITEOUT)": "EINVAL",
    "rename(a, 'loop1p1')": "EPERM",
    "rename(a, 'new', NOREPLACE) or rename('new', a, NOREPLACE)": None,
    "rename(a, 'x' * 255) or rename('x' * 255, a)": None,
    "rename(a, b, EXCHANGE) or os.stat(b).st_ino == ino[a] and os.stat(a).st_ino == ino[b]": True,
    "rename(b, a, EXCHANGE) or os.stat(a).st_ino == ino[a] and os.stat(b).st_ino == ino[b]": True,
    "by_descriptor(a, os.O_RDWR, os.ftruncate, 0)": "EINVAL",
    "by_descriptor(a, os.O_RDWR, os.fchmod, 0o660) or changed(a, os.chmod, 0o600)[:7]": "600 0:0",
    "opened(a, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)": None,
}

MADE = {
    "loop": """mount -t loop none place; python3 -c 'import fcntl
with open("place/loop-control", "r+b", 0) as control:
    print(*(fcntl.ioctl(control, 0x4C80, -1) for _ in range(2)))' >numbers""",
    "devpts": "mount -t devpts -o newinstance none place; exec 3<>place/ptmx 4<>place/ptmx",
}


@pytest.mark.parametrize(
    ("fstype", "calls"), [("loop", OF_THAT_KIND), ("devpts", OF_THAT_KIND), ("loop", OF_LOOP)]
)
def test_calls(inside: Lines, workdir: Path, fstype: str, calls: dict[str, object]) -> None:
    (workdir / "calls").write_text(json.dumps(list(calls)))
    (workdir / "program.py").write_text(PROGRAM)
    (answers,) = inside(f"""
        mkdir place; touch outside; {MADE[fstype]}
        python3 program.py place "$(cat calls)"; umount -l place
    """)
    assert dict(zip(calls, json.loads(answers), strict=True)) == calls
