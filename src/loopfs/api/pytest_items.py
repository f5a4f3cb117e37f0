"""Run a test in a sandbox of its own: its fixtures outside, its function inside.

Fixtures of a module or a session are shared with tests that have no sandbox, and must be torn down
in the process that has set them up. So only the call is made in the sandbox, by a fork, which
returns its report.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from _pytest.runner import call_and_report  # as other plugins that run tests in processes

from loopfs.api.forked import run_forked
from loopfs.api.sandbox import Sandbox


def run(item: pytest.Item, nextitem: pytest.Item | None, mark: pytest.Mark) -> None:
    """Run a test as pytest_runtest_protocol does."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if call_and_report(item, "setup").passed and not item.config.getoption("setuponly", False):
        hook.pytest_runtest_logreport(report=_report(item, mark))
    call_and_report(item, "teardown", nextitem=nextitem)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _report(item: pytest.Item, mark: pytest.Mark) -> pytest.TestReport:
    """Return the report of the call in the sandbox, or one of the error that prevented it."""
    call = pytest.CallInfo.from_call(
        lambda: _inside(item, mark), "call", reraise=(pytest.exit.Exception, KeyboardInterrupt)
    )
    if call.excinfo is None:
        assert call.result is not None
        return call.result
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _inside(item: pytest.Item, mark: pytest.Mark) -> pytest.TestReport:
    settings = Sandbox(*mark.args, **mark.kwargs).settings
    answer = run_forked(lambda: _call(item), settings, f"pytest {item.nodeid}")
    if "exit" in answer:
        pytest.exit(answer["exit"], answer["returncode"])
    if "interrupted" in answer:
        raise KeyboardInterrupt
    data = answer["report"]
    for name in ("location", "longrepr"):  # longrepr of a skip is a tuple; JSON has no tuples
        data[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(
        config=item.config, data=data
    )
    item.user_properties[:] = [(str(name), value) for name, value in report.user_properties]
    return report


def _call(item: pytest.Item) -> dict[str, Any]:
    """Call the test, in the sandbox, and return its report."""
    try:
        report = call_and_report(item, "call", log=False)
    except pytest.exit.Exception as problem:  # for example pdb's quit
        return {"exit": problem.msg, "returncode": problem.returncode}
    except KeyboardInterrupt:
        return {"interrupted": True}
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    hook = item.config.hook
    return {"report": hook.pytest_report_to_serializable(config=item.config, report=report)}
