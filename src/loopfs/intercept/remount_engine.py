"""Remounting what an engine of ours serves: the engine hears of it, too.

The kernel only lets nobody write any more. The engine then has all in its place, marks the
filesystem as clean, and writes nothing until it is remounted for writing; what it had been lent for
reading is lent for writing then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.filesystems.lending import REMOUNT

_ROOT_INO = 2


def engines_told(mounts: Mounts) -> dict[int, Engine]:
    """The engines that can be told, by st_dev of what they serve."""
    return {engine.device: engine for engine in mounts.alive() if engine.loan is not None}


@contextmanager
def told(mounts: Mounts, engine: Engine | None, read_only: bool | None) -> Iterator[None]:
    """The engine is told of a remount by the kernel, which is made within.

    Args:
        engine: None: nobody is to be told.
        read_only: None: that stays as it is.
    Raises:
        OSError: EACCES: the device is write-protected; EROFS: it cannot be written otherwise;
            EBUSY: another one uses it; and as the engine.
    """
    loan = None if engine is None else engine.loan
    if engine is None or loan is None or read_only is None:
        yield
    elif read_only:
        yield
        loan.control(_ROOT_INO, REMOUNT, 1)
        engine.remounted(read_only=True)
    else:
        with mounts.lent_for_writing(engine):
            changed = loan.control(_ROOT_INO, REMOUNT, 0)
            try:
                yield
            except BaseException:
                if changed == (1,):
                    loan.control(_ROOT_INO, REMOUNT, 1)
                raise
        engine.remounted(read_only=False)
