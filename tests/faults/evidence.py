"""The records that tests/faults/programs/records.py has fsync'ed, and those in the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.programs.records import (
    BLOCK,
    PLACES,
    REPAIRS,
    name_of_file,
    pattern,
    place_of,
    size_of_file,
)
from tests.support.user import User


class Evidence(NamedTuple):
    """Numbers of records that must be there."""

    raw: list[int]
    raw_written: list[int]  # without fsync: nothing buffers them but the kernel
    files: list[int]
    tried: set[int]  # of files: what may be there as well

    @classmethod
    def of(cls, lines: Iterable[str]) -> Evidence:
        """Parse the output of the workload."""
        evidence = cls([], [], [], set())
        kinds = {
            "raw synced": evidence.raw.append,
            "raw written": evidence.raw_written.append,
            "files synced": evidence.files.append,
            "files writing": evidence.tried.add,
        }
        for line in lines:
            what, _, number = line.rpartition(" ")
            if what in kinds:
                kinds[what](int(number))
        return evidence

    def missing_from_raw(self, image: Path) -> Iterator[str]:
        """Return the records that write(2) has written and that are not in the image."""
        synced = set(self.raw)
        with image.open("rb") as file:
            for number in self.raw_written:
                file.seek(number * BLOCK)
                if file.read(BLOCK) != pattern(number, BLOCK):
                    yield f"lost: raw record {number}, {'' if number in synced else 'not '}synced"

    def missing_from_files(self, root: Path) -> Iterator[str]:
        """Return the records that fsync(2) has synced and that are not in the files."""
        files = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
        newest: dict[tuple[str, int], int] = {}
        for number in self.files:
            name = name_of_file(number)
            if name in PLACES:
                newest[name, place_of(number, PLACES[name][1])] = number
            elif files.get(name) != pattern(number, size_of_file(number)):
                yield f"lost: record {number}, a file"
        for (name, place), number in newest.items():
            size, count = PLACES[name]
            found = files.get(name, b"")[place * size :][:size]
            later = {n for n in self.tried if n >= number and name_of_file(n) == name}
            if found not in {pattern(n, size) for n in later if place_of(n, count) == place}:
                yield f"lost: record {number} in {name}, where there is {found[:16]!r}"


def files_of(image: Path, fstype: str, user: User) -> Path:
    """Repair an image if necessary, and copy its files to a directory beside it.

    Raises:
        ValueError: it cannot be repaired or read.
    """
    root = image.parent / "files"
    check = user.run([*REPAIRS[fstype], image])
    if check.returncode not in (0, 1):
        raise ValueError(f"{REPAIRS[fstype][0]} ends with {check.returncode}: {check.stdout}")
    made = user.run(["mkdir", root])
    readers: dict[str, list[str | Path]] = {
        "ext4": ["debugfs", "-R", f"rdump / {root}", image],
        "vfat": ["mcopy", "-s", "-n", "-i", image, "::/", root],
    }
    copy = user.run(readers[fstype])
    if made.returncode or copy.returncode:
        raise ValueError(f"{readers[fstype][0]} cannot read it: {made.stderr}{copy.stderr}")
    return root
