"""Steps that mount, unmount, and use the mounted filesystems."""

from __future__ import annotations

import ctypes
import mmap
import os

from loopfs import syscalls
from tests.bytes.images import FILE_SIZE, numbered, tool
from tests.bytes.model import Fault, Range, View, compare
from tests.bytes.steps import Step, action
from tests.bytes.world import MAY, Filesystem, World, place_in, some_length, without

MS_RDONLY = 1
libc = ctypes.CDLL(None, use_errno=True)
NAMES = [f"small{number}" for number in range(6)]


def _one(world: World, step: Step, mounted: tuple[str, ...]) -> Filesystem | None:
    some = [one for one in world.filesystems if one.mounted in mounted]
    return some[step.numbers[0] % len(some)] if some else None


@action(3)
def mount(world: World, step: Step) -> str | None:
    """The mounted filesystem has all that was dirty, and so has the image."""
    if (filesystem := _one(world, step, ("",))) is None:
        return None
    disk = world.disk_of(filesystem)
    mode = "rw" if step.numbers[1] % 3 else "ro"
    if world.native:  # there a mount and other devices of a file are not told of one another
        for node in disk.nodes:
            if node.is_open:
                os.fsync(node.any_fd(0))
    device = world.mount_node(filesystem)
    path = device.path
    flags = MS_RDONLY if mode == "ro" else 0
    syscalls.mount(path, str(filesystem.place), "ext4", flags, None)
    filesystem.mounted = mode
    if mode == "rw" or world.native:
        filesystem.image.unknown = without([filesystem.used], filesystem.layout.data)
    for node in disk.touching(device):
        node.view.flushed(disk.read, "mount(2)")
    filesystem.fd = os.open(
        filesystem.place / "data", os.O_CLOEXEC | (os.O_RDWR if mode == "rw" else os.O_RDONLY)
    )
    view = View(
        disk.image,
        f"file on {path}",
        filesystem.layout.data.begin,
        FILE_SIZE,
        by_blocks=world.native,
    )
    view.open = True
    filesystem.file = view
    if mode == "rw":
        filesystem.mapping = mmap.mmap(filesystem.fd, FILE_SIZE)
    view.check(0, os.pread(filesystem.fd, FILE_SIZE, 0), "read after mount")
    for name, content in filesystem.small.items():
        compare(f"{name} after mount", 0, (filesystem.place / name).read_bytes(), content)
    disk.check()
    return f"mount {path} {mode}"


@action(4)
def umount(world: World, step: Step) -> str | None:
    """When it returns, all is in the image, and no device shows anything of before."""
    if (filesystem := _one(world, step, ("ro", "rw"))) is None or filesystem.file is None:
        return None
    disk, mode = world.disk_of(filesystem), filesystem.mounted
    filesystem.close()
    syscalls.umount2(str(filesystem.place), 0)
    filesystem.file.flushed(disk.read, "umount2(2)")
    disk.image.views.remove(filesystem.file)
    filesystem.file, filesystem.mounted = None, ""
    if mode == "rw" and not world.native:
        disk.image.known_again(disk.read(0, len(disk.image.content)))
        for node in disk.touching(world.mount_node(filesystem)):
            node.view.flushed(disk.read, "umount2(2)")
            node.view.dropped()
            node.refusals = [min(refusal, MAY) for refusal in node.refusals]
            if node.is_open:
                _check_whole(node.view, os.pread(node.any_fd(0), node.view.size, 0), "read")
            if node.mapping:
                _check_whole(node.view, node.mapped(0, node.usable), "load")
    disk.check()
    tool("e2fsck", "-fn", filesystem.path)
    disk.check()
    return f"umount {disk.image.name} {mode}"


def _check_whole(view: View, found: bytes, how: str) -> None:
    view.check(0, found, f"{how} after umount2(2)")


@action(8)
def write_file(world: World, step: Step) -> str | None:
    filesystem = _one(world, step, ("rw",))
    part = _place(step)
    if filesystem is None or filesystem.file is None:
        return None
    data = numbered(filesystem.file.start + part.begin, len(part), step.turn + 1000)
    fd = filesystem.fd
    if os.pwrite(fd, data, part.begin) != len(data):
        raise Fault("a write(2) to a file is short")
    filesystem.file.stored(part.begin, data, lambda at, size: os.pread(fd, size, at), "write")
    return f"write {filesystem.file.name} {part.begin}+{len(part)}"


@action(6)
def store_file(world: World, step: Step) -> str | None:
    """Write through a mapping of the file."""
    filesystem = _one(world, step, ("rw",))
    part = _place(step)
    if filesystem is None or filesystem.file is None or filesystem.mapping is None:
        return None
    data = numbered(filesystem.file.start + part.begin, len(part), step.turn + 1000)
    filesystem.mapping[part.begin : part.end] = data
    fd = filesystem.fd
    filesystem.file.stored(part.begin, data, lambda at, size: os.pread(fd, size, at), "store")
    return f"store {filesystem.file.name} {part.begin}+{len(part)}"


@action(6)
def read_file(world: World, step: Step) -> str | None:
    filesystem = _one(world, step, ("ro", "rw"))
    part = _place(step)
    if filesystem is None or filesystem.file is None:
        return None
    if step.numbers[1] % 2:
        os.posix_fadvise(filesystem.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    filesystem.file.check(part.begin, os.pread(filesystem.fd, len(part), part.begin))
    return f"read {filesystem.file.name} {part.begin}+{len(part)}"


@action(2)
def sync_file(world: World, step: Step) -> str | None:
    filesystem = _one(world, step, ("rw",))
    if filesystem is None or filesystem.file is None:
        return None
    calls = {"fsync": os.fsync, "fdatasync": os.fdatasync, "syncfs": _syncfs}
    name = list(calls)[step.numbers[1] % len(calls)]
    calls[name](filesystem.fd)
    disk = world.disk_of(filesystem)
    filesystem.file.flushed(disk.read, f"{name}(2) of a file")
    disk.check()
    return f"{name} {filesystem.file.name}"


def _syncfs(fd: int) -> None:
    """syncfs(2)."""
    if libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _place(step: Step) -> Range:
    part = place_in([Range(0, FILE_SIZE)], 0, step.numbers[2], some_length(step.numbers[3]))
    assert part
    return part


@action(4)
def change_directory(world: World, step: Step) -> str | None:
    """Make a file, write it anew, or remove it: metadata changes."""
    _, b, c, d = step.numbers
    if (filesystem := _one(world, step, ("rw",))) is None:
        return None
    name = NAMES[b % len(NAMES)]
    path = filesystem.place / name
    if name in filesystem.small and c % 2:
        path.unlink()
        del filesystem.small[name]
        return f"unlink {path}"
    content = numbered(0, d % 9000, step.turn + 1000)
    path.write_bytes(content)
    filesystem.small[name] = content
    return f"create {path}, {len(content)} bytes"


@action(2)
def read_small(world: World, step: Step) -> str | None:
    if (filesystem := _one(world, step, ("ro", "rw"))) is None:
        return None
    for name, content in filesystem.small.items():
        compare(f"file {name}", 0, (filesystem.place / name).read_bytes(), content)
    if sorted(filesystem.small) != sorted(set(os.listdir(filesystem.place)) & set(NAMES)):
        raise Fault(f"the directory has {os.listdir(filesystem.place)}")
    return f"read all of {filesystem.place}"
