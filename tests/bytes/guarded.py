"""Steps that write to bytes of a filesystem that an engine has mounted for writing."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from tests.bytes.images import numbered
from tests.bytes.model import PAGE, Fault, Range
from tests.bytes.steps import Step, action
from tests.bytes.transfers import refusal, said, span
from tests.bytes.world import MAY, Node, World, ours, place_in, some_length, without


@action(4)
def write_refused(world: World, step: Step) -> str | None:
    """Write to bytes of a mounted filesystem: it fails with EBUSY."""
    _, b, _, d = step.numbers
    if (chosen := _guarded(world, step)) is None:
        return None
    node, part = chosen
    data = numbered(node.view.start + part.begin, len(part), step.turn + 1000)
    fd = node.any_fd(d)
    punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    if (b >> 8) % 3:
        answer = refusal(lambda: os.pwrite(fd, data, part.begin))
        node.view.refused(part.begin, data)  # the kernel keeps the data in mapped pages
    else:
        answer = refusal(lambda: syscalls.fallocate(fd, punch, part.begin, len(part)))
        if answer == errno.EIO and any(node.refusals):  # it reports the earlier refused stores
            answer = refusal(lambda: syscalls.fallocate(fd, punch, part.begin, len(part)))
    if answer != errno.EBUSY:
        raise Fault(
            f"{'write(2)' if (b >> 8) % 3 else 'fallocate(2)'} to the mounted filesystem on "
            f"{node.view.name} at {part.begin}, {len(part)} bytes: {os.strerror(answer)}"
        )
    node.disk.check(part.moved(node.view.start))
    return said(node, part, "write_refused")


@action(3)
def store_refused(world: World, step: Step) -> str | None:
    """Store to such bytes through the mapping: then fsync fails, and the image stays unchanged."""
    if (chosen := _guarded(world, step, mapped=True)) is None:
        return None
    node, part = chosen
    page = node.view.page(part.begin // PAGE)
    if node.mapping is None or not page.within(node.disk.guarded):
        return None
    part &= Range(part.begin, (part.begin // PAGE + 1) * PAGE)
    part &= Range(0, node.usable)
    if not len(part):
        return None
    data = numbered(node.view.start + part.begin, len(part), step.turn + 1000)
    node.mapping[part.begin : part.end] = data
    node.view.refused(part.begin, data)
    node.refuse()
    if now := step.numbers[3] % 2:
        mapping, whole = node.mapping, page.moved(-node.view.start)
        answer = refusal(lambda: mapping.flush(*span(whole)))
        node.told_of_one_page(answer)
        node.disk.check(page)
    return said(node, part, "store_refused" + (" and msync" if now else ""))


@action(3)
def write_across(world: World, step: Step) -> str | None:
    """Write across the end of a mounted filesystem: nothing, or only the free part, is written."""
    if (chosen := _beside_guarded(world, step)) is None:
        return None
    node, free, used = chosen
    part = Range(min(free.begin, used.begin), max(free.end, used.end))
    if node.mapping or any(page in node.view.dirty for page in node.view.pages(part)):
        return None  # FUSE reads such a page anew, but a mapping keeps it, and writes it if dirty
    data = numbered(node.view.start + part.begin, len(part), step.turn + 1000)
    fd = node.any_fd(step.numbers[3])
    count = 0

    def call() -> None:
        nonlocal count
        count = os.pwrite(fd, data, part.begin)

    answer = refusal(call)
    taken = Range(part.begin, part.begin + count)
    if answer != errno.EBUSY and (answer or not taken or not taken.within(free)):
        raise Fault(f"{said(node, part, 'write across')}: {os.strerror(answer)}, {count} bytes")
    if taken:
        node.view.written(taken.begin, data[:count])
    node.view.refused(part.begin + count, data[count:])
    node.disk.check(part.moved(node.view.start))
    return said(node, part, "write_across")


@action(3)
def store_across(world: World, step: Step) -> str | None:
    """Store beside the bytes of a mounted filesystem, in the same page: a sync may fail."""
    if (chosen := _beside_guarded(world, step, mapped=True)) is None:
        return None
    node, free, used = chosen
    free = Range(max(free.begin, free.end - 8), free.end) if free.end == used.begin else free
    page = free.begin // PAGE
    free &= Range(free.begin, free.begin + 8) & Range(0, node.usable)
    if node.mapping is None or not free or not node.view.page(page) & node.disk.guarded:
        return None
    if _is_behind(node, node.view.page(page)):
        return None  # all permitted bytes of the page would be written, also outdated ones
    data = numbered(node.view.start + free.begin, len(free), step.turn + 1000)
    node.mapping[free.begin : free.end] = data
    node.refusals = [refusal if fd is None else MAY for fd, refusal in _slots(node)]
    node.untold = node.had_refusals = True
    mapping, whole = node.mapping, node.view.page(page).moved(-node.view.start)
    answer = refusal(lambda: mapping.flush(*span(whole)))
    node.told_of_one_page(answer)
    node.view.written(free.begin, data)  # the permitted bytes are written even if msync fails
    node.disk.check(node.view.page(page))
    return said(node, free, f"store_across {answer}")


def _is_behind(node: Node, place: Range) -> bool:
    """Whether a mapping has outdated data of a part of the image, outside of the filesystem."""
    assert node.mapping is not None
    cached = node.mapping[place.begin - node.view.start : place.end - node.view.start]
    image = node.disk.read(place.begin, len(cached))
    own = (place & node.disk.guarded).moved(-place.begin)
    return (cached[: own.begin], cached[own.end :]) != (image[: own.begin], image[own.end :])


def _slots(node: Node) -> list[tuple[int | None, int]]:
    return list(zip(node.fds, node.refusals, strict=True))


def _beside_guarded(
    world: World, step: Step, *, mapped: bool = False
) -> tuple[Node, Range, Range] | None:
    """Choose a node, and adjacent parts of it that may and may not be written."""
    if (chosen := _guarded(world, step, mapped=mapped)) is None:
        return None
    node, _ = chosen
    _, b, c, d = step.numbers
    used = ours(node, [node.disk.guarded])[0]
    beside = c % 1000 + 1
    before, after = used.begin - beside, used.end + beside
    if (b % 2 or after > node.view.size) and before >= 0:
        free = Range(before, used.begin)
        used = Range(used.begin, used.begin + d % 5000 + 1)
    elif after <= node.view.size:
        free = Range(used.end, after)
        used = Range(used.end - d % 5000 - 1, used.end)
    else:
        return None
    allowed = ours(node, without(node.disk.free, node.disk.guarded))
    return (node, free, used) if any(free.within(part) for part in allowed) else None


def _guarded(world: World, step: Step, *, mapped: bool = False) -> tuple[Node, Range] | None:
    a, b, c, d = step.numbers
    some = [
        node
        for node in world.nodes
        if (node.mapping if mapped else node.is_open)
        and len(node.disk.guarded & node.view.extent)
        and not world.native
    ]
    if not some:
        return None
    node = some[a % len(some)]
    part = place_in(ours(node, [node.disk.guarded]), b, c, some_length(d), 512)
    return (node, part) if part else None
