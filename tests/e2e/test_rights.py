"""A job has the caller's rights: the results are those of a tmpfs in the same place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# In each of the directories: an instance, a tmpfs, and what can be mounted on.
MAKE = """
    chmod 755 .; d=$(losetup -f --show disk.img)
    for place in closed group open; do
        mkdir $place; ln -s $d $place/device
        for what in loop tmpfs; do
            mkdir $place/$what $place/new-$what; mount -t $what none $place/$what
        done
    done
    mkdir fs; chmod 700 closed; chgrp 5001 group; chmod 750 group
"""

# What comes of each, of the instance and of the tmpfs.
TRY = """
import struct
from calls import *
def said(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else 0
def mount(source, target, fstype, flags=0, data=None):
    words = [word and word.encode() for word in (source, target, fstype)]
    return said(libc.mount(*words, flags, data))
def pick(path):
    got = call("fspick", HERE, path, 1)
    return got if isinstance(got, str) else 0
for place in ("closed", "group", "open"):
    for what in ("loop", "tmpfs"):
        path, new = f"{place}/{what}", f"{place}/new-{what}"
        print(place, what, said(libc.statfs(path.encode(), bytes(256))), pick(path),
              mount(None, path, None, 32), said(libc.umount2(path.encode(), 0)),
              mount("none", new, what), said(libc.umount2(new.encode(), 0)))
    print(place, "device", mount(f"{place}/device", "fs", "ext4"), said(libc.umount2(b"fs", 0)),
          mount("open/device", f"{place}/new-loop", "ext4"),
          said(libc.umount2(f"{place}/new-loop".encode(), 0)))
"""

SYS_ADMIN = "--inh-caps -all,+sys_admin --ambient-caps +sys_admin"
ALL_DONE = ["0"] * 6


def says(inside: Lines, workdir: Path, how: str) -> dict[str, list[str]]:
    (workdir / "try.py").write_text(TRY)
    lines = inside(f"{MAKE}\nPYTHONDONTWRITEBYTECODE=1 setpriv {how} python3 try.py")
    rows = (line.split() for line in lines)
    return {f"{place} {what}": answers for place, what, *answers in rows}


@pytest.mark.parametrize(
    ("how", "entered"),
    [
        (f"--reuid 5000 --regid 5000 --clear-groups {SYS_ADMIN}", {"open"}),
        (f"--reuid 5000 --regid 5000 --groups 5001 {SYS_ADMIN}", {"open", "group"}),
        (f"--reuid 5000 --regid 5001 --clear-groups {SYS_ADMIN}", {"open", "group"}),
        (
            "--reuid 5000 --regid 5000 --clear-groups --inh-caps -all,+sys_admin,+dac_read_search"
            " --ambient-caps +sys_admin,+dac_read_search",
            {"open", "group", "closed"},
        ),
        ("--bounding-set -all,+sys_admin --inh-caps -all", {"open", "group", "closed"}),  # owner
    ],
    ids=["closed", "groups", "group", "capability", "owner"],
)
def test_cap_sys_admin_permits_nothing_more(
    inside: Lines, workdir: Path, how: str, entered: set[str]
) -> None:
    answers = says(inside, workdir, how)
    for place in ("closed", "group", "open"):
        expected = ALL_DONE if place in entered else ["EACCES"] * 6
        assert answers[f"{place} tmpfs"] == expected
        assert answers[f"{place} loop"] == expected
        # An unmount of what is not mounted is refused as well.
        done = ["0"] * 4 if place in entered else ["EACCES", "EINVAL", "EACCES", "EACCES"]
        assert answers[f"{place} device"] == done


def test_links_are_made_with_the_mounting_users_rights(inside: Lines) -> None:
    """And are not where he may not write; what lies there is not touched."""
    lines = inside(f"""
        chmod 755 .; d=$(losetup -f); mkdir -p open/one his/one; chown 5000 his
        echo precious >open/${{d##*/}}; rm -f his/*loop*
        setpriv --reuid 5000 --regid 5000 --clear-groups {SYS_ADMIN} sh -c '
            for place in open his; do
                mount -i -t loop -o links none $place/one; done'
        for place in open his; do
            truncate -s 1M $place.img
            python3 -c 'import fcntl, sys
fcntl.ioctl(open(sys.argv[1]), 0x4C82)' $place/one/loop-control
            ls -l $place | sed -n "s/.* \\(loop[0-9]\\)/\\1/; s/[0-9]\\+/N/g; /^loop/p"
            echo end; done
        cat open/loop[0-9]*; stat -c %u his/loop*[0-9]
    """)
    assert lines == ["loopN", "end", "loopN -> one/loopN", "end", "precious", "5000"]


def test_a_process_may_name_what_it_has_open(inside: Lines, workdir: Path) -> None:
    """By /proc/self/fd, whatever its credentials: one that has changed them without a program's
    start is not dumpable, and owns none of its files in /proc."""
    (workdir / "own.py").write_text("""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
place = os.open("place", os.O_PATH)
if sys.argv[1] == "dumped":
    libc.prctl(4, 0)
else:
    os.setresuid(5000, 5000, 0); os.seteuid(0)
    libc.setfsuid(5000)
for path in (f"/proc/self/fd/{place}", f"/proc/thread-self/fd/{place}"):
    print(libc.mount(b"none", path.encode(), b"loop", 0, None), ctypes.get_errno(),
          libc.umount2(path.encode(), 2), ctypes.get_errno())
""")
    assert (
        inside("""
        chmod 755 .; mkdir -m 755 place; python3 own.py dumped; python3 own.py mixed
    """)
        == ["0 0 0 0"] * 4
    )


def test_a_caller_without_ids_in_its_namespace_has_those_of_the_outer_one(
    inside: Lines, workdir: Path
) -> None:
    """As after unshare(CLONE_NEWUSER): the kernel goes by the ids that he has had before."""
    (workdir / "none.py").write_text("""
from calls import *
os.setgroups([]); os.setresgid(5000, 5000, 5000); os.setresuid(5000, 5000, 5000)
assert libc.unshare(0x10000000 | 0x20000) == 0  # CLONE_NEWUSER, CLONE_NEWNS
for place in ("closed", "open", "his"):
    for path in (f"{place}/loop", os.path.abspath(f"{place}/loop")):
        for result in (libc.statfs(path.encode(), bytes(256)), libc.umount2(path.encode(), 0)):
            print(result, *[ctypes.get_errno()][result == 0 :])
""")
    lines = inside("""
        chmod 755 .; mkdir closed open his; chmod 700 closed his
        for place in closed open his; do mkdir $place/loop; mount -t loop none $place/loop; done
        chown 5000 his; export PYTHONDONTWRITEBYTECODE=1; python3 none.py; umount */loop
    """)
    assert lines == ["-1 13"] * 4 + ["0", "-1 22"] * 4
