"""Many sandboxes at once: times of start and end, memory of each, and leftovers.

As root, from the checkout: ``python3 -m bench.many``. Each sandbox binds a device to an
image of its own, reports that it is ready, and waits. All are started at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from .__main__ import default_user
from .measure import CommandError
from .runner import Stage, open_stage

PATIENCE = 300.0  # seconds, for all together
JOB = 'losetup -f --show "$1" >/dev/null && date +%s.%N && read line'  # prints the time
FIELDS = ("Pss", "Private_Clean", "Private_Dirty", "Rss")  # of /proc/PID/smaps_rollup, in kB


def main() -> int:
    """Run the benchmark; return the exit status: 1 if a sandbox failed or left anything behind."""
    options = _parse()
    with open_stage(options.user, None, options.dir) as stage:
        before = _host(stage)
        result = _measure(stage, options.count)
        result["left"] = _left(stage, before)
    print(json.dumps(result, indent=2))
    return 1 if result["left"] or result["failed"] else 0


def _measure(stage: Stage, count: int) -> dict[str, object]:
    images = [stage.new_file(f"image{number}", 8 << 20) for number in range(count)]
    available = _available()
    boxes, begun = [], []
    for image in images:
        begun.append(time.time())
        boxes.append(stage.start_in_loopfs(["sh", "-c", JOB, "sh", str(image)]))
    ready = _when_ready(boxes)
    took = [end - start for start, end in zip(begun, ready, strict=True)]
    processes = list(_processes(stage))
    memory = {field: sum(_memory(pid, field) for pid in processes) for field in FIELDS}
    used = available - _available()
    ending = time.monotonic()
    for box in boxes:
        assert box.stdin is not None
        box.stdin.close()
    statuses = [box.wait(PATIENCE) for box in boxes]
    all_ended = time.monotonic() - ending
    return {
        "sandboxes": count,
        "failed": sum(status != 1 for status in statuses),  # of read, at the end of the input
        "all ready, s": round(max(ready) - begun[0], 2),
        "one ready, s": [round(value, 2) for value in (min(took), median(took), max(took))],
        "all ended, s": round(all_ended, 2),
        "processes of each": round(len(processes) / count, 1),
        "memory of each, MiB": {
            "used, of MemAvailable": round(used / count / 1024, 1),
            **{field: round(size / count / 1024, 1) for field, size in memory.items()},
        },
    }


def _when_ready(boxes: Sequence[subprocess.Popen[bytes]]) -> list[float]:
    """Return the times when each was ready, as time.time(). Raises CommandError."""
    deadline = time.monotonic() + PATIENCE
    found: list[float] = []
    for box in boxes:
        assert box.stdout is not None
        if not select.select([box.stdout], [], [], deadline - time.monotonic())[0]:
            raise CommandError(f"{len(boxes) - len(found)} sandboxes are not ready")
        if not (line := box.stdout.readline()):
            raise CommandError("a sandbox has ended before it was ready")
        found.append(float(line))
    return found


def _processes(stage: Stage) -> Iterator[int]:
    """Yield the processes of the user."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid in (0, stage.user.pw_uid) and _is_of(name, stage):
                yield int(name)


def _is_of(name: str, stage: Stage) -> bool:
    # The directories of processes that are not dumpable belong to root.
    with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as file:
        uids = next(line for line in file if line.startswith("Uid:"))
    return int(uids.split()[1]) == stage.user.pw_uid


def _memory(pid: int, field: str) -> int:
    """Return a field in kB; 0 for a process that has just ended."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(f"{field}:")), 0)
    return 0


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))


def _host(stage: Stage) -> set[str]:
    """Return everything that could be left behind: processes of the user, mounts, bound devices."""
    mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    devices = map(str, Path("/sys/block").glob("loop*/loop/backing_file"))
    return {*(f"process {pid}" for pid in _processes(stage)), *mounts, *devices}


def _left(stage: Stage, before: set[str]) -> list[str]:
    deadline = time.monotonic() + 5  # a killed process needs a moment to end
    while (left := _host(stage) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(left)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m bench.many", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="sandboxes (%(default)s)")
    parser.add_argument("--user", default=default_user(), help="who runs loopfs (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="for scratch files")
    options = parser.parse_args()
    if os.geteuid() != 0 or options.user is None:
        parser.error("run it as root, with an ordinary user as --user or LOOPFS_TEST_USER")
    return options


if __name__ == "__main__":
    sys.exit(main())
