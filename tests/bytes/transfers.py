"""Steps that read and write: by read(2) and write(2), through mappings, and past the devices."""

from __future__ import annotations

import errno
import os
import threading

from tests.bytes.images import BOOT_BLOCK, numbered
from tests.bytes.model import PAGE, Fault, Range
from tests.bytes.steps import Step, action
from tests.bytes.world import MAY, MUST, Node, World, ours, place_in, some_length, without


def node_of(world: World, number: int, *, mapped: bool = False) -> Node | None:
    """One of the nodes that are open, or mapped."""
    some = [node for node in world.nodes if (node.mapping if mapped else node.is_open)]
    return some[number % len(some)] if some else None


def writable(world: World, node: Node, step: Step, unit: int = 1) -> Range | None:
    """Where a node may be written, in its own offsets; None where nothing is as small as that."""
    if world.native and len(node.disk.touching(node)) > 1 and node is node.disk.nodes[0]:
        return None  # a store makes a whole large folio dirty, with what others have changed
    _, b, c, d = step.numbers
    parts = ours(node, without(node.disk.free, node.disk.guarded))
    part = place_in(parts, b, c, some_length(d), unit)
    return part if part and may_dirty(world, node, part, whole_pages=world.native) else None


def may_dirty(world: World, node: Node, part: Range, *, whole_pages: bool) -> bool:
    """Its pages, if they are written as a whole, have nothing of what an engine or mkfs wrote."""
    if not whole_pages:
        return True
    view = node.view
    pages = view.pages(part)
    whole = Range(view.page(pages[0]).begin, view.page(pages[-1]).end)
    if len(whole & node.disk.guarded):
        return False
    return not world.native or any(whole.within(free) for free in node.disk.free)


def said(node: Node, part: Range, what: str) -> str:
    return f"{what} {node.view.name} {part.begin}+{len(part)}"


@action(12)
def read(world: World, step: Step) -> str | None:
    a, b, c, d = step.numbers
    node = node_of(world, a)
    part = place_in([Range(0, node.view.size)], 0, c, some_length(d)) if node else None
    if node is None or part is None:
        return None
    node.view.check(part.begin, os.pread(node.any_fd(b), len(part), part.begin))
    return said(node, part, "read")


@action(12)
def load(world: World, step: Step) -> str | None:
    """Read through the mapping."""
    a, _, c, d = step.numbers
    node = node_of(world, a, mapped=True)
    part = place_in([Range(0, node.usable)], 0, c, some_length(d)) if node else None
    if node is None or part is None:
        return None
    node.view.check(part.begin, node.mapped(*span(part)), "load")
    return said(node, part, "load")


@action(14)
def write(world: World, step: Step) -> str | None:
    node = node_of(world, step.numbers[0])
    part = writable(world, node, step) if node else None
    if node is None or part is None:
        return None
    data = numbered(node.view.start + part.begin, len(part), step.turn + 1000)
    fd = node.any_fd(step.numbers[1])
    if (count := os.pwrite(fd, data, part.begin)) != len(data):
        raise Fault(f"write(2) took {count} bytes of {len(data)}")
    if world.native:
        node.view.stored(part.begin, data, lambda at, size: os.pread(fd, size, at), "write")
    else:
        node.view.written(part.begin, data)
        node.disk.check(part.moved(node.view.start))
    return said(node, part, "write")


@action(20)
def store(world: World, step: Step) -> str | None:
    """Write through the mapping."""
    node = node_of(world, step.numbers[0], mapped=True)
    part = writable(world, node, step) if node else None
    if node is None or part is None or node.mapping is None:
        return None
    part &= Range(0, node.usable)
    if not len(part) or not may_dirty(world, node, part, whole_pages=True):
        return None
    data = numbered(node.view.start + part.begin, len(part), step.turn + 1000)
    node.mapping[part.begin : part.end] = data
    fd = node.any_fd(0)  # a mapping may end in the middle of a page that has grown
    node.view.stored(part.begin, data, lambda at, size: os.pread(fd, size, at), "store")
    return said(node, part, "store")


