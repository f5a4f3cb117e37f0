"""Connections to an agent: which ones are accepted and refused."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.agent.state import METADATA
from tests.support.agent import Agent, agent
from tests.support.parts import wait_until
from tests.support.patience import scaled
from tests.support.user import User

# Connections of the agent's own user: each is closed, one that says nothing excepted.
HOSTILE = f"""
import json, os, socket, sys
def state(**changes):
    return json.dumps({{"fds": ["seccompFd"], "metadata": "{METADATA}",
        "state": {{"id": "one\\033two"}}, "pid": 1}} | changes).encode()
null, pipe = os.open("/dev/null", os.O_RDWR), os.pipe()[0]
def connect():
    made = socket.socket(socket.AF_UNIX)
    made.settimeout({scaled(20)})
    made.connect(sys.argv[1])
    return made
silent = [connect() for _ in range(3)]
for said, fds in (
    (b"", []), (b"{{", []), (b"\\0" * 100000, []), (b"[" * 60000, []), (state(), []),
    (state(), [null]), (state(), [pipe]), (state(fds=["seccompFd"] * 2), [null, pipe]),
    (state(), [null] * 20), (state(metadata="another's"), [null]), (state(fds=[1]), [null]),
):
    with connect() as peer:
        try:
            if said:
                socket.send_fds(peer, [said], fds)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            continue
print("closed", len(silent))
"""
REFUSALS = 11


@pytest.fixture
def served(loopfs_bin: list[str], user: User, workdir: Path) -> Iterator[Agent]:
    """An agent of the user's."""
    with agent(loopfs_bin, user, workdir) as made:
        yield made


def test_a_hostile_peer_loses_its_connection_only(served: Agent, user: User) -> None:
    assert stat.S_IMODE(os.lstat(served.socket).st_mode) == 0o600
    python = shutil.which("python3", path=user.environment()["PATH"])
    result = user.run([str(python), "-c", HOSTILE, str(served.socket)])
    assert (result.stdout, result.stderr) == ("closed 3\n", "")

    def refusals() -> list[str]:
        return [line for line in served.said().splitlines() if "a connection was refused" in line]

    wait_until(lambda: len(refusals()) >= REFUSALS + 3, "all have been refused")
    assert "Traceback" not in served.said()
    assert "\033" not in served.said()
    if not user.is_self:  # root may connect to the socket, and is another user
        with served.connect() as connection:
            assert connection.recv(1) == b""
        wait_until(lambda: "refused: it is from user 0" in served.said(), "root is refused")
    wait_until(lambda: served.processes() == [served.process.pid], "only the agent is left")


def test_one_socket_has_one_agent(served: Agent, loopfs_bin: list[str], user: User) -> None:
    def start(path: str) -> tuple[int, str]:
        result = user.run([*loopfs_bin, "agent", "--socket", path])
        return result.returncode, result.stderr

    assert start(str(served.socket)) == (
        125,
        f"loopfs: agent: {served.socket}: an agent listens there already\n",
    )
    code, said = start(f"{served.socket.parent}/{'x' * 90}")
    assert (code, said[-21:]) == (125, "longer than 80 bytes\n")
    assert start("/proc/agent")[0] == 125
