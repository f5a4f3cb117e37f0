"""udf of loopfs and of a kernel show the same: errnos of mounts, statfs, every entry.

``python -m tests.udf.test_as_kernel`` makes the images by mkudffs and the kernel's own driver, in
user-mode Linux, and the golden file.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from loopfs.udf.filesystem import Udf
from loopfs.udf.options import Options
from loopfs.udf.volume import Volume
from tests.fat.images import Memory
from tests.support import tree_dump, tree_walk, uml
from tests.support.skip import need
from tests.udf import populate

HERE = Path(__file__).parent / "golden"
GOLDEN = HERE / "as_kernel.txt"
MODULES = (
    *("../drivers/block/loop", "../drivers/cdrom/cdrom", "../lib/crc-itu-t", "udf/udf"),
    *("nls/nls_utf8", "nls/nls_iso8859-1", "nls/nls_koi8-r"),
)
MIB = 1 << 20
# Size in MiB and arguments of mkudffs.
MADE = {
    "hd-2.01": (8, "--media-type=hd -b 512 -r 0x0201"),
    "hd-1.02": (8, "--media-type=hd -b 512 -r 0x0102"),
    "2048": (8, "--media-type=dvdram -b 2048 -r 0x0150"),
    "4096": (8, "--media-type=hd -b 4096 -r 0x0201"),
    "sparable": (24, "--media-type=cdrw -b 2048 -r 0x0150"),
    "virtual": (8, "--media-type=cdr -b 2048 -r 0x0200"),
}
VAT_END = 300  # blocks
OPTIONS = [
    *("", "novrs", "unhide,undelete", "utf8", "iocharset=koi8-r", "iocharset=utf8"),
    *("uid=7", "gid=8", "uid=forget,gid=ignore", "umask=027", "mode=0640,dmode=0511"),
    *("mode=0777,umask=022", "bs=512", "bs=2048", "bs=4096", "bs=1000", "session=0", "anchor=256"),
    *("anchor=300", "lastblock=4095", "nostrict,shortad", "longad,noadinicb", "partition=3"),
    *("rootdir=9", "iocharset=nonsense", "nonsense", "uid=", "uid=-1", "umask=8", "fileset=x"),
]


def jobs() -> list[tuple[str, str]]:
    """Image and options of each mount."""
    names = sorted(path.name.removesuffix(".xz") for path in HERE.glob("*.xz"))
    first = names[0] if names else ""
    return [
        (name, words) for name in names for words in (OPTIONS if name == first else OPTIONS[:4])
    ]


def mounted(image: bytearray, options: str = "") -> Udf:
    """A volume in memory, which is not copied."""
    tree = Udf(Volume(Memory(image), Options(options)))
    tree.known(tree.root())
    return tree


@cache
def image_of(name: str) -> bytearray:
    """One of the golden images, which is everybody's."""
    return bytearray(lzma.decompress((HERE / f"{name}.xz").read_bytes()))


def ours(image: bytearray, options: str) -> object:
    try:
        return tree_walk.dump(mounted(image, options))
    except OSError as problem:
        return problem.errno


def by_kernel(wanted: list[tuple[Path, str]], directory: Path, before: str = "") -> list[object]:
    """What user-mode Linux shows of images with options."""
    jobs_file, results = directory / "jobs.json", directory / "results.json"
    jobs_file.write_text(json.dumps([[str(image), options] for image, options in wanted]))
    command = ["python3", tree_dump.__file__, jobs_file, results, "udf"]
    script = f"mount -t devtmpfs dev /dev\n{before}\n{shlex.join(map(str, command))}"
    console = uml.boot(script, MODULES, directory)
    if not results.exists():
        raise RuntimeError(console[-3000:])
    found = json.loads(results.read_text())
    assert isinstance(found, list)
    return found


