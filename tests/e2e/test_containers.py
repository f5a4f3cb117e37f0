"""loopfs in containers of podman and runc, and containers within a sandbox.

Images hold no more than directories; the programs are the machine's, as /usr is mounted in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loopfs.cli.profiles import CALLS, extended
from tests.support.podman import JOB, Podman, make_root, with_base
from tests.support.skip import need
from tests.support.user import CHECKOUT, Result, User

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.may_skip("podman and runc need not be there, and may not work on a machine"),
]

LOOPFS = ["env", "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=/src", "python3", "-m", "loopfs"]
MOUNTED = {"/usr": "/usr", CHECKOUT / "src": "/src"}


@pytest.fixture(scope="module")
def podman(user: User) -> Iterator[Podman]:
    """podman as the user, with a storage of its own; it has the image "base"."""
    with with_base(user) as (call, _):
        yield call


RUN = ["run", "--rm", "--network=none", "-v", "/usr:/usr:ro"]
FUSE = "--device=/dev/fuse"
RESTRICTED = "--cap-drop=all --security-opt=no-new-privileges --read-only --tmpfs=/work --user=1000"
WORK = [FUSE, f"{FUSE} --user=1000", f"{FUSE} {RESTRICTED}"]
WORK += [f"{FUSE} --cap-drop=all --cap-add=SETFCAP,SETUID,SETGID"]
# What it says where something is missing.
LACK = {
    "": "/dev/fuse cannot be opened (No such file or directory); "
    "start the container with --device /dev/fuse",
    f"{FUSE} --cap-drop=all": "start the container with --user 1000, or --cap-add SETFCAP",
}


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_in_a_container_of_podman(podman: Podman, runtime: str) -> None:
    made = podman(*RUN, "base", "true", runtime=runtime)
    need(made.returncode == 0, f"podman cannot run a container by {runtime} here: {made.stderr}")

    def run(options: str) -> Result:
        mounts = ["-v", f"{CHECKOUT}/src:/src:ro", *options.split(), "base"]
        return podman(*RUN, *mounts, *LOOPFS, "run", "sh", "-c", JOB, runtime=runtime)

    with ThreadPoolExecutor(3) as pool:
        worked, refused = list(pool.map(run, WORK)), list(pool.map(run, LACK))
    for options, result in zip(WORK, worked, strict=True):
        assert (result.returncode, result.stdout, result.stderr) == (0, "text\n", ""), options
    for (options, sentence), result in zip(LACK.items(), refused, strict=True):
        assert (result.returncode, result.stdout) == (125, ""), options
        (line,) = result.stderr.splitlines()
        assert sentence in line


def test_doctor_speaks_podmans_words(podman: Podman) -> None:
    mounts = ["-v", f"{CHECKOUT}/src:/src:ro", "base"]
    result = podman(*RUN, FUSE, *mounts, *LOOPFS, "doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert "start the container with --security-opt unmask=ALL" in result.stdout
    result = podman(*RUN, *mounts, *LOOPFS, "doctor")
    assert result.returncode == 1
    assert "start the container with --device /dev/fuse" in result.stdout
    result = podman(*RUN, "--user=1000", FUSE, *mounts, *LOOPFS, "doctor")
    assert result.returncode == 0
    assert re.search(r"--add-subuids 1001-6553\d user", result.stdout)  # not beyond its ids


# --- containers in a sandbox ---------------------------------------------------


def test_podman_in_a_sandbox(podman: Podman, loopfs_bin: list[str], tmp_path: Path) -> None:
    """-v /dev:/dev gives a container the devices; /sys is of its own network namespace."""
    before = (*loopfs_bin, "run", "--")
    options = ["--cap-add=SYS_ADMIN", "-v", "/dev:/dev"]
    result = podman(*RUN, *options, "base", "sh", "-c", JOB, before=before)
    assert (result.returncode, result.stdout, result.stderr) == (0, "text\n", "")
    # Without the capability there are devices, and no mounts.
    script = (
        "cd /work; truncate -s 1M a; losetup -f a && mount /dev/loop[0-9] /tmp 2>&1; losetup -D"
    )
    result = podman(*RUN, "-v", "/dev:/dev", "base", "sh", "-c", script, before=before)
    assert result.returncode == 0
    assert "permission denied" in result.stdout


def test_an_image_is_built_in_a_sandbox(
    podman: Podman, loopfs_bin: list[str], workdir: Path
) -> None:
    """RUN losetup, mount: the Containerfile knows nothing of loopfs."""
    (workdir / "Containerfile").write_text("FROM base\nRUN " + "; ".join(JOB.splitlines()))
    options = ["--network=none", "--cap-add=SYS_ADMIN", "-v", "/dev:/dev", "-v", "/usr:/usr:ro"]
    result = podman("build", *options, workdir, before=(*loopfs_bin, "run", "--"))
    assert result.returncode == 0, result.stderr
    assert "text\n" in result.stdout


# --- runc, as Docker and Kubernetes configure it ---------------------------------

DEFAULT_CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
]
DEFAULT_CAPABILITIES += ["CAP_FSETID", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]
DEFAULT_CAPABILITIES += ["CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"]


HOST_ID = 1_000_000_000  # of nobody


def dockers(profile: dict[str, object]) -> dict[str, object]:
    """As Docker's default: the calls of mounts are refused with EPERM."""
    rules = profile["syscalls"]
    assert isinstance(rules, list)
    refused = [call for call in CALLS if call.startswith(("fs", "mount", "move", "open", "umount"))]
    refused += ["unshare", "setns", "pidfd_getfd"]
    allowed = [call for call in CALLS if call not in refused]
    return profile | {
        "defaultErrnoRet": 1,
        "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}, *rules[1:]],
    }


