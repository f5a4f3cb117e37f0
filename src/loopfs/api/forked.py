"""Call a function in a sandbox of its own, in a fork of the caller.

The function has the caller's memory. The supervisor is a separate program nevertheless: the first
fork starts the child that makes the sandbox, and then becomes the supervisor by exec.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from loopfs.api.supervise import words
from loopfs.channel import Channel
from loopfs.errors import LoopfsError
from loopfs.sandbox.run import FORWARDED, be_child, check_proc
from loopfs.settings import Settings

PATIENCE = 5.0  # seconds to wait for the end of a sandbox whose result is not needed


def run_forked(
    function: Callable[[], dict[str, Any]], settings: Settings, name: str
) -> dict[str, Any]:
    """Call a function in a sandbox of its own; return its result after the sandbox has ended.

    Args:
        function: its result must be representable in JSON, and not empty.
        settings: of the sandbox.
        name: shown by `loopfs ls`.
    Raises:
        LoopfsError: no sandbox can be made; ECHILD: the function's process ended without a result.
    """
    check_proc()
    ours, theirs = Channel.pair()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # otherwise both processes would write the buffer
    with warnings.catch_warnings():
        # The fork uses no locks that other threads may hold, except those that fork(2) handles.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _become_supervisor(function, theirs, settings, name)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    theirs.close()
    try:
        message = ours.receive()
    except BaseException:  # a time limit, an interrupt
        _end(pid)
        raise
    finally:
        ours.close()
        status = os.waitpid(pid, 0)[1]
    if not message.data:
        raise LoopfsError(errno.ECHILD, _without_result(os.waitstatus_to_exitcode(status)))
    answer: dict[str, Any] = json.loads(message.data)
    if "error" in answer:
        raise LoopfsError(answer["errno"], answer["error"])
    return answer


def _end(pid: int) -> None:
    """End a sandbox: the function by SIGTERM; if that has no effect, the supervisor by SIGKILL.

    Args:
        pid: of the supervisor, which has not been waited for.
    """
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)  # the supervisor passes it on
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(1000 * PATIENCE)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(pidfd)


def _without_result(code: int) -> str:
    how = f"with exit status {code}"
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        how = f"by signal {number} ({signal.strsignal(number)})"
    return f"the process in the sandbox ended {how}, without a result"


def _become_supervisor(
    function: Callable[[], dict[str, Any]], results: Channel, settings: Settings, name: str
) -> NoReturn:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    channel, childs_end = Channel.pair()

    def command() -> int:
        results.send(json.dumps(function()).encode())
        return 0

    child = os.fork()
    if child == 0:
        channel.close()
        be_child(childs_end, command, settings, {int(number) for number in mask})
    for end in (results, channel):
        os.set_inheritable(end.fileno(), True)
    line = words(results.fileno(), [name], settings, (channel.fileno(), child))
    os.execv(line[0], line)
