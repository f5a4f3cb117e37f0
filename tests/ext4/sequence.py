"""A random sequence, the same on the kernel's ext4 and on that of loopfs.

``python -m tests.ext4.sequence KIND SEED CALLS NAMES`` in a mount namespace of its own, as root.
KIND is the arguments of mke2fs; NAMES are in a directory that the kernel has made before. It
prints what differs. Each result and errno is compared; then both trees; then the kernel mounts
ours, changes it, and ours is used again. After each of these e2fsck has to find nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopfs import syscalls
from loopfs.ext4.device import Device
from loopfs.ext4.super import Super
from loopfs.file_device import FileDevice
from loopfs.uapi.mount import MS_PRIVATE, MS_REC
from loopfs.uapi.sched import CLONE_NEWNS
from tests.ext4.calls import Calls, described, digest, errno_of
from tests.ext4.images import MIB, UUID, fsck, make_image
from tests.ext4.requests import Chooser, Request

SIZE = 192 * MIB
FAULTS = 8  # after so many a sequence ends
_CLOCKS = 600 * 10**9  # nanoseconds: times of two moments are as near as that
_SLOW = 30.0  # seconds
Tree = dict[str, tuple[object, ...]]


def own_mounts() -> bool:
    """As root: mounts from now on are seen nowhere else. False: it cannot be done."""
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        return False
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    return True


@contextmanager
def by_kernel(image: Path, place: Path, options: str = "") -> Iterator[None]:
    """Mounted by the kernel's ext4."""
    words = f"loop,{options}".rstrip(",")
    subprocess.run(["mount", "-o", words, image, place], check=True, timeout=_SLOW)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True, timeout=_SLOW)
        _wait_for_loop(image)


def _wait_for_loop(image: Path) -> None:
    """The kernel has written all: its loop device is gone."""
    end = time.monotonic() + _SLOW
    command = ["losetup", "-j", str(image)]
    while subprocess.run(command, capture_output=True, check=True, timeout=_SLOW).stdout:
        assert time.monotonic() < end, "a loop device stays"
        time.sleep(0.01)


@contextmanager
def by_ours(image: Path, place: Path, options: str = "") -> Iterator[None]:
    """Served by ours, by FUSE."""
    command = [sys.executable, "-m", "tests.ext4.serve", str(image), str(place), options]
    server = subprocess.Popen(command)
    try:
        end = time.monotonic() + _SLOW
        while not os.path.ismount(place):
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not mount"
            time.sleep(0.01)
        try:
            yield
        finally:
            subprocess.run(["umount", place], check=True, timeout=_SLOW)
    finally:
        try:
            status = server.wait(_SLOW)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert status == 0, f"the server has ended with {status}"


def tree(root: Path) -> Tree:
    """All there is, by path."""
    found: Tree = {}
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files, "."]:
            path = os.path.join(directory, name)
            if "lost+found" in path:
                continue
            row = described(path)
            if os.path.islink(path):
                row += (os.readlink(path),)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    row += (digest(file.read()),)
            attributes = sorted(os.listxattr(path, follow_symlinks=False))
            row += tuple((k, os.getxattr(path, k, follow_symlinks=False)) for k in attributes)
            moved = os.path.isdir(path) and not os.path.islink(path)
            found[path[len(str(root)) :]] = (0 if moved else os.lstat(path).st_mtime_ns, *row)
    return found


def differences(a: Tree, b: Tree, when: str) -> list[str]:
    """What is not the same; times are, but for those of two moments."""
    found = []
    for path in sorted(a.keys() | b.keys()):
        one, other = a.get(path), b.get(path)
        if one is None or other is None or one[1:] != other[1:]:
            found.append(f"{when}: {path[:80]}: kernel {str(one)[:400]}, ours {str(other)[:400]}")
            continue
        times = one[0], other[0]
        assert isinstance(times[0], int) and isinstance(times[1], int)
        if abs(times[0] - times[1]) > _CLOCKS:
            found.append(f"{when}: {path[:80]}: mtime {times}")
    return found


def _is_more_data(request: Request, kernel: object, ours: object) -> bool:
    """The kernel has data where ours has none: it zeroes small unwritten extents that it splits."""
    if request.kind != "seek" or not isinstance(kernel, int) or not isinstance(ours, int):
        return False
    ends = [1 << 63 if one == -errno.ENXIO else one for one in (kernel, ours)]
    if min(ends) < 0:
        return False
    return ends[0] < ends[1] if request.flag else ends[0] > ends[1]


