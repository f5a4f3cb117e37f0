"""loopfs: private loop devices for ordinary users, on a stock kernel.

:class:`Sandbox` is a sandbox as a context manager (docs/python.md). Modules are imported when they
are first used: ``loopfs run`` imports this package too.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it as True

if TYPE_CHECKING:
    from loopfs.api.attach import attach
    from loopfs.api.device import Device, Mount, Status
    from loopfs.api.popen import Popen
    from loopfs.api.sandbox import Sandbox
    from loopfs.errors import LoopfsError

__version__ = "0.1.0"
__all__ = [
    "Device",
    "LoopfsError",
    "Mount",
    "Popen",
    "Sandbox",
    "Status",
    "__version__",
    "attach",
]

_MODULES = {
    "Device": "loopfs.api.device",
    "LoopfsError": "loopfs.errors",
    "Mount": "loopfs.api.device",
    "Popen": "loopfs.api.popen",
    "Sandbox": "loopfs.api.sandbox",
    "Status": "loopfs.api.device",
    "attach": "loopfs.api.attach",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
