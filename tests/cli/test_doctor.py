"""loopfs doctor, on machines that lack a feature."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopfs.cli import doctor, findings, probes, remedies
from loopfs.cli.findings import Finding
from tests.support.user import CHECKOUT, Result, Run, User

# doctor by itself: what other subcommands import is not under test here.
CALL = "import sys; from loopfs.cli.doctor import main; sys.exit(main(sys.argv[1:]))"
SOURCE = {"PYTHONPATH": str(CHECKOUT / "src")}
PYTHON = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
DOCTOR = [PYTHON, "-c", CALL]


@pytest.fixture
def as_root(needs_root: None, user: User) -> Run:
    """Run a shell script in a mount namespace of its own, as root; "$@" there is doctor --json
    as the ordinary user."""
    root = User("root", 0, 0, "/root")
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]

    def run(script: str) -> Result:
        words = ["unshare", "-m", "sh", "-ec", script, "sh", *drop, *DOCTOR, "--json"]
        return root.run(words, env=SOURCE)

    return run


def named(result: Result) -> dict[str, Finding]:
    """The findings of doctor --json by their names, after a look at what every report holds."""
    report: dict[str, Any] = json.loads(result.stdout)
    found = [Finding(**fields) for fields in report["findings"]]
    assert report["ok"] == doctor.can_run(found) == (result.returncode == 0)
    for finding in found:
        assert finding.ok == (not finding.consequence) == (not finding.remedy)
    return {finding.name: finding for finding in found}


def required_and_missing(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.required and not finding.ok}


# --- this machine ------------------------------------------------------------


def test_this_machine_can_run_loopfs(run_as_user: Run) -> None:
    result = run_as_user([*DOCTOR, "--json"], env=SOURCE)
    found = named(result)
    assert result.returncode == 0, result.stdout
    assert result.stderr == ""
    assert required_and_missing(found) == set()
    assert {"machine", "/dev/fuse", "user namespaces", "FUSE mounts"} <= set(found)
    assert {"access to children", "seccomp listener", "seccomp descriptors"} <= set(found)


def test_table_has_a_line_for_each_finding(run_as_user: Run) -> None:
    table = run_as_user(DOCTOR, env=SOURCE).stdout.splitlines()
    names = named(run_as_user([*DOCTOR, "--json"], env=SOURCE))
    lines = [line for line in table if line and not line.startswith(" ")]
    assert lines[-1] == "loopfs can run here."
    assert [line.split("  ")[0] for line in lines[:-1]] == list(names)
    assert {line.split()[-1] for line in lines if "  " in line} <= {"yes", "needed)"}


LEAVES_NOTHING = """
import os
from loopfs.cli import doctor
before = os.listdir("/proc/self/fd")
list(doctor.examine())
assert os.listdir("/proc/self/fd") == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nothing left")
"""


def test_probes_leave_no_process_and_no_descriptor(run_as_user: Run) -> None:
    result = run_as_user([PYTHON, "-c", LEAVES_NOTHING], env=SOURCE)
    assert (result.stdout, result.stderr) == ("nothing left\n", "")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--frobnicate"])
    assert stop.value.code == 2


# --- machines that lack something --------------------------------------------


def test_without_newuidmap_one_user_id_is_there(run_as_user: Run, workdir: Path) -> None:
    found = named(run_as_user([*DOCTOR, "--json"], env=SOURCE | {"PATH": str(workdir)}))
    assert "apt install uidmap" in found["subordinate ids"].remedy
    assert required_and_missing(found) == set()


def test_fuse_device_that_only_root_may_open(as_root: Run) -> None:
    # A second device node of the same device, over the first in a private mount namespace.
    result = as_root(
        "mount -t tmpfs none /mnt; mknod -m 0600 /mnt/fuse c 10 229;"
        ' mount --bind /mnt/fuse /dev/fuse; exec "$@"'
    )
    found = named(result)
    assert result.returncode == 1
    assert required_and_missing(found) == {"/dev/fuse"}
    assert "Permission denied" in found["/dev/fuse"].consequence
    assert "sudo chmod 0666 /dev/fuse" in found["/dev/fuse"].remedy
    assert "FUSE mounts" not in found, "its answer would be about the device"


def gives_fuse(remedy: str) -> bool:
    """In the words of a machine, or of the container that these tests are run in."""
    return any(words in remedy for words in ("sudo modprobe fuse", "--device /dev/fuse", "plugin"))


def test_fuse_device_without_a_driver(as_root: Run) -> None:
    result = as_root(
        "mount -t tmpfs none /mnt; mknod -m 0666 /mnt/fuse c 255 0;"
        ' mount --bind /mnt/fuse /dev/fuse; exec "$@"'
    )
    assert required_and_missing(named(result)) == {"/dev/fuse"}
    assert gives_fuse(named(result)["/dev/fuse"].remedy)


def test_no_fuse_device(as_root: Run) -> None:
    result = as_root(
        'mount -t tmpfs none /mnt; mknod -m 0666 /mnt/null c 1 3; mount --bind /mnt /dev; exec "$@"'
    )
    assert gives_fuse(named(result)["/dev/fuse"].remedy)


def test_subordinate_ids_of_others_only(as_root: Run) -> None:
    result = as_root('mount --bind /dev/null /etc/subgid; exec "$@"')
    ids = named(result)["subordinate ids"]
    assert result.returncode == 0
    assert not ids.ok
    assert "/etc/subgid has no range" in ids.consequence
    assert "usermod --add-subgids" in ids.remedy


def test_masked_proc(as_root: Run) -> None:
    # As containers do it: the kernel then allows no fresh /proc, which would show what is hidden.
    result = as_root('mount --bind /dev/null /proc/version; exec "$@"')
    found = named(result)
    assert result.returncode == 0
    assert not found["own /proc"].ok
    assert any(word in found["own /proc"].remedy for word in ("unmask", "systempaths", "procMount"))


def test_no_more_user_namespaces(run_as_user: Run) -> None:
    # The limit is one for each user namespace: root of one may set its own.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    words = ["unshare", "-Ur", "sh", "-c", script, "sh", *DOCTOR, "--json"]
    result = run_as_user(words, env=SOURCE)
    found = named(result)
    assert result.returncode == 1
    assert required_and_missing(found) == {"user namespaces"}
    assert "sysctl user.max_user_namespaces=" in found["user namespaces"].remedy
    assert "FUSE mounts" not in found


def test_under_another_supervisor(run_as_user: Run) -> None:
    call = "from loopfs.cli import probes; fd = probes._listen(); " + CALL
    found = named(run_as_user([PYTHON, "-c", call, "--json"], env=SOURCE))
    assert required_and_missing(found) == {"seccomp listener"}
    assert "outside of the sandbox" in found["seccomp listener"].remedy
    assert found["seccomp notification"].ok


def test_no_new_privileges(run_as_user: Run) -> None:
    # newuidmap is set-user-id or has a file capability: no_new_privs takes either from it.
    found = named(run_as_user(["setpriv", "--no-new-privs", *DOCTOR, "--json"], env=SOURCE))
    assert required_and_missing(found) == set()
    assert not found["subordinate ids"].ok


@pytest.fixture
def forbidding(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings as the probes see them; sysctls that this kernel need not have."""
    settings: dict[str, str] = {}
    monkeypatch.setattr(remedies, "setting", settings.get)
    monkeypatch.setattr(remedies, "container", lambda: "")
    monkeypatch.setattr(probes, "_attempt", lambda _: (1, "unshare"))  # EPERM
    return settings


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("user/max_user_namespaces", "100", "in a container"),
    ],
)
def test_the_setting_that_forbids_is_named(
    forbidding: dict[str, str], name: str, value: str, remedy: str
) -> None:
    forbidding[name] = value
    assert remedy in probes.user_namespaces().remedy


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("podman", errno.EPERM, "--security-opt seccomp=FILE"),
        ("docker", errno.EACCES, "--security-opt apparmor=unconfined"),
        ("kubernetes", errno.EPERM, "seccompProfile of type Localhost"),
        ("kubernetes", errno.EACCES, "appArmorProfile of type Unconfined"),
        ("systemd-nspawn", errno.EPERM, "--system-call-filter=setns"),
        ("lxc", errno.EPERM, "lxc.seccomp.profile of the container allow setns"),
        ("incus", errno.ENOSYS, "incus config unset NAME security.syscalls.intercept.mount"),
        ("", errno.EPERM, "a seccomp profile that allows setns"),
        ("", errno.EMFILE, "ulimit -n"),
        ("docker", errno.EINVAL, "see the errors in setns(2)"),
    ],
)
def test_a_remedy_is_said_in_the_words_of_the_container(
    forbidding: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, code: int, words: str
) -> None:
    monkeypatch.setattr(remedies, "container", lambda: name)
    assert words in remedies.refused("setns", code)