class Sequence:
    """A sequence at work.

    Attributes:
        faults: what was not as it should be.
    """

    def __init__(self, kind: str, seed: int, place: Path) -> None:
        self._kind, self._seed, self._place = kind, seed, place
        self.faults: list[str] = []
        self._images = [place / "kernel.image", place / "ours.image"]
        self._roots = [place / "kernel", place / "ours"]
        for image, root in zip(self._images, self._roots, strict=True):
            root.mkdir()
            make_image(image, f"-U {UUID} {kind}", SIZE)
        with self._images[0].open("rb") as file:
            sb = Super(Device(FileDevice(file.fileno())))
        room = sb.block_size - 64
        if sb.inode_size > 128 and "inline_data" not in kind:
            room += sb.inode_size - 128 - 32 - 64
        self._chooser = Chooser(seed, sb.block_size, room)
        if "ea_inode" in kind:
            self._chooser.large = 0.3
        self._holes = sb.block_size >= os.sysconf("SC_PAGE_SIZE") and "inline_data" not in kind

    def _fsck(self, when: str) -> None:
        if problems := fsck(self._images[1]):
            self.faults.append(f"e2fsck {when}: {problems[:3000]}")

    def prepare(self, names: int) -> None:
        """Directories of so many names, made by the kernel."""
        if not names:
            return
        for image, root in zip(self._images, self._roots, strict=True):
            with by_kernel(image, root):
                (root / "h").mkdir()
                for n in range(names):
                    (root / f"h/a longer name for a file {n}").touch()
                for n in range(0, names, 3):
                    (root / f"h/a longer name for a file {n}").unlink()
        self._chooser.directories.append("/h")

    def calls(self, count: int) -> None:
        """Make the calls on both, and compare results and trees."""
        kernel, ours = self._roots
        with by_kernel(self._images[0], kernel), by_ours(self._images[1], ours):
            both = [Calls(str(root), holes=self._holes) for root in self._roots]
            for number in range(count):
                self._call(number, both)
                if len(self.faults) >= FAULTS:
                    break
            for calls in both:
                calls.close()
            self._kernels = tree(kernel)
            self.faults += differences(self._kernels, tree(ours), "mounted")
            self._compare_space()
        self._fsck("after ours")

    def _call(self, number: int, both: list[Calls]) -> None:
        request = self._chooser.next()
        results = [calls.perform(request) for calls in both]
        if results[0] != results[1] and not _is_more_data(request, *results):
            known = f"{errno_of(results[0])}, ours {errno_of(results[1])}"
            brief = request._replace(data=b"", value=request.value[:40])
            self.faults.append(f"call {number}: kernel {known}: {len(request.data)} {brief}")
        kernel = str(self._roots[0])
        if request.kind == "mkdir" and results[0] is None:
            self._chooser.directories.append(request.path)
        elif request.kind in ("rename", "rmdir") and results[0] is None:
            self._chooser.directories[1:] = [
                path
                for path in self._chooser.directories[1:]
                if os.path.isdir(kernel + path) and not os.path.islink(kernel + path)
            ]

    def _compare_space(self) -> None:
        a, b = (os.statvfs(root) for root in self._roots)
        for name in ("f_blocks", "f_files", "f_ffree", "f_bsize", "f_frsize", "f_namemax"):
            pair = getattr(a, name), getattr(b, name)
            shared = name == "f_ffree" and "ea_inode" in self._kind  # by the kernel's, of one value
            if pair[0] != pair[1] and not shared:
                self.faults.append(f"statfs {name}: {pair}")
        if a.f_bfree - a.f_bavail != b.f_bfree - b.f_bavail:
            self.faults.append(f"statfs reserve: {a}, {b}")
        if abs(a.f_bfree - b.f_bfree) > a.f_blocks // 50:
            self.faults.append(f"statfs f_bfree: {a.f_bfree}, {b.f_bfree}")

    def again(self) -> None:
        """The kernel on ours, which it changes; then ours on that."""
        root = self._roots[1]
        with by_kernel(self._images[1], root):
            self.faults += differences(self._kernels, tree(root), "the kernel on ours")
            self._change(root, "k")
            changed = tree(root)
        self._fsck("after the kernel on ours")
        with by_ours(self._images[1], root):
            self.faults += differences(changed, tree(root), "ours after the kernel")
            self._change(root, "o")
            changed = tree(root)
        self._fsck("after ours again")
        with by_kernel(self._images[1], root):
            self.faults += differences(tree(root), changed, "the kernel at last")

    def _change(self, root: Path, tag: str) -> None:
        """Some more files, some fewer."""
        chance = self._chooser.random
        (root / f"new {tag}").mkdir()
        for n in range(60):
            (root / f"new {tag}/{'x' * chance.randrange(60)}{n}").write_bytes(bytes(n * 777))
        found = (Path(d, name) for d, _, names in os.walk(root) for name in names)
        for path in sorted(found):
            if path.is_symlink() or not path.is_file() or chance.random() < 0.6:
                continue
            if chance.random() < 0.5:
                path.unlink()
            else:
                with path.open("r+b") as file:
                    file.seek(chance.randrange(70_000))
                    file.write(b"changed" * chance.randrange(3000))


def run(kind: str, seed: int, calls: int, names: int) -> list[str]:
    """What differs. Needs root, and a mount namespace whose mounts are seen nowhere else."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
    place = Path(tempfile.mkdtemp(prefix="loopfs-test-", dir=base))
    os.umask(0o022)
    try:
        sequence = Sequence(kind, seed, place)
        sequence.prepare(names)
        sequence.calls(calls)
        sequence.again()
        return sequence.faults
    finally:
        shutil.rmtree(place)


def main(kind: str, seed: str, calls: str, names: str) -> int:
    """Exit status: 1 something differs."""
    faults = run(kind, int(seed), int(calls), int(names))
    print("\n".join(faults), end="")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
