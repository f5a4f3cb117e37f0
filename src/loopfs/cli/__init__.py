"""The command ``loopfs``.

The command line of ``run`` is parsed by hand: ``run`` is started often, and argparse would add a
quarter to its start-up time.
"""

from __future__ import annotations

import os
import sys

from loopfs import __version__, settings
from loopfs.lean import TYPE_CHECKING
from loopfs.settings import Settings, SettingsError
from loopfs.text import shown

if TYPE_CHECKING:
    from loopfs.errors import LoopfsError
    from loopfs.intercept.log import Log

_NUMBERS = {  # options with the highest value of each
    "--number-from": settings.MINORMASK,
    "--max-devices": settings.MAX_DEVICES,
    "--reserve-devices": settings.MAX_DEVICES,
}
USAGE_ERROR = 2
CANNOT_RUN = 125


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of sys.argv) and return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "run":
        return _run(rest)
    if command == "doctor":
        from loopfs.cli import doctor

        return doctor.main(rest)
    if command in ("seccomp-profile", "apparmor-profile"):
        from loopfs.cli import profiles

        return profiles.seccomp(rest) if command == "seccomp-profile" else profiles.apparmor(rest)
    if command == "agent":
        from loopfs.cli import agent

        return agent.main(rest)
    if command in ("ls", "kill", "detach"):
        from loopfs.cli import admin

        return admin.main(command, rest)
    if command == "--version":
        print(f"loopfs {__version__}")
        return 0
    if command in ("-h", "--help", "help"):
        from loopfs.cli import usage

        print(usage.overview(), end="")
        return 0
    return _misused(f"there is no command '{command}'" if command else "a command is missing")


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        from loopfs.cli import usage

        print(usage.run_help(), end="")
        return 0
    try:
        chosen, command = _settings_and_command(arguments)
    except SettingsError as problem:
        return _misused(str(problem.strerror), "run")
    command = command or [os.environ.get("SHELL") or "/bin/sh"]  # as unshare(1)
    from loopfs.errors import LoopfsError

    try:
        reserve_standard_streams()
        log = log_of(chosen, command)
        from loopfs.sandbox.run import run
    except LoopfsError as problem:
        return _cannot_run(str(problem.strerror))
    except KeyError as problem:  # no table of system calls for this machine
        return _cannot_run(_cause(problem))
    try:
        status = run(command, chosen, log)
    except LoopfsError as problem:
        return _cannot_run(_cause(problem))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None: it was closed at the start
            stream.flush()
    # Threads that serve the sandbox may still be blocked in the kernel; they have no work left.
    os._exit(status)


def _cannot_run(sentence: str) -> int:
    print(f"loopfs: {shown(sentence)}", file=sys.stderr)
    return CANNOT_RUN


def _cause(problem: LoopfsError | KeyError) -> str:
    """Return one sentence with the reason why no sandbox can be made, and the remedy."""
    try:
        from loopfs.cli import doctor
    except (OSError, MemoryError):  # not even the modules of doctor can be loaded
        limits = "raise the limits of open files and of memory (ulimit -n, ulimit -v)"
        return f"{problem.args[-1]}; {limits}"
    return doctor.cause(problem)


def log_of(chosen: Settings, command: list[str]) -> Log | None:
    """Open the log that the settings request; None if they request none. Raises SetupError."""
    if chosen.log is None and not chosen.verbose:
        return None
    from loopfs.intercept.log import Log

    return Log.open(chosen.log, chosen.verbose, command)


def _settings_and_command(arguments: list[str]) -> tuple[Settings, list[str]]:
    """Parse the options of ``run`` and the command after them. Raises SettingsError."""
    bare, config, log, verbose = False, None, None, 0
    engines: dict[str, str] = {}
    numbers: dict[str, int] = {}
    words = list(arguments)
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option == "--":
            break
        if option == "--bare" and not equals:
            bare = True
            continue
        if option in ("-v", "-vv") and not equals:
            verbose += len(option) - 1
            continue
        if option not in ("--engine", "--config", "--log", *_NUMBERS):
            raise SettingsError(f"run has no option '{option}'")
        if not equals:
            if not words:
                raise SettingsError(f"{option} needs a value")
            value = words.pop(0)
        if option == "--config":
            config = value
        elif option == "--log":
            log = value
        elif option in _NUMBERS:
            name = option[2:].replace("-", "_")
            numbers[name] = settings.number(option, value, _NUMBERS[option])
        else:
            engines.update([settings.engine_choice(value)])
    chosen = settings.of_user(config, engines, bare=bare, log=log, verbose=verbose, **numbers)
    return chosen, words


def reserve_standard_streams() -> None:
    """Open /dev/null as each closed standard stream, so that no other descriptor gets its number.

    The command finds the stream closed.

    Raises:
        SetupError: /dev/null cannot be opened; few programs work without it.
    """
    try:
        while (fd := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) <= 2:
            continue
    except OSError as problem:
        from loopfs.cli.remedies import NO_DEV_NULL
        from loopfs.errors import SetupError

        why = f"/dev/null cannot be opened ({problem.strerror})"
        raise SetupError(problem.errno or 0, f"{why}; {NO_DEV_NULL}") from None
    os.close(fd)


def _misused(sentence: str, command: str = "") -> int:
    """Report an error in the command line in one line, with a reference to the help."""
    hint = f"see '{' '.join(filter(None, ('loopfs', command, '--help')))}'"
    print(f"loopfs: {shown(sentence)}; {hint}", file=sys.stderr)
    return USAGE_ERROR
