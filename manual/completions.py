"""Completions for bash, zsh and fish.

Of `run` the options are completed up to the command, and from there on it is completed as if it
stood alone. Process ids and devices are those that `loopfs ls` lists.
"""

from __future__ import annotations

from loopfs.cli.usage import COMMANDS, HELP, RUN, Command, Option
from loopfs.engines.policy import DENY, ENGINES

_MADE = "# Made by `python3 -m manual` from loopfs.cli.usage; change that."
_GLOBAL = (Option("--version", "", "show the version"), HELP)

# awk programs on the table of `loopfs ls`.
_PIDS = "$1 ~ /^[0-9]+$/ { print $1 }"
_DEVICES = "$1 ~ /^[0-9]+$/ { on = $1 == pid } on && $1 ~ /^loop[0-9]+$/ { print $1 }"


def _choices() -> list[str]:
    """What --engine can be given."""
    types = sorted({fstype for engine in ENGINES for fstype in engine.types})
    return [
        f"{fstype}={name}"
        for fstype in types
        for name in (*(engine.name for engine in ENGINES if fstype in engine.types), DENY)
    ]


def _names(command: Command) -> str:
    return " ".join(option.name for option in command.options)


# --- bash --------------------------------------------------------------------------------


def bash() -> str:
    """The file that bash-completion loads; it works without that package, too."""
    commands = " ".join(command.name for command in COMMANDS)
    overall = " ".join(option.name for option in _GLOBAL)
    others = "\n".join(_bash_case(command) for command in COMMANDS if command is not RUN)
    return f"""\
{_MADE}
# shellcheck shell=bash

_loopfs()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        _loopfs_words "{commands} {overall}"
        return
    fi
    case $command in
    run) _loopfs_run ;;
{others}
    esac
}}

# _loopfs_words WORDS: offer those that begin with the word so far.
_loopfs_words()
{{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}}

_loopfs_files()
{{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}}

_loopfs_pids()
{{
    loopfs ls 2>/dev/null | awk '{_PIDS}'
}}

_loopfs_devices()
{{
    loopfs ls 2>/dev/null | awk -v pid="$1" '{_DEVICES}'
}}

_loopfs_run()
{{
    local at=2 option
    # bash splits words at "=": --log=FILE and TYPE=ENGINE are three each.
    while [ "$at" -lt "$COMP_CWORD" ]; do
        option=${{COMP_WORDS[at]}}
        case $option in
        --) at=$((at + 1)); break ;;
{_bash_values()}
        -*) at=$((at + 1)); continue ;;
        *) break ;;
        esac
        at=$((at + 1))
        [ "${{COMP_WORDS[at]}}" = "=" ] && at=$((at + 1))
        if [ "$at" -ge "$COMP_CWORD" ] ||
            {{ [ "$option" = --engine ] && [ $((at + 2)) -ge "$COMP_CWORD" ] &&
                [ "${{COMP_WORDS[at + 1]}}" = "=" ]; }}; then
            _loopfs_value "$option" "$at"
            return
        fi
        [ "$option" = --engine ] && [ "${{COMP_WORDS[at + 1]}}" = "=" ] && at=$((at + 2))
        at=$((at + 1))
    done
    if [ "$at" -eq "$COMP_CWORD" ] && [[ $cur == -* ]] && [ "${{COMP_WORDS[at - 1]}}" != -- ]; then
        _loopfs_words "{_names(RUN)}"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$at"
    elif [ "$at" -eq "$COMP_CWORD" ]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        _loopfs_files
    fi
}}

# _loopfs_value OPTION AT: its value begins with the word AT.
_loopfs_value()
{{
    [ "$cur" = "=" ] && cur=""
    case $1 in
    --engine)
        if [ "$COMP_CWORD" -gt "$2" ]; then # behind TYPE=
            local fstype=${{COMP_WORDS[$2]}}
            cur=$fstype=$cur
            _loopfs_words "$_loopfs_engines"
            COMPREPLY=("${{COMPREPLY[@]#"$fstype="}}")
        else
            _loopfs_words "$_loopfs_engines"
        fi
        ;;
    {_alternatives("file")}) _loopfs_files ;;
    esac
}}

_loopfs_engines="{" ".join(_choices())}"

complete -F _loopfs loopfs
"""


