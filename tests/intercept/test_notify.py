"""The threads that receive trapped calls: one is always ready, and none is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import sys
import threading
from collections.abc import Iterator

import pytest

from loopfs.intercept import notify
from loopfs.intercept.notify import Call, may_wait, serve
from loopfs.process import Process
from loopfs.uapi import seccomp
from loopfs.uapi.syscalls import abis
from tests.support.parts import wait_until

ABI = abis()[0]
LISTENER = -1


class Kernel:
    """Stands in for the listener: calls are made by :meth:`trap`, ``answers`` has their errnos."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.hung_up = False
        self._calls: queue.SimpleQueue[int] = queue.SimpleQueue()

    def trap(self, number: int) -> None:
        self._calls.put(number)

    def answered(self, *numbers: int) -> bool:
        return self.answers.keys() >= set(numbers)

    def end(self) -> None:
        self.hung_up = True
        for _ in threading.enumerate():
            self._calls.put(0)

    def ioctl(self, fd: int, command: int, argument: bytearray, mutate: bool = False) -> None:
        assert fd == LISTENER
        if command == seccomp.SECCOMP_IOCTL_NOTIF_RECV:
            number = self._calls.get()
            if not number:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            nr = ABI.numbers["mount"]
            rest = (0,) * 7  # the instruction pointer and the arguments
            seccomp.NOTIF.pack_into(argument, 0, number, os.getpid(), 0, nr, ABI.arch, *rest)
        elif command == seccomp.SECCOMP_IOCTL_NOTIF_SEND:
            number, _, error, _ = seccomp.NOTIF_RESP.unpack(argument)
            if number in self.answers:
                raise OSError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
            self.answers[number] = -error


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    fake = Kernel()
    before = set(threading.enumerate())
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    monkeypatch.setattr(notify, "_hung_up", lambda _: fake.hung_up)
    yield fake
    fake.end()
    for thread in set(threading.enumerate()) - before:
        thread.join()


def served(handler: notify.Handler) -> None:
    threading.Thread(target=serve, args=(LISTENER, handler), daemon=True).start()


def number_of(call: Call) -> int:
    return call._id


def test_calls_that_wait_do_not_keep_others(kernel: Kernel) -> None:
    go_on = threading.Event()

    def handler(call: Call) -> None:
        may_wait()
        if number_of(call) < 20:
            go_on.wait()
        call.finish()

    served(handler)
    for number in range(1, 21):
        kernel.trap(number)
    wait_until(lambda: kernel.answered(20), "the one that does not wait is answered")
    assert not kernel.answered(1)
    go_on.set()
    wait_until(lambda: kernel.answered(*range(1, 21)), "all are answered")


def test_it_serves_as_long_as_there_are_processes(kernel: Kernel) -> None:
    """serve() does not return when its own thread is the last of several to be ready again: for
    the agent that is the end of the container."""
    released = {number: threading.Event() for number in range(1, 5)}

    def handler(call: Call) -> None:
        may_wait()
        released[number_of(call)].wait()
        call.finish()

    own = threading.Thread(target=serve, args=(LISTENER, handler), daemon=True)
    own.start()
    for number in released:  # the first call is received by that thread
        kernel.trap(number)
        wait_until(lambda: len(notify._in_progress) == number, "the call is handled")  # noqa: B023
    for number in (4, 3, 2, 1):
        released[number].set()
        wait_until(lambda: kernel.answered(number), "it is answered")  # noqa: B023
    kernel.trap(5)
    released[5] = threading.Event()
    released[5].set()
    wait_until(lambda: kernel.answered(5), "the next call is answered, too")
    wait_until(lambda: not notify._in_progress, "all have been handled")
    own.join(0.05)
    assert own.is_alive()
    kernel.end()
    own.join()


def test_few_threads_stay_when_nothing_waits(kernel: Kernel) -> None:
    go_on = threading.Event()

    def handler(call: Call) -> None:
        may_wait()
        go_on.wait()
        call.finish()

    served(handler)
    before = threading.active_count()
    for number in range(1, 9):
        kernel.trap(number)
    wait_until(lambda: threading.active_count() == before + 8, "each has a thread")
    go_on.set()
    wait_until(lambda: threading.active_count() < before + 2, "they have gone")
    kernel.trap(9)
    wait_until(lambda: kernel.answered(*range(1, 10)), "calls are still received")


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("problem", "code"),
    [(OSError(errno.ENODEV, "none"), errno.ENODEV), (ValueError("a bug"), errno.EIO)],
)
def test_an_exception_is_the_answer(
    kernel: Kernel, problem: Exception, code: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)

    def handler(call: Call) -> None:
        if waits:
            may_wait()
        raise problem

    served(handler)
    kernel.trap(1)
    kernel.trap(2)
    wait_until(lambda: kernel.answered(1, 2), "both are answered")
    assert kernel.answers == {1: code, 2: code}


