"""kill -9 of each process of a sandbox, in the middle of its work."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.support.parts import children_of, engines_of, jobs_of, parts_of, wait_until
from tests.support.patience import scaled
from tests.support.sandbox import content, repair
from tests.support.user import Run

pytestmark = pytest.mark.e2e

PATIENCE = scaled(30.0)  # seconds
BY_PROGRAM = ("--engine=ext4=fuse2fs",)

WRITING = """
    truncate -s 16M disk.img raw.img; mkfs.ext4 -q -F disk.img; mkdir mnt
    mount -o loop disk.img mnt; echo synced >mnt/file; sync mnt/file
    d=$(losetup -f --show raw.img); echo synced | dd of=$d conv=fsync status=none
    (while :; do seq 1000 >mnt/more; done) 2>/dev/null &
    echo ready; while :; do dd if=/dev/zero of=$d bs=64K seek=1 count=8 status=none; done
"""


@pytest.mark.parametrize("victim", ["supervisor", "child", "init"])
def test_the_sandbox_ends_with_each_of_its_own(
    started: Start, workdir: Path, run_as_user: Run, victim: str
) -> None:
    """What was synced is in the images; the leak check looks for what is left on the host."""
    process = started(WRITING)
    os.kill(getattr(parts_of(process.pid), victim), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)  # whoever has the pipe has ended
    status = -signal.SIGKILL if victim == "supervisor" else 128 + signal.SIGKILL
    assert process.returncode == status
    assert (workdir / "raw.img").read_bytes()[:7] == b"synced\n"
    repair(workdir / "disk.img", run_as_user)
    assert content(workdir / "disk.img", "file", run_as_user) == "synced\n"


def test_without_its_helper_a_sandbox_continues(
    started: Start, workdir: Path, run_as_user: Run
) -> None:
    """It serves devices; whoever wants a mount is told EIO."""
    process = started("""
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; echo ready; read line
        mount -o loop disk.img mnt 2>&1 | grep -c 'read superblock'  # as mount(8) puts EIO
        d=$(losetup -f --show disk.img); blockid=$(blkid -o value -s TYPE $d); echo $blockid
    """)
    os.kill(parts_of(process.pid).helper, signal.SIGKILL)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    assert output.splitlines()[-2:] == ["1", "ext4"], complaint


def test_syncs_without_a_helper(started: Start) -> None:
    """A file that is open for writing needs none, and sync(2) has no error to tell. Of engines only
    programs are left."""
    process = started(
        """
        truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        echo text >mnt/file; echo ready; read line
        sync mnt 2>&1 | grep -c 'Input/output'; dd if=/dev/zero of=mnt/file conv=fsync count=1 2>&-
        sync; echo $?; umount mnt 2>&-; echo end
        """,
        *BY_PROGRAM,
    )
    os.kill(parts_of(process.pid).helper, signal.SIGKILL)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    assert output.splitlines() == ["1", "0", "end"], complaint


@pytest.mark.parametrize("options", [(), BY_PROGRAM])
def test_jobs_that_are_killed(started: Start, options: tuple[str, ...]) -> None:
    """No engine stays that nobody knows of: it would keep the device."""
    process = started(
        """
        truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt
        (while [ ! -e enough ]; do mount -o loop disk.img mnt; umount mnt; done) >log 2>&1 &
        echo ready; read line; touch enough; wait
        # Also who unmounts can be killed, and an engine.
        while grep -q " $PWD/mnt " /proc/self/mountinfo; do umount mnt; done
        until test -z "$(losetup -a)"; do sleep 0.02; done # who was killed waits for no engine
        mount -o loop disk.img mnt; ls mnt; umount mnt; losetup -a
        """,
        *options,
    )
    helper = parts_of(process.pid).helper
    for turn in range(6 if options else 12):
        kill_when_an_engine_starts(helper, program=bool(options), later=turn)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    assert (output, complaint, process.returncode) == ("lost+found\n", "", 0)


@pytest.mark.parametrize("turn", range(4))
def test_a_supervisor_that_is_killed_while_an_engine_starts(started: Start, turn: int) -> None:
    options = BY_PROGRAM[: turn % 2]
    process = started(
        """
        truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt
        echo ready; while :; do mount -o loop disk.img mnt; umount mnt; done
        """,
        *options,
    )
    helper = parts_of(process.pid).helper
    kill_when_an_engine_starts(helper, process.pid, program=bool(options), later=turn)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


STOPPED = """
    truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
    echo ready; read line
