"""golden.json is equal to the compiler's output for the system's headers."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from tests.support.skip import need
from tests.uapi import golden
from tests.uapi.golden import NOT_IN_HEADERS, VARIANTS, Variant


@pytest.fixture(scope="module")
def from_headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    tools = shutil.which("gcc") and shutil.which("objcopy")
    need(tools and platform.machine() == "x86_64", "needs gcc for x86-64")
    need(Path("/usr/include/linux/loop.h").exists(), "needs linux-libc-dev")
    return golden.compiled(tmp_path_factory.mktemp("golden"))


@pytest.mark.may_skip(reason="another architecture, or no compiler")
@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_are_the_compilers(from_headers: dict[str, Variant], name: str) -> None:
    assert golden.committed()[name].structures == from_headers[name].structures


@pytest.mark.may_skip(reason="another architecture, or no compiler")
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_the_headers(from_headers: dict[str, Variant], name: str) -> None:
    # Newer headers may know more of them, and then must agree.
    assert golden.committed()[name].numbers == (
        NOT_IN_HEADERS.get(name, {}) | from_headers[name].numbers
    )


@pytest.mark.may_skip(reason="no cross compiler")
@pytest.mark.parametrize("name", golden.CROSS)
def test_a_cross_compiler_makes_the_same(name: str, tmp_path: Path) -> None:
    """The headers and the compiler of the machine itself, which no test runs on."""
    need(shutil.which(f"{golden.CROSS[name]}gcc"), f"no cross compiler for {name}")
    found = golden.cross_compiled(name, tmp_path)
    own, native = golden.committed()[name], golden.committed()["x86_64"]
    for kind in ("numbers", "structures"):
        ours = getattr(native, kind) | getattr(own, kind)
        theirs = getattr(found, kind)
        assert {key: ours[key] for key in theirs} == theirs
        assert theirs.keys() >= getattr(own, kind).keys()
