"""(g) Reading and writing an attached device with dd and fio.

Each sample attaches the image anew, so that no run uses cached pages of an earlier one;
the backing file is read into the page cache before each, on both sides alike.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from .measure import CommandError, Goal, Measure
from .native import MIB, cleaned_up, filled_image
from .runner import Stage

MEBIBYTES = 256
SECONDS = 2
BUFFERED_GOAL = 0.9
SYNCED_GOAL = 1.0
DIRECT_GOAL = 0.5

# While the device is open, its page cache is kept.
WARM = 'exec 3<"$device"; cat "$device" >/dev/null; '
ATTACHED = """set -e
device=$(losetup -f --show "$1")
trap 'losetup -d "$device"' EXIT
{command}
"""


@dataclass(frozen=True)
class Job:
    """One way to use the device; the command sees its name in $device."""

    name: str
    command: str
    unit: str
    goal: float
    direction: str = ""


def measures(stage: Stage) -> list[Measure]:
    image, reference = (filled_image(stage, f"data-{side}.img", MEBIBYTES) for side in "ab")

    def measure(job: Job) -> Measure:
        script = ["sh", "-c", ATTACHED.format(command=job.command), "sh"]

        def ours() -> float:
            _settle(image)
            return _rate(job, stage.run_in_loopfs([*script, str(image)]))

        def native() -> float:
            _settle(reference)
            with cleaned_up(stage, reference):
                return _rate(job, stage.run_as_root([*script, str(reference)]))

        return Measure(job.name, job.unit, ours, {"native": native}, Goal(job.goal, "native"))

    return [measure(job) for job in _jobs()]


def _settle(image: Path) -> None:
    os.sync()  # so that the writeback of one side does not slow the other
    with image.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def _jobs() -> list[Job]:
    read, write = 'if="$device" of=/dev/null', 'if=/dev/zero of="$device"'
    amount = f"bs=1M count={MEBIBYTES}"
    jobs = [
        Job("dd read", f"dd {read} {amount}", "B/s", BUFFERED_GOAL),
        Job("dd read, again", f"{WARM}dd {read} {amount}", "B/s", BUFFERED_GOAL),
        Job("dd write, fsync", f"dd {write} {amount} conv=fsync", "B/s", SYNCED_GOAL),
        Job("dd read, direct", f"dd {read} {amount} iflag=direct", "B/s", DIRECT_GOAL),
        Job("dd write, direct", f"dd {write} {amount} oflag=direct", "B/s", DIRECT_GOAL),
    ]
    for sequential in (True, False):
        for direct in (False, True):
            jobs += [
                _fio(direction, sequential=sequential, direct=direct)
                for direction in ("read", "write")
            ]
    again = _fio("read", direct=False, sequential=False)
    return [*jobs, replace(again, name=f"{again.name}, again", command=WARM + again.command)]


def _fio(direction: str, *, sequential: bool, direct: bool) -> Job:
    # Direct I/O may repeat until the time is over. A second buffered pass would measure the page
    # cache: so buffered I/O makes one pass over the image, cut off after the same time.
    options = [
        f"--rw={direction if sequential else 'rand' + direction}",
        f"--bs={'1M' if sequential else '4k'}",
        f"--direct={int(direct)}",
        f"--size={MEBIBYTES}M",
        f"--runtime={SECONDS}",
        "--name=bench --ioengine=psync --invalidate=0 --output-format=json",
    ]
    if direct:
        options.append("--time_based")
    if direction == "write":
        options.append("--end_fsync=1")
    size, cache = ("1M" if sequential else "random 4k"), ("direct" if direct else "buffered")
    return Job(
        f"fio {size} {direction}, {cache}",
        f'fio --filename="$device" {" ".join(options)}',
        "B/s" if sequential else "IOPS",
        DIRECT_GOAL if direct else BUFFERED_GOAL,
        direction,
    )


def _rate(job: Job, output: str) -> float:
    rate = _fio_rate(job, output) if job.direction else _dd_rate(output)
    if rate <= 0:
        raise CommandError(f"{job.name}: nothing was transferred")
    return rate


def _dd_rate(output: str) -> float:
    found = re.search(r"^(\d+) bytes.* copied, ([0-9.e+-]+) s,", output, re.MULTILINE)
    if not found:
        raise CommandError(f"no rate in {output!r}")
    if int(found[1]) != MEBIBYTES * MIB:
        raise CommandError(f"dd copied {found[1]} bytes only")
    return int(found[1]) / float(found[2])


def _fio_rate(job: Job, output: str) -> float:
    # fio may print messages before and after its JSON.
    try:
        report, _ = json.JSONDecoder().raw_decode(output, output.index("{\n"))
        (result,) = report["jobs"]
        if result["error"]:
            raise CommandError(f"fio: {os.strerror(result['error'])}")
        figures = result[job.direction]
        return float(figures["bw_bytes"] if job.unit == "B/s" else figures["iops"])
    except (ValueError, KeyError) as problem:
        raise CommandError(f"fio printed no usable report: {problem!r}") from None
