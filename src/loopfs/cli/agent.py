"""``loopfs agent``: serve containers whose seccomp profile names its socket."""

from __future__ import annotations

import sys

from loopfs.cli import usage
from loopfs.cli.parser import Parser
from loopfs.errors import LoopfsError
from loopfs.text import shown

CANNOT_RUN = 125


def main(argv: list[str]) -> int:
    """Run the subcommand and return the exit status: 0 if a signal has ended it, 125 if it cannot
    listen.

    Args:
        argv: the arguments after the word ``agent``.
    """
    parser = Parser(usage.AGENT)
    path = parser.parse_args(argv).socket
    if path is None:
        parser.error("--socket is required")
    from loopfs.agent.server import Agent

    try:
        Agent(path).serve()
    except LoopfsError as problem:
        print(f"loopfs: agent: {shown(str(problem.strerror))}", file=sys.stderr)
        return CANNOT_RUN
    return 0
