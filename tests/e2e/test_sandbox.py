"""The environment of the command: ids, /dev, the instance, and the rest of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines, Start
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

# Numbered at once, as losetup -f does it, and by ioctl, as losetup does not.
CONTROL = """
python3 -c 'import fcntl, sys
with open("/dev/loop-control", "r+b", buffering=0) as control:
    print(fcntl.ioctl(control, int(sys.argv[1], 16), int(sys.argv[2])))' """
ADD, REMOVE, GET_FREE = CONTROL + "4C80 ", CONTROL + "4C81 ", CONTROL + "4C82 0"


# --- ids -----------------------------------------------------------------------


def test_the_caller_is_root_with_all_its_ids(inside: Lines, user: User) -> None:
    lines = inside("id -u; id -g; cat /proc/self/uid_map; echo; cat /proc/self/gid_map")
    assert lines[:2] == ["0", "0"]
    split = lines.index("")
    for lines_of_map, own in ((lines[2:split], user.uid), (lines[split + 1 :], user.gid)):
        extents = [[int(field) for field in line.split()] for line in lines_of_map]
        assert extents[0] == [0, own, 1]
        assert sum(count for _, _, count in extents) >= 65537
        assert [inside_id for inside_id, _, _ in extents] == [0, 1][: len(extents)]


def test_files_of_the_caller_are_roots_and_stay_the_callers(
    inside: Lines, workdir: Path, user: User
) -> None:
    (workdir / "before").write_text("text")
    os.chown(workdir / "before", user.uid, user.gid)
    assert inside("stat -c %u:%g before; touch after") == ["0:0"]
    made = (workdir / "after").stat()
    assert (made.st_uid, made.st_gid) == (user.uid, user.gid)


def test_without_newuidmap_there_is_one_id(
    run_as_user: Run, loopfs_bin: list[str], user: User, workdir: Path
) -> None:
    tools = workdir / "tools"
    tools.mkdir()
    for directory in ("/usr/sbin", "/usr/bin"):
        for entry in os.scandir(directory):
            if entry.name not in ("newuidmap", "newgidmap") and not (tools / entry.name).exists():
                (tools / entry.name).symlink_to(entry.path)
    script = """
        cat /proc/self/uid_map /proc/self/gid_map; truncate -s 4M disk.img; mkdir mnt
        mkfs.ext4 -q -F disk.img
        mount -o loop disk.img mnt; echo text >mnt/file; umount mnt; losetup -f
    """
    result = run_as_user(
        [*loopfs_bin, "run", "--", "sh", "-ec", script], cwd=workdir, env={"PATH": str(tools)}
    )
    assert (result.returncode, result.stderr) == (0, "")
    uid_map, gid_map, device = (line.split() for line in result.stdout.splitlines())
    assert uid_map == ["0", str(user.uid), "1"]
    assert gid_map == ["0", str(user.gid), "1"]
    assert device[0].startswith("/dev/loop")


# --- /dev ----------------------------------------------------------------------


def test_nodes_of_dev(inside: Lines) -> None:
    lines = inside("""
        cd /dev; for name in null zero full random urandom tty ptmx; do test -c $name; done
        test -d pts; test -d shm; test ! -e sda; test ! -e vda; test ! -e mem; test ! -e loop0
        echo text >null; head -c 2 zero | wc -c; try sh -c '/bin/echo >full' | tail -n 1
        head -c 3 urandom | wc -c; readlink fd stdin stdout stderr
        echo shared >shm/loopfs-e2e; rm shm/loopfs-e2e
    """)
    assert lines[:3] == ["2", "status 1", "3"]
    fds = ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    assert lines[3:] == fds


def test_terminals_can_be_made(inside: Lines) -> None:
    lines = inside("""
        python3 -c 'import os
_, slave = os.openpty()
print(os.ttyname(slave).rstrip("0123456789"))'
        script -q -c 'tty | tr -d 0-9' /dev/null
    """)
    assert lines == ["/dev/pts/", "/dev/pts/"]


def test_the_instance(inside: Lines, first_number: int) -> None:
    look = "stat -c '%n %F %t:%T %a %u:%g %i'"
    lines = inside(
        f"{ADD} -1; cd /dev/loopfs; ls -a; {look} . *; {look} -L /dev/loop-control"
        f" /dev/loop{first_number}; {look} /dev/loop{first_number}"
    )
    name, minor = f"loop{first_number}", f"{first_number:x}"
    control = "character special file a:ed 600 0:0 2"
    device = f"block special file 7:{minor} 600 0:0 {first_number + 3}"
    assert lines[:5] == [str(first_number), ".", "..", "loop-control", name]
    assert re.fullmatch(r". directory 0:0 755 0:0 \d+", lines[5])
    assert lines[6:] == [
        f"loop-control {control}",
        f"{name} {device}",
        f"/dev/loop-control {control}",
        f"/dev/{name} {device}",
        f"/dev/{name} {device}",
    ]