def _bash_values() -> str:
    names = "|".join(option.name for option in RUN.options if option.value)
    return f"        {names}) ;;"


def _alternatives(kind: str) -> str:
    return "|".join(option.name for option in RUN.options if option.completes == kind)


def _bash_case(command: Command) -> str:
    operands = [operand.name for operand in command.operands]
    lines = [f"    {command.name})"]
    of_file = [option.name for option in command.options if option.completes == "file"]
    if of_file:
        lines += [
            f"        case ${{COMP_WORDS[COMP_CWORD - 1]}} in {'|'.join(of_file)})"
            " _loopfs_files; return ;; esac"
        ]
    if operands == ["pid", "device"]:
        lines += [
            "        case $COMP_CWORD in",
            f'        2) _loopfs_words "$(_loopfs_pids) {_names(command)}" ;;',
            '        3) _loopfs_words "$(_loopfs_devices "${COMP_WORDS[2]}")" ;;',
            "        esac",
        ]
    elif operands:
        lines.append(f'        _loopfs_words "$(_loopfs_pids) {_names(command)}"')
    else:
        lines.append(f'        _loopfs_words "{_names(command)}"')
    return "\n".join([*lines, "        ;;"])


# --- zsh ---------------------------------------------------------------------------------


def zsh() -> str:
    """The function _loopfs for compinit."""
    commands = "\n".join(
        f"            {_quoted(f'{command.name}:{command.purpose}')}" for command in COMMANDS
    )
    others = "\n".join(_zsh_case(command) for command in COMMANDS if command is not RUN)
    run = " \\\n        ".join(
        ["_arguments -s", *_zsh_options(RUN), "'1:command:_command_names -e'"]
    )
    with_value = "|".join(option.name for option in RUN.options if option.value)
    overall = " ".join(_quoted(f"(- *){o.name}[{o.purpose}]") for o in _GLOBAL)
    return f"""\
#compdef loopfs
{_MADE}

_loopfs_pids() {{
    local -a pids
    pids=(${{(f)"$(loopfs ls 2>/dev/null | awk '{_PIDS}')"}})
    compadd -a pids
}}

_loopfs_devices() {{
    local -a devices
    devices=(${{(f)"$(loopfs ls 2>/dev/null | awk -v pid="$words[2]" '{_DEVICES}')"}})
    compadd -a devices
}}

_loopfs_engines() {{
    local -a engines
    engines=({" ".join(_choices())})
    compadd -a engines
}}

# The options up to the command; from there on it is completed as if it stood alone.
_loopfs_run() {{
    local -i at=2
    while (( at < CURRENT )); do
        case $words[at] in
        --) (( at++ )); break ;;
        {with_value}) (( at += 2 )) ;;
        -*) (( at++ )) ;;
        *) break ;;
        esac
    done
    if (( at < CURRENT )) || [[ $at -eq $CURRENT && $words[at-1] == -- ]]; then
        shift $(( at - 1 )) words
        (( CURRENT -= at - 1 ))
        _normal
        return
    fi
    {run}
}}

_loopfs() {{
    local curcontext="$curcontext" state line
    local -a commands
    _arguments -C {overall} '1: :->command' '*:: :->arguments' && return
    case $state in
    command)
        commands=(
{commands}
        )
        _describe -t commands 'loopfs command' commands
        ;;
    arguments)
        case $words[1] in
        run) _loopfs_run ;;
{others}
        esac
        ;;
    esac
}}

_loopfs "$@"
"""


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _zsh_options(command: Command) -> list[str]:
    return [_zsh_option(option) for option in command.options]


def _zsh_option(option: Option) -> str:
    purpose = option.purpose.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    if option == HELP:
        return _quoted(f"(- *){option.name}[{purpose}]")
    many = "*" if option.completes == "engine" else ""
    if not option.value:
        return _quoted(f"{option.name}[{purpose}]")
    action = {"file": "_files", "engine": "_loopfs_engines", "": " "}[option.completes]
    return _quoted(f"{many}{option.name}=[{purpose}]:{option.value}:{action}")


