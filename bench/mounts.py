"""(c) mount -o loop, ls, umount of an ext4 image; and mount(2), umount(2) of vfat."""

from __future__ import annotations

from pathlib import Path

from .measure import Goal, Measure
from .native import cleaned_up, ext4_image, vfat_image
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
# The first mount is not measured: it imports modules that the others use.
CALLS = f"""set -e
device=$(losetup -f --show "$1")
python3 -c '
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
device, point, fstype = map(os.fsencode, sys.argv[1:])

def turn():
    if libc.mount(device, point, fstype, 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    os.listdir(point)
    if libc.umount2(point, 0):
        raise OSError(ctypes.get_errno(), "umount")

turn()
time.sleep(0.5)
begun = time.perf_counter_ns()
for _ in range({TIMES}):
    turn()
print("elapsed-ns", time.perf_counter_ns() - begun)
' "$device" "$2" "$3"
losetup -d "$device"
"""


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
    return [
        Measure(name, "s", ours, {"native": native}, Goal(GOAL, "native")),
        _calls(stage, "ext4", image, reference),
        _calls(stage, "vfat", *(vfat_image(stage, f"vfat-{side}.img", 64) for side in "ab")),
    ]


def _calls(stage: Stage, fstype: str, image: Path, reference: Path) -> Measure:
    """Measure mount(2), a listing and umount(2) of an attached device, without mount(8)."""
    point, reference_point = (stage.new_directory(f"{fstype}-{side}") for side in "ab")

    def script(image: Path, point: Path) -> list[str]:
        return ["sh", "-c", CALLS, "sh", str(image), str(point), fstype]

    def ours() -> float:
        return elapsed_seconds(stage.run_in_loopfs(script(image, point))) / TIMES

    def native() -> float:
        with cleaned_up(stage, reference, reference_point):
            return elapsed_seconds(stage.run_as_root(script(reference, reference_point))) / TIMES

    return Measure(f"mount(2), umount(2) of {fstype}", "s", ours, {"native": native})
