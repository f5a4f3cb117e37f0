"""The parser of all commands except ``run``; it reports an error in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from loopfs.cli.usage import HELP, Command
from loopfs.text import shown

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """The parser of one command, with the options that :mod:`loopfs.cli.usage` lists."""

    def __init__(self, command: Command) -> None:
        prog = f"loopfs {command.name}"
        super().__init__(prog=prog, usage=f"{prog} {command.arguments}", description=command.about)
        for option in command.options:
            if option == HELP:  # argparse has its own
                continue
            if option.value:
                self.add_argument(option.name, metavar=option.value, help=option.purpose)
            else:
                self.add_argument(option.name, action="store_true", help=option.purpose)
        for operand in command.operands:
            kind = int if operand.name == "pid" else str
            self.add_argument(operand.name, type=kind, help=operand.purpose)

    def error(self, message: str) -> NoReturn:
        """Report the error with a reference to the help, and exit."""
        _, _, command = self.prog.partition(" ")
        hint = f"see '{self.prog} --help'"
        self.exit(USAGE_ERROR, f"loopfs: {command}: {shown(message)}; {hint}\n")
