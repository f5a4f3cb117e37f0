"""Hypothesis chooses the steps; the kernel's results are the expected results.

``LOOPFS_MACHINE_STEPS=100000 ./check tests/differential/machine`` makes that many.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.differential.machine.executor import DEVICES, FILES, PARTITIONS
from tests.differential.steps import uapi
from tests.support import host, workers
from tests.support.patience import scaled
from tests.support.user import CHECKOUT, SEARCH_PATH, User

STEPS = int(os.environ.get("LOOPFS_MACHINE_STEPS", "2000"))
LENGTH = 50  # steps of one sequence
PATIENCE = scaled(20.0)  # seconds for one answer
# An interpreter that every user can run, without site-packages, which may hold a "tests".
COMMAND = ["env", f"PYTHONPATH={CHECKOUT}", "/usr/bin/python3", "-B", "-S"]
COMMAND += ["-m", "tests.differential.machine.executor"]

Answer = object


class Side:
    """An executor, natively or in a sandbox."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def answer(self) -> Answer:
        output = self._process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], PATIENCE)
        if not ready:
            return "no answer"
        return json.loads(output.readline() or '"it has ended"')

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


class Both(NamedTuple):
    kernel: Side
    ours: Side

    def __call__(self, name: str, *arguments: object) -> tuple[Answer, Answer]:
        """What a call came to, in the kernel and in ours."""
        line = json.dumps([name, *arguments]) + "\n"
        self.kernel.ask(line)
        self.ours.ask(line)
        return self.kernel.answer(), self.ours.answer()


