"""Resources that workers (pytest-xdist) share, and those that they do not."""

from __future__ import annotations

import pytest

from tests.support import workers
from tests.support.user import user_name

ONE, OTHER = "tests/e2e/test_copies.py", "tests/e2e/test_umount.py"


def test_the_hosts_loop_devices_are_for_one() -> None:
    tests = (f"{ONE}::test_sysfs[a: b-hosts_loops]", f"{OTHER}::test_several[hosts_loops]")
    assert {workers.scope_of(test) for test in tests} == {workers.GROUP}


def test_modules_are_whole_but_for_that() -> None:
    tests = (f"{ONE}::test_a", f"{ONE}::test_b[mount ::1 x]", f"{OTHER}::test_a[hosts_loops-x]")
    assert [workers.scope_of(test) for test in tests] == [ONE, ONE, OTHER]


def test_tests_with_devices_of_the_kernel_are_in_the_group(request: pytest.FixtureRequest) -> None:
    """However the fixture is asked for, the id says it: see conftest.py."""
    for item in request.session.items:
        names = getattr(item, "fixturenames", ())
        asks = not {"kernel_loops", "kernel_loop", "first_number", "in_both"}.isdisjoint(names)
        assert asks <= (workers.scope_of(item.nodeid) == workers.GROUP), item.nodeid


def test_each_has_a_user_and_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPFS_TEST_USER", "somebody")
    found = []
    for variable in ("", "gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", variable)
        found.append((user_name(workers.number()), workers.prefix()))
    assert found == [
        ("somebody", "loopfs-test-"),
        ("somebody", "loopfs-test-1-"),
        ("somebody-2", "loopfs-test-2-"),
    ]
