"""The agent: the command of a Python program's sandbox, which starts processes in it on request.

Each request has a channel for its answers and is served by a fork of the agent, so that a request
that blocks does not delay others.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from loopfs.api import inside, messages
from loopfs.channel import Channel, close_all
from loopfs.errors import LoopfsError
from loopfs.sandbox.init import root_path

_OF_AGENT = (
    "_CONTAINERS_USERNS_CONFIGURED",
    "_CONTAINERS_ROOTLESS_UID",
    "_CONTAINERS_ROOTLESS_GID",
)


def main() -> None:
    """Serve the caller until it sends END or exits."""
    channel = Channel.of_descriptor(int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    # Signals of the terminal are for the commands; execve(2) resets handlers, but not SIG_IGN.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the forks need not be waited for
    channel.send(messages.READY)
    while True:
        message = channel.receive()
        if message.data in (b"", messages.END):
            return
        try:
            pid = os.fork()
        except OSError as problem:
            with Channel.of_descriptor(message.fds.pop(0)) as requester:
                requester.send(messages.of_problem(problem))
            pid = -1
        if pid == 0:
            channel.close()
            _serve(Channel.of_descriptor(message.fds[0]), message.data, message.fds[1:])
        close_all(message.fds)


def _serve(channel: Channel, data: bytes, fds: list[int]) -> None:
    """Carry out a request, and exit."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, payload = messages.unpack(data)
        kind, arguments = request["do"], request["arguments"]
        try:
            if kind == "popen":
                _popen(channel, fds, **arguments)
            elif kind == "call":
                _call(channel, fds, payload, **arguments)
            else:
                os.chdir(request["cwd"])
                channel.send(messages.pack({"result": inside.OPERATIONS[kind](**arguments)}))
        except OSError as problem:
            channel.send(messages.of_problem(problem))
    except BrokenPipeError:  # the caller does not wait for the answer
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _popen(
    channel: Channel,
    fds: list[int],
    argv: Sequence[str],
    cwd: str,
    env: dict[str, str] | None,
    inherited: dict[str, str],
    start_new_session: bool,
) -> None:
    """Start a command and report its exit status.

    Args:
        env: its environment; None: that of the caller, with the changes of a sandbox.
    """
    if env is None:
        ours = {name: os.environ[name] for name in _OF_AGENT if name in os.environ}
        env = ours | inherited
        env["PATH"] = root_path(env.get("PATH", os.defpath))
    stdin, stdout, stderr = fds
    process = subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        start_new_session=start_new_session,
    )
    close_all(fds)  # a reader gets end of file when the command ends, not when we do
    pidfd = os.pidfd_open(process.pid)
    channel.send(messages.pack({}), (pidfd,))
    os.close(pidfd)
    channel.send(messages.pack({"returncode": process.wait()}))


def _call(
    channel: Channel,
    fds: list[int],
    payload: bytes,
    cwd: str,
    path: list[str],
    argv: list[str],
    main: dict[str, str],
) -> None:
    """Call a function, and send its result or its exception.

    Args:
        payload: the function and its arguments, pickled.
        path, argv: of the caller's sys.
        main: data of multiprocessing.spawn to import the caller's __main__; empty: not needed.
    """
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    close_all(fds)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pidfd = os.pidfd_open(os.getpid())
    channel.send(messages.pack({}), (pidfd,))
    os.close(pidfd)
    os.chdir(cwd)
    sys.path[:], sys.argv[:] = path, argv
    header: dict[str, Any] = {"raised": False}
    try:
        if main:
            from multiprocessing import spawn

            spawn.prepare(main)
        function, args, kwargs = pickle.loads(payload)
        result = function(*args, **kwargs)
    except BaseException as problem:
        header = {"raised": True}
        problem.add_note(f"In the sandbox:\n{traceback.format_exc().rstrip()}")
        result = problem
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    channel.send(_reply(header, result))


def _reply(header: dict[str, Any], result: Any) -> bytes:
    try:
        data = pickle.dumps(result)
        pickle.loads(data)  # fails for an exception whose class needs other arguments
        return messages.pack(header, data)
    except LoopfsError as problem:
        return messages.of_problem(problem)
    except Exception as problem:
        import errno

        what = "raised" if header["raised"] else "returned"
        sentence = f"the object that the function {what} cannot be pickled: {result!r}: {problem}"
        return messages.error(errno.EINVAL, sentence)
