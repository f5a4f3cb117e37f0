"""(k) A Debian system made in an image, and packages installed in one, by their own tools.

The packages are downloaded once, before the measurement, which needs no network.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from .measure import CommandError, Goal, Measure
from .native import cleaned_up, ext4_image
from .runner import TIMED, Stage, elapsed_seconds, timed_script

IMAGE = 1024  # MiB
# With what they depend on, and without what is in minbase, they are some 50 packages. None needs
# another one configured before it is unpacked, which dpkg -i does not see to.
WANTED = "rsync less nano vim-tiny file man-db lsof openssh-client wget bc curl git tree unzip"
# $1 is the image, $2 the mount point, $3 the archive, $4 the suite.
MMDEBSTRAP = """mount -o loop "$1" "$2"
mmdebstrap --quiet --variant=minbase --mode=root "$4" "$2" "deb [trusted=yes] copy:$3 ./"
umount "$2" """
# $1 is the image, $2 the mount point, $3 the tar file of a system, $4 packages.
INSTALL = 'chroot "$2" sh -c "dpkg -i packages/*" >/dev/null'
DPKG = f"""set -e
export DEBIAN_FRONTEND=noninteractive
mount -o loop "$1" "$2"
tar -C "$2" -xf "$3"
cp -r "$4" "$2/packages"
{TIMED.format(body=INSTALL)}
umount "$2"
"""


def measures(stage: Stage) -> list[Measure]:
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    archive, packages = stage.new_directory("archive"), stage.new_directory("packages")
    system = stage.scratch / "system.tar"
    _download(stage, suite, archive, system)
    names = _minbase(system)
    count = 0
    for deb in sorted(archive.glob("*.deb")):
        if _field(deb, "Package") not in names:
            (packages / deb.name).hardlink_to(deb)
            count += 1
    _index(archive, suite)
    points = [stage.new_directory(f"debian-{side}") for side in ("ours", "native")]

    def side(
        run: Callable[[list[str]], str], point: Path, script: list[str], *arguments: Path | str
    ) -> float:
        image = ext4_image(stage, "debian.img", IMAGE)
        try:
            with cleaned_up(stage, image, point):
                return elapsed_seconds(run([*script, *map(str, (image, point, *arguments))]))
        finally:
            image.unlink()

    def row(name: str, limit: float, script: list[str], *arguments: Path | str) -> Measure:
        return Measure(
            name,
            "s",
            lambda: side(stage.run_in_loopfs, points[0], script, *arguments),
            {"native": lambda: side(stage.run_as_root, points[1], script, *arguments)},
            Goal(limit, "native"),
            warmups=0,
        )

    return [
        row("mmdebstrap of minbase", 1.5, timed_script(MMDEBSTRAP), archive, suite),
        row(f"dpkg -i of {count} packages", 4.0, ["sh", "-c", DPKG, "sh"], system, packages),
    ]


def _download(stage: Stage, suite: str, archive: Path, system: Path) -> None:
    """Make a minimal system; keep its packages and the requested ones."""
    fetch = "apt-get install -y -qq --download-only --no-install-recommends"
    stage.run_as_root(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--skip=essential/unlink",
            f'--customize-hook=chroot "$1" {fetch} {WANTED}',
            f'--customize-hook=cp "$1"/var/cache/apt/archives/*.deb {shlex.quote(str(archive))}',
            suite,
            str(system),
        ]
    )


def _minbase(system: Path) -> set[str]:
    """Return the names of the packages of a system."""
    status = _output(["tar", "-xOf", str(system), "./var/lib/dpkg/status"])
    return {line.split()[1] for line in status.splitlines() if line.startswith("Package: ")}


def _index(archive: Path, suite: str) -> None:
    """Write the files that apt needs to install packages from a directory."""
    entries = []
    for deb in sorted(archive.glob("*.deb")):
        data = deb.read_bytes()
        fields = _output(["dpkg-deb", "-f", str(deb)])
        digest = hashlib.sha256(data).hexdigest()
        entries.append(f"{fields}Filename: {deb.name}\nSize: {len(data)}\nSHA256: {digest}\n\n")
    packages = "".join(entries).encode()
    (archive / "Packages").write_bytes(packages)
    digest = hashlib.sha256(packages).hexdigest()
    release = f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {digest} {len(packages)} Packages\n"
    (archive / "Release").write_text(release)


def _field(deb: Path, name: str) -> str:
    return _output(["dpkg-deb", "-f", str(deb), name]).strip()


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise CommandError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
