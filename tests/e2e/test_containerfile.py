"""The Containerfile, built by rootless podman without a network.

The image that it begins with has dpkg, apt and what its packages depend on; its packages come from
a repository. Both are made of what is installed on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.containerfile import WAYS, build, make_context, run, works
from tests.support import debian
from tests.support.podman import storage
from tests.support.skip import need
from tests.support.user import CHECKOUT, User

pytestmark = pytest.mark.e2e


def packages() -> list[str]:
    """What the Containerfile has apt install."""
    text = (CHECKOUT / "Containerfile").read_text().replace("\\\n", " ")
    (words,) = re.findall(r"apt-get [^&]*install ([^&]*)&&", text)
    return [word for word in words.split() if not word.startswith("-")]


@pytest.mark.may_skip("podman need not be there, and may not work on a machine")
def test_it_makes_an_image_that_works(user: User, workdir: Path) -> None:
    need(shutil.which("podman") and shutil.which("runc"), "podman and runc are not installed")
    need(debian.DPKG.exists(), "this is no Debian")
    names = packages()
    missing = set(names) - debian.installed().keys()
    need(not missing or "LOOPFS_CI" in os.environ, f"packages are not installed: {missing}")
    repository = workdir / "repository"
    repository.mkdir()
    debian.make_repository(repository, names)
    debian.make_base(workdir / "base.tar", names, repository)
    workdir.chmod(0o755)
    with storage(user) as (podman, place):
        made = podman("import", workdir / "base.tar", "base")
        need(made.returncode == 0, f"podman does not work here: {made.stderr}")
        options = ["--network=none", f"--volume={repository}:{repository}:ro"]
        built = build(podman, make_context(place), "base", *options)
        assert built.returncode == 0, built.stdout + built.stderr
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(partial(run, podman), WAYS))
        by_default = podman("run", "--rm", "--network=none", "loopfs")  # a shell; nothing is typed
        assert (by_default.returncode, by_default.stderr) == (0, "")
    for (way, said), result in zip(WAYS.items(), results, strict=True):
        assert works(result, said), (way, result)
