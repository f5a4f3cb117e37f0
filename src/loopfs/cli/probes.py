"""Checks of ``loopfs doctor`` that try what the kernel permits to this user.

Version numbers and settings are not reliable: distributions patch kernels, containers filter
calls, security modules refuse them. So each probe makes the calls in a forked child; settings are
read only afterwards, to name the remedy.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from loopfs import syscalls
from loopfs.cli import remedies
from loopfs.cli.findings import SUBORDINATE_IDS, Finding, id_ranges, no_ids
from loopfs.errors import call_of
from loopfs.sandbox.idmap import MAP
from loopfs.sandbox.nested import is_nested
from loopfs.uapi import mount as uapi_mount
from loopfs.uapi import sched, seccomp
from loopfs.uapi.landlock import LANDLOCK_SCOPE_SIGNAL, RULESET_ATTR
from loopfs.uapi.syscalls import abis

PR_SET_NO_NEW_PRIVS = 38
TRIAL_WITHIN = 60  # seconds: the time limit of the test in a sandbox
# struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
NOTIF_ADDFD = struct.Struct("=QIIII")

# --- namespaces and FUSE -----------------------------------------------------


def user_namespaces() -> Finding:
    """Check that unshare(CLONE_NEWUSER | CLONE_NEWNS) and an id map succeed."""
    code, call = _attempt(_enter)
    if not code:
        return Finding("user namespaces", True, True)
    why = f"no user namespace can be made on this system ({call}: {os.strerror(code)})"
    if call == MAP and remedies.lacks_setfcap():
        why = "root has no CAP_SETFCAP here, so it cannot make a user namespace that has a root"
    return Finding("user namespaces", False, True, why, _namespace_remedy(code, call))


def pid_namespace() -> Finding:
    """Check that a pid namespace can be made and its own /proc be mounted."""

    def probe() -> None:
        _enter(sched.CLONE_NEWPID)
        code = _try(_mount_proc)  # only a child is in the new pid namespace
        if code:
            raise OSError(code, os.strerror(code))

    code = _try(probe)
    if not code:
        return Finding("own /proc", True, False)
    why = (
        f"a new /proc cannot be mounted ({os.strerror(code)}), so a sandbox cannot have "
        "process ids of its own"
    )
    return Finding("own /proc", False, False, why, remedies.covered_proc())


def fuse_device() -> Finding:
    """Check that this user may open /dev/fuse for reading and writing."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        why = f"/dev/fuse cannot be opened ({problem.strerror})"
        return Finding("/dev/fuse", False, True, why, remedies.fuse_device(problem.errno))
    return Finding("/dev/fuse", True, True)


def fuse_mount() -> Finding:
    """Check that a FUSE filesystem can be mounted in a user namespace (Linux 4.18)."""
    code, call = _attempt(_mount_fuse)
    if not code:
        return Finding("FUSE mounts", True, True)
    why = f"FUSE cannot be mounted in a user namespace ({os.strerror(code)})"
    remedy = f"use Linux 4.18 or newer; {remedies.refused(call or 'mount', code)}"
    return Finding("FUSE mounts", False, True, why, remedy)


