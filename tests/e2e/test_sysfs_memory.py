"""The supervisor frees the nodes of /sys of a removed device when the kernel forgets them."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Start
from tests.e2e.test_server_memory import LEEWAY, anonymous

pytestmark = pytest.mark.e2e

ROUNDS = 8
# Each round looks at all that /sys has of 20 devices with numbers that nobody had before.
SCRIPT = f"""
python3 -c '
import fcntl, os
control = os.open("/dev/loop-control", os.O_RDWR)
number = 1000
def look():
    global number
    for number in range(number, number + 20):
        fcntl.ioctl(control, 0x4C80, number)
        for place in ("block/loop%d/", "class/block/loop%d/queue/", "dev/block/7:%d/queue/"):
            for name in os.listdir("/sys/" + place % number):
                os.stat("/sys/" + place % number + name)
        fcntl.ioctl(control, 0x4C81, number)
    number += 1
for _ in range(3):
    look()
print("ready", flush=True); input()
for _ in range({ROUNDS}):
    look()
print("looked", flush=True); input()
'
"""


def test_devices_that_come_and_go_leave_nothing(started: Start) -> None:
    supervisor = started(SCRIPT)
    assert supervisor.stdin is not None and supervisor.stdout is not None
    before = anonymous(supervisor.pid)
    print("go", file=supervisor.stdin, flush=True)
    assert supervisor.stdout.readline() == "looked\n"
    after = anonymous(supervisor.pid)
    assert after - before < LEEWAY
    print("end", file=supervisor.stdin, flush=True)
    assert supervisor.wait(30) == 0
