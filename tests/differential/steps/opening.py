"""Open flags, exclusive claims, and calls on the open file that transfer no data."""

from __future__ import annotations

import fcntl
import os
import select
import stat

from . import uapi
from .bench import Bench, Device, ioctl, number_out, scenario, size_of

FLAGS = {
    "O_RDONLY": os.O_RDONLY,
    "O_WRONLY": os.O_WRONLY,
    "O_RDWR": os.O_RDWR,
    "access mode 3": 3,
    "O_CREAT": os.O_CREAT | os.O_RDWR,
    "O_CREAT|O_EXCL": os.O_CREAT | os.O_EXCL | os.O_RDWR,
    "O_CREAT|O_DIRECTORY": os.O_CREAT | os.O_DIRECTORY,
    "O_TRUNC": os.O_TRUNC | os.O_RDWR,
    "O_TRUNC|O_WRONLY|O_CREAT": os.O_TRUNC | os.O_WRONLY | os.O_CREAT,
    "O_RDONLY|O_TRUNC": os.O_RDONLY | os.O_TRUNC,
    "O_DIRECTORY": os.O_DIRECTORY,
    "O_NOFOLLOW": os.O_NOFOLLOW,
    "O_PATH": os.O_PATH,
    "O_PATH|O_DIRECTORY": os.O_PATH | os.O_DIRECTORY,
    "O_TMPFILE": os.O_TMPFILE | os.O_RDWR,
    "O_EXCL": os.O_EXCL | os.O_RDWR,
    "O_DIRECT": os.O_DIRECT | os.O_RDWR,
    "O_SYNC": os.O_SYNC | os.O_RDWR,
    "O_DSYNC": os.O_DSYNC | os.O_RDWR,
    "O_APPEND": os.O_APPEND | os.O_RDWR,
    "O_NONBLOCK": os.O_NONBLOCK | os.O_RDWR,
    "O_NONBLOCK|O_RDONLY": os.O_NONBLOCK,
    "O_NOATIME": os.O_NOATIME,
    "O_NOCTTY": os.O_NOCTTY,
    "O_ASYNC": os.O_ASYNC,
}


def _open(device: Device, flags: int) -> dict[str, object]:
    with device.opened(flags) as fd:
        got = fcntl.fcntl(fd, fcntl.F_GETFL) & ~uapi.O_LARGEFILE
        return {"flags": oct(got), "type": oct(stat.S_IFMT(os.fstat(fd).st_mode))}


def _try_flags(bench: Bench, device: Device) -> None:
    for name, flags in FLAGS.items():
        bench.step(name, lambda flags=flags: _open(device, flags))
    bench.step("size in the end", lambda: _size(device))


def _size(device: Device) -> int:
    with device.opened(os.O_RDONLY) as fd:
        return size_of(fd)


@scenario
def open_flags_on_a_bound_device(bench: Bench) -> None:
    with bench.bound() as (device, _):
        _try_flags(bench, device)


@scenario
def open_flags_on_an_unbound_device(bench: Bench) -> None:
    _try_flags(bench, bench.device())


@scenario
def open_flags_on_a_read_only_device(bench: Bench) -> None:
    with bench.bound(openings=os.O_RDONLY, flags=uapi.READ_ONLY) as (device, _):
        _try_flags(bench, device)


@scenario
def open_a_device_that_became_read_only(bench: Bench) -> None:
    device = bench.device()
    with device.opened() as writer, device.opened(os.O_RDONLY) as reader:
        bench.step("bind a read-only file", lambda: bench.bind(writer, bench.image(), os.O_RDONLY))
        bench.step("BLKROGET", lambda: number_out(reader, uapi.BLKROGET, 4))
        _try_flags(bench, device)
        bench.step("write by who has it open", lambda: os.pwrite(writer, b"x" * 512, 0))
        bench.step("read by who has it open", lambda: os.pread(writer, 512, 0))
        rng = uapi.byte_range(0, 4096)
        bench.step("BLKZEROOUT", lambda: ioctl(writer, uapi.BLKZEROOUT, rng))
        bench.step("BLKDISCARD", lambda: ioctl(writer, uapi.BLKDISCARD, rng))
        bench.step("fsync", lambda: os.fsync(writer))


@scenario
def open_paths(bench: Bench) -> None:
    with bench.bound() as (device, fd):
        bench.step("slash", lambda: os.open(f"{device.path}/", os.O_RDONLY))
        bench.step("below", lambda: os.open(f"{device.path}/x", os.O_RDONLY))
        bench.step("through /proc/self/fd", lambda: _reopened_size(f"/proc/self/fd/{fd}"))
        bench.step("through /dev/fd", lambda: _reopened_size(f"/dev/fd/{fd}"))
        link = bench.path()
        os.symlink(device.path, link)
        bench.step("through a link", lambda: _reopened_size(link))
        bench.step("a link, O_NOFOLLOW", lambda: os.open(link, os.O_NOFOLLOW))
        directory = os.open(os.path.dirname(device.path), os.O_PATH)
        name = os.path.basename(device.path)
        bench.step("openat", lambda: os.open(name, os.O_RDONLY, dir_fd=directory) > 0)


def _reopened_size(path: str) -> int:
    fd = os.open(path, os.O_RDWR)
    try:
        return size_of(fd)
    finally:
        os.close(fd)


@scenario
def path_descriptors(bench: Bench) -> None:
    with bench.bound() as (device, _):
        fd = device.open(os.O_PATH)
        bench.step("read", lambda: os.read(fd, 512))
        bench.step("write", lambda: os.write(fd, b"x"))
        bench.step("ioctl", lambda: size_of(fd))
        bench.step("fstat", lambda: stat.S_ISBLK(os.fstat(fd).st_mode))
        bench.step("number", lambda: os.fstat(fd).st_rdev == os.stat(device.path).st_rdev)
        bench.step("fsync", lambda: os.fsync(fd))
        bench.step("fchmod", lambda: os.fchmod(fd, 0o600))
        bench.step("set_fd of it", lambda: _set_fd(bench, fd))


