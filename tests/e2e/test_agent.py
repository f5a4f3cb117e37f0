"""loopfs agent: containers and builds whose image has no loopfs.

The image has no loopfs, the containers no /dev/fuse and no CAP_SYS_ADMIN.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from loopfs.uapi.syscalls import abis
from tests.e2e.test_containers import DEFAULT_CAPABILITIES, HOST_ID, configuration
from tests.support.agent import Agent, agent
from tests.support.parts import children_of, engines_of, wait_until
from tests.support.patience import scaled
from tests.support.podman import JOB, Podman, make_root, with_base
from tests.support.skip import need
from tests.support.user import Result, User

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.may_skip("podman and runc need not be there, and may not work on a machine"),
]

RUN = ["run", "--network=none", "-v", "/usr:/usr:ro"]
RESTRICTED = ["--cap-drop=all", "--security-opt=no-new-privileges", "--read-only"]
RESTRICTED += ["--tmpfs=/work"]
PARTITIONED = """
truncate -s 4M disk; echo 2048,,c | sfdisk -q disk; d=$(losetup -P -f --show disk)
mkfs.vfat ${d}p1 >/dev/null; mount -o codepage=850,iocharset=iso8859-15 ${d}p1 mnt
echo hello >mnt/hello; umount mnt; losetup -d $d
losetup -o 1M disk -f --show >/dev/null; losetup -a | wc -l; losetup -D
mcopy -i disk@@1M ::hello -
"""
# Root of the container may mount its devices, nothing else, and not where the runtime looks.
BEGIN = """
cd /work; truncate -s 8M a; mkfs.ext4 -q a; mkdir m; mount -o loop a m; echo x >m/f
truncate -s 1M b; mkfs.ext4 -q b; mkdir d; losetup -a | wc -l
for what in "-t tmpfs none d" "-t proc none d" "-t devtmpfs none d" "-t sysfs none d" \
    "--bind /work d" "--bind /sys d" "--rbind /work d" "--move /dev/loopfs d" \
    "-o loop b /proc/tty" "-o loop b /proc/acpi" "-o loop b /sys/firmware" \
    "-o loop b /" "-t loop none /proc/.." "-o remount,rw /sys"; do
    mount $what 2>/dev/null && echo mounted $what
done
for place in /proc /proc/acpi /sys/firmware /sys /dev /dev/shm; do
    umount -l $place 2>/dev/null && echo unmounted $place
