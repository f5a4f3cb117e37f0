"""The tree of plain files in /dev: as the kernel's tmpfs, and bounded."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loopfs.filesystems import tree as module
from loopfs.filesystems.tree import RENAME_EXCHANGE, RENAME_NOREPLACE, Inode, Tree
from loopfs.fuse.operations import SetAttr

DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
LIBC = ctypes.CDLL(None, use_errno=True)
NOTHING = SetAttr(None, None, None, None, None, None, by_handle=False)


@pytest.fixture
def tree() -> Tree:
    return Tree(count(2).__next__, 1)


def test_a_file_is_made_written_and_cut(tree: Tree) -> None:
    file = tree.make(tree.root, b"f", FILE, 5, owner=(1, 2))
    assert tree.write(file, 3, b"abc", 6) == 3
    assert bytes(file.content) == b"\0\0\0abc"
    attr = file.attr(file.special)
    assert (attr.size, attr.mode, attr.nlink, attr.uid, attr.gid) == (6, FILE, 1, 1, 2)
    assert attr.times == (5, 6, 6)
    tree.change(file, NOTHING._replace(size=4), 7)
    assert bytes(file.content) == b"\0\0\0a"
    assert tree.root.times == (1, 5, 5)


def test_what_is_made_in_a_setgid_directory_has_its_group(tree: Tree) -> None:
    parent = tree.make(tree.root, b"d", stat.S_IFDIR | 0o2755, 1, owner=(0, 7))
    assert tree.make(parent, b"f", FILE, 1, owner=(3, 4)).gid == 7
    inner = tree.make(parent, b"d", DIRECTORY, 1, owner=(3, 4))
    assert (inner.gid, inner.mode) == (7, 0o2755)


def fails(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        call()
    assert raised.value.errno == code


def test_a_file_is_no_longer_than_a_mebibyte(tree: Tree) -> None:
    file = tree.make(tree.root, b"f", FILE, 1)
    tree.write(file, module.MAX_FILE - 1, b"x", 1)
    fails(errno.ENOSPC, lambda: tree.write(file, module.MAX_FILE, b"x", 1))
    fails(errno.ENOSPC, lambda: tree.change(file, NOTHING._replace(size=1 << 40), 1))
    assert len(file.content) == module.MAX_FILE


@pytest.mark.parametrize("how", ["files", "links", "contents", "symlinks"])
def test_all_of_it_is_bounded_and_comes_back(tree: Tree, how: str) -> None:
    before = tree.bytes
    first = tree.make(tree.root, b"first", FILE, 1)

    def fill() -> int:
        for number in count():
            name = b"%d" % number
            try:
                if how == "links":
                    tree.link(first, tree.root, name, 1)
                elif how == "symlinks":
                    tree.make(tree.root, name, LINK, 1, content=bytes(4096))
                else:
                    file = tree.make(tree.root, name, FILE, 1)
                    if how == "contents":
                        tree.write(file, 0, bytes(module.MAX_FILE), 1)
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                return number
        raise AssertionError

    made = fill()
    assert 0 < made < 40_000
    assert tree.bytes <= module.MAX_BYTES
    for name in tuple(tree.root.names):
        tree.remove(tree.root, name, 1)
    assert tree.bytes == before
    assert list(tree.by_id) == [1]


def test_root_can_still_write_when_others_have_filled_it(tree: Tree) -> None:
    """As with a quota, it is the file's owner who pays."""
    theirs = tree.make(tree.root, b"theirs", FILE, 1, owner=(7, 7))

    def fill() -> None:
        for number in count():
            file = tree.make(tree.root, b"%d" % number, FILE, 1, owner=(number + 1, 0))
            tree.write(file, 0, bytes(module.MAX_FILE), 1)

    fails(errno.ENOSPC, fill)
    assert tree.bytes <= module.OTHERS_BYTES
    fails(errno.ENOSPC, lambda: tree.write(theirs, 0, bytes(module.MAX_FILE), 1))
    fails(errno.ENOSPC, lambda: tree.change(theirs, NOTHING._replace(size=module.MAX_FILE), 1))
    tree.write(tree.make(tree.root, b"roots", FILE, 1), 0, bytes(module.MAX_FILE), 1)


def test_what_is_open_is_kept_until_it_is_forgotten(tree: Tree) -> None:
    file = tree.make(tree.root, b"f", FILE, 1)
    tree.looked_up(file)
    tree.looked_up(file)
    tree.remove(tree.root, b"f", 1)
    tree.write(file, 0, b"still", 1)
    tree.forgotten(file.special, 1)
    assert tree.by_id[file.special] is file
    tree.forgotten(file.special, 1)
    assert file.special not in tree.by_id
    tree.forgotten(file.special, 1)  # of one that is not known


def test_nothing_is_made_in_a_directory_that_is_removed(tree: Tree) -> None:
    gone = tree.make(tree.root, b"d", DIRECTORY, 1)
    tree.looked_up(gone)
    file = tree.make(tree.root, b"f", FILE, 1)
    tree.remove(tree.root, b"d", 1)
    fails(errno.ENOENT, lambda: tree.make(gone, b"x", FILE, 1))
    fails(errno.ENOENT, lambda: tree.link(file, gone, b"x", 1))
    fails(errno.ENOENT, lambda: tree.rename(tree.root, b"f", gone, b"x", 0, 1))
    assert list(tree.root.names) == [b"f"]


