"""The workload cannot access the processes that serve it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from loopfs import syscalls
from loopfs.uapi.landlock import LANDLOCK_SCOPE_SIGNAL, RULESET_ATTR
from tests.support.parts import Parts, children_of, parts_of, wait_until
from tests.support.user import Run, User

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("image")]

PROGRAM = Path(__file__).with_name("reaching.py")

# A FUSE server that never answers, and a mount(2) for which a job looks up a name that is there.
STALL = """
import ctypes, os
libc = ctypes.CDLL(None)
fuse = os.open("/dev/fuse", os.O_RDWR)
data = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
assert libc.mount(b"stalled", b"stalled", b"fuse", 0, data) == 0
print("ready", flush=True)
libc.mount(b"none", b"stalled/name", b"loop", 0, None)
"""

# With an engine, another that its job has become, and a job that lasts. 9 is the /proc of who calls
# loopfs.
SCRIPT = """
    mkdir mnt fat stalled; d=$(losetup -f --show disk.img); mount $d mnt
    truncate -s 4M fat.img; mkfs.fat fat.img >&2; mount -o loop fat.img fat
    python3 stall.py & read pids
    reach() { timeout 20 python3 reaching.py "$@" 2>&1; echo end; }
    reach /proc/self/fd/9 $pids
    reach /proc 1 $pids
    umount -l /proc 2>/dev/null; echo "status $?"
    reach /proc 1 $pids
    kill -KILL 0
"""

# An engine is a program that was started anew, so root of its user namespace may open those of its
# files in a foreign /proc that are guarded by modes alone.
MODES_ALONE = {"clear_refs write", "fd read", "fdinfo read", "map_files read", "ns read"}
SIGNAL = "pidfd_send_signal"


class Served(NamedTuple):
    """A sandbox with all that serves it: ``engine`` is a program of others, ``job`` one that does
    not end, ``forked`` one that has become an engine."""

    process: subprocess.Popen[str]
    parts: Parts
    engine: int
    forked: int
    job: int

    def of_ours(self) -> tuple[int, ...]:
        """Those that are no program of others."""
        parts = self.parts
        return parts.supervisor, parts.child, parts.init, parts.helper, self.job, self.forked


@pytest.fixture
def served(user: User, loopfs_bin: list[str], workdir: Path) -> Iterator[Served]:
    shutil.copy(PROGRAM, workdir)
    (workdir / "stall.py").write_text(STALL)
    run = [*loopfs_bin, "run", "--engine=ext4=fuse2fs", "--"]
    words = ["sh", "-c", 'exec 9</proc; exec "$@"', "sh", *run]
    process = user.start([*words, "sh", "-c", SCRIPT], cwd=workdir)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        parts = parts_of(process.pid)
        by_name = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in parts.engines}
        jobs = wait_until(lambda: set(children_of(parts.helper)) - set(parts.engines), "a job is")
        yield Served(process, parts, by_name["fuse2fs"], by_name["vfat"], jobs.pop())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def answers(process: subprocess.Popen[str]) -> dict[int, set[str]]:
    """What the program says until its end, by process; "shown" is that there is such a process."""
    assert process.stdout is not None
    return by_process(iter(process.stdout.readline, "end\n"))


def by_process(lines: Iterable[str]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for line in lines:
        pid, _, what = line.strip().partition(" ")
        found.setdefault(int(pid), set()).add(what)
    return found


@pytest.mark.usefixtures("needs_root")  # to see from outside who is who
def test_the_workload_reaches_nothing_of_ours(served: Served) -> None:
    """Even with a /proc that shows all: it has come in as a descriptor of the caller's."""
    process, parts, engine, *_ = served
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(" ".join(map(str, (*served.of_ours(), engine))) + "\n")
    process.stdin.flush()

    by_the_callers_proc = answers(process)
    # Process 1 can be named by all of its pid namespace, and ignores what they send (kill(2)).
    assert by_the_callers_proc[parts.init] <= {"shown", SIGNAL}
    for pid in {*served.of_ours()} - {parts.init}:
        assert by_the_callers_proc[pid] == {"shown"}
    if has_landlock():
        assert by_the_callers_proc[engine] - MODES_ALONE == {"shown"}

    as_it_is = answers(process)
    assert process.stdout.readline() == "status 32\n"  # of umount: EINVAL
    after_umount = answers(process)
    assert as_it_is == after_umount
    assert as_it_is.keys() == {1}
    assert as_it_is[1] <= {"shown", SIGNAL}

    # What signals its own process group, in which the supervisor is, too.
    assert process.wait(10) == (137 if has_landlock() else -signal.SIGKILL)


@pytest.mark.usefixtures("needs_root")
def test_the_command_has_no_channel_to_the_supervisor(served: Served) -> None:
    """Process 1 and the command have nothing open but what the caller gave them."""
    (command,) = children_of(served.parts.init)
    for pid in (served.parts.init, command):  # a shell has its own from 10 on
        assert {fd for fd in os.listdir(f"/proc/{pid}/fd") if len(fd) == 1} == set("0129")
    assert len(os.listdir(f"/proc/{served.parts.init}/fd")) == 4


@pytest.mark.usefixtures("needs_root")
def test_root_of_the_sandbox_outside_of_it_reaches_nothing_of_ours(
    served: Served, run_as_user: Run, workdir: Path
) -> None:
    """With all capabilities of its user namespace, in the caller's pid namespace and /proc, with
    nothing else to keep it from them: they are not dumpable."""
    (command,) = children_of(served.parts.init)
    pids = map(str, (*served.of_ours(), command))
    words = ["nsenter", "--user", "-t", str(command), "python3", "reaching.py", "/proc", *pids]
    result = run_as_user(words, cwd=workdir)
    said = by_process(result.stdout.splitlines())
    for pid in served.of_ours():
        assert said[pid] == {"shown", SIGNAL}  # which any process of the person's may send
    assert {"mem write", "root path", "pidfd_getfd", "process_vm_readv"} <= said[command]


def has_landlock() -> bool:
    """The kernel can scope signals (6.12)."""
    try:
        os.close(syscalls.landlock_create_ruleset(RULESET_ATTR.pack(0, 0, LANDLOCK_SCOPE_SIGNAL)))
    except OSError:
        return False
    return True
