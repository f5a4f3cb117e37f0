"""The images whose mounts are compared with those of a kernel's driver."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from loopfs.iso9660.filesystem import Iso9660
from loopfs.iso9660.options import Options
from loopfs.iso9660.volume import Volume
from tests.fat.images import Memory
from tests.iso9660 import build
from tests.iso9660.build import Directory, File, ce, nm, pn, px, sl, tf

REG, DIR, LNK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
MAXIMUM = 20  # seconds


def mounted(image: bytes | bytearray, options: str = "") -> Iso9660:
    """A volume in memory."""
    tree = Iso9660(Volume(Memory(bytearray(image)), Options(options)))
    tree.known(tree.root())
    return tree


def rock_ridge() -> bytearray:
    """Every field, and some that are wrong."""
    date = bytes((70, 1, 1, 0, 0, 1, 0))
    long = File(b"", nm(b".", 2) + nm(b"a" * 200, 1) + nm(b"b" * 40) + nm(b"c" * 20))
    area = File(b"", nm(b"continued", 1) + nm(b"-name") + px(REG | 0o640, 1, 7, 8))
    deep = Directory(
        b"DEEP",
        use=susp_re(),
        children=[
            File(b"A.;1", b"in it", use=px(REG | 0o600) + nm(b"a")),
        ],
        dot=px(DIR | 0o710, 2, 3, 4),
    )
    moved = Directory(b"RR_MOVED", use=px(DIR | 0o555, 2) + nm(b"rr_moved"), children=[deep])
    looped = File(b"", b"")
    looped.data = bytes(2048)
    files = [
        File(b"ASSOC.;1", b"fork", flags=build.ASSOCIATED, use=nm(b"assoc")),
        File(b"BIGDATE.;1", b"", date=bytes((137, 12, 31, 23, 59, 59, 200)), use=nm(b"dates")),
        File(b"BLOCK.;1", use=px(stat.S_IFBLK | 0o660, 1, 0, 6) + pn(7, 300) + nm(b"block")),
        File(b"CE.;1", b"x" * 5000, use=ce(area, 0, len(area.data))),
        File(b"CHAR.;1", use=px(stat.S_IFCHR | 0o666) + pn(0, 0x0105) + nm(b"char")),
        File(b"FIFO.;1", use=px(stat.S_IFIFO | 0o644) + nm(b"fifo")),
        File(b"HIDDEN.;1", b"h", flags=build.HIDDEN, use=nm(b"hidden")),
        File(
            b"LINK.;1",
            use=px(LNK | 0o777)
            + nm(b"link")
            + sl((8, b""), (0, b"usr"), (1, b"l"))
            + sl((0, b"ib"), (2, b""), (4, b""), (0, b"x")),
        ),
        File(
            b"LINK2.;1",
            use=px(LNK | 0o777)
            + nm(b"link2")
            + sl((4, b""), (0, b"up"), flags=1)
            + sl((0, b"more")),
        ),
        File(b"LINK3.;1", use=px(LNK | 0o777) + nm(b"no-target")),
        File(b"LOOP.;1", use=ce(looped, 0, 28)),
        File(b"NAMES.;1", b"n", use=ce(long, 0, len(long.data))),
        File(b"PLAIN.;1", b"plain"),
        File(b"SHORT.;1", b"s", use=nm(b"cut") + b"PX\x02\x01"),
        File(b"SOCK.;1", use=px(stat.S_IFSOCK | 0o755) + nm(b"sock")),
        File(
            b"SUID.;1",
            b"s",
            use=px(REG | 0o4755, 3, 1000, 1001)
            + nm(b"suid")
            + tf(0x0F, date, build.DATE, date, bytes((99, 12, 31, 23, 0, 0, 0xF8))),
        ),
        File(b"WIDE.;1", use=px(stat.S_IFCHR | 0o600) + pn(0x1FFF, 0x12345) + nm(b"wide")),
        File(b"XOVER.;1", b"s", use=nm(b"over") + b"PX\x24\x01" + bytes(4)),
    ]
    placeholder = File(b"DIRHERE.;1", use=lambda: px(DIR | 0o700) + nm(b"dir") + build.cl(deep))
    root = Directory(
        b"\0", children=[*files, placeholder, moved], dot=build.SP + px(DIR | 0o755, 3) + build.ER
    )
    made = build.image(root, areas=[area, long, looped])
    at = looped.extent * build.SECTOR  # a continuation that leads to itself
    made[at : at + 28] = build.susp(
        b"CE", build.both(looped.extent) + build.both(0) + build.both(28)
    )
    return made


def susp_re() -> bytes:
    return px(DIR | 0o710) + nm(b"deep") + build.susp(b"RE", b"")


def plain() -> bytearray:
    """Names, sections, gaps, Acorn's extension, zisofs without Rock Ridge's other fields."""
    acorn = b"ARCHIMEDES\0" + bytes((0x12, 0xFF, 0xFF)) + bytes(5) + b"\1" + bytes(12)
    sub = Directory(b"SUB", children=[File(b"_X.;1", b"!", use=acorn), File(b"Y.;1", b"y")])
    text = bytes(range(256)) * 500 + bytes(40000) + b"end" * 3000
    stored = build.zisofs(text)
    first = File(b"MANY.;1", b"1" * 4096, flags=build.MULTI_EXTENT)
    odd = File(b"ODD.;1", b"1" * 3000, flags=build.MULTI_EXTENT)
    files = [
        File(b"ACORN.;1", b"type", use=acorn),
        File(b"BEYOND.;1", b"", size=9000, extent=1 << 20, fixed=True),
        File(b"EMPTY.;1"),
        File(b"GAP.;1", b"interleaved", gap=1),
        File(b"HIDDEN.;1", b"h", flags=build.HIDDEN),
        File(b"HUGE.;1", b"cruft", size=0x01000005),
        first,
        File(b"MANY.;1", b"2" * 2048, flags=build.MULTI_EXTENT),
        File(b"MANY.;1", b"3" * 10),
        File(b"NODOT;1", b"n"),
        odd,
        File(b"ODD.;1", b"2" * 100),
        File(b"ASSOC.;1", b"fork", flags=build.ASSOCIATED),
        File(b"SAME.;1", b"first"),
        File(b"SAME.;1", b"second"),
        sub,
        File(b"V2.TXT;2", b"two"),
        File(b"ZIPPED.;1", stored, use=build.zf(4, 15, len(text))),
        File(b"ZODD.;1", stored, use=build.zf(4, 15, len(text), b"xx")),
        File(b"ZSHORT.;1", stored[:-50], use=build.zf(4, 15, len(text))),
        File(b"lower.;1", b"l"),
    ]
    return build.image(Directory(b"\0", children=files))


def ucs2(text: str) -> bytes:
    return text.encode("utf-16-be", "surrogatepass")


def both_trees(rock: bool = True) -> bytearray:
    """Joliet beside Rock Ridge, or alone."""
    files = [
        File(ucs2(name), name.encode("utf-8", "replace"))
        for name in (
            "Abc.TXT;1",
            "dots...;1",
            "smile \U0001f600",
            "half \ud83d x",
            "\u4e2d\u6587",
            "\u20ac \xe9",
            "no version",
            "ABC.txt;2",
            "x" * 64,
        )
    ]
    sub = Directory(ucs2("Sub Dir"), children=[File(ucs2("In.;1"), b"in")])
    joliet = Directory(b"\0", children=[*files, sub])
    dot = build.SP + px(DIR | 0o700) + build.ER if rock else b""
    use = px(REG | 0o400) + nm(b"Rock.txt") if rock else b""
    root = Directory(
        b"\0",
        children=[
            File(b"ROCK.TXT;1", b"rock", use=use),
            File(b"TWO.TXT;1", b"two", use=use and nm(b"two")),
        ],
        dot=dot,
    )
    return build.image(root, joliet=joliet)


def empty_root() -> bytearray:
    """Rock Ridge with nothing in its root directory."""
    joliet = Directory(b"\0", children=[File(ucs2("only here"), b"x")])
    root = Directory(b"\0", dot=build.SP + px(DIR | 0o700) + build.ER)
    return build.image(root, joliet=joliet)


def joliet_only() -> bytearray:
    joliet = Directory(b"\0", children=[File(ucs2("Alone"), b"x")])
    return build.image(Directory(b"\0"), joliet=joliet, primary=False)


def high_sierra() -> bytearray:
    sub = HighSierraDirectory(b"SUB", children=[HighSierraFile(b"IN.TXT;1", b"in")])
    files = [
        HighSierraFile(b"OLD.TXT;1", b"old"),
        HighSierraFile(b"HID;1", flags=build.HIDDEN),
        sub,
    ]
    return build.image(HighSierraDirectory(b"\0", children=files), high_sierra=True)


def _older(raw: bytes) -> bytes:
    """The flags are a byte earlier, and the date is a byte shorter."""
    return raw[:24] + raw[25:26] + b"\0" + raw[26:]


class HighSierraFile(File):
    def record(self, name: bytes | None = None, *, use: build.Area | None = None) -> bytes:
        return _older(super().record(name, use=use))


class HighSierraDirectory(Directory):
    def record(self, name: bytes | None = None, *, use: build.Area | None = None) -> bytes:
        return _older(super().record(name, use=use))


def damaged_directory() -> bytearray:
    """A record that is shorter than its name, after a good one."""
    image = plain()
    at = image.index(b"\x0bGAP.;1") if b"\x0bGAP.;1" in image else image.index(b"GAP.;1") - 1
    image[at] = 200
    return image


BUILT: dict[str, Callable[[], bytearray]] = {
    "rock": rock_ridge,
    "plain": plain,
    "both": both_trees,
    "joliet": lambda: both_trees(rock=False),
    "empty-root": empty_root,
    "joliet-only": joliet_only,
    "high-sierra": high_sierra,
    "damaged": damaged_directory,
    "nothing": lambda: bytearray(200 * build.SECTOR),
    "short": lambda: bytearray(1024),
}


def make_tree(place: Path) -> Path:
    """Files, as an ordinary user can have them."""
    for name in ("deep/er/and/still/more/of/them/than/eight", "many", "Mixed Case"):
        (place / name).mkdir(parents=True)
    (place / "deep/er/and/still/more/of/them/than/eight/file").write_text("far down\n")
    for number in range(150):
        (place / f"many/a-long-name-that-iso9660-has-not-{number}.txt").write_text(f"{number}\n")
    (place / "Mixed Case/Ünïcode.txt").write_text("x" * 3000)
    (place / "link").symlink_to("../up/./and//down")
    (place / "absolute").symlink_to("/" + "/".join(["long"] * 30))
    (place / "big").write_bytes(bytes(range(256)) * 4000)
    (place / "hard").hardlink_to(place / "big")
    (place / "empty").touch()
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    return place


TOOLS = {
    "genisoimage-rj": "genisoimage -quiet -input-charset utf-8 -R -J -joliet-long",
    "genisoimage-level4": "genisoimage -quiet -iso-level 4 -r -T",
    "genisoimage-plain": "genisoimage -quiet -iso-level 1 -D",
    "xorriso": "xorriso -as mkisofs -quiet -R -J -iso-level 3",
}


def by_tool(name: str, directory: Path) -> Path | None:
    """An image of :func:`make_tree` by one of TOOLS; None: it is not installed."""
    program, *words = TOOLS[name].split()
    if not shutil.which(program):
        return None
    tree, image = directory / "tree", directory / f"{name}.iso"
    if not tree.exists():
        make_tree(tree)
    command = [program, *words, "-o", str(image), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=MAXIMUM)
    return image
