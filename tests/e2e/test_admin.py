"""loopfs ls, kill and detach, from outside of the sandboxes; and who is not answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.support.parts import parts_of, wait_until
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

# A mounted device, a bound one, and an instance of a user namespace within.
SCRIPT = """
    mkdir m one; mount -o loop disk.img m; truncate -s 1M 'a b'; losetup -f -o 4096 'a b'
    unshare --user --map-root-user --mount sh -euc 'mount -t loop -o max=5 none one
        echo ready; sleep 1000'
"""

# ask FD...: ask every sandbox with these descriptors, and say what it answers.
ASK = """
import array, os, socket, sys
lines = [line.split() for line in open("/proc/net/unix")]
for name in sorted({line[7] for line in lines if line[7:] and line[7].startswith("@loopfs/")}):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect("\\0" + name[1:])
    tokens = array.array("i", [os.open(path, os.O_RDONLY) for path in sys.argv[1:]])
    sock.sendmsg([b"list"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, tokens)] if tokens else [])
    print(name.split("/")[1], sock.recv(200).decode())
"""


class Loopfs:
    """Calls of the command, by the user, by another one, by root."""

    def __init__(self, user: User, words: list[str]) -> None:
        self._user = user
        self._words = words

    def __call__(self, *arguments: str, by: User | None = None) -> Result:
        return (by or self._user).run([*self._words, *arguments], timeout=30)

    def listed(self, supervisor: int, *options: str, by: User | None = None) -> Any:
        """What ls tells of a sandbox; None if it does not list it."""
        result = self("ls", "--json", *options, by=by)
        assert (result.returncode, result.stderr) == (0, "")
        return next((each for each in json.loads(result.stdout) if each["pid"] == supervisor), None)


@pytest.fixture
def loopfs(user: User, loopfs_bin: list[str]) -> Loopfs:
    return Loopfs(user, loopfs_bin)


@pytest.fixture
def other(root: User) -> User:
    """Another ordinary user."""
    return User("nobody", 65534, 65534, "/")


@pytest.mark.usefixtures("image")
def test_what_is_told(started: Start, loopfs: Loopfs, workdir: Path, user: User) -> None:
    process = started(SCRIPT)
    told = loopfs.listed(process.pid)
    assert told["command"] == ["sh", "-c", SCRIPT]
    assert (told["user"], told["used"], told["limit"]) == (user.name, 2, 1 << 20)
    outer, inner = told["instances"]
    first, second = outer["devices"]
    assert (outer["places"], inner["places"]) == (["/dev", "/dev/loopfs"], [f"{workdir}/one"])
    assert (inner["used"], inner["limit"], inner["devices"]) == (0, 5, [])
    assert first["backing_file"] == f"{workdir}/disk.img"
    assert (first["flags"], first["size"]) == (["autoclear"], 16 << 20)
    assert first["openers"] > 0
    assert second["backing_file"] == f"{workdir}/a b"
    assert (second["offset"], second["openers"]) == (4096, 0)
    (mount,) = told["mounts"]
    assert (mount["places"], mount["type"]) == ([f"{workdir}/m"], "ext4")
    assert (mount["device"], mount["engine"]) == (first["name"], "ext4")
    assert mount["memory"] > 1 << 20
    assert mount["pid"] in parts_of(process.pid).engines
    shown = loopfs("ls").stdout
    for word in (f"{process.pid}  ", f"{workdir}/disk.img autoclear", "offset=4096", "by ext4"):
        assert word in shown


def test_a_device_is_detached_and_a_sandbox_ended(started: Start, loopfs: Loopfs) -> None:
    process = started("""
        truncate -s 1M image; d=$(losetup -f --show image); losetup -f image
        exec 3<$d; echo ready; read line; exec 3<&-; read line
    """)
    pid = str(process.pid)
    first, second = (d["name"] for d in loopfs.listed(process.pid)["instances"][0]["devices"])
    result = loopfs("detach", pid, f"/dev/{first}")
    assert (result.returncode, "at its last close" in result.stderr) == (0, True)
    result = loopfs("detach", pid, second.removeprefix("loop"))
    assert (result.returncode, result.stderr) == (0, "")
    for name, sentence in ((second, "bound to nothing"), ("loop999", "has no loop999")):
        result = loopfs("detach", pid, name)
        assert (result.returncode, sentence in result.stderr) == (1, True)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()

    def bound() -> list[bool]:
        devices = loopfs.listed(process.pid)["instances"][0]["devices"]
        return [device["backing_file"] is not None for device in devices]

    wait_until(lambda: bound() == [False, False], "the last close detaches it")
    assert loopfs("kill", pid).returncode == 0
    assert process.wait(10) == 128 + signal.SIGTERM
    result = loopfs("kill", pid)
    assert (result.returncode, f"no sandbox {pid} of yours" in result.stderr) == (1, True)


def test_a_sandbox_that_hangs(started: Start, loopfs: Loopfs) -> None:
    """It is listed even if so many have asked that it takes no more connections."""
    process = started("echo ready; exec sleep 1000")
    os.kill(process.pid, signal.SIGSTOP)
    (name,) = names(process.pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(name)
        assert loopfs.listed(process.pid)["answers"] is False
    kept = []
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(name)
        except BlockingIOError:
            break
        kept.append(sock)
    told = loopfs.listed(process.pid)
    assert told["answers"] is False
    assert told["command"][-3:] == ["sh", "-c", "echo ready; exec sleep 1000"]
    for sock in kept:
        sock.close()
    assert "does not answer" in loopfs("ls").stdout


def names(supervisor: int) -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    found = {line.partition("@")[2] for line in lines if f"@loopfs/{supervisor}/" in line}
    return [f"\0{name}" for name in found]


def test_a_sandbox_that_hangs_is_ended(started: Start, loopfs: Loopfs) -> None:
    process = started("trap '' TERM; echo ready; while :; do sleep 1000; done")
    os.kill(process.pid, signal.SIGSTOP)
    assert loopfs("kill", "--force", str(process.pid)).returncode == 0
    assert process.wait(10) == -signal.SIGKILL


def test_others_are_not_answered(
    started: Start, loopfs: Loopfs, loopfs_run: Run, user: User, root: User, other: User
) -> None:
    """Other users, and who is in a sandbox, whatever he shows; root is, and only his own ls knows
    of others'."""
    process = started("echo ready; exec sleep 1000")
    own, its = "/proc/self/ns/user", f"/proc/{process.pid}/ns/user"
    python = shutil.which("python3", path="/usr/bin")
    assert python is not None

    def asked(result: Result) -> str:
        assert result.returncode == 0, result.stderr
        answers = dict(line.split(" ", 1) for line in result.stdout.splitlines())
        return "told" if '"command"' in answers[str(process.pid)] else "refused"

    assert asked(user.run([python, "-c", ASK, own])) == "told"
    assert asked(user.run([python, "-c", ASK])) == "refused"
    assert asked(other.run([python, "-c", ASK, own])) == "refused"
    assert asked(other.run(["unshare", "-r", python, "-c", ASK, own])) == "refused"
    assert asked(loopfs_run([python, "-c", ASK, own])) == "refused"
    assert asked(loopfs_run(["unshare", "-r", python, "-c", ASK, own])) == "refused"
    assert asked(root.run([python, "-c", ASK, own])) == "refused"
    assert asked(root.run([python, "-c", ASK, own, its])) == "told"
    assert asked(root.run([python, "-c", ASK, its])) == "refused"
    assert loopfs.listed(process.pid, by=other) is None
    assert loopfs.listed(process.pid, by=root) is None
    assert loopfs.listed(process.pid, "--all", by=root)["user"] == user.name
    for words in (("kill", str(process.pid)), ("detach", str(process.pid), "0")):
        assert "of yours" in loopfs(*words, by=other).stderr
    assert "--all is for root" in loopfs("ls", "--all").stderr
    inside = loopfs_run([*loopfs._words, "ls", "--json"])
    assert (inside.returncode, inside.stdout) == (0, "[]\n")
    assert process.poll() is None


def test_who_only_connects_keeps_nobody_waiting(started: Start, loopfs: Loopfs) -> None:
    process = started("echo ready; exec sleep 1000")
    (name,) = names(process.pid)
    kept = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(100)]
    for sock in kept:
        sock.connect(name)
    assert loopfs.listed(process.pid)["answers"] is True
    kept[-1].send(struct.pack("200s", b"nonsense"))
    assert b"only who has started" in kept[-1].recv(200)
    for sock in kept:
        sock.close()


def test_root_finds_those_of_other_network_namespaces(
    user: User, loopfs: Loopfs, loopfs_bin: list[str], root: User
) -> None:
    words = ["unshare", "--map-root-user", "--net", *loopfs_bin, "run", "--", "sh", "-c"]
    process = user.start([*words, "echo ready; exec sleep 1000"])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        told = loopfs.listed(process.pid, "--all", by=root)
        assert (told["user"], told["answers"]) == (user.name, True)
        assert loopfs.listed(process.pid) is None
        assert loopfs("kill", str(process.pid), by=root).returncode == 0
    finally:
        process.kill()
        process.communicate()
