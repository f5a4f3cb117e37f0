"""(f) Filling an ext4 image that is mounted with -o loop, to the umount that completes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .measure import Measure
from .native import MIB, cleaned_up, ext4_image
from .runner import Stage, elapsed_seconds, timed_script

MEBIBYTES = 200
FILES = 300
FILE_SIZE = 6000
LARGE = f'dd if="$1" of="$3/file" bs=1M count={MEBIBYTES} conv=fsync status=none'
MANY = 'cp -r "$1" "$3"'
BODY = """
mount -o loop "$2" "$3"
{command}
umount "$3\""""


def measures(stage: Stage) -> list[Measure]:
    large = stage.scratch / "large"
    large.write_bytes(bytes(range(256)) * (MEBIBYTES * MIB // 256))
    tree = _tree(stage)
    return [
        _measure(stage, f"one file of {MEBIBYTES} MiB, fsync", LARGE, large),
        _measure(stage, f"cp -r of {FILES} files", MANY, tree),
    ]


def _measure(stage: Stage, name: str, command: str, source: Path) -> Measure:
    body = BODY.format(command=command)
    point, reference_point = (stage.new_directory(f"{source.name}-mnt-{side}") for side in "ab")

    def side(run: Callable[[list[str]], str], mountpoint: Path) -> float:
        # A new image for each sample: a second copy of a tree would find existing directories.
        image = ext4_image(stage, "filling.img", 1024)
        try:
            with cleaned_up(stage, image, mountpoint):
                return elapsed_seconds(run(timed_script(body, source, image, mountpoint)))
        finally:
            image.unlink()

    return Measure(
        f"mount -o loop, {name}, umount",
        "s",
        lambda: side(stage.run_in_loopfs, point),
        {"native": lambda: side(stage.run_as_root, reference_point)},
    )


def _tree(stage: Stage) -> Path:
    tree = stage.new_directory("tree")
    for number in range(FILES):
        directory = tree / f"directory{number % 10}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_bytes(b"x" * FILE_SIZE)
    return tree