def _zsh_case(command: Command) -> str:
    actions = {"pid": "_loopfs_pids", "device": "_loopfs_devices"}
    operands = [
        _quoted(f"{at}:{operand.name}:{actions[operand.name]}")
        for at, operand in enumerate(command.operands, 1)
    ]
    words = ["_arguments -s", *_zsh_options(command), *operands]
    return (
        f"        {command.name})\n            "
        + " \\\n            ".join(words)
        + "\n            ;;"
    )


# --- fish --------------------------------------------------------------------------------


def fish() -> str:
    """The file that fish loads for the command."""
    lines = [
        _MADE,
        "",
        "# Whether the options of `loopfs run` are still being written, and not its command.",
        "function __loopfs_run_options",
        "    set -l words (commandline -opc)",
        '    test "$words[2]" = run; or return 1',
        "    set -l skip 0",
        "    for word in $words[3..-1]",
        "        if test $skip = 1",
        "            set skip 0",
        f"        else if contains -- $word {_with_value()}",
        "            set skip 1",
        "        else if not string match -q -- '-?*' $word; or test $word = --",
        "            return 1",
        "        end",
        "    end",
        "end",
        "",
        "# The command of `loopfs run`, with its arguments.",
        "function __loopfs_run_command",
        "    set -l words (commandline -opc) (commandline -ct)",
        "    set -e words[1..2]",
        "    while set -q words[2]",
        f"        if contains -- $words[1] {_with_value()}",
        "            set -e words[1]",
        "        else if test $words[1] = --",
        "            set -e words[1]",
        "            break",
        "        else if not string match -q -- '-?*' $words[1]",
        "            break",
        "        end",
        "        set -e words[1]",
        "    end",
        "    complete -C (string join -- ' ' (string escape -- $words[1..-2]) $words[-1])",
        "end",
        "",
        "function __loopfs_pids",
        f"    loopfs ls 2>/dev/null | awk '{_PIDS}'",
        "end",
        "",
        "function __loopfs_devices",
        "    set -l words (commandline -opc)",
        f"    loopfs ls 2>/dev/null | awk -v pid=$words[3] '{_DEVICES}'",
        "end",
        "",
        "complete -c loopfs -f",
    ]
    for option in _GLOBAL:
        lines.append(_fish("__fish_use_subcommand", option))
    for command in COMMANDS:
        about = f"-a {command.name} -d {_quoted(command.purpose)}"
        lines.append(f"complete -c loopfs -n __fish_use_subcommand {about}")
    for command in COMMANDS:
        here = f'"__fish_seen_subcommand_from {command.name}"'
        condition = "__loopfs_run_options" if command is RUN else here
        lines += [_fish(condition, option) for option in command.options]
        for at, operand in enumerate(command.operands, 2):
            place = f'"__fish_seen_subcommand_from {command.name}; and __fish_is_nth_token {at}"'
            lines.append(f'complete -c loopfs -n {place} -a "(__loopfs_{operand.name}s)"')
    condition = (
        "\"__fish_seen_subcommand_from run; and not string match -q -- '-*' (commandline -ct)"
    )
    lines.append(f'complete -c loopfs -n {condition}" -a "(__loopfs_run_command)"')
    return "\n".join(lines) + "\n"


def _with_value() -> str:
    return " ".join(option.name for option in RUN.options if option.value)


def _fish(condition: str, option: Option) -> str:
    dashes = "l" if option.name.startswith("--") else "s" if len(option.name) == 2 else "o"
    words = f"complete -c loopfs -n {condition} -{dashes} {option.name.lstrip('-')}"
    if option.value:
        choices = f' -a "{" ".join(_choices())}"' if option.completes == "engine" else ""
        words += f" -r{choices} -F" if option.completes == "file" else f" -x{choices}"
    return f"{words} -d {_quoted(option.purpose)}"