done
losetup -a | wc -l
"""
GO_ON = """
cd /work; cat m/f; umount m; losetup -a; mount -o loop a m; cat m/f
"""


class Served(NamedTuple):
    """An agent, and containers that it serves."""

    agent: Agent
    podman: Podman
    seccomp: str


@pytest.fixture(scope="module")
def podman(user: User) -> Iterator[tuple[Podman, Path]]:
    with with_base(user) as made:
        yield made


@pytest.fixture
def served(
    podman: tuple[Podman, Path], loopfs_bin: list[str], user: User, workdir: Path
) -> Iterator[Served]:
    call, _ = podman
    with agent(loopfs_bin, user, workdir) as made:
        profile = workdir / "profile.json"
        profile.write_text(json.dumps(made.profile()))
        yield Served(made, call, f"--security-opt=seccomp={profile}")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_containerfile_that_is_not_ours(served: Served, workdir: Path, runtime: str) -> None:
    """RUN losetup, mount: it is built, and a container without privileges runs the same."""
    made = served.podman("run", "--rm", "base", "true", runtime=runtime)
    need("not supported" not in made.stderr, f"{runtime} does not work here: {made.stderr}")
    job = "; ".join(JOB.splitlines())
    (workdir / "Containerfile").write_text(f"FROM base\nRUN {job}\n")
    options = ["--network=none", served.seccomp, "-v", "/usr:/usr:ro", "--no-cache"]

    def build() -> Result:
        return served.podman("build", *options, workdir, runtime=runtime)

    def run() -> Result:
        restricted = [*RUN, "--rm", *RESTRICTED, served.seccomp, "base"]
        return served.podman(*restricted, "sh", "-c", JOB + PARTITIONED, runtime=runtime)

    with ThreadPoolExecutor(2) as pool:
        built, ran = pool.submit(build), pool.submit(run)
    assert built.result().returncode == 0, built.result().stderr
    assert "text\n" in built.result().stdout
    assert (ran.result().returncode, ran.result().stdout) == (0, "text\n1\nhello\n"), ran.result()


def test_its_life(served: Served) -> None:
    """Engines are confined; the agent's end is not that of containers, theirs is the end of all."""
    podman, server = served.podman, served.agent
    podman(*RUN, "-d", "--name=one", served.seccomp, "base", "sleep", "1000")

    def execute(script: str) -> str:
        result = podman("exec", "one", "sh", "-c", script)
        assert result.returncode == 0, result.stderr
        return str(result.stdout)

    assert execute(BEGIN) == "1\n1\n"
    (engine,) = (
        each
        for keeper in children_of(server.process.pid)
        for supervisor in children_of(keeper)
        for helper in children_of(supervisor)
        for each in engines_of(helper)
    )
    if os.geteuid() == 0:
        _is_confined(engine)

    server.process.kill()
    server.process.wait(20)
    server.start()
    assert execute(GO_ON) == "x\nx\n"
    other = podman(*RUN, "--rm", served.seccomp, "base", "sh", "-c", "losetup -a; ls /dev/loopfs")
    assert other.stdout == "loop-control\n"  # nothing of another's

    # Who kills a supervisor takes its devices away, and no more: not who waits for an answer.
    (supervisor,) = (pid for pid in server.processes() if engine_of(pid))
    (helper,) = children_of(supervisor)
    waiting_for_jobs = {helper, *children_of(helper)} - set(engines_of(helper))
    with ThreadPoolExecutor(1) as pool:
        for pid in waiting_for_jobs:
            os.kill(pid, signal.SIGSTOP)
        waiting = pool.submit(execute, "mount -o loop /work/b /work/d 2>&1 || echo refused")
        mount = "mount -o loop /work/b"
        wait_until(lambda: _pid_of(mount), "mount(8) has started")
        wait_until(lambda: _waits_in_mount(_pid_of(mount)), "it waits for the helper")
        os.kill(supervisor, signal.SIGKILL)
        assert waiting.result().endswith("refused\n")
    for pid in waiting_for_jobs:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "its supervisor was killed" in server.said(), "the keeper knows")
    assert execute("mount -o loop /work/a /work/m 2>&1 || echo refused").endswith("refused\n")
    podman("rm", "-f", "-t", "0", "one")
    wait_until(lambda: server.processes() == [server.process.pid], "only the agent is left")
    assert "Traceback" not in server.said()


def _pid_of(beginning: str) -> int:
    """The process with a command line that begins so; 0 if there is none."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if entry.name.isdigit() and words.startswith(beginning):
                return int(entry.name)
    return 0


def _waits_in_mount(pid: int) -> bool:
    """Only root can tell: it has called mount(2), and it is received."""
    if os.geteuid() != 0:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(
            abis()[0].numbers["mount"]
        )
    return False


def engine_of(supervisor: int) -> list[int]:
    """The engines of a supervisor's helper."""
    return [each for helper in children_of(supervisor) for each in engines_of(helper)]


