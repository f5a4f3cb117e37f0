"""Parameters of fsopen(2), fspick(2) and mount(2): fs/fs_context.c, fs_parser.c, loopfs.c."""

from __future__ import annotations

import errno

import pytest

from loopfs.driver.fs_context import (
    FsContext,
    LoopParameters,
    Phase,
    ShownParameters,
    parse_uint,
)
from loopfs.driver.ucounts import MAX_DEVICES
from loopfs.errors import DriverError
from loopfs.uapi.mount import MS_RDONLY, MS_SYNCHRONOUS


def new() -> FsContext:
    return FsContext("loop", LoopParameters)


def limit(context: FsContext) -> int | None:
    assert isinstance(context.parameters, LoopParameters)
    return context.parameters.max


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1", 1),
        ("+7", 7),
        ("010", 8),
        ("0x1F", 31),
        ("5\n", 5),
        ("4294967295", 2**32 - 1),
        ("4294967296", None),
        ("", None),
        ("+", None),
        ("-1", None),
        ("0x", None),
        ("0o7", None),
        ("08", None),
        ("1_0", None),
        ("1 ", None),
        ("٣", None),
    ],
)
def test_numbers(text: str, number: int | None) -> None:
    assert parse_uint(text) == number


def test_nothing_given() -> None:
    context = new()
    context.set_all("")
    assert (limit(context), context.source, context.sb_flags) == (None, None, 0)


def test_the_data_of_mount() -> None:
    context = new()
    context.set_all("ro,,max=3,sync,=x,async,max=0x10")
    assert limit(context) == 16
    assert context.sb_flags == MS_RDONLY
    assert context.sb_flags_mask == MS_RDONLY | MS_SYNCHRONOUS


@pytest.mark.parametrize(
    "option",
    ["max", "max=", "max=x", "max=-1", f"max={MAX_DEVICES + 1}", "maximum=1", "rootmode=0"],
)
def test_refused_options(option: str) -> None:
    context = new()
    with pytest.raises(OSError, match="loop: ") as refusal:
        context.set_all(option)
    assert refusal.value.errno == errno.EINVAL
    assert limit(context) is None


def test_all_devices_there_can_be() -> None:
    context = new()
    context.set_all(f"max={MAX_DEVICES}")
    assert limit(context) == MAX_DEVICES


def test_one_source() -> None:
    context = new()
    with pytest.raises(OSError, match="Non-string source"):
        context.set("source", None)
    context.set("source", "none")
    with pytest.raises(OSError, match="Multiple sources"):
        context.set("source", "none")
    assert context.source == "none"


def test_the_phases() -> None:
    context = new()
    context.check_phase(Phase.CREATE_PARAMS)
    with pytest.raises(DriverError) as refusal:
        context.check_phase(Phase.RECONF_PARAMS)
    assert refusal.value.errno == errno.EBUSY
    context.fail()
    for phase in (Phase.CREATE_PARAMS, Phase.RECONF_PARAMS):
        with pytest.raises(DriverError):
            context.check_phase(phase)
    with pytest.raises(DriverError) as refusal:
        context.set("max", "1")
    assert refusal.value.errno == errno.EBUSY


def test_a_reconfigured_context_begins_anew() -> None:
    context = FsContext("loop", LoopParameters, Phase.RECONF_PARAMS)
    context.set_all("max=1,ro")
    context.clean()
    context.check_phase(Phase.RECONF_PARAMS)
    assert (limit(context), context.sb_flags_mask) == (None, 0)


def test_what_is_shown_can_be_given_back() -> None:
    shown = frozenset({"user_id=0", "allow_other"})
    context = FsContext("loop", lambda: LoopParameters(ShownParameters(shown)))
    context.set_all("user_id=0,allow_other,max=2")
    assert limit(context) == 2
    for option in ("user_id=1", "allow_other=1", "user_id", "other"):
        with pytest.raises(OSError, match="No changes allowed"):
            context.set_all(option)
