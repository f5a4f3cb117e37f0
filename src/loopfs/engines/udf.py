"""UDF by a filesystem of our own (loopfs.udf), as an engine.

The job that mounts it becomes the engine. If the device's backing file cannot be lent, the engine
is a program that is started as others are.
"""

from __future__ import annotations

from loopfs.engines import own_program
from loopfs.engines.engine import Engine, Launch, Serve
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.file_device import FileDevice

NAME = "udf"
TYPES = frozenset({"udf"})


class Udf(Engine):
    """The engine; the options are checked by the parser of loopfs.udf."""

    def translated(self, data: str, fstype: str = "") -> tuple[str, ...]:
        from loopfs.udf.options import Options

        words = tuple(word for word in data.split(",") if word not in ("", "defaults"))
        Options(",".join(words))
        return words

    def without_effect(self, data: str, fstype: str) -> tuple[str, ...]:
        return ()

    def has_option(self, key: str) -> bool:
        from loopfs.udf.options import knows

        return knows(key)


def _installed(fstype: str) -> None:
    return None


def _check(device: int, fstype: str) -> None:
    """Check nothing: that depends on the options, so the program reports errors."""


def _command(launch: Launch) -> list[str]:
    return own_program.command(__name__, launch)


def _prepare(device: FileDevice, launch: Launch) -> Serve:
    from loopfs.fuse.connection import watch
    from loopfs.fuse.server import Server
    from loopfs.udf.filesystem import Udf as Filesystem
    from loopfs.udf.options import Options
    from loopfs.udf.volume import Volume

    filesystem = Filesystem(Volume(device, Options(",".join(launch.options))))
    return lambda connection: Server(connection, filesystem, watch(connection)).serve()


def main(argv: list[str]) -> None:
    """As :func:`loopfs.engines.own_program.run`."""
    own_program.run(_prepare, argv)


UDF = Udf(NAME, _installed, TYPES, {}, _command, _check, writes=False, prepare=_prepare, modules=())