def _is_confined(engine: int) -> None:
    """It can reach nothing, whoever has it in his hands."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{engine}/status").read_text().splitlines()
    )
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Inh")} == {0}
    assert os.listdir(f"/proc/{engine}/root/") == []
    for name in ("net", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{engine}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    open_files = [os.readlink(entry) for entry in Path(f"/proc/{engine}/fd").iterdir()]
    assert sorted(open_files)[:5] == ["/dev/fuse", *["/dev/null"] * 3, "/work/a"]
    assert [name.partition(":")[0] for name in sorted(open_files)[5:]] == ["socket"]


@pytest.mark.parametrize("kind", ["hostUsers: false", "docker"])
def test_runc_alone(root: User, loopfs_bin: list[str], workdir: Path, kind: str) -> None:
    """With a user namespace its engines are in the container's cgroup; without, it has none."""
    need(shutil.which("runc"), "runc is not installed")
    make_root(workdir / "root")
    workdir.chmod(0o755)
    with agent(loopfs_bin, root, workdir) as server:
        base = workdir / "base.json"
        base.write_text(root.run([*loopfs_bin, "seccomp-profile"]).stdout)
        config = json.loads(configuration(workdir / "root", server.profile(base), kind))
        capabilities = dict.fromkeys(("bounding", "effective", "permitted"), DEFAULT_CAPABILITIES)
        script = "echo begun; " + JOB + "mount -o loop disk.img mnt; echo ready; cat >/dev/null"
        config["process"] |= {"user": {"uid": 0, "gid": 0}, "capabilities": capabilities}
        config["process"]["args"] = ["sh", "-c", script + "; umount mnt"]
        config["linux"]["devices"] = []
        (workdir / "config.json").write_text(json.dumps(config))
        if kind != "docker":
            root.run(["chown", "-R", f"{HOST_ID}:{HOST_ID}", workdir / "root"])
        words = ["runc", "--root", f"{workdir}/state", "run", "-b", str(workdir), workdir.name]
        container = root.start(words)
        assert container.stdout is not None and container.stderr is not None
        begun = container.stdout.readline()
        need(begun == "begun\n", "runc does not work here")
        if kind == "docker":
            _, said = container.communicate(timeout=scaled(30))
            assert container.returncode == 1
            assert "cannot find an unused loop device" in said
            assert server.said().count("has no user namespace of its own") == 1
            return
        assert [container.stdout.readline() for _ in range(2)] == ["text\n", "ready\n"]
        (engine,) = (each for pid in server.processes() for each in engine_of(pid))
        (supervisor,) = (pid for pid in server.processes() if engine_of(pid))
        assert workdir.name in Path(f"/proc/{engine}/cgroup").read_text()
        assert workdir.name not in Path(f"/proc/{supervisor}/cgroup").read_text()
        _, said = container.communicate(timeout=scaled(30))
        assert (container.returncode, "loopfs" in said) == (0, False)


def test_runc_of_a_user(user: User, loopfs_bin: list[str], workdir: Path) -> None:
    """It makes the user namespace itself, and is closed to the agent until the program starts: that
    has its devices nevertheless."""
    need(shutil.which("runc"), "runc is not installed")
    make_root(workdir / "root")
    with agent(loopfs_bin, user, workdir) as server:
        base = workdir / "base.json"
        base.write_text(user.run([*loopfs_bin, "seccomp-profile"]).stdout)
        kind = "hostUsers: false"
        config = json.loads(configuration(workdir / "root", server.profile(base), kind))
        config["process"] |= {"user": {"uid": 0, "gid": 0}, "args": ["losetup", "-f"]}
        config["mounts"] = [each for each in config["mounts"] if each["type"] != "sysfs"]
        config["linux"] |= {"devices": [], "resources": {}}
        for which, number in (("uid", user.uid), ("gid", user.gid)):
            maps = [{"containerID": 0, "hostID": number, "size": 1}]
            config["linux"][f"{which}Mappings"] = maps
        (workdir / "config.json").write_text(json.dumps(config))
        chown = ["chown", "-R", f"{user.uid}:{user.gid}", str(workdir)]
        if not user.is_self:
            User("root", 0, 0, "/root").run(chown)
        words = ["runc", "--root", f"{workdir}/state", "run", "-b", str(workdir), workdir.name]
        result = user.run(words, env={"XDG_RUNTIME_DIR": str(workdir)})
        need("cgroup" not in result.stderr, f"runc does not work here: {result.stderr}")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("/dev/loop")
