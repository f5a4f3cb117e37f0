"""``loopfs run``: start of the supervisor and the child.

Only modules that both need are imported before the fork, so that the child makes its namespaces
while the supervisor imports its other modules.
"""

from __future__ import annotations

import os
import sys

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.errors import SetupError, fork, of_start
from loopfs.lean import TYPE_CHECKING, NoReturn, Sequence, signal
from loopfs.settings import Settings

if TYPE_CHECKING:
    from loopfs.intercept.log import Log
    from loopfs.sandbox.init import Command
    from loopfs.sandbox.supervisor import Supervisor

# Signals that are passed on to the command if they are sent to the supervisor only.
FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGALRM,
    }
)


def run(argv: Sequence[str], settings: Settings, log: Log | None = None) -> int:
    """Run a command in a sandbox of its own.

    Args:
        argv: the command and its arguments.
        settings: of the sandbox.
        log: records each trapped call.
    Returns:
        its exit status; 128+n if signal n has killed it, 127 if it is not found, 126 if it cannot
        be executed.
    Raises:
        SetupError: no sandbox can be made here.
    """
    check_proc()
    # Before any thread is started: all threads must have these signals blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    try:
        channel, childs_end = _channel()
        pid = fork()
        if pid == 0:
            channel.close()
            if log is not None:
                log.close()  # the command can access the descriptors of process 1
            be_child(childs_end, argv, settings, set(mask))
        childs_end.close()
        return supervise(channel, pid, argv, settings, log)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _channel() -> tuple[Channel, Channel]:
    try:
        return Channel.pair()
    except OSError as problem:
        problem.add_note("socketpair")
        raise of_start(problem) from None


def check_proc() -> None:
    """Check /proc. Raises SetupError: it shows another pid namespace, or does not exist."""
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            return
    except FileNotFoundError:
        pass
    except OSError as problem:
        problem.add_note("readlink")
        raise of_start(problem) from None
    raise SetupError(
        0, "/proc does not show the processes of loopfs; `loopfs doctor` prints a remedy"
    )


def supervise(
    channel: Channel, child: int, argv: Sequence[str], settings: Settings, log: Log | None
) -> int:
    """Run the supervisor of the sandbox that our child makes, until the sandbox ends.

    The signals in FORWARDED, and SIGCHLD, are blocked.

    Args:
        channel: to the child.
        child: its process id.
    Returns, Raises: as :func:`run`.
    """
    from loopfs.sandbox import messages

    try:
        supervisor = _begin(channel, child, argv, settings, log)
    except OSError as problem:
        # ESRCH: the child has ended; its message has the reason.
        told = messages.waiting(channel) if isinstance(problem, ProcessLookupError) else None
        raise (told and messages.failure(told)) or of_start(problem) from None
    try:
        return supervisor.wait()
    finally:
        supervisor.dismiss()


def _begin(
    channel: Channel, child: int, argv: Sequence[str], settings: Settings, log: Log | None
) -> Supervisor:
    """Enter the sandbox that the child makes, and begin to serve it. Raises OSError."""
    from loopfs.process import Process
    from loopfs.sandbox import control_socket, idmap, messages

    messages.expect(channel, messages.WANTS_MAPS)
    userns = Process(child).namespace("user")
    finish_maps = idmap.write_maps(child)
    from loopfs.engines.helper import Helper

    helper = Helper.start()  # while newuidmap and newgidmap run
    try:
        finish_maps()
        _enter_user_namespace(child)  # while the child is dumpable
        listener = control_socket.listen()  # after the fork: the helper must not have it
        channel.send(messages.OK)
        from loopfs.sandbox.supervisor import About, Supervisor

        about = About(argv, userns, listener)
        supervisor = Supervisor(helper, channel, child, about, settings, log)
        supervisor.begin()
        return supervisor
    except BaseException:
        helper.dismiss()
        raise


def _enter_user_namespace(child: int) -> None:
    """Enter the sandbox's user namespace, before a thread is started.

    There we may access the processes of all its users, as the kernel's driver can, and none of
    them may access us.
    """
    from loopfs.uapi.sched import CLONE_NEWUSER

    pidfd = syscalls.pidfd_open(child)
    syscalls.setns(pidfd, CLONE_NEWUSER)
    os.close(pidfd)
    syscalls.set_dumpable(False)


def be_child(channel: Channel, command: Command, settings: Settings, mask: set[int]) -> NoReturn:
    """Run the child that makes the sandbox, in a fork of the supervisor.

    Args:
        channel: to the supervisor.
        command: as in :func:`loopfs.sandbox.init.main`.
        settings: of the sandbox.
        mask: the signals that are blocked when the command starts.
    """
    status = 1
    try:
        from loopfs.sandbox import child

        status = child.main(channel, command, mask, settings)
    except BaseException:  # nothing may return into the supervisor's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
