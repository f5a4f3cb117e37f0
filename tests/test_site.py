"""The documentation: the site builds without a warning, and links are valid."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.patience import scaled

CHECKOUT = Path(__file__).parents[1]


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """--strict: links to pages and their sections, pages that no menu has, docstrings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=scaled(100), check=False
    )
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "index.html").read_text()
    assert (tmp_path / "terminal.svg").exists()
    assert 'src="terminal.svg"' in first
    api = (tmp_path / "api.html").read_text()
    assert 'id="loopfs.Sandbox.attach"' in api
    assert "Bind the next free loop device" in api


def test_the_license_of_each_package_is_stated() -> None:
    page = (CHECKOUT / "docs/licenses.md").read_text()
    table = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    extras = table["project"]["optional-dependencies"].values()
    wanted = {re.split(r"[\[<>=]", word)[0] for extra in extras for word in extra} - {"loopfs"}
    assert table["project"]["dependencies"] == []
    stated = {word.strip("| ") for line in page.splitlines() for word in re.split("[,|]", line)}
    assert wanted <= stated
