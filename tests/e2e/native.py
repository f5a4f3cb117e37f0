"""Run scripts on the kernel's loop driver, to compare their output."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.user import Result


class Transcript(NamedTuple):
    """The output and exit status of a script."""

    status: int
    output: list[str]
    complaints: list[str]

    def lines(self) -> list[str]:
        return [*self.output, *self.complaints, f"end: {self.status}"]


def transcript(result: Result, place: Path) -> Transcript:
    """Return the transcript of a script that ran in the directory ``place``."""
    names: dict[str, str] = {}

    def alike(text: str) -> list[str]:
        text = text.replace(str(place), "HERE")
        text = re.sub(r"\bloop(\d+)(?=\b|p[\d*])", lambda match: _named(names, match[1]), text)
        # The width of such a column is that of the names.
        return re.sub(r"^(loop\w|NAME|DEVICE) +", r"\1 ", text, flags=re.MULTILINE).splitlines()

    return Transcript(result.returncode, alike(result.stdout), alike(result.stderr))


def _named(names: dict[str, str], number: str) -> str:
    """Return loopA for the device that is named first, loopB for the second, and so on."""
    return "loop" + names.setdefault(number, chr(ord("A") + len(names)))


def detach_all(place: Path) -> None:
    """Free the kernel's devices that are bound to files in ``place``."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if path.read_text().startswith(f"{place}/"):
                device = f"/dev/{path.parts[3]}"
                subprocess.run(["partx", "-d", device], check=False, stderr=subprocess.DEVNULL)
                subprocess.run(["losetup", "-d", device], check=False)
