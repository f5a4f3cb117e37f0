"""isofs of loopfs and of a kernel show the same: errnos of mounts, statfs, every entry.

``python -m tests.iso9660.test_as_kernel`` writes the golden file anew, by user-mode Linux.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from pathlib import Path

import pytest

from tests.iso9660 import images
from tests.iso9660.images import BUILT, TOOLS
from tests.support import tree_dump, tree_walk, uml
from tests.support.skip import need

GOLDEN = Path(__file__).with_name("as_kernel.txt")
NLS = ("nls/nls_utf8", "nls/nls_iso8859-1", "nls/nls_cp932", "nls/nls_koi8-r")
MODULES = ("../drivers/block/loop", "../drivers/cdrom/cdrom", "isofs/isofs", *NLS)

_ANY = ["", "norock", "nojoliet", "norock,nojoliet", "rw", "iocharset=nonsense", "nonsense"]
_NUMBERS = [
    *("mode=0444,dmode=0500", "mode=444", "mode=0x1ff", "mode=0777,dmode=0777,overriderockperm"),
    *("uid=1000,gid=16", "uid=-1", "uid=", "gid=12x", "mode=08", "session=0", "session=98"),
    *("session=99", "sbsector=0", "sbsector=1", "sbsector=016", "block=512", "block=2048"),
    *("block=1000", "uid=4294967295"),
]
_WORDS = [
    *("map=off", "map=o", "map=acorn", "map=a", "map=normal", "map=n", "map=x", "map"),
    *("check=r", "check=strict", "check=x", "hide", "unhide", "showassoc", "hide,showassoc"),
    *("cruft", "nocompress", "conv=binary", "conv=mtext", "unhide=1", "utf8=1", "norock=1"),
]
_CHARSETS = ["utf8", "iocharset=utf8", "iocharset=koi8-r,norock", "iocharset=cp932,norock"]
_CHARSETS += ["utf8,iocharset=koi8-r,norock", "iocharset=koi8-r,utf8,norock", "check=s,norock,utf8"]
OPTIONS = {
    "rock": [*_ANY, *_NUMBERS, *_WORDS],
    "plain": [*_ANY, *_NUMBERS, *_WORDS],
    "both": [*_ANY, *_CHARSETS],
    "joliet": [*_ANY, *_CHARSETS, *_WORDS],
    "empty-root": [*_ANY, "utf8"],
    "joliet-only": _ANY,
    "high-sierra": ["", "rw", "uid=7", "hide", "mode=0400,overriderockperm"],
}
# What no charset is said for has the default of the kernel's configuration: UTF-8, but here.
_JOLIET = ("both", "joliet", "empty-root", "joliet-only")


def jobs() -> list[tuple[str, str]]:
    """Image and options of each mount."""
    return [
        (name, f"iocharset=utf8,{words}".rstrip(",") if name in _JOLIET else words)
        for name in BUILT
        for words in OPTIONS.get(name, ["", "rw", "norock"])
    ]


def ours(image: bytes, options: str) -> object:
    """As the mount of the driver would be, which looks at the image before it looks at "rw"."""
    words = [word for word in options.split(",") if word != "rw"]
    try:
        found = tree_walk.dump(images.mounted(image, ",".join(words)))
    except OSError as problem:
        return problem.errno
    return 13 if len(words) < len(options.split(",")) else found


def by_kernel(wanted: list[tuple[Path, str]], directory: Path) -> list[object]:
    """What user-mode Linux shows of images with options."""
    jobs_file, results = directory / "jobs.json", directory / "results.json"
    jobs_file.write_text(json.dumps([[str(image), options] for image, options in wanted]))
    command = ["python3", tree_dump.__file__, jobs_file, results, "iso9660"]
    script = f"mount -t devtmpfs dev /dev\n{shlex.join(map(str, command))}"
    console = uml.boot(script, MODULES, directory)
    if not results.exists():
        raise RuntimeError(console[-2000:])
    found = json.loads(results.read_text())
    assert isinstance(found, list)
    return found


def built(directory: Path) -> list[tuple[Path, str]]:
    """The jobs, with the images as files."""
    for name, make in BUILT.items():
        (directory / name).write_bytes(make())
    return [(directory / name, options) for name, options in jobs()]


def differences(kernel: object, own: object) -> list[str]:
    """Lines of what is not the same."""
    if not isinstance(kernel, dict) or not isinstance(own, dict):
        return [] if kernel == own else [f"{str(kernel)[:300]} != {str(own)[:300]}"]
    out = [] if kernel["statfs"] == own["statfs"] else [f"{kernel['statfs']} != {own['statfs']}"]
    theirs, mine = ({row[0]: row for row in each["entries"]} for each in (kernel, own))
    for path in sorted({*theirs, *mine}):
        if theirs.get(path) != mine.get(path):
            out.append(f"{theirs.get(path)} != {mine.get(path)}")
    return out


def shortened(result: object) -> str:
    """An errno, or what two results that are the same have in common."""
    if not isinstance(result, dict):
        return str(result)
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def recorded() -> dict[tuple[str, str], str]:
    """By image and options."""
    rows = (line.split(" ") for line in GOLDEN.read_text().splitlines())
    return {(name, options): result for name, result, options in rows}


@pytest.mark.parametrize("name", BUILT)
def test_as_was_recorded(name: str) -> None:
    """What differs is shown by the command of the next test."""
    kernel, image = recorded(), bytes(BUILT[name]())
    wanted = [options for one, options in jobs() if one == name]
    assert {words: shortened(ours(image, words)) for words in wanted} == {
        words: kernel[name, words] for words in wanted
    }


@pytest.mark.skipif("LOOPFS_ALL" not in os.environ, reason="takes 15 seconds")
@pytest.mark.may_skip(reason="no package user-mode-linux")
def test_as_a_kernel(workdir: Path) -> None:
    """``LOOPFS_ALL=1 ./check tests/iso9660``: with images of genisoimage and xorriso, too."""
    need(not (why := uml.missing("isofs/isofs")), why)
    wanted = built(workdir)
    for name in TOOLS:
        if (image := images.by_tool(name, workdir)) is not None:
            wanted += [(image, words) for words in ("utf8", "utf8,norock", "norock,nojoliet")]
    found = by_kernel(wanted, workdir)
    for (image, options), kernel in zip(wanted, found, strict=True):
        own = json.loads(json.dumps(ours(image.read_bytes(), options)))
        assert differences(kernel, own) == [], f"{image.name} {options}"


def write() -> None:
    """The golden file."""
    with tempfile.TemporaryDirectory() as place:
        found = by_kernel(built(Path(place)), Path(place))
    lines = [
        f"{name} {shortened(result)} {options}\n"
        for (name, options), result in zip(jobs(), found, strict=True)
    ]
    GOLDEN.write_text("".join(lines))


if __name__ == "__main__":
    write()
