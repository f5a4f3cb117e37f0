"""The settings of a sandbox, from the configuration file and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopfs import settings
from loopfs.settings import Settings, SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, "/x/loopfs/config.toml"),
        ({"XDG_CONFIG_HOME": "", "HOME": "/h"}, "/h/.config/loopfs/config.toml"),
    ],
)
def test_where_the_file_is(environment: dict[str, str], path: str) -> None:
    assert settings.default_path(environment) == path


def test_a_file(file: Path) -> None:
    file.write_text('[engines]\next4 = "fuse2fs"\nxfs = "deny"\n')
    chosen = settings.read(str(file), required=True)
    assert chosen == Settings(engines={"ext4": "fuse2fs", "xfs": "deny"})


def test_no_file(file: Path) -> None:
    assert settings.read(str(file), required=False) == Settings()
    with pytest.raises(SettingsError, match=f"{file} cannot be read: No such file"):
        settings.read(str(file), required=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("engines = [", "is not TOML"),
        ('engine = "x"', "'engine', which is not a table of this file"),
        ('engines = "ext4"', "must name an engine for each filesystem type"),
        ("[engines]\next4 = 1", "must name an engine for each filesystem type"),
        ('[engines]\next4 = "x"', "config.toml: there is no engine 'x'"),
        ('[engines]\next4 = "fuseiso"', "does not mount ext4"),
        ("devices = 3", "numbers from 0 to 1048576"),
        ("[devices]\nmax = -1", "numbers from 0 to 1048576"),
        ("[devices]\nmax = 1048577", "numbers from 0 to 1048576"),
        ("[devices]\nmax = true", "numbers from 0 to 1048576"),
        ("[devices]\nmin = 1", "can have max and reserve, not 'min'"),
    ],
)
def test_a_file_that_means_nothing(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        settings.read(str(file), required=False)


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        settings.read(str(file), required=False)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        settings.read(str(tmp_path), required=False)


def test_the_command_line_takes_precedence_over_the_file(file: Path) -> None:
    file.write_text('[engines]\next4 = "fuse2fs"\nxfs = "deny"\n')
    chosen = settings.of_user(str(file), {"ext4": "deny"}, bare=True)
    assert chosen == Settings(True, {"ext4": "deny", "xfs": "deny"})


def test_the_numbers_of_devices(file: Path) -> None:
    file.write_text("[devices]\nmax = 5\nreserve = 2\n")
    assert settings.of_user(str(file), {}, bare=False).devices() == (5, 2)
    assert settings.of_user(str(file), {}, bare=False, max_devices=0).devices() == (0, 2)
    assert settings.of_user(str(file), {}, bare=False, reserve_devices=0).devices() == (5, 0)
    assert Settings().devices() == (1 << 20, None)


@pytest.mark.parametrize("word", ["", "-1", "1048576", "x", "1.5", "\u0661"])
def test_a_number_that_is_none(word: str) -> None:
    with pytest.raises(SettingsError, match="from 0 to 1048575"):
        settings.number("--number-from", word, settings.MINORMASK)


@pytest.mark.parametrize("word", ["", "ext4", "ext4=", "=fuse2fs"])
def test_a_choice_that_is_none(word: str) -> None:
    with pytest.raises(SettingsError, match="TYPE=ENGINE"):
        settings.engine_choice(word)
