"""loopfs ls, kill and detach, from outside of the sandboxes; and callers that are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.support.parts import children_of, parts_of, wait_until
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

# A mounted device, a bound one, and an instance of a user namespace within.
SCRIPT = """
    mkdir m one; mount -o loop disk.img m; truncate -s 1M 'a b'; losetup -f -o 4096 'a b'
    unshare --user --map-root-user --mount sh -euc 'mount -t loop -o max=5 none one
        echo ready; sleep 1000'
"""

# ask PID FILE...: ask a sandbox, with descriptors of these, and say what it answers.
ASK = """
import array, os, socket, sys
lines = [line.split() for line in open("/proc/net/unix")]
(name,) = {line[7] for line in lines if line[7:] and f"@loopfs/{sys.argv[1]}/" in line[7]}
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect("\\0" + name[1:])
tokens = array.array("i", [os.open(path, os.O_RDONLY) for path in sys.argv[2:]])
sock.sendmsg([b"list"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, tokens)] if tokens else [])
print(sock.recv(200).decode())
"""


# Listen as a sandbox does, and say what comes.
PRETEND = """
import array, os, socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind("\\0loopfs/1/abc"); sock.listen()
print("ready", flush=True)
own = os.stat("/proc/self/ns/user").st_ino
peer, _ = sock.accept()
data, control, _, _ = peer.recvmsg(200, 1000)
tokens = [fd for _, _, payload in control for fd in array.array("i", payload)]
print(data.decode(), [os.fstat(fd).st_ino == own for fd in tokens], flush=True)
peer.send(b'{"instances": 1, "pid": 1}')
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
def test_what_is_reported(started: Start, loopfs: Loopfs, workdir: Path, user: User) -> None:
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
    for name, sentence in ((second, "not bound to a file"), ("loop999", "has no loop999")):
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
    ask = [python, "-c", ASK, str(process.pid)]

    def asked(result: Result) -> str:
        assert result.returncode == 0, result.stderr
        return "told" if '"command"' in result.stdout else "refused"

    assert asked(user.run([*ask])) == "told"
    assert asked(user.run(["unshare", "-r", *ask])) == "told"
    assert asked(user.run(["unshare", "-rpf", *ask, own])) == "refused"
    assert asked(other.run([*ask, own])) == "refused"
    assert asked(loopfs_run([*ask, own])) == "refused"
    assert asked(loopfs_run(["unshare", "-r", *ask, own])) == "refused"
    assert asked(root.run([*ask, own])) == "refused"
    assert asked(root.run([*ask, its])) == "told"
    assert loopfs.listed(process.pid, by=other) is None
    assert loopfs.listed(process.pid, by=root) is None
    assert loopfs.listed(process.pid, "--all", by=root)["user"] == user.name
    for words in (("kill", str(process.pid)), ("detach", str(process.pid), "0")):
        assert "of yours" in loopfs(*words, by=other).stderr
    assert "--all is for root" in loopfs("ls", "--all").stderr
    inside = loopfs_run([*loopfs._words, "ls", "--json"])
    assert (inside.returncode, inside.stdout) == (0, "[]\n")
    assert process.poll() is None


def test_a_silent_connection_delays_no_other(started: Start, loopfs: Loopfs) -> None:
    process = started("echo ready; exec sleep 1000")
    (name,) = names(process.pid)
    kept = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(100)]
    for sock in kept:
        sock.connect(name)
    assert loopfs.listed(process.pid)["answers"] is True
    with open("/dev/null", "rb") as file:
        for sock in kept[-3:]:
            socket.send_fds(sock, [b"list"], [file.fileno()])
            assert b"only root and the user" in sock.recv(200)
    for sock in kept:
        sock.close()


def test_a_process_that_pretends_to_be_a_sandbox(
    started: Start, loopfs: Loopfs, workdir: Path, root: User
) -> None:
    """He gets nothing by which another sandbox would take him for its user or root."""
    (workdir / "pretend").write_text(PRETEND)
    for by in (None, root):
        process = started("exec python3 pretend")
        result = loopfs("ls", *(("--all",) if by else ()), by=by)
        assert (result.returncode, "Traceback" in result.stderr) == (0, False)
        assert process.stdout is not None
        assert process.stdout.readline() == "list [True]\n"
        process.wait(10)


def test_root_finds_those_of_other_namespaces(
    user: User, loopfs: Loopfs, loopfs_bin: list[str], root: User
) -> None:
    """As in a container: of network and process ids."""
    namespaces = ["unshare", "-r", "--net", "--pid", "--mount-proc", "--kill-child"]
    script = "echo ready; exec sleep 1000"
    process = user.start([*namespaces, *loopfs_bin, "run", "--", "sh", "-c", script])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (supervisor,) = children_of(process.pid)
        told = loopfs.listed(supervisor, "--all", by=root)
        assert (told["user"], told["answers"]) == (user.name, True)
        assert loopfs.listed(supervisor) is None
        assert loopfs("kill", str(supervisor), by=root).returncode == 0
    finally:
        process.kill()
        process.communicate()
