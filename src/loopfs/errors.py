"""The exceptions of loopfs: each carries an errno and a sentence."""

from __future__ import annotations

import os


class LoopfsError(OSError):
    """An error with the errno the kernel would give and a sentence for a person.

    Args:
        code: an errno value.
        sentence: what happened; the errno's own text when omitted.
    """

    def __init__(self, code: int, sentence: str | None = None) -> None:
        super().__init__(code, sentence or os.strerror(code))

    @property
    def code(self) -> int:
        """The errno."""
        assert self.errno is not None
        return self.errno


class DriverError(LoopfsError):
    """A request that the loop driver refuses; the errno goes to the workload."""


class SetupError(LoopfsError):
    """A sandbox that cannot be built; the sentence goes to the person."""
