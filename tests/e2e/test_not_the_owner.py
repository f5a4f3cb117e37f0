"""What a nested namespace asks of an instance that one around it owns: no more than of a tmpfs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# Each call is made of a place; prints the answers of all as JSON. Errors come as their names.
PROGRAM = r"""
from calls import *
import json, struct, sys
REMOUNT, RDONLY, NOSUID, BIND, MOVE, PRIVATE = 32, 1, 2, 4096, 8192, 1 << 18
FORCE, DETACH, EXPIRE = 1, 2, 4
CLONE, EMPTY_PATH = 1 | os.O_CLOEXEC, 0x1000
def words(texts):
    return [text.encode() if isinstance(text, str) else text for text in texts]
def answer(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "fine"
def mount(source, target, fstype=None, flags=0, data=None):
    return answer(libc.mount(*words((source, target, fstype)), flags, *words((data,))))
def umount(target, flags=0):
    return answer(libc.umount2(target.encode(), flags))
def attributes(place, set=0, clear=0):
    data = struct.pack("=4Q", set, clear, 0, 0)
    return answer(libc.syscall(442, HERE, place.encode(), 0, data, 32))
def picked(place, *parameters):
    context = call("fspick", HERE, place, 1)
    if isinstance(context, str):
        return context
    for key, value in parameters:
        kind = FLAG if value is None else STRING
        if call("fsconfig", context, kind, key, value, 0) != 0:
            return "refused"
    result = call("fsconfig", context, RECONFIGURE, None, None, 0)
    os.close(context)
    return result or "fine"
def copied(place):
    tree = call("open_tree", HERE, place, CLONE)
    return tree if isinstance(tree, str) else "fine"
def moved(place):
    return call("move_mount", HERE, place, HERE, "three", 0) or "fine"
def made(fstype):
    context = call("fsopen", fstype, 1)
    return context if isinstance(context, str) else call("fsconfig", context, CREATE, None, None, 0)
place, fstype, option = sys.argv[1:4]
print(json.dumps([eval(text) for text in json.loads(sys.argv[4])]))
"""

PLACES = {"loop": ("one", "max=9"), "tmpfs": ("two", "size=9m")}

# With a mount namespace of its own, in which what is mounted is locked.
WITH_MOUNTS = {
    "umount(place)": "EINVAL",
    "umount(place, DETACH)": "EINVAL",
    "umount(place, FORCE)": "EINVAL",
    "umount(place, EXPIRE)": "EINVAL",
    "mount(None, place, None, REMOUNT, option)": "EPERM",  # nosuid is locked
    "mount(None, place, None, REMOUNT | BIND, None)": "EPERM",
    "mount(None, place, None, REMOUNT | NOSUID, option)": "EPERM",
    "mount(None, place, None, REMOUNT | NOSUID, None)": "EPERM",
    "mount(None, place, None, REMOUNT | NOSUID | RDONLY, None)": "EPERM",
    "mount(None, place, None, REMOUNT | NOSUID, 'strange')": "EINVAL",
    "mount(None, place, None, REMOUNT | BIND | NOSUID | RDONLY, None)": "fine",
    "mount(None, place, None, REMOUNT | BIND | NOSUID, None)": "fine",
    "mount(place, 'three', None, MOVE)": "EINVAL",
    "moved(place)": "EINVAL",
    "attributes(place, 0, NOSUID)": "EPERM",
    "picked(place)": "EPERM",
    "picked(place, option.split('='))": "EPERM",
    "picked(place, ('ro', None))": "EPERM",
    "copied(place)": "fine",
}

# In the mount namespace of others.
WITHOUT_MOUNTS = dict.fromkeys(WITH_MOUNTS, "EPERM") | {
    "mount('none', 'three', fstype)": "EPERM",
    "mount(place, 'three', None, BIND)": "EPERM",
    "made(fstype)": "EPERM",
}

INSTANCE = """
chmod 755 .; mkdir three; mount -t loop -o max=1,nosuid name one
mount -t tmpfs -o size=1m,nosuid name two
python3 -c 'import fcntl
print(fcntl.ioctl(open("one/loop-control", "r+b", 0), 0x4C80, -1))' >number
losetup $PWD/one/loop$(cat number) disk.img; ls one >nodes; chmod 666 one/loop-control
see() { findmnt -no SOURCE,FSTYPE,VFS-OPTIONS,FS-OPTIONS one; findmnt -no OPTIONS two; }; see >seen
"""
UNCHANGED = """
see | cmp - seen; ls one | cmp - nodes; cat /sys/block/loop$(cat number)/loop/backing_file
python3 -c 'import fcntl
try:
    fcntl.ioctl(open("one/loop-control", "r+b", 0), 0x4C80, -1)
except OSError as problem:
    print(problem.strerror)'
umount one two; ls one; losetup -a
"""


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ("unshare -Urm", WITH_MOUNTS),
        ("unshare -Ur", WITHOUT_MOUNTS),
        ("unshare -Urm setpriv --bounding-set -sys_admin", WITHOUT_MOUNTS),
        ("setpriv --bounding-set -sys_admin", WITHOUT_MOUNTS),
        ("setpriv --reuid 1 --clear-groups", WITHOUT_MOUNTS),
    ],
)
@pytest.mark.parametrize("fstype", PLACES)
def test_who_does_not_own_it(
    inside: Lines, image: Path, how: str, calls: dict[str, str], fstype: str
) -> None:
    """Each call is refused as the kernel refuses it, and nothing has changed afterwards."""
    (image.parent / "program.py").write_text(PROGRAM)
    (image.parent / "calls").write_text(json.dumps(list(calls)))
    place, option = PLACES[fstype]
    answers, backing, limit = inside(f"""
        {INSTANCE}
        PYTHONDONTWRITEBYTECODE=1 {how} python3 program.py {place} {fstype} {option} "$(cat calls)"
        {UNCHANGED}
    """)
    assert dict(zip(calls, json.loads(answers), strict=True)) == calls
    assert backing == str(image)
    assert limit == "No space left on device"
