"""Steps on loop devices of the kernel's driver and of loopfs: one program for both.

``python3 -S -m tests.differential.steps DIRECTORY`` prints what each step of each scenario
gave, as JSON. It uses the standard library only, and nothing of loopfs: what it takes for
the kernel's interface must not be what loopfs takes for it.
"""

from __future__ import annotations

import importlib
import pkgutil


def names() -> list[str]:
    """The names of all scenarios."""
    load()
    from .bench import SCENARIOS

    return list(SCENARIOS)


def load() -> None:
    """Import every module that has scenarios, which registers them."""
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f".{module.name}", __package__)
