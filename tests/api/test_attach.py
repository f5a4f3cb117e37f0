"""loopfs.attach (David Rheinsberg, 2020-04-09): a descriptor in, a device out, gone with the last
close."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.programs import run_program
from tests.support.user import User

pytestmark = pytest.mark.e2e

BEGIN = """
    import errno, fcntl, json, mmap, os, signal, socket, subprocess, sys, threading, time
    import loopfs

    def servers():
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read()
                if b"attach_server" in words and os.stat(f"/proc/{pid}").st_uid == os.getuid():
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def until(condition):
        deadline = time.monotonic() + 20 * float(os.environ.get("LOOPFS_TIMEOUT_SCALE", "1"))
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def fails(code, function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except OSError as problem:
            assert problem.errno == code, repr(problem)
            return problem.strerror
        raise AssertionError("it did not fail")

    def mounts():
        with open("/proc/self/mountinfo") as file:
            return file.read()

    before = mounts()
    with open("disk.img", "wb") as file:
        file.truncate(1 << 20)
    def image(mode=os.O_RDWR):
        return os.fdopen(os.open("disk.img", mode), "rb+" if mode else "rb", buffering=0)
"""

DEVICE = (
    BEGIN
    + """
    with image() as file:
        device = loopfs.attach(file, offset=4096, sizelimit=65536)
    assert not os.get_inheritable(device)
    assert len(servers()) == 1 and mounts() == before

    # data
    assert os.pwrite(device, b"written", 512) == 7
    fails(errno.ENOSPC, os.pwrite, device, b"x", 65536)
    with mmap.mmap(device, 65536) as mapped:
        assert mapped[512:519] == b"written"
        mapped[1024:1030] = b"mapped"
    os.pwrite(device, b"punched", 8192)
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    size = __import__("ctypes").c_long
    assert libc.fallocate(device, 3, size(8192), size(4096)) == 0  # PUNCH_HOLE, KEEP_SIZE
    os.fsync(device)
    with open("disk.img", "rb") as file:
        data = file.read()
    assert data[4096 + 512 :][:7] == b"written" and data[4096 + 1024 :][:6] == b"mapped"
    assert data[4096 + 8192 :][:7] == bytes(7)

    # ioctls that a descriptor alone allows, and one that takes a capability
    ask = lambda request, length: fcntl.ioctl(device, request, bytes(length))
    assert int.from_bytes(ask(0x80081272, 8), "little") == 65536  # BLKGETSIZE64
    assert int.from_bytes(ask(0x1260, 8), "little") == 128  # BLKGETSIZE
    assert int.from_bytes(ask(0x1268, 4), "little") == 512  # BLKSSZGET
    status = ask(0x4C05, 232)  # LOOP_GET_STATUS64
    assert int.from_bytes(status[24:32], "little") == 4096
    assert status[56:].split(bytes(1))[0] == os.getcwd().encode() + b"/disk.img"
    fails(errno.EACCES, fcntl.ioctl, device, 0x1261)  # BLKFLSBUF

    # The administrator sees it, as every device.
    words = [sys.executable, "-c", "import sys; from loopfs.cli import main; sys.exit(main())"]
    said = subprocess.run([*words, "ls", "--json"], capture_output=True, check=True).stdout
    (listed,) = json.loads(said)
    assert listed["command"] == ["loopfs.attach", os.getcwd() + "/disk.img"]
    (found,) = listed["instances"][0]["devices"]
    assert (listed["used"], found["offset"], found["openers"]) == (1, 4096, 1)

    # It is passed on to another process, and stays as long as that has it: until it is killed.
    ours, theirs = socket.socketpair()
    holder = os.fork()
    if holder == 0:
        _, (passed,), *_ = socket.recv_fds(theirs, 1, 1)
        os.pwrite(passed, b"passed", 0)
        size = int.from_bytes(fcntl.ioctl(passed, 0x80081272, bytes(8)), "little")
        theirs.send(b"yes" if size == (1 << 20) - 4096 else b"no")
        signal.pause()
    os.close(device)  # the fork has a duplicate
    with image() as file:
        device = loopfs.attach(file.fileno(), offset=4096)
    socket.send_fds(ours, [b"x"], [device])
    os.close(device)
    assert ours.recv(9) == b"yes" and len(servers()) == 2
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    until(lambda: not servers())
    assert mounts() == before
    with open("disk.img", "rb") as file:
        assert file.read()[4096:][:6] == b"passed"
"""
)

REST = (
    BEGIN
    + """
    # for reading
    for device in (loopfs.attach(image(), read_only=True), loopfs.attach(image(os.O_RDONLY))):
        assert os.pread(device, 3, 0) == bytes(3)
        fails(errno.EBADF, os.pwrite, device, b"x", 0)
        os.close(device)

    # errors
    assert "not open" in fails(errno.EBADF, loopfs.attach, 999)
    directory = os.open(".", os.O_RDONLY)
    assert "cannot be attached" in fails(errno.EINVAL, loopfs.attach, directory)
    fails(errno.EINVAL, loopfs.attach, image(), sector_size=7)
    fails(errno.EOVERFLOW, loopfs.attach, image(), offset=1 << 63)

    # several at once; a server that is killed is the end of its device alone
    devices = []
    def make():
        devices.append(loopfs.attach(image()))
    threads = [threading.Thread(target=make) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(devices) == 3
    until(lambda: len(servers()) == 3)
    os.kill(servers()[0], signal.SIGKILL)
    until(lambda: len(servers()) == 2)
    errors = []
    for device in devices:
        try:
            os.fsync(device)
        except OSError as problem:
            errors.append(problem.errno)
    assert errors in ([errno.ENOTCONN], [errno.ECONNABORTED]), errors

    # Who waits for the end of what a process writes does not wait for its device.
    script = "import loopfs, os; os.set_inheritable(loopfs.attach(3), True)"
    script += "; os.execvp('sleep', ['sleep', '1000'])"
    with image() as file:
        os.dup2(file.fileno(), 3) if file.fileno() != 3 else os.set_inheritable(3, True)
        sleeper = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, pass_fds=[3]
        )
    until(lambda: open(f"/proc/{sleeper.pid}/comm").read() == "sleep\\n")
    sleeper.kill()
    assert sleeper.stdout.read() == b""
    sleeper.wait()
    [os.close(device) for device in devices]
    until(lambda: not servers())
    assert mounts() == before
"""
)


def test_a_device_is_a_descriptor_and_is_removed_at_its_last_close(
    user: User, workdir: Path
) -> None:
    run_program(user, workdir, DEVICE)


def test_attach_for_reading_errors_many_and_the_end_of_a_server(user: User, workdir: Path) -> None:
    run_program(user, workdir, REST)
