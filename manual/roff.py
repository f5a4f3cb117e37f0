"""Manual pages in the macros of man(7), as man-db and mandoc have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from textwrap import wrap

# What is code in the words of usage.py and pages.py is between backticks; a word in capitals
# stands for an argument, unless it is a name of the kernel's (EPERM, SIGKILL) or after a $.
_MARKED = re.compile(r"`([^`]+)`|(?<![\w$/.])([A-Z]{2,}(?:=[A-Z]+)?|N)(?![\w/.]|\(\d\))")
_NAMES = re.compile(r"E[A-Z]{4,}|SIG[A-Z]+|JSON|TOML|UTC|CPU|FUSE|PATH|OPTION|XDG")


def text(words: str) -> str:
    """Words of one paragraph, with their fonts."""

    def font(match: re.Match[str]) -> str:
        code, argument = match.groups()
        if code is not None:
            return rf"\fB{escaped(code)}\fR"
        if _NAMES.fullmatch(argument):
            return str(argument)
        return rf"\fI{escaped(argument)}\fR"

    pieces, end = [], 0
    for match in _MARKED.finditer(words):
        pieces += [escaped(words[end : match.start()], dash="-"), font(match)]
        end = match.end()
    return _lines("".join([*pieces, escaped(words[end:], dash="-")]))


def escaped(words: str, dash: str = r"\-") -> str:
    """Words as they are; in code a dash is one that can be copied."""
    return words.replace("\\", r"\e").replace("-", dash).replace("~", r"\(ti")


def _lines(words: str) -> str:
    """Each sentence on lines of its own, of at most 80 bytes."""
    filled = [
        line
        for sentence in re.split(r"(?<=\.) ", words)
        for line in wrap(sentence, 80, break_long_words=False, break_on_hyphens=False)
    ]
    return "\n".join(map(_guarded, filled))


def _guarded(line: str) -> str:
    """A line that is no request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


class Page:
    """A page that grows by its sections.

    Args:
        name: with the section, as in "loopfs(1)".
        purpose: for the line NAME.
        version: what it documents.
        date: of its last change, as YYYY-MM-DD.
    """

    def __init__(self, name: str, purpose: str, version: str, date: str) -> None:
        title, _, section = name.rstrip(")").partition("(")
        self._lines = [
            '.\\" Made by `python3 -m manual` from loopfs.cli.usage; change that.',
            f'.TH {escaped(title.upper())} {section} {date} "loopfs {version}"',
            ".SH NAME",
            rf"{escaped(title)} \- {text(purpose)}",
        ]

    def section(self, title: str, *paragraphs: str) -> None:
        """A section."""
        self._lines.append(f".SH {title.upper()}")
        for paragraph in paragraphs:
            self.paragraph(paragraph)

    def synopsis(self, *lines: tuple[str, str]) -> None:
        """The section SYNOPSIS: of each line what is written so, and the arguments."""
        self._lines.append(".SH SYNOPSIS")
        for number, (command, arguments) in enumerate(lines):
            separator = [".br"] * bool(number)
            self._lines += [
                *separator,
                rf"\fB{escaped(command)}\fR {_arguments(arguments)}".strip(),
            ]

    def part(self, command: str, arguments: str, about: str) -> None:
        """A part of a section, about a command."""
        self._lines += [".SS", rf"{escaped(command)} {_arguments(arguments)}".strip(), text(about)]

    def items(self, items: Iterable[tuple[str, str, str]]) -> None:
        """Terms (what is written so, and an argument) with what they mean."""
        for literal, argument, meaning in items:
            term = [rf"\fB{escaped(literal)}\fR"] * bool(literal)
            term += [rf"\fI{escaped(argument)}\fR"] * bool(argument)
            self._lines += [".TP", " ".join(term), text(meaning)]

    def example(self, code: str) -> None:
        """Lines of code."""
        lines = [_guarded(escaped(line)) for line in code.splitlines()]
        self._lines += [*self._gap(), ".RS 4", ".nf", *lines, ".fi", ".RE"]

    def paragraph(self, words: str) -> None:
        """One more paragraph."""
        self._lines += [*self._gap(), text(words)]

    def _gap(self) -> list[str]:
        return [] if self._lines[-1].startswith(".SH") else [".PP"]

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def _arguments(words: str) -> str:
    """A synopsis: options are bold, what stands for a value is not."""
    return re.sub(
        r"(--?[a-z-]*)|([A-Z]+)|([^-A-Z]+)",
        lambda m: rf"\fB{escaped(m[1])}\fR" if m[1] else rf"\fI{m[2]}\fR" if m[2] else m[3],
        words,
    )
