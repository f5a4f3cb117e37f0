"""The resource limits of loopfs's own processes, which they inherit from the user's shell."""

from __future__ import annotations

import sys


def raise_limits() -> int:
    """Raise the limits to the hard limits. The kernel's driver has no such limits.

    A bound device needs a descriptor, and a write to an image fails beyond RLIMIT_FSIZE. The
    workload, which was forked before, keeps its own limits.

    Returns:
        The number of descriptors that the process can have.
    """
    import resource

    for limit in (
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_CPU,
        resource.RLIMIT_AS,
        resource.RLIMIT_DATA,
        resource.RLIMIT_NPROC,
    ):
        soft, most = resource.getrlimit(limit)
        if soft != most:
            resource.setrlimit(limit, (most, most))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if most != resource.RLIM_INFINITY else sys.maxsize
