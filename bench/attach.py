"""(b) Attach and detach: the time of one losetup -f --show with its losetup -d."""

from __future__ import annotations

from .measure import Goal, Measure
from .native import cleaned_up, ext4_image
from .runner import Stage, elapsed_seconds, timed_script

PAIRS = 20
GOAL = 1.5
BODY = f"""
i=0
while [ $i -lt {PAIRS} ]; do
    device=$(losetup -f --show "$1")
    losetup -d "$device"
    i=$((i + 1))
done"""


def measures(stage: Stage) -> list[Measure]:
    image, reference = (ext4_image(stage, f"attach-{side}.img", 64) for side in "ab")

    def ours() -> float:
        return elapsed_seconds(stage.run_in_loopfs(timed_script(BODY, image))) / PAIRS

    def native() -> float:
        with cleaned_up(stage, reference):
            return elapsed_seconds(stage.run_as_root(timed_script(BODY, reference))) / PAIRS

    return [Measure("attach + detach", "s", ours, {"native": native}, Goal(GOAL, "native"))]
