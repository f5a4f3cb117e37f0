"""The search path of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopfs.sandbox.init import ROOT_PATH, command_environment, root_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin:/bin", "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/sbin:/usr/bin", "/sbin:/usr/bin:/usr/local/sbin:/usr/sbin"),
        (":".join(ROOT_PATH), ":".join(ROOT_PATH)),
        ("/home/me/sbin", "/home/me/sbin:/usr/local/sbin:/usr/sbin:/sbin"),
    ],
)
def test_roots_directories_come_last_and_once(path: str, expected: str) -> None:
    assert root_path(path) == expected


def test_an_empty_entry_still_means_the_working_directory() -> None:
    assert root_path("/bin:").split(":")[:2] == ["/bin", ""]


def test_podman_runs_as_rootless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it is installed; root's, and who has told it already, is left alone."""
    monkeypatch.setattr("loopfs.sandbox.init.ROOT_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("_CONTAINERS_ROOTLESS_UID", raising=False)
    assert "_CONTAINERS_ROOTLESS_UID" not in command_environment(1000, 100)
    tool = tmp_path / "podman"
    tool.touch(0o755)
    made = command_environment(1000, 100)
    assert made["_CONTAINERS_USERNS_CONFIGURED"] == "done"
    assert (made["_CONTAINERS_ROOTLESS_UID"], made["_CONTAINERS_ROOTLESS_GID"]) == ("1000", "100")
    assert "_CONTAINERS_ROOTLESS_UID" not in command_environment(0, 0)
    monkeypatch.setenv("_CONTAINERS_ROOTLESS_UID", "7")
    assert command_environment(1000, 100)["_CONTAINERS_ROOTLESS_UID"] == "7"