def _set_fd(bench: Bench, fd: int) -> int:
    with bench.device().opened() as other:
        return ioctl(other, uapi.LOOP_SET_FD, fd)


@scenario
def exclusive_opens(bench: Bench) -> None:
    device = bench.device()
    excl = os.O_EXCL | os.O_RDWR
    with device.opened(excl) as first:
        bench.step("exclusive again", lambda: device.open(excl))
        bench.step("exclusive to read", lambda: device.open(os.O_EXCL))
        bench.step("plain", lambda: os.close(device.open()))
        with device.opened() as other:
            bench.step("set_fd by another", lambda: bench.bind(other, bench.image()))
        bench.step("set_fd by the claimer", lambda: bench.bind(first, bench.image()))
        bench.step("size", lambda: size_of(first))
        copy = os.dup(first)
    bench.step("while a duplicate is open", lambda: device.open(excl))
    os.close(copy)
    bench.step("after the last close", lambda: os.close(device.open(excl)))
    with device.opened():
        bench.step("beside a plain opener", lambda: os.close(device.open(excl)))
        bench.step("to read, beside a plain opener", lambda: os.close(device.open(os.O_EXCL)))


@scenario
def exclusive_and_configure(bench: Bench) -> None:
    device = bench.device()
    image = os.open(bench.image(), os.O_RDWR)
    data = uapi.config(image)
    with device.opened(os.O_EXCL), device.opened() as other:
        bench.step("configure", lambda: ioctl(other, uapi.LOOP_CONFIGURE, data))
        bad = uapi.config(999)
        bench.step("bad descriptor", lambda: ioctl(other, uapi.LOOP_CONFIGURE, bad))
        bench.step("size", lambda: size_of(other))
    with device.opened() as plain, device.opened(os.O_EXCL | os.O_RDWR):
        bench.step("by the plain opener", lambda: ioctl(plain, uapi.LOOP_CONFIGURE, data))
        bench.step("status", lambda: size_of(plain))


@scenario
def exclusive_claim_of_a_bound_device(bench: Bench) -> None:
    with bench.bound() as (device, fd), device.opened(os.O_EXCL | os.O_RDWR) as claimer:
        info = uapi.info64(offset=512)
        bench.step("set_status by another", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, info))
        bench.step("write by another", lambda: os.pwrite(fd, b"x" * 512, 0))
        bench.step("clear by another", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("size", lambda: size_of(claimer))
        size = (1024).to_bytes(4, "little")
        bench.step("BLKBSZSET by another", lambda: ioctl(fd, uapi.BLKBSZSET, size))


@scenario
def backing_file_that_is_claimed(bench: Bench) -> None:
    with bench.bound() as (lower, _), bench.device().opened() as upper:
        bench.step("bind", lambda: bench.bind(upper, lower.path))
        bench.step("claim what is below", lambda: os.close(lower.open(os.O_EXCL | os.O_RDWR)))


@scenario
def poll_and_select(bench: Bench) -> None:
    with bench.bound() as (_, fd):
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLHUP)
        bench.step("poll", lambda: [events for _, events in poll.poll(0)])
        bench.step("select", lambda: [len(x) for x in select.select([fd], [fd], [fd], 0)])
        bench.step("epoll", lambda: _epoll(fd))


def _epoll(fd: int) -> None:
    with select.epoll() as epoll:
        epoll.register(fd)


@scenario
def file_locks(bench: Bench) -> None:
    with bench.bound() as (device, first), device.opened() as second:
        both = fcntl.LOCK_EX | fcntl.LOCK_NB
        bench.step("flock", lambda: fcntl.flock(first, both))
        bench.step("flock by another", lambda: fcntl.flock(second, both))
        bench.step("shared by another", lambda: fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB))
        bench.step("unlock", lambda: fcntl.flock(first, fcntl.LOCK_UN))
        bench.step("flock when it is free", lambda: fcntl.flock(second, both))
        bench.step("lockf", lambda: fcntl.lockf(first, both, 512, 0))
        bench.step("lockf in a child", lambda: _in_child(lambda: fcntl.lockf(second, both)))
        bench.step("lockf unlock", lambda: fcntl.lockf(first, fcntl.LOCK_UN))
        bench.step("lockf free", lambda: _in_child(lambda: fcntl.lockf(second, both)))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("lockf of a reader", lambda: fcntl.lockf(reader, both))
        bench.step("lease", lambda: fcntl.fcntl(first, fcntl.F_SETLEASE, fcntl.F_RDLCK))
        bench.step("pipe size", lambda: fcntl.fcntl(first, 1032))


def _in_child(action: object) -> int:
    """The errno of ``action`` in another process; 0 when it succeeds."""
    assert callable(action)
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError as problem:
            os._exit(problem.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@scenario
def file_status_flags(bench: Bench) -> None:
    image = bench.image(4096)
    with bench.bound(image) as (_, fd):
        for name in ("O_APPEND", "O_NONBLOCK", "O_DIRECT", "O_NOATIME", "O_ASYNC"):
            flag = getattr(os, name)
            bench.step(f"set {name}", lambda flag=flag: fcntl.fcntl(fd, fcntl.F_SETFL, flag))
            bench.step(f"{name} is set", lambda f=flag: bool(fcntl.fcntl(fd, fcntl.F_GETFL) & f))
            bench.step(f"unset {name}", lambda: fcntl.fcntl(fd, fcntl.F_SETFL, 0))
