"""The names of the files, where man(1) and the shells look for them below share/."""

from __future__ import annotations

from collections.abc import Mapping

from manual import completions, pages


def made() -> Mapping[str, str]:
    """The text of each file, by its path below share/."""
    return {
        "man/man1/loopfs.1": pages.loopfs(),
        "man/man1/loopfs-run.1": pages.run(),
        "man/man5/loopfs.toml.5": pages.configuration(),
        "bash-completion/completions/loopfs": completions.bash(),
        "zsh/site-functions/_loopfs": completions.zsh(),
        "fish/vendor_completions.d/loopfs.fish": completions.fish(),
    }
