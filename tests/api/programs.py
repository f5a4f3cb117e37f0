"""Programs that use the Python API as an ordinary user, for its tests.

Under root the tests' own process is not that user, and a sandbox of root's is another one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import dedent

from tests.support.user import CHECKOUT, Result, User


def python() -> list[str]:
    """Return the interpreter with the tested loopfs."""
    if "LOOPFS_BIN" in os.environ:
        return [str(Path(os.environ["LOOPFS_BIN"]).with_name("python"))]
    path = f"PYTHONPATH={CHECKOUT / 'src'}"
    return ["env", path, "/usr/bin/python3" if os.geteuid() == 0 else sys.executable]


def run_program(user: User, directory: Path, text: str, complaint: str = "") -> Result:
    """Run a program, which must succeed; its standard error begins with ``complaint``."""
    file = directory / "program.py"
    file.write_text(dedent(text))
    result = user.run([*python(), file], cwd=directory, timeout=50)
    ok = result.returncode == 0 and result.stderr.startswith(complaint)
    assert ok and bool(result.stderr) == bool(complaint), f"{result.stdout}\n{result.stderr}"
    return result
