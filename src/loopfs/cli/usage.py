"""What the commands are for, in words: the one source of the help."""

from __future__ import annotations

COMMANDS = (
    ("run", "[OPTION...] [--] [COMMAND [ARGUMENT...]]", "run a command in a sandbox"),
    ("ls", "[--json] [--all]", "list your sandboxes with their devices and mounts"),
    ("kill", "[--force] PID", "end a sandbox"),
    ("detach", "PID DEVICE", "detach a device of a sandbox"),
    ("doctor", "[--json]", "say what loopfs needs, what is missing, and how to mend it"),
    ("seccomp-profile", "[--base FILE]", "print what a container needs to let loopfs run"),
    ("apparmor-profile", "[--path PATH]", "print what Ubuntu needs to let loopfs run"),
)

# Of `run`: the option, its value, what it is for.
RUN_OPTIONS = (
    ("--bare", "", "begin without loop devices; mount -t loop none DIRECTORY makes an instance"),
    (
        "--engine",
        "TYPE=ENGINE",
        "have ENGINE mount filesystems of TYPE; deny refuses them. Can be given several times",
    ),
    (
        "--number-from",
        "N",
        "the first device is loopN, and the host's are hidden; without it, after the host's",
    ),
    ("--max-devices", "N", "at most N loop devices, in all user namespaces together"),
    (
        "--reserve-devices",
        "N",
        "N of these are for the sandbox's own instances only; without it, a quarter",
    ),
    ("--log", "FILE", "write a record of each trapped system call to FILE, as JSON lines"),
    ("-v", "", "show the calls that mount and unmount on standard error"),
    ("-vv", "", "show all trapped calls"),
    ("--config", "FILE", "read FILE instead of ~/.config/loopfs/config.toml"),
    ("--help", "", "show this"),
)
_WIDTH = 78
_INDENT = 26


def overview() -> str:
    """The text of ``loopfs --help``."""
    lines = ["usage: loopfs COMMAND [ARGUMENT...]", ""]
    for name, arguments, purpose in COMMANDS:
        lines += [f"  loopfs {name} {arguments}", f"      {purpose}"]
    lines += ["  loopfs --version", ""]
    lines += ["`loopfs COMMAND --help` says more of one.", ""]
    lines.append("example: loopfs run -- mount -o loop disk.img /mnt")
    return "\n".join(lines) + "\n"


def run_help() -> str:
    """The text of ``loopfs run --help``."""
    from textwrap import wrap

    lines = [
        "usage: loopfs run [OPTION...] [--] [COMMAND [ARGUMENT...]]",
        "",
        "Run COMMAND as root of a sandbox that has its own loop devices; without COMMAND,",
        "the shell that $SHELL names, or /bin/sh. Its exit status is that of the command.",
        "",
    ]
    for option, value, purpose in RUN_OPTIONS:
        first = f"  {option} {value}".rstrip()
        rest = wrap(purpose, _WIDTH - _INDENT)
        lines.append(f"{first:<{_INDENT - 1}} {rest[0]}")
        lines += [" " * _INDENT + line for line in rest[1:]]
    lines += [
        "",
        "exit status: the command's; 128+n after signal n; 2: the options mean nothing;",
        "125: no sandbox can be made; 126, 127: the command cannot be run, is not found",
        "",
        "example: loopfs run -- mount -o loop disk.img /mnt",
    ]
    return "\n".join(lines) + "\n"