def test_a_reader_misses_nothing_that_stays(tree: Tree) -> None:
    for each in b"abcdef":
        tree.make(tree.root, bytes((each,)), FILE, 1)
    seen, place = [], 0
    while entry := next(tree.entries(tree.root, place), None):
        place, name, _ = entry
        seen.append(name)
        if name == b"b":
            tree.remove(tree.root, b"a", 1)
            tree.remove(tree.root, b"b", 1)
            tree.remove(tree.root, b"d", 1)
            tree.make(tree.root, b"new", FILE, 1)
    assert seen == [b"a", b"b", b"c", b"e", b"f", b"new"]


NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
Path_ = tuple[str, ...]


class AsTmpfs(RuleBasedStateMachine):
    """Each call does what it does in a directory of the kernel's.

    What the VFS checks before it asks the filesystem (fs/namei.c) is done by :meth:`_walk`, and by
    the rules.
    """

    def __init__(self) -> None:
        super().__init__()
        where = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.place = Path(tempfile.mkdtemp(dir=where))
        self.tree = Tree(count(2).__next__, 1)

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    def _walk(self, path: Path_) -> Inode:
        inode = self.tree.root
        for name in path:
            self._check_leads_on(inode)
            if name.encode() not in inode.names:
                raise OSError(errno.ENOENT, "")
            inode = inode.names[name.encode()].inode
        return inode

    def _check_leads_on(self, inode: Inode) -> None:
        if not inode.is_directory:
            raise OSError(errno.ENOENT if inode.kind == stat.S_IFLNK else errno.ENOTDIR, "")

    def _directory(self, path: Path_) -> Inode:
        inode = self._walk(path)
        self._check_leads_on(inode)
        return inode

    def _both(self, ours: Callable[[], object], kernels: Callable[[], object]) -> None:
        codes = []
        for call in (kernels, ours):
            try:
                call()
                codes.append(0)
            except OSError as problem:
                codes.append(problem.errno or -1)
        assert codes[0] == codes[1], [errno.errorcode.get(code, "0") for code in codes]

    def _real(self, path: Path_) -> str:
        return str(self.place.joinpath(*path))

    @rule(path=PATHS, mode=st.sampled_from([DIRECTORY, FILE, stat.S_IFIFO | 0o600, LINK]))
    def make(self, path: Path_, mode: int) -> None:
        def ours() -> None:
            content = b"nowhere" if mode == LINK else b""
            parent = self._directory(path[:-1])
            self.tree.make(parent, path[-1].encode(), mode, 1, content=content)

        def kernels() -> None:
            if mode == DIRECTORY:
                os.mkdir(self._real(path), 0o755)
            elif mode == LINK:
                os.symlink("nowhere", self._real(path))
            else:
                os.mknod(self._real(path), mode)

        self._both(ours, kernels)

    @rule(path=PATHS, to=PATHS)
    def link(self, path: Path_, to: Path_) -> None:
        def ours() -> None:
            inode, parent = self._walk(path), self._directory(to[:-1])
            if to[-1].encode() in parent.names:
                raise OSError(errno.EEXIST, "")
            self.tree.link(inode, parent, to[-1].encode(), 1)

        self._both(ours, lambda: os.link(self._real(path), self._real(to), follow_symlinks=False))

    @rule(path=PATHS, directory=st.booleans())
    def remove(self, path: Path_, directory: bool) -> None:
        def ours() -> None:
            parent, inode = self._directory(path[:-1]), self._walk(path)
            if inode.is_directory != directory:
                raise OSError(errno.ENOTDIR if directory else errno.EISDIR, "")
            self.tree.remove(parent, path[-1].encode(), 1)

        self._both(ours, lambda: (os.rmdir if directory else os.unlink)(self._real(path)))

    @rule(path=PATHS, to=PATHS, flags=st.sampled_from([0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, path: Path_, to: Path_, flags: int) -> None:
        def ours() -> None:
            parent, target = self._directory(path[:-1]), self._directory(to[:-1])
            inode = self._walk(path)
            name = to[-1].encode()
            if flags & RENAME_NOREPLACE and name in target.names:
                raise OSError(errno.EEXIST, "")
            if flags & RENAME_EXCHANGE:
                self._walk(to)
            if path != to and to[: len(path)] == path and inode.is_directory:
                raise OSError(errno.EINVAL, "")
            if path != to and path[: len(to)] == to:
                raise OSError(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, "")
            self.tree.rename(parent, path[-1].encode(), target, name, flags, 1)

        self._both(ours, lambda: renameat2(self._real(path), self._real(to), flags))

    @invariant()
    def the_same_is_there(self) -> None:
        assert self._ours(self.tree.root) == self._kernels(self.place)
        assert set(self.tree.by_id.values()) == set(self._all(self.tree.root))
        assert self.tree.bytes >= module.NODE_COST * len(self.tree.by_id)

    def _all(self, inode: Inode) -> list[Inode]:
        inside = [each for name in inode.names.values() for each in self._all(name.inode)]
        return [inode, *inside]

    def _ours(self, inode: Inode) -> object:
        inside = {name.decode(): self._ours(entry.inode) for name, entry in inode.names.items()}
        return inode.kind, inode.links, inside

    def _kernels(self, path: Path) -> object:
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        inside = sorted(path.iterdir()) if kind == stat.S_IFDIR else ()
        return kind, info.st_nlink, {each.name: self._kernels(each) for each in inside}


def renameat2(old: str, new: str, flags: int) -> None:
    at = -100  # AT_FDCWD
    if LIBC.renameat2(at, os.fsencode(old), at, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


AsTmpfs.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAsTmpfs = AsTmpfs.TestCase