def configuration(root: Path, profile: dict[str, object], kind: str) -> str:
    """config.json of the OCI's runtime-spec."""
    restricted = kind != "docker"
    namespaces = [{"type": name} for name in ("pid", "mount", "ipc", "uts", "network")]
    maps = []
    if kind == "hostUsers: false":
        namespaces.append({"type": "user"})
        maps = [{"containerID": 0, "hostID": HOST_ID, "size": 65536}]
    user = {"uid": 1000, "gid": 1000} if restricted else {"uid": 0, "gid": 0}
    capabilities = [] if restricted else DEFAULT_CAPABILITIES
    fuse = {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o666}
    flags = ["nosuid", "noexec", "nodev"]
    binds = [
        {"source": str(source), "destination": target, "type": "bind", "options": ["rbind", "ro"]}
        for source, target in MOUNTED.items()
    ]
    return json.dumps(
        {
            "ociVersion": "1.0.2",
            "process": {
                "user": user,
                "args": [*LOOPFS, "run", "sh", "-c", JOB],
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/",
                "noNewPrivileges": restricted,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            },
            "root": {"path": str(root), "readonly": restricted},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
                {
                    "destination": "/sys",
                    "type": "sysfs",
                    "source": "sysfs",
                    "options": [*flags, "ro"],
                },
                {
                    "destination": "/work",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["mode=1777"],
                },
                *binds,
            ],
            "linux": {
                "devices": [fuse],
                "resources": {
                    "devices": [
                        {"allow": False, "access": "rwm"},
                        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                    ]
                },
                "namespaces": namespaces,
                "uidMappings": maps,
                "gidMappings": maps,
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
                "seccomp": profile,
            },
        }
    )


@pytest.mark.parametrize("kind", ["docker", "restricted", "hostUsers: false"])
def test_in_a_container_of_runc(
    root: User, loopfs_bin: list[str], workdir: Path, kind: str
) -> None:
    need(shutil.which("runc"), "runc is not installed")
    ours = json.loads(root.run([*loopfs_bin, "seccomp-profile"]).stdout)
    make_root(workdir / "root")
    if kind == "hostUsers: false":
        workdir.chmod(0o755)
        root.run(["chown", "-R", f"{HOST_ID}:{HOST_ID}", workdir / "root"])

    def run(name: str, profile: dict[str, object]) -> Result:
        bundle = workdir / name
        bundle.mkdir()
        text = configuration(workdir / "root", profile, kind)
        (bundle / "config.json").write_text(text)
        state = ["--root", str(bundle)]
        return root.run(["runc", *state, "run", "-b", bundle, f"{workdir.name}-{name}"])

    first = run("plain", dockers(ours))
    need(first.returncode in (0, 125), f"runc does not work here: {first.stderr}")
    assert first.returncode == 125
    (sentence,) = first.stderr.splitlines()
    assert "(unshare: Operation not permitted)" in sentence and "seccomp" in sentence
    result = run("ours", ours)
    assert (result.returncode, result.stdout, result.stderr) == (0, "text\n", "")
    assert extended(ours, os.uname().machine) == ours
