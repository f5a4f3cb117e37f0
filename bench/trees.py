"""(i) Trees of small files on a mounted ext4 image: unpacked, read, removed; with git; synced."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from .measure import Goal, Measure
from .native import cleaned_up, ext4_image
from .runner import TIMED, Stage, elapsed_seconds

FILES = 5000
DIRECTORIES = 100
SIZES = (200, 1500, 6000, 31000)  # bytes, in turn: 48 MB
MANY = 10_000
SYNCED = 200
GOAL = 4.0
# $1 is the image, $2 the mount point, $3 a tar file. What comes before is not timed, nor after.
SCRIPT = """set -e
mount -o loop "$1" "$2"
cd "$2"
{before}
{timed}
{after}
cd /
umount "$2"
"""
UNPACK = 'tar -C "$2" -xf "$3"'
REMOUNT = 'cd /; umount "$2"; mount -o loop "$1" "$2"; cd "$2"'
MAKE_MANY = f"seq -f file-%g {MANY} | xargs touch"
REPOSITORY = f"""{UNPACK}
cd tree; git init -q; git add .
git -c user.name=a -c user.email=a@b commit -qm all; cd .."""
CLONE = "git clone -q tree other; git -C other status -s"
SYNC = f"""i=0
while [ $i -lt {SYNCED} ]; do
    dd if=/dev/zero of=file$i bs=4k count=1 conv=fsync status=none
    i=$((i + 1))
done"""
# Name, what comes before, what is timed, what comes after.
ROWS = (
    (f"untar of {FILES} files", "", UNPACK, "true"),
    ("cp -a of them out", f"{UNPACK}; {REMOUNT}", 'cp -a tree "$4/copy"', 'rm -rf "$4/copy"'),
    ("find of them", f"{UNPACK}; {REMOUNT}", "find . -type f -size +100k", "true"),
    ("rm -r of them", f"{UNPACK}; {REMOUNT}", "rm -r tree", "true"),
    (f"{MANY} files in a directory, made", "", MAKE_MANY, "true"),
    ("the same, ls -l", f"{MAKE_MANY}; {REMOUNT}", "ls -l >/dev/null", "true"),
    ("the same, removed", f"{MAKE_MANY}; {REMOUNT}", "rm -r ./*-*", "true"),
    ("git clone, git status", REPOSITORY, CLONE, "true"),
    (f"{SYNCED} files with fsync", "", SYNC, "true"),
)


def measures(stage: Stage) -> list[Measure]:
    tar = stage.scratch / "trees.tar"
    _pack(tar)
    stage.give(tar)
    copies = stage.new_directory("trees-copies")
    points = [stage.new_directory(f"trees-{side}") for side in "abc"]
    return [_measure(stage, row, tar, copies, points) for row in ROWS]


def _measure(
    stage: Stage, row: tuple[str, str, str, str], tar: Path, copies: Path, points: list[Path]
) -> Measure:
    name, before, timed, after = row
    timed = TIMED.format(body=timed)
    script = SCRIPT.format(before=before or "true", timed=timed, after=after)

    def side(run: Callable[[list[str]], str], point: Path) -> float:
        image = ext4_image(stage, "trees.img", 512)
        try:
            with cleaned_up(stage, image, point):
                words = ["sh", "-c", script, "sh", str(image), str(point), str(tar), str(copies)]
                return elapsed_seconds(run(words))
        finally:
            image.unlink()

    def by_fuse2fs(words: list[str]) -> str:
        return stage.run_in_loopfs(words, "--engine", "ext4=fuse2fs")

    ours, native, other = points
    references = {
        "native": lambda: side(stage.run_as_root, native),
        "fuse2fs": lambda: side(by_fuse2fs, other),
    }
    sampler = lambda: side(stage.run_in_loopfs, ours)  # noqa: E731
    return Measure(name, "s", sampler, references, Goal(GOAL, "native"), warmups=0)


def _pack(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(FILES):
            data = bytes([number % 251]) * SIZES[number % len(SIZES)]
            member = tarfile.TarInfo(f"tree/directory{number % DIRECTORIES}/file{number}")
            member.size = len(data)
            member.mtime = 1_000_000_000
            tar.addfile(member, BytesIO(data))