def subordinate_ids() -> Finding:
    """Check that newuidmap and newgidmap can map this user's ranges of ids."""
    ranges = id_ranges()
    if isinstance(ranges, Finding):
        return ranges
    own = os.geteuid(), os.getegid()
    with _waiting_child(lambda: syscalls.unshare(sched.CLONE_NEWUSER)) as pid:
        for tool, own_id, others in zip(("newuidmap", "newgidmap"), own, ranges, strict=True):
            numbers = (pid, 0, own_id, 1, 1, others.start, 1)
            command = [tool, *map(str, numbers)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as problem:
                why = f"{tool} cannot be executed ({problem.strerror})"
                return no_ids(why, remedies.ids(tool, problem.errno))
            if done.returncode:
                return no_ids(done.stderr.strip() or f"{tool} fails", remedies.ids(tool))
    return Finding(SUBORDINATE_IDS, True, False)


def _enter(flags: int = 0) -> None:
    """Become root of a new user namespace that has a mount namespace."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(sched.CLONE_NEWUSER | sched.CLONE_NEWNS | flags)
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
    except OSError as problem:
        problem.add_note(MAP)
        raise
    syscalls.mount("none", "/", None, uapi_mount.MS_REC | uapi_mount.MS_SLAVE, None)


def _mount_proc() -> None:
    flags = uapi_mount.MS_NOSUID | uapi_mount.MS_NODEV | uapi_mount.MS_NOEXEC
    syscalls.mount("proc", "/proc", "proc", flags, None)


def _mount_fuse() -> None:
    _enter()
    # The device must have been opened in the user namespace that mounts (fs/fuse/inode.c).
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    flags = uapi_mount.MS_NOSUID | uapi_mount.MS_NODEV
    # /dev exists on every system, and no other process sees this mount.
    syscalls.mount("loopfs-doctor", "/dev", "fuse", flags, options)


def _namespace_remedy(code: int, call: str) -> str:
    if code == errno.EINVAL:
        return "use a kernel that is built with CONFIG_USER_NS"
    full = code in (errno.ENOSPC, errno.EUSERS)
    if full and remedies.setting("user/max_user_namespaces") != "0":
        return "end some sandboxes, nest fewer, or raise the sysctl user.max_user_namespaces"
    remedy = remedies.refused(call, code)
    may_be_chroot = call == "unshare" and code == errno.EPERM
    return f"{remedy}, or leave the chroot if this is one" if may_be_chroot else remedy


# --- seccomp -----------------------------------------------------------------


def user_notification() -> Finding:
    """Check that seccomp(2) has user notification (Linux 5.0)."""
    code = _filter_flags_refused(seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER)
    if not code:
        return Finding("seccomp notification", True, True)
    why = f"the kernel has no seccomp user notification ({os.strerror(code)})"
    remedy = (
        f"use Linux 5.9 or newer with CONFIG_SECCOMP_FILTER; {remedies.refused('seccomp', code)}"
    )
    return Finding("seccomp notification", False, True, why, remedy)


def listener() -> Finding:
    """Check that this process can install a seccomp listener for its children."""
    code = _try(_listen)
    if not code:
        return Finding("seccomp listener", True, True)
    if code == errno.EBUSY and not _try(_find_supervisor):
        return Finding("seccomp listener", True, True)
    if code == errno.EBUSY:
        why = "this process already has a seccomp listener, and the kernel allows only one"
        remedy = "start loopfs run outside of the sandbox (loopfs run or a container) you are in"
    else:
        why = f"no seccomp listener can be installed ({os.strerror(code)})"
        remedy = remedies.refused("seccomp", code)
    return Finding("seccomp listener", False, True, why, remedy)


def _find_supervisor() -> None:
    """Check that we are in a sandbox of loopfs, whose supervisor serves inner sandboxes too."""
    _enter()
    if not is_nested():
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def add_descriptor() -> Finding:
    """Check that a supervisor can add a file descriptor to a process (SECCOMP_IOCTL_NOTIF_ADDFD,
    Linux 5.9)."""

    def probe() -> None:
        fd = _listen()
        try:
            request = NOTIF_ADDFD.pack(0, 0, fd, 0, 0)
            fcntl.ioctl(fd, seccomp.SECCOMP_IOCTL_NOTIF_ADDFD, request)
        except OSError as problem:
            if problem.errno != errno.ENOENT:  # ENOENT: no call waits, but the ioctl is known
                raise

    if _try(probe) in (0, errno.EBUSY):  # EBUSY: the outer sandbox's listener can
        return Finding("seccomp descriptors", True, True)
    why = "this kernel cannot add a file descriptor to a supervised process"
    return Finding("seccomp descriptors", False, True, why, "use Linux 5.9 or newer")


def landlock() -> Finding:
    """Check that Landlock can scope signals (Linux 6.12)."""

    def probe() -> None:
        ruleset = RULESET_ATTR.pack(0, 0, LANDLOCK_SCOPE_SIGNAL)
        syscalls.landlock_create_ruleset(ruleset)

    code = _try(probe)
    if not code:
        return Finding("Landlock", True, False)
    why = (
        "processes of the sandbox can send signals to your processes outside of it, and trace"
        f" the programs that mount for them (landlock_create_ruleset: {os.strerror(code)})"
    )
    remedy = "use Linux 6.12 or newer"
    if code in (errno.EPERM, errno.EACCES):
        remedy = remedies.refused("landlock_create_ruleset", code)
    return Finding("Landlock", False, False, why, remedy)


def killable_wait() -> Finding:
    """Check for SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19)."""
    flags = seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER
    flags |= seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    if not _filter_flags_refused(flags):
        return Finding("killable waits", True, False)
    why = "a trapped call that a signal interrupts may be carried out twice"
    return Finding("killable waits", False, False, why, "use Linux 5.19 or newer")


def synchronous_wake_up() -> Finding:
    """Check for SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6)."""

    def probe() -> None:
        flags = seccomp.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
        fcntl.ioctl(_listen(), seccomp.SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags)

    if _try(probe) in (0, errno.EBUSY):  # EBUSY: the outer sandbox's supervisor has set it
        return Finding("fast traps", True, False)
    why = "a trapped system call takes about 65 microseconds instead of 8"
    return Finding("fast traps", False, False, why, "use Linux 6.6 or newer")


def _listen() -> int:
    """Install a filter that allows every call, and return its listener."""
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
    allow = seccomp.SOCK_FILTER.pack(seccomp.BPF_RET_K, 0, 0, seccomp.SECCOMP_RET_ALLOW)
    return syscalls.seccomp_listener(allow, 0)


def _filter_flags_refused(flags: int) -> int:
    """Return 0 if the kernel knows these SECCOMP_FILTER_FLAG_*, else the errno of seccomp(2).

    The flags are checked before the program, which is NULL: EFAULT means that they are known, and
    nothing is installed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = (abis()[0].numbers["seccomp"], seccomp.SECCOMP_SET_MODE_FILTER, flags)
    libc.syscall(*map(ctypes.c_long, numbers), None)
    code = ctypes.get_errno()
    return 0 if code == errno.EFAULT else code