@pytest.mark.parametrize(
    ("there", "variable", "name"),
    [
        ("/run/.containerenv", "podman", "podman"),
        ("/dev/incus", "lxc", "incus"),
        ("/dev/lxd", "", "lxd"),
        ("", "lxc", "lxc"),
        ("", "something-else", ""),
    ],
)
def test_which_container_it_is(
    monkeypatch: pytest.MonkeyPatch, there: str, variable: str, name: str
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("container", variable)
    monkeypatch.setattr(os.path, "exists", lambda path: path == there)
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    assert remedies.container() == name


def test_a_path_that_is_refused_may_be_the_users_own_affair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remedies, "container", lambda: "")
    assert remedies.refused("", errno.EACCES).startswith("give your user access to it; or ")
    assert "ulimit -f" in remedies.refused("", errno.EFBIG)


def test_podman_makes_namespaces_where_apparmor_restricts_them(
    forbidding: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidding["kernel/apparmor_restrict_unprivileged_userns"] = "1"
    for there in (True, False):
        monkeypatch.setattr(shutil, "which", lambda _, there=there: there or None)
        assert ("podman unshare loopfs run" in remedies.refused("mount", errno.EACCES)) == there


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    (only,) = doctor.examine()
    assert only.required
    assert not only.ok
    assert "riscv64" in only.consequence
    assert "x86_64" in only.remedy


# --- for a run that failed ---------------------------------------------------


def test_missing_is_the_first_that_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = Finding("optional", False, False, "that is slow", "do this")
    first = Finding("first", False, True, "nothing works", "run: sudo mend")
    second = Finding("second", False, True, "nothing works either", "run: sudo mend it all")
    monkeypatch.setattr(doctor, "_parts", lambda: iter([optional, first, second]))
    assert doctor.missing() == first
    assert doctor.sentence(first) == "nothing works; run: sudo mend"
    monkeypatch.setattr(doctor, "_parts", lambda: iter([optional]))
    assert doctor.missing() is None


def test_the_table_shows_what_to_do() -> None:
    lacking = Finding("/dev/fuse", False, True, "it cannot be opened", "run: sudo chmod it")
    table = doctor.as_table([findings.machine(), lacking]).splitlines()
    assert table[1:] == [
        "/dev/fuse  no (needed)",
        "    it cannot be opened",
        "    run: sudo chmod it",
        "",
        "loopfs cannot run here.",
    ]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise the limit of"),
        (OSError(errno.EAGAIN, "no"), "no process or thread can be started"),
        (MemoryError(), "of memory (ulimit -v)"),
    ],
)
def test_nothing_can_be_found_out(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: Exception,
    words: str,
) -> None:
    def examine() -> Iterator[Finding]:
        yield findings.machine()
        raise problem

    monkeypatch.setattr(doctor, "examine", examine)
    assert doctor.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (sentence,) = said.err.splitlines()
    assert words in sentence


def test_standard_output_that_is_closed_or_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter([findings.machine()]))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert doctor.main([]) == 0
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert doctor.main([]) == 1
    assert capsys.readouterr().err == "loopfs: doctor: standard output: No space left on device\n"


def test_without_dev_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it would need it."""
    assert findings.null().ok
    monkeypatch.setattr(os, "devnull", "/nonexistent/null")
    *_, last = doctor.examine()
    assert not last.ok
    assert doctor.sentence(last) == (
        "/dev/null cannot be opened (No such file or directory);"
        " give the container a /dev (bwrap: --dev /dev)"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_account_of_any_name(
    monkeypatch: pytest.MonkeyPatch, encoding: str, options: list[str]
) -> None:
    name = os.fsdecode(b"caf\xe9\n\xff")
    finding = Finding("ids", False, False, f"there is no range for {name}", f"for {name}")
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert doctor.main(options) == 0
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    shown = r"caf\xe9\n\xff"
    assert f"for {json.dumps(shown)[1:-1] if options else shown}" in text
