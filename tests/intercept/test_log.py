"""The log: contents of records, destinations, and that errors of the log have no effect."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopfs.errors import SetupError
from loopfs.intercept import log as log_module
from loopfs.intercept.filter import TRAPS
from loopfs.intercept.log import ARGUMENTS, Log, LoggedCall, as_json, as_text, flag_names, iso
from loopfs.uapi import mount as uapi
from loopfs.uapi import seccomp
from loopfs.uapi.syscalls import abis

ABI = abis()[0]
LISTENER = -1


class Memory:
    """Strings of a caller, which is this process."""

    def __init__(self) -> None:
        self._kept: list[ctypes.Array[ctypes.c_char]] = []

    def __call__(self, text: bytes) -> int:
        self._kept.append(ctypes.create_string_buffer(text))
        return ctypes.addressof(self._kept[-1])


class Kernel:
    """Stands in for the listener: what it was sent, and what it says to that."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.error = 0

    def ioctl(self, fd: int, command: int, argument: bytes) -> None:
        assert fd == LISTENER
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if command != seccomp.SECCOMP_IOCTL_NOTIF_ID_VALID:
            self.sent.append(command)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    return fake


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    made = Log.open(str(path), 0, ["true"])
    yield made
    made.close()


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """What was said on the log's standard error so far."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setattr(log_module, "STDERR", writer)

    def said() -> str:
        try:
            return os.read(reader, 1 << 16).decode()
        except BlockingIOError:
            return ""

    yield said
    os.close(reader)
    os.close(writer)


def trapped(log: Log, name: str, *args: int) -> LoggedCall:
    registers = (*args, *(0,) * (6 - len(args)))
    header = (7, threading.get_native_id(), 0, ABI.numbers[name], ABI.arch, 0)
    return log.call(LISTENER, seccomp.Notification(*header, *registers))


def in_another_thread(action: Callable[[], None]) -> None:
    """As a handler does that may wait."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def only_record(path: Path) -> dict[str, Any]:
    (record,) = records(path)
    return record


# --- what a record says --------------------------------------------------------------


def test_every_trapped_call_has_its_arguments() -> None:
    assert set(ARGUMENTS) == {trap.syscall for trap in TRAPS}


def test_what_the_handler_acted_on(log: Log, path: Path, kernel: Kernel, memory: Memory) -> None:
    strings = [memory(text) for text in (b"changed", b"changed", b"changed")]
    flags = uapi.MS_MGC_VAL | uapi.MS_RDONLY | uapi.MS_NOSUID
    call = trapped(log, "mount", *strings, flags, memory(b"changed"))
    call.note(fstype="ext4")
    call.note(source="/dev/loop8", target="/mnt", data="")
    call.note(engine="fuse2fs")
    call.finish()
    record = only_record(path)
    assert record.pop("microseconds") >= 0
    assert record.pop("time").endswith("Z")
    assert record == {
        "event": "call",
        "call": "mount",
        "pid": threading.get_native_id(),
        "comm": Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip(),
        "args": {
            "source": "/dev/loop8",
            "target": "/mnt",
            "fstype": "ext4",
            "flags": "MS_RDONLY|MS_NOSUID",
            "data": "",
        },
        "decision": "return",
        "value": 0,
        "engine": "fuse2fs",
    }


def test_strings_that_were_not_read_are_read_after_the_decision(
    log: Log, path: Path, kernel: Kernel, memory: Memory
) -> None:
    call = trapped(log, "mount", 0, memory(b"/mnt"), memory(b"changed"), 0, 1)
    call.note(fstype="tmpfs")
    in_another_thread(call.proceed)
    record = only_record(path)
    assert record["decision"] == "continue"
    # A null pointer is null; what cannot be read is not there.
    shown = {"source": None, "target": "/mnt", "fstype": "tmpfs", "flags": "0"}
    assert record["args"] == shown


