"""uevents and their recipients, by netlink(7), udevadm(8), and blktests' loop/009."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# hear FILE: write "ACTION PATH KEY=VALUE…" of each uevent to FILE, until somebody writes "offline"
# to an attribute; the first line says that it listens. What libudev demands is demanded here.
HEAR = """#!/usr/bin/python3
import os, socket, struct, sys
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 15)
sock.bind((0, 1))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
out = open(sys.argv[1], "w", buffering=1)
print("listening", file=out)
while True:
    data, control, _, (port, groups) = sock.recvmsg(1 << 16, 256)
    (_, uid, gid) = struct.unpack("iII", control[0][2])
    assert (port, groups, uid, gid) == (0, 1, 0, 0), (port, groups, uid, gid)
    head, *words = data.decode().removesuffix("\\0").split("\\0")
    fields = dict(word.split("=", 1) for word in words)
    assert head == fields["ACTION"] + "@" + fields["DEVPATH"] and fields["SUBSYSTEM"] == "block"
    assert int(fields["SEQNUM"]) > 0 and int(fields["DISKSEQ"]) > 0
    assert fields["DEVPATH"].startswith("/devices/virtual/block/loop")  # it may be gone by now
    shown = [f"{k}={v}" for k, v in fields.items() if k not in
             ("ACTION", "DEVPATH", "SUBSYSTEM", "SEQNUM", "DISKSEQ", "MAJOR", "MINOR")]
    print(fields["ACTION"], os.path.basename(fields["DEVPATH"]), *shown, file=out)
    if fields["ACTION"] == "offline":
        break
