"""Calls on a vfat of either driver, and their results.

``python3 operations.py DIRECTORY``, a mounted volume that is empty. It is run on a kernel's vfat
and on ours by test_as_kernel.py: what is printed must be the same. Nothing of it depends on the
time, the machine or the mount's place. It imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

MOMENT = 1_700_000_000
NOW_IS_LATER = 1_750_000_000  # what has a time after it has the present one
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
GET_ATTRIBUTES, SET_ATTRIBUTES = 0x80047210, 0x40047211
LIBC = ctypes.CDLL(None, use_errno=True)

# fmt: off
NAMES = [
    "FOO.TXT", "foo.txt", "Foo.txt", "README.txt", "readme.TXT", "a.b.c", "a.b.c.d", "trail.",
    "trail..", "space ", "dots. ", "dots .", " lead", ".hidden", "..two", "...", "....x", "noext",
    "longer than eight", "LONGNAME.TEXT", "x" * 255, "y" * 256, "ü" * 255, "ü.txt", "Ü.TXT",
    "ü.TXT", "日本語.txt", "日" * 255, "日" * 256, "😀.txt", "😀" * 127, "😀" * 128, "a:b", "a*b",
    "a?b", 'a"b', "a<b", "a>b", "a|b", "a\\b", "a\x01b", "a\x7fb", "a+b", "a,b", "a;b", "a=b",
    "a[b]", "~", "a~1", "FOO~1.TXT", "CON", "com1", "AUX.txt", "prn", "1234567.123",
    "12345678.123", "12345678.1234", "ABCDEFGH.IJK", "abcdefgh.ijk", "abcdefghi", "Abcdefg", "aBC",
    "ab c", "AB C.TXT", "ab.c d", "é", "É", "ß", "ÿ", "µ", "αβγ", "ΑΒΓ", "Ж.txt", "i", "İ",
    "\u0131", "\udcff", "\udce9.txt", "a\u0301", "å", "åäö.TXT", "ÅÄÖ.TXT", "x.", "x.y.", "x..y",
    "-", "_", "$", "%", "'", "`", "@", "{}", "!", "#", "()", "&", "^", "a'b.c#d", "\u03c3", "ς",
    "ΣΑΣ", "ﬁ", "½",
    "█.txt", "tab\there", "Ⅳ.txt", "√", "\uff5e", "ア.txt", "ｱ.TXT", "表.c", "ソ", "č.TXT",
    "Č", "ł",
]
ALIASES = [
    "foo.TXT", "LONGER THAN EIGHT", "LONGER~1", "longer~1", "FOO.TXT.", "Foo.txt...", "NOEXT",
    "Ü.txt", "AÉ", "readme.txt ",
]
TAILS = [
    "abc def.txt", "ab.c.d", "a b", "a  b", "[1].txt", "+.+", "a.b.c.d.e", "x.html", "x.htm",
    "X.HTML",
]
MODES = [0o777, 0o755, 0o644, 0o444, 0o555, 0o600, 0o700, 0o000, 0o4755, 0o1777]
TIMES = [
    0, 1, 315532799, 315532800, 315532801, 951782399, 1_700_000_001, 1_700_000_001.75, 4102444800,
    4107542399, 4107542400, 4354819199, 4354819200, 2**33,
]
# fmt: on


def say(*words: object) -> None:
    print(*words, flush=True)


def attempt(label: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """A call, and what it returned or raised."""
    try:
        result = call(*arguments, **named)
    except OSError as problem:
        say(label, errno.errorcode.get(problem.errno or 0, problem.errno))
    else:
        say(label, "ok", result if isinstance(result, int | str | bytes | list) else "")


def put(name: str, data: bytes = b"x") -> None:
    with open(name, "wb") as file:
        file.write(data)
    os.utime(name, (MOMENT, MOMENT))


def get(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


@contextmanager
def inside(name: str) -> Any:
    os.mkdir(name)
    os.chdir(name)
    yield
    os.chdir("..")


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "")


def rename2(old: str, new: str, flags: int) -> None:
    _checked(LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def names() -> None:
    with inside("names"):
        for name in NAMES:
            attempt(f"create {name[:20]!a} {len(name)}", put, name)
        say(len(os.listdir(".")))
        for name in NAMES:
            attempt(f"stat {name[:20]!a}", lambda name=name: os.stat(name).st_size)
        for name in NAMES[:30]:
            attempt(f"mkdir {name[:20]!a}", os.mkdir, name)
        for name in ALIASES:
            attempt(f"alias {name!a}", lambda name=name: os.stat(name).st_size)


def tails() -> None:
    with inside("tails"):
        for n in range(14):
            put(f"a long name number {n}.text")
        for n in range(9):
            put(f"a{n} long.text")
        for n in range(12):
            put(f"日{n}本 語.text")
        for name in TAILS:
            attempt(f"create {name!a}", put, name)


def renames() -> None:
    with inside("ren"):
        put("one", b"1" * 100)
        put("Two Long Name.txt", b"2" * 5000)
        put("three", b"3")
        os.mkdir("D1")
        os.mkdir("D2")
        os.mkdir("D1/sub dir")
        put("D1/sub dir/f", b"deep")
        attempt("over existing", os.rename, "one", "TWO LONG NAME.TXT")
        say(sorted(os.listdir(".")), os.stat("two long name.txt").st_size)
        attempt("case", os.rename, "three", "THREE")
        say(sorted(os.listdir(".")))
        attempt("to long", os.rename, "three", "Three is long now.text")
        say(sorted(os.listdir(".")))
        attempt("dir move", os.rename, "D1/sub dir", "D2/Sub Moved")
        say(os.listdir("D1"), os.listdir("D2"), os.listdir("D2/Sub Moved"))
        say(os.stat("D1").st_nlink, os.stat("D2").st_nlink, os.stat(".").st_nlink)
        say(get("D2/Sub Moved/../../D2/Sub Moved/f"))
        attempt("dir onto file", os.rename, "D2", "Three is long now.text")
        attempt("file onto dir", os.rename, "Three is long now.text", "D1")
        attempt("onto nonempty", os.rename, "D1", "D2")
        attempt("onto empty", os.rename, "D2", "D1")
        say(sorted(os.listdir(".")), os.listdir("D1"))
        attempt("into self", os.rename, "D1", "D1/x")
        for name in ("a:b", "...", "D9..."):
            attempt(f"to {name}", os.rename, "D1", name)
        say(sorted(os.listdir(".")))
        put("ex1", b"e1")
        put("ex 2 long", b"e22")
        attempt("noreplace", rename2, "ex1", "ex 2 long", NOREPLACE)
        attempt("noreplace new", rename2, "ex1", "ex1b", NOREPLACE)
        attempt("exchange", rename2, "ex1b", "ex 2 long", EXCHANGE)
        say(sorted(os.listdir(".")), os.stat("ex1b").st_size)
        attempt("exchange missing", rename2, "ex1b", "missing", EXCHANGE)
        attempt("whiteout", rename2, "ex1b", "ex9", WHITEOUT)


def unlinks() -> None:
    with inside("un"):
        put("f", b"A" * 100000)
        with open("f", "r+b") as file:
            os.unlink("f")
            say(os.listdir("."), os.fstat(file.fileno()).st_nlink, len(file.read()))
            file.seek(0)
            file.write(b"B" * 200000)
            file.flush()
            file.seek(0)
            say(file.read() == b"B" * 200000)
            put("f")
            say(os.stat("f").st_size)
        say(os.listdir("."))
        put("g", b"g")
        with open("g", "rb") as file:
            put("h", b"hhh")
            os.rename("h", "g")
            say(file.read(), os.fstat(file.fileno()).st_nlink, os.stat("g").st_size)
        attempt("rmdir file", os.rmdir, "g")
        attempt("unlink missing", os.unlink, "nope")
        os.mkdir("d")
        attempt("unlink dir", os.unlink, "d")
        put("d/x")
        attempt("rmdir full", os.rmdir, "d")
        os.unlink("d/x")
        attempt("rmdir", os.rmdir, "d")
        attempt("O_EXCL", os.open, "G", os.O_CREAT | os.O_EXCL | os.O_RDWR)
        os.mkdir("gone")
        directory = os.open("gone", os.O_RDONLY)
        os.rmdir("gone")
        attempt("in removed", os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        say(os.listdir(directory), os.fstat(directory).st_nlink)
        os.close(directory)


def sizes() -> None:
    with inside("size"):
        put("t", b"abcdefghij" * 1000)
        os.truncate("t", 5)
        say(os.stat("t").st_size, os.stat("t").st_blocks)
        os.truncate("t", 20000)
        data = get("t")
        say(len(data), data[:5], data[5:].count(0), os.stat("t").st_blocks)
        os.truncate("t", 0)
        say(os.stat("t").st_blocks)
        with open("t", "ab", 0) as one, open("t", "ab", 0) as other:
            one.write(b"one")
            other.write(b"two")
            one.write(b"three")
        say(get("t"))
        fd = os.open("hole", os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, b"end", 30000)
        say(os.pread(fd, 100, 0).count(0), os.fstat(fd).st_size, os.fstat(fd).st_blocks)
        say(os.lseek(fd, 0, os.SEEK_HOLE), os.lseek(fd, 10, os.SEEK_DATA))
        os.close(fd)
        _random_writes()
        _limits()


def _random_writes() -> None:
    chance, model = random.Random(5), bytearray(200000)
    fd = os.open("rnd", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, len(model))
    for _ in range(400):
        at = chance.randrange(len(model))
        data = chance.randbytes(chance.randrange(1, 3000))[: len(model) - at]
        os.pwrite(fd, data, at)
        model[at : at + len(data)] = data
    say(os.pread(fd, 300000, 0) == model)
    with mmap.mmap(fd, len(model)) as view:
        view[1000:2000] = b"M" * 1000
        view[199999:] = b"Z"
        view.flush()
        view[3000:3005] = b"later"
    os.close(fd)
    model[1000:2000] = b"M" * 1000
    model[199999:] = b"Z"
    model[3000:3005] = b"later"
    say(get("rnd") == model)


def _limits() -> None:
    fd = os.open("big", os.O_CREAT | os.O_RDWR)
    attempt("pwrite at 4G-1", os.pwrite, fd, b"x", 0xFFFFFFFF)
    attempt("pwrite beyond", os.pwrite, fd, b"x", 1 << 32)
    attempt("truncate 4G", os.ftruncate, fd, 1 << 32)
    attempt("truncate huge", os.ftruncate, fd, 0xFFFFFFFF)
    os.ftruncate(fd, 0)
    attempt("fallocate", os.posix_fallocate, fd, 0, 50000)
    say(os.fstat(fd).st_size, os.fstat(fd).st_blocks)
    attempt("keep size", fallocate, fd, FALLOC_KEEP_SIZE, 0, 100000)
    say(os.fstat(fd).st_size)
    attempt("punch", fallocate, fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, 4096)
    os.close(fd)


def attributes() -> None:
    with inside("attr"):
        put("f")
        put("RUN.EXE")
        os.mkdir("d")
        for mode in MODES:
            for name in ("f", "d"):
                attempt(f"chmod {name} {mode:o}", os.chmod, name, mode)
                say(oct(os.stat(name).st_mode))
        os.chmod("f", 0o755)
        attempt("chown same", os.chown, "f", 0, 0)
        attempt("chown -1", os.chown, "f", -1, -1)
        attempt("symlink", os.symlink, "a", "s")
        attempt("link", os.link, "f", "l")
        attempt("mkfifo", os.mkfifo, "p")
        attempt("mknod", os.mknod, "reg", stat.S_IFREG | 0o644)
        attempt("setxattr", os.setxattr, "f", "user.x", b"1")
        attempt("getxattr", os.getxattr, "f", "user.x")
        attempt("listxattr", os.listxattr, "f")
        for moment in TIMES:
            for name in ("f", "d"):
                attempt(f"utime {name} {moment}", os.utime, name, (moment, moment))
                found = os.stat(name)
                say(found.st_mtime, found.st_atime, found.st_ctime if name == "f" else "")
        os.utime("f", (MOMENT, MOMENT))
        os.utime("d", (MOMENT, MOMENT))
        attempt("utime root", os.utime, "..", (5, 5))
        say(os.stat("..").st_mtime)
        _ioctls()
        os.chmod("f", 0o444)
        attempt("unlink ro", os.unlink, "f")
    space = os.statvfs(".")
    say(space.f_bsize, space.f_frsize, space.f_blocks, space.f_namemax, space.f_files)
    attempt("tmpfile", os.open, ".", os.O_TMPFILE | os.O_RDWR, 0o600)


def _attributes(name: str, value: int | None = None) -> int:
    fd = os.open(name, os.O_RDONLY)
    try:
        if value is None:
            return int.from_bytes(fcntl.ioctl(fd, GET_ATTRIBUTES, bytes(4)), "little")
        fcntl.ioctl(fd, SET_ATTRIBUTES, struct.pack("I", value))
        return 0
    finally:
        os.close(fd)


def _ioctls() -> None:
    for name in ("f", "d", ".."):
        attempt(f"attributes {name}", _attributes, name)
    for value in (2 | 32, 1, 16, 8, 32):
        attempt(f"attributes {value}", _attributes, "f", value)
        attempt("are", _attributes, "f")
        say(oct(os.stat("f").st_mode))
    attempt("of the root", _attributes, "..", 2)
    with open("f", "rb") as file:
        attempt("bad ioctl", fcntl.ioctl, file.fileno(), 0x5401, bytes(60))


def forget() -> None:
    """Have the kernel forget names. To its msdos "foo" is ".foo", if that is what it remembers."""
    os.sync()
    with suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")  # what has just been used stays once
        file.flush()
        file.write("2")


def dotted() -> None:
    """What the option dots of type msdos is about."""
    with inside("dot"):
        for name in (".foo", "foo", ".bar.txt", "bar.txt", "..x", "plain", ".two.of.it"):
            attempt(f"create {name}", put, name)
            forget()
        attempt("mkdir", os.mkdir, ".dir")
        forget()
        attempt("mkdir again", os.mkdir, "dir")
        say(sorted(os.listdir(".")))
        forget()
        attempt("hide", os.rename, "plain", ".plain")
        say(sorted(os.listdir(".")))
        attempt("show", os.rename, ".bar.txt", "bar.txt")
        forget()
        attempt("other", os.rename, ".foo", "f00")
        attempt("over", os.rename, "f00", ".bar.txt")
        say(sorted(os.listdir(".")))
        put("attr")
        attempt("hidden", _attributes, "attr", 2 | 32)
        forget()
        attempt("onto", os.rename, ".dir", "attr")
        say(sorted(os.listdir(".")))


def directories() -> None:
    with inside("many"):
        for n in range(700):
            put(f"file number {n} with a long name.dat")
        for n in range(0, 700, 2):
            os.unlink(f"file number {n} with a long name.dat")
        for n in range(50):
            put(f"n{n}")
        say(len(os.listdir(".")), os.stat(".").st_size)
        with os.scandir(".") as found:
            for n, entry in enumerate(found):
                if n % 3 == 0:
                    os.unlink(entry.name)
        say(len(os.listdir(".")))
    path = "deep"
    os.mkdir(path)
    for n in range(30):
        path += f"/Level {n}"
        os.mkdir(path)
    put(path + "/x")
    say(os.stat(path).st_nlink, os.stat("deep").st_nlink)


def listing(directory: bytes = b".") -> None:
    for name in sorted(os.listdir(directory)):
        path = directory + b"/" + name
        found = os.lstat(path)
        times: tuple[object, ...] = ()
        if found.st_mtime <= NOW_IS_LATER:
            times = found.st_mtime, found.st_atime
        owner = found.st_nlink, found.st_uid, found.st_blocks
        say(ascii(path), found.st_size, oct(found.st_mode), *owner, *times)
        if stat.S_ISDIR(found.st_mode):
            listing(path)


def main(directory: str) -> None:
    """Everything, in sections."""
    os.chdir(directory)
    os.umask(0o22)
    for section in (
        names,
        tails,
        renames,
        unlinks,
        sizes,
        attributes,
        dotted,
        directories,
        listing,
    ):
        say(f"== {section.__name__}")
        try:
            section()
        except OSError as problem:  # options may make the rest of it impossible
            say("the section ends:", errno.errorcode.get(problem.errno or 0), problem.filename)


if __name__ == "__main__":
    main(sys.argv[1])