def test_another_thread_receives_before_memory_is_read(
    log: Log, path: Path, kernel: Kernel, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the caller's can make who touches it wait for ever."""
    done: list[str] = []
    read = LoggedCall._string

    def noticed(call: LoggedCall, argument: log_module.Argument) -> str | None:
        done.append("read")
        return read(call, argument)

    monkeypatch.setattr(LoggedCall, "_string", noticed)
    monkeypatch.setattr(log_module, "may_wait", lambda: done.append("may wait"))
    trapped(log, "umount2", memory(b"/mnt"), uapi.MNT_DETACH | uapi.UMOUNT_NOFOLLOW).proceed()
    assert done == ["may wait", "read"]
    shown = {"target": "/mnt", "flags": "MNT_DETACH|UMOUNT_NOFOLLOW"}
    assert only_record(path)["args"] == shown


def test_a_failure_has_its_errnos_name(log: Log, path: Path, kernel: Kernel) -> None:
    trapped(log, "fstatfs", 3).fail(errno.ENODEV)
    trapped(log, "fstatfs", 3).answer(4000)
    assert [(r["decision"], r["errno"]) for r in records(path)] == [
        ("fail", "ENODEV"),
        ("fail", "4000"),
    ]


def test_a_descriptor(log: Log, path: Path, kernel: Kernel) -> None:
    call = trapped(log, "fsopen", 1, uapi.FSOPEN_CLOEXEC)
    call.note(fsname="ext4")
    call.finish_with_descriptor(0, close_on_exec=True)
    record = only_record(path)
    assert record["decision"] == "descriptor"
    assert record["args"] == {"fsname": "ext4", "flags": "FSOPEN_CLOEXEC"}
    assert kernel.sent == [seccomp.SECCOMP_IOCTL_NOTIF_ADDFD]


def test_a_descriptor_for_which_there_is_no_room(log: Log, path: Path, kernel: Kernel) -> None:
    call = trapped(log, "fspick", uapi.AT_FDCWD & 0xFFFFFFFF)
    kernel.error = errno.EMFILE
    with pytest.raises(OSError, match="Too many open files"):
        call.finish_with_descriptor(0, close_on_exec=True)
    kernel.error = 0
    call.fail(errno.EMFILE)
    record = only_record(path)
    assert (record["decision"], record["errno"]) == ("fail", "EMFILE")
    assert record["args"] == {"dirfd": "AT_FDCWD", "path": None, "flags": "0"}


@pytest.mark.parametrize("answer", [LoggedCall.finish, LoggedCall.alive])
def test_a_caller_that_was_killed(
    log: Log, path: Path, kernel: Kernel, memory: Memory, answer: Callable[[LoggedCall], object]
) -> None:
    """Its memory and name are not in the record: by then they may be somebody else's."""
    call = trapped(log, "umount2", memory(b"/mnt"))
    kernel.error = errno.ENOENT

    def twice() -> None:
        answer(call)
        call.fail(errno.EIO)

    in_another_thread(twice)
    record = only_record(path)
    assert (record["decision"], record["comm"]) == ("gone", None)
    assert record["args"] == {"flags": "0"}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (uapi.FSCONFIG_SET_STRING, {"cmd": "FSCONFIG_SET_STRING", "key": "k", "value": "v"}),
        (uapi.FSCONFIG_SET_BINARY, {"cmd": "FSCONFIG_SET_BINARY", "key": "k"}),
        (99, {"cmd": "99", "key": "k"}),
    ],
)
def test_fsconfig(
    log: Log, path: Path, kernel: Kernel, memory: Memory, command: int, shown: dict[str, str]
) -> None:
    call = trapped(log, "fsconfig", 5, command, memory(b"k"), memory(b"v"), 0)
    in_another_thread(call.proceed)
    assert only_record(path)["args"] == {"fd": 5, **shown, "aux": 0}


def test_flags_without_a_name() -> None:
    assert flag_names(uapi.MS_RDONLY | 1 << 30, "MS_") == "MS_RDONLY|0x40000000"
    assert flag_names(0, "MS_") == "0"


