"""loopfs.Sandbox: programs that use it, as an ordinary user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import loopfs
from loopfs.errors import LoopfsError
from tests.api.programs import python, run_program
from tests.support.patience import scaled
from tests.support.user import User


def test_what_is_not_asked_for_is_not_imported() -> None:
    seen = "import sys, loopfs; print(*(name for name in sys.modules if 'loopfs' in name))"
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    words = [sys.executable, "-IS", "-c", path + seen]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=scaled(60))
    assert done.stdout.split() == ["loopfs"]


def test_the_names_of_the_package() -> None:
    assert set(loopfs.__all__) <= set(dir(loopfs))
    assert loopfs.LoopfsError is LoopfsError
    with pytest.raises(AttributeError, match="no attribute 'Sandboxes'"):
        _ = loopfs.Sandboxes


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(LoopfsError, match="there is no engine 'x'"):
        loopfs.Sandbox(engines={"ext4": "x"})


def test_a_sandbox_that_is_not_entered() -> None:
    box = loopfs.Sandbox()
    with pytest.raises(LoopfsError, match="is not entered"):
        box.run(["true"])
    box.close()


COMMANDS = """
    import errno, io, os, signal, subprocess, threading
    from subprocess import PIPE, STDOUT, DEVNULL
    import loopfs

    def fails(code, function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except loopfs.LoopfsError as problem:
            assert problem.errno == code and problem.strerror, repr(problem)
            return problem.strerror
        raise AssertionError("it did not fail")

    with loopfs.Sandbox() as box:
        # as subprocess
        words = ["sh", "-c", "cat; echo $0 >&2; exit 3", "x"]
        done = box.run(words, input=b"in", capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"x\\n")
        try:
            box.run("exit 4", shell=True, check=True)
        except subprocess.CalledProcessError as problem:
            assert problem.returncode == 4
        else:
            raise AssertionError
        try:
            box.run(["sleep", "1000"], timeout=0.05)
        except subprocess.TimeoutExpired:
            pass
        else:
            raise AssertionError
        done = box.run(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT, text=True)
        assert done.stdout == "a\\nb\\n"
        big = b"x" * 3_000_000
        assert box.run(["cat"], input=big, stdout=PIPE).stdout == big
        assert box.run(["true"], input=big).returncode == 0
        os.environ["NAME"] = "\\udcff"
        done = box.run('echo "$NAME"; echo $PATH', shell=True, stdout=PIPE)
        assert done.stdout.startswith(b"\\xff\\n") and b"/usr/sbin" in done.stdout
        assert box.run(["/usr/bin/env"], env={"A": "b"}, stdout=PIPE).stdout == b"A=b\\n"
        assert box.run(["pwd"], cwd="/usr", stdout=PIPE, text=True).stdout == "/usr\\n"
        assert "command" in fails(errno.ENOENT, box.run, ["no-such-command"])
        fails(errno.EACCES, box.run, ["/"])
        fails(errno.ENOENT, box.run, ["true"], cwd="/no/such/directory")
        # a process that goes on
        with box.popen(["cat"], stdin=PIPE, stdout=PIPE) as cat:
            assert cat.poll() is None
            assert os.path.exists(f"/proc/{cat.pid}")
            cat.terminate()
            assert cat.wait(20) == cat.poll() == -signal.SIGTERM
            cat.kill()
        # from many threads
        found = []
        def ask(n):
            found.append(box.run(["echo", str(n)], stdout=PIPE, text=True).stdout)
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert sorted(found) == [f"{n}\\n" for n in range(6)]
        left = box.popen(["sleep", "1000"], stdout=DEVNULL)
    fails(errno.ESRCH, left.wait)
    fails(errno.ESRCH, box.run, ["true"])
    box.close()
    with box:  # again
        left = box.popen("echo; read line", shell=True, stdin=PIPE, stdout=PIPE)
        left.stdout.readline()  # a system call that is trapped later would be ENOSYS
        os.kill(box.pid, signal.SIGKILL)
        fails(errno.ESRCH, left.wait)
        assert fails(errno.ESRCH, box.run, ["true"]) == "the sandbox has ended"
"""


@pytest.mark.e2e
def test_commands(user: User, workdir: Path) -> None:
    complaint = "loopfs: the supervisor was killed, which ended the sandbox"
    run_program(user, workdir, COMMANDS, complaint)


DEVICES = """
    import errno, os, threading
    import loopfs

    def fails(code, function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except loopfs.LoopfsError as problem:
            assert problem.errno == code and problem.strerror, repr(problem)
            return problem.strerror
        raise AssertionError("it did not fail")

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def write(directory):
        with open(os.path.join(directory, "file"), "w") as file:
            file.write(str(os.getuid()))
        return os.path.ismount(directory)

    def fail(what):
        if what == "odd":
            raise Odd(1, 2)
        if what == "exit":
            os._exit(3)
        raise KeyError(what)

    if __name__ == "__main__":
        with open("disk.img", "wb") as file:
            file.truncate(8 << 20)
        os.link("disk.img", "same.img")
        with loopfs.Sandbox(max_devices=4, number_from=70) as box:
            with box.attach("disk.img", offset=4096, sizelimit=1 << 20, read_only=True) as disk:
                assert (disk.path, disk.number, os.fspath(disk)) == ("/dev/loop70", 70, disk.path)
                status = disk.status()
                assert status == (os.path.abspath("disk.img"), 4096, 1 << 20, 1 << 20, 512,
                                  True, False, False, False), status
                assert disk.partitions == ()
                assert box.run(["dd", f"of={disk.path}"], input=b"x", stderr=-3).returncode
            fails(errno.ENXIO, disk.detach)
            assert "no.img" in fails(errno.ENOENT, box.attach, "no.img")
            assert "disk.img" in fails(errno.EINVAL, box.attach, "disk.img", sector_size=3)
            assert "blkid" in fails(errno.EINVAL, box.mount, "disk.img")
            box.run(["mkfs.ext4", "-q", "disk.img"], check=True)
            with box.mount("disk.img", options="noatime") as mounted:
                assert (mounted.fstype, box.call(write, mounted.target)) == ("ext4", True)
                done = box.run(["cat", "file"], cwd=mounted.target, capture_output=True)
                assert done.stdout == b"0"
                holder = box.popen(["sleep", "1000"], cwd=mounted.target)
                fails(errno.EBUSY, mounted.umount)
                holder.kill()
                holder.wait()
            assert not box.call(os.path.exists, mounted.target)
            assert "no-such" in fails(errno.ENOENT, box.mount, "disk.img", "/no-such")
            why = fails(errno.EINVAL, box.mount, "disk.img", fstype="ntfs", read_only=True)
            assert "as ntfs" in why
            # functions
            try:
                box.call(fail, "it")
            except KeyError as problem:
                assert problem.args == ("it",) and "In the sandbox" in problem.__notes__[0]
            else:
                raise AssertionError
            assert "Odd" in fails(errno.EINVAL, box.call, fail, "odd")
            assert "without a result" in fails(errno.ECHILD, box.call, fail, "exit")
            assert "pickled" in fails(errno.EINVAL, box.call, lambda: 0)
            assert "pickled" in fails(errno.EINVAL, box.call, threading.Lock)
            os.chdir("/usr")
            assert box.call(os.getcwd) == "/usr"
            assert len(box.call(bytes, 1 << 20)) == 1 << 20
            box.mount("{directory}/disk.img")  # unmounted with the end
"""


@pytest.mark.e2e
def test_devices_mounts_and_functions(user: User, workdir: Path) -> None:
    run_program(user, workdir, DEVICES.replace("{directory}", str(workdir)))
    check = user.run(["e2fsck", "-f", "-n", workdir / "disk.img"])
    assert check.returncode == 0, check.stdout
    assert user.run(["debugfs", "-R", "cat file", workdir / "disk.img"]).stdout == "0"


@pytest.mark.e2e
def test_why_there_is_no_sandbox(user: User, workdir: Path) -> None:
    program = """
        import loopfs, os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            with loopfs.Sandbox(log="/no/such/file"):
                pass
        except loopfs.LoopfsError as problem:
            print(problem.errno, problem.strerror)
    """
    said = run_program(user, workdir, program).stdout
    assert said.startswith("2 ") and "/no/such/file" in said


@pytest.mark.e2e
def test_the_end_of_the_program_is_the_end_of_the_sandbox(user: User, workdir: Path) -> None:
    """Killed: the test looks for what is left behind."""
    program = """
        import loopfs, os, signal
        box = loopfs.Sandbox().__enter__()
        process = box.popen(["sleep", "1000"])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (workdir / "program.py").write_text("\n".join(line[8:] for line in program.splitlines()))
    result = user.run([*python(), "program.py"], cwd=workdir)
    assert (result.returncode, result.stderr) == (-9, "")
