"""Builds the Containerfile by rootless podman and tries what it makes:
python3 -m tests.containerfile [BASE]

BASE is an image that podman can pull, or a tarball; without it mmdebstrap makes one. It takes two
minutes, and Debian's archive; as root LOOPFS_TEST_USER is who builds. CI builds it from what is
installed on its machine: tests/e2e/test_containerfile.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.podman import JOB, Podman, storage
from tests.support.user import CHECKOUT, Result, find_user

WITHIN = 900.0  # seconds
ONE_ID = "there is only your own user and group"
# Options, and what standard error has to say.
WAYS = {
    "": "",
    "--user=builder": "",
    "--user=builder --cap-drop=all --cap-add=SETUID,SETGID": "",
    "--user=builder --cap-drop=all": ONE_ID,
    "--user=builder --security-opt=no-new-privileges --read-only --tmpfs=/work": ONE_ID,
}


def main(arguments: list[str]) -> int:
    """Run the test and return the exit status: 0 if all ways work."""
    user = find_user()
    if user is None or not shutil.which("podman"):
        print("There is no ordinary user for it, or no podman.", file=sys.stderr)
        return 2
    with storage(user) as (podman, place):
        base = arguments[0] if arguments else ""
        if not base:
            base = str(place / "base.tar")
            command = ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", base]
            subprocess.run(command, check=True, timeout=WITHIN)
        if Path(base).exists():
            _check(podman("import", base, "base", timeout=WITHIN))
            base = "base"
        _check(build(podman, make_context(place), base, "--network=host"))
        failed = [way for way in WAYS if not _try(podman, way)]
        return 1 if failed else 0


def make_context(place: Path) -> Path:
    """Copy the files that the Containerfile takes from the checkout, which the user's podman may be
    unable to read."""
    context = place / "context"
    context.mkdir()
    for name in ("Containerfile", "scripts", "src"):
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, context / name)
    subprocess.run(["chmod", "-R", "a+rX", place], check=True)
    return context


def build(podman: Podman, context: Path, base: str, *options: str) -> Result:
    """Make the image "loopfs"."""
    words = ["build", "--layers=false", f"--build-arg=BASE={base}", *options]
    return podman(*words, "-t", "loopfs", context, timeout=WITHIN)


def run(podman: Podman, way: str) -> Result:
    """Run the example in a container of the image, as the user that ``way`` names."""
    options = ["run", "--rm", "--network=none", "--device=/dev/fuse", *way.split(), "loopfs"]
    return podman(*options, "loopfs", "run", "--", "sh", "-c", JOB)


def works(result: Result, said: str) -> bool:
    """Whether the example succeeded; standard error must contain ``said``, or be empty."""
    done = (result.returncode, result.stdout) == (0, "text\n")
    return done and (said in result.stderr if said else not result.stderr)


def _check(result: Result) -> None:
    if result.returncode:
        sys.exit(result.stdout + result.stderr)


def _try(podman: Podman, way: str) -> bool:
    result = run(podman, way)
    is_well = works(result, WAYS[way])
    print("works" if is_well else f"FAILS ({result})", way or "by default", flush=True)
    return is_well


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