def make(directory: Path) -> list[Path]:
    """The images, with files where the kernel can write them."""
    images = []
    for name, (size, words) in MADE.items():
        image = directory / name
        with image.open("wb") as file:
            file.truncate(size * MIB)
        fixed = ["--uuid=0123456789abcdef", "--startblock=0"]
        subprocess.run(["mkudffs", *words.split(), *fixed, str(image)], check=True, timeout=60)
        images.append(image)
        if name == "virtual":  # its table is in the last block that is written
            os.truncate(image, VAT_END * 2048)
    lines = [f'D="$D $(losetup -f --show {image})"' for image in images]
    fill = f"python3 {populate.__file__} $D; losetup -D"
    by_kernel([], directory, "\n".join([*lines, fill]))
    return images


def bridge(directory: Path) -> Path | None:
    """An image that is ISO 9660, too."""
    if not shutil.which("genisoimage"):
        return None
    tree = directory / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/file").write_text("far down\n")
    (tree / "Ünï").write_bytes(bytes(5000))
    image = directory / "bridge"
    command = ["genisoimage", "-quiet", "-input-charset", "utf-8", "-udf", "-R", "-o"]
    subprocess.run([*command, str(image), str(tree)], check=True, timeout=20)
    return image


def shortened(result: object) -> str:
    """An errno, or what two results that are the same have in common."""
    if not isinstance(result, dict):
        return str(result)
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def test_as_was_recorded() -> None:
    """What differs is shown by the next test."""
    rows = (line.split(" ") for line in GOLDEN.read_text().splitlines())
    kernel = {(name, options): result for name, result, options in rows}
    own = {(name, words): shortened(ours(image_of(name), words)) for name, words in jobs()}
    assert own == kernel


def differences(kernel: object, own: object) -> list[str]:
    """Lines of what is not the same."""
    if not isinstance(kernel, dict) or not isinstance(own, dict):
        return [] if kernel == own else [f"{str(kernel)[:200]} != {str(own)[:200]}"]
    out = [] if kernel["statfs"] == own["statfs"] else [f"{kernel['statfs']} != {own['statfs']}"]
    theirs, mine = ({row[0]: row for row in each["entries"]} for each in (kernel, own))
    for path in sorted({*theirs, *mine}):
        if theirs.get(path) != mine.get(path):
            out.append(f"{theirs.get(path)} != {mine.get(path)}")
    return out


@pytest.mark.skipif("LOOPFS_ALL" not in os.environ, reason="takes 15 seconds")
@pytest.mark.may_skip(reason="no package user-mode-linux or udftools")
def test_as_a_kernel(workdir: Path) -> None:
    need(not (why := uml.missing("udf/udf")), why)
    need(shutil.which("mkudffs"), "needs mkudffs")
    assert compared(workdir) == []


def compared(directory: Path) -> list[str]:
    """The differences of new images."""
    images = [*make(directory), *filter(None, (bridge(directory),))]
    wanted = [(image, words) for image in images for words in OPTIONS]
    out = []
    for (image, words), kernel in zip(wanted, by_kernel(wanted, directory), strict=True):
        own = json.loads(json.dumps(ours(bytearray(image.read_bytes()), words)))
        out += [f"{image.name} {words}: {line}" for line in differences(kernel, own)]
    return out


def write() -> None:
    """The golden images and file."""
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for image in (*make(directory), *filter(None, (bridge(directory),))):
            packed = lzma.compress(image.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (HERE / f"{image.name}.xz").write_bytes(packed)
        found = by_kernel([(directory / name, words) for name, words in jobs()], directory)
    lines = [
        f"{name} {shortened(result)} {options}\n"
        for (name, options), result in zip(jobs(), found, strict=True)
    ]
    GOLDEN.write_text("".join(lines))


if __name__ == "__main__":
    if sys.argv[1:] == ["compare"]:
        with tempfile.TemporaryDirectory() as place:
            print(*compared(Path(place)), sep="\n")
    else:
        write()