# --- reaching into the workload ----------------------------------------------


def reach() -> Finding:
    """Check that a supervisor may access the descriptors (Linux 5.6) and memory of its child.

    Both require PTRACE_MODE_ATTACH, see ptrace(2).
    """
    try:
        with _waiting_child(_enter) as pid:
            _take_hold(pid)
    except OSError as problem:
        what = ": ".join(word for word in (call_of(problem), problem.strerror) if word)
        why = f"a supervisor may not access the memory and descriptors of its own child ({what})"
        return Finding("access to children", False, True, why, _reach_remedy(problem))
    return Finding("access to children", True, True)


def _take_hold(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC))
    here = ctypes.create_string_buffer(1)  # a fork has its memory at the same addresses
    syscalls.process_vm_read(pid, ctypes.addressof(here), 1)
    any_descriptor = int(os.listdir(f"/proc/{pid}/fd")[0])
    pidfd = syscalls.pidfd_open(pid)
    try:
        os.close(syscalls.pidfd_getfd(pidfd, any_descriptor))
    finally:
        os.close(pidfd)


def _reach_remedy(problem: OSError) -> str:
    if problem.errno == errno.ENOSYS:
        return "use Linux 5.6 or newer (pidfd_getfd)"
    if remedies.setting("kernel/yama/ptrace_scope") == "3":
        return "set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d and reboot: 3 is final"
    if remedies.setting("kernel/yama/ptrace_scope") == "2":
        return "run: sudo sysctl kernel.yama.ptrace_scope=1"
    call = call_of(problem)
    return remedies.refused(call or "pidfd_getfd and the writing of /proc/PID/mem", errno.EPERM)


# --- mounts --------------------------------------------------------------------


def mount_calls() -> Finding:
    """Check that the calls that mount a device succeed in the namespaces of a child."""
    code, call = _attempt(_mount_by_parts)
    if not code:
        with _waiting_child(_enter) as pid:
            code, call = _attempt(partial(_join, pid))
    return _of_calls("mount calls", "mounting a device fails", code, call)


def mount_api() -> Finding:
    """Check that a superblock can be made by the new mount API (Linux 5.2)."""
    code, call = _attempt(_mount_by_context)
    return _of_calls("mount API", "mounting vfat, an instance or a context fails", code, call)


def change_of_root() -> Finding:
    """Check that chroot(2) works in a user namespace of ours."""

    def probe() -> None:
        _enter()
        syscalls.chroot("/")

    why = "mounting for a process that is in a chroot fails"
    return _of_calls("chroot", why, *_attempt(probe), required=False)


