"""(e) Mounts of other filesystem types, while an image is mounted beside them."""

from __future__ import annotations

from .measure import Goal, Measure
from .native import ext4_image
from .runner import Stage, elapsed_seconds, timed_script

TIMES = 20
GOAL = 1.2
MOUNTS = {
    "tmpfs": "-t tmpfs none",
    "bind": "--bind /usr",
    "proc": "-t proc none",
    "overlay": "-t overlay -o lowerdir=/usr:/etc none",
}
IMAGE = 'mkdir -p "$3"; mount -o loop "$2" "$3"\n'
BODY = """
i=0
while [ $i -lt {times} ]; do
    mount {mount} "$1"
    umount "$1"
    i=$((i + 1))
done"""


def measures(stage: Stage) -> list[Measure]:
    image = ext4_image(stage, "unrelated.img", 64)
    point, held = stage.new_directory("unrelated"), stage.scratch / "tmp" / "unrelated-held"

    def measure(name: str, mount: str) -> Measure:
        body = BODY.format(times=TIMES, mount=mount)

        def ours() -> float:
            words = timed_script(body, point, image, held)
            words[2] = IMAGE + words[2]  # before the clock starts
            return elapsed_seconds(stage.run_in_loopfs(words)) / TIMES

        def outside() -> float:
            """Run it in namespaces of the same user, without interception of calls."""
            command = ["unshare", "-Urmpf", "--mount-proc", *timed_script(body, point)]
            return elapsed_seconds(stage.run_as_user(command)) / TIMES

        goal = Goal(GOAL, "unshare")
        return Measure(f"mount {name}, umount", "s", ours, {"unshare": outside}, goal)

    return [measure(*entry) for entry in MOUNTS.items()]
