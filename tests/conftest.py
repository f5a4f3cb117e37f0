"""Fixtures for the tests of every layer, and the treatment of skipped tests in CI."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import host, workers
from tests.support.kernel import new_loop_device
from tests.support.patience import scaled
from tests.support.skip import need
from tests.support.user import (
    CHECKOUT,
    MARK,
    Result,
    Run,
    User,
    find_user,
    loopfs_command,
    user_name,
)

os.environ.setdefault(MARK, uuid.uuid4().hex)
# A shell without job control has its background commands ignore these; ours are to begin afresh.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# No example has a time limit of its own: machines are busy, or emulated.
hypothesis.settings.register_profile("loopfs", deadline=None)
hypothesis.settings.load_profile("loopfs")


# --- who and where -----------------------------------------------------------


@pytest.fixture(scope="session")
def user() -> User:
    """The ordinary user that runs loopfs."""
    found = find_user()
    need(found, "under root, LOOPFS_TEST_USER must name an ordinary user (./check makes one)")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def loopfs_bin(user: User) -> list[str]:
    """The command of loopfs for that user."""
    command = loopfs_command()
    reachable = user.run(["test", "-r", CHECKOUT / "src"]).returncode == 0
    need("LOOPFS_BIN" in os.environ or reachable, f"{user.name} cannot enter the checkout")
    return command


@pytest.fixture(scope="session")
def run_as_user(user: User) -> Run:
    """Run a command, or a script if it is a string, as the ordinary user: see User.run."""
    return user.run


@pytest.fixture
def workdir(user: User) -> Iterator[Path]:
    """A new directory of that user, on a real filesystem."""
    path = Path(tempfile.mkdtemp(prefix=workers.prefix(), dir="/var/tmp"))
    try:
        os.chown(path, user.uid, user.gid)
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def loopfs_run(user: User, loopfs_bin: list[str], workdir: Path) -> Run:
    """Run a command, or a script if it is a string, by ``loopfs run``.

    Further arguments are options of ``loopfs run``; keywords are those of User.run, where ``cwd``
    is ``workdir`` by default.
    """

    def run(command: str | Sequence[str | Path], *options: str, **how: Any) -> Result:
        words = ["sh", "-c", command] if isinstance(command, str) else command
        how.setdefault("cwd", workdir)
        return user.run([*loopfs_bin, "run", *options, "--", *words], **how)

    return run


# --- the kernel's side -------------------------------------------------------


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip the test unless root runs it."""
    need(os.geteuid() == 0, "needs root")


@pytest.fixture(scope="session")
def hosts_loops() -> None:
    """Ensure that no other worker uses loop devices of the host (tests/support/workers.py)."""


@pytest.fixture(scope="session")
def kernel_loops(needs_root: None, hosts_loops: None) -> None:
    """Skip the test unless it can use loop devices of the kernel's own driver."""
    need(os.path.exists("/dev/loop-control"), "the kernel has no loop driver")


@pytest.fixture
def kernel_loop(kernel_loops: None) -> Iterator[str]:
    """The path of a new loop device of the kernel's driver, which is removed afterwards."""
    with new_loop_device() as path:
        yield path


@pytest.fixture
def first_number(hosts_loops: None) -> int:
    """The number of an instance's first device: the next one after the host's."""
    names = [entry.name for entry in os.scandir("/sys/block") if entry.name.startswith("loop")]
    return max((int(name[4:]) for name in names), default=-1) + 1


# --- rules for all tests -----------------------------------------------------


_TURN = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Multiply the time limits of pytest-timeout."""
    if config.getoption("timeout", None) is None:
        config.option.timeout = scaled(float(config.getini("timeout")))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Wait for the tests of another checkout: all share the kernel's loop devices."""
    if workers.number() is not None:  # the process that has started this worker holds the lock
        return
    _check_users(session.config.getoption("numprocesses", 0) or 0)
    session.stash[_TURN] = directory = os.open("/var/tmp", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for other tests on this machine.", file=sys.stderr, flush=True)
        fcntl.flock(directory, fcntl.LOCK_EX)


def _check_users(count: int) -> None:
    """Check that each of ``count`` workers has a user of its own. Raises UsageError."""
    if count > 1 and os.geteuid():
        raise pytest.UsageError("-n: only root can run tests as several users")
    for worker in range(count):
        try:
            pwd.getpwnam(user_name(worker))
        except KeyError:
            missing = f"worker {worker + 1} needs the user {user_name(worker)}"
            raise pytest.UsageError(f"{missing} (./check makes three)") from None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Release the lock for the tests of another checkout."""
    if _TURN in session.stash:
        os.close(session.stash[_TURN])


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    workers.name_group(metafunc)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    return workers.scheduler(config, log)


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an e2e test that leaves a mount, a device, a process or a temporary file behind."""
    if request.node.get_closest_marker("e2e") is None:
        yield
        return
    user: User = request.getfixturevalue("user")
    before = host.look(user)
    yield
    left = host.wait_for_leftovers_to_go(user, before)
    if left:
        pytest.fail("left behind on the host:\n" + "\n".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test fail in CI, unless it has the marker ``may_skip``."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and _skips_fail() and item.get_closest_marker("may_skip") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI without the marker may_skip: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    if report.skipped and _skips_fail():
        report.outcome = "failed"
        report.longrepr = f"a whole module is skipped in CI: {_reason(report)}"
    return report


def pytest_report_header() -> str:
    user = find_user()
    who = user.name if user else "nobody: there is no account for it"
    return f"loopfs: {' '.join(loopfs_command())}, run as {who}"


def _skips_fail() -> bool:
    return bool(os.environ.get("LOOPFS_CI"))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
