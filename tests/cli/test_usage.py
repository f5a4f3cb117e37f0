"""The help, and the errors for a wrong command line."""

from __future__ import annotations

import contextlib

import pytest

from loopfs import cli
from loopfs.cli import usage
from loopfs.settings import SettingsError

_VALUES = {"": None, "N": "3", "TYPE=ENGINE": "ext4=deny", "FILE": "/dev/null"}


@pytest.mark.parametrize("described", usage.RUN.options[:-1], ids=lambda option: option.name)
def test_an_option_of_the_help_is_one_of_run(described: usage.Option) -> None:
    option, value = described.name, described.value
    words = [option] if _VALUES[value] is None else [option, str(_VALUES[value])]
    _, command = cli._settings_and_command([*words, "true"])
    assert command == ["true"]
    if value:
        with pytest.raises(SettingsError, match=f"{option} needs a value"):
            cli._settings_and_command([option])


def test_the_help_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    said, complaint = capsys.readouterr()
    for option in usage.RUN.options:
        assert f"  {option.name} {option.value}".rstrip() in said
    assert complaint == ""
    assert max(map(len, said.splitlines())) <= 80


def test_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in usage.COMMANDS:
        assert f"loopfs {command.name} {command.arguments}\n" in said


@pytest.mark.parametrize("command", usage.COMMANDS, ids=lambda command: command.name)
def test_a_command_has_its_help(command: usage.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # argparse exits
        cli.main([command.name, "--help"])
    said, complaint = capsys.readouterr()
    assert said.startswith(f"usage: loopfs {command.name} {command.arguments}\n")
    for option in command.options:
        assert option.name in said
    assert complaint == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "loopfs: a command is missing; see 'loopfs --help'\n"),
        (["x\n"], "loopfs: there is no command 'x\\n'; see 'loopfs --help'\n"),
        (["run", "--x"], "loopfs: run has no option '--x'; see 'loopfs run --help'\n"),
    ],
)
def test_a_wrong_command_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", complaint)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["kill"], "the following arguments are required: pid"),
        (["kill", "x"], "argument pid: invalid int value: 'x'"),
        (["ls", "--x\n"], "unrecognized arguments: --x\\n"),
        (["doctor", "x"], "unrecognized arguments: x"),
        (["seccomp-profile", "--base"], "argument --base: expected one argument"),
    ],
)
def test_a_wrong_command_line_of_the_others(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    name = words[0]
    assert capsys.readouterr() == ("", f"loopfs: {name}: {what}; see 'loopfs {name} --help'\n")
