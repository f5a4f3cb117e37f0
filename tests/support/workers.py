"""Several workers at once (pytest-xdist): what each has for itself, and what only one may use.

A worker has a user of its own, whose processes and temporary files its leak checks count, and
its own names for directories of tests. The devices of the kernel's loop driver are the whole
machine's: the tests that use or number them, which have the fixture hosts_loops, run in one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

GROUP = "hosts_loops"


def number() -> int | None:
    """Which worker this process is, from 0 on; None if there are none."""
    name = os.environ.get("PYTEST_XDIST_WORKER")
    return int(name.removeprefix("gw")) if name else None


def user_of(first: str, worker: int | None) -> str:
    """The account of a worker: ``first`` is that of worker 0, ``first-2`` that of the next."""
    return f"{first}-{worker + 1}" if worker else first


def prefix() -> str:
    """How the names of this worker's directories in /var/tmp begin."""
    worker = number()
    return "loopfs-test-" if worker is None else f"loopfs-test-{worker + 1}-"


def name_group(metafunc: pytest.Metafunc) -> None:
    """Have the ids of the tests of the one group end with its name.

    An id is all that a scheduler is told of a test; and pytest puts those that have a parameter
    of the session in common beside one another.
    """
    if GROUP in metafunc.fixturenames:
        metafunc.parametrize(GROUP, [None], ids=[GROUP], indirect=True, scope="session")


def scope_of(test: str) -> str:
    """What one worker runs all of: the group, or a module."""
    return GROUP if test.endswith(f"{GROUP}]") else test.partition("::")[0]


def scheduler(config: pytest.Config, log: Any) -> object:
    """Distributes modules, so that their fixtures are made once, and the one group."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc] # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False  # how many tests there are says little of their time
    return ByModule(config, log)