@action(5)
def fsync(world: World, step: Step) -> str | None:
    a, b, _, _ = step.numbers
    if (node := node_of(world, a)) is None:
        return None
    slot = node.fds.index(node.any_fd(b))
    fd = node.fds[slot]
    assert fd is not None
    answer = refusal(lambda: os.fsync(fd))
    node.told(slot, answer, "fsync")
    node.view.flushed(node.disk.read, "fsync(2)")
    return f"fsync {node.view.name} {slot}"


@action(4)
def msync(world: World, step: Step) -> str | None:
    a, _, c, d = step.numbers
    node = node_of(world, a, mapped=True)
    part = place_in([Range(0, node.usable)], 0, c, some_length(d), PAGE) if node else None
    if node is None or part is None or node.mapping is None:
        return None
    mapping = node.mapping
    if node.refusals[0] == MUST:
        node.refusals[0] = MAY  # of other pages, perhaps
    before, untold = node.refusals[0], node.untold
    node.told(0, refusal(lambda: mapping.flush(*span(part))), "msync")
    node.refusals[0], node.untold = before, untold
    node.view.flushed(node.disk.read, "msync(2)", node.view.pages(part))
    return said(node, part, "msync")


def refusal(call: object) -> int:
    """The errno of a call, or 0."""
    assert callable(call)
    try:
        call()
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


@action(3)
def poke(world: World, step: Step) -> str | None:
    """Write to the image itself: devices may see it once their caches are dropped.

    Not to a mounted filesystem's boot block, which may be a part of its first block.
    """
    a, b, c, d = step.numbers
    disk = world.disks[a % len(world.disks)]
    if world.native and any(node.is_open for node in disk.nodes):
        return None
    gone = disk.guarded
    if gone:
        gone = Range(gone.begin - BOOT_BLOCK, gone.end)
    part = place_in(without(disk.free, gone), b, c, some_length(d))
    if part is None:
        return None
    data = numbered(part.begin, len(part), step.turn + 1000)
    os.pwrite(disk.fd, data, part.begin)
    disk.image.changed(part.begin, data, None)
    return f"poke {disk.image.name} {part.begin}+{len(part)}"


@action(4)
def evict(world: World, step: Step) -> str | None:
    """Let clean pages that nobody has mapped go: the next read is from the image, or is not."""
    if (node := node_of(world, step.numbers[0])) is None:
        return None
    os.posix_fadvise(node.any_fd(step.numbers[1]), 0, 0, os.POSIX_FADV_DONTNEED)
    return f"evict {node.view.name}"


@action(2)
def read_two(world: World, step: Step) -> str | None:
    """Two threads read two nodes, by large requests."""
    a, b, c, d = step.numbers
    some = [node for node in world.nodes if node.is_open]
    pair = [some[n % len(some)] for n in (a, b)] if some else []
    parts = [
        place_in([Range(0, node.view.size)], 0, n, 150000)
        for node, n in zip(pair, (c, d), strict=False)
    ]
    found: list[bytes] = [b"", b""]

    def read_one(index: int) -> None:
        part, node = parts[index], pair[index]
        assert part
        fd = node.any_fd(c)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found[index] = os.pread(fd, len(part), part.begin)

    readers = [threading.Thread(target=read_one, args=(index,)) for index in range(len(pair))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for node, part, data in zip(pair, parts, found, strict=False):
        if part:
            node.view.check(part.begin, data, "read beside another")
    return f"read_two {' '.join(node.view.name for node in pair)}" if pair else None


@action(8)
def open_node(world: World, step: Step) -> str | None:
    a, b, _, _ = step.numbers
    node = world.nodes[a % len(world.nodes)]
    slot = b % 2
    if node.fds[slot] is not None:
        return None
    node.open(slot)
    return f"open {node.view.name} {slot}"


@action(4)
def close_node(world: World, step: Step) -> str | None:
    a, b, _, _ = step.numbers
    node = world.nodes[a % len(world.nodes)]
    slot = b % 2
    if node.fds[slot] is None or (world.native and node.disk.guarded):
        return None  # there the mount keeps the device open
    node.close(slot)
    # FUSE writes what a mapping has dirtied when that goes, the kernel at the last close.
    if not node.is_open or (slot == 0 and not world.native):
        node.view.flushed(node.disk.read, "munmap(2) and close(2)")
    return f"close {node.view.name} {slot}"


def span(part: Range) -> tuple[int, int]:
    """Offset and length."""
    return part.begin, len(part)
