"""Which options of overlayfs get userxattr."""

from __future__ import annotations

import pytest

from loopfs.intercept.overlay import with_userxattr


@pytest.mark.parametrize(
    "data",
    [
        "lowerdir=a,upperdir=b,workdir=c",
        "upperdir=b,workdir=c,lowerdir=a\\,userxattr",
        "lowerdir=a\\\\,upperdir=b\\\\\\,metacopy=on,workdir=c",
    ],
)
def test_it_is_added(data: str) -> None:
    assert with_userxattr(data) == f"{data},userxattr"


@pytest.mark.parametrize(
    "data",
    [
        "",
        "lowerdir=a:b",
        "lowerdir=a\\,upperdir=b",
        "lowerdir=a,upperdir=b,workdir=c,userxattr",
        "lowerdir=a,upperdir=b,workdir=c,redirect_dir=on",
        "metacopy=on,lowerdir=a,upperdir=b,workdir=c",
        "upperdir=" + "b" * 4090,
    ],
)
def test_it_is_not(data: str) -> None:
    assert with_userxattr(data) is None
