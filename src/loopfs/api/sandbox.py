"""A sandbox as a context manager."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from subprocess import PIPE, CalledProcessError, CompletedProcess, TimeoutExpired
from typing import Any, TypeVar

from loopfs import settings
from loopfs.api import messages
from loopfs.api.device import Device, Mount
from loopfs.api.popen import Popen, Stream, Streams
from loopfs.api.supervise import module_words, words
from loopfs.channel import Channel, Message, close_all
from loopfs.errors import LoopfsError, SetupError

Word = str | bytes | os.PathLike[str]
Result = TypeVar("Result")

_END_WITHIN = 10.0  # seconds to wait for the end of a sandbox after SIGTERM


class Sandbox:
    """A sandbox with loop devices of its own, as a context manager.

    It is the same as a sandbox of ``loopfs run``. Its methods can be called from several threads.
    Leaving the context ends the processes in the sandbox and unmounts its filesystems; then the
    images are complete.

    Args:
        bare: start without an instance.
        engines: the engine for each filesystem type, or "deny".
        number_from: the number of the first loop device; None: after the host's.
        max_devices: the limit of devices.
        reserve_devices: how many of these only the sandbox's own instances can have.
        log: the path of a file for a record of each trapped call.
        verbose: calls shown on standard error: 0 none, 1 those that mount, 2 all.
        config: the configuration file; None: the user's own.
    Raises:
        LoopfsError: EINVAL: a setting is wrong.
    """

    def __init__(
        self,
        *,
        bare: bool = False,
        engines: Mapping[str, str] | None = None,
        number_from: int | None = None,
        max_devices: int | None = None,
        reserve_devices: int | None = None,
        log: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        config: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = settings.of_user(
            None if config is None else os.fspath(config),
            engines or {},
            bare=bare,
            number_from=number_from,
            log=None if log is None else os.path.abspath(log),
            verbose=verbose,
            max_devices=max_devices,
            reserve_devices=reserve_devices,
        )
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None

    # --- start and end -----------------------------------------------------------

    def __enter__(self) -> Sandbox:
        """Start the sandbox. Raises LoopfsError: no sandbox can be made, with a remedy."""
        if self._channel is not None:
            raise LoopfsError(errno.EBUSY, "the sandbox has already been entered")
        ours, theirs = Channel.pair()
        with theirs:
            end = theirs.fileno()
            argv = module_words("agent", str(end))
            process = subprocess.Popen(words(end, argv, self.settings), pass_fds=[end])
        try:
            message = ours.receive()
            if message.data != messages.READY:
                raise _of_start(message)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        self._channel, self._process = ours, process
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox, if it has not ended. Errors of engines are written to standard error."""
        channel, process = self._channel, self._process
        if channel is None or process is None:
            return
        self._channel = self._process = None
        with suppress(ConnectionError):  # it has ended
            channel.send(messages.END)
        channel.close()
        try:
            process.wait()
        except BaseException:  # for example KeyboardInterrupt: do not wait for the engines
            process.terminate()
            with suppress(TimeoutExpired):
                process.wait(_END_WITHIN)
            process.kill()
            process.wait()
            raise

    @property
    def pid(self) -> int:
        """The process id of its supervisor, as ``loopfs ls`` shows it. Raises LoopfsError ESRCH."""
        if self._process is None:
            raise _has_no_sandbox()
        return self._process.pid

    # --- commands ------------------------------------------------------------------

    def popen(
        self,
        argv: Word | Sequence[Word],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        shell: bool = False,
        cwd: Word | None = None,
        env: Mapping[str, str] | None = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        start_new_session: bool = False,
    ) -> Popen:
        """Start a command in the sandbox, as subprocess.Popen does, with these of its arguments.

        The environment is the caller's, with the sbin directories at the end of PATH, unless
        ``env`` is given.

        Raises:
            LoopfsError: ENOENT: the command is not found; EACCES: it cannot be executed;
                ESRCH: the sandbox has ended.
        """
        command = _command(argv, shell=shell)
        streams = Streams((stdin, stdout, stderr))
        try:
            arguments = {
                "argv": command,
                "cwd": _cwd() if cwd is None else os.path.abspath(os.fsdecode(cwd)),
                "env": None if env is None else dict(env),
                "inherited": dict(os.environ) if env is None else {},
                "start_new_session": start_new_session,
            }
            channel = self._ask("popen", arguments, fds=streams.theirs)
            try:
                _, _, message = messages.answer(channel, messages.ended())
            except BaseException:
                channel.close()
                raise
        except BaseException:
            close_all([fd for fd in streams.ours if fd is not None])
            raise
        finally:
            streams.close()
        return Popen(channel, command, message.fds[0], streams.files(text, encoding, errors))

    def run(
        self,
        argv: Word | Sequence[Word],
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **how: Any,
    ) -> CompletedProcess[Any]:
        """Run a command in the sandbox to its end, as subprocess.run does.

        Args:
            timeout: seconds.
            how: arguments of `popen`.
        Raises:
            subprocess.CalledProcessError: with ``check``, if the exit status is not 0.
            subprocess.TimeoutExpired: the time limit is exceeded; the command has been killed.
            LoopfsError: as `popen`.
        """
        if capture_output:
            if how.get("stdout") is not None or how.get("stderr") is not None:
                raise ValueError("stdout and stderr cannot be given with capture_output")
            how |= {"stdout": PIPE, "stderr": PIPE}
        if input is not None:
            if how.get("stdin") is not None:
                raise ValueError("stdin cannot be given with input")
            how["stdin"] = PIPE
        process = self.popen(argv, **how)
        try:
            output, complaint = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
        assert process.returncode is not None
        if check and process.returncode:
            raise CalledProcessError(process.returncode, process.args, output, complaint)
        return CompletedProcess(process.args, process.returncode, output, complaint)

    # --- functions --------------------------------------------------------------------

    def call(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Result:
        """Call a function in a new process in the sandbox; return its result or raise its
        exception.

        The function, its arguments and its result are pickled, as by multiprocessing: it must be
        importable, and a script that calls a function of its own needs ``if __name__ ==
        "__main__"``. The result is unpickled here, so the workload must be trusted.

        Raises:
            LoopfsError: EINVAL: an object cannot be pickled; ECHILD: the process ended without a
                result; EMSGSIZE: arguments or result are longer than 64 MiB.
        """
        try:
            payload = pickle.dumps((function, args, kwargs))
        except (pickle.PicklingError, AttributeError, TypeError) as problem:
            sentence = f"{function!r} or an argument of it cannot be pickled: {problem}"
            raise LoopfsError(errno.EINVAL, sentence) from None
        arguments = {
            "cwd": _cwd(),
            "path": [os.path.abspath(entry) for entry in sys.path],
            "argv": sys.argv,
            "main": _main_module(function),
        }
        streams = list(messages.own_streams())
        try:
            channel = self._ask("call", arguments, payload, streams)
        finally:
            close_all(streams)
        sentence = "the function's process ended without a result"
        lost = LoopfsError(errno.ECHILD, sentence)
        with channel:
            _, _, started = messages.answer(channel, lost)
            try:
                header, result, _ = messages.answer(channel, lost)
            except BaseException:
                _kill(started)
                raise
            finally:
                close_all(started.fds)
        value = pickle.loads(result)
        if header["raised"]:
            raise value
        found: Result = value
        return found

    # --- devices and mounts -----------------------------------------------------------

    def attach(
        self,
        image: str | os.PathLike[str],
        *,
        offset: int = 0,
        sizelimit: int = 0,
        partscan: bool = False,
        read_only: bool = False,
        sector_size: int = 0,
    ) -> Device:
        """Bind the next free loop device to an image, as losetup(8) does.

        Args:
            offset: bytes.
            sizelimit: bytes; 0: to the end.
            partscan: make devices for its partitions.
            sector_size: bytes; 0: 512.
        Raises:
            LoopfsError: ENOENT, EACCES: the image cannot be opened; EINVAL: a number is invalid;
                ENOSPC: the limit of devices is reached.
        """
        number = self._operate(
            "attach",
            image=os.fspath(image),
            offset=offset,
            sizelimit=sizelimit,
            partscan=partscan,
            read_only=read_only,
            sector_size=sector_size,
        )
        return Device(self._operate, int(number))

    def mount(
        self,
        source: str | os.PathLike[str] | Device,
        target: str | os.PathLike[str] | None = None,
        *,
        fstype: str | None = None,
        options: str = "",
        read_only: bool = False,
        offset: int = 0,
        sizelimit: int = 0,
    ) -> Mount:
        """Mount a device, or an image by a device that is detached with the mount.

        The mount is visible only inside the sandbox.

        Args:
            target: the directory; None: a new one, which exists only inside the sandbox.
            fstype: the type; None: the one that blkid(8) finds.
            options: as in mount -o.
            offset: of the filesystem in an image, in bytes.
            sizelimit: of the filesystem, in bytes; 0: to the end of the image.
        Raises:
            LoopfsError: the errno of mount(2).
        """
        place, kind = self._operate(
            "mount",
            source=os.fspath(source),
            target=None if target is None else os.path.abspath(target),
            fstype=fstype,
            options=f"{options},ro" if read_only else options,
            offset=offset,
            sizelimit=sizelimit,
        )
        return Mount(self._operate, os.fspath(source), place, kind, temporary=target is None)

    def _operate(self, operation: str, **arguments: Any) -> Any:
        """Return the result of an operation of loopfs.api.inside. Raises LoopfsError."""
        with self._ask(operation, arguments) as channel:
            header, _, _ = messages.answer(channel, messages.ended())
        return header["result"]

    def _ask(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        payload: bytes = b"",
        fds: Sequence[int] = (),
    ) -> Channel:
        """Send a request; return the channel for the answers. Raises LoopfsError ESRCH."""
        if self._channel is None:
            raise _has_no_sandbox()
        request = {"do": kind, "arguments": arguments, "cwd": _cwd()}
        ours, theirs = Channel.pair()
        with theirs:
            try:
                self._channel.send(messages.pack(request, payload), (theirs.fileno(), *fds))
            except ConnectionError:  # ECONNRESET if the agent has left a request unread
                ours.close()
                raise messages.ended() from None
            except BaseException:
                ours.close()
                raise
        return ours


def _has_no_sandbox() -> LoopfsError:
    return LoopfsError(errno.ESRCH, "the sandbox is not entered: use it in its with statement")


def _of_start(message: Message) -> LoopfsError:
    """Return the reason why no sandbox could be made."""
    if not message.data:
        return SetupError(errno.ECHILD, "the sandbox ended while it was being made")
    header, _ = messages.unpack(message.data)
    return SetupError(int(header["errno"]), str(header["error"]))


def _command(argv: Word | Sequence[Word], *, shell: bool) -> list[str]:
    given = [argv] if isinstance(argv, str | bytes | os.PathLike) else argv
    found = [os.fsdecode(word) for word in given]
    return ["/bin/sh", "-c", *found] if shell else found


def _cwd() -> str:
    """Return the working directory; / if it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _main_module(function: Callable[..., Any]) -> dict[str, Any]:
    """Return data of multiprocessing.spawn to import __main__ in the sandbox; empty: not needed."""
    if getattr(function, "__module__", None) != "__main__":
        return {}
    from multiprocessing.spawn import get_preparation_data

    data = get_preparation_data("loopfs")
    return {name: data[name] for name in data if name.startswith("init_main_from_")}


def _kill(started: Message) -> None:
    import signal

    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(started.fds[0], signal.SIGKILL)
