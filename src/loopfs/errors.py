"""The exceptions of loopfs: each carries an errno and a sentence."""

from __future__ import annotations

import errno
import os

MAX_ERRNO = 511  # larger ones, such as ERESTARTSYS, are internal to the kernel (fs/fuse/dev.c)


class LoopfsError(OSError):
    """An error with the errno that the kernel would return and a sentence for the user.

    Args:
        code: an errno value.
        sentence: what failed; by default the text of the errno.
    """

    def __init__(self, code: int, sentence: str | None = None) -> None:
        super().__init__(code, sentence or os.strerror(code))

    @property
    def code(self) -> int:
        """The errno."""
        assert self.errno is not None
        return self.errno


class DriverError(LoopfsError):
    """A request that the loop driver refuses. The workload gets the errno."""


class Unsupported(LoopfsError):
    """A filesystem has a feature that this engine does not support, but another one may."""


class SetupError(LoopfsError):
    """A sandbox cannot be created. The user gets the sentence.

    Args:
        call: the system call that failed; empty: none, or it is not known.
    """

    def __init__(self, code: int, sentence: str | None = None, call: str | None = None) -> None:
        super().__init__(code, sentence)
        self.call = call


def call_of(problem: OSError) -> str:
    """Return the name of the system call that failed, which ``syscalls`` adds as a note."""
    notes: list[str] = getattr(problem, "__notes__", [])
    return notes[0] if notes else ""


def of_start(problem: OSError) -> SetupError:
    """Return an error that says why a sandbox cannot be created, with the failed system call.

    `loopfs.cli.remedies` says what to do about it.
    """
    if isinstance(problem, SetupError):
        return problem
    if problem.errno in (errno.EAGAIN, errno.ENOMEM):
        return no_room()
    call = call_of(problem)
    what = " of ".join(str(word) for word in (call, problem.filename) if word)
    why = f"{what}: {problem.strerror}" if what else problem.strerror
    return SetupError(problem.errno or 0, f"no sandbox can be made ({why})", call)


def no_room() -> SetupError:
    """Return an error: the sandbox cannot start a process or a thread of its own."""
    return SetupError(
        errno.EAGAIN,
        "no process or thread can be started: raise the limit of the user's processes"
        " (ulimit -u), of memory (ulimit -v) or the cgroup's (pids.max), or end some",
    )


def fork() -> int:
    """Call fork(2) for a process that a sandbox requires. Raises SetupError."""
    try:
        return os.fork()
    except OSError as problem:
        problem.add_note("clone")
        raise of_start(problem) from None


def errno_of(problem: BaseException) -> int:
    """Return the errno with which to fail a caller's request after an exception.

    EIO if the exception has no errno, or one that is internal to the kernel.
    """
    if isinstance(problem, MemoryError):
        return errno.ENOMEM
    code = problem.errno if isinstance(problem, OSError) else None
    return code if isinstance(code, int) and 0 < code <= MAX_ERRNO else errno.EIO
