"""Engines: options, whether they can write, and the policy that chooses them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from loopfs.engines import engine as engine_module
from loopfs.engines.engine import Launch, Mounter, NoEngine
from loopfs.engines.fusermount import parameters
from loopfs.engines.policy import BY_NAME, ENGINES, TYPES, Policy
from loopfs.engines.programs import EXFAT, FUSEISO, NTFS_3G, PROGRAMS, SQUASHFUSE
from loopfs.settings import SettingsError
from loopfs.uapi.mount import MS_RDONLY

MOUNTER = Mounter(0, 0, 0o022, 0)

# --- options -------------------------------------------------------------------


def test_values_are_passed_on() -> None:
    assert NTFS_3G.translated("uid=5,umask=022,utf8,force") == ("uid=5", "umask=022", "force")


@pytest.mark.parametrize("data", ["uid", "uid5", "=5", "uid=5,x", "fmask", "allow_other", "force="])
def test_what_no_table_has_is_refused(data: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        NTFS_3G.translated(data)


@pytest.mark.parametrize("engine", PROGRAMS, ids=lambda engine: engine.name)
def test_every_command_names_device_and_mountpoint(engine: engine_module.Engine) -> None:
    for read_only in (True, False):
        launch = Launch(
            "/dev/loop8", "/mnt/x", min(engine.types), ("this=option",), read_only, MOUNTER
        )
        words = engine.command(launch)
        assert words.index("/dev/loop8") < words.index("/mnt/x")
        options = words[words.index("-o") + 1].split(",")
        assert ("ro" in options, "rw" in options) == (read_only, not read_only)
        assert "this=option" in options


# --- writing -------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "is_read_only"), [(True, True), (False, False)])
def test_what_can_write_does_as_asked(asked: bool, is_read_only: bool) -> None:
    assert EXFAT.read_only("exfat", asked) == is_read_only


def test_a_type_that_is_never_written_is_mounted_for_reading() -> None:
    assert SQUASHFUSE.read_only("squashfs", False)
    assert SQUASHFUSE.read_only("squashfs", True)


def test_other_types_are_refused_so_that_mount_tries_again() -> None:
    with pytest.raises(OSError, match="Permission denied") as problem:
        FUSEISO.read_only("iso9660", False)
    assert problem.value.errno == errno.EACCES
    assert FUSEISO.read_only("iso9660", True)


# --- the policy ----------------------------------------------------------------


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory in which engines are looked for, and which is empty."""
    monkeypatch.setattr(engine_module, "SEARCH_PATH", str(tmp_path))
    return tmp_path


def install(place: Path, program: str) -> None:
    (place / program).write_text("")
    (place / program).chmod(0o755)


def test_without_a_choice_what_is_installed_is_taken(nothing_installed: Path) -> None:
    install(nothing_installed, "ntfs-3g")
    assert Policy({}).choose("ntfs3") is NTFS_3G


@pytest.mark.parametrize("choices", [{}, {"erofs": "erofsfuse"}])
def test_an_engine_that_is_missing(nothing_installed: Path, choices: dict[str, str]) -> None:
    with pytest.raises(NoEngine, match="install the package erofsfuse") as problem:
        Policy(choices).choose("erofs")
    assert problem.value.code == errno.ENODEV


@pytest.mark.parametrize("fstype", ["iso9660", "udf", "ext4", "vfat"])
def test_ours_comes_before_what_is_installed(nothing_installed: Path, fstype: str) -> None:
    for name in ("fuseiso", "fuse2fs"):
        install(nothing_installed, name)
    assert Policy({}).choose(fstype).name == fstype


def test_what_is_installed_can_be_chosen(nothing_installed: Path) -> None:
    install(nothing_installed, "fuseiso")
    assert Policy({"iso9660": "fuseiso"}).choose("iso9660") is FUSEISO


def test_a_type_that_nothing_serves(nothing_installed: Path) -> None:
    with pytest.raises(NoEngine, match="no engine serves it") as problem:
        Policy({}).choose("befs")
    assert problem.value.code == errno.ENODEV


def test_a_type_that_is_denied() -> None:
    with pytest.raises(NoEngine, match="denies") as problem:
        Policy({"ext4": "deny"}).choose("ext4")
    assert problem.value.code == errno.EPERM


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"ext4": "nobody"}, "there is no engine 'nobody'"),
        ({"ext4": "squashfuse"}, "the engine squashfuse does not mount ext4, only squashfs"),
    ],
)
def test_choices_that_mean_nothing(choices: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Policy(choices)


def test_any_type_may_be_denied() -> None:
    Policy({"befs": "deny"})


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(ENGINES)
    assert "ext4" in TYPES


# --- fusermount ------------------------------------------------------------------


def test_what_libfuse_asks_of_fusermount() -> None:
    options = "rw,nosuid,nodev,fsname=/dev/loop8,blkdev,allow_other,blksize=4096,max_read=131072"
    fixed = "fd=4,rootmode=40000,user_id=0,group_id=0"
    assert parameters(options, 4) == ("/dev/loop8", 0, f"{fixed},allow_other,max_read=131072")
    assert parameters("ro", 5) == ("fuse", MS_RDONLY, "fd=5,rootmode=40000,user_id=0,group_id=0")
