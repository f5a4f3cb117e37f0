"""Files of the host that the sandbox's root has versions of its own of: /run, a home directory,
the rules of sudo, mount.fuse."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from loopfs import syscalls
from loopfs.sandbox import kpartx
from loopfs.uapi import mount as uapi

_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC | uapi.AT_RECURSIVE
RUN = "/run"
# Directories that are empty at first, and their modes: root's tools keep the sandbox's state there.
OWN = {
    "mount": 0o755,  # mount(8) records loop mounts there (utab)
    "lock": 0o1777,
    "cryptsetup": 0o700,
    "lvm": 0o700,
    "blkid": 0o755,
    "systemd/nspawn": 0o755,
    "systemd/machines": 0o755,
    "systemd/transient": 0o755,
    # A systemd-udevd that is started in the sandbox has them for itself.
    "udev/links": 0o755,
    "udev/static_node-tags": 0o755,
    "udev/tags": 0o755,
    "udev/watch": 0o755,
    "loopfs": 0o755,
}
# Directories of the sandbox with the host's entries.
OPENED = ("udev", "systemd")
UDEV_DATABASE = "udev/data"  # the host's records of its devices; here others can be written, too
# By these programs recognize that systemd-udevd runs, which cannot be reached.
UDEVD_RUNS = ("udev/control", "udev/queue")
STORE = f"{RUN}/loopfs"
HOME = "/root"

SUDOERS = "root ALL=(ALL:ALL) NOPASSWD: ALL\n"
# Files that sudo(8) and sudo-rs refuse to read if they belong to the host's root.
COVERED = {
    "/etc/sudoers": (SUDOERS, 0o440),
    "/etc/sudoers-rs": (SUDOERS, 0o440),
    "/etc/sudo.conf": ("", 0o644),
}
SUDOERS_DIRECTORY = "/etc/sudoers.d"
FUSE_HELPERS = ("/sbin/mount.fuse", "/sbin/mount.fuse3")
# mount(8) calls mount.fuse to remount types that begin with fuse, and mount.fuse cannot do that.
WRAPPER = """#!/bin/sh
next= opts= type=
for word; do
    case $next in
    o) opts=$word next= ;;
    t) type=$word next= ;;
    *) case $word in -o) next=o ;; -t) next=t ;; esac ;;
    esac
