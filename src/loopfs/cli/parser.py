"""argparse for the commands that may take their time: a wrong command line is one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from loopfs.text import shown

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """Of one command; ``prog`` is "loopfs" and the command."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where to read on."""
        _, _, command = self.prog.partition(" ")
        hint = f"see '{self.prog} --help'"
        self.exit(USAGE_ERROR, f"loopfs: {command}: {shown(message)}; {hint}\n")
