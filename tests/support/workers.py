"""Several workers at once (pytest-xdist): resources of each, and those that only one may use.

A worker has a user of its own, whose processes and temporary files its leak checks count, and
its own names for directories of tests. The devices of the kernel's loop driver exist once for the
whole machine: tests that use or number them have the fixture hosts_loops, and run in one worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

GROUP = "hosts_loops"


def number() -> int | None:
    """Return the number of this worker, from 0 on; None if there are no workers."""
    name = os.environ.get("PYTEST_XDIST_WORKER")
    return int(name.removeprefix("gw")) if name else None


def user_of(first: str, worker: int | None) -> str:
    """Return the account of a worker: ``first`` for worker 0, ``first-2`` for the next one."""
    return f"{first}-{worker + 1}" if worker else first


def prefix() -> str:
    """Return the prefix of the names of this worker's directories in /var/tmp."""
    worker = number()
    return "loopfs-test-" if worker is None else f"loopfs-test-{worker + 1}-"


def name_group(metafunc: pytest.Metafunc) -> None:
    """Append the name of the group to the ids of its tests.

    A scheduler knows only the id of a test. pytest also runs tests that share a session parameter
    one after another.
    """
    if GROUP in metafunc.fixturenames:
        metafunc.parametrize(GROUP, [None], ids=[GROUP], indirect=True, scope="session")


def scope_of(test: str) -> str:
    """Return the unit of a test that one worker runs as a whole: the group, or a module."""
    return GROUP if test.endswith(f"{GROUP}]") else test.partition("::")[0]


def scheduler(config: pytest.Config, log: Any) -> object:
    """Return a scheduler that distributes modules, so that their fixtures are made once, and the
    group."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc] # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False  # the number of tests does not reflect their duration
    return ByModule(config, log)