done
case ,$opts, in
*,remount,*) exec mount -i ${type:+-t "$type"} -o "$opts" "$1" "$2" ;;
esac
exec REAL "$@"
"""


def build() -> None:
    """Make these mounts in this mount namespace, as far as the host has the files.

    Raises:
        OSError: the kernel refused a mount.
    """
    _share_home()
    if not os.path.isdir(RUN):
        return
    _build_run()
    for path, (text, mode) in COVERED.items():
        _cover(path, text, mode)
    if os.path.isdir(SUDOERS_DIRECTORY):
        _make(f"{STORE}/sudoers.d", 0o755)
        syscalls.mount(f"{STORE}/sudoers.d", SUDOERS_DIRECTORY, None, uapi.MS_BIND, None)
    _wrap(FUSE_HELPERS, WRAPPER)
    _wrap(kpartx.PATHS, kpartx.SCRIPT)


def _share_home() -> None:
    """Bind the caller's home directory to /root, if /root is not accessible: programs started by
    sudo and su use it, and git, gpg and others fail if they cannot access it."""
    own = os.environ.get("HOME", "")
    if not os.path.isdir(HOME) or os.access(HOME, os.X_OK):
        return
    if os.path.isabs(own) and own.strip("/") and os.access(own, os.R_OK | os.W_OK | os.X_OK):
        with suppress(PermissionError):  # a mount below it is unbindable, and locked here
            syscalls.mount(own, HOME, None, uapi.MS_BIND | uapi.MS_REC, None)


def _build_run() -> None:
    """Mount a tmpfs with the host's entries bound in, so that its sockets work. Entries that the
    host adds later are not visible."""
    kept: list[tuple[str, bool, str | int | None]] = []
    for entry in os.scandir(RUN):
        inside = _entries(entry) if entry.name in OPENED else None
        for name, each in [(entry.name, entry)] if inside is None else inside:
            if name not in OWN and name not in UDEVD_RUNS:
                kept.append((name, each.is_dir(follow_symlinks=False), _clone(each)))
    flags = uapi.MS_NOSUID | uapi.MS_NODEV
    syscalls.mount("run", RUN, "tmpfs", flags, "mode=0755,size=64m")
    for name, mode in {**dict.fromkeys(OPENED, 0o755), **OWN}.items():
        _make(f"{RUN}/{name}", mode)
    for name, is_directory, tree in kept:
        path = f"{RUN}/{name}"
        if isinstance(tree, str):
            os.symlink(tree, path)
        elif tree is not None and name == UDEV_DATABASE and is_directory:
            _overlay(path, tree)
        elif tree is not None:
            _place(path, is_directory, tree)


def _entries(directory: os.DirEntry[str]) -> list[tuple[str, os.DirEntry[str]]] | None:
    """Return the entries of a directory of /run; None if it is not a directory or not readable."""
    if not directory.is_dir(follow_symlinks=False):
        return None
    try:
        return [(f"{directory.name}/{each.name}", each) for each in os.scandir(directory.path)]
    except PermissionError:
        return None


def _clone(entry: os.DirEntry[str]) -> str | int | None:
    """Return a detached mount of an entry, or the target of a symbolic link; None if it is gone or
    not accessible."""
    try:
        if entry.is_symlink():
            return os.readlink(entry.path)
        return syscalls.open_tree(uapi.AT_FDCWD, entry.path, _CLONE)
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return None


def _place(path: str, is_directory: bool, tree: int) -> None:
    if not is_directory:
        _write(path, "", 0o600)
    elif not os.path.isdir(path):  # one of OPENED that we cannot read is bound as a whole
        os.mkdir(path)
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(tree, place)
    os.close(place)
    os.close(tree)


def _overlay(path: str, tree: int) -> None:
    """Show a directory of the host, which is closed, where files can be made that it does not get.

    Where the kernel has no overlayfs it is shown as it is.
    """
    lower, upper, work = (f"{STORE}/{name}" for name in ("lower", "upper", "work"))
    _place(lower, is_directory=True, tree=tree)
    for directory in (upper, work, path):
        _make(directory, 0o755)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
    try:
        syscalls.mount("udev", path, "overlay", uapi.MS_NOSUID | uapi.MS_NODEV, options)
    except OSError:
        syscalls.mount(lower, path, None, uapi.MS_BIND, None)
    syscalls.umount2(lower, 0)  # what has been mounted from it has its own reference


def _wrap(paths: tuple[str, ...], script: str) -> None:
    """Mount a script over each program that there is; REAL in it becomes the path of a copy, as a
    bind mount of the program would be a mount point of the host's disk (lsblk, findmnt)."""
    for path in {os.path.realpath(each) for each in paths if os.access(each, os.R_OK | os.X_OK)}:
        real = f"{STORE}/{os.path.basename(path)}.real"
        _copy(path, real)
        _cover(path, script.replace("REAL", real), 0o755)


def _copy(program: str, path: str) -> None:
    source = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    while os.sendfile(target, source, None, 1 << 30):
        continue
    os.fchmod(target, 0o755)
    os.close(target)
    os.close(source)


def _cover(path: str, text: str, mode: int) -> None:
    """Mount a file of the sandbox over a file of the host, if that exists."""
    if os.path.isfile(path):
        own = f"{STORE}/{os.path.basename(path)}"
        _write(own, text, mode)
        syscalls.mount(own, path, None, uapi.MS_BIND, None)


def _make(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)  # independent of the umask


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    os.write(fd, text.encode())
    os.fchmod(fd, mode)
    os.close(fd)
