"""A thread in another's root imports nothing: what it would find there is not ours.

What it needs must have been imported before it enters.
"""

from __future__ import annotations

import sys
import threading


class _Refusal:
    """The finder that is asked first."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if threading.get_ident() in self.threads and name not in sys.builtin_module_names:
            raise ImportError(f"{name} is not imported in another's root", name=name)


_REFUSAL = _Refusal()


def refuse_imports() -> None:
    """From now on an import of this thread is ImportError, unless the module is there already."""
    if _REFUSAL not in sys.meta_path:
        sys.meta_path.insert(0, _REFUSAL)
    _REFUSAL.threads.add(threading.get_ident())


def allow_imports() -> None:
    """This thread ends: another one may be called the same."""
    _REFUSAL.threads.discard(threading.get_ident())
