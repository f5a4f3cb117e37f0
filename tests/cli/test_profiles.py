"""The profiles that loopfs prints for containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopfs.cli import main
from loopfs.cli.profiles import CALLS, extended

# As moby's profile has it: conditions on capabilities, kernels and architectures.
BASE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {
            "names": ["bpf", "mount"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
            "excludes": {"arches": ["s390"]},
        },
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
            "includes": {"arches": ["s390"]},
        },
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


def test_a_profile_is_the_base_without_conditions_and_the_calls() -> None:
    made = extended(BASE, "x86_64")
    assert (made["defaultAction"], made["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    ours, *others = made["syscalls"]
    assert ours == {"names": list(CALLS), "action": "SCMP_ACT_ALLOW"}
    assert [rule["names"] for rule in others] == [
        ["read"],
        ["ptrace"],
        ["clone3"],
        ["clone"],
        ["arch_prctl"],
    ]
    assert others[2]["errnoRet"] == 38
    assert others[3]["args"][0]["index"] == 0
    assert not any({"includes", "excludes"} & rule.keys() for rule in others)


def test_each_machine_has_its_own() -> None:
    names = [rule["names"] for rule in extended(BASE, "aarch64")["syscalls"]]
    assert ["arch_prctl"] not in names
    assert "SCMP_ARCH_ARM" in extended(BASE, "aarch64")["architectures"]


def test_podmans_own_is_the_base(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["seccomp-profile"]) == 0
    first = capsys.readouterr().out
    file = tmp_path / "profile.json"
    file.write_text(first)
    assert main(["seccomp-profile", "--base", str(file)]) == 0
    rules = json.loads(capsys.readouterr().out)["syscalls"]
    allowed = [
        name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    ]
    refused = {n for rule in rules if rule["action"] != "SCMP_ACT_ALLOW" for n in rule["names"]}
    assert set(CALLS) <= set(allowed)
    assert not set(CALLS) & refused
    assert {"bpf", "init_module", "kexec_load"} & set(allowed) == set()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"syscalls": 1, "defaultAction": "x"}', None])
def test_what_is_no_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "profile.json"
    if text is not None:
        file.write_text(text)
    assert main(["seccomp-profile", "--base", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"loopfs: {file}")
    assert len(said.err.splitlines()) == 1


def test_apparmor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apparmor-profile"]) == 0
    text = capsys.readouterr().out
    assert "profile loopfs /{usr,usr/local,home/*/.local}/bin/loopfs flags=(unconfined) {" in text
    assert main(["apparmor-profile", "--path", "/opt/venv/bin/loopfs"]) == 0
    assert "profile loopfs /opt/venv/bin/loopfs flags" in capsys.readouterr().out
