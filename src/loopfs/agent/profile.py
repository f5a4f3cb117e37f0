"""The seccomp profile by which a container runtime has an agent supervise containers (OCI
runtime-spec, config-linux.md, "seccomp")."""

from __future__ import annotations

import errno
from typing import Any

from loopfs.agent.state import METADATA

# What the supervisor carries out, and the start of programs: the first one waits until the
# container has its devices.
MOUNTS = ("mount", "umount", "umount2")
SYNCS = ("sync", "syncfs")
STARTS = ("execve", "execveat")
NOTIFIED = (*MOUNTS, *SYNCS, *STARTS)
# mount(8) then takes mount(2).
ABSENT = ("fsopen", "fspick", "fsconfig", "fsmount")
NOTIFY = "SCMP_ACT_NOTIFY"


def with_listener(base: dict[str, Any], path: str) -> dict[str, Any]:
    """A profile that is ``base``, but for what an agent's supervisors carry out.

    Args:
        base: with conditions on capabilities, if it has some.
        path: the agent's socket.
    Raises:
        KeyError, TypeError, AttributeError: it is no profile.
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
