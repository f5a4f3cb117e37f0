"""The exceptions of loopfs: each carries an errno and a sentence."""

from __future__ import annotations

import errno
import os

MAX_ERRNO = 511  # the kernel's own, ERESTARTSYS and others, are for no caller (fs/fuse/dev.c)


class LoopfsError(OSError):
    """An error with the errno the kernel would give and a sentence for a person.

    Args:
        code: an errno value.
        sentence: what happened; the errno's own text when omitted.
    """

    def __init__(self, code: int, sentence: str | None = None) -> None:
        super().__init__(code, sentence or os.strerror(code))

    @property
    def code(self) -> int:
        """The errno."""
        assert self.errno is not None
        return self.errno


class DriverError(LoopfsError):
    """A request that the loop driver refuses; the errno goes to the workload."""


class Unsupported(LoopfsError):
    """A filesystem has a feature that one engine does not support; another one may."""


class SetupError(LoopfsError):
    """A sandbox that cannot be built; the sentence goes to the person.

    Args:
        call: the system call that the kernel refused, if one is to blame; empty: not known.
    """

    def __init__(self, code: int, sentence: str | None = None, call: str | None = None) -> None:
        super().__init__(code, sentence)
        self.call = call


def call_of(problem: OSError) -> str:
    """The system call that failed, where who made it has noted that (``syscalls``)."""
    notes: list[str] = getattr(problem, "__notes__", [])
    return notes[0] if notes else ""


def of_start(problem: OSError) -> SetupError:
    """Why a sandbox cannot be made: the system call that failed, in a sentence.

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
    """There is no room for a process or a thread of the sandbox itself."""
    return SetupError(
        errno.EAGAIN,
        "no process or thread can be started: raise the limit of the user's processes"
        " (ulimit -u), of memory (ulimit -v) or the cgroup's (pids.max), or end some",
    )


def fork() -> int:
    """fork(2) of a process that a sandbox cannot do without. Raises SetupError."""
    try:
        return os.fork()
    except OSError as problem:
        problem.add_note("clone")
        raise of_start(problem) from None


def errno_of(problem: BaseException) -> int:
    """What an exception is to the caller for whom we worked: an errno that the kernel passes on.

    EIO for what has none, or one that is no caller's business.
    """
    if isinstance(problem, MemoryError):
        return errno.ENOMEM
    code = problem.errno if isinstance(problem, OSError) else None
    return code if isinstance(code, int) and 0 < code <= MAX_ERRNO else errno.EIO
