"""Names of arbitrary bytes, in each view of a sandbox and in each locale."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.user import Run

pytestmark = pytest.mark.e2e

NAME = b"caf\xe9 caf\xc3\xa9\n\x1b[31m\xff"
SHOWN = r"caf\xe9 café\n\x1b[31m\xff"
# The last has Python take the locale C as it is: its encoding is ASCII.
LOCALES = [
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]

VIEWS = r"""
import ctypes, json, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
name, answers = os.fsencode(sys.argv[1]), {}
run = lambda *words: subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
device = run(b"losetup", b"-f", b"--show", b"-P", name).strip()
number = device.removeprefix(b"/dev/")
for path in (b"%s/loop/backing_file", b"%s/%sp1/uevent"):
    path = b"/sys/block/" + path.replace(b"%s", number)
    with open(path, "rb") as file:
        answers[os.path.basename(path).decode()] = file.read().hex()
answers["losetup"] = run(b"losetup", b"-n", b"-O", b"NAME", b"-j", name).split() == [device]
answers["again"] = subprocess.run([b"losetup", b"--nooverlap", b"-f", b"--show", name],
                                  stdout=subprocess.PIPE).stdout.strip() == device
os.mkdir(b"m" + name)
answers["mount"] = libc.mount(name, b"m" + name, b"loop", 0, b"max=1")
with open("/proc/self/mountinfo", "rb") as file:
    last = file.read().splitlines()[-1]
answers["mountinfo"] = [f.decode("unicode_escape").encode("latin-1").hex() for f in last.split()]
answers["umount"] = libc.umount2(b"m" + name, 0)
libc.mount(name, name, name, 0, name)
context = libc.syscall(430, b"loop", 0)
answers["fsconfig"] = (libc.syscall(431, context, 0, name, None, 0), ctypes.get_errno())
answers["message"] = os.read(context, 4096).hex()
subprocess.run([b"losetup", b"-d", device], check=True)
print(json.dumps(answers))
"""


def disk(workdir: Path, run_as_user: Run) -> None:
    """An image of that name with a partition whose name is no ASCII."""
    script = """
    truncate -s 4M disk.img; printf 'label: gpt\\nname="caf\u00e9\u20ac"\\n' | sfdisk -q disk.img
    """
    done = run_as_user(script, cwd=workdir)
    assert (done.returncode, done.stderr) == (0, "")
    os.rename(workdir / "disk.img", os.path.join(os.fsencode(workdir), NAME))


@pytest.mark.parametrize("locale", LOCALES)
def test_each_view(
    loopfs_run: Run, run_as_user: Run, workdir: Path, locale: dict[str, str]
) -> None:
    disk(workdir, run_as_user)
    command = ["python3", "-c", VIEWS, os.fsdecode(NAME)]
    options = ["--log", "log", "-v"]
    result = loopfs_run(command, *options, env=locale)
    said = result.stderr.splitlines()
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    path = os.path.join(os.fsencode(workdir), NAME)
    assert bytes.fromhex(answers["backing_file"]) == path + b"\n"
    # As the kernel has it: the lower bytes of U+00E9 and U+20AC.
    assert bytes.fromhex(answers["uevent"]).endswith(b"\nPARTNAME=caf\xe9\xac\n")
    assert answers["losetup"], answers
    assert answers["again"], answers
    assert (answers["mount"], answers["umount"]) == (0, 0)
    fields = [bytes.fromhex(field) for field in answers["mountinfo"]]
    assert fields[4] == os.path.join(os.fsencode(workdir), b"m" + NAME)
    assert NAME in fields
    assert answers["fsconfig"] == [-1, 22]
    assert bytes.fromhex(answers["message"]) == b"e loop: Unknown parameter '" + NAME + b"'\n"
    # A record is a line, whatever is in it.
    assert all(line.startswith("loopfs: ") and line.isprintable() for line in said), said
    records = [json.loads(line) for line in (workdir / "log").read_text("ascii").splitlines()]
    unicode = NAME.decode("utf-8", "backslashreplace")
    assert records[0]["argv"][-1] == unicode
    mounts = [record["args"] for record in records if record.get("call") == "mount"]
    assert [mount["source"] for mount in mounts if mount.get("fstype") == "loop"] == [unicode]
    assert unicode in [mount.get("fstype") for mount in mounts]
    keys = [r["args"].get("key") for r in records if r.get("call") == "fsconfig"]
    assert unicode in keys


@pytest.mark.parametrize("locale", LOCALES)
def test_messages_to_a_person(
    loopfs_run: Run, workdir: Path, run_as_user: Run, locale: dict[str, str]
) -> None:
    name = os.fsdecode(NAME)
    ascii_only = "PYTHONUTF8" in locale
    seen = SHOWN.replace("é", "\\xe9") if ascii_only else SHOWN
    result = loopfs_run([name], env=locale)
    assert (result.returncode, result.stderr) == (127, f"loopfs: {seen}: command not found\n")
    for options in (["--config", name], ["--log", f"{name}/log"], ["--engine", name]):
        result = loopfs_run(["true"], *options, env=locale)
        complaint = result.stderr.splitlines()[0]
        assert complaint.startswith("loopfs: ")
        assert seen in complaint
        assert "Traceback" not in result.stderr
