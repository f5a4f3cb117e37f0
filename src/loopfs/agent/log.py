"""Messages of the agent: lines on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress

from loopfs.text import shown

_NAME = 12  # characters of a container's name, as podman shows them


def say(sentence: str, container: str = "") -> None:
    """Print a message about a container, or about the agent itself."""
    about = f"container {shown(container[:_NAME])}: " if container else ""
    with suppress(OSError):  # if the reader has exited, containers must continue
        print(f"loopfs: agent: {about}{shown(sentence)}", file=sys.stderr, flush=True)