def test_an_open_device_is_a_block_device_to_fstat(inside: Lines, first_number: int) -> None:
    lines = inside(f"""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img)
        python3 -c 'import os, stat, sys
for path in sys.argv[1:]:
    st = os.fstat(os.open(path, os.O_RDONLY))
    major, minor = os.major(st.st_rdev), os.minor(st.st_rdev)
    print(stat.filemode(st.st_mode), major, minor, st.st_ino, st.st_uid)
' $d /dev/loop-control /dev/loopfs/loop{first_number}
        stat -L -c '%F %t:%T' - <$d; losetup -d $d
    """)
    device = f"brw------- 7 {first_number} {first_number + 3} 0"
    assert lines[:3] == [device, "crw------- 10 237 2 0", device]
    assert lines[3:] == [f"block special file 7:{first_number:x}"]


def test_devices_come_and_go_by_the_control_node(inside: Lines, first_number: int) -> None:
    following, far = first_number + 1, first_number + 50
    lines = inside(
        f"{GET_FREE}; {GET_FREE}; {ADD} {far}; {ADD} -1; {REMOVE} {first_number}; {GET_FREE}"
        "\ncd /dev; echo loop[0-9]* loopfs/loop[0-9]*"
        f"\n{REMOVE} {far}; {REMOVE} {following}; {GET_FREE}; {REMOVE} {first_number}"
        "\necho loop* loopfs/*"
    )
    assert lines[:6] == [str(n) for n in (first_number, first_number, far, following, 0, following)]
    names = sorted((f"loop{far}", f"loop{following}"))
    assert lines[6] == " ".join(names + [f"loopfs/{name}" for name in names])
    assert lines[7:] == [
        "0",
        "0",
        str(first_number),
        "0",
        "loop-control loopfs loopfs/loop-control",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "touch /dev/loopfs/file",
        "mkdir /dev/loopfs/directory",
        "mknod /dev/loopfs/node b 7 9",
        "mkfifo /dev/loopfs/fifo",
        "ln -s /dev/null /dev/loopfs/link",
        "ln /dev/loopfs/loop-control /dev/loopfs/hard",
        "mv /dev/loopfs/loop-control /dev/loopfs/other",
        "rm -f /dev/loopfs/loop-control",
    ],
)
def test_nothing_can_be_changed_in_the_instance(inside: Lines, command: str) -> None:
    *said, status, left = inside(f"try {command}; ls /dev/loopfs")
    assert said
    assert status == "status 1"
    assert left == "loop-control"
    assert "not permitted" in said[0] or "ermission denied" in said[0]


def test_device_numbers_open_nothing_of_the_host(inside: Lines) -> None:
    said, status, mounted = inside(
        "try mknod node b 7 0; grep ' /dev/loopfs ' /proc/self/mountinfo"
    )
    assert "not permitted" in said
    assert status == "status 1"
    assert "nodev" in mounted.split()[5].split(",")
    assert mounted.split(" - ")[1].split()[:2] == ["fuse.devtmpfs", "dev"]


# --- the rest of the machine -----------------------------------------------------


def test_network_and_files_are_the_callers(inside: Lines, run_as_user: Run, workdir: Path) -> None:
    same = "readlink /proc/self/ns/net /proc/self/ns/uts /proc/self/ns/ipc; uname -n; ls /"
    assert inside(same) == run_as_user(same).stdout.splitlines()
    other = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid"
    assert not set(inside(other)) & set(run_as_user(other).stdout.splitlines())


def test_proc_shows_the_sandbox_only(inside: Lines) -> None:
    pids = [int(name) for name in inside("ls /proc") if name.isdigit()]
    assert min(pids) == 1
    assert len(pids) <= 4


@pytest.mark.usefixtures("hosts_loops")
def test_the_host_does_not_see_the_instance(started: Start, image: Path) -> None:
    script = "mkdir mnt; mount -o loop disk.img mnt && echo ready; read line; umount mnt"
    before = set(os.listdir("/dev")), set(os.listdir("/sys/block"))
    process = started(script)
    assert (set(os.listdir("/dev")), set(os.listdir("/sys/block"))) == before
    mounts = Path("/proc/self/mountinfo").read_text()
    assert "fuse.loop" not in mounts
    assert str(image.parent) not in mounts
    assert not (image.parent / "mnt/lost+found").exists()
    assert process.communicate("\n", 30)[1] == ""
    assert process.returncode == 0


def test_the_nodes_are_there_for_every_user(inside: Lines) -> None:
    """As far as their modes go, for another user of the sandbox and in a namespace of theirs."""
    lines = inside("""
        echo text >disk.img; truncate -s 1M disk.img; d=$(losetup -f --show disk.img)
        chmod 644 /dev/loopfs/loop-control; chmod 604 $d
        as="setpriv --reuid 1 --regid 1 --clear-groups"
        $as stat -c '%F %u %a' /dev/loopfs/*; $as head -n 1 $d; $as stat -L -c %F - <$d
        $as sh -c "echo >$d" 2>&1 | grep -c 'Permission denied'
        $as unshare -Ur stat -c '%F %U %a' -L $d; $as unshare -Ur stat -L -c '%F %U' - <$d
    """)
    assert lines == [
        "character special file 0 644",
        "block special file 0 604",
        "text",
        "block special file",
        "1",
        "block special file nobody 604",
        "block special file nobody",
    ]


def test_a_proc_can_be_mounted_in_namespaces_made_inside(inside: Lines) -> None:
    """Although a file of it is covered, for which the kernel would refuse that."""
    assert inside("unshare -Urmpf --mount-proc sh -c 'echo /proc/[0-9]*'") == ["/proc/1"]
