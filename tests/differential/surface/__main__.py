"""Makes all these ioctls, for each word size, and prints the results as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile

from tests.differential.steps.bench import Bench
from tests.differential.surface.asker import WORDS, Asker, program
from tests.differential.surface.commands import Command, commands
from tests.differential.surface.nodes import CONTROL, INCAPABLE_CONTROL, KINDS, Kind, Masked, Place

Answers = dict[str, dict[str, object]]  # by the kind of node, then by what was asked


def main() -> None:
    directory = sys.argv[1]
    widths = [width for width in WORDS if os.path.exists(program(directory, width))]
    # In turn: what one asks the control node can take a device that the other has just made.
    json.dump({width: ask_all(directory, width) for width in widths}, sys.stdout, indent=1)


def ask_all(programs: str, width: str) -> Answers:
    """What every kind of node answered a program of one width."""
    answers: Answers = {}
    with tempfile.TemporaryDirectory(dir=programs) as directory:
        for capable in (True, False):
            asker = Asker(programs, width, capable=capable)
            place = Place(Bench(directory, lambda *_: None, lambda _: None), asker)
            table = list(commands(asker.word))
            with place.control():
                named = answers[CONTROL if capable else INCAPABLE_CONTROL] = {}
                for command in table:
                    ask(place, command, named)
            for name, kind in KINDS.items():
                if kind.capable == capable:
                    answers[name] = of_kind(place, table, kind)
            place.leave()
    return answers


def of_kind(place: Place, table: list[Command], kind: Kind) -> dict[str, object]:
    """What one kind of node answered; a command that binds gets a new one."""
    answers: dict[str, object] = {}
    with place.node(kind):
        for command in table:
            if not (command.changes or command.binds):
                ask(place, command, answers)
        answers["state"] = place.state()
    with place.node(kind):
        for command in table:
            if command.changes and not command.binds:
                ask(place, command, answers, with_state=True)
    for command in table:
        if command.binds:
            ask_of_new(place, command, kind, answers)
    return answers


def ask_of_new(place: Place, command: Command, kind: Kind, answers: dict[str, object]) -> None:
    """A command that binds: of one node, but of another once one that was unbound is bound."""
    arguments = list(command.arguments.items())
    while arguments:
        with place.node(kind):
            while arguments:
                what, argument = arguments.pop(0)
                ask(place, command._replace(arguments={what: argument}), answers, with_state=True)
                if kind.config is None and answers[f"{command.name}: {what}"] == [0]:
                    break


def ask(
    place: Place, command: Command, answers: dict[str, object], *, with_state: bool = False
) -> None:
    for what, argument in command.arguments.items():
        step = f"{command.name}: {what}"
        answer: Masked = place.ask(command.number, argument, command.hidden)
        if command.hides_result and isinstance(answer[0], int):
            answer[0] = "(a number)"
        answers[step] = answer
        if with_state:
            answers[f"{step}: then"] = place.state()


main()
