"""(j) vfat by the engine `vfat`, beside ext4 by fuse2fs, mtools, and the kernel's ext4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .measure import Goal, Measure
from .native import MIB, cleaned_up, ext4_image, vfat_image
from .runner import TIMED, Stage, elapsed_seconds, timed_script

FILES = 2000
FILE_SIZE = 4000  # bytes
MEBIBYTES = 100
IMAGE = 256  # MiB
TIMES = 10
# $1 is the image, $2 the mount point, $3 what is copied. What comes before is not timed, nor after.
SCRIPT = """set -e
mount -o loop "$1" "$2"
{before}
{timed}
umount "$2"
"""
COPY = 'cp -r "$3/." "$2"; sync -f "$2"'
REMOUNT = 'umount "$2"; mount -o loop "$1" "$2"'
BY_FUSE2FS = ("--engine", "ext4=fuse2fs")
CYCLE = f"""
i=0
while [ $i -lt {TIMES} ]; do
    mount -o loop "$1" "$2"
    ls "$2" >/dev/null
    umount "$2"
    i=$((i + 1))
done"""


def measures(stage: Stage) -> list[Measure]:
    source = _source(stage)
    ours, other = (stage.new_directory(f"vfat-{side}") for side in ("mnt", "fuse2fs"))

    def against_fuse2fs(name: str, before: str, timed: str, most: float) -> Measure:
        script = SCRIPT.format(before=before or "true", timed=TIMED.format(body=timed))

        def side(image: Path, point: Path, *options: str) -> float:
            words = ["sh", "-c", script, "sh", str(image), str(point), str(source)]
            try:
                return elapsed_seconds(stage.run_in_loopfs(words, *options))
            finally:
                image.unlink()

        return Measure(
            f"vfat: {name}",
            "s",
            lambda: side(vfat_image(stage, "vfat.img", IMAGE), ours),
            {"fuse2fs": lambda: side(ext4_image(stage, "ext4.img", IMAGE), other, *BY_FUSE2FS)},
            Goal(most, "fuse2fs"),
        )

    return [
        against_fuse2fs(f"{FILES} files and {MEBIBYTES} MB", "", COPY, 1.0),
        against_fuse2fs("ls -lR of them", f"{COPY}; {REMOUNT}", 'ls -lR "$2" >/dev/null', 0.3),
        _reading(stage, source, ours),
        _cycle(stage, ours),
    ]


def _reading(stage: Stage, source: Path, point: Path) -> Measure:
    image = vfat_image(stage, "vfat-read.img", IMAGE)
    stage.run_as_root(["mcopy", "-i", str(image), str(source / "large"), "::large"])
    body = TIMED.format(body='cat "$2/large" >/dev/null')
    script = SCRIPT.format(before="true", timed=body)
    words = ["sh", "-c", script, "sh", str(image), str(point)]
    copying = timed_script('mcopy -i "$1" ::large - >/dev/null', image)
    return Measure(
        f"vfat: {MEBIBYTES} MB read",
        "s",
        lambda: elapsed_seconds(stage.run_in_loopfs(words)),
        {"mcopy": lambda: elapsed_seconds(stage.run_as_user(copying))},
        Goal(2.0, "mcopy"),
    )


def _cycle(stage: Stage, point: Path) -> Measure:
    image, reference = vfat_image(stage, "cycle.img", 64), ext4_image(stage, "cycle-ext4.img", 64)
    reference_point = stage.new_directory("cycle")

    def once(run: Callable[[list[str]], str], image: Path, point: Path) -> float:
        return elapsed_seconds(run(timed_script(CYCLE, image, point))) / TIMES

    def native() -> float:
        with cleaned_up(stage, reference, reference_point):
            return once(stage.run_as_root, reference, reference_point)

    return Measure(
        "vfat: mount -o loop, ls, umount",
        "s",
        lambda: once(stage.run_in_loopfs, image, point),
        {"native, of ext4": native},
        Goal(2.5, "native, of ext4"),
    )


def _source(stage: Stage) -> Path:
    tree = stage.new_directory("vfat-source")
    for number in range(FILES):
        directory = tree / f"directory{number % 20}"
        directory.mkdir(exist_ok=True)
        (directory / f"a file with number {number}").write_bytes(b"x" * FILE_SIZE)
    (tree / "large").write_bytes(bytes(range(256)) * (MEBIBYTES * MIB // 256))
    return tree
