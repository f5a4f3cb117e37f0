"""Where the command looks for programs."""

from __future__ import annotations

import pytest

from loopfs.sandbox.init import ROOT_PATH, root_path


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
