"""Data that passes through a device is not kept in the server's memory.

``LOOPFS_TEST_COPY=10240 ./check tests/e2e/test_server_memory.py -o timeout=0`` copies 10 GiB in and
out instead of half a gibibyte, and prints with -s what the server had before and after.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e

COPIED = int(os.environ.get("LOOPFS_TEST_COPY", "512"))  # MiB each way
IMAGE = 64  # MiB
LEEWAY = 1024  # KiB: what an allocator may keep

# Writes come by the page cache, reads straight: each byte passes through the server.
SCRIPT = f"""
    truncate -s {IMAGE}M disk.img; d=$(losetup -f --show disk.img)
    copy() {{
        dd if=/dev/zero of=$d bs=1M conv=notrunc,fsync status=none
        dd if=$d of=/dev/null bs=1M iflag=direct status=none
    }}
    copy; copy; echo ready; read go
    for round in $(seq {COPIED // IMAGE}); do copy; done; echo copied; read go; losetup -d $d
"""


def anonymous(pid: int) -> int:
    """KiB of anonymous memory that a process has in use."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1])


def test_a_large_copy_leaves_the_servers_memory_as_it_was(started: Start) -> None:
    supervisor = started(SCRIPT)
    assert supervisor.stdin is not None and supervisor.stdout is not None
    before = anonymous(supervisor.pid)
    print("go", file=supervisor.stdin, flush=True)
    assert supervisor.stdout.readline() == "copied\n"
    after = anonymous(supervisor.pid)
    print(f"{COPIED} MiB in and out: {before} KiB before, {after} KiB after")
    assert before > 5000, "that is no Python process"
    assert after - before < LEEWAY
    print("end", file=supervisor.stdin, flush=True)
    assert supervisor.wait(30) == 0
