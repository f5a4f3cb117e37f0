"""A process in a sandbox, with the interface of subprocess.Popen."""

from __future__ import annotations

import io
import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from time import monotonic
from typing import IO, Any

from loopfs.api import messages
from loopfs.channel import Channel
from loopfs.errors import LoopfsError

Stream = int | IO[Any] | None


class Popen:
    """A process that `loopfs.Sandbox.popen` has started.

    Attributes:
        args: the command.
        pid: its process id outside of the sandbox.
        stdin, stdout, stderr: our ends of its pipes; None if the stream is not a pipe.
        returncode: its exit status, -n after signal n; None until it has been waited for.
    """

    def __init__(
        self,
        channel: Channel,
        args: Sequence[str],
        pidfd: int,
        pipes: Sequence[IO[Any] | None],
    ) -> None:
        self._channel = channel
        self._pidfd = pidfd
        self._lock = threading.Lock()  # held by the thread that waits
        self._readers: dict[str, _Reader] = {}
        self._writer: threading.Thread | None = None
        self.args = args
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None
        self.pid = pid_of(pidfd)

    def poll(self) -> int | None:
        """Return the exit status, or None if the process is still running."""
        with suppress(TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, and return its exit status.

        Args:
            timeout: seconds.
        Raises:
            subprocess.TimeoutExpired
            LoopfsError: ESRCH: the sandbox ended before.
        """
        deadline = None if timeout is None else monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutExpired(self.args, timeout or 0.0)
        try:
            if self.returncode is None:
                if not _readable(self._channel.fileno(), deadline):
                    raise TimeoutExpired(self.args, timeout or 0.0)
                header, _, _ = messages.answer(self._channel, messages.ended())
                self.returncode = int(header["returncode"])
                self._channel.close()
        finally:
            self._lock.release()
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read the pipes to their ends, and wait for the process.

        After a TimeoutExpired it can be called again, without ``input``; no output is lost.

        Args:
            timeout: seconds.
        Returns:
            the data from stdout and stderr; None for a stream that is not a pipe.
        Raises:
            subprocess.TimeoutExpired
            LoopfsError: ESRCH: the sandbox ended before.
        """
        deadline = None if timeout is None else monotonic() + timeout
        for name, pipe in (("stdout", self.stdout), ("stderr", self.stderr)):
            if pipe is not None and name not in self._readers:
                self._readers[name] = _Reader(pipe)
        if self.stdin is not None and self._writer is None:
            self._writer = threading.Thread(
                target=_write, args=(self.stdin, input), name="loopfs-stdin", daemon=True
            )
            self._writer.start()
        for thread in filter(None, (self._writer, *self._readers.values())):
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
            if thread.is_alive():
                raise TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - monotonic()))
        found = [self._readers.get(name) for name in ("stdout", "stderr")]
        output, complaint = (reader.result() if reader else None for reader in found)
        return output, complaint

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended.

        Raises:
            LoopfsError: EPERM: the process has changed to another user of the sandbox.
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError as problem:
            sentence = f"process {self.pid} cannot be sent a signal: {problem.strerror}"
            raise LoopfsError(problem.errno or 0, sentence) from None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        if self.stdin is not None:
            with suppress(BrokenPipeError):  # as subprocess.Popen does
                self.stdin.close()
        self.wait()

    def __del__(self) -> None:
        if hasattr(self, "_pidfd"):
            os.close(self._pidfd)

    def __repr__(self) -> str:
        return f"<loopfs.Popen: returncode: {self.returncode} args: {self.args!r}>"


class _Reader(threading.Thread):
    """A thread that reads a pipe to its end."""

    def __init__(self, pipe: IO[Any]) -> None:
        super().__init__(name="loopfs-read", daemon=True)
        self._pipe = pipe
        self._data: Any = None
        self._problem: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._pipe:
                self._data = self._pipe.read()
        except Exception as problem:  # as a UnicodeDecodeError; result() raises it
            self._problem = problem

    def result(self) -> Any:
        if self._problem is not None:
            raise self._problem
        return self._data


def _write(pipe: IO[Any], data: Any) -> None:
    with suppress(BrokenPipeError):  # the process does not read it; as subprocess.Popen does
        try:
            if data:
                pipe.write(data)
        finally:
            pipe.close()


def _readable(fd: int, deadline: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
    return bool(poller.poll(left))


def pid_of(pidfd: int) -> int:
    """Return the process id of a pidfd in our pid namespace; -1 after the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"])


class Streams:
    """The three standard streams of a process to be started.

    Args:
        chosen: stdin, stdout and stderr, as for subprocess.Popen.
    Raises:
        ValueError: one of them is invalid.

    ``theirs`` are the descriptors for the process, which :meth:`close` closes; ``ours`` are the
    other ends of pipes.
    """

    def __init__(self, chosen: Sequence[Stream]) -> None:
        self.theirs: list[int] = []
        self.ours: list[int | None] = []
        inherited = messages.own_streams()
        try:
            for number, stream in enumerate(chosen):
                theirs, ours = self._pair(number, stream, inherited[number])
                self.theirs.append(theirs)
                self.ours.append(ours)
        except BaseException:
            self.close()
            self._close(self.ours)
            raise
        finally:
            self._close(inherited)

    def _pair(self, number: int, stream: Stream, inherited: int) -> tuple[int, int | None]:
        if stream is None:
            return os.dup(inherited), None
        if stream == PIPE:
            read, write = os.pipe()
            return (read, write) if number == 0 else (write, read)
        if stream == DEVNULL:
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), None
        if stream == STDOUT:
            if number != 2:
                raise ValueError("STDOUT is for stderr only")
            return os.dup(self.theirs[1]), None
        return os.dup(stream if isinstance(stream, int) else stream.fileno()), None

    def files(
        self, text: bool, encoding: str | None, errors: str | None
    ) -> tuple[IO[Any] | None, ...]:
        """Return our ends of the pipes as files."""
        found: list[IO[Any] | None] = []
        for fd, mode in zip(self.ours, ("wb", "rb", "rb"), strict=True):
            file: IO[Any] | None = None if fd is None else open(fd, mode)  # noqa: SIM115
            if file is not None and (text or encoding or errors):
                file = io.TextIOWrapper(
                    file, encoding or "locale", errors, write_through=mode == "wb"
                )
            found.append(file)
        return tuple(found)

    def close(self) -> None:
        """Close the descriptors for the process, which has its own copies."""
        self._close(self.theirs)

    @staticmethod
    def _close(fds: Sequence[int | None]) -> None:
        for fd in fds:
            if fd is not None:
                os.close(fd)
