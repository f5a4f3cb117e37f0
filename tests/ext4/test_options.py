"""The options of a mount."""

from __future__ import annotations

import errno

import pytest

from loopfs.ext4.options import Options


@pytest.mark.parametrize("words", ["", "barrier=7,sb=1", "acl,,user_xattr", "data=ordered"])
def test_what_changes_nothing(words: str) -> None:
    assert vars(Options(words)) == vars(Options())


@pytest.mark.parametrize("word", ["strange", "barrier=x", "barrier=", "sb=32768", "commit=x"])
def test_what_is_refused(word: str) -> None:
    with pytest.raises(OSError, match=word) as refusal:
        Options(f"acl,{word}")
    assert refusal.value.errno == errno.EINVAL
