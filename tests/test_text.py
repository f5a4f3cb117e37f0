"""Conversion of the kernel's bytes to str and back, in any locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.text import shown, to_bytes, to_str, unicode
from tests.support.patience import scaled

ANY = b"caf\xe9 caf\xc3\xa9\n\x1b[31m\x7f\xff\\"
# The last has Python take the locale C as it is: its encoding is ASCII.
LOCALES = [
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@given(st.binary())
def test_there_and_back(data: bytes) -> None:
    assert to_bytes(to_str(data)) == data
    json.dumps(unicode(to_str(data))).encode("ascii")
    line = shown(to_str(data))
    line.encode()
    assert line.isprintable()


def test_what_a_person_sees() -> None:
    assert shown(to_str(ANY)) == "caf\\xe9 café\\n\\x1b[31m\\x7f\\xff\\"
    assert unicode(to_str(ANY)) == "caf\\xe9 café\n\x1b[31m\x7f\\xff\\"


@pytest.mark.parametrize("locale", LOCALES)
def test_in_a_locale(locale: dict[str, str], tmp_path: Path) -> None:
    script = """
import json, os, sys
from loopfs.text import shown, to_bytes, to_str
name = to_str(bytes.fromhex(sys.argv[1]))
with open(name, "w") as file:
    assert to_bytes(os.readlink(f"/proc/self/fd/{file.fileno()}")).endswith(to_bytes(name))
os.unlink(name)
words = [to_bytes(sys.argv[2]).hex(), to_bytes(name).hex(), shown(name), to_bytes("\\xe9").hex()]
print(json.dumps(words))
"""
    command: list[str | bytes] = [sys.executable, "-c", script, ANY.hex(), ANY]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **locale}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, timeout=scaled(30), check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [ANY.hex(), ANY.hex(), shown(to_str(ANY)), "c3a9"]
