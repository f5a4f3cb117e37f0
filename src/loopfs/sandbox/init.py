"""Process 1 of the sandbox: starts the command, reaps, and ends with it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.sandbox import messages
from loopfs.uapi import mount as uapi

CANNOT_RUN = 125
NOT_FOUND = 127
NOT_EXECUTABLE = 126

# Where the tools of root are; an ordinary user's PATH need not have them.
ROOT_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def main(channel: Channel, argv: Sequence[str], mask: set[signal.Signals]) -> int:
    """Run the command to its end; return its exit status, 128+n for signal n.

    Args:
        channel: to the supervisor.
        argv: the command.
        mask: the signals that it starts with blocked.
    """
    _mount_proc()
    command = os.fork()
    if command == 0:
        status = 1
        try:
            status = _execute(channel, argv, mask)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    while True:
        pid, status = os.wait()
        if pid == command:
            break
    channel.send(messages.ENDING)
    channel.receive()  # engines have written what they had
    return messages.exit_status(status)


def _mount_proc() -> None:
    flags = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC
    try:
        syscalls.mount("proc", "/proc", "proc", flags, None)
    except PermissionError:
        # In a container whose /proc is covered the kernel refuses: the sandbox goes on
        # with the caller's /proc.
        return


def _execute(channel: Channel, argv: Sequence[str], mask: set[signal.Signals]) -> int:
    from loopfs.intercept import notify

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    environment = dict(os.environ)
    environment["PATH"] = root_path(environment.get("PATH", os.defpath))
    try:
        listener = notify.install()
    except OSError as problem:
        if problem.errno != errno.EBUSY:
            raise
        print(
            "loopfs: a sandbox cannot be started inside another:"
            " the kernel lets only one supervisor trap a process's system calls",
            file=sys.stderr,
        )
        return CANNOT_RUN
    channel.send(messages.LISTENER, (listener,))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(argv[0], list(argv), environment)
    except (FileNotFoundError, NotADirectoryError):
        print(f"loopfs: {argv[0]}: command not found", file=sys.stderr)
        return NOT_FOUND
    except OSError as problem:
        print(f"loopfs: {argv[0]}: {problem.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE


def root_path(path: str) -> str:
    """``path`` with the directories of root's tools after all others."""
    have = path.split(":")
    return ":".join([*have, *(entry for entry in ROOT_PATH if entry not in have)])
