"""The manual pages loopfs(1), loopfs-run(1) and loopfs.toml(5)."""

from __future__ import annotations

from collections.abc import Iterable

from loopfs import __version__
from loopfs.cli.usage import COMMANDS, EXIT_STATUSES, KEYS, RUN, Command, Option
from manual.roff import Page

DATE = "2026-11-30"
CONFIGURATION = "$XDG_CONFIG_HOME/loopfs/config.toml"
SEE = "`losetup`(8), `mount`(8), `user_namespaces`(7), `fuse`(4), `seccomp_unotify`(2)"


def loopfs() -> str:
    """loopfs(1)."""
    page = Page("loopfs(1)", "loop devices of your own, without root", __version__, DATE)
    page.synopsis(
        *((f"loopfs {command.name}", command.arguments) for command in COMMANDS),
        ("loopfs --version", ""),
        ("loopfs --help", ""),
    )
    page.section(
        "description",
        "`loopfs run` starts a command in a sandbox in which `losetup`(8), `mkfs`(8), `blkid`(8)"
        " and `mount -o loop` work as they do for root: with the distribution's unmodified"
        " programs, on a stock kernel, by an ordinary user. Nothing stays on the host: no device,"
        " no mount and no process.",
        "The sandbox is a user, mount and pid namespace. Its /dev is a FUSE filesystem that"
        " `loopfs` serves; mount(2) and some other system calls are trapped by seccomp, and a"
        " filesystem on a loop device is mounted by a FUSE server, the engine.",
        "The other commands list and end sandboxes, and check the machine.",
    )
    page.section("commands")
    for command in COMMANDS:
        about = command.about if command is not RUN else f"{RUN.about} See `loopfs-run`(1)."
        page.part(f"loopfs {command.name}", command.arguments, about)
        if command is not RUN:
            page.items((name, "", purpose) for name, purpose in _of_operands(command))
            page.items(_of_options(command))
    page.section("exit status")
    page.items(
        [
            ("0", "", "success"),
            ("1", "", "failure; for doctor: something that loopfs needs is missing"),
            ("2", "", "the command line is wrong"),
        ]
    )
    page.paragraph("That of `loopfs run` is described in `loopfs-run`(1).")
    page.section("examples")
    page.paragraph("Check whether loopfs can run here:")
    page.example("loopfs doctor")
    page.paragraph("List the devices and mounts of all your sandboxes:")
    page.example("loopfs ls")
    page.section("see also", f"`loopfs-run`(1), `loopfs.toml`(5), {SEE}")
    return str(page)


def run() -> str:
    """loopfs-run(1)."""
    page = Page("loopfs-run(1)", RUN.purpose + " with loop devices of its own", __version__, DATE)
    page.synopsis(("loopfs run", RUN.arguments))
    page.section(
        "description",
        RUN.about,
        "Outside of the sandbox the command has the caller's user id: it has the same files,"
        " working directory, environment, network and terminal. The user's subordinate ids"
        " (`subuid`(5), `subgid`(5)) are the sandbox's other users. The sbin directories are"
        " added to PATH.",
        "`/dev/loop-control` and the devices are there from the start. A mount of type loop"
        " is a further instance, with devices of its own. The devices of a sandbox cannot be seen"
        " or used from outside, and the host's loop devices cannot be used inside.",
        "SIGHUP, SIGINT and SIGTERM are passed on to the command. If one second later the sandbox"
        " has not ended, `loopfs run` reports what it waits for, and the next of these signals"
        " ends it at once; data that is not yet written to an image is then lost.",
    )
    page.section("options")
    page.items(_of_options(RUN))
    page.section("exit status")
    page.items(
        ("", status, meaning) if "N" in status else (status, "", meaning)
        for status, meaning in EXIT_STATUSES
    )
    page.section("environment")
    page.items(
        [
            ("SHELL", "", "the command, if none is given"),
            ("XDG_CONFIG_HOME", "", "the directory of configuration files; default: `~/.config`"),
        ]
    )
    page.section("files")
    page.items([(CONFIGURATION, "", "the user's choices for all sandboxes: `loopfs.toml`(5)")])
    page.section("examples")
    page.paragraph("Make a filesystem in an image and fill it:")
    page.example(
        "truncate -s 64M disk.img\nmkfs.ext4 -q disk.img\n"
        "loopfs run -- sh -c 'mount -o loop disk.img /mnt && cp -r data /mnt'"
    )
    page.paragraph("Run a script whose devices have the same names on every machine:")
    page.example("loopfs run --number-from 0 -- ./build-image.sh")
    page.paragraph("An instance of its own, limited to four devices, in a user namespace:")
    page.example("loopfs run -- unshare -Urm sh -c 'mount -t loop -o max=4 none /mnt; ls /mnt'")
    page.section("see also", f"`loopfs`(1), `loopfs.toml`(5), {SEE}")
    return str(page)


def configuration() -> str:
    """loopfs.toml(5)."""
    page = Page("loopfs.toml(5)", "a user's choices for the sandboxes of loopfs", __version__, DATE)
    page.section(
        "description",
        f"`loopfs run` and `loopfs.Sandbox` of Python read `{CONFIGURATION}`, where"
        " XDG_CONFIG_HOME is `~/.config` by default, or the file that the option `--config`"
        " names. It is in TOML. It need not exist, unless it is named. The command line takes"
        " precedence over it. A key or table that is not listed here is an error.",
    )
    for table in dict.fromkeys(key.table for key in KEYS):
        page.section(f"table {table}")
        keys = [key for key in KEYS if key.table == table]
        page.items(
            (
                "" if key.name.isupper() else key.name,
                key.name if key.name.isupper() else "",
                f"({key.value}) {key.purpose}",
            )
            for key in keys
        )
    page.section("examples")
    page.example('[engines]\next4 = "fuse2fs"\nxfs = "deny"\n\n[devices]\nmax = 64\nreserve = 16')
    page.section("see also", "`loopfs`(1), `loopfs-run`(1)")
    return str(page)


def _of_options(command: Command) -> Iterable[tuple[str, str, str]]:
    return ((option.name, option.value, _sentence(option)) for option in command.options)


def _of_operands(command: Command) -> Iterable[tuple[str, str]]:
    return ((operand.name.upper(), operand.purpose) for operand in command.operands)


def _sentence(option: Option) -> str:
    """Return the purpose of an option with a capital letter and a full stop."""
    return f"{option.purpose[0].upper()}{option.purpose[1:]}."