def sandbox() -> Finding:
    """Make a sandbox, and in it bind a device and mount a filesystem and an instance."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = ":".join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    python = [sys.executable, "-m"]
    try:
        done = subprocess.run(
            [*python, "loopfs", "run", "--config", "/dev/null", "--", *python, "loopfs.cli.trial"],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TRIAL_WITHIN,
            check=False,
        )
        said = (done.stdout or done.stderr).strip()
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed, said = True, f"it did not end within {TRIAL_WITHIN} seconds"
    if not failed:
        return Finding("a sandbox", True, True)
    why = f"the test in a sandbox failed ({said.splitlines()[-1] if said else ''})"
    remedy = "run: loopfs run -vv -- mount -o loop FILE DIRECTORY (it shows which call failed)"
    return Finding("a sandbox", False, True, why, remedy)


def _mount_by_parts() -> None:
    _enter()
    syscalls.mount("none", "/dev", "tmpfs", 0, None)
    clone = uapi_mount.OPEN_TREE_CLONE | uapi_mount.OPEN_TREE_CLOEXEC
    tree = syscalls.open_tree(uapi_mount.AT_FDCWD, "/dev", clone)
    syscalls.mount_setattr(tree, uapi_mount.MOUNT_ATTR_RDONLY, 0)
    syscalls.move_mount(tree, os.open("/dev", os.O_PATH | os.O_CLOEXEC))
    syscalls.umount2("/dev", uapi_mount.MNT_DETACH)


def _mount_by_context() -> None:
    _enter()
    context = syscalls.fsopen("tmpfs")
    syscalls.fsconfig(context, uapi_mount.FSCONFIG_CMD_CREATE)
    syscalls.fsmount(context, 0)


def _join(pid: int) -> None:
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(syscalls.pidfd_open(pid), sched.CLONE_NEWUSER)
    syscalls.setns(mounts, sched.CLONE_NEWNS)
    syscalls.set_ids((0, 0, 0), (0, 0, 0))


def _of_calls(name: str, what: str, code: int, call: str, *, required: bool = True) -> Finding:
    if not code:
        return Finding(name, True, required)
    why = f"{what} ({call or 'it'}: {os.strerror(code)})"
    remedy = remedies.refused(call, code)
    return Finding(name, False, required, why, remedy)


# --- trying ------------------------------------------------------------------


def _try(action: Callable[[], object]) -> int:
    """Call ``action`` in a forked child; return 0 if it succeeds, else its errno."""
    return _attempt(action)[0]


def _attempt(action: Callable[[], object]) -> tuple[int, str]:
    """As :func:`_try`, with the name of the system call that failed where that is known."""
    told, tells = os.pipe()
    with open(told, encoding="ascii") as said:
        pid = os.fork()
        if pid == 0:
            _leave_with(lambda: _told(action, tells))
        os.close(tells)
        call = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # A seccomp filter may kill the process that makes a call.
    return (status, call) if status >= 0 else (errno.EPERM, call)


def _told(action: Callable[[], object], tells: int) -> int:
    try:
        action()
    except OSError as problem:
        os.write(tells, call_of(problem).encode())
        return problem.errno or errno.EIO
    return 0


@contextmanager
def _waiting_child(action: Callable[[], object]) -> Iterator[int]:
    """Yield the pid of a forked child that has called ``action`` and waits; it ends with the
    context.

    Raises:
        OSError: as ``action`` in the child.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _leave_with(lambda: _report_and_wait(theirs, action))
    theirs.close()
    try:
        report = ours.recv(1)
        code = report[0] if report else errno.EPERM
        if code:
            raise OSError(code, os.strerror(code))
        yield pid
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _report_and_wait(parent: socket.socket, action: Callable[[], object]) -> int:
    parent.send(bytes((_errno_of(action),)))
    parent.recv(1)  # it returns when the parent closes its end, or dies
    return 0


def _leave_with(status: Callable[[], int]) -> NoReturn:
    """Exit from a forked child without calling the parent's exit handlers."""
    try:
        os._exit(status())
    finally:
        os._exit(errno.EIO)


def _errno_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0
