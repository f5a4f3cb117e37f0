"""(d) Listing: lsblk, and losetup with one device attached."""

from __future__ import annotations

from .measure import Goal, Measure
from .native import cleaned_up, ext4_image
from .runner import Stage, elapsed_seconds, timed_script

TIMES = 20
COMMANDS = {"lsblk": 3.0, "losetup -l": 2.5}  # with the goal: at most this ratio to native
# The time includes one attach, which is negligible beside twenty listings.
BODY = """
device=$(losetup -f --show "$1")
i=0
while [ $i -lt {times} ]; do
    {command} | grep -q "${{device#/dev/}}"
    i=$((i + 1))
done
losetup -d "$device\""""


def measures(stage: Stage) -> list[Measure]:
    image, reference = (ext4_image(stage, f"lists-{side}.img", 64) for side in "ab")

    def measure(command: str, most: float) -> Measure:
        body = BODY.format(times=TIMES, command=command)

        def ours() -> float:
            return elapsed_seconds(stage.run_in_loopfs(timed_script(body, image))) / TIMES

        def native() -> float:
            with cleaned_up(stage, reference):
                return elapsed_seconds(stage.run_as_root(timed_script(body, reference))) / TIMES

        return Measure(command, "s", ours, {"native": native}, Goal(most, "native"))

    return [measure(*entry) for entry in COMMANDS.items()]
