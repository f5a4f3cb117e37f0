"""Refusal of imports by a thread in a caller's root, which would find the caller's files.

The modules that it needs must be imported before it enters the root.
"""

from __future__ import annotations

import sys
import threading


class _Refusal:
    """The first finder of sys.meta_path."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if threading.get_ident() in self.threads and name not in sys.builtin_module_names:
            raise ImportError(f"{name} cannot be imported in a caller's root", name=name)


_REFUSAL = _Refusal()


def refuse_imports() -> None:
    """Make imports of modules not yet loaded raise ImportError in this thread."""
    if _REFUSAL not in sys.meta_path:
        sys.meta_path.insert(0, _REFUSAL)
    _REFUSAL.threads.add(threading.get_ident())


def allow_imports() -> None:
    """Allow imports before this thread ends, since its thread id may be reused."""
    _REFUSAL.threads.discard(threading.get_ident())
