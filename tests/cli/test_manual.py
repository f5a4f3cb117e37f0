"""The manual pages and completions: up to date, valid, and usable in the shells."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from loopfs import settings
from loopfs.cli import usage
from manual.files import made
from tests.support.patience import scaled

SHARE = Path(__file__).parents[2] / "share"
PAGES = sorted(name for name in made() if name.startswith("man/"))
# A stand-in for the command, whose `ls` lists two sandboxes.
LS = r"""printf '%s\n' '  123  me  2026  sh' '  loop8 a.img' '  loop9 b.img' '  mount /mnt' \
    '  77  me  2026  sh' '  loop8 a.img'"""


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _said(argv: list[str], typed: str = "", home: str = "/") -> str:
    done = subprocess.run(
        argv,
        input=typed,
        env={"HOME": home, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_files_are_what_is_made() -> None:
    """If not: python3 -m manual."""
    found = {str(p.relative_to(SHARE)): p.read_text() for p in SHARE.rglob("*") if p.is_file()}
    assert found == dict(made())


def test_the_package_installs_them() -> None:
    installed = [str(file) for file in metadata.files("loopfs") or ()]
    for name in made():
        assert any(file.endswith(f"/share/{name}") for file in installed), name


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.may_skip("man is not installed")
def test_man_renders_a_page_without_warnings(page: str) -> None:
    shown = _said([_tool("man"), "--warnings", "-E", "UTF-8", "-l", str(SHARE / page)])
    assert "SEE ALSO" in shown


@pytest.mark.may_skip("mandoc is not installed")
def test_mandoc_has_no_complaint() -> None:
    assert _said([_tool("mandoc"), "-Tlint", *(str(SHARE / page) for page in PAGES)]) == ""


def test_a_key_of_the_page_is_one_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    values = {"TYPE": 'ext4 = "deny"', "max": "max = 3", "reserve": "reserve = 1"}
    tables = {key.table: "" for key in usage.KEYS}
    for key in usage.KEYS:
        tables[key.table] += f"{values[key.name]}\n"
    text = "".join(f"[{table}]\n{lines}" for table, lines in tables.items())
    assert tomllib.loads(text)
    file.write_text(text)
    chosen = settings.read(str(file), required=True)
    assert (chosen.engines, chosen.max_devices, chosen.reserve_devices) == ({"ext4": "deny"}, 3, 1)


RUN_OPTIONS = {option.name for option in usage.RUN.options}
IN_BASH = [  # what readline makes of a line, and what is offered
    ("loopfs ''", {command.name for command in usage.COMMANDS} | {"--version", "--help"}),
    ("loopfs run --", RUN_OPTIONS - {"-v", "-vv"}),
    ("loopfs run --bare --e", {"--engine"}),
    ("loopfs run --engine vf", {"vfat=vfat", "vfat=deny"}),
    ("loopfs run --engine vfat = v", {"vfat"}),
    ("loopfs run --engine = vfat = ''", {"vfat", "deny"}),
    ("loopfs run --engine = vfat = deny --l", {"--log"}),
    ("loopfs run --number-from 3 loopfs_pid", {"loopfs_pids_here"}),
    ("loopfs run -- loopfs_pid", {"loopfs_pids_here"}),
    ("loopfs run cat /etc/nssw", {"/etc/nsswitch.conf"}),
    ("loopfs run --log = /etc/nssw", {"/etc/nsswitch.conf"}),
    ("loopfs kill ''", {"123", "77", "--force", "--help"}),
    ("loopfs detach 123 ''", {"loop8", "loop9"}),
    ("loopfs detach 77 ''", {"loop8"}),
    ("loopfs seccomp-profile --base /etc/nssw", {"/etc/nsswitch.conf"}),
]


def test_in_bash() -> None:
    script = [
        f"source {SHARE}/bash-completion/completions/loopfs",
        f"loopfs() {{ {LS}; }}",
        "loopfs_pids_here() { :; }",
        'complete_it() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _loopfs',
        "    echo ${COMPREPLY[*]}; }",
        *(f"complete_it {line}" for line, _ in IN_BASH),
    ]
    said = _said([_tool("bash"), "--norc"], "\n".join(script)).split("\n")
    for (line, offered), answer in zip(IN_BASH, said, strict=False):
        assert set(answer.split()) == offered, line


IN_FISH = [
    ("loopfs r", {"run"}),
    ("loopfs run --ba", {"--bare"}),
    ("loopfs run --engine vfat=", {"vfat=vfat", "vfat=deny"}),
    ("loopfs run --number-from 3 loopfs_here", {"loopfs_here"}),
    ("loopfs run -- loopfs_here", {"loopfs_here"}),
    ("loopfs kill ", {"123", "77"}),
    ("loopfs detach 77 ", {"loop8"}),
]


@pytest.mark.may_skip("fish is not installed")
def test_in_fish(tmp_path: Path) -> None:
    script = [
        f"source {SHARE}/fish/vendor_completions.d/loopfs.fish",
        f"function loopfs; {LS}; end",
        "function loopfs_here; end",
        *(f"echo (complete -C '{line}' | string split -f 1 \\t)" for line, _ in IN_FISH),
    ]
    said = _said([_tool("fish"), "--no-config"], "\n".join(script), str(tmp_path))
    answers = [set(line.split()) for line in said.splitlines()]
    assert answers == [offered for _, offered in IN_FISH]


@pytest.mark.may_skip("zsh is not installed")
def test_zsh_can_read_it() -> None:
    assert _said([_tool("zsh"), "-n", str(SHARE / "zsh/site-functions/_loopfs")]) == ""
