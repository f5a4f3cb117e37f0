"""(c) mount -o loop, ls, umount of an ext4 image."""

from __future__ import annotations

from .measure import Goal, Measure
from .native import cleaned_up, ext4_image
from .runner import Stage, elapsed_seconds, timed_script

TIMES = 10
GOAL = 2.5
# grep -q: an ls of a directory that nothing was mounted on would be quick, too.
BODY = f"""
i=0
while [ $i -lt {TIMES} ]; do
    mount -o loop "$1" "$2"
    ls "$2" | grep -q lost+found
    umount "$2"
    i=$((i + 1))
done"""


def measures(stage: Stage) -> list[Measure]:
    image, reference = (ext4_image(stage, f"mount-{side}.img", 64) for side in "ab")
    point, reference_point = (stage.new_directory(f"mnt-{side}") for side in "ab")

    def ours() -> float:
        return elapsed_seconds(stage.run_in_loopfs(timed_script(BODY, image, point))) / TIMES

    def native() -> float:
        with cleaned_up(stage, reference, reference_point):
            script = timed_script(BODY, reference, reference_point)
            return elapsed_seconds(stage.run_as_root(script)) / TIMES

    name = "mount -o loop, ls, umount"
    return [Measure(name, "s", ours, {"native": native}, Goal(GOAL, "native"))]
