"""Descriptions of the commands, their options and the configuration file.

The help, the parsers of all commands except ``run`` and, by ``python3 -m manual``, the manual
pages and the completions of shells are made from this module.
"""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    """An option of a command.

    Args:
        name: including its dashes.
        value: the name of its value; empty if it has none.
        completes: what a shell offers as its value: "file", "engine" or nothing.
    """

    name: str
    value: str
    purpose: str
    completes: str = ""


class Operand(NamedTuple):
    """A positional argument.

    Args:
        name: "pid" (of a sandbox) or "device" (of a sandbox).
    """

    name: str
    purpose: str


class Command(NamedTuple):
    """A command of ``loopfs``.

    Args:
        arguments: its synopsis.
        purpose: a line for the list of commands.
        about: the first paragraph of its help.
    """

    name: str
    arguments: str
    purpose: str
    about: str
    options: tuple[Option, ...] = ()
    operands: tuple[Operand, ...] = ()


class Key(NamedTuple):
    """A key of the configuration file.

    Args:
        table: the name of its table.
        name: of the key.
        value: the type of its value.
    """

    table: str
    name: str
    value: str
    purpose: str


HELP = Option("--help", "", "show this help")
RUN = Command(
    "run",
    "[OPTION...] [--] [COMMAND [ARGUMENT...]]",
    "run a command in a sandbox",
    "Run COMMAND as root of a sandbox that has its own loop devices; without COMMAND,"
    " the shell that $SHELL names, or /bin/sh. The exit status is that of the command.",
    (
        Option(
            "--bare",
            "",
            "start without loop devices; mount -t loop none DIRECTORY makes an instance",
        ),
        Option(
            "--engine",
            "TYPE=ENGINE",
            "mount filesystems of TYPE by ENGINE; deny refuses them. Can be given several times",
            "engine",
        ),
        Option(
            "--number-from",
            "N",
            "the first device is loopN, and the host's devices are hidden; without it, devices"
            " are numbered after the host's",
        ),
        Option("--max-devices", "N", "at most N loop devices, in all user namespaces together"),
        Option(
            "--reserve-devices",
            "N",
            "N of these are for the sandbox's own instances only; without it, a quarter",
        ),
        Option(
            "--log",
            "FILE",
            "write a record of each trapped system call to FILE, as JSON lines",
            "file",
        ),
        Option("-v", "", "show the calls that mount and unmount on standard error"),
        Option("-vv", "", "show all trapped calls"),
        Option("--config", "FILE", "read FILE instead of ~/.config/loopfs/config.toml", "file"),
        HELP,
    ),
)
LS = Command(
    "ls",
    "[--json] [--all]",
    "list your sandboxes with their devices and mounts",
    "List your sandboxes, with their instances, devices and mounts.",
    (
        Option("--json", "", "print all information as JSON"),
        Option("--all", "", "list the sandboxes of all users; for root"),
        HELP,
    ),
)
_PID = Operand("pid", "the process id of the sandbox, as ls lists it")
KILL = Command(
    "kill",
    "[--force] PID",
    "end a sandbox",
    "End one of your sandboxes, or for root a sandbox of any user, by SIGTERM, which is passed on"
    " to its command. Wait at most 10 seconds for the end.",
    (
        Option("--force", "", "end it at once by SIGKILL; data that is not yet written is lost"),
        HELP,
    ),
    (_PID,),
)
DETACH = Command(
    "detach",
    "PID DEVICE",
    "detach a device of a sandbox",
    "Detach a device of a sandbox; if it is open, at its last close.",
    (HELP,),
    (_PID, Operand("device", "a loop device of the sandbox: /dev/loopN, loopN or N")),
)
DOCTOR = Command(
    "doctor",
    "[--json]",
    "check whether loopfs can run here",
    "Check whether loopfs can run here, and print a remedy for each missing feature.",
    (Option("--json", "", "print the findings as JSON"), HELP),
)
SECCOMP_PROFILE = Command(
    "seccomp-profile",
    "[--base FILE] [--agent PATH]",
    "print a seccomp profile for containers that run loopfs, or that an agent serves",
    "Print a seccomp profile with which a container can run loopfs; with --agent, one by which"
    " `loopfs agent` gives loop devices to containers without loopfs.",
    (
        Option(
            "--base", "FILE", "the profile to add to; without it, the default of podman", "file"
        ),
        Option("--agent", "PATH", "the socket of the agent", "file"),
        HELP,
    ),
)
APPARMOR_PROFILE = Command(
    "apparmor-profile",
    "[--path PATH]",
    "print an AppArmor profile for machines that restrict user namespaces",
    "Print an AppArmor profile with which loopfs can make user namespaces.",
    (
        Option(
            "--path",
            "PATH",
            "where loopfs is installed; without it, the usual places",
            "file",
        ),
        HELP,
    ),
)
AGENT = Command(
    "agent",
    "--socket PATH",
    "give loop devices to containers without loopfs (experimental)",
    "Give loop devices to containers that have the seccomp profile of"
    " `loopfs seccomp-profile --agent PATH`, until SIGTERM, SIGINT or SIGHUP (experimental).",
    (Option("--socket", "PATH", "the socket to listen on for container runtimes", "file"), HELP),
)
COMMANDS = (RUN, LS, KILL, DETACH, DOCTOR, SECCOMP_PROFILE, APPARMOR_PROFILE, AGENT)

KEYS = (
    Key(
        "engines",
        "TYPE",
        "string",
        "the engine that mounts filesystems of this type; deny refuses them",
    ),
    Key("devices", "max", "number", "as the option --max-devices: 0 to 1048576"),
    Key("devices", "reserve", "number", "as the option --reserve-devices: 0 to 1048576"),
)

EXIT_STATUSES = (
    ("N", "the command has exited with N"),
    ("128+N", "the command was killed by signal N"),
    ("2", "an option or the configuration file is wrong"),
    ("125", "no sandbox can be made, or the log cannot be opened"),
    ("126", "the command cannot be executed"),
    ("127", "the command is not found"),
)
EXAMPLE = "loopfs run -- mount -o loop disk.img /mnt"

_WIDTH = 78
_INDENT = 26


def overview() -> str:
    """Return the text of ``loopfs --help``."""
    lines = ["usage: loopfs COMMAND [ARGUMENT...]", ""]
    for command in COMMANDS:
        lines += [f"  loopfs {command.name} {command.arguments}", f"      {command.purpose}"]
    lines += ["  loopfs --version", ""]
    lines += ["`loopfs COMMAND --help` describes one command.", ""]
    lines.append(f"example: {EXAMPLE}")
    return "\n".join(lines) + "\n"


def run_help() -> str:
    """Return the text of ``loopfs run --help``."""
    from textwrap import wrap

    lines = [f"usage: loopfs run {RUN.arguments}", "", *wrap(RUN.about, _WIDTH), ""]
    for option in RUN.options:
        lines += _item(f"{option.name} {option.value}".rstrip(), option.purpose)
    lines += ["", "exit status:"]
    for status, meaning in EXIT_STATUSES:
        lines += _item(status, meaning)
    lines += ["", f"example: {EXAMPLE}"]
    return "\n".join(lines) + "\n"


def _item(term: str, meaning: str) -> list[str]:
    from textwrap import wrap

    first, *rest = wrap(meaning, _WIDTH - _INDENT)
    return [f"  {term:<{_INDENT - 2}}{first}", *(" " * _INDENT + line for line in rest)]
