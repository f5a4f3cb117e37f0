"""Messages with descriptors between the processes of a sandbox."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.channel import MAX_DESCRIPTORS, MAX_MESSAGE, Channel, close_all

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = Channel.pair()
    yield ends
    for end in ends:
        end.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_keep_their_order_and_their_bounds(pair: Pair) -> None:
    here, there = pair
    for data in (b"one", b"two", b"x" * MAX_MESSAGE):
        here.send(data)
    assert [there.receive().data for _ in range(3)] == [b"one", b"two", b"x" * MAX_MESSAGE]
    there.send(b"back")
    assert here.receive().data == b"back"


def test_the_sender_is_known(pair: Pair) -> None:
    here, there = pair
    child = os.fork()
    if child == 0:
        here.send(b"from the child")
        os._exit(0)
    here.send(b"from the parent")
    senders = {message.data: message.pid for message in (there.receive(), there.receive())}
    os.waitpid(child, 0)
    assert senders == {b"from the child": child, b"from the parent": os.getpid()}


def test_descriptors_arrive_as_our_own(pair: Pair) -> None:
    here, there = pair
    reader, writer = os.pipe()
    here.send(b"a pipe", (reader, writer))
    close_all([reader, writer])
    data, fds, _ = there.receive()
    assert data == b"a pipe"
    try:
        assert not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[1], b"still open")
        assert os.read(fds[0], 100) == b"still open"
    finally:
        close_all(fds)


def test_as_many_descriptors_as_are_allowed(pair: Pair) -> None:
    here, there = pair
    before = open_descriptors()
    here.send(b"many", (here.fileno(),) * MAX_DESCRIPTORS)
    _, fds, _ = there.receive()
    assert len(fds) == len(set(fds)) == MAX_DESCRIPTORS
    assert open_descriptors() == before + MAX_DESCRIPTORS
    close_all(fds)


def test_a_message_without_descriptors_has_none(pair: Pair) -> None:
    here, there = pair
    here.send(b"none")
    assert there.receive().fds == []


def test_the_end_is_an_empty_message(pair: Pair) -> None:
    here, there = pair
    here.send(b"last")
    here.close()
    assert there.receive().data == b"last"
    assert there.receive().data == b""
    assert there.receive().fds == []


def test_an_end_that_was_closed_with_something_unread(pair: Pair) -> None:
    here, there = pair
    here.send(b"never read")
    there.close()
    assert here.receive().data == b""


def test_sending_to_a_closed_channel_is_an_error_and_no_signal(pair: Pair) -> None:
    here, there = pair
    there.close()
    with pytest.raises(BrokenPipeError):
        here.send(b"hello?")


def test_a_channel_can_be_sent_through_a_channel(pair: Pair) -> None:
    here, there = pair
    ours, theirs = Channel.pair()
    here.send(b"job", (theirs.fileno(),))
    theirs.close()
    received = Channel.of_descriptor(there.receive().fds[0])
    received.send(b"answer")
    assert ours.receive()[::2] == (b"answer", os.getpid())
    received.close()
    assert ours.receive().data == b""
    ours.close()


def test_an_end_is_not_inherited(pair: Pair) -> None:
    for end in pair:
        assert not os.get_inheritable(end.fileno())
        with socket.socket(fileno=os.dup(end.fileno())) as sock:
            assert sock.type == socket.SOCK_SEQPACKET


# --- long, cut, or without room ------------------------------------------------------


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 10_000_000])
def test_a_message_of_any_length(pair: Pair, length: int) -> None:
    here, there = pair
    data = os.urandom(length)
    before = open_descriptors()
    here.send(data, (here.fileno(),))
    here.send(b"next")
    received, fds, pid = there.receive()
    assert (received == data, len(fds), pid) == (True, 1, os.getpid())
    assert there.receive().data == b"next"
    close_all(fds)
    assert open_descriptors() == before


def lost(there: Channel) -> int | None:
    """The errno for a message that cannot be received, of which nothing stays."""
    before = open_descriptors()
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        there.receive()
    assert open_descriptors() == before
    return caught.value.errno


def test_a_message_that_is_too_long_for_the_buffer(pair: Pair) -> None:
    here, there = pair
    here._send(bytes(MAX_MESSAGE + 1), (here.fileno(),))
    here.send(b"next")
    assert lost(there) == errno.EMSGSIZE
    assert there.receive().data == b"next"


def test_a_long_message_that_could_still_change(pair: Pair, tmp_path: Path) -> None:
    here, there = pair
    memfd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memfd, b"text")
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    reader, writer = os.pipe()
    for fd in (memfd, file, reader):
        here._send(b"", (fd,))
        assert lost(there) == errno.EMSGSIZE
    close_all([memfd, file, reader, writer])


def test_without_room_for_descriptors(pair: Pair) -> None:
    here, there = pair
    here.send(b"one", (here.fileno(),) * 2)
    here.send(b"next")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = os.open("/dev/null", os.O_RDONLY)  # the lowest that is free
    os.close(room)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room + 1, hard))
    try:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            there.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert there.receive().data == b"next"
