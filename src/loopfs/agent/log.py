"""What the agent says: a line on standard error for each container that begins or is refused."""

from __future__ import annotations

import sys
from contextlib import suppress

from loopfs.text import shown

_NAME = 12  # characters of a container's name, as podman shows them


def say(sentence: str, container: str = "") -> None:
    """Say something, of a container or of the agent itself."""
    about = f"container {shown(container[:_NAME])}: " if container else ""
    with suppress(OSError):  # who read it has gone, and containers are not to end with him
        print(f"loopfs: agent: {about}{shown(sentence)}", file=sys.stderr, flush=True)