@contextmanager
def both_sides(user: User, loopfs_bin: list[str]) -> Iterator[Both]:
    place = Path(tempfile.mkdtemp(prefix=workers.prefix(), dir="/var/tmp"))
    os.chown(place, user.uid, user.gid)
    try:
        native = subprocess.Popen(
            [*COMMAND, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": SEARCH_PATH},
        )
        boxed = user.start([*loopfs_bin, "run", "--", *COMMAND, place], cwd=place)
        sides = Both(Side(native), Side(boxed))
        try:
            yield sides
        finally:
            for side in sides:
                side.end()
    finally:
        shutil.rmtree(place)


# --- what is drawn -------------------------------------------------------------------------------

slots = st.integers(0, 5)
devices = st.integers(0, DEVICES - 1)
files = st.integers(0, len(FILES) - 1)
backings = st.one_of(files, devices.map(lambda number: 100 + number))
openings = st.sampled_from(
    [os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_EXCL, os.O_RDONLY | os.O_EXCL]
).map(lambda flags: flags | os.O_DIRECT)  # so that no cache stands between the two and their files
backing_openings = st.sampled_from([os.O_RDWR, os.O_RDWR, os.O_RDONLY])
offsets = st.sampled_from([0, 0, 512, 4096, 100, 12288, 65536, 1 << 40, 1 << 62, -1 % 2**64])
limits = st.sampled_from([0, 0, 512, 4096, 8192, 5000, 1 << 40, 1 << 63])
flag_sets = st.sampled_from(
    [0, 0, uapi.AUTOCLEAR, uapi.READ_ONLY, uapi.PARTSCAN, 5, 12, 13, 2, 255]
)
block_sizes = st.sampled_from([0, 512, 1024, 4096, 65536, 100, 256, 1 << 31])
infos = st.fixed_dictionaries({"offset": offsets, "sizelimit": limits, "flags": flag_sets})
# On a page of a device that has none there is nothing to read; both sides say so alike.
positions = st.sampled_from([0, 512, 1024, 4096, 8192, 12288, 12800, 61440, 65024, 65536, 1 << 40])
lengths = st.sampled_from([512, 1024, 4096, 8192, 100, 65536])

GETTERS = [
    (uapi.BLKROGET, 4),
    (uapi.BLKGETSIZE, 8),
    (uapi.BLKGETSIZE64, 8),
    (uapi.BLKSSZGET, 4),
    (uapi.BLKPBSZGET, 4),
    (uapi.BLKBSZGET, 4),
    (0x1278, 4),
    (0x1279, 4),
    (0x127A, 4),
]
PLAIN = [
    uapi.LOOP_CLR_FD,
    uapi.LOOP_SET_CAPACITY,
    uapi.BLKRRPART,
    uapi.BLKFLSBUF,
    0x4C0B,
    0x0301,
    0x5401,
]
POINTERS = [
    uapi.LOOP_CONFIGURE,
    uapi.LOOP_SET_STATUS,
    uapi.LOOP_GET_STATUS,
    uapi.LOOP_SET_STATUS64,
    uapi.LOOP_GET_STATUS64,
    uapi.BLKGETSIZE64,
    uapi.BLKROGET,
    uapi.BLKROSET,
    uapi.BLKDISCARD,
    uapi.BLKZEROOUT,
    uapi.BLKPG,
]


class Machine(RuleBasedStateMachine):
    """Every rule makes one call on both sides."""

    both: Both

    def __init__(self) -> None:
        super().__init__()
        self.open_slots: set[int] = set()

    def same(self, name: str, *arguments: object) -> Answer:
        kernel, ours = self.both(name, *arguments)
        assert ours == kernel, f"{name}{arguments}: kernel {kernel}, ours {ours}"
        return kernel

    @initialize()
    def begin(self) -> None:
        self.same("begin")

    def teardown(self) -> None:
        self.same("end")

    # --- descriptors -----------------------------------------------------------------

    @rule(slot=slots, device=devices, part=st.sampled_from([0, 0, 0, *PARTITIONS]), flags=openings)
    def open(self, slot: int, device: int, part: int, flags: int) -> None:
        if slot not in self.open_slots and self.same("open", slot, device, part, flags) is None:
            self.open_slots.add(slot)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        slot = self.slot(data)
        self.same("close", slot)
        self.open_slots.remove(slot)

    def slot(self, data: st.DataObject) -> int:
        return int(data.draw(st.sampled_from(sorted(self.open_slots)), label="slot"))

    # --- binding ---------------------------------------------------------------------

    @precondition(lambda self: self.open_slots)
    @rule(
        data=st.data(), file=backings, flags=backing_openings, block_size=block_sizes, fields=infos
    )
    def configure(
        self, data: st.DataObject, file: int, flags: int, block_size: int, fields: dict[str, int]
    ) -> None:
        self.same("configure", self.slot(data), file, flags, block_size, fields)

    @precondition(lambda self: self.open_slots)
    @rule(
        data=st.data(),
        cmd=st.sampled_from([uapi.LOOP_SET_FD, uapi.LOOP_CHANGE_FD]),
        file=backings,
        flags=backing_openings,
    )
    def set_fd(self, data: st.DataObject, cmd: int, file: int, flags: int) -> None:
        self.same("set_fd", self.slot(data), cmd, file, flags)

    # --- status ----------------------------------------------------------------------

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), fields=infos)
    def set_status(self, data: st.DataObject, fields: dict[str, int]) -> None:
        self.same("set_status", self.slot(data), fields)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), offset=st.sampled_from([0, 512, 100]), flags=flag_sets)
    def set_old_status(self, data: st.DataObject, offset: int, flags: int) -> None:
        self.same("set_old_status", self.slot(data), {"offset": offset, "flags": flags})

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), old=st.booleans())
    def get_status(self, data: st.DataObject, old: bool) -> None:
        self.same("get_old_status" if old else "get_status", self.slot(data))

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), getter=st.sampled_from(GETTERS))
    def number(self, data: st.DataObject, getter: tuple[int, int]) -> None:
        self.same("number", self.slot(data), *getter)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), cmd=st.sampled_from(PLAIN))
    def ioctl(self, data: st.DataObject, cmd: int) -> None:
        self.same("ioctl", self.slot(data), cmd, 0)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), size=block_sizes)
    def set_block_size(self, data: st.DataObject, size: int) -> None:
        self.same("ioctl", self.slot(data), uapi.LOOP_SET_BLOCK_SIZE, size)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), value=st.integers(0, 1))
    def set_read_only(self, data: st.DataObject, value: int) -> None:
        self.same("put", self.slot(data), uapi.BLKROSET, value)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), value=st.sampled_from([512, 1024, 4096, 65536, 0, 100, -1]))
    def set_soft_block_size(self, data: st.DataObject, value: int) -> None:
        self.same("put", self.slot(data), uapi.BLKBSZSET, value)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), cmd=st.sampled_from(POINTERS))
    def bad_pointer(self, data: st.DataObject, cmd: int) -> None:
        self.same("nowhere", self.slot(data), cmd)

    # --- the control node ------------------------------------------------------------

    @rule(cmd=st.sampled_from([uapi.LOOP_CTL_ADD, uapi.LOOP_CTL_REMOVE]), device=devices)
    def control(self, cmd: int, device: int) -> None:
        self.same("control", cmd, device)

    # --- partitions ------------------------------------------------------------------

    @precondition(lambda self: self.open_slots)
    @rule(
        data=st.data(),
        operation=st.integers(1, 3),
        number=st.sampled_from([*PARTITIONS, 0, 300]),
        start=st.sampled_from([0, 512, 4096, 8192, 65536, -512, 100]),
        size=st.sampled_from([512, 4096, 8192, 0, 65536, 1 << 62]),
    )
    def partition(
        self, data: st.DataObject, operation: int, number: int, start: int, size: int
    ) -> None:
        self.same("partition", self.slot(data), operation, number, start, size)

    @rule(device=devices)
    def nodes(self, device: int) -> None:
        self.same("nodes", device)

    # --- data ------------------------------------------------------------------------

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), offset=positions, length=lengths)
    def read(self, data: st.DataObject, offset: int, length: int) -> None:
        self.same("read", self.slot(data), offset, length)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data())
    def seek_end(self, data: st.DataObject) -> None:
        self.same("seek_end", self.slot(data))

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data(), offset=positions, length=lengths, byte=st.integers(97, 122))
    def write(self, data: st.DataObject, offset: int, length: int, byte: int) -> None:
        slot = self.slot(data)
        kernel, ours = self.both("write", slot, offset, length, byte)
        cut = isinstance(kernel, int) and kernel < length and ours == "EIO"
        assert cut or ours == kernel, f"write({offset}, {length}): kernel {kernel}, ours {ours}"

    @precondition(lambda self: self.open_slots)
    @rule(
        data=st.data(),
        cmd=st.sampled_from([uapi.BLKDISCARD, uapi.BLKZEROOUT, uapi.BLKSECDISCARD]),
        start=positions,
        length=lengths,
    )
    def byte_range(self, data: st.DataObject, cmd: int, start: int, length: int) -> None:
        self.same("byte_range", self.slot(data), cmd, start, length)

    @precondition(lambda self: self.open_slots)
    @rule(
        data=st.data(),
        mode=st.sampled_from([0, 1, 2, 3, 16, 17, 8]),
        start=positions,
        length=lengths,
    )
    def fallocate(self, data: st.DataObject, mode: int, start: int, length: int) -> None:
        self.same("fallocate", self.slot(data), mode, start, length)

    @precondition(lambda self: self.open_slots)
    @rule(data=st.data())
    def fsync(self, data: st.DataObject) -> None:
        self.same("fsync", self.slot(data))

    @rule(file=files, size=st.sampled_from([0, 100, 4096, 12800, 65536, 70000]))
    def truncate(self, file: int, size: int) -> None:
        self.same("truncate", file, size)

    @rule(file=files)
    def content(self, file: int) -> None:
        self.same("content", file)


@pytest.mark.timeout(3600)
def test_any_sequence(kernel_loops: None, user: User, loopfs_bin: list[str]) -> None:
    before = host.look(user)
    with both_sides(user, loopfs_bin) as both:
        Machine.both = both
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(STEPS // LENGTH, 1),
                stateful_step_count=LENGTH,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
    assert host.wait_for_leftovers_to_go(user, before) == []
