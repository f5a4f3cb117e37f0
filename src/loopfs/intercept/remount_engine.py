"""Remounts of a filesystem that an engine of ours serves: the engine must be informed.

The kernel only refuses writes after a read-only remount. The engine then writes everything to its
final location, marks the filesystem as clean, and does not write until it is remounted for
writing; if the device was lent for reading, it is then lent for writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.filesystems.lending import REMOUNT

_ROOT_INO = 2


def engines_told(mounts: Mounts) -> dict[int, Engine]:
    """Return the engines that can be informed, by st_dev of their filesystem."""
    return {engine.device: engine for engine in mounts.alive() if engine.loan is not None}


@contextmanager
def told(mounts: Mounts, engine: Engine | None, read_only: bool | None) -> Iterator[None]:
    """Inform an engine of a remount, which the kernel makes in the body of the with statement.

    Args:
        engine: None: there is no engine to inform.
        read_only: None: that does not change.
    Raises:
        OSError: EACCES (the device is write-protected); EROFS (it cannot be written for another
            reason); EBUSY (it is used elsewhere); any error of the engine.
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