def test_time() -> None:
    assert iso(0.0000015) == "1970-01-01T00:00:00.000002Z"
    assert iso(1_000_000_000.9999999) == "2001-09-09T01:46:41.000000Z"


# --- how it is written -----------------------------------------------------------------


def test_json_of_any_bytes() -> None:
    line = as_json({"event": "call", "args": {"target": os.fsdecode(b"a\xff\n\xc3\xbc")}})
    assert line.count(b"\n") == 1
    assert json.loads(line.decode("ascii"))["args"]["target"] == "a\\xff\nü"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("/dev/loop8", "/dev/loop8"),
        ("bücher", "bücher"),
        ("", '""'),
        ("a b", '"a b"'),
        ("max=4", '"max=4"'),
        ("\x1b[2J\n", '"\\u001b[2J\\n"'),
        ("\u202ex\x9b", '"\\u202ex\\u009b"'),
        (None, "null"),
        (3, "3"),
        (["a", "b c"], '["a","b c"]'),
    ],
)
def test_text_cannot_spoil_a_terminal(value: object, word: str) -> None:
    record: dict[str, object] = {"time": "t", "event": "call", "call": "mount"}
    line = as_text(record | {"pid": 5, "args": {"target": value}, "decision": "continue"})
    assert line.decode() == f"loopfs: mount pid=5 target={word} decision=continue\n"


@pytest.mark.parametrize(
    ("verbose", "seen"),
    [(0, []), (1, ["start", "umount2", "end"]), (2, ["start", "fstat", "umount2", "end"])],
)
def test_what_is_shown(
    path: Path, kernel: Kernel, stderr: Callable[[], str], verbose: int, seen: list[str]
) -> None:
    log = Log.open(str(path), verbose, ["true"])
    log.start(1)
    trapped(log, "fstat", 3).proceed()
    trapped(log, "umount2").proceed()
    log.end(0)
    trapped(log, "umount2").proceed()  # of what the command left behind
    assert [line.split()[1] for line in stderr().splitlines()] == seen
    assert [r.get("call", r["event"]) for r in records(path)] == [
        "start",
        "fstat",
        "umount2",
        "end",
    ]


def test_the_file_is_made_for_its_owner_and_emptied(path: Path) -> None:
    before = os.umask(0o002)
    try:
        Log.open(str(path), 0, []).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("of another run\n")
    Log.open(str(path), 0, []).close()
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [(".", "Is a directory"), ("none/log", "No such file or directory"), ("x" * 256, "too long")],
)
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(SetupError, match=f"the log .* cannot be opened: .*{problem}"):
        Log.open(str(tmp_path / name), 0, [])


# --- when it cannot be written -----------------------------------------------------------


def test_a_full_disk_is_reported_once(kernel: Kernel, stderr: Callable[[], str]) -> None:
    log = Log.open("/dev/full", 1, [])
    for _ in range(2):
        trapped(log, "umount2").finish()
    log.end(0)
    first, *more = stderr().splitlines()
    assert first == (
        "loopfs: the log /dev/full cannot be written: No space left on device; it ends here"
    )
    assert [line.split()[1] for line in more] == ["umount2", "umount2", "end"]
    assert kernel.sent == [seccomp.SECCOMP_IOCTL_NOTIF_SEND] * 2


def test_a_standard_error_that_is_not_read(
    path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(log_module, "STDERR", writer)
    log = Log.open(str(path), 2, [])
    for _ in range(2):
        trapped(log, "fstat", 3).finish()
    os.close(writer)
    assert len(kernel.sent) == len(records(path)) == 2


def test_a_standard_error_that_does_not_block(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program on the same terminal has made it so: no part of a line is lost."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setattr(log_module, "STDERR", writer)
    log = Log(None, "", 1, ["x" * 20000])
    thread = threading.Thread(target=log.start, args=(1,))
    thread.start()
    seen = b""
    while not seen.endswith(b"\n"):
        seen += os.read(reader, 4096)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert seen == b'loopfs: start pid=1 argv=["' + b"x" * 20000 + b'"]\n'
