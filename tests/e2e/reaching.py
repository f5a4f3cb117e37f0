"""Attempts to access other processes: files of /proc/PID, system calls, signals.

    python3 reaching.py PROC PID...

PROC is a /proc that shows the processes PID. Prints a line for all that was not refused: the
process id, what, and how. What anybody may do to any process, as to read its status, is left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
PIDFD_OPEN, PIDFD_GETFD, PIDFD_SEND_SIGNAL = 434, 438, 424
NOT_THERE = {"task", "net"}  # the one has the same files again, the other is of no process

# Open to all: they say what ps(1) shows, or check later who it is that writes.
PUBLIC = {
    *("arch_status", "attr", "autogroup", "cgroup", "cmdline", "comm", "coredump_filter"),
    *("cpu_resctrl_groups", "cpuset", "gid_map", "ksm_merging_pages", "ksm_stat", "latency"),
    *("limits", "loginuid", "mountinfo", "mounts", "mountstats", "oom_adj", "oom_score"),
    *("oom_score_adj", "patch_state", "projid_map", "sched", "schedstat", "sessionid", "setgroups"),
    *("stat", "statm", "status", "timens_offsets", "timerslack_ns", "uid_map", "wchan"),
}
GUARDED = {"mem", "fd", "root", "cwd", "exe", "environ", "ns/mnt", "map_files"}
REFUSALS = (errno.EPERM, errno.EACCES, errno.ESRCH, errno.EINVAL, errno.EBADF)


def entries(directory: str) -> Iterator[str]:
    """Yield the files of a process that can be listed, and GUARDED."""
    names = set(os.listdir(directory)) - NOT_THERE - PUBLIC
    for name in sorted(names | GUARDED):
        yield name
        try:
            below = os.listdir(f"{directory}/{name}")
        except OSError:
            continue
        if name not in ("root", "cwd"):
            yield from (f"{name}/{each}" for each in below)


def files(directory: str) -> Iterator[tuple[str, str]]:
    for name in entries(directory):
        path = f"{directory}/{name}"
        for how, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY), ("path", os.O_PATH)):
            try:
                mode = os.lstat(path).st_mode
                if how == "path" and not stat.S_ISLNK(mode):
                    continue
                if how == "write" and not mode & 0o222:
                    continue
                fd = os.open(path, flags | os.O_NONBLOCK)
                if how == "read":
                    _use(fd)
            except OSError:
                continue
            yield name, how


def _use(fd: int) -> None:
    """Read from an open file: some files can be opened by every process, but not read."""
    try:
        if not os.listdir(fd):
            raise PermissionError
    except NotADirectoryError:
        os.read(fd, 1)


def calls(directory: str, pid: int) -> Iterator[str]:
    """Try system calls, by the process id in this namespace, and by /proc/PID as a pidfd."""
    byte = ctypes.create_string_buffer(1)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(byte), 1)
    its = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    tries: dict[str, Callable[[], int]] = {
        "ptrace attach": lambda: libc.ptrace(PTRACE_ATTACH, pid, None, None),
        "ptrace seize": lambda: libc.ptrace(PTRACE_SEIZE, pid, None, None),
        "process_vm_readv": lambda: libc.process_vm_readv(pid, vector, 1, vector, 1, 0),
        "process_vm_writev": lambda: libc.process_vm_writev(pid, vector, 1, vector, 1, 0),
        "pidfd_send_signal": lambda: libc.syscall(PIDFD_SEND_SIGNAL, its, 0, None, 0),
        "pidfd_getfd": lambda: _take_one(pid),
    }
    for what, call in tries.items():
        if call() >= 0 or ctypes.get_errno() not in REFUSALS:
            yield what


def _take_one(pid: int) -> int:
    """Try to take a descriptor of a process."""
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    taken = (libc.syscall(PIDFD_GETFD, pidfd, fd, 0) for fd in range(64))
    return next((fd for fd in taken if fd >= 0), -1)


def main(proc: str, pids: list[int]) -> None:
    for pid in pids:
        directory = f"{proc}/{pid}"
        if not os.path.isdir(directory):
            continue
        print(pid, "shown")
        for name, how in files(directory):
            print(pid, name, how)
        for what in calls(directory, pid):
            print(pid, what)


main(sys.argv[1], [int(word) for word in sys.argv[2:]])
