"""overlayfs in a sandbox: layers in images, and directories of a lower layer that are removed."""

from __future__ import annotations

import pytest

from tests.support.sandbox import Lines

LAYERS = """
mkdir -p lower/dir/sub upper work merged; echo file >lower/dir/file
"""
# The directory that hides another is opaque: nothing of the lower layer is in it.
WORK = """
rm -r merged/dir; mkdir merged/dir; ls -A merged/dir; mv merged/dir merged/other
echo new >merged/other/new; ls merged merged/other
"""
SEEN = ["merged:", "other", "", "merged/other:", "new"]


pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("image")]


@pytest.mark.parametrize("place", ["image", "directory"])
def test_directories_are_removed(inside: Lines, place: str) -> None:
    """With the layers on an image, and in a directory of the host."""
    mounted = "mkdir m; mount -o loop disk.img m; cd m\n" if place == "image" else ""
    mount = "mount -t overlay any -o lowerdir=lower,upperdir=upper,workdir=work merged"
    lines = inside(f"{mounted}{LAYERS}{mount}\n{WORK}findmnt -rno SOURCE,FSTYPE merged")
    assert lines == [*SEEN, "any overlay"]


@pytest.mark.usefixtures("places")
def test_new_mount_api(calls: Lines) -> None:
    """The context of fsopen(2) has userxattr from the start."""
    program = f"""
import subprocess
subprocess.run(["sh", "-ec", {LAYERS!r}], check=True)
fd = opened("overlay", source="any", lowerdir="lower", upperdir="upper", workdir="work")
config(fd, CREATE)
mount = call("fsmount", fd, 0, 0)
show("move_mount", mount, "", HERE, "merged", 4)
subprocess.run(["sh", "-ec", {WORK!r}], check=True)
"""
    assert calls(program) == ["0", "0", *SEEN]
