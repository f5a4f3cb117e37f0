"""The resource limits of our own processes, which the person's shell has set for its programs."""

from __future__ import annotations

import sys


def raise_limits() -> int:
    """Have as much as the hard limits permit: the kernel's driver has no limits either.

    A bound device costs a descriptor, and what is written to an image lies beyond RLIMIT_FSIZE as
    soon as the image is larger. The workload, forked before, keeps its own limits.

    Returns:
        how many descriptors we may have.
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
