"""One instance for each test process, many side by side (Dmitry Vyukov asked for that; patch 0/8).

``python3 -m bench.many`` does it with 200.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.support.patience import scaled
from tests.support.supervisor import next_line
from tests.support.user import User

pytestmark = pytest.mark.e2e

COUNT = 4
SCRIPT = """
    echo ready; set -e; d=$(losetup -f --show disk{number}.img)
    mkdir -p mnt{number}; mount $d mnt{number}; echo mine{number} >mnt{number}/file; read line
    losetup -l -n -O BACK-FILE; read line
    cat mnt{number}/file; umount mnt{number}
"""


def test_sandboxes_side_by_side_have_nothing_in_common(
    user: User, workdir: Path, started: Start
) -> None:
    """All at the same time: each sees its own device and file only."""
    numbers = range(COUNT)
    make = "truncate -s 1M disk$n.img; mkfs.ext4 -q disk$n.img"
    made = user.run(
        ["sh", "-ec", f"for n in {' '.join(map(str, numbers))}; do {make}; done"], cwd=workdir
    )
    assert made.returncode == 0, made.stderr
    boxes = [started(SCRIPT.format(number=number), "--number-from", "0") for number in numbers]
    for number, box in zip(numbers, boxes, strict=True):
        assert next_line(box) == f"{workdir}/disk{number}.img\n"
    for number, box in zip(numbers, boxes, strict=True):
        said, complaint = box.communicate("\n", timeout=scaled(30))
        assert (box.returncode, said, complaint) == (0, f"mine{number}\n", "")