@pytest.mark.parametrize("problem", [OSError(errno.ENODEV, "none"), ValueError("a bug")])
def test_an_exception_after_the_answer_is_reported_and_ends_nothing(
    kernel: Kernel, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda _, value, trace: told.append(value))

    def handler(call: Call) -> None:
        call.finish()
        raise problem

    served(handler)
    for number in range(1, 6):
        kernel.trap(number)
    wait_until(lambda: len(told) == 5, "each is told")
    assert kernel.answers == dict.fromkeys(range(1, 6), 0)


def test_without_another_thread_a_call_fails_with_eagain(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(call: Call) -> None:
        may_wait()
        call.finish()

    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    served(handler)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        kernel.trap(1)
        kernel.trap(2)
        wait_until(lambda: kernel.answered(1, 2), "both are answered")
    kernel.trap(3)
    wait_until(lambda: kernel.answered(3), "later calls are handled")
    assert kernel.answers == {1: errno.EAGAIN, 2: errno.EAGAIN, 3: 0}


@pytest.mark.parametrize(
    ("closed", "code", "decision"),
    [
        (True, errno.EACCES, "continue"),
        (True, errno.EPERM, "continue"),
        (True, errno.ENOENT, errno.ENOENT),
        (False, errno.EACCES, errno.EACCES),
    ],
)
def test_a_caller_that_may_not_be_looked_at_is_the_kernels_to_answer(
    monkeypatch: pytest.MonkeyPatch, closed: bool, code: int, decision: int | str
) -> None:
    sent: list[tuple[int, int, int]] = []

    class Caller(Call):
        def _send(self, value: int, error: int, flags: int) -> bool:
            sent.append((value, error, flags))
            return True

    def handler(call: Call) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Process, "closed_to_us", lambda self: closed)
    nr = ABI.numbers["mount"]
    call = Caller(LISTENER, seccomp.Notification._make((1, 4711, 0, nr, ABI.arch, *(0,) * 7)))
    notify._handle(call, handler)
    if decision == "continue":
        assert sent == [(0, 0, seccomp.SECCOMP_USER_NOTIF_FLAG_CONTINUE)]
    else:
        assert sent == [(0, -code, 0)]


# --- what must not end a receiver ---------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    said: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda _, value, trace: said.append(value))
    return said


@pytest.mark.parametrize(
    "problem",
    [OSError(0, ""), OSError("no errno"), OSError(1000, ""), OSError(524, ""), OSError(5000, "")],
)
def test_an_errno_that_is_none_is_eio(kernel: Kernel, told: list[object], problem: OSError) -> None:
    def handler(call: Call) -> None:
        raise problem

    served(handler)
    kernel.trap(1)
    kernel.trap(2)
    wait_until(lambda: kernel.answered(1, 2), "both are answered")
    assert kernel.answers == {1: errno.EIO, 2: errno.EIO}


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN, errno.EFAULT, errno.EINTR])
@pytest.mark.parametrize(
    "command", [seccomp.SECCOMP_IOCTL_NOTIF_RECV, seccomp.SECCOMP_IOCTL_NOTIF_SEND]
)
def test_an_ioctl_that_fails_costs_no_receiver(
    kernel: Kernel, told: list[object], monkeypatch: pytest.MonkeyPatch, code: int, command: int
) -> None:
    failures = [code] * 3

    def failing(fd: int, which: int, argument: bytearray, mutate: bool = False) -> None:
        if which == command and failures:
            failure = failures.pop()
            raise OSError(failure, os.strerror(failure))
        kernel.ioctl(fd, which, argument, mutate)

    monkeypatch.setattr(fcntl, "ioctl", failing)
    served(lambda call: call.finish())
    for number in range(1, 9):
        kernel.trap(number)
    wait_until(lambda: not failures and kernel.answered(8), "the last is answered")


def test_a_call_that_cannot_be_made(
    kernel: Kernel, told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "Process", {}.__getitem__)
    served(lambda call: call.finish())
    kernel.trap(1)
    kernel.trap(2)
    wait_until(lambda: kernel.answered(1, 2), "both are answered")
    assert kernel.answers == {1: errno.EIO, 2: errno.EIO}
    assert [type(problem) for problem in told] == [KeyError, KeyError]


def test_a_failure_that_cannot_be_reported_is_eio(
    kernel: Kernel, told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the log of a call fails."""

    def fail(call: Call, code: int) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Call, "fail", fail)

    def handler(call: Call) -> None:
        raise OSError(errno.ENODEV, "")

    served(handler)
    for number in range(1, 4):
        kernel.trap(number)
    wait_until(lambda: kernel.answered(1, 2, 3), "all are answered")
    assert set(kernel.answers.values()) == {errno.EIO}