"""


def test_an_engine_that_hangs_ends_with_a_killed_supervisor(started: Start) -> None:
    """The leak check looks for it."""
    process = started(STOPPED)
    (engine,) = parts_of(process.pid).engines
    os.kill(engine, signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def test_a_caller_of_sync_can_be_killed_when_the_engine_hangs(started: Start) -> None:
    process = started("""
        truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        echo ready; read line; timeout -s KILL 1 sync mnt; timeout -s KILL 1 sync -f mnt
        timeout -s KILL 1 sync; echo $?; losetup -f >/dev/null && echo goes on
        read line; umount mnt; losetup -a
    """)
    (engine,) = parts_of(process.pid).engines
    os.kill(engine, signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["137\n", "goes on\n"]
    os.kill(engine, signal.SIGCONT)
    process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0


def test_a_sync_that_hangs_ends_with_a_killed_supervisor(started: Start) -> None:
    """Its job has files of the mount open, whose closing waits for the engine."""
    process = started(STOPPED + "sync mnt & sync -f mnt & sync & wait", *BY_PROGRAM)
    parts = parts_of(process.pid)
    (engine,) = parts.engines
    os.kill(engine, signal.SIGSTOP)
    before = len(jobs_of(parts.helper))
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: len(jobs_of(parts.helper)) > before, "a job begins")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_engine_that_hangs_is_waited_for_until_a_signal(
    started: Start, number: signal.Signals
) -> None:
    process = started(STOPPED)
    (engine,) = parts_of(process.pid).engines
    os.kill(engine, signal.SIGSTOP)
    process.send_signal(number)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(
        f"loopfs: still waiting for ext4 (process {engine}) to write what was mounted"
    )
    assert process.poll() is None
    process.send_signal(number)
    output, complaint = process.communicate(timeout=PATIENCE)
    assert (output, complaint, process.returncode) == ("", "", 128 + number)


def test_a_signal_after_the_command_has_ended_does_not_cost_what_it_wrote(
    started: Start, workdir: Path, run_as_user: Run
) -> None:
    """As timeout(1) sends it, to the process and to the group."""
    process = started(STOPPED.replace("echo ready", "echo text >mnt/file; echo ready"))
    parts = parts_of(process.pid)
    (engine,) = parts.engines
    os.kill(engine, signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: not os.path.exists(f"/proc/{parts.child}"), "the command has ended")
    process.send_signal(signal.SIGTERM)
    os.kill(engine, signal.SIGCONT)
    output, complaint = process.communicate(timeout=PATIENCE)
    assert (output, complaint, process.returncode) == ("", "", 0)
    assert content(workdir / "disk.img", "file", run_as_user) == "text\n"


def kill_when_an_engine_starts(
    helper: int, victim: int | None = None, *, program: bool, later: int
) -> None:
    """Kill ``victim``, or the job that starts it.

    Args:
        program: the engine is a program; else any job may become one.
        later: milliseconds after it was seen.
    """

    def job() -> int | None:
        jobs = jobs_of(helper)
        return next((j for j in jobs if not program or any(map(engines_of, children_of(j)))), None)

    found = wait_until(job, "an engine starts")
    assert found is not None
    time.sleep(later / 1000)
    with suppress(ProcessLookupError):
        os.kill(found if victim is None else victim, signal.SIGKILL)


def test_a_file_that_was_closed_can_be_synced(started: Start, workdir: Path) -> None:
    """Of which libext2fs alone would keep blocks in its cache until others need the room."""
    started("""
        truncate -s 4M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt
        mount -o loop disk.img mnt; for text in first second third; do echo $text >mnt/file; done
        python3 -c 'import os; os.fsync(os.open("mnt", os.O_RDONLY))'; echo ready; read line
    """)
    assert b"third\n" in (workdir / "disk.img").read_bytes()


def test_no_sync_of_what_a_killed_engine_had_succeeds(started: Start) -> None:
    """The kernel's syncfs(2) would; and so would fsync(2) of a directory."""
    process = started(r"""
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        exec 3<mnt; echo text >mnt/file; exec 4<mnt/file; echo ready; read -r line
        for call in fsync fdatasync syncfs; do for fd in 3 4; do
            python3 -c "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.$call($fd) and ctypes.get_errno())"
        done; done
        exec 3<&- 4<&-; umount -l mnt; mount -t tmpfs none mnt; sync -f mnt; echo $?
    """)
    (engine,) = parts_of(process.pid).engines
    os.kill(engine, signal.SIGKILL)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    assert output.split() == [*[str(errno.ENOTCONN)] * 6, "0"], complaint


def test_an_engine_that_is_killed(started: Start, workdir: Path, run_as_user: Run) -> None:
    """Its users get errors, the mount can be taken away, the device is free, no data is lost."""
    process = started("""
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt
        mount -o loop disk.img mnt; echo synced >mnt/file; sync mnt/file
        echo ready; read line
        cat mnt/file 2>&1; ls mnt 2>&1
        umount mnt; echo "status $?"; losetup -a; e2fsck -fp disk.img >/dev/null
        mount -o loop disk.img mnt; cat mnt/file; umount mnt
    """)
    (engine,) = wait_until(lambda: parts_of(process.pid).engines, "there is an engine")
    pidfd = os.pidfd_open(engine)
    os.kill(engine, signal.SIGKILL)
    # Its last thread closes the connection. Whoever is answered at that moment gets ECONNABORTED.
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    gone = "Transport endpoint is not connected"
    assert output.splitlines() == [
        f"cat: mnt/file: {gone}",
        f"ls: cannot open directory 'mnt': {gone}",
        "status 0",
        "synced",
    ]
    assert (process.returncode, complaint) == (0, "")


@pytest.mark.parametrize(
    "sync",
    [
        "sync mnt/file",  # open for reading only
        "python3 -c 'import os; os.fsync(os.open(\"mnt/file\", os.O_RDWR))'",
        "python3 -c 'import os; os.fdatasync(os.open(\"mnt/file\", os.O_RDONLY))'",
        "sync -f mnt",
        "sync",
    ],
)
def test_however_it_is_synced(started: Start, workdir: Path, run_as_user: Run, sync: str) -> None:
    """It is in the image, although the engine's device keeps what is written for a while."""
    process = started(f"""
        truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        seq 100000 >mnt/file; {sync}; echo ready; exec sleep 1000
    """)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    repair(workdir / "disk.img", run_as_user)
    assert content(workdir / "disk.img", "file", run_as_user).endswith("\n100000\n")