"""

# Start a listener; end those who hear of a device; what one heard, of a device.
FUNCTIONS = """
hear() { name=$1; shift; "$@" ./hear $name & until grep -qs listening $name; do :; done; }
end() { echo offline > /sys/block/${1##*/}/uevent; wait; }
heard() { sed -e 1d -e '$d' -e "s/${2##*/}/loop_/g" -e 's/DEVNAME=[^ ]* DEVTYPE=//' $1; }
"""

# Make a device in the instance mounted on m.
ADD = """#!/usr/bin/python3
import fcntl
print(fcntl.ioctl(open("m/loop-control", "rb"), 0x4C80, -1))
"""

# Have namespaces of a user of the sandbox (CLONE_*) listen until one may not, and then another.
MANY = """
import ctypes, errno, os, signal, socket, sys
os.setresgid(5, 5, 5)
os.setresuid(5, 5, 5)

def listen():
    told, tells = os.pipe()
    if (pid := os.fork()) == 0:
        assert ctypes.CDLL(None).unshare(int(sys.argv[1], 16)) == 0
        try:
            kept = socket.socket(16, socket.SOCK_RAW, 15)
            os.write(tells, b"listens")
        except OSError as problem:
            os.write(tells, errno.errorcode[problem.errno].encode())
        signal.pause()
    os.close(tells)
    with open(told) as file:
        return pid, os.read(told, 100).decode()

made = []
while not made or made[-1][1] == "listens":
    made.append(listen())
for pid, _ in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
last, said = listen()
os.kill(last, signal.SIGKILL)
print(len(made), made[-1][1], said)
"""


def need_tools(*names: str) -> None:
    for name in names:
        need(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin"), f"{name} is not installed")


@pytest.fixture
def listening(inside: Lines, workdir: Path) -> Lines:
    for name, text in (("hear", HEAR), ("add", ADD), ("lib.sh", FUNCTIONS), ("many", MANY)):
        (workdir / name).write_text(text)
        (workdir / name).chmod(0o755)
    (workdir / "m").mkdir(mode=0o777)
    return lambda script: inside(". ./lib.sh\n" + script)


def test_a_namespace_receives_uevents_of_its_own_devices(listening: Lines) -> None:
    """In the sandbox's network namespace and in another that the sandbox owns; what a user
    namespace within does, and who hears there, is not the sandbox's."""
    need_tools("sfdisk")
    lines = listening("""
        truncate -s 4M disk; printf 'size=1MiB\\n' | sfdisk -q disk
        hear here env; hear own unshare -n
        device=$(losetup -f); losetup -P $device disk; losetup -d $device
        rm /dev/loopfs/${device##*/}
        unshare -Urmn sh -euc '. ./lib.sh
            mount -t loop none m; hear theirs env; end loop$(./add); wc -l < theirs'
        device=$(losetup -f)
        echo "change 12345678-1234-1234-1234-123456789012 A=1" > /sys/block/${device##*/}/uevent
        end $device; heard here $device; cmp here own
    """)
    assert lines[0] == "3", "it listens, add, offline"
    assert lines[1:] == [
        "add loop_ disk",
        "change loop_ disk",
        "change loop_ disk",
        "add loop_p1 partition PARTN=1",
        "remove loop_p1 partition PARTN=1",
        "change loop_ disk",
        "change loop_ DISK_MEDIA_CHANGE=1 disk",
        "remove loop_ disk",
        "add loop_ disk",
        "change loop_ SYNTH_UUID=12345678-1234-1234-1234-123456789012 SYNTH_ARG_A=1 disk",
    ]


def test_udevadm_and_rights_to_write(listening: Lines) -> None:
    """udevadm monitor, trigger and settle; the attribute is root's."""
    need_tools("udevadm", "setpriv")
    lines = listening("""
        : >monitor; stdbuf -oL udevadm monitor --kernel --property > monitor & monitor=$!
        until grep -q '^KERNEL -' monitor; do :; done; truncate -s 1M disk
        device=$(losetup -f); attribute=/sys/block/${device##*/}/uevent; stat -c '%a %U' $attribute
        udevadm settle; udevadm trigger --action=change ${attribute%/uevent}
        try setpriv --reuid=1000 --clear-groups sh -c "echo add > $attribute" | grep -o 'denied'
        try sh -c "echo bogus > $attribute" | tail -1; try truncate -s 0 $attribute
        try chmod 600 $attribute | tail -1
        until grep -q SYNTH monitor; do :; done; kill $monitor
        grep -c '^KERNEL\\[' monitor; grep -A9 '^KERNEL.*add' monitor | grep -v -e SEQ -e KERNEL
        echo $device
    """)
    device = lines.pop()
    number = device.removeprefix("/dev/loop")
    assert lines[:4] == ["644 root", "denied", "status 1", "status 0"]
    assert lines[4:6] == ["status 1", "2"]
    assert set(lines[6:]) == {
        "ACTION=add",
        f"DEVPATH=/devices/virtual/block/loop{number}",
        "SUBSYSTEM=block",
        f"DEVNAME={device}",
        "DEVTYPE=disk",
        "MAJOR=7",
        f"MINOR={number}",
    }


def test_loop_configure_sends_uevents_for_partitions(listening: Lines) -> None:
    """The steps of blktests' loop/009 that need no udevd."""
    need_tools("sfdisk", "udevadm")
    lines = listening("""
        truncate -s 3MiB img; printf 'label: gpt\\nsize=1MiB\\n' | sfdisk -q img; mkfifo mon
        timeout 20 udevadm monitor -ks block/partition > mon & monitor=$!
        exec 3< mon; read -r _ <&3; read -r _ <&3; read -r _ <&3
        dev=$(losetup -f); : > $dev; losetup -P $dev img
        grep -m 1 '^KERNEL\\[.*\\] add' <&3 | sed -e 's/\\[.*\\]//' -e 's/loop[0-9]*/loop_/g'
        losetup -d $dev; kill $monitor
    """)
    assert [line.split() for line in lines] == [
        ["KERNEL", "add", "/devices/virtual/block/loop_/loop_p1", "(block)"]
    ]


def test_a_closed_listener_is_removed(
    listening: Lines, loopfs_bin: list[str], run_as_user: Run, workdir: Path
) -> None:
    """A user has 56 of the supervisor's descriptors; a user namespace that listens costs 3, a
    network namespace of his own 1."""
    workdir.chmod(0o755)
    words = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", *loopfs_bin, "run", "--", "sh", "-ec"]
    script = "python3 many 0x10000000; python3 many 0x50000000"
    result = run_as_user([*words, script], cwd=workdir, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "19 EMFILE listens\n57 EMFILE listens\n"


def test_systemd_udevd_in_the_sandbox(listening: Lines) -> None:
    udevd = "/lib/systemd/systemd-udevd"
    need(os.access(udevd, os.X_OK), "systemd-udevd is not installed")
    lines = listening(f"""
        {udevd} >/dev/null 2>&1 & until udevadm control --ping 2>/dev/null; do :; done
        : >monitor
        stdbuf -oL udevadm monitor --udev --subsystem-match=block > monitor & monitor=$!
        until grep -q '^UDEV -' monitor; do :; done
        device=$(losetup -f); udevadm settle; until grep -q '^UDEV .*add' monitor; do :; done
        test -e /run/udev/data/b7:${{device#/dev/loop}}; kill $monitor
        truncate -s 1M disk.img; losetup $device disk.img; mkfs.ext2 -q -L name $device
        udevadm trigger --settle $device; readlink /dev/disk/by-label/name | cut -c1-10
        losetup -d $device; udevadm control --exit
    """)
    assert lines == ["../../loop"]
