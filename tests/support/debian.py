"""Debian packages without a network, made from those installed here (deb(5), dpkg(1)).

With a base image and a repository of them a Containerfile is built unchanged: apt-get update and
apt-get install work as with Debian's archive. What the packages depend on is in the image already.
Their files are those on the machine, without documentation, manual pages and translations.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

DPKG = Path("/var/lib/dpkg")
PARTS = ("preinst", "postinst", "prerm", "postrm", "conffiles", "triggers", "shlibs")
LEFT_OUT = re.compile(
    r"/usr/share/(man|locale|info|lintian|bash-completion|zoneinfo)/.+"
    r"|/usr/share/doc/[^/]+/(?!copyright).+|/var/cache/.+"
)
MERGED = ("bin", "sbin", "lib", "lib64")  # links to directories in /usr
ALTERNATIVES = ("usr/bin/awk", "etc/alternatives/awk")  # of base-files
OF_STATUS = ("Status", "Conffiles", "Config-Version")  # fields that only the status has
WITHIN = 60.0  # seconds

Control = dict[str, str]


def installed() -> dict[str, Control]:
    """Return the fields of each installed package, by its name."""
    found: dict[str, Control] = {}
    for stanza in (DPKG / "status").read_text().split("\n\n"):
        control = dict(re.findall(r"^([\w-]+): ?(.*(?:\n .*)*)", stanza, re.M))
        if control.get("Status", "").endswith(" installed"):
            found.setdefault(control["Package"], control)
    return found


def closure(names: Iterable[str], packages: dict[str, Control]) -> list[str]:
    """Return packages and their installed dependencies."""
    provided: dict[str, list[str]] = {}
    for name, control in packages.items():
        for each in _split(control.get("Provides", ""), ","):
            provided.setdefault(each.split()[0], []).append(name)
    wanted, found = list(names), dict[str, None]()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = None
        for field in ("Pre-Depends", "Depends"):
            for alternatives in _split(packages[name].get(field, ""), ","):
                options = [re.split(r"[ :(]", each)[0] for each in _split(alternatives, "|")]
                there = [each for each in options if each in packages]
                there += [each for option in options for each in provided.get(option, ())]
                wanted += there[:1]
    return list(found)


def _split(text: str, at: str) -> list[str]:
    return [word.strip() for word in text.split(at) if word.strip()]


# --- a repository ----------------------------------------------------------------


def make_repository(directory: Path, names: Iterable[str]) -> None:
    """Make a repository of the given packages, as far as they are installed."""
    packages = installed()
    index = []
    for name in names:
        if name not in packages:
            continue
        control = {key: value for key, value in packages[name].items() if key not in OF_STATUS}
        path = directory / f"{name}.deb"
        _pack(control, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        control |= {"Filename": path.name, "Size": str(path.stat().st_size), "SHA256": digest}
        index.append(_text(control))
    (directory / "Packages").write_text("\n".join(index))


def _text(control: Control) -> str:
    return "".join(f"{name}: {value}\n" for name, value in control.items())


def _pack(control: Control, path: Path) -> None:
    parts = io.BytesIO()
    with tarfile.open(fileobj=parts, mode="w") as tar:
        _add(tar, "./control", _text(control))
        for kind in PARTS:
            if (file := _info(control, kind)).exists():
                tar.add(file, f"./{kind}")
    archive = subprocess.run(
        ["tar", "-C", "/", "--no-recursion", "--null", "-T", "-", "-c"],
        input="\0".join(_files(control)).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=WITHIN,
    )
    members = {"debian-binary": b"2.0\n", "control.tar": parts.getvalue()}
    with path.open("wb") as deb:
        deb.write(b"!<arch>\n")
        for name, content in (members | {"data.tar": archive.stdout}).items():
            deb.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            deb.write(content + b"\n" * (len(content) % 2))


def _add(tar: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def _info(control: Control, kind: str) -> Path:
    name = control["Package"]
    with_architecture = DPKG / f"info/{name}:{control['Architecture']}.{kind}"
    return with_architecture if with_architecture.exists() else DPKG / f"info/{name}.{kind}"


def _files(control: Control) -> list[str]:
    """Return the existing files and directories of a package."""
    lines = _info(control, "list").read_text().splitlines()
    return [
        f".{line}"
        for line in lines
        if line[1:] not in (".", *MERGED) and not LEFT_OUT.fullmatch(line) and os.path.lexists(line)
    ]


# --- an image ---------------------------------------------------------------------


def _merged(path: str) -> str:
    """Return a path with the links of the root directory resolved."""
    first, _, rest = path.removeprefix("./").partition("/")
    return f"usr/{first}/{rest}" if first in MERGED else f"{first}/{rest}"


def make_base(path: Path, names: Iterable[str], repository: Path) -> None:
    """Make a root directory with dpkg and apt, as a tarball: all essential packages and the
    dependencies of some packages, without these packages.

    Args:
        path: the tarball.
        names: the packages that are left out.
        repository: from which apt installs them.
    """
    packages = installed()
    essential = [name for name, control in packages.items() if control.get("Essential") == "yes"]
    left_out = set(names) & packages.keys()
    base = [
        packages[name]
        for name in closure([*left_out, *essential, "apt"], packages)
        if name not in left_out
    ]
    files = dict.fromkeys(f"./{_merged(each)}" for control in base for each in _files(control))
    with tarfile.open(path, "w") as tar:
        for name in MERGED:
            link = tarfile.TarInfo(f"./{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
            if f"./usr/{name}" not in files:
                directory = tarfile.TarInfo(f"./usr/{name}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(directory)
    subprocess.run(
        ["tar", "-C", "/", "--no-recursion", "--null", "-T", "-", "-rf", path],
        input="\0".join([*files, *ALTERNATIVES]).encode(),
        check=True,
        timeout=WITHIN,
    )
    with tarfile.open(path, "a") as tar:
        for name in ("passwd", "group"):
            tar.add(f"/usr/share/base-passwd/{name}.master", f"./etc/{name}")
        _add(tar, "./etc/apt/sources.list", f"deb [trusted=yes] copy:{repository} ./\n")
        _add(tar, "./etc/dpkg/dpkg.cfg.d/unsafe", "force-unsafe-io\n")
        _add(tar, "./var/lib/dpkg/status", "\n".join(map(_text, base)))
        for control in base:
            for kind in ("list", *PARTS):
                if (file := _info(control, kind)).exists():
                    tar.add(file, f".{file}")
