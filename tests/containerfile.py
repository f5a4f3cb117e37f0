"""Builds the Containerfile by rootless podman and tries what it makes:
python3 -m tests.containerfile [BASE]

BASE is an image that podman can pull, or a tarball; without it mmdebstrap makes one. It takes two
minutes, and Debian's archive; as root LOOPFS_TEST_USER is who builds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.podman import JOB, Podman, storage
from tests.support.user import CHECKOUT, find_user

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
    """Returns an exit status: 0 when all ways work."""
    user = find_user()
    if user is None or not shutil.which("podman"):
        print("There is no ordinary user for it, or no podman.", file=sys.stderr)
        return 2
    with storage(user) as (podman, place):
        # A user's podman need not be able to read the checkout.
        context = place / "context"
        context.mkdir()
        for name in ("Containerfile", "scripts", "src"):
            copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
            copy(CHECKOUT / name, context / name)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        base = arguments[0] if arguments else ""
        if not base:
            base = str(place / "base.tar")
            command = ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", base]
            subprocess.run(command, check=True, timeout=WITHIN)
        if Path(base).exists():
            _do(podman, "import", base, "base")
            base = "base"
        _do(podman, "build", "--network=host", f"--build-arg=BASE={base}", "-t", "loopfs", context)
        failed = [way for way, said in WAYS.items() if not _try(podman, way, said)]
        return 1 if failed else 0


def _do(podman: Podman, *words: str | Path) -> None:
    done = podman(*words, timeout=WITHIN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def _try(podman: Podman, way: str, said: str) -> bool:
    """The job works in a container of the image, by the user whom ``way`` names."""
    options = ["run", "--rm", "--network=none", "--device=/dev/fuse", *way.split(), "loopfs"]
    result = podman(*options, "loopfs", "run", "--", "sh", "-c", JOB)
    works = (result.returncode, result.stdout) == (0, "text\n")
    works = works and (said in result.stderr if said else not result.stderr)
    print("works" if works else f"FAILS ({result})", way or "by default", flush=True)
    return works


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
