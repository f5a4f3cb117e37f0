"""The keeper of a container's listeners: a process that outlives the agent and the supervisor.

When no process has a listener open, the kernel fails its trapped calls, also execve(2). So the
keeper holds all listeners of a container, passes them to the supervisor, and answers calls itself
if the supervisor was killed. It has a socket, the door, by which other processes of the agent, also
of one that was restarted, pass it the listeners of programs that are executed in the container
later.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from contextlib import suppress
from mmap import PAGESIZE, mmap

from loopfs.agent import container, state
from loopfs.agent.doors import Door, Doors
from loopfs.agent.log import say
from loopfs.agent.notifications import First, first, let_all_go, let_go, let_next_go
from loopfs.channel import Channel, close_all
from loopfs.errors import LoopfsError

TAKEN = b"taken"
WITHIN = 10.0  # seconds for a message between two of our processes
IN_FLIGHT = 64  # calls of a listener before and after the last recorded one that may be unanswered
_MINE = "The kernel answers its calls"


def main(connection: socket.socket, doors: Doors) -> None:
    """Serve the container of a connection until no process of it is left.

    Args:
        connection: of a container runtime.
        doors: of all containers.
    """
    with connection:
        try:
            name, listener = state.receive(connection)
        except LoopfsError as problem:
            say(f"a connection was refused: {problem.strerror}")
            return
    try:
        begun = first(listener)
        if begun is None:
            return
        if refusal := _refusal(begun):
            begun.go()
            raise LoopfsError(errno.EPERM, refusal)
    except LoopfsError as problem:
        say(f"{problem.strerror}. {_MINE}", name)
        let_all_go([listener])
        return
    try:
        with doors.at(begun.mounts) as door:
            if door.is_new:
                Keeper(name, door, listener).run(begun)
                return
            _pass_on(door.socket, listener, begun.number)
            begun.go()
    except OSError as problem:
        begun.go()
        say(f"its keeper does not answer: {problem.strerror or problem}. {_MINE}", name)
        let_all_go([listener])


def _refusal(begun: First) -> str:
    """Return the reason why a container is not served; empty if it is served."""
    if begun.userns == os.stat("/proc/self/ns/user").st_ino:
        return "it has no user namespace of its own, and gets no loop devices"
    return ""


def _pass_on(keeper: socket.socket, listener: int, number: int) -> None:
    """Pass a listener, and the id of its first call, to the keeper of its container.

    Raises:
        OSError: the keeper does not accept it.
    """
    socket.send_fds(keeper, [container.SLOT.pack(number)], [listener])
    if keeper.recv(len(TAKEN)) != TAKEN:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Keeper:
    """The listeners of one container.

    Args:
        name: of the container, for messages.
        door: receives further listeners.
        listener: the first one.
    """

    def __init__(self, name: str, door: Door, listener: int) -> None:
        self._name = name
        self._door = door
        self._listeners: dict[int, int] = {0: listener}  # by their slots in the page
        self._page = mmap(-1, PAGESIZE)  # the id of the last received call of each
        self._poller = select.poll()
        self._poller.register(door.socket, select.POLLIN)
        self._poller.register(listener, 0)

    def run(self, begun: First) -> None:
        """Start the supervisor, and hold its listeners until the container has ended."""
        container.SLOT.pack_into(self._page, 0, begun.number)
        ours, its = Channel.pair()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        supervisor = os.fork()
        if supervisor == 0:
            ours.close()
            self._door.socket.close()
            container.main(self._name, begun, self._listeners[0], its, self._page)
        its.close()
        self._channel = ours
        ready = ours.receive().data
        begun.go()
        begun.close()
        if self._follow(supervisor):
            return
        if ready:
            say(f"its supervisor was killed, and its devices are gone. {_MINE}", self._name)
        self._answer_in_flight()
        self._answer()

    def _follow(self, supervisor: int) -> bool:
        """Pass listeners on until the supervisor ends; return whether it exited with 0."""
        pidfd = os.pidfd_open(supervisor)
        self._poller.register(pidfd, select.POLLIN)
        while True:
            for fd, event in self._poller.poll():
                if fd == pidfd:
                    self._poller.unregister(pidfd)
                    os.close(pidfd)
                    _, status = os.waitpid(supervisor, 0)
                    return status == 0
                if fd == self._door.socket.fileno():
                    self._hand_on()
                elif event:
                    self._drop(fd)
            if not self._listeners and self._door.socket.fileno() >= 0:
                # The engines may take long to end, and before Linux 6.11 the number of the mount
                # namespace can be reused by another container.
                self._poller.unregister(self._door.socket)
                self._door.remove()

    def _hand_on(self) -> None:
        if (slot := self._take()) is not None:
            with suppress(BrokenPipeError):  # it was killed: the next poll() reports that
                self._channel.send(b"%d" % slot, (self._listeners[slot],))

    def _take(self) -> int | None:
        """Receive a listener at the door and return its slot; None if it is refused."""
        connection, _ = self._door.socket.accept()
        with connection:
            connection.settimeout(WITHIN)
            try:
                if state.peer_user(connection) != os.geteuid():
                    return None
                number, fds, _, _ = socket.recv_fds(connection, container.SLOT.size, 1)
                slots = set(range(PAGESIZE // container.SLOT.size)) - self._listeners.keys()
                if len(number) < container.SLOT.size or not fds or not slots:
                    close_all(fds)
                    return None
                slot = min(slots)
                self._listeners[slot] = fds[0]
                start = slot * container.SLOT.size
                self._page[start : start + container.SLOT.size] = number
                self._poller.register(fds[0], 0)
                connection.send(TAKEN)
            except OSError as problem:
                say(f"a listener was lost: {problem.strerror}", self._name)
                return None
        return slot

    def _drop(self, listener: int) -> None:
        """Close a listener that has no process left."""
        self._poller.unregister(listener)
        slot = next(slot for slot, fd in self._listeners.items() if fd == listener)
        del self._listeners[slot]
        os.close(listener)

    def _answer_in_flight(self) -> None:
        """Answer the calls that the supervisor had received, recorded or not: a filter numbers its
        calls consecutively."""
        for slot, listener in self._listeners.items():
            (last,) = container.SLOT.unpack_from(self._page, slot * container.SLOT.size)
            for number in range(last - IN_FLIGHT, last + IN_FLIGHT):
                let_go(listener, number % (1 << 64))

    def _answer(self) -> None:
        """Answer in place of the supervisor until no process is left."""
        for listener in self._listeners.values():
            self._poller.modify(listener, select.POLLIN)
        while self._listeners:
            for fd, _ in self._poller.poll():
                if fd != self._door.socket.fileno():
                    if not let_next_go(fd):
                        self._drop(fd)
                elif (slot := self._take()) is not None:
                    self._poller.modify(self._listeners[slot], select.POLLIN)
