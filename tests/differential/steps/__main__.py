"""Runs every scenario in a process of its own and prints the results as JSON."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from typing import NoReturn, TextIO

from . import load
from .bench import SCENARIOS, Bench, Scenario, remove_all

LONGEST = 6  # seconds; a scenario that hangs is killed, and the others go on

Results = dict[str, object]


def main() -> None:
    where = sys.argv[1]
    chosen = sys.argv[2:]
    load()
    results = {
        name: run(function, where)
        for name, function in SCENARIOS.items()
        if not chosen or name in chosen
    }
    json.dump(results, sys.stdout, indent=1)


def run(function: Scenario, where: str) -> Results:
    """The results of one scenario, by the names of its steps; what it made is removed."""
    with tempfile.TemporaryDirectory(dir=where) as directory:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as report:
                be_scenario(function, directory, report)
        os.close(writing)
        lines = [json.loads(line) for line in what_comes(reading)]
        end = end_of(pid)
        results: Results = {}
        for kind, name, value in lines:
            if kind == "step":
                assert name not in results, f"two steps are called {name!r}"
                results[name] = value
        left = remove_all([value for kind, _, value in reversed(lines) if kind == "device"])
        if left:
            results["(devices in use)"] = len(left)
    # It has a result even when it hangs or breaks, and then it is not the other side's.
    results["(end)"] = end
    return results


def what_comes(reading: int) -> list[bytes]:
    """All lines from a pipe; those that came, if its end does not come."""
    data = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], LONGEST + 1)[0] and (part := pipe.read(1 << 16)):
            data += part
    return data.splitlines()


def end_of(pid: int) -> int | str:
    """The exit status of a scenario, negative for a signal."""
    deadline = time.monotonic() + 1
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            return "hangs in a call that no signal ends"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def be_scenario(function: Scenario, directory: str, report: TextIO) -> NoReturn:
    def say(kind: str, name: str, value: object) -> None:
        report.write(json.dumps([kind, name, value]) + "\n")

    signal.alarm(LONGEST)
    try:
        function(Bench(directory, lambda *step: say("step", *step), lambda n: say("device", "", n)))
    except BaseException:
        say("step", "(broken)", traceback.format_exc())
        os._exit(1)
    os._exit(0)


main()
