"""``loopfs doctor``: check whether loopfs can run here, and print remedies."""

from __future__ import annotations

import errno
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress

from loopfs.cli import findings, remedies, usage
from loopfs.cli.findings import Finding
from loopfs.cli.parser import Parser
from loopfs.errors import LoopfsError, SetupError, no_room
from loopfs.text import shown

WIDTH = 100  # columns of the table


def main(argv: list[str]) -> int:
    """Run the subcommand.

    Args:
        argv: the arguments after the word ``doctor``.
    Returns:
        the exit status: 1 if something that ``loopfs run`` needs is missing.
    """
    options = Parser(usage.DOCTOR).parse_args(argv)
    try:
        found = [_printable(finding) for finding in examine()]
    except (OSError, MemoryError) as problem:
        print(f"loopfs: doctor: {_why(problem)}", file=sys.stderr)
        return 1
    report = as_json(found) if options.json else as_table(found)
    try:
        print(report, flush=True)
    except OSError as problem:
        print(f"loopfs: doctor: standard output: {problem.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return 1
    return 0 if can_run(found) else 1


def _why(problem: OSError | MemoryError) -> str:
    """Return the reason why no check can be made, with a remedy."""
    if isinstance(problem, MemoryError) or problem.errno in (errno.EAGAIN, errno.ENOMEM):
        return str(no_room().strerror)
    return f"{problem.strerror}; {remedies.refused('', problem.errno or 0)}"


def examine() -> Iterator[Finding]:
    """Make each check, and at last make a sandbox, if nothing that it needs is missing.

    Checks that depend on something missing are left out: they would name the wrong remedy.
    """
    ready = True
    for finding in _parts():
        ready = ready and (finding.ok or not finding.required)
        yield finding
    if ready:
        from loopfs.cli import probes

        yield probes.sandbox()


def _parts() -> Iterator[Finding]:
    machine = findings.machine()
    yield machine
    if not machine.ok:
        return
    for needed in (findings.proc, findings.null):
        finding = needed()
        yield finding
        if not finding.ok:
            return
    from loopfs.cli import probes

    device = probes.fuse_device()
    yield device
    namespaces = probes.user_namespaces()
    yield namespaces
    if namespaces.ok:
        if device.ok:
            yield probes.fuse_mount()
        yield probes.reach()
        yield probes.mount_calls()
        yield probes.mount_api()
        yield probes.change_of_root()
    notification = probes.user_notification()
    yield notification
    if notification.ok:
        listener = probes.listener()
        yield listener
        if listener.ok:
            yield probes.add_descriptor()
            yield probes.synchronous_wake_up()
        yield probes.killable_wait()
    if namespaces.ok:
        yield probes.landlock()
        yield probes.pid_namespace()
        yield probes.subordinate_ids()


def _printable(finding: Finding) -> Finding:
    """Return a finding that can be written to standard output: it may contain a user name."""

    def printable(word: str) -> str:
        encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding  # None: it is closed
        return shown(word).encode(encoding, "backslashreplace").decode(encoding)

    consequence, remedy = printable(finding.consequence), printable(finding.remedy)
    return finding._replace(consequence=consequence, remedy=remedy)


def missing() -> Finding | None:
    """Return the first missing thing that loopfs needs; for a run that has failed to start.

    Raises:
        OSError: a process for a check cannot be made.
    """
    return next((f for f in _parts() if f.required and not f.ok), None)


def cause(problem: LoopfsError | KeyError) -> str:
    """Return one sentence with the reason why no sandbox can be made, and the remedy.

    Args:
        problem: the error of the start; KeyError: there is no table of system calls.
    """
    code = problem.code if isinstance(problem, LoopfsError) else 0
    if code != errno.EAGAIN:  # the checks start processes
        with suppress(OSError):  # the checks cannot be made either
            is_known = isinstance(problem, LoopfsError)  # the machine
            lacking = _missing_after_a_start() if is_known else missing()
            if lacking is not None:
                return sentence(lacking)
    call = problem.call if isinstance(problem, SetupError) else None
    said = str(problem.args[-1])
    return said if call is None else f"{said}; {remedies.refused(call, code)}"


def _missing_after_a_start() -> Finding | None:
    from loopfs import syscalls

    syscalls.set_dumpable(True)  # a process that is not dumpable cannot write its id maps
    return missing()


def sentence(finding: Finding) -> str:
    """Return one sentence with the consequence and the remedy."""
    return f"{finding.consequence}; {finding.remedy}"


def can_run(found: list[Finding]) -> bool:
    return all(f.ok for f in found if f.required)


def as_json(found: list[Finding]) -> str:
    report = {"ok": can_run(found), "findings": [f._asdict() for f in found]}
    return json.dumps(report, indent=2)


def as_table(found: list[Finding]) -> str:
    """Return a line for each finding; below a "no", its consequence and its remedy."""
    column = max(len(f.name) for f in found) + 2
    lines = []
    for finding in found:
        lines.append(f"{finding.name:{column}}{_verdict(finding)}")
        if not finding.ok:
            lines += _indented(finding.consequence)
            lines += _indented(finding.remedy)
    verdict = "loopfs can run here." if can_run(found) else "loopfs cannot run here."
    return "\n".join([*lines, "", verdict])


def _verdict(finding: Finding) -> str:
    if finding.ok:
        return "yes"
    return "no (needed)" if finding.required else "no (not needed)"


def _indented(text: str) -> list[str]:
    indent = "    "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,  # a command must stay whole enough to be copied
    )
