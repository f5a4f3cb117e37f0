"""Process 1 of the sandbox: it starts the command, reaps processes, and ends with the command."""

from __future__ import annotations

import errno
import os
import sys

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.errors import SetupError, fork
from loopfs.lean import TYPE_CHECKING, Callable, NoReturn, Sequence, signal
from loopfs.sandbox import landlock, messages, own_sysfs, proc
from loopfs.text import shown, to_str
from loopfs.uapi import mount as uapi

if TYPE_CHECKING:
    Command = Sequence[str] | Callable[[], int]

CANNOT_RUN = 125
NOT_FOUND = 127
NOT_EXECUTABLE = 126

CONTAINER_TOOLS = ("podman", "buildah")
# The directories of root's tools; an ordinary user's PATH may lack them.
ROOT_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def main(
    channel: Channel,
    command: Command,
    environment: dict[str, str],
    mask: set[int],
    nested: bool,
) -> int:
    """Run the command to its end; return its exit status, 128+n for signal n.

    Args:
        channel: to the supervisor; it is closed before the workload runs.
        command: its words; or a function, which returns an exit status and is called in a fork.
        environment: of the command.
        mask: the signals that are blocked when the command starts.
        nested: this is a sandbox inside a sandbox, whose supervisor traps our system calls too.
    """
    try:
        proc.mount_whole_proc()
        own_sysfs.mount_whole_sysfs()
        landlock.restrict()
        pid_of_command = fork()
    except OSError as problem:
        messages.fail(channel, problem)
        return CANNOT_RUN
    if pid_of_command == 0:
        status = 1
        try:
            status = _execute(channel, command, environment, mask, nested)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    channel.close()
    while True:
        pid, status = os.wait()
        if pid == pid_of_command:
            break
    _end_the_rest()
    if nested:
        _unmount_all()
    return messages.exit_status(status)


def _end_the_rest() -> None:
    """Kill the remaining processes, so that no mounted filesystem stays busy."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return  # none remains: the usual case
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _unmount_all() -> None:
    """Unmount everything that can be unmounted, the latest mount first, as it may cover others.

    umount2(2) of a filesystem that an engine serves returns when the image is complete.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = [line.split() for line in file]
    for fields in reversed(mounts):
        place = to_str(fields[4].decode("unicode_escape").encode("latin-1"))
        try:
            syscalls.umount2(place, uapi.MNT_DETACH)
        except OSError as problem:
            # Mounts of the outer namespaces are locked, mounts below another are detached with
            # it, and the path of a mount point can be inaccessible.
            if problem.errno not in (errno.EINVAL, errno.ENOENT, errno.EACCES):
                raise


def _execute(
    channel: Channel,
    command: Command,
    environment: dict[str, str],
    mask: set[int],
    nested: bool,
) -> int:
    from loopfs.intercept.filter import install

    if not callable(command):
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python sets them to be ignored
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        listener = () if nested else (install(),)
        channel.send(messages.LISTENER, listener)
    except OSError as problem:
        messages.fail(channel, _busy() if problem.errno == errno.EBUSY else problem)
        return CANNOT_RUN
    channel.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if callable(command):
        syscalls.set_dumpable(True)  # as execve(2) does: the supervisor reads its arguments
        os.environ.update(environment)
        return command()
    try:
        _exec(command, environment)
    except (FileNotFoundError, NotADirectoryError):
        print(f"loopfs: {shown(command[0])}: command not found", file=sys.stderr)
        return NOT_FOUND
    except OSError as problem:
        print(f"loopfs: {shown(command[0])}: {problem.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE


def _busy() -> SetupError:
    return SetupError(
        errno.EBUSY,
        "another program traps the system calls of this process (seccomp user notification),"
        " and the kernel allows only one to do so",
    )


def _exec(argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Do execvpe(3). os.execvpe() imports a module, whose files would cause trapped calls now.

    Raises:
        OSError: the error in the last directory, or in the first one where the file exists but
            cannot be executed.
    """
    if "/" in argv[0]:
        _exec_file(argv[0], argv, environment)
    refusal = None
    for directory in environment["PATH"].split(":"):
        try:
            _exec_file(os.path.join(directory, argv[0]), argv, environment)
        except (FileNotFoundError, NotADirectoryError) as problem:
            absence = problem
        except OSError as problem:
            refusal = refusal or problem
    raise refusal or absence


def _exec_file(path: str, argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Do execve(2); a script without an interpreter is executed by the shell, as by execvp(3)."""
    try:
        os.execve(path, list(argv), environment)
    except OSError as problem:
        if problem.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], environment)


def command_environment(uid: int, gid: int) -> dict[str, str]:
    """Return our environment with the sbin directories in PATH, and without the LC_CTYPE that
    Python sets in the locale C (PEP 538). The process must be dumpable and visible in /proc.

    Args:
        uid, gid: of the caller.
    """
    environment = dict(os.environ)
    environment["PATH"] = root_path(environment.get("PATH", os.defpath))
    if "LC_CTYPE" in environment:
        with open("/proc/self/environ", "rb") as file:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
                del environment["LC_CTYPE"]
    if uid and any(
        os.access(f"{directory}/{tool}", os.X_OK)
        for directory in environment["PATH"].split(":")
        for tool in CONTAINER_TOOLS
    ):
        # podman sets these itself in a user namespace that it has made; without them it takes
        # root of the namespace for the host's root (containers/storage, unshare_linux.go).
        environment.setdefault("_CONTAINERS_USERNS_CONFIGURED", "done")
        environment.setdefault("_CONTAINERS_ROOTLESS_UID", str(uid))
        environment.setdefault("_CONTAINERS_ROOTLESS_GID", str(gid))
    return environment


def root_path(path: str) -> str:
    """Return ``path`` with the directories of root's tools appended."""
    have = path.split(":")
    return ":".join([*have, *(entry for entry in ROOT_PATH if entry not in have)])
