"""The seccomp profile with which containers are supervised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopfs.agent.profile import ABSENT, NOTIFIED, NOTIFY, with_listener
from loopfs.agent.state import METADATA
from loopfs.cli import main


def test_the_base_but_for_what_is_carried_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["seccomp-profile", "--agent", f"{tmp_path}/x/../agent"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["listenerPath"], made["listenerMetadata"]) == (f"{tmp_path}/agent", METADATA)
    actions: dict[str, set[str]] = {}
    for rule in made["syscalls"]:
        for name in rule["names"]:
            actions.setdefault(name, set()).add(rule["action"])
    assert {name for name in actions if NOTIFY in actions[name]} == set(NOTIFIED)
    assert all(actions[name] == {NOTIFY} for name in NOTIFIED)
    assert all(actions[name] == {"SCMP_ACT_ERRNO"} for name in ABSENT)
    assert actions["read"] == {"SCMP_ACT_ALLOW"}
    assert made["defaultAction"] == "SCMP_ACT_ERRNO"
    # What a capability allows it still does: podman and docker know the conditions.
    assert {"includes": {"caps": ["CAP_SYS_CHROOT"]}, "names": ["chroot"]}.items() <= next(
        rule for rule in made["syscalls"] if rule["names"] == ["chroot"]
    ).items()


def test_a_base_of_ones_own() -> None:
    base = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount", "reboot"], "action": "SCMP_ACT_ERRNO"}],
    }
    made = with_listener(base, "/agent")
    assert made["syscalls"][0] == {"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}
    assert with_listener(made, "/agent") == made | {"syscalls": made["syscalls"]}


@pytest.mark.parametrize("text", ["[]", "{}", '{"syscalls": [1]}'])
def test_what_is_no_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    assert main(["seccomp-profile", "--base", str(file), "--agent", "/agent"]) == 2
    assert f"{file} is not a seccomp profile" in capsys.readouterr().err
