"""``loopfs ls``, ``kill`` and ``detach``: list and control the sandboxes of this machine."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pwd
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from loopfs.cli import sandboxes, usage
from loopfs.cli.parser import Parser
from loopfs.cli.sandboxes import Answer, Sandbox
from loopfs.errors import LoopfsError
from loopfs.text import shown, unicode

PATIENCE = 10.0  # seconds to wait for the end of a sandbox
SILENT = "does not answer"


def main(command: str, argv: list[str]) -> int:
    """Run a subcommand and return the exit status: 1 if it has failed.

    Args:
        command: ls, kill or detach.
        argv: the arguments after it.
    """
    operation, about = _COMMANDS[command]
    options = Parser(about).parse_args(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `loopfs ls | head` ends without a traceback
    try:
        return operation(options)
    except LoopfsError as problem:
        print(f"loopfs: {shown(str(problem.strerror))}", file=sys.stderr)
        return 1


# --- ls ----------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    if options.all and os.geteuid() != 0:
        raise LoopfsError(errno.EPERM, "--all is for root; without it, ls lists your sandboxes")
    found = sandboxes.find(everybodys=options.all)
    answers = sandboxes.ask(found, "list")
    records = []
    for sandbox in found:
        try:
            records.append(_record(sandbox, answers.get(sandbox.pid, {})))
        except FileNotFoundError:  # the sandbox has just ended
            continue
    if options.json:
        print(json.dumps(_unicode(records), indent=2))
        return 0
    for line in _table(records):
        print(line)
    return 0


def _record(sandbox: Sandbox, answer: Answer) -> Answer:
    """Return the record of a sandbox that is printed."""
    answers = sandboxes.fits(answer, sandboxes.STATE)
    about = {
        "pid": sandbox.pid,
        "user": _user(sandbox.uid),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sandbox.since())),
        "command": sandbox.command_line(),
        "answers": answers,
    }
    return about | answer if answers else about


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _table(records: Sequence[Answer]) -> Iterator[str]:
    if records:
        yield f"{'PID':>8}  {'USER':<12} {'SINCE':<20}  COMMAND"
    for record in records:
        command = _words(record["command"])
        yield f"{record['pid']:>8}  {record['user']:<12} {record['since']}  {command}"
        if not record["answers"]:
            yield f"{'':>10}{SILENT}"
            continue
        for instance in record["instances"]:
            yield from _of_instance(instance)
        for mount in record["mounts"]:
            yield f"{'':>10}{_of_mount(mount)}"


def _of_instance(instance: Answer) -> Iterator[str]:
    places = _words(instance["places"]) or "(not mounted)"
    used = f"{instance['used']} of at most {instance['limit']} devices"
    yield f"{'':>10}instance {places}: {used}, user namespace {instance['namespace']}"
    for device in instance["devices"]:
        words = [shown(device["name"]), shown(device["backing_file"] or "(unbound)")]
        words += [f"{key}={device[key]}" for key in ("offset", "sizelimit") if device[key]]
        words += device["flags"]
        words.append(f"openers={device['openers']}")
        words += [shown(part["name"]) for part in device["partitions"]]
        yield f"{'':>12}{' '.join(words)}"


def _of_mount(mount: Answer) -> str:
    words = ["mount", _words(mount["places"]) or "(not mounted)"]
    words += [shown(mount[key]) for key in ("type", "device") if mount[key]]
    if mount["read_only"]:
        words.append("ro")
    words.append(f"by {shown(mount['engine'] or '?')} (process {mount['pid']}")
    memory = f", {mount['memory'] >> 20} MiB)" if mount["memory"] else ")"
    return " ".join(words) + memory


def _words(words: Sequence[str]) -> str:
    return " ".join(map(shown, words))


def _unicode(value: Any) -> Any:
    """Return ``value`` with bytes that are not UTF-8 in its strings replaced by \\xNN."""
    if isinstance(value, str):
        return unicode(value)
    if isinstance(value, list):
        return [_unicode(each) for each in value]
    if isinstance(value, dict):
        return {key: _unicode(each) for key, each in value.items()}
    return value


# --- kill and detach --------------------------------------------------------------------


def _one(pid: int) -> Sandbox:
    """Find a sandbox of this user; for root, of any user. Raises LoopfsError ESRCH."""
    for sandbox in sandboxes.find(everybodys=os.geteuid() == 0):
        if sandbox.pid == pid:
            return sandbox
    raise LoopfsError(errno.ESRCH, f"there is no sandbox {pid} of yours; `loopfs ls` lists them")


def _kill(options: argparse.Namespace) -> int:
    pidfd = _one(options.pid).pidfd
    if pidfd is None:
        sentence = f"the process {options.pid} does not answer as a sandbox does; try again"
        raise LoopfsError(errno.EAGAIN, sentence)
    number = signal.SIGKILL if options.force else signal.SIGTERM
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return 0
    except PermissionError:
        raise LoopfsError(errno.EPERM, f"sandbox {options.pid} belongs to another user") from None
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if poller.poll(1000 * PATIENCE):
        return 0
    remedy = "" if options.force else "; --force ends it at once, and unwritten data is lost"
    raise LoopfsError(errno.EBUSY, f"the sandbox {options.pid} has not ended yet{remedy}")


def _detach(options: argparse.Namespace) -> int:
    sandbox = _one(options.pid)
    name = options.device.removeprefix("/dev/")
    name = f"loop{name}" if name.isdecimal() else name
    answer = sandboxes.ask([sandbox], "detach", name).get(options.pid)
    if answer is None:
        raise LoopfsError(errno.ETIMEDOUT, f"the sandbox {options.pid} {SILENT}")
    if sandboxes.fits(answer, {"errno": int, "error": str}):
        raise LoopfsError(answer["errno"], answer["error"])
    if not answer.get("detached"):
        print(f"loopfs: {shown(name)} is open: it is detached at its last close", file=sys.stderr)
    return 0


_COMMANDS = {
    "ls": (_list, usage.LS),
    "kill": (_kill, usage.KILL),
    "detach": (_detach, usage.DETACH),
}
