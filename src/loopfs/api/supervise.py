"""The supervisor's program: it is executed for a sandbox of a Python program.

Arguments: a descriptor, and a JSON object: ``argv``, ``settings``, and ``child`` if the command is
a fork of the caller: the descriptor of the channel to the child, and its process id.
"""

from __future__ import annotations

import json
import os
import sys
from os.path import dirname

import loopfs
from loopfs.api import messages
from loopfs.channel import Channel
from loopfs.errors import LoopfsError
from loopfs.lean import NoReturn, Sequence
from loopfs.settings import Settings

CANNOT_RUN = 125


def module_words(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs ``main`` of a module of this package.

    It imports the loopfs of the caller, wherever that is installed, and nothing from the working
    directory.
    """
    root = dirname(dirname(os.path.abspath(loopfs.__file__)))
    boot = (
        f"import sys; {root!r} in sys.path or sys.path.insert(0, {root!r});"
        f" from loopfs.api.{module} import main; main()"
    )
    return [sys.executable, "-P", "-c", boot, *arguments]


def words(
    channel: int,
    argv: Sequence[str],
    settings: Settings,
    child: tuple[int, int] | None = None,
) -> list[str]:
    """Return the command line of a supervisor.

    Args:
        channel: the descriptor on which it reports why no sandbox can be made.
        argv: the command; if ``child`` is given, the words that `loopfs ls` shows.
        child: the channel to an existing child, and its process id.
    """
    chosen = dict(zip(Settings._fields, settings, strict=True))
    about = {"argv": list(argv), "settings": chosen, "child": child}
    return module_words("supervise", str(channel), json.dumps(about))


def main() -> NoReturn:
    """Run the supervisor."""
    from loopfs.cli import log_of, reserve_standard_streams
    from loopfs.sandbox.run import run, supervise

    channel, about = Channel.of_descriptor(int(sys.argv[1])), json.loads(sys.argv[2])
    argv, child = about["argv"], about["child"]
    status = CANNOT_RUN
    try:
        reserve_standard_streams()
        settings = Settings(**about["settings"])
        log = log_of(settings, argv)
        if child is None:
            status = run(argv, settings, log)
        else:
            os.set_inheritable(channel.fileno(), False)
            status = supervise(Channel.of_descriptor(child[0]), child[1], argv, settings, log)
    except (LoopfsError, KeyError) as problem:
        from loopfs.cli.doctor import cause

        code = problem.code if isinstance(problem, LoopfsError) else 0
        channel.send(messages.error(code, cause(problem)))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)  # serving threads may still be blocked in the kernel
