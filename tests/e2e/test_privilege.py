"""Callers without the required rights: nested namespaces, no capabilities."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# Hands two contexts on to a program: as descriptor 7 a new one, as 8 one of the instance "one".
HAND_ON = """
import sys
from calls import *
os.dup2(call("fsopen", "loop", 0), 7)
os.dup2(call("fspick", HERE, "one", 0), 8)
os.execvp(sys.argv[1], sys.argv[1:])
"""

# Everything that changes what is mounted, and what it says.
CHANGE = """
import struct
from calls import *
def mount(*words):
    words = [word.encode() if isinstance(word, str) else word for word in words]
    return errno.errorcode[ctypes.get_errno()] if libc.mount(*words) else 0
def umount(place, flags=0):
    return errno.errorcode[ctypes.get_errno()] if libc.umount2(place.encode(), flags) else 0
noexec = struct.pack("4Q", 8, 0, 0, 0)
says = {
    "remount": mount(None, "one", None, 32, "max=9"),
    "read-only": mount(None, "one", None, 32 | 1, None),
    "move": mount("one", "two", None, 8192, None),
    "umount": umount("one"),
    "detach": umount("one", 2),
    "umount ext4": umount("fs"),
    "remount ext4": mount(None, "fs", None, 32 | 1, None),
    "new": mount("none", "two", "loop", 0, None),
    "umount new": umount("two"),
    "create": call("fsconfig", 7, CREATE, None, None, 0),
    "fsmount": call("fsmount", 7, 0, 0),
    "limit": call("fsconfig", 8, STRING, "max", "9", 0),
    "reconfigure": call("fsconfig", 8, RECONFIGURE, None, None, 0),
}
for name in ("fsopen", "fspick", "mount_setattr", "open_tree"):
    arguments = {"fsopen": ("loop", 1), "mount_setattr": (HERE, "one", 0, noexec, 32)}
    answer = call(name, *arguments.get(name, (HERE, "one", 1)))
    says[name] = answer if isinstance(answer, str) else 0
for name, answer in says.items():
    print(name, answer, sep=": ")
"""

BEFORE = """
    export PYTHONDONTWRITEBYTECODE=1; mkdir fs; mount -o loop disk.img fs
    mount -t loop -o max=0 none one
"""
AFTER = """
    python3 -c 'import fcntl; fcntl.ioctl(0, 0x4C80, -1)' <>one/loop-control 2>&1 | tail -n 1
    umount one fs; ls one fs two; losetup -a
"""
FULL = "OSError: [Errno 28] No space left on device"


@pytest.fixture(autouse=True)
def _programs(places: None, image: Path) -> None:
    image.parent.chmod(0o755)  # for other users of the sandbox
    (image.parent / "hand_on.py").write_text(HAND_ON)
    (image.parent / "change.py").write_text(CHANGE)


def said(inside: Lines, how: str) -> dict[str, str]:
    """What a program says that is started by the words ``how``, and that nothing has changed."""
    *lines, full, one, _, fs, _, two = inside(f"""
        {BEFORE} python3 hand_on.py {how} python3 change.py {AFTER}
    """)
    assert (full, one, fs, two) == (FULL, "fs:", "one:", "two:")
    return dict(line.split(": ") for line in lines)


@pytest.mark.parametrize(
    "how",
    [
        "unshare --user --map-root-user",
        "setpriv --bounding-set -all --inh-caps -all",
        "setpriv --reuid 1 --regid 1 --clear-groups",
    ],
)
def test_without_capabilities_over_the_mount_namespace(inside: Lines, how: str) -> None:
    """Also by what one who has them hands on; a parameter is taken, as it changes nothing yet."""
    answers = said(inside, how)
    assert answers.pop("limit") == "0"
    assert set(answers.values()) == {"EPERM"}, answers


def test_in_namespaces_of_ones_own(inside: Lines) -> None:
    """What was mounted before belongs to another, and is locked where it is."""
    assert said(inside, "unshare --user --map-root-user --mount") == {
        "remount": "EPERM",
        "read-only": "EPERM",
        "move": "EINVAL",
        "umount": "EINVAL",
        "detach": "EINVAL",
        "umount ext4": "EINVAL",
        "remount ext4": "EPERM",
        "new": "0",
        "umount new": "0",
        "create": "EPERM",
        "fsmount": "EINVAL",
        "limit": "0",
        "reconfigure": "EPERM",
        "fsopen": "0",
        "fspick": "0",
        "mount_setattr": "0",
        "open_tree": "0",
    }


def test_root_of_the_namespace_around_mounts_in_a_nested_one(inside: Lines) -> None:
    """By nsenter(1): who owns a namespace has all capabilities in those within."""
    lines = inside("""
        mkfifo wait; unshare --user --map-root-user --mount sh -c 'echo >ready; read go <wait' &
        until test -s ready; do sleep 0.01; done; here=$PWD; ls /proc/$!/task >/dev/null
        nsenter --mount=/proc/$!/ns/mnt sh -ec "cd $here; mount -t loop -o max=1 none one; ls one
            mount -i -o remount,max=2 one; mount -o loop disk.img two; echo text >two/file
            umount two; umount one; losetup -a"
        echo >wait; wait; debugfs -R 'cat file' disk.img 2>/dev/null; ls one two
    """)
    assert lines == ["loop-control", "text", "one:", "", "two:"]
