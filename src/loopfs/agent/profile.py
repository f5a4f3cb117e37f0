"""The seccomp profile that makes a container runtime send listeners to an agent (OCI runtime-spec,
config-linux.md, "seccomp")."""

from __future__ import annotations

import errno
from typing import Any

from loopfs.agent.state import METADATA

# The calls that the supervisor carries out, and execve(2): the first one waits until the container
# has its devices.
MOUNTS = ("mount", "umount", "umount2")
SYNCS = ("sync", "syncfs")
STARTS = ("execve", "execveat")
NOTIFIED = (*MOUNTS, *SYNCS, *STARTS)
# ENOSYS: then mount(8) uses mount(2).
ABSENT = ("fsopen", "fspick", "fsconfig", "fsmount")
NOTIFY = "SCMP_ACT_NOTIFY"


def with_listener(base: dict[str, Any], path: str) -> dict[str, Any]:
    """Return ``base`` with rules for the calls that an agent's supervisors carry out.

    Args:
        base: its conditions on capabilities are kept.
        path: the agent's socket.
    Raises:
        KeyError, TypeError, AttributeError: ``base`` is not a profile.
    """
    taken = {*NOTIFIED, *ABSENT}
    rules = []
    for rule in base["syscalls"]:
        names = [name for name in rule["names"] if name not in taken]
        if names:
            rules.append({**rule, "names": names})
    rules.append({"names": list(NOTIFIED), "action": NOTIFY})
    absent = {"names": list(ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
    return {
        **base,
        "listenerPath": path,
        "listenerMetadata": METADATA,
        "syscalls": [*rules, absent],
    }
