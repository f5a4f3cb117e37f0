"""Arguments that another thread rewrites while the call is trapped, and callers that are killed
in the middle of each call.

Whatever is read, and when: what comes of it is what would have come of one string or the other.
The one thing more is what the kernel says of a string that loopfs has not seen.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.rounds import rounds
from tests.support.skip import need

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

PROGRAM = Path(__file__).with_name("rewriting.c")
TIMES = rounds(10, 40)

# A call, the two strings (and another type than loop); what may come of it, and then be mounted
# at "one" and at "two".
OUTCOMES = {
    "source a b": {"fine loop -"},
    "source dev null ext4": {"fine ext4 -", "ENOTBLK - -"},
    "target one two": {"fine loop -", "fine - loop"},
    "target one missing": {"fine loop -", "ENOENT - -"},
    "target one file": {"fine loop -", "ENOTDIR - -"},
    "type loop tmpfs": {"fine loop -", "fine tmpfs -", "ENODEV - -"},
    "type loop strange": {"fine loop -", "ENODEV - -"},
    "type loop ext4": {"fine loop -", "ENOENT - -", "ENODEV - -", "EPERM - -"},
    "data max=1 max=x": {"fine loop -", "EINVAL - -"},
    "data max=1 links": {"fine loop -"},
    "remount max=2 max=x": {"fine loop -", "EINVAL loop -"},
    "remount-target one two": {"EINVAL loop tmpfs", "fine loop tmpfs"},
    "umount one two": {"fine - tmpfs", "fine loop -"},
    "umount one missing": {"fine - tmpfs", "ENOENT loop tmpfs"},
    "fsopen loop tmpfs": {"fine - -", "ENODEV - -"},
    "fsopen loop strange": {"fine - -", "ENODEV - -"},
    "key max strange": {"fine - -", "EINVAL - -"},
    "value 1 x": {"fine - -", "EINVAL - -"},
    "fspick one two": {"fine loop -", "EINVAL loop -"},
    "fspick one missing": {"fine loop -", "ENOENT loop -"},
    "move_mount one two": {"fine loop -", "fine - loop"},
    "move_mount one missing": {"fine loop -", "ENOENT - -"},
    "statfs one two": {"fine loop -"},
    "statfs one missing": {"fine loop -", "ENOENT loop -"},
}

BEFORE = "touch file; d=$(losetup -f --show disk.img); ln -s $d dev; ln -s /dev/null null"
# The supervisor lives, nothing is mounted, and no engine has the device.
AFTER = """
    grep $PWD /proc/self/mountinfo || until losetup -d $d 2>/dev/null; do sleep 0.01; done
    losetup -a; mount -o loop disk.img one; ls one; umount one; losetup -a
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "no compiler")
    program = tmp_path_factory.mktemp("rewriting") / "rewriting"
    subprocess.run(["gcc", "-Wall", "-Werror", "-pthread", "-o", program, PROGRAM], check=True)
    return program


@pytest.fixture
def rewriting(image: Path, compiled: Path) -> Path:
    """The program, where the user can run it."""
    return Path(shutil.copy(compiled, image.parent))


@pytest.mark.parametrize("words", OUTCOMES)
def test_a_string_that_changes(inside: Lines, rewriting: Path, words: str) -> None:
    call, *strings = words.split()
    *seen, last = inside(f"{BEFORE}; {rewriting} {call} {TIMES} {' '.join(strings)}; {AFTER}")
    assert last == "lost+found"
    assert seen
    assert set(seen) <= OUTCOMES[words]


def test_callers_that_are_killed(inside: Lines, rewriting: Path) -> None:
    """Each at many moments; none leaves anything but what it has mounted, be it a moment later."""
    calls = "\n".join(words for words in OUTCOMES if "missing" not in words)
    lines = inside(f"""
        {BEFORE}
        echo '{calls}' | while read -r call strings; do
            for n in {rounds("1 3", "1 2 3 5 8")}; do
                timeout -s KILL 0.0$n {rewriting} $call 10000 $strings >/dev/null 2>&1 || :
                for place in one two; do while umount $place 2>/dev/null; do :; done; done
            done
        done
        {rewriting} target {TIMES} one two >/dev/null
        {AFTER}
    """)
    assert lines == ["lost+found"]
