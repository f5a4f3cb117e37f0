"""The log: each trapped call, the decision on it, and the time that it took.

The module is imported only if a log is requested (``loopfs run --log FILE``, ``-v``); without it
the notification loop uses calls whose ``note`` does nothing.

A record contains the arguments that the handler has used, as it noted them. String arguments that
it has not read (of a call that is left to the kernel) are read from the caller's memory after the
decision. The caller gets its answer, and then the record is written before any other caller gets
an answer. So the records are in order, and the last one is written before the sandbox ends.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from loopfs.errors import SetupError
from loopfs.intercept.notify import Call, may_wait
from loopfs.lean import NamedTuple, signal
from loopfs.text import shown, to_str, unicode
from loopfs.uapi import fs as uapi_fs
from loopfs.uapi import mount as uapi
from loopfs.uapi import seccomp

Record = dict[str, object]

STDERR = 2
PAGE = 4096  # maximum number of bytes read of a string argument
# The calls that -v shows; -vv shows all.
MOUNT_FAMILY = frozenset({"mount", "umount", "umount2", "fsopen", "fsconfig", "fspick"})
_UNQUOTED = frozenset(" \"'\\=").isdisjoint


# --- formatting of arguments -------------------------------------------------------


def flag_names(value: int, *prefixes: str) -> str:
    """Return a set of flags as in C.

    Args:
        prefixes: the prefixes of the flags' names in :mod:`loopfs.uapi.mount`.
    """
    words = []
    for name, bit in vars(uapi).items():
        if name.startswith(prefixes) and bit.bit_count() == 1 and value & bit:
            words.append(name)
            value &= ~bit
    if value or not words:
        words.append(hex(value) if value else "0")
    return "|".join(words)


def _command(register: int) -> str:
    value = register & 0xFFFFFFFF
    for name, number in vars(uapi).items():
        if name.startswith("FSCONFIG_") and number == value:
            return name
    return str(value)


def _ioctl(register: int) -> str:
    value = register & 0xFFFFFFFF
    return next((name for name, number in vars(uapi_fs).items() if number == value), hex(value))


def _int(register: int) -> int:
    return ctypes.c_int(register & 0xFFFFFFFF).value


def _mode(register: int) -> str:
    return f"{register & 0xFFFF:#o}"


def _device(register: int) -> str:
    number = register & 0xFFFFFFFF
    return f"{os.major(number)}:{os.minor(number)}"


def _descriptor(register: int) -> int | str:
    number = _int(register)
    return "AT_FDCWD" if number == uapi.AT_FDCWD else number


def _flags(*prefixes: str) -> Callable[[int], str]:
    return lambda register: flag_names(register & 0xFFFFFFFF, *prefixes)


class Argument(NamedTuple):
    """An argument of a system call: its name in the log, its register, and its decoder.

    ``decode`` is None for a string in the caller's memory.
    """

    name: str
    register: int
    decode: Callable[[int], object] | None = None


_FD = (Argument("fd", 0, _descriptor),)
ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "mount": (
        Argument("source", 0),
        Argument("target", 1),
        Argument("fstype", 2),
        Argument("flags", 3, lambda register: flag_names(uapi.mount_flags(register), "MS_")),
        Argument("data", 4),
    ),
    "umount": (Argument("target", 0),),
    "umount2": (
        Argument("target", 0),
        Argument("flags", 1, _flags("MNT_", "UMOUNT_")),
    ),
    "fsopen": (Argument("fsname", 0), Argument("flags", 1, _flags("FSOPEN_"))),
    "fsconfig": (
        *_FD,
        Argument("cmd", 1, _command),
        Argument("key", 2),
        Argument("value", 3),
        Argument("aux", 4, _descriptor),
    ),
    "fspick": (
        Argument("dirfd", 0, _descriptor),
        Argument("path", 1),
        Argument("flags", 2, _flags("FSPICK_")),
    ),
    "move_mount": (
        Argument("from_dirfd", 0, _descriptor),
        Argument("from_path", 1),
        Argument("to_dirfd", 2, _descriptor),
        Argument("to_path", 3),
        Argument("flags", 4, _flags("MOVE_MOUNT_")),
    ),
    "statfs": (Argument("path", 0),),
    "mknod": (Argument("path", 0), Argument("mode", 1, _mode), Argument("dev", 2, _device)),
    "mknodat": (
        Argument("dirfd", 0, _descriptor),
        Argument("path", 1),
        Argument("mode", 2, _mode),
        Argument("dev", 3, _device),
    ),
    "fstatfs": _FD,
    "fsync": _FD,
    "fdatasync": _FD,
    "syncfs": _FD,
    "sync": (),
    "io_submit": (Argument("nr", 1, int),),
    "ioctl": (*_FD, Argument("cmd", 1, _ioctl)),
    "socket": (
        Argument("family", 0, _int),
        Argument("type", 1, _int),
        Argument("protocol", 2, _int),
    ),
    **dict.fromkeys(("fstat", "fstat64", "newfstatat", "fstatat64", "statx"), _FD),
}


# --- calls -------------------------------------------------------------------------


class LoggedCall(Call):
    """A trapped call that writes a record to ``log`` when it is answered."""

    __slots__ = ("_about", "_began", "_log", "_noted", "_recorded", "_time")

    def __init__(self, log: Log, listener: int, notification: seccomp.Notification) -> None:
        super().__init__(listener, notification)
        self._time = time.time()
        self._began = time.monotonic_ns()
        self._log = log
        self._noted: dict[str, str | None] = {}
        self._about: dict[str, str] = {}
        self._recorded = False

    def note(
        self, *, engine: str | None = None, why: str | None = None, **arguments: str | None
    ) -> None:
        self._noted |= arguments
        self._about |= {k: v for k, v in (("engine", engine), ("why", why)) if v is not None}

    def alive(self) -> bool:
        alive = super().alive()
        if not alive:  # the handler will not answer the call
            self._answer({}, lambda: False)
        return alive

    def finish_with_descriptor(self, fd: int, *, close_on_exec: bool) -> None:
        how = (seccomp.SECCOMP_ADDFD_FLAG_SEND, fd, 0, close_on_exec)
        self._answer({"decision": "descriptor"}, partial(self._add_descriptor, *how))

    def _send(self, value: int, error: int, flags: int) -> bool:
        decision: Record
        if flags & seccomp.SECCOMP_USER_NOTIF_FLAG_CONTINUE:
            decision = {"decision": "continue"}
        elif error:
            decision = {"decision": "fail", "errno": errno.errorcode.get(-error, str(-error))}
        else:
            decision = {"decision": "return", "value": value}
        self._answer(decision, partial(super()._send, value, error, flags))
        return True

    def _answer(self, decision: Record, send: Callable[[], bool]) -> None:
        """Answer the call by ``send``, which returns whether the caller still existed."""
        microseconds = (time.monotonic_ns() - self._began) // 1000
        unread = self._unread() if decision else []
        if unread:
            try:
                may_wait()  # for the caller's memory
            except OSError:  # no thread to receive the next call: leave the strings out
                unread = []
        self._finish(decision, microseconds, unread, send)

    def _finish(
        self,
        decision: Record,
        microseconds: int,
        unread: list[Argument],
        send: Callable[[], bool],
    ) -> None:
        comm = self._comm()
        read = {a.name: text for a in unread if (text := self._string(a)) is not None}
        with self._log.lock:
            if not send():  # then what was read may be another process's
                comm, read, decision = None, {}, {"decision": "gone"}
            if self._recorded:
                return
            self._recorded = True
            record: Record = {"time": iso(self._time), "event": "call", "call": self.name}
            record |= {"pid": self.process.tid, "comm": comm, "args": self._arguments(read)}
            record |= {**decision, **self._about, "microseconds": microseconds}
            self._log.write(record)

    def _unread(self) -> list[Argument]:
        """Return the string arguments that have not been read."""
        known = ARGUMENTS[self.name]
        if self.name == "fsconfig" and not _has_text(self.args[1] & 0xFFFFFFFF):
            known = tuple(a for a in known if a.name != "value")
        missing = (a for a in known if a.decode is None and a.name not in self._noted)
        return [a for a in missing if self.args[a.register]]

    def _arguments(self, read: dict[str, str]) -> Record:
        arguments: Record = {}
        strings = self._noted | read
        for name, register, decode in ARGUMENTS[self.name]:
            if decode is not None:
                arguments[name] = decode(self.args[register])
            elif name in strings:
                arguments[name] = strings[name]
            elif not self.args[register]:
                arguments[name] = None
        return arguments | strings

    def _string(self, argument: Argument) -> str | None:
        try:
            return to_str(self.process.read_string(self.args[argument.register], PAGE))
        except OSError:  # the kernel cannot read it either, or it is too long
            return None

    def _comm(self) -> str | None:
        try:
            return self.process.comm()
        except OSError:  # the caller has been killed
            return None


def _has_text(command: int) -> bool:
    texts = uapi.FSCONFIG_SET_STRING, uapi.FSCONFIG_SET_PATH, uapi.FSCONFIG_SET_PATH_EMPTY
    return command in texts


# --- records -----------------------------------------------------------------------


class Log:
    """The destinations of records: a file, standard error, or both.

    Args:
        file: a descriptor.
        path: the name of the file, for messages.
        verbose: what standard error shows: 0 nothing, 1 calls that mount, 2 all calls.
        argv: the command of the sandbox.
    """

    def __init__(self, file: int | None, path: str, verbose: int, argv: Sequence[str]) -> None:
        self.lock = threading.Lock()  # held while a call is answered and its record is written
        self._file = file
        self._path = path
        self._verbose = verbose
        self._argv = argv

    @classmethod
    def open(cls, path: str | None, verbose: int, argv: Sequence[str]) -> Log:
        """Open the log of a sandbox; the file is truncated.

        Raises:
            SetupError: the file cannot be opened.
        """
        if path is None:
            return cls(None, "", verbose, argv)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
        try:
            file = os.open(path, flags, 0o600)
        except OSError as problem:
            sentence = f"the log {path} cannot be opened: {problem.strerror}"
            raise SetupError(problem.errno or errno.EIO, sentence) from None
        return cls(file, path, verbose, argv)

    def close(self) -> None:
        """Close the log in this process; it writes nothing more."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._verbose = None, 0

    def call(self, listener: int, notification: seccomp.Notification) -> LoggedCall:
        """Return a call that writes its record to this log."""
        return LoggedCall(self, listener, notification)

    def start(self, pid: int) -> None:
        """Record the start of the command; ``pid`` is in our pid namespace."""
        with self.lock:
            record: Record = {"time": iso(time.time()), "event": "start", "pid": pid}
            self.write(record | {"argv": list(self._argv)})

    def end(self, status: int) -> None:
        """Record the exit status of the sandbox, and close the log."""
        with self.lock:
            self.write({"time": iso(time.time()), "event": "end", "status": status})
            if self._file is not None:
                self._on_file(os.close)  # some file servers report a full disk only at close
            self._file, self._verbose = None, 0

    def write(self, record: Record) -> None:
        """Write a record; the caller holds the lock.

        After an error, a message is printed once and nothing more is written to that destination.
        """
        if self._file is not None:
            self._on_file(lambda file: _write_all(file, as_json(record)))
        if self._shows(record):
            self._say(as_text(record))

    def _shows(self, record: Record) -> bool:
        if self._verbose == 1 and record["event"] == "call":
            return record["call"] in MOUNT_FAMILY
        return self._verbose > 0

    def _on_file(self, action: Callable[[int], None]) -> None:
        assert self._file is not None
        try:
            action(self._file)
        except OSError as problem:
            self._file = None
            sentence = f"the log {self._path} cannot be written: {problem.strerror}"
            self._say(f"loopfs: {shown(sentence)}; it ends here\n".encode())

    def _say(self, line: bytes) -> None:
        # Blocked because we may be in the background of a terminal with the flag tostop.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            _write_all(STDERR, line)
        except OSError:  # nobody reads standard error
            self._verbose = 0


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # another program may have made the terminal non-blocking
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def iso(seconds: float) -> str:
    """Return a time in ISO 8601 format, in UTC."""
    whole, fraction = divmod(round(seconds * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:06}Z"


def as_json(record: Record) -> bytes:
    """Return a record as a line of JSON, which is ASCII for any strings."""
    return json.dumps(_unicode(record)).encode() + b"\n"


def as_text(record: Record) -> bytes:
    """Return a record as a line for people: the call or event, then KEY=VALUE, without the time.

    A string that has a space or characters that could disturb a terminal is written as in JSON.
    """
    words = []
    for key, value in record.items():
        if key == "args":
            assert isinstance(value, dict)
            words += [f"{name}={_word(argument)}" for name, argument in value.items()]
        elif key not in ("time", "event", "call"):
            words.append(f"{key}={_word(value)}")
    name = record.get("call", record["event"])
    return f"loopfs: {name} {' '.join(words)}\n".encode()


def _word(value: object) -> str:
    value = _unicode(value)
    if isinstance(value, str) and value and value.isprintable() and _UNQUOTED(value):
        return value
    return json.dumps(value, separators=(",", ":"))


def _unicode(value: object) -> object:
    """Replace bytes that are not UTF-8 in all strings by \\xNN."""
    if isinstance(value, str):
        return unicode(value)
    if isinstance(value, list):
        return [_unicode(item) for item in value]
    if isinstance(value, dict):
        return {key: _unicode(item) for key, item in value.items()}
    return value
